"""Survivors of a pass: found among the bounds, pooled over the queries, bounded again, evaluated exactly.

Loops run over the survivors themselves, a fixed number at a time, so that their cost is that of what is left.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flowjax.typing import Array, Bool, Flat, Float, Indices, Int, PerQuery, typed

from . import moments as algebra
from .bounds import Seen, Survivors, project_far, weights_of
from .certificate import RELEVANT
from .moments import Moments, Scalars
from .passes import Query
from .refine import gather_points
from .rows import Rows
from .screen import LANES, Screen, Table
from .streamed import is_streamed

POOL = 1 << 18
_SLOTS = 256
_EXACT = 32
_READ = 256
"""Rows evaluated exactly at once, and of those on the host."""

_MANY = 16
"""Left of each query on average, they pay for projecting the queries on all directions (CPU)."""


class Found(NamedTuple):
    """Survivors of each query of a chunk: their moments, the best row, whether all of them fitted, how many the pass
    left, how many were evaluated exactly, and the number of the pass."""

    moments: Moments
    best: Indices
    complete: Bool[Array, "b"]
    pooled: Indices
    evaluated: Indices
    level: Indices


def nothing_found(screen: Screen, rows: Rows, b: int, *, scalars: bool) -> Found:
    """What is known before anything was looked for: nothing is complete."""
    moments = algebra.empty(b, rows.dimension, jnp.float64, scalars=scalars)
    none = jnp.zeros(b, jnp.int32)
    return Found(moments, none, jnp.zeros(b, bool), none, none, none + len(screen.passes))


@typed
def pair_logits(
    screen: Screen, rows: Rows, query: Query, which: Indices, index: Indices
) -> tuple[PerQuery, Flat]:
    """Exact logits of rows `index` seen from queries `which`, and the rows; float64."""
    points = gather_points(rows, index)
    square = jnp.sum((query.x[which] - query.alpha[which][:, None] * points) ** 2, 1)
    value = -square / (2 * query.sigma[which] ** 2) + screen.bias[index].astype(jnp.float64)
    if query.labels is not None and screen.labels is not None:
        value = jnp.where(query.labels[which] == screen.labels[index], value, -jnp.inf)
    return value, points


def _locate(bits: Survivors, accumulated: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Query and row of the survivors number `position`; accumulated: [b blocks] survivors, blocks last."""
    blocks, _, num_groups = bits.shape
    cell = jnp.searchsorted(accumulated, position, side="right").astype(jnp.int32)
    cell = jnp.minimum(cell, jnp.int32(accumulated.shape[0] - 1))
    before = jnp.where(cell > 0, accumulated[cell - 1], 0)
    which, block = cell // jnp.int32(blocks), cell % jnp.int32(blocks)

    def nth(counts, n):
        sums = jnp.cumsum(counts, 1, dtype=jnp.int32)
        place = jnp.sum(sums <= n[:, None], 1, dtype=jnp.int32)
        place = jnp.minimum(place, jnp.int32(counts.shape[1] - 1))
        held = jnp.take_along_axis(sums - counts, place[:, None], 1)[:, 0]
        return place, n - held

    words = bits[block, which]
    group, left = nth(lax.population_count(words).astype(jnp.int32), position - before)
    word = jnp.take_along_axis(words, group[:, None], 1)
    lane, _ = nth(((word >> jnp.arange(LANES, dtype=jnp.uint32)) & jnp.uint32(1)).astype(jnp.int32), left)
    return which, block * jnp.int32(num_groups * LANES) + group + lane * jnp.int32(num_groups)


def _append(pool, length, keep, values):
    """Write the kept values after the first `length` entries of the pool's arrays."""
    place = length + jnp.cumsum(keep, dtype=jnp.int32) - 1
    place = jnp.where(keep, place, jnp.int32(pool[0].shape[0]))
    pool = tuple(p.at[place].set(v, mode="drop") for p, v in zip(pool, values, strict=True))
    return pool, length + jnp.sum(keep, dtype=jnp.int32)


