"""What a pass over all rows is given and gives, and the passes there are.

The logit of row i seen from a query is, with x and y_i relative to the field's centre and the constant
−‖x‖²/(2 sigma²) left out,

    (1)  l_i = theta·y_i − c ‖y_i‖² + log w_i        theta = alpha x/sigma²,   c = alpha²/(2 sigma²)

In few dimensions it is −‖x − alpha y_i‖²/(2 sigma²) + log w_i, from direct differences: the exponentials cost more
there, and nothing cancels.

Beside the moments a pass remembers, in every column of a block, the best row seen there and the best of all
others. From these come the `Candidates`: the few rows that may carry the weight when it concentrates, to be
re-scored exactly, and an upper bound of everything else.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from flowjax.typing import Array, Flat, Float, Indices, Int, PerCandidate, PerQuery, typed

from .moments import Moments
from .rows import Rows

DIRECT_DIMENSIONS = 8
"""Up to this many dimensions logits come from direct differences, one fused loop over the block."""


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
class Pass:
    """A way to go over all rows, and what the error analysis may count on.

    Attributes:
        run: the pass itself, from settings, queries and rows to `Moments` of the logits and `Candidates`.
        unit: unit roundoff of its products and sums, for `certificate`.
        roundings: from settings and the number of rows to the roundings on a term's way through a sum over all rows.
        dtype: of the queries that it takes.
        differentiable: whether the derivative rule of `dense.stream` may rest on its results. Else float32 products
            take its place where derivatives are taken: what a derivative is relative to, the maximum and the
            normaliser, must come of the very logits and products that its sums are made of, or late in time one
            outgrows the other.
    """

    run: "Callable[[Settings, Query, Rows], tuple[Moments, Candidates]]"
    unit: float
    roundings: "Callable[[Settings, int], int]"
    dtype: DTypeLike = jnp.float32
    differentiable: bool = True


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
    """The module that holds the pass."""
    unrolled: bool = False
    """Whether candidates are re-scored all at once: on a GPU, where a loop over them is dozens of small kernels."""

    @property
    def how(self) -> Pass:
        return passes_of(self.backend)[self.precision]

    @property
    def dtype(self) -> DTypeLike:
        return self.how.dtype

    @property
    def unit(self) -> float:
        return self.how.unit

    def roundings(self, num_rows: int) -> int:
        return self.how.roundings(self, num_rows)


@functools.cache
def passes_of(backend: str) -> Mapping[str, Pass]:
    """The passes of a backend by precision. Imported when asked for: nobody else needs Pallas."""
    return importlib.import_module(f".{backend}", __package__).PASSES


def uses_direct_differences(dimension: int) -> bool:
    return dimension <= DIRECT_DIMENSIONS


@typed
def natural_parameters(query: Query) -> tuple[Flat, PerQuery]:
    """theta [b, d] and c [b] of equation (1)."""
    scale = query.alpha / query.sigma**2
    return scale[:, None] * query.x, query.alpha * scale / 2


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
