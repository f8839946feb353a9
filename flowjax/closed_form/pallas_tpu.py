"""The pass over all rows as one TPU kernel: logits, online softmax and sums of a block without leaving VMEM.

The grid is query tiles × row blocks; a tile's running maximum, normaliser, weighted sum, scalar moments and candidates
stay in VMEM while the rows stream past. What XLA writes to memory between the two products of a block, the logits and
the weights, is never stored: that is what the kernel gains, and it is most where the products are short. Derivatives
are those of `dense.stream`, whose rule calls this pass only for the primal.

Precision. A TPU multiplies bfloat16 and adds in float32, so a float32 value is split into three bfloat16 pieces whose
sum it is exactly, each the rounding of what the ones before leave: |x₂| ≤ 2⁻⁸|x|, |x₃| ≤ 2⁻¹⁶|x|. Six of the nine
products are formed (x₁y₁, x₁y₂, x₁y₃, x₂y₁, x₂y₂, x₃y₁); those left out are below 2.01·2⁻²⁴|xy|. Rows stored as
bfloat16 and not centred are one piece, and three products are all there are. Products of pieces are exact in float32,
so with u = 2⁻²⁴ and float32 additions in any order a product over d dimensions errs by

    (1)  |computed − true| ≤ u ‖x‖‖y‖ (1.05 d + 4)

since x₁y₁ is added up apart from the corrections, which are 2⁻⁸ as large and five times as many.

Layout. A block of rows is transposed to [d, rows], its pieces stacked along the first axis: for few dimensions,
where a product over d would leave most of the matrix unit idle, the pieces share one product.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .moments import Moments, Scalars
from .passes import Candidates, Pass, Query, Settings, natural_parameters, select, uses_direct_differences
from .rows import Rows, to_float

LANES = 128
"""Width of a vector register; sums over rows and candidates are kept apart in so many columns."""

_PACKING = 16
"""Rows of a bfloat16 register tile: pieces are stacked at multiples of it."""

MAX_DIMENSION = 512
"""Above it the products take nearly all the time, and XLA's own do it."""

_VMEM_BYTES = 96 * 2**20


def tiles(num_queries: int, dimension: int, block_size: int) -> tuple[int, int]:
    """Queries and rows of one grid step, [bq, bn].

    Larger is better until registers or VMEM run out; rows in whole registers.
    """
    queries = 512 if dimension <= 512 else 256
    return min(queries, _round_up(num_queries, _PACKING)), _round_up(block_size, LANES)


