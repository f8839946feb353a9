"""The pass over all rows as one GPU kernel, for few dimensions: logits, online softmax and sums in registers.

Every program takes a tile of queries and a share of the rows, and keeps the tile's running maximum, normaliser,
weighted sum, scalar moments and candidates in registers while the rows stream past; the shares' results are merged
outside. XLA writes the logits and the weights of a block to memory between a dozen kernels. Where derivatives are taken
the dense pass takes its place: see the rule of `dense.stream`.

Precision. Products are formed of float16 pieces on tensor cores, as `halves` says.

Logits are in units of log 2, as the hardware's exponential is to the base 2: its error, 3u of a weight, and those of
the conversion are among the constants of equation (1) of `certificate`. Weights are relative to 2¹⁵ at the running
maximum, for their pieces. Sums are taken tile by tile within a block of `BLOCK_SIZE` rows, and block by block.

The compiler is Pallas's for Triton, which jax 0.12 announces to remove in favour of Mosaic's: every shape in the kernel
is a power of two, rows and queries are padded outside.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from . import moments
from .halves import LARGEST, UNIT, scale_of, split
from .moments import Moments, Scalars
from .passes import Candidates, Pass, Query, Settings, natural_parameters, select, uses_direct_differences
from .rows import Rows, to_float

MAX_DIMENSION = 128
"""Above it the weighted sum of a tile no longer fits in registers."""

BLOCK_SIZE = 1024
"""Rows summed apart from what came before, so that the bound of a sum does not grow with their number."""

QUERIES, WARPS = 64, 4
"""Of a tile: what one warpgroup multiplies at once, and its warps."""

_LEAST_DEPTH = 16
"""Of a product on tensor cores."""

_PROGRAMS = 264
"""So many run at a time, two on each of an H100's 132 processors: the rows are shared out until there are as many."""

LEAST_COLUMNS = 256
"""Of which one candidate each is kept, where there are rows for them: two rows that matter in one column are certified
badly."""

_LOG2_E, _LN_2 = float(np.log2(np.e)), float(np.log(2))


_WIDEST, _TOP_K_ENTRIES = 1 << 14, 1 << 12
"""Columns of a row that `top_k` sees at once, and entries of its tile: 32 a thread, up to 128."""

_TRACKED = ("best", "where", "second")
_SUMS = ("max", "reference", "normaliser", "logit", "square", "squared", "sum")


def tile_rows(depth: int) -> int:
    """Rows of a tile, and the columns in which candidates are looked for.

    Measured on an H200, the kernel alone, ms with 64 | 32 | 16 rows: n = b = 32 768, d = 16: 1.39 | 1.60 | -; n =
    50 000, b = 1024, d = 16: .106 | .148 | -; d = 64: .158 | .194 | -; d = 128: - | .312 | .429.
    """
    return 64 if depth <= 64 else 32


