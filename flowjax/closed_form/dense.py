"""Every row, block by block: two matrix products a block and an online softmax. Any platform.

Equation (1) of `passes` is an exponential family: along a tangent (theta', c') every logit moves by
l_i' = theta'·y_i − c'‖y_i‖², and the moments move by the same sums with the extra factor l_i'. That streamed sum is
the derivative rule, so no derivative of any order, forward or reverse, stores [b, n] weights.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flowjax.typing import Array, Float, Int, PerQuery, typed

from . import halves, moments
from .halves import Halves
from .moments import Moments, Scalars
from .passes import Candidates, Pass, Query, Settings, natural_parameters, select, uses_direct_differences
from .rows import Rows, to_float


def product(
    a: jax.Array,
    b: jax.Array,
    axes: tuple[int, int],
    precision: str = "float32",
    parts: tuple[int, int] | None = None,
) -> jax.Array:
    """Contract axis axes[0] of a with axes[1] of b, in full precision, or as six products of bfloat16 pieces; a
    product for every entry of axes parts[0] of a and parts[1] of b, if given.

    Not `jnp.matmul`: that asks for its result's dtype by name, which the rules of vmap and of transposition, applied
    outside the float64 island, cut down to float32.
    """
    how = lax.DotAlgorithmPreset.BF16_BF16_F32_X6 if precision == "bfloat16x6" else lax.Precision.HIGHEST
    batch = ((), ()) if parts is None else ((parts[0],), (parts[1],))
    return lax.dot_general(a, b, (((axes[0],), (axes[1],)), batch), precision=how)


@typed
def read_block(
    rows: Rows, start: Int[Array, ""], size: int, dtype
) -> tuple[Float[Array, "m d"], Float[Array, "m"]]:
    """Rows [start, start + size) as centred points [size, d] and their square norms [size]."""
    block = lax.dynamic_slice_in_dim(rows.data, start, size).reshape(size, -1)
    points = to_float(block).astype(dtype)
    if rows.centre is not None:
        points = points - rows.centre.astype(dtype)
    if dtype == jnp.float64:  # the stored ones are rounded to float32
        return points, jnp.sum(points**2, 1)
    return points, lax.dynamic_slice_in_dim(rows.square_norms, start, size)


Points = Float[Array, "m d"] | Halves
"""A block of rows as the products of a precision want them."""


def _product(a: jax.Array, points: jax.Array | Halves, axes: tuple[int, int], precision: str) -> jax.Array:
    if isinstance(points, Halves):
        return halves.product(a, points, axes)
    return product(a, points, axes, precision)


@typed
def _block_logits(
    settings: Settings, query: Query, rows: Rows, step: Int[Array, ""]
) -> tuple[Points, Float[Array, "m"], Float[Array, "b m"], Int[Array, ""]]:
    """Block `step`: points [m, d], square norms [m], logits [b, m] with rows already seen masked out.

    The last block starts early enough to be whole, so the data needs no padding and no copy.
    """
    size = settings.block_size
    start = jnp.minimum(step * size, rows.count - size).astype(jnp.int32)
    points, squares = read_block(rows, start, size, settings.dtype)
    position = start + jnp.arange(size, dtype=jnp.int32)
    bias = jnp.where(position < step * size, -jnp.inf, 0).astype(settings.dtype)
    if rows.log_weights is not None:
        bias = bias + lax.dynamic_slice_in_dim(rows.log_weights, start, size).astype(settings.dtype)
    if uses_direct_differences(rows.dimension):
        # One contiguous column a dimension. A product with the identity is exact, and XLA does not fuse it into the
        # loop below, where strided loads would keep the exponential from being vectorised: seven times slower.
        columns = product(jnp.eye(rows.dimension, dtype=settings.dtype), points, (1, 1))
        square = 0
        for k in range(rows.dimension):
            square += (query.x[:, k, None] - query.alpha[:, None] * columns[None, k]) ** 2
        # As in equation (1) of `passes`, these have to move without the term common to all logits.
        constant = jnp.sum(query.x**2, 1) / (2 * query.sigma**2)
        constant = constant - lax.stop_gradient(constant)
        logits = bias + (constant[:, None] - (0.5 / query.sigma**2)[:, None] * square)
    else:
        if settings.precision == "float16x3":
            block = lax.dynamic_slice_in_dim(rows.data, start, size).reshape(size, -1)
            points = halves.of_rows(block, rows.centre, rows.max_norm)
        theta, c = natural_parameters(query)
        logits = _product(theta, points, (1, 1), settings.precision) + (bias - c[:, None] * squares)
    if query.labels is not None and rows.labels is not None:
        row_labels = lax.dynamic_slice_in_dim(rows.labels, start, size)
        logits = jnp.where(query.labels[:, None] == row_labels, logits, -jnp.inf)
    return points, squares, logits, start


def block_rows(num_rows: int, num_queries: int, dimension: int, platform: str) -> int:
    """Rows of a block, where the user gives no number of them.

    A GPU computes 128×128 results at a time on each of more than a hundred processors, and is told so kernel by kernel,
    12 of them a block: it gets two million logits at once (a reckoning; measured on none). Elsewhere, measured on two
    CPU cores (ms at 512, 1024, 2048, 4096, 8192 rows; n = 50 000 to 60 000): d = 196, b = 64: 41, 34, 31, 30, 33;
    d = 64, b = 128: 28, 25, 26, 23, 26; d = 64, b = 1024: 137, 133, 144, 159, 206; d = 2, b = 1024: 76, 71, 83, 104,
    151; d = 784, b = 128: 123, 117, 118, 123, 148; d = 3072, b = 128: 378, 363, 368, 412, 470; b = 32: 175, 196, 191,
    215, 276.
    """
    if platform == "gpu":
        most = int(np.clip((1 << 21) // max(num_queries, 1), 1024, 16384))
    else:
        most = 1024 if max(num_queries, dimension) <= 1024 else 512
    blocks = -(-num_rows // most)  # alike, as the last one repeats rows to be whole
    if blocks == 1 and num_rows > 1024 * parts_of(num_rows):
        blocks = 2  # no equal parts: two halves that overlap by a few rows have them
    return min(num_rows, -(-num_rows // (64 * blocks)) * 64)


def parts_of(size: int) -> int:
    """In how many equal parts a block of this size is summed, by products of their own: 512 to 1024 rows each, as the
    error bound of a sum grows with its length (`parts.summation_error`)."""
    return next((k for k in range(-(-size // 1024), size // 512 + 1) if size % k == 0), 1)


def _sum_rows(terms: jax.Array) -> jax.Array:
    """Of [b, m], part by part, [b]."""
    (b, m), k = terms.shape, parts_of(terms.shape[1])
    if k == 1:
        return jnp.sum(terms, 1)
    return _add_up(jnp.sum(terms.reshape(b, k, m // k), 2), 1)


def _sum_points(terms: jax.Array, points: jax.Array | Halves, dimension: int, precision: str) -> jax.Array:
    """Of terms [b, m] times points [m, d], part by part, [b, d]."""
    (b, m), k = terms.shape, parts_of(terms.shape[1])
    if k == 1:
        return _product(terms, points, (1, 0), precision)
    terms, shape = terms.reshape(b, k, m // k), (k, m // k, dimension)
    if isinstance(points, Halves):
        return _add_up(halves.product(terms, points.reshape(*shape), (2, 1), batched=True), 0)
    return _add_up(product(terms, points.reshape(shape), (2, 1), precision, parts=(1, 0)), 0)


def _add_up(parts: jax.Array, axis: int) -> jax.Array:
    """Behind a barrier, or XLA would make the sums of the parts and this one a single long one."""
    return jnp.sum(lax.optimization_barrier(parts), axis)


def _num_blocks(settings: Settings, rows: Rows) -> int:
    return -(-rows.count // settings.block_size)


def varying(settings: Settings, tree):
    """Inside shard_map, mark the start of a scan as differing from device to device."""
    return lax.pcast(tree, settings.varying, to="varying") if settings.varying else tree


@typed
def _block_moments(
    settings: Settings,
    maximum: PerQuery,
    logits: Float[Array, "b m"],
    factor: Float[Array, "b m"] | None,
    points: Points,
    squares: Float[Array, "m"],
    dimension: int,
) -> Moments:
    """Sums of one block relative to a given maximum; with `factor` = l' [b, m], their derivatives along it."""
    shifted = logits - moments.finite_max(maximum)[:, None]
    weights = jnp.exp(shifted)
    terms = weights if factor is None else weights * factor
    scalars = None
    if settings.scalars:
        finite = jnp.where(weights > 0, shifted, 0)
        # With a factor l' the derivatives of exp(l) l and exp(2 l): exp(l) (l + 1) l' and 2 exp(2 l) l'.
        scalars = Scalars(
            logit=_sum_rows(terms * (finite if factor is None else finite + 1)),
            square=_sum_rows(terms * squares),
            squared=_sum_rows(weights * terms) * (1 if factor is None else 2),
        )
    return Moments(
        max=maximum,
        normaliser=_sum_rows(terms),
        weighted_sum=_sum_points(terms, points, dimension, settings.precision),
        scalars=scalars,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def stream(settings: Settings, query: Query, rows: Rows) -> tuple[Moments, Candidates]:
    """One pass over all rows, by any backend; the derivative rule below is every backend's.

    Args:
        settings: static choices; `block_size` is at most the number of rows.
        query: b flat queries.
        rows: the data.

    Returns:
        Moments of the logits as in `passes` (in few dimensions with the term −‖x‖²/(2 sigma²)), and the candidates.

    Differentiable to any order in query.x, alpha and sigma, up to the term −‖x‖²/(2 sigma²) common to all logits,
    which is held constant (see `moments.shift_logits`). The data is a constant: its tangents are dropped.
    """
    return settings.how.run(settings, query, rows)


def _scan(settings: Settings, query: Query, rows: Rows) -> tuple[Moments, Candidates]:
    b, size, dtype = query.x.shape[0], settings.block_size, settings.dtype

    def body(carry, step):
        total, tracked = carry
        points, squares, logits, start = _block_logits(settings, query, rows, step)
        maximum = jnp.maximum(total.max, jnp.max(logits, 1))
        block = _block_moments(settings, maximum, logits, None, points, squares, rows.dimension)
        total = moments.merge(total, block)
        best, where, second = tracked
        second = jnp.maximum(second, jnp.minimum(best, logits))
        where = jnp.where(logits > best, start, where)
        tracked = jnp.maximum(best, logits), where, second
        return (total, tracked), None

    nothing = jnp.full((b, size), -jnp.inf, dtype)
    tracked = nothing, jnp.zeros((b, size), jnp.int32), nothing
    start = moments.empty(b, rows.dimension, dtype, scalars=settings.scalars), tracked
    steps = jnp.arange(_num_blocks(settings, rows), dtype=jnp.int32)
    (total, tracked), _ = lax.scan(body, varying(settings, start), steps)
    return total, select(settings, *tracked)


@stream.defjvp
def _stream_jvp(settings: Settings, primals, tangents):
    with jax.enable_x64(True):  # derivatives are taken outside the island that called `stream`
        return _moments_along(settings, primals, tangents)


def _moments_along(settings: Settings, primals, tangents):
    """Moments and their derivative along the tangent of the query; the candidates are constants."""
    query, rows = primals
    query_dot, _ = tangents  # the data is a constant
    asked = settings
    if not asked.how.differentiable:
        settings = dataclasses.replace(settings, precision="float32", backend="dense")
    total, candidates = stream(settings, query, rows)

    def natural(x, alpha, sigma):
        return natural_parameters(dataclasses.replace(query, x=x, alpha=alpha, sigma=sigma))

    # Held constant: the part −‖x‖²/(2 sigma²) common to all logits, which the caller accounts for.
    _, (theta_dot, c_dot) = jax.jvp(
        natural,
        (query.x, query.alpha, query.sigma),
        (query_dot.x, query_dot.alpha, query_dot.sigma),
    )

    # Checkpointed: the reverse pass recomputes a block's weights instead of keeping them, and the carry is a
    # sum, so it needs not be kept either.
    @jax.checkpoint
    def block(step, query, theta_dot, c_dot):
        points, squares, logits, _ = _block_logits(settings, query, rows, step)
        speed = _product(theta_dot, points, (1, 1), settings.precision) - c_dot[:, None] * squares
        return _block_moments(settings, total.max, logits, speed, points, squares, rows.dimension)

    def body(carry, step):
        terms = block(step, query, theta_dot, c_dot)
        return jax.tree.map(jnp.add, carry, dataclasses.replace(terms, max=jnp.zeros_like(carry.max))), None

    start = moments.empty(query.x.shape[0], rows.dimension, settings.dtype, scalars=settings.scalars)
    start = varying(settings, dataclasses.replace(start, max=jnp.zeros_like(start.max)))
    steps = jnp.arange(_num_blocks(settings, rows), dtype=jnp.int32)
    total_dot, _ = lax.scan(body, start, steps)
    if settings is not asked:  # results of its types
        kinds = jax.eval_shape(functools.partial(asked.how.run, asked), query, rows)
        total_dot = jax.tree.map(lambda leaf, kind: leaf.astype(kind.dtype), total_dot, kinds[0])
        total, candidates = jax.tree.map(
            lambda leaf, kind: leaf.astype(kind.dtype), (total, candidates), kinds
        )
    candidates_dot = jax.tree.map(jnp.zeros_like, candidates)
    return (total, candidates), (total_dot, candidates_dot)


def _roundings(settings: Settings, num_rows: int) -> int:
    """Within a part of a block, over its parts, and four a block, for a rescaling and an addition."""
    parts = parts_of(settings.block_size)
    return settings.block_size // parts + parts + 4 * -(-num_rows // settings.block_size)


PASSES = {
    "float32": Pass(_scan, 2.0**-24, _roundings),
    "float64": Pass(_scan, 2.0**-53, _roundings, jnp.float64),
    # Six products of bfloat16 pieces. What pieces cut off instead of rounded make the five smaller products 2⁻⁷ as
    # large, 4 % more; the products left out, 8u of |xy|, are within the 16 units beside d in equation (1) of
    # `certificate`.
    "bfloat16x6": Pass(_scan, halves.UNIT, _roundings),
    # Splitting has no derivative.
    "float16x3": Pass(_scan, halves.UNIT, _roundings, differentiable=False),
}
