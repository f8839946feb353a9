"""What screening stores of a data set: coordinates in a good basis, and norms of what they leave out.

For a matrix P [d, K] whose columns are orthonormal up to ‖PᵀP − I‖ ≤ delta, a row y (about the centre) is split as
y = P h + r with h = PᵀY rounded to float32 and r whatever is left, and a query as x = P a + rho in the same way. Then

    (1)  x·y = a·h + (Pᵀx − a)·h + a·(Pᵀr) + rho·r,    a·h = Σ_{i<k} a_i h_i + Σ_bands a_j·h_j

and every band and the tail are bounded by the product of their norms. The two terms in between are the defects of
basis and rounding: at most `row_defect` ‖x‖‖y‖ for the rows' and `query_defect` ‖x‖‖y‖ for the queries' part. Nothing
here relies on P being good, only how few rows survive does: P holds the leading principal directions of a sample.

Two tables hold the rows. The near one knows a quarter of the directions and serves queries late in time, which are
never projected on the others. The far one knows all of them and serves queries that would have too many rows left.
Four bands cut every octave between a table's first level and its last direction, so that each level's columns (its
bands, the tail, the squared norm, its coordinates) lie side by side.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flowjax.typing import Array, Flat, Float, Int, PerQuery, PerRow, Scalar, typed

from . import streamed
from .basis import basis_of
from .construct import Placement
from .dense import read_block
from .parts import row_specs
from .passes import uses_direct_differences
from .rows import Rows

BANDS_PER_OCTAVE = 4
LANES = 32
"""Rows whose survival is kept in one word."""

STREAMED_DIRECTIONS = 256
"""Of rows on the host: tables of 1.4 kB a row, half of a CIFAR-10 picture in uint8 and an eighth of one of 64 × 64."""

_BLOCK = 1024
_CHUNK = 128
"""Products of queries with P sum this many terms in float32 and the chunks in float64."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of M padded rows.

    Attributes:
        columns: [M, bands + 2 + coordinates] float32: norms of the bands (rounded up), norm of the tail (rounded up),
            squared norm, coordinates.
        levels: numbers of coordinates that a pass may use, ascending.
        edges: edges of the bands, from the first level to the last direction known; every level is one.
    """

    columns: Float[Array, "m width"]
    levels: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    edges: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def num_bands(self) -> int:
        return len(self.edges) - 1

    @property
    def directions(self) -> int:
        return self.edges[-1]

    @property
    def coordinates(self) -> int:
        return self.columns.shape[1] - self.num_bands - 2

    def span(self, coordinates: int) -> slice:
        """The columns of a bound with that many coordinates, which must be an edge: the bands from there on first."""
        return slice(self.edges.index(coordinates), self.num_bands + 2 + coordinates)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Screen:
    """What is kept of n rows padded to whole blocks, M = n rounded up.

    Attributes:
        basis: [chunks, chunk, K] float32, P with its d rows padded by zeros.
        first: [M, columns of the near table's levels] float32, those columns once more, compact; None if the table
            has no others.
        near: a quarter of the directions, for the cheap passes.
        far: all K of them, for the others.
        bias: [M] float32, log weights; −inf for padding.
        labels: [M] int32 or None; −1 for padding.
        delta: [] float32, upper bound of ‖PᵀP − I‖.
        row_defect: [] float32.
        count: n; over a mesh, of each device.
    """

    basis: Float[Array, "chunks chunk K"]
    first: Float[Array, "m columns"] | None
    near: Table
    far: Table
    bias: PerRow
    labels: Int[Array, "m"] | None
    delta: Scalar
    row_defect: Scalar
    count: int = dataclasses.field(metadata={"static": True})

    @property
    def nearest(self) -> Float[Array, "m columns"]:
        """The columns that the near table's passes read."""
        return self.near.columns if self.first is None else self.first

    @property
    def block(self) -> int:
        return min(_BLOCK, self.bias.shape[0])

    @property
    def num_blocks(self) -> int:
        return self.bias.shape[0] // self.block

    @property
    def passes(self) -> list[tuple[Table, int]]:
        """What there is to choose from, table and coordinates, cheapest first."""
        return [(table, k) for table in (self.near, self.far) for k in table.levels]

    @property
    def query_defect(self) -> Scalar:
        """`query_defect` of the module's text: rounding of x, of products of `chunk` terms (Higham §3.1) with columns
        of norm at most (1 + delta)^½, and of their sum."""
        _, chunk, directions = self.basis.shape
        return (1 + self.delta.astype(jnp.float64)) * (1.02 * 2.0**-24 * (chunk * directions**0.5 + 3))


def _near_layout(directions: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Levels, edges and number of coordinates of the near table, of K directions in all."""
    known = max(1, directions // 4)
    most = max(known >> 2, min(known, 64))
    levels = tuple(sorted({max(1, most >> 1), most}))
    return levels, _edges(levels, known), known


def _far_layout(directions: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Levels, edges and number of coordinates of the far table."""
    levels = tuple(sorted({max(1, directions >> shift) for shift in (2, 1, 0)}))
    return levels, _edges(levels, directions), directions


def _edges(levels: tuple[int, ...], directions: int) -> tuple[int, ...]:
    steps = sorted({*levels, directions})
    octaves = itertools.pairwise(steps)
    cuts = {
        round(v)
        for low, high in octaves
        for v in np.geomspace(low, high, 1 + BANDS_PER_OCTAVE * max(1, round(np.log2(high / low))))
    }
    return tuple(sorted({*steps, *cuts}))


def round_up(value: jax.Array) -> jax.Array:
    """float64 → a float32 not below it."""
    return (value * (1 + 2.0**-22)).astype(jnp.float32)


def band_norms(coordinates: Float[Array, "b K"], band_edges: tuple[int, ...]) -> Float[Array, "b bands"]:
    """Norms of the bands, in the dtype given."""
    if len(band_edges) < 2:
        return coordinates[:, :0]
    squares = [jnp.sum(coordinates[:, i:j] ** 2, 1) for i, j in itertools.pairwise(band_edges)]
    return jnp.sqrt(jnp.stack(squares, 1))


def can_screen(rows: Rows) -> bool:
    """Few dimensions have nothing to leave out, and a single row nothing to drop."""
    return not uses_direct_differences(rows.dimension) and rows.count > 1


def make_screen(rows: Rows, placement: Placement | None) -> Screen:
    """Basis and tables, on the device where the rows are: about n d (d + 4 K) multiplications, once.

    Rows over a mesh axis have their tables where they are. Those of streamed rows are small and on the device.
    """
    if streamed.is_streamed(rows):
        return _make_streamed_tables(rows, basis_of(rows, None, STREAMED_DIRECTIONS))
    basis = basis_of(rows, placement)
    if placement is None:
        return _make_tables(rows, basis)
    mesh, axis = placement
    tables = jax.eval_shape(_make_tables, rows, basis)  # for what is static in them
    specs = dataclasses.replace(screen_specs(tables, axis), count=rows.count // mesh.shape[axis])
    mapped = jax.shard_map(
        _make_tables,
        mesh=mesh,
        in_specs=(row_specs(rows, axis), jax.P()),
        out_specs=specs,
        axis_names={axis},
        check_vma=False,
    )
    return jax.jit(mapped)(rows, basis)


def screen_specs(screen: Screen, axis: str) -> Screen:
    """How tables lie over a mesh axis: partition specs in the places of arrays."""
    split, whole = jax.P(axis), jax.P()

    def table(table: Table) -> Table:
        return dataclasses.replace(table, columns=split)

    return Screen(
        basis=whole,  # type: ignore[arg-type]
        first=None if screen.first is None else split,  # type: ignore[arg-type]
        near=table(screen.near),
        far=table(screen.far),
        bias=split,  # type: ignore[arg-type]
        labels=None if screen.labels is None else split,  # type: ignore[arg-type]
        delta=whole,  # type: ignore[arg-type]
        row_defect=whole,  # type: ignore[arg-type]
        count=screen.count,
    )


def fits(screen: Screen, count: int, shards: int) -> bool:
    """Whether the tables are those of `count` rows on each of so many devices: data may have moved since.

    Their size alone does not tell: 10 000 rows have as many padded ones on one device as on five.
    """
    return screen.count == count and screen.bias.shape[0] == shards * _padded(count)


def _padded(count: int) -> int:
    block = min(_BLOCK, -(-count // LANES) * LANES)
    return -(-count // block) * block


@jax.jit
def _make_tables(rows: Rows, basis: Float[Array, "d K"]) -> Screen:
    with jax.enable_x64(True):
        delta = _defect(basis)
        padded = _padded(rows.count)
        block = min(_BLOCK, padded)

        def body(step):
            # The last block overlaps the one before it; moved into place below.
            size = min(block, rows.count)
            start = jnp.minimum(step * size, rows.count - size).astype(jnp.int32)
            columns = _columns(*read_block(rows, start, size, jnp.float64), basis, delta)
            moved = [jnp.roll(part, start - step * size, 0) for part in columns]
            return [jnp.pad(part, ((0, block - size), (0, 0))) for part in moved]

        columns = lax.map(body, jnp.arange(padded // block, dtype=jnp.int32))
        columns = [part.reshape(padded, -1) for part in columns]
        return _with_tables(columns, rows.log_weights, rows.labels, rows.count, basis, delta)


def _make_streamed_tables(rows: Rows, basis: Float[Array, "d K"]) -> Screen:
    """The same of rows on the host, block by block; twice the tables' size in host memory meanwhile, and a block."""
    with jax.enable_x64(True):
        delta = jax.jit(_defect)(basis)

        @jax.jit
        def columns_of(block: Rows, basis, delta):
            start = jnp.zeros((), jnp.int32)
            return _columns(*read_block(block, start, block.count, jnp.float64), basis, delta)

        tables: list[np.ndarray] = []
        for start, block in streamed.blocks(rows):
            size = min(_BLOCK, block.count)  # as float64 a block would be eight times as large
            for first in range(0, block.count, size):
                first = min(first, block.count - size)
                few = slice(first, first + size)
                piece = dataclasses.replace(block, data=block.data[few], square_norms=block.square_norms[few])
                parts = [np.asarray(part) for part in columns_of(piece, basis, delta)]
                if not tables:
                    tables = [np.zeros((_padded(rows.count), part.shape[1]), np.float32) for part in parts]
                for table, part in zip(tables, parts, strict=True):
                    table[start + first : start + first + size] = part
        log_weights, labels = (streamed.on_device(leaf) for leaf in (rows.log_weights, rows.labels))
        finish = jax.jit(_with_tables, static_argnums=3)
        return finish(tables, log_weights, labels, rows.count, basis, delta)


def _defect(basis: Float[Array, "d K"]) -> Scalar:
    """`delta` of the module's text, rounded up by more than float64 loses."""
    defect = jnp.einsum("dk,dl->kl", basis.astype(jnp.float64), basis.astype(jnp.float64))
    defect = defect - jnp.eye(basis.shape[1], dtype=jnp.float64)
    # ‖D‖ ≤ ‖D²‖_F^½, tighter than ‖D‖_F.
    return 1.001 * jnp.sqrt(jnp.linalg.norm(defect @ defect)) + 1e-12


def _columns(points: Flat, squares: PerRow, basis: Float[Array, "d K"], delta: Scalar) -> list[jax.Array]:
    """Columns of both tables of some rows, [m, width] float32 each."""
    exact = jnp.einsum("nd,dk->nk", points, basis.astype(jnp.float64))
    kept = exact.astype(jnp.float32).astype(jnp.float64)

    def columns(layout):
        _, band_edges, coordinates = layout
        a, h = exact[:, : band_edges[-1]], kept[:, : band_edges[-1]]
        tail = squares - 2 * jnp.sum(h * a, 1) + (1 + delta) * jnp.sum(h**2, 1)
        tail = jnp.sqrt(jnp.maximum(tail, 0) + (1e-12 + points.shape[1] * 2.0**-52) * squares)
        parts = [round_up(band_norms(h, band_edges)), round_up(tail)[:, None]]
        parts += [squares.astype(jnp.float32)[:, None], h[:, :coordinates].astype(jnp.float32)]
        return jnp.concatenate(parts, 1)

    return [columns(layout(basis.shape[1])) for layout in (_near_layout, _far_layout)]


def _with_tables(
    columns, log_weights, labels, count: int, basis: Float[Array, "d K"], delta: Scalar
) -> Screen:
    """A screen of the tables' columns [M, width], whose rows from `count` on stand for nothing."""
    padding = _padded(count) - count
    used = jnp.arange(_padded(count), dtype=jnp.int32) < count
    near, far = (
        Table(jnp.where(used[:, None], part, jnp.float32(0)), *layout(basis.shape[1])[:2])
        for part, layout in zip(columns, (_near_layout, _far_layout), strict=True)
    )
    weights = jnp.zeros(count, jnp.float32) if log_weights is None else log_weights
    bias = jnp.where(used, jnp.pad(weights, (0, padding)), jnp.float32(-jnp.inf))
    if labels is not None:
        labels = jnp.pad(labels, (0, padding), constant_values=-1)
    # P's rows in chunks; h is rounded once, and r is orthogonal to P up to that and delta.
    d, directions = basis.shape
    chunk = min(_CHUNK, d)
    chunks = jnp.pad(basis, ((0, -d % chunk), (0, 0))).reshape(-1, chunk, directions)
    row_defect = 1.01 * (1 + delta) * (2.0**-24 + delta)
    first = None
    if near.levels[-1] < near.coordinates:
        first = near.columns[:, : near.span(near.levels[-1]).stop]
    return Screen(chunks, first, near, far, bias, labels, round_up(delta), round_up(row_defect), count)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coefficients:
    """Queries in the basis, [b] and [b, K] float64 holding float32 values where said.

    Attributes:
        head: [b, K], a of equation (1), float32 values.
        tail: [b], upper bound of ‖rho‖.
        norm: [b], ‖x‖.
    """

    head: Float[Array, "b K"]
    tail: PerQuery
    norm: PerQuery


@typed
def project(screen: Screen, x: Flat, directions: int) -> Coefficients:
    """Coefficients of queries x [b, d] float64 relative to the centre. Inside the float64 island."""
    num_chunks, chunk, _ = screen.basis.shape
    low = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, num_chunks * chunk - x.shape[1])))
    low = low.reshape(x.shape[0], num_chunks, chunk).transpose(1, 0, 2)

    def body(total, pair):
        part = lax.dot_general(pair[0], pair[1], (((1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)
        return total + part.astype(jnp.float64), None

    start = jnp.zeros((x.shape[0], directions), jnp.float64)
    head, _ = lax.scan(body, start, (low, screen.basis[:, :, :directions]))
    head = head.astype(jnp.float32).astype(jnp.float64)
    norm = jnp.sqrt(jnp.sum(x**2, 1))
    size = jnp.sqrt(jnp.sum(head**2, 1))
    delta = screen.delta.astype(jnp.float64)
    tail = norm**2 - (1 - delta) * size**2 + 2 * screen.query_defect * size * norm
    return Coefficients(
        head, jnp.sqrt(jnp.maximum(tail, 0) + (1e-12 + x.shape[1] * 2.0**-52) * norm**2), norm
    )
