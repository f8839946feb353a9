"""The compiled part of `sample` and `log_density`: one jitted function for fixed steps, one for adaptive ones."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowjax.paths import Path

from . import _runge_kutta
from ._callable import Static, join, split

Evaluate = Callable[[jax.Array, jax.Array, dict[str, Any]], jax.Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is compiled in, beside the static part of the velocity function.

    num_integrals: the last columns of a state [b, d + num_integrals], whose error is judged by itself.
    """

    solver: str
    path: Path
    denoise_last: bool
    save: bool
    num_saved: int = 0
    pieces: tuple[int, ...] = ()
    per_sample_steps: bool = False
    max_steps: int = 0
    num_integrals: int = 0


class Result(NamedTuple):
    """samples [b, *event], states [T, b, *event] or None, num_evaluations [] or [b]."""

    samples: jax.Array
    states: jax.Array | None
    num_evaluations: jax.Array


class Report(NamedTuple):
    """For the checks afterwards: is each sample finite [b], how each solve ended, at what time."""

    finite: jax.Array
    status: jax.Array
    reached: jax.Array


def is_finite(x: jax.Array) -> jax.Array:
    """Are all entries of each sample finite, [b]."""
    return jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))


@functools.partial(jax.jit, static_argnames=("static", "plan"))
def run_fixed(
    dynamic, x, times, piece, last_piece, slots, *, static: Static, plan: Plan
) -> tuple[Result, Report]:
    """x [b, *event] over times [N + 1]; piece [N], last_piece and slots as in `_schedule.FixedSchedule`."""
    velocity, condition = join(dynamic, static)
    tableau = _runge_kutta.TABLEAUS[plan.solver]
    pieces = [lambda x, t, f=f: f(x, t, condition) for f in _pieces(velocity)]
    x, states = _runge_kutta.integrate(pieces, tableau, x, times, piece, slots, plan.num_saved)
    x, extra = _finish(pieces, last_piece, x, times[-1], plan)
    count = jnp.asarray(piece.shape[0] * tableau.num_stages + extra, jnp.int32)
    report = Report(is_finite(x), jnp.zeros((), jnp.int32), times[-1])
    return Result(x, states if plan.save else None, count), report


@functools.partial(jax.jit, static_argnames=("static", "plan"))
def run_adaptive(
    dynamic, x, edges, last_piece, save_times, rtol, atol, *, static: Static, plan: Plan
) -> tuple[Result, Report]:
    """x [b, *event] over the intervals between edges; `Plan.pieces` says which piece is in force in each."""
    from . import _adaptive

    def evaluators(arrays):
        velocity, condition = join(arrays, static)
        return [lambda x, t, f=f: f(x, t, condition) for f in _pieces(velocity)]

    def solve(arrays, x) -> tuple[Result, Report]:
        """One solve with common steps for all of x."""
        solution = _adaptive.integrate(
            # diffrax differentiates with respect to its `args`, so the arrays pass through there.
            [lambda x, t, arrays, i=i: evaluators(arrays)[i](x, t) for i in plan.pieces],
            arrays,
            plan.solver,
            x,
            edges,
            save_times,
            rtol,
            atol,
            plan.max_steps,
            plan.num_integrals,
        )
        end, extra = _finish(evaluators(arrays), last_piece, solution.x, edges[-1], plan)
        end = jnp.where(solution.status == _adaptive.OK, end, jnp.nan)
        report = Report(is_finite(end), solution.status, solution.reached)
        return Result(end, solution.trajectory, solution.num_evaluations + extra), report

    dynamic = [jnp.asarray(leaf) for leaf in dynamic]
    if not plan.per_sample_steps:
        return solve(dynamic, x)

    # The velocity's own arrays are shared; those of the condition with the batch as first axis are split.
    velocity, condition = join(dynamic, static)
    num_shared = len(split(velocity)[0])
    own = [leaf.ndim > 0 and leaf.shape[0] == x.shape[0] for leaf in split(condition)[0]]
    axes = [None] * num_shared + [0 if flag else None for flag in own]

    def solve_one(arrays, x):
        arrays = [leaf if axis is None else leaf[None] for leaf, axis in zip(arrays, axes, strict=True)]
        result, report = solve(arrays, x[None])
        states = None if result.states is None else result.states[:, 0]
        return Result(result.samples[0], states, result.num_evaluations), report._replace(
            finite=report.finite[0]
        )

    result, report = jax.vmap(solve_one, in_axes=(axes, 0))(dynamic, x)
    states = None if result.states is None else jnp.moveaxis(result.states, 1, 0)
    return result._replace(states=states), report


def _pieces(velocity: Any) -> list[Evaluate]:
    """One checked evaluator for each interval between the breakpoints of the velocity function."""
    breakpoints = tuple(getattr(velocity, "breakpoints", ()))
    pieces = getattr(velocity, "pieces", None)
    if pieces is not None:
        if len(pieces) != len(breakpoints) + 1:
            raise ValueError(
                f"a velocity with {len(breakpoints)} breakpoints has {len(breakpoints) + 1} pieces, "
                f"this one lists {len(pieces)}"
            )
        return [evaluator(piece) for piece in pieces]
    evaluate = evaluator(velocity)

    def before(time: Any) -> Evaluate:
        # The last stage of a step onto a breakpoint must still see the velocity before the jump.
        def evaluate_before(x, t, condition):
            latest = jnp.nextafter(jnp.asarray(time, t.dtype), jnp.zeros((), t.dtype))
            return evaluate(x, jnp.minimum(t, latest), condition)

        return evaluate_before

    return [*(before(time) for time in breakpoints), evaluate]


def evaluator(function: Any) -> Evaluate:
    """The function with its result checked, in the dtype of the state."""

    def evaluate(x, t, condition):
        value = jnp.asarray(function(x, t, **condition))
        if value.shape != x.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"the velocity function returned {value.dtype} of shape {value.shape} for x of shape {x.shape}; "
                "it must return one real velocity of the same shape"
            )
        return value.astype(x.dtype)

    return evaluate


def _finish(
    pieces: Sequence[Callable[[jax.Array, jax.Array], jax.Array]],
    last_piece: jax.Array,
    x: jax.Array,
    t: jax.Array,
    plan: Plan,
) -> tuple[jax.Array, int]:
    """The jump to the data prediction, and the number of evaluations it takes."""
    if not plan.denoise_last:
        return x, 0
    branches = [lambda x, f=f: f(x, t) for f in pieces]
    velocity = branches[0](x) if len(branches) == 1 else jax.lax.switch(last_piece, branches, x)
    return plan.path.convert(velocity, x, t, source="velocity", target="data"), 1
