"""`sample`: from noise to data along any velocity function."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from flowjax.paths import Path

from . import _checks, _schedule, grids
from ._callable import as_pytree, split
from ._checks import Solver
from ._solve import Plan, run_adaptive, run_fixed

_NUM_SAVED = 33


class Sample(NamedTuple):
    """What `sample` returns. A pytree.

    Attributes:
        samples: [b, *event].
        num_evaluations: calls of the velocity function for the whole batch, int32 scalar; [b] with
            per_sample_steps: what each sample's own solve took (the batch runs until the last one is done).
        times: [T] times of the trajectory; [2], both ends, without one.
        trajectory: [T, b, *event], or None if none was asked for.
    """

    samples: jax.Array
    num_evaluations: jax.Array
    times: jax.Array
    trajectory: jax.Array | None


def sample(
    velocity: Any,
    noise: ArrayLike,
    *,
    solver: Solver = "dopri5",
    num_steps: int | None = None,
    grid: str | Callable[[np.ndarray], np.ndarray] | Sequence[float] | np.ndarray | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    per_sample_steps: bool = False,
    start_time: float = 0.0,
    final_time: float | None = None,
    denoise_last: bool = True,
    condition: Mapping[str, Any] | None = None,
    path: Path | None = None,
    trajectory: bool = False,
    save_times: Sequence[float] | np.ndarray | None = None,
) -> Sample:
    """Solve dx/dt = velocity(x, t) from noise at start_time towards data at t = 1.

    **The end t → 1.** The exact field of a finite data set is (x̂ − x)/(1 − t) on the linear path, 0/0 at t = 1.
    So the velocity is integrated to final_time = 1 − δ, and from there x jumps to the data prediction x̂ that the
    velocity implies (`Path.convert`, one more evaluation). Where the posterior is one-hot, x̂ is the data point
    itself to rounding, whatever error x has picked up; on the linear path the jump is an Euler step of length δ, so
    for any smooth velocity it costs an error of order δ². The default δ = 1e-3 puts that at 1e-6, below the default
    tolerance, whatever the solver; it resolves data points more than about 8 σ(final_time) apart (.008 on the
    linear path), and closer ones come out averaged. A larger δ buys nothing, a smaller one resolves more, but
    float32 rounding of x̂ − x enters the velocity as 6e-8 |x|/δ. The velocity is never evaluated at t ≥ 1.

    **Compilation.** What the velocity function holds goes in as arguments if it is a pytree: a `ClosedFormField`, an
    nnx module, a `hybrid`, `from_prediction`, `functools.partial` of those, a bound method of one. One compilation
    serves all of the same structure. A plain Python function is compiled once per function object; arrays that it
    closes over become constants. Under an outer `jit` checks on values are left out, and a sample that could not be
    completed is NaN. Fixed steps are differentiated in either mode, adaptive ones in reverse mode by diffrax's
    recursive checkpointing.

    Args:
        velocity: `f(x, t, **condition) -> velocity`, x and velocity [b, *event], t a scalar; under
            per_sample_steps it is called for one sample, b = 1, under `vmap`.
        noise: [b, *event] floating, the state at start_time; from `path.sample_prior` if start_time is 0. Half
            precision is raised to float32.
        solver: fixed steps "euler" (order 1), "midpoint", "heun" (2), "rk4" (4); adaptive "dopri5", "tsit5" (5).
        num_steps: number of fixed steps. A breakpoint of the velocity or a save time between two grid points
            splits its step in two.
        grid: for fixed steps: a warp of [0, 1] by name ("uniform", "cosine", "karras") or as a callable, see
            `flowjax.sampling.grids`; or the times themselves, [N + 1] increasing in [0, 1), which then also set
            num_steps, start_time and final_time.
        rtol, atol: adaptive: error per step below atol + rtol |x| in root mean square over each sample.
        max_steps: adaptive: give up after so many steps, rejected ones included.
        per_sample_steps: adaptive: every sample has its own steps. By default the batch shares them, and the
            worst sample decides.
        start_time, final_time: 0 ≤ start_time < final_time < 1; final_time None is 1 − 1e-3.
        denoise_last: jump to the data prediction; False ends at final_time.
        condition: keyword arguments for every call of the velocity, such as {"labels": int [b]}. Under
            per_sample_steps arrays whose first axis is b are taken to be per sample.
        path: where the data prediction comes from; None takes velocity.path if there is one, else Linear().
        trajectory: return the states at every step (fixed) or at 33 equally spaced times (adaptive), and at 1
            after the jump.
        save_times: return the states at these times instead: increasing, from start_time to final_time, and 1
            itself with denoise_last. Fixed steps step onto them, adaptive ones interpolate (order 4).

    Returns:
        `Sample`.

    Raises:
        ValueError: unknown solver or grid, num_steps missing or not positive or given with an adaptive solver,
            tolerances not positive, times outside [0, 1) or not increasing, noise of no batch or not finite, a
            velocity of another shape than x.
        TypeError: velocity not callable, noise not floating point, condition no mapping, path no Path.
        RuntimeError: max_steps reached, step size underflow, or a result that is not finite.

    Reference: Karras et al., arXiv 2206.00364, Algorithm 1 (the last step there is the same jump).
    """
    velocity = as_pytree(velocity)
    _checks.check_solver(solver, num_steps, grid, per_sample_steps)
    adaptive = solver in _checks.ADAPTIVE
    if adaptive:
        _checks.check_tolerances(rtol, atol, max_steps)
    x = _checks.check_states(noise, "noise")
    condition = _checks.check_condition(condition, x.shape[0], velocity)
    path = _checks.check_path(path, velocity)
    grid = grids.uniform if grid is None else grid
    if not callable(grid) and not isinstance(grid, str):
        grid = _schedule.check_explicit_grid(grid, num_steps)
        start_time, final_time = _checks.check_ends(grid, start_time, final_time)
    start_time, final_time = _schedule.check_interval(start_time, final_time)
    if trajectory and save_times is not None:
        raise ValueError("trajectory=True and save_times both choose times; give one of them")
    wanted = None
    if save_times is not None:
        wanted = _schedule.check_save_times(save_times, start_time, final_time, denoise_last)
    elif trajectory and adaptive:
        wanted = np.append(np.linspace(start_time, final_time, _NUM_SAVED), [1.0] * denoise_last)
    ends_at_one = denoise_last and (trajectory if wanted is None else wanted[-1] == 1)
    inside = wanted[:-1] if wanted is not None and ends_at_one else wanted

    dynamic, static = split((velocity, condition))
    breakpoints = tuple(getattr(velocity, "breakpoints", ()))
    last_piece = _schedule.last_piece(breakpoints, final_time)
    plan = Plan(solver, path, denoise_last, save=trajectory or wanted is not None)

    def array(values):
        return jnp.asarray(values, x.dtype)

    if adaptive:
        edges, pieces = _schedule.adaptive_edges(breakpoints, start_time, final_time)
        plan = dataclasses.replace(
            plan, pieces=pieces, per_sample_steps=per_sample_steps, max_steps=max_steps
        )
        times, between = inside, None if inside is None else array(inside)
        result, report = run_adaptive(
            dynamic, x, array(edges), last_piece, between, array(rtol), array(atol), static=static, plan=plan
        )
    else:
        planned = _schedule.fixed_times(grid, num_steps, start_time, final_time)
        schedule = _schedule.fixed_schedule(planned, breakpoints, inside, save_all=trajectory)
        plan = dataclasses.replace(plan, num_saved=schedule.num_saved)
        times = schedule.times if trajectory else inside
        result, report = run_fixed(
            dynamic,
            x,
            array(schedule.times),
            schedule.piece,
            last_piece,
            schedule.slots,
            static=static,
            plan=plan,
        )
    _checks.check_result(report, plan, rtol, atol, final_time)

    if times is None or result.states is None:
        ends = array([start_time, 1.0 if denoise_last else final_time])
        return Sample(result.samples, result.num_evaluations, ends, None)
    times, states = array(times), result.states
    if ends_at_one:
        times = jnp.append(times, array(1.0))
        states = jnp.concatenate([states, result.samples[None]])
    return Sample(result.samples, result.num_evaluations, times, states)
