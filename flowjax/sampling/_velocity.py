"""Velocity functions made of others: hybrids in time, and predictors of data, noise or score."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from flowjax._choices import hint
from flowjax.paths import Linear, Path, Prediction

from ._callable import as_pytree

Scalar = float | np.floating | np.ndarray | jax.Array

FIRST_TIME = 1e-3
"""Earliest time at which a noise or score prediction is converted on a path that starts at alpha = 0."""


def path_of(velocity: Any) -> Path | None:
    """The path a velocity function says it belongs to, or None."""
    path = getattr(velocity, "path", None)
    return path if isinstance(path, Path) else None


def check_condition(velocity: Any, condition: Mapping[str, Any]) -> None:
    """Let a velocity function that has a method `check_condition` refuse its condition before anything is compiled."""
    check = getattr(velocity, "check_condition", None)
    if check is not None:
        check(**condition)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hybrid:
    """One velocity function before a time, another from that time on. See `hybrid`."""

    first: Any
    second: Any
    switch_time: Scalar
    path: Path | None = dataclasses.field(default=None, metadata={"static": True})

    def __call__(self, x: jax.Array, t: ArrayLike, **condition: Any) -> jax.Array:
        """Velocity [*batch, *event]. With one time for all queries only the function in force is evaluated;
        with a time per query both are, and each query takes its own."""
        if jnp.ndim(t) == 0:
            if not any(isinstance(value, Tracer) for value in (t, self.switch_time)):
                function = self.first if np.asarray(t) < self.switch_time else self.second
                return function(x, t, **condition)
            return jax.lax.cond(
                jnp.asarray(t) < self.switch_time,
                lambda: jnp.asarray(self.first(x, t, **condition), x.dtype),
                lambda: jnp.asarray(self.second(x, t, **condition), x.dtype),
            )
        early = jnp.asarray(t) < self.switch_time
        early = early.reshape(early.shape + (1,) * (x.ndim - early.ndim))
        return jnp.where(early, self.first(x, t, **condition), self.second(x, t, **condition))

    def check_condition(self, **condition: Any) -> None:
        """What either function refuses."""
        check_condition(self.first, condition)
        check_condition(self.second, condition)

    @property
    def breakpoints(self) -> tuple[Scalar, ...]:
        """Times at which the velocity may jump, increasing; those of nested hybrids included."""
        traced = isinstance(self.switch_time, Tracer)
        low, high = (jnp.minimum, jnp.maximum) if traced else (np.minimum, np.maximum)
        before = tuple(low(time, self.switch_time) for time in getattr(self.first, "breakpoints", ()))
        after = tuple(high(time, self.switch_time) for time in getattr(self.second, "breakpoints", ()))
        return (*before, self.switch_time, *after)

    @property
    def pieces(self) -> tuple[Any, ...]:
        """The velocity functions in force between the breakpoints: one more than there are breakpoints."""
        return (
            *getattr(self.first, "pieces", (self.first,)),
            *getattr(self.second, "pieces", (self.second,)),
        )


def hybrid(first: Any, second: Any, switch_time: Scalar) -> Hybrid:
    """`first` for t < switch_time, `second` from switch_time on; itself a velocity function and a pytree.

    `sample` steps exactly onto switch_time and restarts there, since a jump of the velocity inside a step would
    cost a Runge–Kutta method its order. switch_time is an array leaf: another value does not compile anew.

    Args:
        first, second: velocity functions; both receive the same condition.
        switch_time: scalar in [0, 1]; 0 leaves only `second`, 1 only `first`.

    Raises:
        ValueError: switch_time is no scalar or outside [0, 1], or the two say that they belong to different paths.
        TypeError: one of the two cannot be called.

    Reference: Bertrand, Gagneux, Massias, Emonet, arXiv 2506.03719, §3.3 (exact field first, network after).
    """
    if jnp.ndim(switch_time) != 0:
        raise ValueError(f"switch_time must be a scalar, got shape {jnp.shape(switch_time)}")
    if not isinstance(switch_time, Tracer):
        if not 0 <= switch_time <= 1:
            raise ValueError(f"switch_time must lie in [0, 1], got {switch_time}")
        switch_time = np.float32(switch_time)
    paths = [path for path in (path_of(first), path_of(second)) if path is not None]
    if len(paths) == 2 and paths[0] != paths[1]:
        raise ValueError(
            f"first belongs to {paths[0]} and second to {paths[1]}; a hybrid follows one path, rebuild one of them"
        )
    return Hybrid(as_pytree(first), as_pytree(second), switch_time, paths[0] if paths else None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConvertedPrediction:
    """A predictor of data, noise or score as a velocity function. See `from_prediction`."""

    predictor: Any
    path: Path = dataclasses.field(metadata={"static": True})
    source: Prediction = dataclasses.field(metadata={"static": True})
    first_time: float = dataclasses.field(metadata={"static": True})

    def check_condition(self, **condition: Any) -> None:
        """What the predictor refuses."""
        check_condition(self.predictor, condition)

    def __call__(self, x: jax.Array, t: ArrayLike, **condition: Any) -> jax.Array:
        """Velocity [*batch, *event]."""
        t = jnp.maximum(jnp.asarray(t, x.dtype), self.first_time)
        prediction = jnp.asarray(self.predictor(x, t, **condition), x.dtype)
        return self.path.convert(prediction, x, t, source=self.source, target="velocity")


def from_prediction(
    predictor: Any, path: Path | None = None, source: Prediction = "data", *, first_time: float | None = None
) -> ConvertedPrediction:
    """Turn a predictor of data, noise or score into a velocity function on `path`.

    A noise or score prediction at alpha = 0 (t = 0 on the linear and the trigonometric path) says nothing about
    the data: the velocity is 0/0 there. For t < first_time predictor and conversion are therefore evaluated at
    first_time, which is as if the velocity were constant on [0, first_time]: an error of order first_time² in
    the state, 1e-6 by default. Data and velocity predictions need nothing of the kind, nor do paths with
    alpha(0) > 0; first_time is 0 for them.

    Args:
        predictor: `f(x, t, **condition) -> prediction`, shapes as for a velocity function.
        path: Gaussian path; the predictor's own if it has one, else Linear().
        source: what is predicted: "data", "noise", "score" or "velocity".
        first_time: None chooses as described.

    Raises:
        ValueError: unknown source, first_time outside [0, 1), or first_time = 0 where the conversion is singular.
        TypeError: the predictor cannot be called or path is no Path.
    """
    names = get_args(Prediction)
    if source not in names:
        raise ValueError(f"source={source!r} is not a prediction; {hint(source, names)}")
    if path is None:
        path = path_of(predictor) or Linear()
    if not isinstance(path, Path):
        raise TypeError(f"path must be a flowjax.paths.Path such as Linear(), got {path!r}")
    singular = source in ("noise", "score") and float(path.alpha(jnp.zeros(()))) == 0
    if first_time is None:
        first_time = FIRST_TIME if singular else 0.0
    if not 0 <= first_time < 1:
        raise ValueError(f"first_time must lie in [0, 1), got {first_time}")
    if singular and first_time == 0:
        raise ValueError(
            f"a {source} prediction at t = 0 cannot be converted on {path} (alpha = 0); use first_time={FIRST_TIME}"
        )
    return ConvertedPrediction(as_pytree(predictor), path, source, float(first_time))
