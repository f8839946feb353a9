"""Every row, block by block: two matrix products a block and an online softmax. Any platform.

The logit of row i seen from a query is, with x and y_i relative to the field's centre and the constant
−‖x‖²/(2 sigma²) left out,

    (1)  l_i = theta·y_i − c ‖y_i‖² + log w_i        theta = alpha x/sigma²,   c = alpha²/(2 sigma²)

an exponential family: along a tangent (theta', c') every logit moves by l_i' = theta'·y_i − c'‖y_i‖², and the
moments move by the same sums with the extra factor l_i'. That streamed sum is the derivative rule, so no
derivative of any order, forward or reverse, stores [b, n] weights. In few dimensions the logits are formed from
direct differences instead, −‖x − alpha y_i‖²/(2 sigma²): the exponentials cost more there, and nothing cancels.

Beside the moments the pass remembers, in every column of a block, the best row seen there and the best of all
others. From these come the `Candidates`: the few rows that may carry the weight when it concentrates, to be
re-scored exactly, and an upper bound of everything else.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flowjax.typing import (
    Array,
    Data,
    Flat,
    Float,
    Indices,
    Int,
    PerCandidate,
    PerQuery,
    PerRow,
    RowLabels,
    Scalar,
    typed,
)

from . import halves, moments
from .halves import Halves
from .moments import Moments, Scalars
from .rows import to_float

DIRECT_DIMENSIONS = 8
"""Up to this many dimensions logits come from direct differences, one fused loop over the block."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What is stored of a data set; leaves down to `labels` have one entry a row.

    Attributes:
        data: [n, d], on the host [n, *event], in the dtype given (uint8, bfloat16, float16 or float32).
        square_norms: [n] float32, ‖y_i − centre‖².
        log_weights: [n] float32 or None for equal weights.
        labels: [n] int32 or None.
        centre: [d] float32, or None where centring would gain nothing.
        max_norm: [] float32, upper bound of ‖y_i − centre‖.
        log_weight_bound: [] float32, largest finite |log w_i|.
        class_log_weights: [number of classes] float32, log of the total weight of each class; [1] without labels.
    """

    data: Data
    square_norms: PerRow
    log_weights: PerRow | None
    labels: RowLabels | None
    centre: Float[Array, "d"] | None
    max_norm: Scalar
    log_weight_bound: Scalar
    class_log_weights: Float[Array, "classes"]

    @property
    def count(self) -> int:
        return self.data.shape[0]

    @property
    def dimension(self) -> int:
        return int(np.prod(self.data.shape[1:]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Query:
    """A flat batch of queries: x [b, d] relative to alpha·centre, alpha and sigma [b], labels [b] or None."""

    x: Flat
    alpha: PerQuery
    sigma: PerQuery
    labels: Indices | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """The best-looking rows: logit [b, k] as the pass computed it (−inf: unused slot), and rest [b], an upper
    bound of the computed logit of every other row. `index_bits` [b, k] holds row numbers as the bits of a
    float32: an integer result of a differentiated function inside `shard_map` has no tangent type."""

    index_bits: PerCandidate
    logit: PerCandidate
    rest: PerQuery

    @property
    def index(self) -> Int[Array, "b k"]:
        """[b, k] int32 row numbers."""
        return lax.bitcast_convert_type(self.index_bits, jnp.int32)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Static choices of one pass."""

    block_size: int
    scalars: bool
    num_candidates: int
    precision: str
    axis_name: str | None = None
    """Mesh axis that rows are split over."""
    varying: tuple[str, ...] = ()
    """Inside shard_map: this axis, and those that queries are split over."""
    backend: str = "dense"
    unrolled: bool = False
    """Whether candidates are re-scored all at once: on a GPU, where a loop over them is dozens of small kernels."""

    @property
    def dtype(self):
        return jnp.float64 if self.precision == "float64" else jnp.float32

    @property
    def unit(self) -> float:
        """Unit roundoff that the error analysis in `certificate` may count on."""
        if self.precision == "float64":
            return 2.0**-53
        # Six products of bfloat16 pieces. A tensor core aligns a block of products and the sum so far to the largest of
        # them and cuts off below float32's last digit, 2u for each, and again when it normalises the sum (Fasi, Higham,
        # Mikaitis, Pranesh, Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330, 2021). In blocks
        # of 8, the smallest, without guard digits: (9/8 + 1/8) 2u a product, 4 % more for the five smaller products,
        # which pieces cut off instead of rounded make 2⁻⁷ as large. The products left out, 8u of |xy|, are within the
        # 16 units beside d in equation (1) of `certificate`.
        # Of float16 pieces there are fewer; what they lose, equation (1) of `halves`, leaves of those 16 units 11.
        if self.precision in ("bfloat16x6", "float16x3") or self.backend == "pallas_gpu":
            return 2.61 * 2.0**-24
        # Products of split bfloat16 pieces: equation (1) of `pallas_tpu`.
        return 1.05 * 2.0**-24 if self.backend == "pallas_tpu" else 2.0**-24

    def roundings(self, num_rows: int) -> int:
        """On a term's way through a sum over all rows: within a part of a block, over its parts, and four a block, for
        a rescaling and an addition. `pallas_tpu` does not divide a block; `pallas_gpu` has its own."""
        if self.backend == "pallas_gpu":
            from . import pallas_gpu

            return pallas_gpu.roundings(num_rows)
        parts = 1 if self.backend == "pallas_tpu" else parts_of(self.block_size)
        return self.block_size // parts + parts + 4 * -(-num_rows // self.block_size)


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


