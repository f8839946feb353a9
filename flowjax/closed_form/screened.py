"""Certified screening: the rows that may carry weight, found at a fraction of the cost of looking at all of them.

`bounds` bounds every logit from above by one product with few columns. Per query:

    1. the best-looking row is guessed with the fewest columns, or named by the caller (a hint)
    2. its exact logit L gives the threshold L − log(n/eps): rows bounded below it weigh less than eps together
    3. a sample of the rows tells what each pass would leave, and so what screening costs; queries that all of them
       together are cheaper without share a dense pass, and the others take passes in chunks that are alike
    4. what the pass leaves is pooled over the queries, bounded again with more columns, and at last evaluated by
       direct difference in float64, in loops whose length is the number of survivors

Rounding is accounted for in the threshold (`slack_of`), dropped rows in the bound of the result; a query that dropped
rows may move by more than the tolerance is evaluated densely. So a bad basis, guess or sample costs time and nothing
else. Derivatives are those of the dense pass.

What was learned on a CPU (n = 50 000, d = 3072, b = 128): storing the bounds costs as much as computing them, so only
bits leave a block; with 32 coordinates and the noise's share taken out of the norms, the guess is right for 98 of 100
queries at t = .4; the rows that the directions were fitted to have smaller norms beyond them than the others, so the
sample must not be made of these; a dense pass costs 7 to 46 queries' worth beside its queries, so those left to it
share one, and what costs least in all decides which these are (each by itself, and in chunks of 48, 16, 4, they made
screening slower than dense near t = .3); a pass of 128 queries costs a fifth to a third less each than one of 64, and
one query that needs 512 columns must not make the others of its chunk read them, so a chunk takes the size and the pass
that it is cheapest with in sum (t = .6: 1.4 times as fast, t = .8: 1.5). Speeds: benchmarks/results/screened.json.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flowjax.typing import Flat, Indices, PerQuery

from . import moments as algebra
from .bounds import pair_rounding
from .certificate import RELEVANT, exact_bound, num_seen, query_norm
from .costs import dense_sizes, room_for
from .evaluate import (
    Course,
    Evaluation,
    Schedule,
    along_path,
    evaluate,
    finalise,
    in_tiles,
    log_prior,
    rounding_error,
)
from .parts import Plan
from .passes import Query
from .rows import Rows
from .screen import Screen
from .search import search, tile_size


def _screen_tile(plan: Plan, screen: Screen, rows: Rows, x, t, labels, hint) -> tuple[Evaluation, Course]:
    """Evaluation of a tile, and what came of it. Inside the float64 island."""
    path, b = plan.path, x.shape[0]
    x, t = x.astype(jnp.float64), t.astype(jnp.float64)
    schedule = Schedule(path.alpha(t), path.sigma(t), path.alpha_dot(t), path.sigma_dot(t))
    centre = 0.0 if rows.centre is None else rows.centre.astype(jnp.float64)
    query = Query(x - schedule.alpha[:, None] * centre, schedule.alpha, schedule.sigma, labels)
    copies = 2 if plan.horizontal_flip else 1

    def flip(points):
        return points.reshape(-1, *plan.event_shape)[:, :, ::-1].reshape(points.shape)

    # A query and its mirror image stand side by side.
    whole, sub, sub_schedule = x, query, schedule
    if copies == 2:
        sub, sub_schedule = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, 0), (query, schedule))
        sub = dataclasses.replace(sub, x=jnp.stack([query.x, flip(query.x)], 1).reshape(2 * b, -1))
        whole = jnp.stack([x, flip(x)], 1).reshape(2 * b, -1)
    if hint is not None:
        hint = jnp.repeat(hint % jnp.int32(rows.count), copies)
    found, reference, cuts = search(plan, screen, rows, sub, whole, sub_schedule, hint)

    total, index, complete = found.moments, found.best, found.complete
    reference, cut = reference[::copies], cuts[::copies]
    if copies == 2:
        plain, mirrored = (jax.tree.map(lambda leaf, s=s: leaf[s::2], found) for s in (0, 1))
        unflipped = dataclasses.replace(mirrored.moments, weighted_sum=flip(mirrored.moments.weighted_sum))
        total = algebra.merge(plain.moments, unflipped)
        first = plain.moments.max >= mirrored.moments.max
        index = jnp.where(first, plain.best, mirrored.best + jnp.int32(rows.count))
        complete = plain.complete & mirrored.complete
        cut = jnp.maximum(cut, cuts[1::2])
    evaluated = jnp.sum(found.evaluated.reshape(b, copies), 1, dtype=jnp.int32)
    log_normaliser = total.max + jnp.log(total.normaliser)
    gap = jnp.maximum(cut, reference - RELEVANT) - log_normaliser + pair_rounding(rows, query)
    dropped = 2 * num_seen(plan, rows) * jnp.exp(jnp.minimum(gap, 700.0))
    bound, _, lost = exact_bound(rows, query, total, dropped, evaluated.astype(jnp.float64))
    if not plan.settings.scalars:
        total = dataclasses.replace(total, scalars=None)
    result = finalise(rows, x, schedule, total, log_prior(rows, plan, labels), total.max)
    speed = along_path(schedule)
    bound = 1.001 * speed * bound + rounding_error(rows, x, query, schedule, result.velocity)
    # Rounding of float64 is no reason to ask a float32 pass.
    holds = complete & (speed * lost <= plan.tolerance * query_norm(result.velocity))
    if plan.settings.scalars:
        result = result._replace(argmax=index, error_bound=bound)
    columns = jnp.asarray([*(k for _, k in screen.passes), 0], jnp.int32)[found.level]
    survivors = jnp.sum(found.pooled.reshape(b, copies), 1, dtype=jnp.int32)
    return result, Course(holds, jnp.max(columns.reshape(b, copies), 1), survivors, evaluated)


def _with_fallback(plan: Plan, rows: Rows, x, t, labels, result: Evaluation, holds) -> Evaluation:
    """Dense evaluation of the queries that screening does not hold for, in one pass; free when there are none."""
    b = x.shape[0]
    count = jnp.sum(~holds, dtype=jnp.int32)
    order = jnp.argsort(holds, stable=True).astype(jnp.int32)
    sizes = dense_sizes(b)

    def of_first(size):
        index = order[:size]
        new = evaluate(plan, rows, x[index], t[index], None if labels is None else labels[index])
        place = jnp.where(holds[index], jnp.int32(b), index)
        return jax.tree.map(lambda old, part: old.at[place].set(part, mode="drop"), result, new)

    return lax.switch(
        room_for(b, count), [lambda: result, *(functools.partial(of_first, size) for size in sizes)]
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def evaluate_screened(
    plan: Plan, screen: Screen, rows: Rows, x: Flat, t: PerQuery, labels: Indices | None, hint: Indices | None
) -> Evaluation:
    """As `evaluate`, by screening: x [b, d], t [b] inside [0, 1), labels and hint [b] or None.

    A hint is the number of a point thought to be near, as `argmax` counts them; a bad one costs time. Evaluation in
    x's dtype, with its course if the plan asks for scalars.
    """
    if x.shape[0] == 0:
        return evaluate(plan, rows, x, t, labels)

    def tile(x, t, labels, hint):
        with jax.enable_x64(True):
            result, course = _screen_tile(plan, screen, rows, x, t, labels, hint)
            result = jax.tree.map(
                lambda leaf: leaf.astype(x.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
                result,
            )
            result = _with_fallback(plan, rows, x, t, labels, result, course.holds)
            return result._replace(course=course) if plan.settings.scalars else result

    # Under vmap the queries of all instances are one batch: loops and branches of a batch of batches would run to the
    # end of the longest and through all branches.
    @jax.custom_batching.custom_vmap
    def values(screen, rows, *queries):
        return in_tiles(plan, tile_size(plan), tile, *queries)

    @values.def_vmap
    def rule(axis_size, in_batched, screen, rows, *queries):
        data_batched, queries_batched = in_batched[:2], in_batched[2:]
        if any(jax.tree.leaves(data_batched)):
            raise NotImplementedError(
                "jax.vmap over the data of a field that screens is not supported; use method='dense'"
            )

        def flat(leaf, batched):
            whole = leaf if batched else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))
            return whole.reshape(-1, *whole.shape[2:])

        result = evaluate_screened(
            plan,
            screen,
            rows,
            *(jax.tree.map(flat, *pair) for pair in zip(queries, queries_batched, strict=True)),
        )
        result = jax.tree.map(lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:]), result)
        return result, jax.tree.map(lambda _: True, result)

    return values(screen, rows, x, t, labels, hint)


@evaluate_screened.defjvp
def _evaluate_screened_jvp(plan: Plan, primals, tangents):
    """Values of screening, derivatives of the dense pass; the data is a constant."""
    screen, rows, x, t, labels, hint = primals
    _, _, x_dot, t_dot, *_ = tangents
    result = evaluate_screened(plan, screen, rows, x, t, labels, hint)
    _, result_dot = jax.jvp(lambda x, t: evaluate(plan, rows, x, t, labels), (x, t), (x_dot, t_dot))
    none = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), result.course)
    return result, result_dot._replace(course=none)
