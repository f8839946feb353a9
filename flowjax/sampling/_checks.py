"""What `sample` and `log_density` refuse, and the sentences that say so."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from flowjax._choices import check_choice
from flowjax.paths import Linear, Path

from ._solve import Plan, Report, is_finite
from ._velocity import check_condition as ask
from ._velocity import path_of

Solver = Literal["euler", "midpoint", "heun", "rk4", "dopri5", "tsit5"]

ADAPTIVE = ("dopri5", "tsit5")


def check_solver(solver: Any, num_steps: Any, grid: Any, per_sample_steps: bool) -> None:
    """ValueError for an unknown solver, and for options that it does not have or lacks."""
    check_choice("solver", solver, get_args(Solver))
    if solver in ADAPTIVE:
        if num_steps is not None or grid is not None:
            raise ValueError(
                f"solver={solver!r} chooses its own steps, so num_steps and grid do not apply; set rtol and atol, or "
                "take a fixed-step solver such as 'heun'"
            )
        return
    if per_sample_steps:
        raise ValueError(
            f"solver={solver!r} gives every sample the same steps; per_sample_steps needs 'dopri5' or 'tsit5'"
        )
    if num_steps is None and (grid is None or callable(grid) or isinstance(grid, str)):
        raise ValueError(f"solver={solver!r} takes fixed steps: give num_steps, for example num_steps=50")
    if num_steps is not None:
        check_count("num_steps", num_steps)


def check_count(name: str, value: Any) -> None:
    """ValueError unless a positive integer."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and value >= 1):
        raise ValueError(f"{name} must be a positive integer, got {value}")


def check_tolerances(rtol: float, atol: float, max_steps: int) -> None:
    """ValueError unless all three are positive and finite."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not max_steps >= 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")


def check_states(states: ArrayLike, name: str) -> jax.Array:
    """The states, noise or data, as float32 or float64 [b, *event]."""
    x = jnp.asarray(states)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"{name} must have shape [b, *event] with at least one sample, got {x.shape}")
    if x.dtype not in (jnp.float32, jnp.float64):
        x = x.astype(jnp.float32)
    if not isinstance(x, Tracer):
        bad = np.flatnonzero(~np.asarray(is_finite(x)))
        if bad.size:
            raise ValueError(
                f"{name} holds NaN or inf in {bad.size} of {len(x)} samples, first in number {bad[0]}"
            )
    return x


def check_condition(condition: Any, batch: int, velocity: Any) -> dict[str, Any]:
    """The condition as a dictionary; labels must be one for all or one per sample, and what the velocity takes.

    A velocity function with a method `check_condition(**condition)` is asked before anything is compiled.
    """
    if condition is None:
        return {}
    if not isinstance(condition, Mapping):
        raise TypeError(
            f"condition must map names to values, such as {{'labels': labels}}, got {type(condition).__name__}"
        )
    shape = np.shape(condition.get("labels", 0))
    if shape not in ((), (1,), (batch,)):
        raise ValueError(f"labels of shape {shape} do not fit {batch} samples; give one label a sample")
    ask(velocity, condition)
    return dict(condition)


def check_path(path: Any, velocity: Any) -> Path:
    """The path of the data prediction: the caller's, else the velocity's own, else Linear()."""
    if path is None:
        return path_of(velocity) or Linear()
    if not isinstance(path, Path):
        raise TypeError(f"path must be a flowjax.paths.Path such as Linear(), got {path!r}")
    return path


def check_ends(times: np.ndarray, start: float, final: float | None) -> tuple[float, float]:
    """First and last time of an explicit grid; ValueError if the caller gave other ends beside it."""
    if start not in (0.0, times[0]) or final not in (None, times[-1]):
        raise ValueError(
            f"the grid runs from {times[0]} to {times[-1]}, which contradicts start_time={start} or "
            f"final_time={final}; leave those out"
        )
    return float(times[0]), float(times[-1])


def check_result(report: Report, plan: Plan, rtol: float, atol: float, final: float) -> None:
    """RuntimeError if the solve failed, where values are known."""
    if isinstance(report.finite, Tracer) or bool(jnp.all(report.finite) & jnp.all(report.status == 0)):
        return
    status, reached = np.atleast_1d(report.status), np.atleast_1d(report.reached)
    if np.any(status == 1):
        raise RuntimeError(
            f"{plan.solver} used up max_steps={plan.max_steps} at t = {reached[status == 1].min():.6g} on the way to "
            f"{final:.6g}; increase max_steps or loosen rtol={rtol:g}, atol={atol:g}"
        )
    if np.any(status == 2):
        raise RuntimeError(
            f"{plan.solver} meets rtol={rtol:g}, atol={atol:g} at t = {reached[status == 2].min():.6g} with no step "
            "however short: the velocity jumps, grows without bound or is NaN there; check it, or loosen the tolerances"
        )
    bad = np.flatnonzero(~np.asarray(report.finite))
    raise RuntimeError(
        f"{bad.size} of {len(report.finite)} samples are not finite, first number {bad[0]}: the velocity function "
        "returned NaN or inf, or the steps are too long for it"
    )
