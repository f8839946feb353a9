"""Exact re-scoring of the few rows that may carry the weight: direct differences in float64.

Between near neighbours late in time the velocity hangs on the difference of two huge logits, which no float32
evaluation resolves. The candidates of a pass are few, so they are evaluated again in double precision from the
stored rows themselves. Everything here must be called inside `jax.enable_x64(True)`.

Over more than a few devices their candidates compete, and as many are left of all as one device would have. Most
queries have then one candidate on a device or none, and the pairs of a query and a candidate are re-scored packed, in
room for a few times a device's share, unless they lie so unevenly that they do not fit.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flowjax.typing import Flat, Indices, PerCandidate, PerQuery, typed

from . import moments as algebra
from . import streamed
from .dense import varying
from .moments import Moments, Scalars, finite_max
from .passes import Candidates, Query, Settings
from .rows import Rows, to_float

_SPARE = 4
"""Room for packed pairs, relative to a device's even share; so many devices re-score all they have, as one would."""


@typed
def gather_points(rows: Rows, index: Indices) -> Flat:
    """Rows `index` [b] as centred float64 points [b, d], from wherever they are stored."""
    stored = streamed.gather(rows, index) if streamed.is_streamed(rows) else rows.data[index]
    points = to_float(stored.reshape(index.shape[0], rows.dimension)).astype(jnp.float64)
    return points if rows.centre is None else points - rows.centre.astype(jnp.float64)


