"""`log_density` and `bits_per_dimension`: how likely data is under any velocity function."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from flowjax._choices import check_choice
from flowjax.paths import Path

from . import _checks, _schedule, grids
from ._callable import as_pytree, split
from ._checks import Solver
from ._divergence import Divergence, Probes, WithDivergence, draw_probes, is_estimated, pack, unpack
from ._solve import Plan, Report, Result, run_adaptive, run_fixed

Of = Literal["data", "state"]

_HALF_RANGE = 127.5
"""Pixel steps in a unit of data space: uint8 pixels mean y/127.5 − 1."""


class LogDensity(NamedTuple):
    """What `log_density` returns. A pytree.

    Attributes:
        log_density: [b] in nats, with respect to Lebesgue measure on the d flattened axes.
        standard_error: [b] of the estimated divergence, in nats: 0 where the divergence is exact, NaN for a single
            probe. What the solver's tolerance adds is not in it.
        num_evaluations: calls of the velocity function, each with its divergence, int32 scalar; [b] with
            per_sample_steps.
        noise: [b, *event] the state at t = 0 that the flow takes to x.
    """

    log_density: jax.Array
    standard_error: jax.Array
    num_evaluations: jax.Array
    noise: jax.Array


class BitsPerDimension(NamedTuple):
    """What `bits_per_dimension` returns. A pytree.

    Attributes:
        bits: [b] bits a dimension; their mean over a held-out set is what tables print.
        standard_error: [b] of the estimated divergence, as in `LogDensity`, in bits a dimension.
        num_evaluations: as in `LogDensity`.
    """

    bits: jax.Array
    standard_error: jax.Array
    num_evaluations: jax.Array


def log_density(
    velocity: Any,
    x: ArrayLike,
    *,
    divergence: Divergence = "auto",
    num_probes: int = 8,
    probes: Probes = "rademacher",
    key: jax.Array | None = None,
    of: Of = "data",
    solver: Solver = "dopri5",
    num_steps: int | None = None,
    grid: str | Callable[[np.ndarray], np.ndarray] | Sequence[float] | np.ndarray | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    per_sample_steps: bool = False,
    final_time: float | None = None,
    condition: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> LogDensity:
    """Log density of x under the flow of a velocity function, by the change of variables along the way back to noise.

    The state is carried from final_time to t = 0 together with the integral of the velocity's divergence:

        log p(x_T) = log N(x_0; 0, sigma(0)²) − ∫₀ᵀ div v(x_t, t) dt.

    The prior is what `path.sample_prior` draws, so this is the density of what `sample` makes of it.

    **The end t → 1.** Fields of finite data are singular there, so T = final_time = 1 − 1e-3 as in `sample`. Data x is
    entered as the state alpha(T) x, and the density returned is that of x_T/alpha(T): of the data blurred by normal
    noise of deviation sigma(T)/alpha(T), .001 on the linear path. On a smooth density that is an error of second order
    in the deviation; on the exact field of finite data it is the kernel density estimate of that width. The paths of
    variance preserving and exploding type have alpha(0) > 0: there the prior differs from the path's own marginal at
    t = 0, and so does what is sampled.

    **How exact.** The way back magnifies what the solver gets wrong, by up to alpha/sigma(T) in directions in which the
    data hardly spread: tighten rtol and atol until the result stands still. 8×8 digits entered near training points of
    their own exact field come out within .03 nats of its kernel density of 345 at T = .999, and within 1e-3 at
    tolerances of 1e-6. Away from its points that field is stiff: backwards in time x is driven onto the ridges between
    points D apart and held there at a rate of D²/sigma³, which from about T = .98 on no explicit solver follows (a
    RuntimeError, or hundreds of nats). There its density is known without any solver: it is
    `field.posterior(alpha(T) x, T).log_density + d log alpha(T)`.

    **The divergence.** "auto" takes the closed form where the velocity function has a method
    `velocity_and_divergence(x, t, **condition) -> ([b, *event], [b])`, as `ClosedFormField` has; else the exact trace
    up to 64 dimensions, by d forward-mode products at every evaluation; else Hutchinson's estimate. Each piece of a
    `hybrid` is judged by itself. "exact" takes the trace in any dimension. "hutchinson" always estimates: e·Je averaged
    over num_probes random e, drawn once for the whole solve, so that the solver sees a smooth right-hand side. The
    estimate of the log density is unbiased, its standard error comes from the spread over the probes. The velocity of a
    sample must not depend on the other samples of its batch, and (but for the closed form) it must be differentiable
    in forward mode.

    Compilation, breakpoints and what happens under `jit`: as in `sample`. `vmap` and reverse-mode `grad` work too.

    Args:
        velocity: `f(x, t, **condition) -> velocity`, x and velocity [b, *event], t a scalar.
        x: [b, *event] floating; half precision is raised to float32.
        divergence: "auto", "exact" or "hutchinson".
        num_probes: random vectors a sample. The variance falls as their number, the cost grows with it.
        probes: "rademacher" (signs; their error comes from off-diagonal entries alone) or "gaussian".
        key: of the probes; needed where the divergence is estimated.
        of: "data", as described, or "state": x is the state at final_time itself, and so is the density.
        solver, num_steps, grid, rtol, atol, max_steps, per_sample_steps: as in `sample`; times go from final_time
            to 0. The integral is held to the tolerance by itself: below atol + rtol |integral| a step, in nats.
        final_time: in (0, 1); None is 1 − 1e-3.
        condition: keyword arguments for every call of the velocity, such as {"labels": int [b]}.
        path: of the prior and of alpha; None takes velocity.path if there is one, else Linear().

    Returns:
        `LogDensity`.

    Raises:
        ValueError: as `sample`; an unknown divergence, probes or of; num_probes not positive; an estimate without key.
        TypeError: as `sample`.
        RuntimeError: max_steps reached, step size underflow, or a result that is not finite.

    References: Chen et al., arXiv 1806.07366, theorem 1; Grathwohl et al., arXiv 1810.01367, §3.1 (the estimate).
    """
    velocity = as_pytree(velocity)
    check_choice("divergence", divergence, get_args(Divergence))
    check_choice("kind of probes", probes, get_args(Probes))
    check_choice("of", of, get_args(Of))
    _checks.check_solver(solver, num_steps, grid, per_sample_steps)
    adaptive = solver in _checks.ADAPTIVE
    if adaptive:
        _checks.check_tolerances(rtol, atol, max_steps)
    _checks.check_count("num_probes", num_probes)
    x = _checks.check_states(x, "x")
    condition = _checks.check_condition(condition, x.shape[0], velocity)
    path = _checks.check_path(path, velocity)
    grid = grids.uniform if grid is None else grid
    if not callable(grid) and not isinstance(grid, str):
        grid = _schedule.check_explicit_grid(grid, num_steps)
        start, final_time = _checks.check_ends(grid, float(np.asarray(grid)[0]), final_time)
        if start != 0:
            raise ValueError(f"the prior lies at t = 0, so the grid must start there and not at {start}")
    _, final_time = _schedule.check_interval(0.0, final_time)

    event, dimension = x.shape[1:], x[0].size
    estimated = is_estimated(velocity, divergence, dimension)
    shape = (x.shape[0], num_probes if estimated else 1, dimension)
    drawn = jnp.zeros(shape, x.dtype)
    if estimated:
        if key is None:
            raise ValueError(
                f"the divergence in {dimension} dimensions is estimated with random probes: give "
                f"key=jax.random.key(0), or take divergence='exact' at the price of {dimension} products with the "
                "Jacobian an evaluation"
            )
        drawn = draw_probes(key, probes, shape, x.dtype)

    end = jnp.asarray(final_time, x.dtype)
    state = path.alpha(end) * x if of == "data" else x
    augmented = WithDivergence(velocity, divergence, event)
    dynamic, static = split((augmented, {"probes": drawn, "condition": condition}))
    plan = Plan(
        solver,
        path,
        denoise_last=False,
        save=False,
        per_sample_steps=per_sample_steps,
        max_steps=max_steps if adaptive else 0,
        num_integrals=shape[1],
    )
    tolerances = jnp.asarray([rtol, atol], x.dtype)
    schedule = (augmented.breakpoints, grid, num_steps, final_time)
    result, report = _solve_backwards(plan, dynamic, static, pack(state, shape[1]), schedule, tolerances)
    _checks.check_result(report, plan, rtol, atol, 0.0)

    noise, integrals = unpack(result.samples, event)
    sigma = path.sigma(jnp.zeros((), x.dtype))
    scale = dimension * (jnp.log(sigma) + jnp.log(2 * jnp.pi) / 2)
    density = (
        -jnp.sum((noise.reshape(shape[0], dimension) / sigma) ** 2, 1) / 2 - scale + jnp.mean(integrals, 1)
    )
    if of == "data":
        density += dimension * jnp.log(path.alpha(end))
    error = jnp.zeros_like(density)
    if estimated:
        error = jnp.std(integrals, 1, ddof=1) / jnp.sqrt(num_probes) if num_probes > 1 else error + jnp.nan
    return LogDensity(density, error, result.num_evaluations, noise)


def bits_per_dimension(velocity: Any, images: ArrayLike, key: jax.Array, **options: Any) -> BitsPerDimension:
    """Bits that a code made of the model needs for each of the pictures' numbers, as an upper bound.

    A pixel y of 0..255 lies at y/127.5 − 1 in data space. It is spread uniformly over its bin, y + u with u in
    [−½, ½), whose density in data space is then 1/127.5 of that in pixel steps:

        bits = log2 127.5 − log p((y + u)/127.5 − 1)/(d log 2).

    The expectation over u is at least the negative log2 probability of the picture under the model integrated over the
    bins, by Jensen's inequality.

    Args:
        velocity: a velocity function on pictures in [−1, 1]; see `log_density`.
        images: [b, *event] uint8.
        key: of u and of the probes.
        options: of `log_density`, but for key and of.

    Returns:
        `BitsPerDimension`.

    Raises:
        TypeError: images that are not uint8.
        Others as for `log_density`.

    References: Theis, van den Oord, Bethge, arXiv 1511.01844, §3.1; Uria, Murray, Larochelle, arXiv 1306.0186.
    """
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8:
        raise TypeError(
            f"bits per dimension count the pixels' 256 values, so images must be uint8, got {images.dtype}; for other "
            "data there is log_density"
        )
    if "of" in options:
        raise TypeError("bits per dimension are of data: leave of out")
    pixel_key, probe_key = jax.random.split(key)
    pixels = images + jax.random.uniform(pixel_key, images.shape, jnp.float32, -0.5, 0.5)
    out = log_density(velocity, pixels / _HALF_RANGE - 1, key=probe_key, **options)
    nats = images[0].size * np.log(2)
    return BitsPerDimension(
        np.log2(_HALF_RANGE) - out.log_density / nats, out.standard_error / nats, out.num_evaluations
    )


def _solve_backwards(plan, dynamic, static, packed, schedule, tolerances) -> tuple[Result, Report]:
    """`sample`'s own solvers, from the end of their schedule to its start."""
    breakpoints, grid, num_steps, final_time = schedule

    def backwards(times):
        return jnp.asarray(times, packed.dtype)[::-1]

    if plan.solver in _checks.ADAPTIVE:
        edges, pieces = _schedule.adaptive_edges(breakpoints, 0.0, final_time)
        plan = dataclasses.replace(plan, pieces=pieces[::-1])
        last = jnp.zeros((), jnp.int32)
        return run_adaptive(
            dynamic, packed, backwards(edges), last, None, *tolerances, static=static, plan=plan
        )
    times = _schedule.fixed_times(grid, num_steps, 0.0, final_time)
    steps = _schedule.fixed_schedule(times, breakpoints, None, save_all=False)
    piece = steps.piece[::-1]
    return run_fixed(
        dynamic, packed, backwards(steps.times), piece, piece[-1], steps.slots, static=static, plan=plan
    )