def most_queries(dimension: int, num_candidates: int) -> int:
    """Queries of one call: their candidates in float64 stay below 256 MiB, and below 128 MiB what a derivative's block
    holds of them."""
    return min(1 << 15, (1 << 25) // (num_candidates * max(dimension, 16)))


def _dot(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Axis 1 of a against `axis` of b, float16 in, float32 out."""
    return lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def _product(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array], axis: int) -> jax.Array:
    """Of pieces; the small products first."""
    return _dot(left[0], right[0], axis) + (_dot(left[0], right[1], axis) + _dot(left[1], right[0], axis))


def _exp2(x: jax.Array, interpret: bool) -> jax.Array:
    """2ˣ by the one instruction there is for it; the compiler's own spends three more on results below 2⁻¹²⁶."""
    if interpret:
        return jnp.exp2(x)
    return _instruction("ex2.approx.ftz.f32 $0, $1;", x)


def _fma(a: jax.Array, b: jax.Array, c: jax.Array, interpret: bool) -> jax.Array:
    """a b + c in one instruction, which Triton here does not make of the two."""
    if interpret:
        return a * b + c
    return _instruction("fma.rn.f32 $0, $1, $2, $3;", *jnp.broadcast_arrays(a, b, c))


def _instruction(text: str, *operands: jax.Array) -> jax.Array:
    kind = jax.ShapeDtypeStruct(operands[0].shape, jnp.float32)
    constraints = ",".join(["=f", *("f" for _ in operands)])
    (result,) = plgpu.elementwise_inline_asm(
        text, args=operands, constraints=constraints, pack=1, result_shape_dtypes=[kind]
    )
    return result


def _scorer(dimension: int, interpret: bool, refs: dict[str, Any]) -> Callable[..., jax.Array]:
    """A function of where a tile of rows lies, and of its pieces, to logits [queries, rows] to the base 2."""
    c = refs["c"][:][:, None]
    if uses_direct_differences(dimension):
        x = [refs[f"x{k}"][:][:, None] for k in range(dimension)]
        alpha = refs["alpha"][:][:, None]
        # Its product is zero and lays the logits out as a product's: in any other layout the compiler here exchanges
        # every sum over rows between threads, three times the instructions.
        zero = refs["zero"][:, :]

        def by_differences(here, points):
            square = _dot(zero, points[0], 1)
            for k in range(dimension):
                difference = _fma(-alpha, refs[f"column{k}"][here][None], x[k], interpret)
                square = _fma(difference, difference, square, interpret)
            return _fma(-c, square, refs["bias"][here][None], interpret)

        return by_differences

    theta, scale = (refs["theta0"][:, :], refs["theta1"][:, :]), refs["scale"][:][:, None]

    def by_products(here, points):
        rest = _fma(-c, refs["squares"][here][None], refs["bias"][here][None], interpret)
        return _fma(_product(theta, points, 1), scale, rest, interpret)

    return by_products


def _kernel(
    settings: Settings,
    dimension: int,
    share: int,
    interpret: bool,
    refs: dict[str, Any],
    out: dict[str, Any],
) -> None:
    """One tile of queries against one share of the rows."""
    first, block_size = pl.program_id(1) * share, min(share, BLOCK_SIZE)
    score = _scorer(dimension, interpret, refs)
    query_labels = refs["query_labels"][:][:, None] if "query_labels" in refs else None
    queries, depth = refs["c"].shape[0], refs["y0"].shape[1]
    size = tile_rows(depth)

    def tile(start, carry):
        maximum, sums, (best, where, second) = carry
        here = pl.ds(start, size)
        points = refs["y0"][here, :], refs["y1"][here, :]
        logits = score(here, points)
        if query_labels is not None:
            logits = jnp.where(query_labels == refs["labels"][here][None], logits, -jnp.inf)
        second = jnp.maximum(second, jnp.minimum(best, logits))
        where = jnp.where(logits > best, start, where)
        best = jnp.maximum(best, logits)

        before, maximum = maximum, jnp.maximum(maximum, jnp.max(logits, 1))
        sums = _rescaled(sums, before, maximum)
        shifted = logits - _reference(maximum)[:, None]
        weights = _exp2(shifted, interpret)
        sums["normaliser"] += jnp.sum(weights, 1)
        if settings.scalars:  # below −200 the weight is 0, and the logit may be −inf
            sums["logit"] += jnp.sum(weights * jnp.maximum(shifted, -200.0), 1)
            sums["square"] += jnp.sum(weights * refs["squares"][here][None], 1)
            sums["squared"] += jnp.sum(weights * weights, 1)
        half = weights.astype(jnp.float16)
        rest = (weights - half.astype(jnp.float32)).astype(jnp.float16)
        sums["sum"] += _product((half, rest), points, 0)
        return maximum, sums, (best, where, second)

    def block(step, carry):
        before, total, tracked = carry
        start = first + step * block_size

        def one(k, inner):
            return tile(start + k * size, inner)

        none = _no_sums(settings, queries, depth)
        maximum, sums, tracked = lax.fori_loop(0, block_size // size, one, (before, none, tracked))
        return maximum, jax.tree.map(jnp.add, _rescaled(total, before, maximum), sums), tracked

    nothing = jnp.full((queries, size), -jnp.inf, jnp.float32)
    tracked = nothing, jnp.zeros((queries, size), jnp.int32), nothing
    start = jnp.full(queries, -jnp.inf, jnp.float32), _no_sums(settings, queries, depth), tracked
    maximum, total, tracked = lax.fori_loop(0, share // block_size, block, start)
    out["max"][0, :], out["reference"][0, :] = maximum, _reference(maximum)
    for name, value in total.items():
        out[name][...] = value[None]
    for name, value in zip(_TRACKED, tracked, strict=True):
        out[name][...] = value[:, None]


def _scalar_sums(settings: Settings) -> tuple[str, ...]:
    return ("normaliser", "logit", "square", "squared") if settings.scalars else ("normaliser",)


def _no_sums(settings: Settings, queries: int, depth: int) -> dict[str, jax.Array]:
    sums = {name: jnp.zeros(queries, jnp.float32) for name in _scalar_sums(settings)}
    return sums | {"sum": jnp.zeros((queries, depth), jnp.float32)}


def _reference(maximum: jax.Array) -> jax.Array:
    """What weights are relative to: 15 below the maximum, unless that is so large that 15 would round to more."""
    finite = jnp.where(maximum == -jnp.inf, 0.0, maximum)
    return finite - jnp.where(jnp.abs(finite) < 2.0**20, float(LARGEST), 0.0)


def _rescaled(sums: dict[str, jax.Array], before: jax.Array, maximum: jax.Array) -> dict[str, jax.Array]:
    """Sums relative to a larger maximum than before."""
    # The 15 may come off on the way; without rows before, the sums are zero.
    gap = jnp.where(before == -jnp.inf, 0.0, _reference(before) - _reference(maximum))
    scale = jnp.exp2(gap)
    result = {name: value * (scale if value.ndim == 1 else scale[:, None]) for name, value in sums.items()}
    if "logit" in sums:
        result["logit"] = scale * (sums["logit"] + gap * sums["normaliser"])
        result["squared"] = result["squared"] * scale
    return result


def stream(settings: Settings, query: Query, rows: Rows) -> tuple[Moments, Candidates]:
    """One pass over all rows, as `dense.stream`; float32, at most `MAX_DIMENSION` dimensions.

    Compiled for a GPU, whatever the process runs on; on any other platform interpreted, for tests: slowly.

    Returned in float64, as what is relative to a maximum has to stay so when logits change their unit: late in time a
    float32 logit of ten million keeps whole nats.
    """
    # The kernel knows no 64-bit types; whoever calls may be inside the float64 island.
    with jax.enable_x64(False):
        out, scale = _run(settings, query, rows)
    with jax.enable_x64(True):
        return _in_nats(settings, out, scale.astype(jnp.float64), query.x.shape[0], rows.dimension)


def _padded(value: jax.Array, count: int, fill: float = 0) -> jax.Array:
    return jnp.pad(value, ((0, count - len(value)), *((0, 0),) * (value.ndim - 1)), constant_values=fill)


def _run(settings: Settings, query: Query, rows: Rows) -> tuple[dict[str, jax.Array], jax.Array]:
    """What the kernel leaves, [shares, padded queries, ...] each, and the scale of the points."""
    b, d, n = query.x.shape[0], rows.dimension, rows.count
    depth = max(1 << (d - 1).bit_length(), _LEAST_DEPTH)
    size = tile_rows(depth)
    num_queries = -(-b // QUERIES) * QUERIES
    shares = max(_PROGRAMS * QUERIES // max(num_queries, 1), LEAST_COLUMNS // size)
    shares = min(shares, _WIDEST // size)
    unit = BLOCK_SIZE if n >= shares * BLOCK_SIZE else size
    share = -(-n // (shares * unit)) * unit
    shares = -(-n // share)
    num_rows = shares * share

    of_queries: dict[str, jax.Array] = {}
    of_rows: dict[str, jax.Array] = {}
    points = to_float(rows.data.reshape(n, d))
    if rows.centre is not None:
        points = points - rows.centre
    scale = scale_of(rows.max_norm)
    scaled = jnp.pad(points * scale, ((0, num_rows - n), (0, depth - d)))
    of_rows["y0"], of_rows["y1"] = split(scaled)
    bias = jnp.zeros(n, jnp.float32) if rows.log_weights is None else rows.log_weights * _LOG2_E
    of_rows |= {"bias": _padded(bias, num_rows, -jnp.inf), "squares": _padded(rows.square_norms, num_rows)}
    if uses_direct_differences(d):
        of_queries |= {f"x{k}": query.x[:, k] for k in range(d)}
        of_queries |= {"alpha": query.alpha, "c": 0.5 * _LOG2_E / query.sigma**2}
        of_queries["zero"] = jnp.zeros((b, depth), jnp.float16)
        of_rows |= {f"column{k}": _padded(points[:, k], num_rows) for k in range(d)}
    else:
        theta, c = natural_parameters(query)
        theta = jnp.pad(theta, ((0, 0), (0, depth - d)))
        large = scale_of(jnp.max(jnp.abs(theta), 1))
        of_queries["theta0"], of_queries["theta1"] = split(theta * large[:, None])
        of_queries |= {"c": c * _LOG2_E, "scale": _LOG2_E / (large * scale)}
    if query.labels is not None and rows.labels is not None:
        of_queries["query_labels"] = query.labels
        of_rows["labels"] = _padded(rows.labels, num_rows)
    of_queries = {name: _padded(value, num_queries) for name, value in of_queries.items()}
    inputs = of_queries | of_rows

    def spec(name, value):
        if name in of_queries:
            return pl.BlockSpec((QUERIES, *value.shape[1:]), lambda i, j: (i, *(0,) * (value.ndim - 1)))
        return pl.BlockSpec(value.shape, lambda i, j: (0,) * value.ndim)

    scalar = jax.ShapeDtypeStruct((shares, num_queries), jnp.float32)
    shapes: dict[str, Any] = dict.fromkeys(("max", "reference", *_scalar_sums(settings)), scalar)
    shapes["sum"] = jax.ShapeDtypeStruct((shares, num_queries, depth), jnp.float32)
    for name in _TRACKED:
        kind = jnp.int32 if name == "where" else jnp.float32
        shapes[name] = jax.ShapeDtypeStruct((num_queries, shares, size), kind)

    def out_spec(name, shape):
        if name in _TRACKED:
            return pl.BlockSpec((QUERIES, 1, size), lambda i, j: (i, j, 0))
        width = shape.shape[2:]
        return pl.BlockSpec((1, QUERIES, *width), lambda i, j: (j, i, *(0,) * len(width)))

    def kernel(interpret, *refs):
        _kernel(
            settings,
            d,
            share,
            interpret,
            dict(zip(inputs, refs[: len(inputs)], strict=True)),
            dict(zip(shapes, refs[len(inputs) :], strict=True)),
        )

    def call(interpret: bool, *values):
        return pl.pallas_call(
            functools.partial(kernel, interpret),
            grid=(num_queries // QUERIES, shares),
            in_specs=[spec(name, value) for name, value in inputs.items()],
            out_specs=[out_spec(name, shape) for name, shape in shapes.items()],
            out_shape=list(shapes.values()),
            compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=2),
            interpret=interpret,
            name="flowjax_stream",
        )(*values)

    results = lax.platform_dependent(
        *inputs.values(), cuda=functools.partial(call, False), default=functools.partial(call, True)
    )
    return dict(zip(shapes, results, strict=True)), scale


def _in_nats(
    settings: Settings, out: dict[str, jax.Array], scale: jax.Array, b: int, d: int
) -> tuple[Moments, Candidates]:
    """Shares merged, scales undone, logits in nats; all float64."""
    shares = out["max"].shape[0]
    # Weights and all sums of them are relative to the kernel's reference, not to the maximum.
    high = {name: value[:, :b].astype(jnp.float64) for name, value in out.items() if name in _SUMS}
    below = jnp.where(high["max"] == -jnp.inf, 0.0, high["max"] - high["reference"])
    unit = jnp.exp2(-below)
    scalars = None
    if settings.scalars:
        logit = _LN_2 * unit * (high["logit"] - below * high["normaliser"])
        scalars = Scalars(logit, unit * high["square"], unit**2 * high["squared"])
    largest = _LN_2 * high["max"]
    weighted = (unit / scale)[..., None] * high["sum"][..., :d]
    parts = Moments(largest, unit * high["normaliser"], weighted, scalars)
    maximum = jnp.max(largest, 0)
    scaled = jax.vmap(moments.rescale, in_axes=(0, None))(parts, maximum)
    total = dataclasses.replace(jax.tree.map(lambda leaf: jnp.sum(leaf, 0), scaled), max=maximum)

    size = out["best"].shape[2]
    best, where, second = (out[name][:b].reshape(b, shares * size) for name in _TRACKED)
    # The start of a tile and the column make the row; `select` adds the number of the column among all.
    where = where - jnp.repeat(jnp.arange(shares, dtype=jnp.int32) * size, size)
    found = select(settings, best, where, second, top_k)
    nats = (_LN_2 * value.astype(jnp.float64) for value in (found.logit, found.rest))
    return total, Candidates(found.index_bits, *nats)


def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of float32 [b, m]: a GPU's sorts each row, which takes a third of a millisecond for 32 768 of 256."""
    with jax.enable_x64(False):
        return _top_k(values, k)


def _top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    b, m = values.shape
    width = 1 << (m - 1).bit_length()
    tile = max(1, _TOP_K_ENTRIES // width)
    rows = -(-b // tile) * tile
    padded = jnp.pad(values, ((0, rows - b), (0, width - m)), constant_values=-jnp.inf)

    def kernel(values, logit, column):
        left = values[:, :]
        columns = lax.broadcasted_iota(jnp.int32, left.shape, 1)
        for i in range(k):
            largest = jnp.max(left, 1)
            place = jnp.min(jnp.where(left == largest[:, None], columns, m - 1), 1)
            logit[:, i], column[:, i] = largest, place
            left = jnp.where(columns == place[:, None], -jnp.inf, left)

    def call(interpret: bool, values):
        return pl.pallas_call(
            kernel,
            grid=(rows // tile,),
            in_specs=[pl.BlockSpec((tile, width), lambda i: (i, 0))],
            out_specs=[pl.BlockSpec((tile, k), lambda i: (i, 0))] * 2,
            out_shape=[jax.ShapeDtypeStruct((rows, k), kind) for kind in (jnp.float32, jnp.int32)],
            compiler_params=plgpu.CompilerParams(num_warps=4),
            interpret=interpret,
            name="flowjax_top_k",
        )(values)

    logit, column = lax.platform_dependent(
        padded, cuda=functools.partial(call, False), default=functools.partial(call, True)
    )
    return logit[:b], column[:b]


def _roundings(settings: Settings, num_rows: int) -> int:
    """Within a tile, and four a tile and a block."""
    within = max(
        size + 4 * (BLOCK_SIZE // size) for size in map(tile_rows, (MAX_DIMENSION // 2, MAX_DIMENSION))
    )
    return within + 4 * -(-num_rows // BLOCK_SIZE)


PASSES = {"float32": Pass(stream, UNIT, _roundings, differentiable=False)}
