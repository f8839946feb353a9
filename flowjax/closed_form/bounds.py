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

from flowjax.typing import Array, Float, PerQuery, typed

from .dense import Query, Rows, product
from .evaluate import query_norm
from .screen import LANES, Coefficients, Screen, Table, band_norms, project, round_up


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


def mask_labels(rows: Rows, query: Query, bounds: jax.Array, labels: jax.Array | None) -> jax.Array:
    if labels is None or query.labels is None:
        return bounds
    return jnp.where(query.labels[:, None] == labels, bounds, jnp.float32(-jnp.inf))


def _block_of(array: jax.Array, step: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(array, step * jnp.int32(size), size)


def _row_labels(screen: Screen, rows: Rows) -> jax.Array | None:
    if rows.labels is None:
        return None
    return jnp.pad(rows.labels, (0, screen.bias.shape[0] - rows.count), constant_values=-1)


def first_pass(screen: Screen, rows: Rows, seen: Seen) -> tuple[jax.Array, jax.Array]:
    """Bounds [steps, b, block] float32 with the fewest columns, and the best-looking row [b]."""
    b, size = seen.query.x.shape[0], screen.block
    plain, debiased = (weights_of(screen.near, seen, screen.near.levels[0], debias=d) for d in (False, True))
    split = screen.near.num_bands + 2
    bands = jnp.concatenate([plain[:, :split], debiased[:, :split]])
    labels = _row_labels(screen, rows)

    def body(carry, step):
        best, where = carry
        block = _block_of(screen.first, step, size)
        head = product(plain[:, split:], block[:, split:], (1, 1)) + _block_of(screen.bias, step, size)
        if labels is not None:
            head = mask_labels(rows, seen.query, head, _block_of(labels, step, size))
        both = product(bands, block[:, :split], (1, 1))
        estimate = head + both[b:]
        where = jnp.where(estimate > best, step, where)
        return (jnp.maximum(best, estimate), where), head + both[:b]

    start = jnp.full((b, size), -jnp.inf, jnp.float32), jnp.zeros((b, size), jnp.int32)
    steps = jnp.arange(screen.bias.shape[0] // size, dtype=jnp.int32)
    (best, where), bounds = lax.scan(body, start, steps)
    column = lax.argmax(best, 1, jnp.int32)
    index = jnp.take_along_axis(where, column[:, None], 1)[:, 0] * jnp.int32(size) + column
    return bounds, jnp.minimum(index, jnp.int32(rows.count - 1))


def later_pass(screen: Screen, rows: Rows, seen: Seen, coordinates: int) -> jax.Array:
    """Bounds [steps, b, block] float32 with coordinates of the far table; `seen` is projected on all directions."""
    size, columns = screen.block, screen.far.span(coordinates)
    weights, labels = weights_of(screen.far, seen, coordinates), _row_labels(screen, rows)

    def body(_, step):
        block = lax.dynamic_slice(
            screen.far.columns,
            (step * jnp.int32(size), jnp.int32(columns.start)),
            (size, columns.stop - columns.start),
        )
        bounds = product(weights, block, (1, 1)) + _block_of(screen.bias, step, size)
        if labels is not None:
            bounds = mask_labels(rows, seen.query, bounds, _block_of(labels, step, size))
        return None, bounds

    return lax.scan(body, None, jnp.arange(screen.bias.shape[0] // size, dtype=jnp.int32))[1]


def count_survivors(bounds: jax.Array, threshold: jax.Array) -> jax.Array:
    """Survivors per group of lanes, [steps, b, groups]."""
    steps, b, size = bounds.shape
    lanes = (bounds >= threshold[:, None]).reshape(steps, b, LANES, size // LANES)
    return jnp.sum(lanes, 2, dtype=jnp.int32)
