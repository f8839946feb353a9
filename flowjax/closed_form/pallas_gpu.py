"""The pass over all rows as one GPU kernel, for few dimensions: logits, online softmax and sums in registers.

Every program takes a tile of queries and a share of the rows, and keeps the tile's running maximum, normaliser,
weighted sum, scalar moments and candidates in registers while the rows stream past; the shares' results are merged
outside. XLA writes the logits and the weights of a block to memory between its dozen kernels, eight times over: in few
dimensions that is nearly all it does. Derivatives are those of `dense.stream`, whose rule calls this pass only for the
primal.

Precision. Tensor cores multiply float16 numbers exactly and add in float32 (their rounding: `Settings.unit`). Both
factors are scaled by powers of two, so that the largest entry lies near 2¹⁵, and split in two, x = x₁ + x₂, each the
rounding of what is left: |x − x₁ − x₂| ≤ 2⁻²⁴|x| + 2⁻²⁵, the second term where x₂ is subnormal, 2⁻⁴⁰ of the largest
entry. Three of the four products are formed (x₁y₁, x₁y₂, x₂y₁); with u = 2⁻²⁴ what pieces and the product left out
lose is

    (1)  3.1 u ‖x‖‖y‖,    u = 2⁻²⁴, in up to 128 dimensions

after Ootomo, Yokota, Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak
performance, IJHPCA 36(4), 2022; they scale the second pieces instead. Half the products of bfloat16's six, and of
those of tfloat32, which run at half the rate.

Logits are in units of log 2, as the hardware's exponential is to the base 2: its error, 3u of a weight, and those of
the conversion are among the constants of equation (1) of `certificate`. Weights are relative to 2¹⁵ at the running
maximum, for their pieces. Sums are taken tile by tile within a block of `BLOCK_SIZE` rows, and block by block.

The compiler is Pallas's for Triton: every shape in the kernel is a power of two, rows and queries are padded outside.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from . import dense, moments
from .dense import Candidates, Query, Rows, Settings
from .moments import Moments, Scalars
from .rows import to_float

MAX_DIMENSION = 128
"""Above it the weighted sum of a tile no longer fits in registers."""

BLOCK_SIZE = 1024
"""Rows summed apart from what came before, so that the bound of a sum does not grow with their number."""

QUERIES, ROWS, WARPS = 64, 32, 4
"""Of a tile, and warps that share it."""

_LEAST_DEPTH = 16
"""Of a product on tensor cores."""

_PROGRAMS = 1056
"""So many are wanted at least: eight for each of an H100's 132 processors."""

LEAST_COLUMNS = 256
"""Of which one candidate each is kept, where there are rows for them: two rows that matter in one column are certified
badly."""

_LARGEST = 15
"""Binary exponent of the largest entry of what is split; float16 ends at 2¹⁶."""

_LOG2_E, _LN_2 = float(np.log2(np.e)), float(np.log(2))