def block_size(num_rows: int, dimension: int, requested: int | None) -> int:
    """Rows of a block, for `Settings`: a multiple of 128 where there are as many rows."""
    size = requested or (1024 if dimension <= 128 else 512 if dimension <= 512 else 256)
    return min(max(size // LANES, 1), max(num_rows // LANES, 1)) * LANES if num_rows >= LANES else num_rows


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three bfloat16 pieces with x₁ + x₂ + x₃ = x exactly, for float32 x of any shape.

    By integer arithmetic: XLA would take a conversion to bfloat16 and back for an identity and drop it.
    """
    first = _round(x)
    second = _round(x - first)
    third = x - first - second
    return first.astype(jnp.bfloat16), second.astype(jnp.bfloat16), third.astype(jnp.bfloat16)


def _round(x: jax.Array) -> jax.Array:
    """To the nearest bfloat16, as float32."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return lax.bitcast_convert_type((bits + 0x8000) & -0x10000, jnp.float32)


def _dot(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Axis 1 of a against `axis` of b, bfloat16 in, float32 out."""
    return lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def _kernel(settings: Settings, num_rows: int, refs: dict[str, Any], out: dict[str, Any]) -> None:
    """One query tile against one row block; the outputs are the accumulators."""
    step = pl.program_id(1)
    size, dimension = refs["data"].shape

    @pl.when(step == 0)
    def _():
        for name, ref in out.items():
            ref[...] = jnp.full_like(ref, -jnp.inf if name in ("max", "best", "second") else 0)

    seen = num_rows - step * size  # rows at and beyond it do not exist: nothing may come of what lies there
    points = _points(refs, seen)
    exact_rows = refs["data"].dtype == jnp.bfloat16 and "centre" not in refs
    pieces = (points.astype(jnp.bfloat16),) if exact_rows else _split(points)
    in_block = lax.broadcasted_iota(jnp.int32, (1, size), 1) < seen
    squares = jnp.where(in_block, refs["squares"][...], 0)
    bias = jnp.where(in_block, refs["log_weights"][...] if "log_weights" in refs else 0, -jnp.inf)
    if uses_direct_differences(dimension):
        logits = bias - refs["c"][...] * _square_differences(refs, points)
    else:
        logits = _logits(refs, pieces) + (bias - refs["c"][...] * squares)
    if "labels" in refs:
        logits = jnp.where(refs["query_labels"][...] == refs["labels"][...], logits, -jnp.inf)

    groups = [logits[:, start : start + LANES] for start in range(0, size, LANES)]
    best, where, second = out["best"][...], out["where"][...], out["second"][...]
    for k, group in enumerate(groups):
        second = jnp.maximum(second, jnp.minimum(best, group))
        where = jnp.where(group > best, step * size + k * LANES, where)
        best = jnp.maximum(best, group)
    out["best"][...], out["where"][...], out["second"][...] = best, where, second

    before = out["max"][...]
    # `best` has been through every row so far: its largest column is the running maximum.
    maximum = jnp.max(best, 1, keepdims=True)
    finite = jnp.where(maximum == -jnp.inf, 0, maximum)
    gap = jnp.where(before == -jnp.inf, 0, before - finite)
    scale = jnp.where(before == -jnp.inf, 0, jnp.exp(gap))
    out["max"][...] = maximum

    shifted = logits - finite
    weights = jnp.exp(shifted)
    normaliser = out["normaliser"][...]
    out["normaliser"][...] = scale * normaliser + _fold(weights)
    if settings.scalars:
        terms = jnp.where(weights > 0, weights * shifted, 0)
        out["logit"][...] = scale * (out["logit"][...] + gap * normaliser) + _fold(terms)
        out["square"][...] = scale * out["square"][...] + _fold(weights * squares)
        out["squared"][...] = scale * scale * out["squared"][...] + _fold(weights * weights)
    # Piece k of the weights goes with the first pieces of the rows; the parts are added outside.
    for k, weight in enumerate(_split(weights)):
        rows = jnp.concatenate(pieces[: len(pieces) - k] if len(pieces) > 1 else pieces)
        name = f"sum{k}"
        out[name][...] = scale * out[name][...] + _dot(weight, rows, 1)


def _points(refs: dict[str, Any], seen) -> jax.Array:
    """The block as centred float32 columns [d, rows] (d rounded up), zero where there is no row."""
    block = refs["data"][...]
    if block.dtype == jnp.uint8:
        block = block.astype(jnp.int32)
        points = (2 * block - 255).astype(jnp.float32) * jnp.float32(1 / 255)
    else:
        points = to_float(block)
    if "centre" in refs:
        points = points - refs["centre"][...]
    dimension = points.shape[1]
    columns = points.T
    columns = jnp.where(lax.broadcasted_iota(jnp.int32, columns.shape, 1) < seen, columns, 0)
    padding = _round_up(dimension, _PACKING) - dimension
    return jnp.pad(columns, ((0, padding), (0, 0))) if padding else columns


def _logits(refs: dict[str, Any], pieces: tuple[jax.Array, ...]) -> jax.Array:
    """theta·y, [bq, bn]: the leading product and the corrections apart."""
    return _dot(refs["leading"][...], pieces[0], 0) + _dot(refs["rest"][...], _right(pieces), 0)


def _right(pieces):
    """What `_left` goes with, stacked."""
    if len(pieces) == 1:
        return jnp.concatenate([pieces[0], pieces[0]])
    first, second, third = pieces
    return jnp.concatenate([second, third, first, second, first])


def _left(x: jax.Array, exact_rows: bool) -> tuple[jax.Array, jax.Array]:
    """Pieces of x [b, d]: the leading one and those of the corrections side by side."""
    first, second, third = _split(x)
    rest = [second, third] if exact_rows else [first, first, second, second, third]
    return first, jnp.concatenate(rest, 1)


def _square_differences(refs: dict[str, Any], points: jax.Array) -> jax.Array:
    """‖x − alpha y‖², [bq, bn], one dimension after the other."""
    x, alpha = refs["x"][...], refs["alpha"][...]
    terms = [(x[:, k : k + 1] - alpha * points[k : k + 1]) ** 2 for k in range(refs["data"].shape[1])]
    return functools.reduce(jnp.add, terms)


def _fold(values: jax.Array) -> jax.Array:
    """Sum [bq, bn] down to 128 columns."""
    return functools.reduce(jnp.add, [values[:, k : k + LANES] for k in range(0, values.shape[1], LANES)])


def stream(settings: Settings, query: Query, rows: Rows) -> tuple[Moments, Candidates]:
    """One pass over all rows, as `dense.stream`; float32, at most `MAX_DIMENSION` dimensions.

    Compiled for a TPU, whatever the process runs on; on any other platform interpreted, for tests: slowly.
    """
    # The kernel knows no 64-bit types; whoever calls may be inside the float64 island.
    with jax.enable_x64(False):
        return _stream(settings, query, rows)


def _stream(settings: Settings, query: Query, rows: Rows) -> tuple[Moments, Candidates]:
    b, d, n = query.x.shape[0], rows.dimension, rows.count
    tile, size = tiles(b, d, settings.block_size)
    padded = _round_up(b, tile)
    depth = _round_up(d, _PACKING)

    def per_query(value):
        value = value if value.ndim == 2 else value[:, None]
        return jnp.pad(value, ((0, padded - b), (0, 0)))

    data = rows.data
    if data.dtype == jnp.float16:  # not a type of the vector unit
        data = data.astype(jnp.float32)
    exact_rows = data.dtype == jnp.bfloat16 and rows.centre is None
    inputs: dict[str, jax.Array] = {}
    if uses_direct_differences(d):
        inputs |= {"x": per_query(query.x), "alpha": per_query(query.alpha)}
        inputs |= {"c": per_query(0.5 / query.sigma**2)}
    else:
        theta, c = natural_parameters(query)
        theta = jnp.pad(per_query(theta), ((0, 0), (0, depth - d)))
        inputs["leading"], inputs["rest"] = _left(theta, exact_rows)
        inputs["c"] = per_query(c)
    if query.labels is not None and rows.labels is not None:
        inputs |= {"query_labels": per_query(query.labels), "labels": rows.labels[None]}
    if rows.log_weights is not None:
        inputs["log_weights"] = rows.log_weights[None]
    if rows.centre is not None:
        inputs["centre"] = rows.centre[None]
    inputs |= {"data": data, "squares": rows.square_norms[None]}

    def spec(name, value):
        if name == "data":
            return pl.BlockSpec((size, d), lambda i, j: (j, 0))
        if name in ("squares", "log_weights", "labels"):
            return pl.BlockSpec((1, size), lambda i, j: (0, j))
        if name == "centre":
            return pl.BlockSpec((1, d), lambda i, j: (0, 0))
        return pl.BlockSpec((tile, value.shape[1]), lambda i, j: (i, 0))

    num_pieces = 1 if exact_rows else 3
    widths = {"max": 1, "normaliser": LANES, "best": LANES, "where": LANES, "second": LANES}
    if settings.scalars:
        widths |= {"logit": LANES, "square": LANES, "squared": LANES}
    widths |= {f"sum{k}": max(num_pieces - k, 1) * depth for k in range(3)}
    shapes = {
        name: jax.ShapeDtypeStruct((padded, width), jnp.int32 if name == "where" else jnp.float32)
        for name, width in widths.items()
    }

    def kernel(*refs):
        _kernel(
            settings,
            n,
            dict(zip(inputs, refs[: len(inputs)], strict=True)),
            dict(zip(shapes, refs[len(inputs) :], strict=True)),
        )

    def call(interpret: bool, *values):
        return pl.pallas_call(
            kernel,
            grid=(padded // tile, math.ceil(n / size)),
            in_specs=[spec(name, value) for name, value in inputs.items()],
            out_specs=[pl.BlockSpec((tile, width), lambda i, j: (i, 0)) for width in widths.values()],
            out_shape=list(shapes.values()),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES
            ),
            interpret=interpret,
            name="flowjax_stream",
        )(*values)

    results = lax.platform_dependent(
        *inputs.values(), tpu=functools.partial(call, False), default=functools.partial(call, True)
    )
    out = {name: value[:b] for name, value in zip(shapes, results, strict=True)}

    def total(name):
        return jnp.sum(out[name], 1)

    scalars = None
    if settings.scalars:
        scalars = Scalars(total("logit"), total("square"), total("squared"))
    # Smallest parts first.
    parts = [out[f"sum{k}"].reshape(b, -1, depth) for k in (2, 1, 0)]
    weighted = functools.reduce(
        jnp.add, [part[:, k] for part in parts for k in reversed(range(part.shape[1]))]
    )
    moments = Moments(out["max"][:, 0], total("normaliser"), weighted[:, :d], scalars)
    return moments, select(settings, out["best"], out["where"], out["second"])


def _roundings(settings: Settings, num_rows: int) -> int:
    """Within a block, and four a block, for a rescaling and an addition."""
    return settings.block_size + 1 + 4 * -(-num_rows // settings.block_size)


PASSES = {"float32": Pass(stream, 1.05 * 2.0**-24, _roundings)}
