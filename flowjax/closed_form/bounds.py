"""Upper bounds of all logits of a few queries, by products with few columns of a `Screen`.

The bound of row i is one inner product of the row's columns (norms of bands, norm of the tail, squared norm,
coordinates) with coefficients of the query, plus log w_i. It leaves out −‖x‖²/(2 sigma²) and what rounding and the
defects of the basis may add, which `slack_of` bounds: the true logit is at most bound + slack − ‖x‖²/(2 sigma²).
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flowjax.typing import Array, Float, Indices, PerQuery, typed

from .certificate import query_norm
from .dense import product
from .passes import Query
from .rows import Rows
from .screen import LANES, Coefficients, Screen, Table, band_norms, project, round_up

Survivors = jax.Array
"""[blocks, b, groups] uint32: bit j of group g in a block of size s stands for row g + j (s / LANES) of the block."""


class Seen(NamedTuple):
    """A chunk of queries as the passes need it; float64."""

    query: Query
    coefficients: Coefficients
    scale: PerQuery
    slack: PerQuery


def project_far(screen: Screen, seen: Seen) -> Seen:
    """The same queries, projected on all directions."""
    return seen._replace(coefficients=project(screen, seen.query.x, screen.far.directions))


@typed
def slack_of(screen: Screen, rows: Rows, query: Query, coefficients: Coefficients) -> PerQuery:
    """What a float32 bound may fall short of the true logit, [b]: defects of equation (1) and rounding."""
    y, scale = rows.max_norm.astype(jnp.float64), query.alpha / query.sigma**2
    terms = max(table.columns.shape[1] for table in (screen.near, screen.far)) + 16
    rounding = 1.05 * 2.0**-24 * terms
    defect = 1.05 * (screen.query_defect + screen.row_defect.astype(jnp.float64))
    product = scale * coefficients.norm * y
    rest = query.alpha * scale / 2 * y**2 + rows.log_weight_bound.astype(jnp.float64)
    return product * (defect + rounding) + rest * (rounding + 2.0**-22) + pair_rounding(rows, query) + 1e-6


@typed
def pair_rounding(rows: Rows, query: Query) -> PerQuery:
    """What float64 rounding may add to ‖x‖²/(2 sigma²) and to a logit by direct difference together, [b]."""
    size = query_norm(query.x) + query.alpha * rows.max_norm.astype(jnp.float64)
    return 2.0**-52 * (query.x.shape[1] + 16) * size**2 / query.sigma**2


@typed
def weights_of(
    table: Table, seen: Seen, coordinates: int, *, debias: bool = False
) -> Float[Array, "b columns"]:
    """Coefficients of `table.span(coordinates)`, float32: of the upper bound, or of the estimate without the noise."""
    query, coefficients = seen.query, seen.coefficients
    first = table.edges.index(coordinates)
    bands, tail = band_norms(coefficients.head, table.edges)[:, first:], coefficients.tail[:, None]
    if debias:
        variance = (query.sigma**2)[:, None]
        sizes = [j - i for i, j in itertools.pairwise(table.edges)][first:]
        bands = jnp.sqrt(jnp.maximum(bands**2 - variance * jnp.asarray(sizes, jnp.float64), 0))
        left = query.x.shape[1] - table.directions
        tail = jnp.sqrt(jnp.maximum(tail**2 - variance * left, 0))
    scale = seen.scale[:, None]
    norm = -(query.alpha * seen.scale / 2)[:, None]
    head = (scale * coefficients.head[:, :coordinates]).astype(jnp.float32)
    return jnp.concatenate(
        [round_up(scale * bands), round_up(scale * tail), norm.astype(jnp.float32), head], 1
    )


def mask_labels(query: Query, bounds: jax.Array, labels: jax.Array | None) -> jax.Array:
    if labels is None or query.labels is None:
        return bounds
    return jnp.where(query.labels[:, None] == labels, bounds, jnp.float32(-jnp.inf))


def _block_of(table: jax.Array, step: jax.Array, size: int, columns: slice) -> jax.Array:
    start = step * jnp.int32(size), jnp.int32(columns.start)
    return lax.dynamic_slice(table, start, (size, columns.stop - columns.start))


def _blocks(screen: Screen, query: Query, table: jax.Array, columns: slice, weights: jax.Array):
    """A function of the block's number: weights times these columns plus log weights, [b, block] float32."""
    size, labels = screen.block, screen.labels

    def block(step):
        values = product(weights, _block_of(table, step, size, columns), (1, 1))
        values = values + lax.dynamic_slice_in_dim(screen.bias, step * jnp.int32(size), size)
        if labels is None:
            return values
        return mask_labels(query, values, lax.dynamic_slice_in_dim(labels, step * jnp.int32(size), size))

    return block


def guess_best(screen: Screen, rows: Rows, seen: Seen) -> Indices:
    """The best-looking row of each query, [b]: the fewest columns, the noise's share taken out of the query's norms."""
    b, size, near = seen.query.x.shape[0], screen.block, screen.near
    coordinates = near.levels[0]
    weights = weights_of(near, seen, coordinates, debias=True)
    block = _blocks(screen, seen.query, screen.nearest, near.span(coordinates), weights)
    # A column's best block rides in the last digits of its estimate: one array to keep instead of two. (−inf becomes
    # NaN so, which is never better.)
    digits = jnp.int32((1 << max(1, (screen.num_blocks - 1).bit_length())) - 1)

    def body(best, step):
        bits = lax.bitcast_convert_type(block(step), jnp.int32) & ~digits | step
        estimate = lax.bitcast_convert_type(bits, jnp.float32)
        return jnp.where(estimate > best, estimate, best), None

    start = jnp.full((b, size), -jnp.inf, jnp.float32)
    best, _ = lax.scan(body, start, jnp.arange(screen.num_blocks, dtype=jnp.int32))
    column = lax.argmax(best, 1, jnp.int32)
    chosen = lax.bitcast_convert_type(jnp.take_along_axis(best, column[:, None], 1)[:, 0], jnp.int32)
    return jnp.minimum((chosen & digits) * jnp.int32(size) + column, jnp.int32(rows.count - 1))


def find_survivors(screen: Screen, seen: Seen, level: int, threshold: Float[Array, "b"]) -> Survivors:
    """The rows whose bound by pass number `level` reaches the threshold.

    Far passes need `seen` projected on all directions. Only bits leave a block: bounds are never stored.
    """
    table, coordinates = screen.passes[level]
    columns = screen.nearest if table is screen.near else table.columns
    weights = weights_of(table, seen, coordinates)
    block = _blocks(screen, seen.query, columns, table.span(coordinates), weights)
    lane = (jnp.uint32(1) << jnp.arange(LANES, dtype=jnp.uint32))[:, None]

    def body(_, step):
        reached = (block(step) >= threshold[:, None]).reshape(len(threshold), LANES, -1)
        return None, jnp.sum(jnp.where(reached, lane, jnp.uint32(0)), 1, dtype=jnp.uint32)

    return lax.scan(body, None, jnp.arange(screen.num_blocks, dtype=jnp.int32))[1]