def collect(
    screen: Screen,
    rows: Rows,
    seen: Seen,
    everywhere: Seen,
    level: Int[Array, ""],
    bits: Survivors,
    threshold: Float[Array, "b"],
    wanted: Bool[Array, "b"],
    reference: PerQuery,
    *,
    scalars: bool,
) -> Found:
    """Moments of every wanted query's rows with a bound at or above its threshold.

    Args:
        seen: projected on the near table's directions.
        everywhere: projected on all directions; only read where the pass was a far one.
        level: number of the pass.
        bits: what it left, bounded again with all coordinates of the pass's table, and with the far one's if much is
            left of that.
        threshold: [b].
        wanted: [b].
        reference: [b] float64, a logit the best one is not below.
        scalars: whether the scalar moments are wanted.
    """
    b = threshold.shape[0]
    far, everything = level >= len(screen.near.levels), level == len(screen.passes) - 1
    bounded = far  # with all coordinates of a table already
    if screen.near.levels[-1] == screen.near.coordinates:
        bounded = level >= len(screen.near.levels) - 1
    counts = jnp.sum(lax.population_count(bits).astype(jnp.int32), 2, dtype=jnp.int32)
    per_cell = jnp.where(wanted[:, None], counts.T, 0)
    pooled = jnp.sum(per_cell, 1, dtype=jnp.int32)
    complete = wanted & (jnp.cumsum(pooled, dtype=jnp.int64) <= POOL)
    per_cell = jnp.where(complete[:, None], per_cell, 0)
    accumulated = jnp.cumsum(per_cell.reshape(-1), dtype=jnp.int32)
    zero, none = jnp.int32(0), jnp.zeros(POOL + _SLOTS, jnp.int32)
    size = _READ if is_streamed(rows) else _EXACT

    def filtered(members, total, keep):
        """Pool of those of `total` members, (query, row) by position, that are to be kept."""

        def body(state):
            done, length, pool = state
            position = done + jnp.arange(_SLOTS, dtype=jnp.int32)
            which, row = members(position)
            row = jnp.minimum(row, jnp.int32(rows.count - 1))
            kept = (position < total) & keep(which, row)
            pool, length = _append(pool, length, kept, (which, row))
            return done + jnp.int32(_SLOTS), length, pool

        _, length, pool = lax.while_loop(lambda state: state[0] < total, body, (zero, zero, (none, none)))
        return length, pool

    def bound_again(table: Table, seen: Seen, length, pool):
        weights, columns = weights_of(table, seen, table.coordinates), table.span(table.coordinates)

        def keep(which, row):
            better = jnp.sum(table.columns[row, columns] * weights[which], 1) + screen.bias[row]
            return better >= threshold[which]

        return filtered(lambda position: (pool[0][position], pool[1][position]), length, keep)

    located = filtered(
        lambda position: _locate(bits, accumulated, position), accumulated[-1], lambda which, row: True
    )
    pooled_near = lax.cond(
        bounded | (located[0] <= b),
        lambda _: located,
        lambda _: bound_again(screen.near, seen, *located),
        None,
    )

    def project_and_bound(_):
        whole = lax.cond(far, lambda _: everywhere, lambda _: project_far(screen, seen), None)
        return bound_again(screen.far, whole, *pooled_near)

    length, pool = lax.cond(
        ~everything & (pooled_near[0] > jnp.where(far, b, _MANY * b)),
        project_and_bound,
        lambda _: pooled_near,
        None,
    )
    whose, which_row = pool

    def part(arrays, start):
        return (lax.dynamic_slice_in_dim(array, start, size) for array in arrays)

    def score(state):
        done, kept, pool, maximum, evaluated = state
        whose_now, row_now = part((whose, which_row), done)
        logits, _ = pair_logits(screen, rows, seen.query, whose_now, row_now)
        used = done + jnp.arange(size, dtype=jnp.int32) < length
        keep = used & (logits >= reference[whose_now] - RELEVANT)
        maximum = maximum.at[whose_now].max(jnp.where(keep, logits, -jnp.inf))
        evaluated = evaluated.at[whose_now].add(used.astype(jnp.int32))
        pool, kept = _append(pool, kept, keep, (whose_now, row_now, logits))
        return done + jnp.int32(size), kept, pool, maximum, evaluated

    total = algebra.empty(b, rows.dimension, jnp.float64, scalars=scalars)
    pool = none, none, jnp.full(none.shape, -jnp.inf, jnp.float64)
    start = zero, zero, pool, total.max, jnp.zeros(b, jnp.int32)
    _, kept, pool, maximum, evaluated = lax.while_loop(lambda state: state[0] < length, score, start)
    reached, last = algebra.finite_max(maximum), jnp.iinfo(jnp.int32).max

    def add(state):
        done, total, best = state
        whose_now, row_now, logits = part(pool, done)  # −inf after the last one
        shifted = logits - reached[whose_now]
        weight = jnp.exp(shifted)
        points = gather_points(rows, row_now)
        values = Moments(
            jnp.zeros(size, jnp.float64),
            weight,
            weight[:, None] * points,
            Scalars(
                weight * jnp.where(weight > 0, shifted, 0), weight * jnp.sum(points**2, 1), weight * weight
            )
            if scalars
            else None,
        )
        sums = jax.tree.map(lambda old, value: old.at[whose_now].add(value), total, values)
        best = best.at[whose_now].min(jnp.where((shifted == 0) & (weight > 0), row_now, last))
        return done + jnp.int32(size), sums, best

    # The maximum is no sum: it is put in its place at the end.
    zeros = dataclasses.replace(total, max=jnp.zeros(b, jnp.float64))
    _, total, best = lax.while_loop(
        lambda state: state[0] < kept, add, (zero, zeros, jnp.full(b, last, jnp.int32))
    )
    return Found(
        dataclasses.replace(total, max=maximum), best, complete, pooled, evaluated, jnp.full(b, level)
    )
