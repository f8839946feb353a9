"""A velocity beside its divergence, as one velocity function of a longer state: what `log_density` integrates."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._solve import evaluator

Divergence = Literal["auto", "exact", "hutchinson"]
Probes = Literal["rademacher", "gaussian"]

LARGEST_TRACE = 64
"""Up to this dimension "auto" takes the trace by d forward-mode products; above, it estimates it."""

_AT_ONCE = 32


class Augmented(NamedTuple):
    """A state [b, *event] and the integrals of its divergence [b, k]."""

    x: jax.Array
    integrals: jax.Array


def pack(x: jax.Array, num_integrals: int) -> jax.Array:
    """State and integrals, zero for now, in one array [b, d + k]: the solvers step over arrays."""
    return jnp.pad(x.reshape(x.shape[0], -1), ((0, 0), (0, num_integrals)))


def unpack(packed: jax.Array, event: tuple[int, ...]) -> Augmented:
    """What `pack` put together, the state [b, *event] again."""
    d = int(np.prod(event))
    return Augmented(packed[:, :d].reshape(-1, *event), packed[:, d:])


def draw_probes(key: jax.Array, kind: Probes, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Random vectors of covariance one, so that E[e·Je] = tr J."""
    draw = jax.random.rademacher if kind == "rademacher" else jax.random.normal
    return draw(key, shape, dtype)


def is_estimated(velocity: Any, method: Divergence, dimension: int) -> bool:
    """Whether any piece of the velocity function needs random probes."""
    pieces = getattr(velocity, "pieces", None) or (velocity,)
    return any(_way(piece, method, dimension) == "probes" for piece in pieces)


def _way(function: Any, method: Divergence, dimension: int) -> Literal["own", "trace", "probes"]:
    if method == "hutchinson":
        return "probes"
    if getattr(function, "velocity_and_divergence", None) is not None:
        return "own"
    return "trace" if method == "exact" or dimension <= LARGEST_TRACE else "probes"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WithDivergence:
    """d/dt of (x, integrals) packed in one array, for one velocity function or one of several pieces.

    Every integral follows a probe of its own; where the divergence is exact they all follow that.
    """

    function: Any
    method: Divergence = dataclasses.field(metadata={"static": True})
    event: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, packed: jax.Array, t: jax.Array, *, probes: jax.Array, condition: dict) -> jax.Array:
        """packed [b, d + k], probes [b, k, d] -> [b, d + k]. The condition goes to the velocity function as it is."""
        x, integrals = unpack(packed, self.event)
        dimension = probes.shape[-1]
        way = _way(self.function, self.method, dimension)
        if way == "own":
            velocity, divergence = self.function.velocity_and_divergence(x, t, **condition)
            velocity = evaluator(lambda *_: velocity)(x, t, {})
            divergence = jnp.asarray(divergence, x.dtype)
            if divergence.shape != x.shape[:1]:
                raise ValueError(
                    f"velocity_and_divergence returned a divergence of shape {divergence.shape} for {x.shape[0]} "
                    "samples; it must return one number a sample"
                )
            divergence = divergence[:, None]
        else:
            evaluate = evaluator(self.function)
            # One evaluation, and then a product with the Jacobian for every direction.
            velocity, push = jax.linearize(lambda x: evaluate(x, t, condition), x)
            divergence = _trace(push, x) if way == "trace" else _quadratic_forms(push, x, probes)
        rates = jnp.broadcast_to(divergence, integrals.shape)
        return jnp.concatenate([velocity.reshape(x.shape[0], dimension), rates], axis=1)

    @property
    def breakpoints(self) -> tuple[Any, ...]:
        return tuple(getattr(self.function, "breakpoints", ()))

    @property
    def pieces(self) -> tuple[Any, ...] | None:
        pieces = getattr(self.function, "pieces", None)
        return None if pieces is None else tuple(dataclasses.replace(self, function=p) for p in pieces)


def _trace(push: Any, x: jax.Array) -> jax.Array:
    """[b, 1] trace of every sample's own Jacobian: a direction serves the whole batch at once."""
    d = x[0].size

    def diagonal(i):
        direction = jnp.zeros((x.shape[0], d), x.dtype).at[:, i].set(1)
        return push(direction.reshape(x.shape)).reshape(x.shape[0], d)[:, i]

    return jnp.sum(jax.lax.map(diagonal, jnp.arange(d), batch_size=min(d, _AT_ONCE)), 0)[:, None]


def _quadratic_forms(push: Any, x: jax.Array, probes: jax.Array) -> jax.Array:
    """[b, k] e·Je for probes e [b, k, d]."""

    def form(probe):
        product = push(probe.reshape(x.shape)).reshape(probe.shape)
        return jnp.sum(probe * product, 1)

    by_probe = jnp.moveaxis(probes, 1, 0)
    return jax.lax.map(form, by_probe, batch_size=min(len(by_probe), _AT_ONCE)).T