@typed
def best_of_all(candidates: Candidates, axis_name: str) -> Candidates:
    """Those of a device's k candidates that are among the k best of all devices; the others count among the rest.

    Of few devices everything is kept: nothing would be gained. Every device finds the limit for a part of the queries,
    so that what is sent does not grow with the devices.
    """
    logit = candidates.logit.astype(jnp.float32)
    (b, k), count = logit.shape, lax.axis_size(axis_name)
    if count <= _SPARE:
        return candidates
    size = -(-b // count)
    parts = jnp.pad(logit, ((0, size * count - b), (0, 0))).reshape(count, size, k)
    everyone = lax.all_to_all(parts, axis_name, 0, 0)
    best, _ = lax.top_k(everyone.swapaxes(0, 1).reshape(size, count * k), k)
    limit = algebra.joined(jnp.min(best, 1), axis_name)[:b]
    keep = logit >= limit[:, None]
    none = jnp.asarray(-jnp.inf, candidates.logit.dtype)
    lost = jnp.max(jnp.where(keep, none, candidates.logit), 1)
    return dataclasses.replace(
        candidates, logit=jnp.where(keep, candidates.logit, none), rest=jnp.maximum(candidates.rest, lost)
    )


class Rescored(NamedTuple):
    """Exact logits of the candidates [b, k], −inf in unused slots; their moments under these, relative to the largest;
    and their moments under the approximate ones."""

    logits: PerCandidate
    exact: Moments
    approximate: Moments


@typed
def rescore(
    settings: Settings,
    rows: Rows,
    query: Query,
    candidates: Candidates,
    approximate: PerCandidate,
    maximum: PerQuery,
) -> Rescored:
    """Score the candidates of b queries exactly.

    Args:
        settings: static choices.
        rows: the data.
        query: b flat queries, float64.
        candidates: of these rows.
        approximate: [b, k] float64, their logits as the pass computed them.
        maximum: [b], what their approximate moments shall be relative to.
    """
    b, k = candidates.logit.shape
    every = candidates.index.T, None
    known = settings, rows, candidates, approximate, maximum
    count = 1 if settings.axis_name is None else lax.axis_size(settings.axis_name)
    room = _SPARE * -(-b * k // count)
    size = max(1, min(room, b))
    num_chunks = -(-room // size)
    if count <= _SPARE or num_chunks >= k:
        return _rescore(*known, every, query)
    used = (candidates.logit > -jnp.inf).reshape(-1)

    def packed(query):
        order = jnp.cumsum(used, dtype=jnp.int32) - 1
        order = jnp.where(used, order, jnp.int32(num_chunks * size))
        place = jnp.full(num_chunks * size, b * k, jnp.int32)
        place = place.at[order].set(jnp.arange(b * k, dtype=jnp.int32), mode="drop")
        row = candidates.index.reshape(-1).at[place].get(mode="fill", fill_value=0)
        pairs = row.reshape(num_chunks, size), place.reshape(num_chunks, size)
        return _rescore(*known, pairs, query)

    # Marked out here as differing from device to device: the reverse pass makes a sum over devices of it, which would
    # wait for ever in a branch that some of them do not take.
    query = lax.pcast(query, settings.axis_name, to="varying")
    fits = jnp.sum(used, dtype=jnp.int32) <= num_chunks * size
    return lax.cond(fits, packed, functools.partial(_rescore, *known, every), query)


def _rescore(
    settings: Settings,
    rows: Rows,
    candidates: Candidates,
    approximate: PerCandidate,
    maximum: PerQuery,
    pairs: tuple[jax.Array, jax.Array | None],
    query: Query,
) -> Rescored:
    """Score pairs of a query and a candidate, in chunks.

    Args:
        settings, rows, candidates, approximate, maximum, query: as of `rescore`.
        pairs: rows [chunks, m], and where in [b, k] each pair belongs (b k: nowhere), or None where chunk c holds
            slot c of every query. Every slot in use is in them.
    """
    (b, k), (_, place) = candidates.logit.shape, pairs

    def of_slots(leaf):
        return leaf.T if place is None else leaf.reshape(-1).at[place].get(mode="fill", fill_value=0)

    def to_slots(leaf):
        if place is None:
            return leaf.T
        return jnp.zeros(b * k, leaf.dtype).at[place].add(leaf, mode="drop").reshape(b, k)

    used = candidates.logit > -jnp.inf
    chunks = *pairs, of_slots(used)

    @jax.checkpoint
    def logit(row, place, used):
        x, alpha, sigma = (_at(leaf, place, k) for leaf in (query.x, query.alpha, query.sigma))
        square = jnp.sum((x - alpha[:, None] * gather_points(rows, row)) ** 2, 1)
        value = -square / (2 * sigma**2)
        value = value if rows.log_weights is None else value + rows.log_weights[row].astype(jnp.float64)
        return jnp.where(used, value, -jnp.inf)

    unroll = len(pairs[0]) if settings.unrolled else 1
    _, values = lax.scan(lambda _, chunk: (None, logit(*chunk)), None, chunks, unroll=unroll)
    logits = jnp.where(used, to_slots(values), -jnp.inf)
    both = values, of_slots(approximate)
    maxima = jnp.max(lax.stop_gradient(logits), 1), maximum

    @jax.checkpoint
    def row_sums(chunk, both):
        row, place, used = chunk
        points = gather_points(rows, row)
        squares = jnp.sum(points**2, 1)

        def sums(logit, maximum):
            shifted = logit - _at(finite_max(maximum), place, k)
            weight = jnp.where(used, jnp.exp(shifted), 0)
            total = weight, weight[:, None] * points
            if not settings.scalars:
                return *total, None
            return *total, Scalars(
                weight * jnp.where(weight > 0, shifted, 0), weight * squares, weight * weight
            )

        return [sums(logit, maximum) for logit, maximum in zip(both, maxima, strict=True)]

    def body(carry, step):
        (_, place, _), _ = step

        def add(total, value):
            return total + value if place is None else total.at[place // k].add(value, mode="drop")

        return jax.tree.map(add, carry, row_sums(*step)), None

    none = algebra.empty(b, rows.dimension, jnp.float64, scalars=settings.scalars)
    zero = [(none.normaliser, none.weighted_sum, none.scalars)] * 2
    totals, _ = lax.scan(body, varying(settings, zero), (chunks, both), unroll=unroll)
    return Rescored(logits, *(Moments(most, *total) for most, total in zip(maxima, totals, strict=True)))


def _at(leaf: jax.Array, place: jax.Array | None, k: int) -> jax.Array:
    """What belongs to the queries of places in [b, k], of a float64 leaf [b, ...].

    Derivatives are taken outside the island, where the rule of a float64 gather fails: they go through float32.
    """
    if place is None:
        return leaf
    fixed = lax.stop_gradient(leaf)
    values, moved = (
        each.at[place // k].get(mode="clip") for each in (fixed, (leaf - fixed).astype(jnp.float32))
    )
    return values + moved.astype(leaf.dtype)
