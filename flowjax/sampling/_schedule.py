"""From what the caller asks for (steps, grid, ends, breakpoints, save times) to the times a solver visits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import grids

TIME_LEFT = 1e-3
"""What `sample` leaves of the interval for the jump to the data prediction; reasons in `sample`'s docstring."""

_SAME_TIME = 1e-6


def check_interval(start: float, final: float | None) -> tuple[float, float]:
    """Both ends, with the default for final; ValueError unless 0 ≤ start < final < 1, after rounding to float32."""
    start, final = float(start), 1 - TIME_LEFT if final is None else float(final)
    if not 0 <= start < 1:
        raise ValueError(f"start_time must lie in [0, 1), got {start}")
    if not np.float32(start) < np.float32(final):
        raise ValueError(f"final_time={final} must come after start_time={start}")
    if not np.float32(final) < 1:
        raise ValueError(
            f"final_time={final} must be below 1, where velocities may be singular; stop at {1 - TIME_LEFT} and let "
            "denoise_last=True take the rest"
        )
    return start, final


def check_save_times(save_times: Any, start: float, final: float, denoise_last: bool) -> np.ndarray:
    """Increasing times in [start, final], and 1 with denoise_last, as float64; ValueError otherwise."""
    times = np.asarray(save_times, np.float64)
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"save_times must be a non-empty list of times, got shape {times.shape}")
    if not np.all(np.diff(times) > _SAME_TIME):
        raise ValueError(f"save_times must increase by more than {_SAME_TIME}, got {times.tolist()}")
    inside = times[:-1] if denoise_last and times[-1] == 1 else times
    if not np.all((inside >= start) & (inside <= final)):
        end = f"in [{start}, {final}]" + (", or 1 for the end itself" if denoise_last else "")
        raise ValueError(f"save_times must lie {end}, got {times.tolist()}")
    return times


def check_explicit_grid(grid: Any, num_steps: int | None) -> np.ndarray:
    """The caller's own array of times, float64 [N + 1]; ValueError if it makes no sense."""
    times = np.asarray(grid, np.float64)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"a grid of times needs shape [N + 1] with at least two times, got {times.shape}")
    if not np.all(np.diff(times.astype(np.float32)) > 0):
        raise ValueError(
            "the grid's times must increase from noise (0) to data (1); sort them and drop duplicates"
        )
    if num_steps is not None and num_steps != times.size - 1:
        raise ValueError(f"{num_steps=} contradicts the grid's {times.size} times; leave num_steps out")
    return times


def fixed_times(grid: Any, num_steps: int | None, start: float, final: float) -> np.ndarray:
    """[N + 1] float64 from a name, a callable or a checked array."""
    if isinstance(grid, np.ndarray):
        return grid
    if isinstance(grid, str):
        grid = grids.find(grid)
    assert num_steps is not None
    return grids.times(grid, num_steps, start, final)


class FixedSchedule(NamedTuple):
    """times [N + 1]; piece [N] int32 in force in each step; slots [N + 1] int32 of the trajectory."""

    times: Any
    piece: Any
    slots: Any
    num_saved: int


def fixed_schedule(
    times: np.ndarray, breakpoints: Sequence[Any], save_times: np.ndarray | None, save_all: bool
) -> FixedSchedule:
    """Insert breakpoints and save times into a grid: the solver steps exactly onto each of them."""
    extra = np.zeros(0) if save_times is None else save_times
    if any(isinstance(time, Tracer) for time in breakpoints):
        # The values are unknown, so nothing can be left out: a breakpoint on the grid makes a step of length zero.
        cuts = jnp.clip(
            jnp.stack([jnp.asarray(time, jnp.float32) for time in breakpoints]), times[0], times[-1]
        )
        visited = jnp.sort(jnp.concatenate([jnp.asarray(np.concatenate([times, extra]), jnp.float32), cuts]))
        piece = jnp.searchsorted(cuts, (visited[:-1] + visited[1:]) / 2, side="right")
        nearest = jnp.searchsorted(visited, jnp.asarray(extra, jnp.float32))
        length = visited.shape[0]
    else:
        cuts = np.asarray(breakpoints, np.float64).reshape(-1)
        must = np.unique(np.concatenate([cuts, extra]))
        must = must[(must > times[0] + _SAME_TIME) & (must < times[-1] - _SAME_TIME)]
        inner = times[1:-1]
        if must.size:
            inner = inner[np.min(np.abs(inner[:, None] - must), axis=1) > _SAME_TIME]
        visited = np.sort(np.concatenate([times[:1], inner, must, times[-1:]]))
        piece = np.searchsorted(cuts, (visited[:-1] + visited[1:]) / 2, side="right")
        nearest = np.argmin(np.abs(visited - extra[:, None]), axis=1)
        length = visited.size
    piece = jnp.asarray(piece, jnp.int32)
    if save_all:
        return FixedSchedule(visited, piece, jnp.arange(length, dtype=jnp.int32), length)
    slots = jnp.full(length, extra.size, jnp.int32).at[nearest].set(jnp.arange(extra.size, dtype=jnp.int32))
    return FixedSchedule(visited, piece, slots, extra.size)


def adaptive_edges(breakpoints: Sequence[Any], start: float, final: float) -> tuple[Any, tuple[int, ...]]:
    """Ends of the intervals to solve one after the other, [segments + 1], and which piece is in force in each."""
    if any(isinstance(time, Tracer) for time in breakpoints):
        cuts = [jnp.clip(jnp.asarray(time, jnp.float32), start, final) for time in breakpoints]
        edges = jnp.stack([jnp.float32(start), *cuts, jnp.float32(final)])
        return edges, tuple(range(len(breakpoints) + 1))
    cuts = np.asarray(breakpoints, np.float64).reshape(-1)
    inside = np.unique(cuts[(cuts > start + _SAME_TIME) & (cuts < final - _SAME_TIME)])
    edges = np.concatenate([[start], inside, [final]])
    pieces = np.searchsorted(cuts, (edges[:-1] + edges[1:]) / 2, side="right")
    return edges, tuple(int(piece) for piece in pieces)


def last_piece(breakpoints: Sequence[Any], final: float) -> jax.Array:
    """Which piece makes the jump to the data prediction, int32: the number of breakpoints before final."""
    if not breakpoints:
        return jnp.zeros((), jnp.int32)
    cuts = jnp.stack([jnp.asarray(time, jnp.float32) for time in breakpoints])
    return jnp.sum(cuts < jnp.float32(final)).astype(jnp.int32)