def uses_direct_differences(dimension: int) -> bool:
    return dimension <= DIRECT_DIMENSIONS


@typed
def natural_parameters(query: Query) -> tuple[Flat, PerQuery]:
    """theta [b, d] and c [b] of equation (1)."""
    scale = query.alpha / query.sigma**2
    return scale[:, None] * query.x, query.alpha * scale / 2


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
        # As equation (1), these have to move without the term common to all logits.
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
    parts = jnp.sum(terms.reshape(b, k, m // k), 2)
    return jnp.sum(lax.optimization_barrier(parts), 1)  # or XLA would make both sums one


def _sum_points(terms: jax.Array, points: jax.Array | Halves, dimension: int, precision: str) -> jax.Array:
    """Of terms [b, m] times points [m, d], part by part, [b, d]."""
    (b, m), k = terms.shape, parts_of(terms.shape[1])
    if k == 1:
        return _product(terms, points, (1, 0), precision)
    terms, shape = terms.reshape(b, k, m // k), (k, m // k, dimension)
    if isinstance(points, Halves):
        return jnp.sum(halves.product(terms, points.reshape(*shape), (2, 1), batched=True), 0)
    return jnp.sum(product(terms, points.reshape(shape), (2, 1), precision, parts=(1, 0)), 0)


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
    """One pass over all rows, by `settings.backend`; the derivative rule below is every backend's.

    Args:
        settings: static choices; `block_size` is at most the number of rows.
        query: b flat queries.
        rows: the data.

    Returns:
        Moments of equation (1)'s logits (of −‖x − alpha y‖²/(2 sigma²) where direct differences are used), and the
        candidates.

    Differentiable to any order in query.x, alpha and sigma, up to the term −‖x‖²/(2 sigma²) common to all logits,
    which is held constant (see `moments.shift_logits`). The data is a constant: its tangents are dropped.
    """
    return _PASSES[settings.backend](settings, query, rows)


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


def _pallas_tpu(settings: Settings, query: Query, rows: Rows) -> tuple[Moments, Candidates]:
    from . import pallas_tpu  # which imports Pallas (nobody else needs it) and this module

    return pallas_tpu.stream(settings, query, rows)


def _pallas_gpu(settings: Settings, query: Query, rows: Rows) -> tuple[Moments, Candidates]:
    from . import pallas_gpu

    return pallas_gpu.stream(settings, query, rows)


_PASSES = {"dense": _scan, "pallas_tpu": _pallas_tpu, "pallas_gpu": _pallas_gpu}


@typed
def select(
    settings: Settings,
    best: Float[Array, "b m"],
    where: Int[Array, "b m"],
    second: Float[Array, "b m"],
    top_k: Callable[[jax.Array, int], tuple[jax.Array, jax.Array]] = lax.top_k,
) -> Candidates:
    """The best columns of all, and the best logit of every row that is in none of them."""
    # No slice of the result: it would make XLA sort the rows instead of selecting (a hundred times slower on
    # a CPU). Columns left out are bounded by the least one taken.
    logit, column = top_k(best, settings.num_candidates)
    rest = jnp.max(second, 1)
    if best.shape[1] > settings.num_candidates:
        rest = jnp.maximum(rest, jnp.min(logit, 1))
    column = column.astype(jnp.int32)
    # `where` holds the start of the block that the row came from; its column is the offset inside it.
    index = jax.vmap(lambda starts, columns: starts[columns])(where, column) + column
    return Candidates(lax.bitcast_convert_type(index, jnp.float32), logit, rest)


@stream.defjvp
def _stream_jvp(settings: Settings, primals, tangents):
    with jax.enable_x64(True):  # derivatives are taken outside the island that called `stream`
        return _moments_along(settings, primals, tangents)


def _moments_along(settings: Settings, primals, tangents):
    """Moments and their derivative along the tangent of the query; the candidates are constants."""
    query, rows = primals
    query_dot, _ = tangents  # the data is a constant
    wide = settings.backend == "pallas_gpu"
    if wide or settings.precision == "float16x3":
        # Splitting has no derivative; and what a derivative is relative to, the maximum and the normaliser, must come
        # of the very logits and products that its sums are made of, or late in time one outgrows the other.
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
    if wide:  # as that pass returns them
        total, total_dot = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (total, total_dot))
        logit, rest = (leaf.astype(jnp.float64) for leaf in (candidates.logit, candidates.rest))
        candidates = Candidates(candidates.index_bits, logit, rest)
    candidates_dot = jax.tree.map(jnp.zeros_like, candidates)
    return (total, candidates), (total_dot, candidates_dot)