def roundings(num_rows: int) -> int:
    """`Settings.roundings` here: within a tile, and four a tile and a block."""
    return ROWS + 4 * (BLOCK_SIZE // ROWS) + 4 * -(-num_rows // BLOCK_SIZE)


def most_queries(dimension: int, num_candidates: int) -> int:
    """Queries of one call: their candidates in float64 stay below 256 MiB."""
    return (1 << 25) // (num_candidates * max(dimension, 16))


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two float16 pieces of float32 x, |x| < 2¹⁶."""
    first = x.astype(jnp.float16)
    return first, (x - first.astype(jnp.float32)).astype(jnp.float16)


def _scale(largest: jax.Array) -> jax.Array:
    """The power of two that brings `largest` (≥ 0) to 2¹⁴ … 2¹⁵; 1 for zero."""
    _, exponent = jnp.frexp(jnp.where(largest > 0, largest, 1))
    return jnp.ldexp(jnp.float32(1), _LARGEST - exponent)


def _product(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array], axis: int) -> jax.Array:
    """Axis 1 of pieces against `axis` of pieces, float32, the small products first."""

    def dot(a, b):
        return lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)

    return dot(left[0], right[0]) + (dot(left[0], right[1]) + dot(left[1], right[0]))


def _kernel(
    settings: Settings, dimension: int, share: int, refs: dict[str, Any], out: dict[str, Any]
) -> None:
    """One tile of queries against one share of the rows."""
    first = pl.program_id(1) * share
    direct = dense.uses_direct_differences(dimension)
    scale, c = refs["scale"][:][:, None], refs["c"][:][:, None]
    if direct:
        x = [refs[f"x{k}"][:][:, None] for k in range(dimension)]
        alpha = refs["alpha"][:][:, None]
    else:
        theta = refs["theta0"][:, :], refs["theta1"][:, :]
    query_labels = refs["query_labels"][:][:, None] if "query_labels" in refs else None
    queries, depth = c.shape[0], refs["y0"].shape[1]

    def tile(start, carry):
        maximum, sums, (best, where, second) = carry
        here = pl.ds(start, ROWS)
        squares, bias = refs["squares"][here][None], refs["bias"][here][None]
        points = refs["y0"][here, :], refs["y1"][here, :]
        if direct:
            terms = [(x[k] - alpha * refs[f"column{k}"][here][None]) ** 2 for k in range(dimension)]
            logits = bias - c * functools.reduce(jnp.add, terms)
        else:
            logits = _product(theta, points, 1) * scale + (bias - c * squares)
        if query_labels is not None:
            logits = jnp.where(query_labels == refs["labels"][here][None], logits, -jnp.inf)
        second = jnp.maximum(second, jnp.minimum(best, logits))
        where = jnp.where(logits > best, start, where)
        best = jnp.maximum(best, logits)

        before, maximum = maximum, jnp.maximum(maximum, jnp.max(logits, 1))
        sums = _rescaled(sums, before, maximum)
        shifted = (logits - _finite(maximum)[:, None]) + _LARGEST  # a large maximum would swallow the 15
        weights = jnp.exp2(shifted)
        sums["normaliser"] += jnp.sum(weights, 1)
        if settings.scalars:  # below −200 the weight is 0, and the logit may be −inf
            sums["logit"] += jnp.sum(weights * jnp.maximum(shifted, -200.0), 1)
            sums["square"] += jnp.sum(weights * squares, 1)
            sums["squared"] += jnp.sum(weights * weights, 1)
        sums["sum"] += _product(_split(weights), points, 0)
        return maximum, sums, (best, where, second)

    def block(step, carry):
        before, total, tracked = carry
        start = first + step * BLOCK_SIZE

        def one(k, inner):
            return tile(start + k * ROWS, inner)

        none = _no_sums(settings, queries, depth)
        maximum, sums, tracked = lax.fori_loop(0, BLOCK_SIZE // ROWS, one, (before, none, tracked))
        return maximum, jax.tree.map(jnp.add, _rescaled(total, before, maximum), sums), tracked

    nothing = jnp.full((queries, ROWS), -jnp.inf, jnp.float32)
    tracked = nothing, jnp.zeros((queries, ROWS), jnp.int32), nothing
    start = jnp.full(queries, -jnp.inf, jnp.float32), _no_sums(settings, queries, depth), tracked
    maximum, total, tracked = lax.fori_loop(0, share // BLOCK_SIZE, block, start)
    out["max"][0, :] = maximum
    for name, value in total.items():
        out[name][...] = value[None]
    for name, value in zip(("best", "where", "second"), tracked, strict=True):
        out[name][...] = value[None]


def _no_sums(settings: Settings, queries: int, depth: int) -> dict[str, jax.Array]:
    names = ("normaliser", "logit", "square", "squared") if settings.scalars else ("normaliser",)
    sums = {name: jnp.zeros(queries, jnp.float32) for name in names}
    return sums | {"sum": jnp.zeros((queries, depth), jnp.float32)}


def _finite(maximum: jax.Array) -> jax.Array:
    return jnp.where(maximum == -jnp.inf, 0.0, maximum)


def _rescaled(sums: dict[str, jax.Array], before: jax.Array, maximum: jax.Array) -> dict[str, jax.Array]:
    """Sums relative to a larger maximum than before."""
    gap = jnp.where(before == -jnp.inf, 0.0, before - _finite(maximum))
    scale = jnp.exp2(gap)  # no rows before: the sums are zero
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
        out, size = _run(settings, query, rows)
    with jax.enable_x64(True):
        return _in_nats(settings, out, size.astype(jnp.float64), query.x.shape[0], rows.dimension)


def _padded(value: jax.Array, count: int, fill: float = 0) -> jax.Array:
    return jnp.pad(value, ((0, count - len(value)), *((0, 0),) * (value.ndim - 1)), constant_values=fill)


def _run(settings: Settings, query: Query, rows: Rows) -> tuple[dict[str, jax.Array], jax.Array]:
    """What the kernel leaves, [shares, padded queries, ...] each, and the scale of the points."""
    b, d, n = query.x.shape[0], rows.dimension, rows.count
    depth = max(1 << (d - 1).bit_length(), _LEAST_DEPTH)
    num_queries = -(-b // QUERIES) * QUERIES
    blocks = -(-n // BLOCK_SIZE)
    shares = min(blocks, max(_PROGRAMS * QUERIES // max(num_queries, 1), LEAST_COLUMNS // ROWS))
    share = -(-blocks // shares) * BLOCK_SIZE
    shares = -(-n // share)
    num_rows = shares * share

    of_queries: dict[str, jax.Array] = {}
    of_rows: dict[str, jax.Array] = {}
    points = to_float(rows.data.reshape(n, d))
    if rows.centre is not None:
        points = points - rows.centre
    size = _scale(rows.max_norm)
    scaled = jnp.pad(points * size, ((0, num_rows - n), (0, depth - d)))
    of_rows["y0"], of_rows["y1"] = _split(scaled)
    bias = jnp.zeros(n, jnp.float32) if rows.log_weights is None else rows.log_weights * _LOG2_E
    of_rows |= {"bias": _padded(bias, num_rows, -jnp.inf), "squares": _padded(rows.square_norms, num_rows)}
    if dense.uses_direct_differences(d):
        of_queries |= {f"x{k}": query.x[:, k] for k in range(d)}
        of_queries |= {"alpha": query.alpha, "c": 0.5 * _LOG2_E / query.sigma**2, "scale": query.alpha}
        of_rows |= {f"column{k}": _padded(points[:, k], num_rows) for k in range(d)}
    else:
        theta, c = dense.natural_parameters(query)
        theta = jnp.pad(theta, ((0, 0), (0, depth - d)))
        large = _scale(jnp.max(jnp.abs(theta), 1))
        of_queries["theta0"], of_queries["theta1"] = _split(theta * large[:, None])
        of_queries |= {"c": c * _LOG2_E, "scale": _LOG2_E / (large * size)}
    if query.labels is not None and rows.labels is not None:
        of_queries["query_labels"] = query.labels
        of_rows["labels"] = _padded(rows.labels, num_rows)
    of_queries = {name: _padded(value, num_queries) for name, value in of_queries.items()}
    inputs = of_queries | of_rows

    def spec(name, value):
        if name in of_queries:
            return pl.BlockSpec((QUERIES, *value.shape[1:]), lambda i, j: (i, *(0,) * (value.ndim - 1)))
        return pl.BlockSpec(value.shape, lambda i, j: (0,) * value.ndim)

    names = ("max", "normaliser", "logit", "square", "squared") if settings.scalars else ("max", "normaliser")
    shapes = {name: jax.ShapeDtypeStruct((shares, num_queries), jnp.float32) for name in names}
    for name, width in (("sum", depth), ("best", ROWS), ("where", ROWS), ("second", ROWS)):
        kind = jnp.int32 if name == "where" else jnp.float32
        shapes[name] = jax.ShapeDtypeStruct((shares, num_queries, width), kind)

    def out_spec(shape):
        width = shape.shape[2:]
        return pl.BlockSpec((1, QUERIES, *width), lambda i, j: (j, i, *(0,) * len(width)))

    def kernel(*refs):
        _kernel(
            settings,
            d,
            share,
            dict(zip(inputs, refs[: len(inputs)], strict=True)),
            dict(zip(shapes, refs[len(inputs) :], strict=True)),
        )

    def call(interpret: bool, *values):
        return pl.pallas_call(
            kernel,
            grid=(num_queries // QUERIES, shares),
            in_specs=[spec(name, value) for name, value in inputs.items()],
            out_specs=[out_spec(shape) for shape in shapes.values()],
            out_shape=list(shapes.values()),
            compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=2),
            interpret=interpret,
            name="flowjax_stream",
        )(*values)

    results = lax.platform_dependent(
        *inputs.values(), cuda=functools.partial(call, False), default=functools.partial(call, True)
    )
    return dict(zip(shapes, results, strict=True)), size


def _in_nats(
    settings: Settings, out: dict[str, jax.Array], size: jax.Array, b: int, d: int
) -> tuple[Moments, Candidates]:
    """Shares merged, scales undone, logits in nats; all float64."""
    shares = out["max"].shape[0]
    unit = 2.0**-_LARGEST
    sums = {
        name: value[:, :b].astype(jnp.float64) * unit
        for name, value in out.items()
        if name not in ("best", "where", "second", "max")
    }
    scalars = None
    if settings.scalars:
        # Σ w l, of logits that have the 15 added that make the weights 2¹⁵ times as large.
        logit = _LN_2 * (sums["logit"] - _LARGEST * sums["normaliser"])
        scalars = Scalars(logit, sums["square"], unit * sums["squared"])
    largest = _LN_2 * out["max"][:, :b].astype(jnp.float64)
    parts = Moments(largest, sums["normaliser"], sums["sum"][..., :d] / size, scalars)
    maximum = jnp.max(largest, 0)
    scaled = jax.vmap(moments.rescale, in_axes=(0, None))(parts, maximum)
    total = dataclasses.replace(jax.tree.map(lambda leaf: jnp.sum(leaf, 0), scaled), max=maximum)

    def columns(name):
        return out[name][:, :b].swapaxes(0, 1).reshape(b, shares * ROWS)

    # The start of a tile and the column make the row; `select` adds the number of the column among all.
    where = columns("where") - jnp.repeat(jnp.arange(shares, dtype=jnp.int32) * ROWS, ROWS)
    found = dense.select(settings, columns("best"), where, columns("second"))
    nats = (_LN_2 * value.astype(jnp.float64) for value in (found.logit, found.rest))
    return total, Candidates(found.index_bits, *nats)
