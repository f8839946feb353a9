"""From a query to the rows that may matter to it: a guess, a threshold, a pass, and what it leaves.

Over a mesh every device looks among its own rows. The best guess of all of them gives the threshold, and the costs of
all of them together choose the pass, so that they go the same way; what they find is merged once.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flowjax.typing import Array, Bool, Flat, Float, Indices, PerQuery

from . import moments as algebra
from .basis import sample_stride
from .bounds import Seen, find_survivors, guess_best, mask_labels, project_far, slack_of, weights_of
from .certificate import num_seen, query_norm
from .costs import Costs, dense_sizes, room_for
from .dense import product
from .evaluate import Schedule, along_path, velocity_of
from .parts import Plan, query_axes, row_specs
from .passes import Query
from .rows import Rows
from .screen import Coefficients, Screen, project, screen_specs
from .survivors import POOL, Found, collect, nothing_found, pair_logits

TILE = 128
"""Queries of one device that are searched for together."""

_CHUNKS = (64, 128)
"""Numbers of queries that may share a pass."""

_SAMPLE = 1024
"""Rows that tell what a pass would leave."""


def _take(tree, index: Indices):
    return jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, tree)


def _reading(costs: Costs, screen: Screen, rows: Rows) -> np.ndarray:
    """What each of `screen.passes` costs a query before anything is found, [passes]."""
    spans = [table.span(k) for table, k in screen.passes]
    return np.array([rows.count * (costs.row + costs.entry * (span.stop - span.start)) for span in spans])


def _chunk_sizes(b: int) -> list[int]:
    return sorted({min(size, b) for size in _CHUNKS})


class Expected(NamedTuple):
    """What a sample of the rows says that each pass would leave of a query, [b, passes]: rows, and what they would
    cost; infinity where they are too many, or the pass was not considered."""

    pooled: Float[Array, "b passes"]
    cost: Float[Array, "b passes"]


def _choose_pass(
    costs: Costs,
    screen: Screen,
    rows: Rows,
    seen: Seen,
    threshold: Float[Array, "b"],
    sane: Bool[Array, "b"],
    copies: int,
    axis: str | None,
) -> tuple[Indices, Expected, Coefficients]:
    """Which queries to screen, and which pass each of them would be cheapest with.

    Args:
        threshold, sane: [b], and whether it can be relied on.
        copies: subqueries of a query, which go the same way.
        axis: a mesh axis; every device returns the same.

    Returns:
        The number of each query's pass among `screen.passes`, their count for dense; what to expect; and the queries
        projected on all directions, or with zeros there if no far pass was worth considering.
    """
    n, d, b = rows.count, rows.dimension, threshold.shape[0]
    stride = -(-n // _SAMPLE)
    # Not only rows that the directions were fitted to.
    fitted = sample_stride(n * (1 if axis is None else lax.axis_size(axis)), d)
    while math.gcd(stride, fitted) > 1:
        stride += 1
    labels = None if screen.labels is None else screen.labels[:n:stride]

    def survivors(table, seen, k):
        bounds = product(weights_of(table, seen, k), table.columns[:n:stride, table.span(k)], (1, 1))
        bounds = mask_labels(seen.query, bounds + screen.bias[:n:stride], labels)
        return jnp.sum(bounds >= threshold[:, None], 1).astype(jnp.float64) * stride

    def passes(table, seen):
        again = survivors(table, seen, table.coordinates)  # what is evaluated exactly in the end
        each = []
        for k in table.levels:
            pooled = survivors(table, seen, k)
            cost = costs.evaluated * d * again
            cost += (costs.bounded * table.columns.shape[1] + costs.survivor) * pooled
            each.append(Expected(pooled, jnp.where(pooled > POOL / _CHUNKS[0], jnp.inf, cost)))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *each)

    def of_all(expected):
        """The most: devices wait for each other."""
        if axis is None:
            return expected
        return jax.tree.map(
            lambda leaf: lax.pmax(leaf.astype(jnp.float32), axis).astype(jnp.float64), expected
        )

    reading, num_near = _reading(costs, screen, rows), len(screen.near.levels)
    near, dense = of_all(passes(screen.near, seen)), 2.0 * n * d

    def consider_far(_):
        everywhere = project_far(screen, seen)
        return passes(screen.far, everywhere), everywhere.coefficients

    def leave_out(_):
        head = jnp.zeros((b, screen.far.directions), jnp.float64)
        none = jnp.full((b, len(screen.far.levels)), jnp.inf)
        return Expected(none, none), dataclasses.replace(seen.coefficients, head=head)

    gain = jnp.minimum(jnp.min(near.cost + reading[:num_near], 1), dense) - reading[num_near]
    gain = jnp.sum(jnp.maximum(gain, 0)) - b * costs.projected * d * screen.far.directions
    far, coefficients = lax.cond(gain > 0, consider_far, leave_out, None)
    expected = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), near, of_all(far))
    level = lax.argmin((expected.cost + reading).astype(jnp.float32), 1, jnp.int32)

    def of_queries(pass_costs):
        return jnp.sum(
            jnp.where(sane, jnp.min(expected.cost + pass_costs, 1), jnp.inf).reshape(-1, copies), 1
        )

    screened = cheapest_screened(
        of_queries(reading * (1 + costs.setup / _chunk_sizes(b)[-1])),
        of_queries(reading) < copies * dense / 4,
        copies * dense,
        costs.setup / copies,
    )
    return jnp.where(jnp.repeat(screened, copies), level, jnp.int32(len(reading))), expected, coefficients


def cheapest_screened(
    each: PerQuery, certain: Bool[Array, "b"], dense: float, setup: float
) -> Bool[Array, "b"]:
    """Which of b queries to screen so that all of them together cost least, [b].

    The others share a pass over all rows. Where it has room left, filling it up costs nothing, and what it gives is
    certified less tightly: so queries that are far cheaper to screen are not for it.

    Args:
        each: [b], what screening a query costs.
        certain: [b], which of them to screen in any case.
        dense: what the pass over all rows costs, times the queries that it has room for and `setup`.
        setup: what it costs beside them.
    """
    b = each.shape[0]
    each = jnp.where(certain, 0.0, each)
    order = jnp.argsort(each).astype(jnp.int32)
    count = jnp.arange(b + 1, dtype=jnp.int32)
    room = jnp.array((0, *dense_sizes(b)), jnp.int32)[room_for(b, b - count)]
    total = jnp.pad(jnp.cumsum(each[order]), (1, 0)) + dense * jnp.where(room > 0, room + setup, 0.0)
    total = jnp.where(count >= jnp.sum(certain, dtype=jnp.int32), total, jnp.inf)
    best = lax.argmin(total.astype(jnp.float32), 0, jnp.int32)
    return jnp.zeros(b, bool).at[order].set(count[:b] < best)


class _Chosen(NamedTuple):
    """Per subquery: what was decided about it before any pass."""

    seen: Seen
    everywhere: Coefficients
    reference: PerQuery
    cut: PerQuery
    threshold: Float[Array, "b"]
    level: Indices
    expected: Expected


def _choose(
    plan: Plan, screen: Screen, rows: Rows, seen: Seen, x: Flat, schedule: Schedule, hint, axis: str | None
) -> _Chosen:
    """Steps 1 to 3 of the text of `screened`."""
    guess = guess_best(screen, rows, seen) if hint is None else hint
    b = guess.shape[0]
    logit, points = pair_logits(screen, rows, seen.query, jnp.arange(b, dtype=jnp.int32), guess)
    velocity = query_norm(velocity_of(rows, x, schedule, points))
    if plan.horizontal_flip:
        pairs = logit.reshape(-1, 2)
        better = lax.argmax(pairs.astype(jnp.float32), 1, jnp.int32)[:, None]
        velocity = jnp.repeat(jnp.take_along_axis(velocity.reshape(-1, 2), better, 1)[:, 0], 2)
        logit = jnp.repeat(jnp.max(pairs, 1), 2)
    shards = 1
    if axis is not None:
        shards, mine = lax.axis_size(axis), logit
        logit = algebra.max_across(mine, axis)
        velocity = algebra.max_across(jnp.where(mine == logit, velocity, 0.0), axis)
    # The rows dropped may move the velocity by an eighth of the tolerance.
    speed = along_path(schedule)
    eps = plan.tolerance * velocity / (16 * speed * rows.max_norm.astype(jnp.float64) + 1e-30)
    target = logit + jnp.log(jnp.clip(eps, 1e-14, 1e-2)) - jnp.log(1.0 * shards * num_seen(plan, rows))
    constant = jnp.sum(seen.query.x**2, 1) / (2 * seen.query.sigma**2)
    threshold = target + constant - seen.slack
    threshold = (threshold - 2.0**-22 * jnp.abs(threshold)).astype(jnp.float32)
    cut = threshold.astype(jnp.float64) + seen.slack - constant
    # Values that might leave float32 are no bounds.
    y = rows.max_norm.astype(jnp.float64)
    size = seen.scale * y * (seen.coefficients.norm + seen.query.alpha * y)
    sane = (size < 1e36) & (jnp.abs(logit) < 1e36)
    copies = 2 if plan.horizontal_flip else 1
    level, expected, everywhere = _choose_pass(plan.costs, screen, rows, seen, threshold, sane, copies, axis)
    return _Chosen(seen, everywhere, logit, cut, threshold, level, expected)


class _Chunk(NamedTuple):
    """Queries that are to share a pass, [size]; which of them want it, where the others only fill it up; the pass that
    is the cheapest for all of them together, and what it costs."""

    queries: Indices
    wanted: Bool[Array, "size"]
    level: Indices
    cost: Float[Array, ""]


def _find(costs: Costs, screen: Screen, rows: Rows, chosen: _Chosen, *, scalars: bool) -> Found:
    """Step 4: passes for the queries that are not for dense, in the order of those that each is cheapest with."""
    b, passes, sizes = chosen.level.shape[0], screen.passes, _chunk_sizes(chosen.level.shape[0])
    reading, small, large = _reading(costs, screen, rows), sizes[0], sizes[-1]
    order = jnp.pad(
        jnp.argsort(chosen.level, stable=True).astype(jnp.int32), (0, 2 * large), constant_values=b
    )
    count = jnp.sum(chosen.level < len(passes), dtype=jnp.int32)

    def chunk(size, start):
        index = lax.dynamic_slice_in_dim(order, start, size)
        wanted = start + jnp.arange(size, dtype=jnp.int32) < count
        now = jax.tree.map(lambda leaf: leaf.at[index].get(mode="clip"), chosen.expected)
        left = jax.tree.map(lambda leaf: jnp.sum(jnp.where(wanted[:, None], leaf, 0), 0), now)
        cost = ((size + costs.setup) * reading + left.cost).astype(jnp.float32)
        cost = jnp.where(left.pooled > POOL, jnp.inf, cost)  # never of a small chunk: no query may leave more
        level = lax.argmin(cost, 0, jnp.int32)
        return _Chunk(index, wanted, level, jnp.where(wanted[0], cost[level], 0))

    def one_pass(chunk, found):
        now = _take(chosen, jnp.minimum(chunk.queries, jnp.int32(b - 1)))
        everywhere = now.seen._replace(coefficients=now.everywhere)

        def run(number):
            seen = now.seen if number < len(screen.near.levels) else everywhere
            return find_survivors(screen, seen, number, now.threshold)

        bits = lax.switch(chunk.level, [functools.partial(run, number) for number in range(len(passes))])
        new = collect(
            screen,
            rows,
            now.seen,
            everywhere,
            chunk.level,
            bits,
            now.threshold,
            chunk.wanted,
            now.reference,
            scalars=scalars,
        )
        target = jnp.where(chunk.wanted, chunk.queries, jnp.int32(b))
        return jax.tree.map(lambda old, part: old.at[target].set(part, mode="drop"), found, new)

    def body(carry):
        done, found = carry
        first = chunk(small, done)
        if small == large:
            return done + jnp.int32(small), one_pass(first, found)
        whole, second = chunk(large, done), chunk(small, done + jnp.int32(small))
        return lax.cond(
            whole.cost < first.cost + second.cost,
            lambda found: (done + jnp.int32(large), one_pass(whole, found)),
            lambda found: (done + jnp.int32(small), one_pass(first, found)),
            found,
        )

    carry = jnp.int32(0), nothing_found(screen, rows, b, scalars=scalars)
    return lax.while_loop(lambda carry: carry[0] < count, body, carry)[1]


class Searched(NamedTuple):
    """What a search came to: what was found of each query, a logit that the best one is not below, and what every row
    not found is below."""

    found: Found
    reference: PerQuery
    cut: PerQuery


def search(
    plan: Plan, screen: Screen, rows: Rows, query: Query, x: Flat, schedule: Schedule, hint: Indices | None
) -> Searched:
    """Steps 1 to 4 of the text of `screened`, of queries [b, d] (x itself, `query` relative to the centre).

    A query and its mirror image stand side by side if the plan has flips. Inside the float64 island.
    """
    axis = plan.settings.axis_name

    def local(screen, rows, query, x, schedule, hint):
        coefficients = project(screen, query.x, screen.near.directions)
        slack = slack_of(screen, rows, query, coefficients)
        if axis is not None:  # what one drops must be below what another certifies, to the last bit
            slack = algebra.max_across(slack, axis)
        seen = Seen(query, coefficients, query.alpha / query.sigma**2, slack)
        if hint is not None and axis is not None:  # of another device's row: any row of this one's will do
            hint = hint - lax.axis_index(axis).astype(jnp.int32) * jnp.int32(rows.count)
            hint = jnp.clip(hint, 0, rows.count - 1)
        chosen = _choose(plan, screen, rows, seen, x, schedule, hint, axis)
        found = _find(plan.costs, screen, rows, chosen, scalars=plan.settings.scalars)
        if axis is not None:
            found = _merge_across(found, rows.count, axis)
        return Searched(found, chosen.reference, chosen.cut)

    arguments = screen, rows, query, x, schedule, hint
    if plan.mesh is None or axis is None:
        return local(*arguments)
    per_query = jax.P(query_axes(plan))
    mapped = jax.shard_map(
        local,
        mesh=plan.mesh,
        in_specs=(screen_specs(screen, axis), row_specs(rows, axis), *(per_query,) * 4),
        out_specs=per_query,
        axis_names=set(plan.mesh.axis_names),
        check_vma=False,  # loops begin with constants, which are the same everywhere
    )
    return mapped(*arguments)


def tile_size(plan: Plan) -> int:
    """Queries that are searched for together: many of streamed rows, whose dense pass reads everything."""
    return TILE if plan.stream_block is None else plan.tile


def _merge_across(found: Found, count: int, axis: str) -> Found:
    """The devices' findings, each among `count` rows of its own; ties for the best row go to the lowest index."""
    best = algebra.max_across(found.moments.max, axis)
    mine = (found.moments.max == best) & (best > -jnp.inf)
    start = lax.axis_index(axis).astype(jnp.int32) * jnp.int32(count)
    index = jnp.where(mine, found.best + start, jnp.iinfo(jnp.int32).max)
    missing, pooled, evaluated = lax.psum(
        ((~found.complete).astype(jnp.int32), found.pooled, found.evaluated), axis
    )
    moments = algebra.merge_across(found.moments, axis)
    return Found(moments, lax.pmin(index, axis), missing == 0, pooled, evaluated, found.level)
