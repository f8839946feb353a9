"""Adaptive integration by diffrax. Imported only when an adaptive solver runs: diffrax takes half a second."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp

SOLVERS = {"dopri5": diffrax.Dopri5, "tsit5": diffrax.Tsit5}

FIRST_STEP = 0.01

OK, TOO_MANY_STEPS, STEP_TOO_SMALL = 0, 1, 2


class Solution(NamedTuple):
    """State, trajectory (None if none was asked for), evaluations made, how it ended (OK, ...) and at what time."""

    x: jax.Array
    trajectory: jax.Array | None
    num_evaluations: jax.Array
    status: jax.Array
    reached: jax.Array


class _State(NamedTuple):
    inner: Any
    num_evaluations: jax.Array
    at_start: jax.Array


class _Controller(diffrax.AbstractStepSizeController):
    """The PID controller, with three things added.

    It counts the evaluations of the steps it judges, rejected ones included: a first-same-as-last method saves one
    in every step but the first, and a first step that is rejected is made again in full, which diffrax's own
    statistics do not tell. It chooses the first step itself, whatever diffrax's version would spend on guessing
    one. And where the error estimate is NaN, so that PID control would propose NaN, it shortens the step.
    """

    controller: diffrax.PIDController
    num_stages: int

    def wrap(self, direction):
        return _Controller(self.controller.wrap(direction), self.num_stages)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        first = jnp.asarray(FIRST_STEP, jnp.result_type(t0))
        stop, inner = self.controller.init(terms, t0, t1, y0, first, args, func, error_order)
        return stop, _State(inner, jnp.array(0, jnp.int32), jnp.array(True))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        state = controller_state
        keep, next_t0, next_t1, made_jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state.inner
        )
        assert self.controller.dtmin is not None
        lost, shorter = ~jnp.isfinite(next_t1), self.controller.factormin * (t1 - t0)
        next_t1 = jnp.where(lost, next_t0 + shorter, next_t1)
        result = diffrax.RESULTS.where(
            lost & (shorter < self.controller.dtmin), diffrax.RESULTS.dt_min_reached, result
        )
        count = state.num_evaluations + jnp.where(state.at_start, self.num_stages, self.num_stages - 1)
        return keep, next_t0, next_t1, made_jump, _State(inner, count, state.at_start & ~keep), result


def worst_sample_norm(x: jax.Array, num_integrals: int = 0) -> jax.Array:
    """Root mean square over each sample's own axes, then the largest over the batch.

    The last num_integrals columns of x [b, d + num_integrals] are a group of their own, beside the other d: among
    thousands of coordinates they would hardly count.
    """
    if num_integrals:
        return jnp.maximum(worst_sample_norm(x[:, :-num_integrals]), worst_sample_norm(x[:, -num_integrals:]))
    return jnp.max(jnp.sqrt(jnp.mean(x**2, axis=tuple(range(1, x.ndim)))))


def integrate(
    pieces: Sequence[Callable[[jax.Array, jax.Array, Any], jax.Array]],
    args: Any,
    solver: str,
    x: jax.Array,
    edges: jax.Array,
    save_times: jax.Array | None,
    rtol: jax.Array,
    atol: jax.Array,
    max_steps: int,
    num_integrals: int = 0,
) -> Solution:
    """Solve over [edges[i], edges[i + 1]] with pieces[i], one after the other; x [b, *event], b = 1 for one sample.

    The edges may decrease, which solves backwards in time; save_times need them increasing.

    The error is held below atol + rtol·|x| in root mean square over each sample; see `worst_sample_norm`.
    """
    method = SOLVERS[solver]()
    assert method.tableau.fsal
    controller = _Controller(
        diffrax.PIDController(
            rtol=rtol,  # type: ignore[arg-type]
            atol=atol,  # type: ignore[arg-type]
            norm=functools.partial(worst_sample_norm, num_integrals=num_integrals),
            # Times are of order one, so a shorter step would not move them: give up instead of spinning.
            dtmin=8 * float(jnp.finfo(edges.dtype).eps),
            force_dtmin=False,
        ),
        method.tableau.num_stages,
    )
    trajectory = None if save_times is None else jnp.full((save_times.shape[0], *x.shape), jnp.nan, x.dtype)
    count, status = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    reached = edges[0]
    for i, piece in enumerate(pieces):
        start, stop = edges[i], edges[i + 1]
        subs = {"end": diffrax.SubSaveAt(t1=True)}
        inside = None
        if save_times is not None:
            inside = (save_times > start) & (save_times <= stop)
            inside = inside | (save_times <= start) if i == 0 else inside
            subs["between"] = diffrax.SubSaveAt(ts=jnp.clip(save_times, start, stop))
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, x, args, piece=piece: piece(x, jnp.asarray(t), args)),
            method,
            start,
            stop,
            dt0=None,
            y0=x,
            args=args,
            saveat=diffrax.SaveAt(subs=subs, controller_state=True),
            stepsize_controller=controller,
            max_steps=max_steps,
            throw=False,
        )
        assert solution.ys is not None
        assert solution.ts is not None
        x = solution.ys["end"][0]
        count += solution.controller_state.num_evaluations  # type: ignore[union-attr]
        ended = jnp.where(
            solution.result == diffrax.RESULTS.successful,
            OK,
            jnp.where(solution.result == diffrax.RESULTS.max_steps_reached, TOO_MANY_STEPS, STEP_TOO_SMALL),
        )
        reached = jnp.where(status == OK, solution.ts["end"][0], reached)
        status = jnp.where(status == OK, ended, status).astype(jnp.int32)
        if trajectory is not None and inside is not None:
            mask = inside.reshape(-1, *(1,) * x.ndim)
            trajectory = jnp.where(mask, solution.ys["between"], trajectory)
    return Solution(x, trajectory, count, status, reached)
