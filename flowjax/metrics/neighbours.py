"""Distance of samples to the training data: is a sample new, or a copy?

References:
    Bertrand et al., arXiv 2506.03719 (memorised: nearest distance below a third of the second nearest);
    Gu et al., arXiv 2310.02664 (the 2/3 variant).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..closed_form.rows import to_float

SPARE_CANDIDATES = 6  # measured beside the ones asked for, so that rounding seldom leaves a doubt
QUERY_BLOCK = 1024
GROUP = 64  # columns whose minimum is taken before candidates are sorted: sorting all of them costs more
DIRECT_SIZE = 32  # up to this event size differences cost no more than products, and lose nothing


class Nearest(NamedTuple):
    """Distances of m samples to their two nearest data points (Euclidean, over the flattened event).

    Attributes:
        nearest: [m] float32.
        second: [m] float32; inf where the data has a single point.
        index: [m] int64, row of the nearest.
    """

    nearest: np.ndarray
    second: np.ndarray
    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]


class Neighbours(NamedTuple):
    """The k nearest data points of m samples, nearest first (Euclidean, over the flattened event).

    Attributes:
        distances: [m, k] float32; inf where the data has fewer than k points.
        index: [m, k] int64, rows of the data; −1 where it has fewer than k points.
    """

    distances: np.ndarray
    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]

    def merge(self, other: "Neighbours") -> "Neighbours":
        """The k nearest of two parts of the data, for the same samples: associative, exact.

        Rows must be numbered through all parts: see `first_row` of `nearest_neighbours`.

        Raises:
            ValueError: neighbours of other samples, or of another number k.
        """
        if self.index.shape != other.index.shape:
            raise ValueError(
                f"neighbours of shape {self.index.shape} and {other.index.shape} cannot be merged; "
                "take the same samples and the same k"
            )
        distances = np.concatenate([self.distances, other.distances], axis=1)
        index = np.concatenate([self.index, other.index], axis=1)
        order = np.lexsort((index, distances), axis=1)[:, : self.index.shape[1]]
        return Neighbours(np.take_along_axis(distances, order, 1), np.take_along_axis(index, order, 1))


def nearest_distances(samples: Any, data: Any, *, block_size: int = 4096) -> Nearest:
    """Nearest and second-nearest data point of every sample: `nearest_neighbours` with k = 2.

    A sample that equals a data point is at distance exactly 0, and a point that is twice in the data is its own
    second nearest. Arguments and errors are those of `nearest_neighbours`.
    """
    distances, index = nearest_neighbours(samples, data, 2, block_size=block_size)
    return Nearest(distances[:, 0].copy(), distances[:, 1].copy(), index[:, 0].copy())


def nearest_neighbours(
    samples: Any, data: Any, k: int, *, block_size: int = 4096, first_row: int = 0
) -> Neighbours:
    """The k nearest data points of every sample.

    One matrix product a block finds k + 6 candidates, which are measured again by direct differences, so a
    sample that equals a data point is at distance exactly 0. A rounding bound says whether one more could have
    been nearer; samples for which it could are compared with every row by direct differences (so are all
    samples of at most 32 numbers).

    Args:
        samples: [m, *event], uint8 (meaning y/127.5 − 1) or floating point, host or device.
        data: [n, *event], likewise; stays where it is and is converted block by block.
        k: how many; of equally near ones the first rows.
        block_size: data rows at a time; memory beyond the data is about (1024 + event size)·block_size floats.
        first_row: number of the first data row, where `data` is one part of many.

    Raises:
        ValueError: no samples' shape, empty data, other event shapes, NaN or infinite entries, k < 1.
        TypeError: dtypes that hold no points.
    """
    samples, data = _points("samples", samples), _points("data", data)
    if samples.shape[1:] != data.shape[1:]:
        raise ValueError(f"samples have the event shape {samples.shape[1:]}, but the data {data.shape[1:]}")
    if len(data) == 0:
        raise ValueError("the data is empty, so nothing is nearest")
    if block_size < 1:
        raise ValueError(f"{block_size=} must be positive")
    if k < 1:
        raise ValueError(f"{k=} must be positive")
    block_size = min(block_size, len(data))
    centre, radius = _centre(data, block_size)
    distances = np.full((len(samples), k), np.inf, np.float32)
    index = np.full((len(samples), k), -1, np.int64)
    count = min(k, len(data))
    for start in range(0, len(samples), QUERY_BLOCK):
        rows = slice(start, start + QUERY_BLOCK)
        found = _nearest_of_block(samples[rows], data, count, block_size, centre, radius)
        distances[rows, :count], index[rows, :count] = found[0], found[1] + first_row
    return Neighbours(distances, index)


def memorised_fraction(nearest: Any, second: Any, ratio: float = 1 / 3) -> float:
    """Share of samples whose nearest data point is nearer than `ratio` times the second nearest.

    Where both are 0 the sample equals a point that the data holds twice: a copy, counted as memorised
    although 0 < ratio·0 is false. Where the second is infinite (data of one point) every sample counts.

    Args:
        nearest, second: [m] distances.
        ratio: in (0, 1]; 1/3 in arXiv 2506.03719, 2/3 in arXiv 2310.02664.

    Raises:
        ValueError: no samples, shapes that differ, NaN, negative or swapped distances, ratio outside (0, 1].
    """
    nearest, second = np.asarray(nearest, np.float64), np.asarray(second, np.float64)
    if nearest.shape != second.shape or nearest.ndim != 1 or not nearest.size:
        raise ValueError(
            f"nearest and second have the shapes {nearest.shape} and {second.shape}, "
            "but one distance of each a sample is wanted, and at least one sample"
        )
    if not 0 < ratio <= 1:
        raise ValueError(f"{ratio=} must be in (0, 1]")
    if not ((nearest >= 0) & (nearest <= second)).all():
        raise ValueError("distances must satisfy 0 ≤ nearest ≤ second; NaN or swapped arguments do not")
    return float(np.mean((nearest < ratio * second) | (nearest == 0)))


def _points(name: str, values: Any):
    """[m, *event] as it is stored, checked: a real dtype, at least one event axis of positive size, finite."""
    if not isinstance(values, jax.Array):
        values = np.asarray(values)
    if values.dtype != np.uint8 and not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"{name} have dtype {values.dtype}, but points are uint8 or floating point")
    if values.ndim < 2 or 0 in values.shape[1:]:
        raise ValueError(f"{name} have shape {values.shape}, but one point a row is wanted: [points, *event]")
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    return values


def _rows(values, start: int, size: int) -> jax.Array:
    """At most `size` rows from `start` as [r, d] float32 on the device."""
    size = min(size, len(values) - start)
    if isinstance(values, jax.Array):  # one compilation for all starts, which slicing would not be
        block = jax.lax.dynamic_slice_in_dim(values, start, size)
    else:
        block = jnp.asarray(values[start : start + size])
    return to_float(block).reshape(size, math.prod(values.shape[1:]))


def _centre(data, block_size: int) -> tuple[jax.Array, float]:
    """Mean of the data [d] and the largest distance from it: the screen's rounding error grows with distance.

    Raises:
        ValueError: data that is not finite; NaN would hide here and lose every comparison later.
    """
    total = 0.0
    for start in range(0, len(data), block_size):
        total = total + np.asarray(_rows(data, start, block_size).sum(axis=0), np.float64)
    if not np.isfinite(total).all():
        raise ValueError("the data holds NaN or infinite entries; leave those points out before measuring")
    centre = jnp.asarray(total / len(data), jnp.float32)
    radius = max(
        float(jnp.linalg.norm(_rows(data, start, block_size) - centre, axis=1).max())
        for start in range(0, len(data), block_size)
    )
    return centre, radius


def _nearest_of_block(samples, data, count: int, block_size: int, centre: jax.Array, radius: float):
    """Distances [m, count] and rows [m, count] of at most QUERY_BLOCK samples."""
    queries = _rows(samples, 0, len(samples))
    if not bool(jnp.isfinite(queries).all()):
        raise ValueError("the samples hold NaN or infinite entries; leave those out before measuring")
    size = queries.shape[1]
    kept = min(count + SPARE_CANDIDATES, len(data))
    if size <= DIRECT_SIZE:
        _, candidates = _screen(_direct_scores, queries, data, kept, block_size, centre)
        return _measure(queries, data, candidates, count)
    scores, candidates = _screen(_product_scores, queries, data, kept, block_size, centre)
    distances, index = _measure(queries, data, candidates, count)
    norms = np.linalg.norm(np.asarray(queries - centre, np.float64), axis=1)
    unseen = norms**2 + scores[:, -1] - rounding(size) * (norms + 1.001 * radius) ** 2
    last = distances[:, -1].astype(np.float64)
    doubtful = np.flatnonzero((last**2 * (1 + 2 * rounding(size)) > unseen) & (last > 0))
    if len(data) > kept and len(doubtful):
        padded = np.resize(doubtful, -(-len(doubtful) // GROUP) * GROUP)  # few shapes, few compilations
        rest = queries[padded]
        _, candidates = _screen(_direct_scores, rest, data, kept, block_size, centre)
        distances[padded], index[padded] = _measure(rest, data, candidates, count)
    return distances, index


def rounding(size: int) -> float:
    """γ-bound of ‖y‖² − 2x·y and of differences, `size` entries in float32 (Higham, Accuracy and Stability, §3)."""
    return (size + 8) * float(np.finfo(np.float32).eps) / 2


def _screen(score, queries: jax.Array, data, kept: int, block_size: int, centre: jax.Array):
    """The `kept` smallest scores of every query, ascending, and their rows: [m, kept] twice, on the host."""
    best = jnp.full((len(queries), kept), jnp.inf), jnp.zeros((len(queries), kept), jnp.int32)
    for start in range(0, len(data), block_size):
        best = _merge_block(best, score, queries, _rows(data, start, block_size), centre, start)
    return np.asarray(best[0], np.float64), np.asarray(best[1])


def _measure(queries: jax.Array, data, candidates: np.ndarray, count: int):
    """The `count` nearest candidates by direct differences; of equals the first row wins."""
    exact = np.stack(
        [np.asarray(_distance(queries, _gather(data, column))) for column in candidates.T], axis=1
    )
    order = np.lexsort((candidates, exact), axis=1)[:, :count]
    return np.take_along_axis(exact, order, 1), np.take_along_axis(candidates, order, 1).astype(np.int64)


def _gather(data, index: np.ndarray) -> jax.Array:
    """Rows of the data [m, d] as float32 on the device."""
    return to_float(jnp.asarray(data[index])).reshape(len(index), math.prod(data.shape[1:]))


@jax.jit
def _distance(first: jax.Array, second: jax.Array) -> jax.Array:
    """[m] distances of rows to rows, exactly 0 where they are equal."""
    return jnp.sqrt(jnp.sum((first - second) ** 2, axis=1))


def _product_scores(queries: jax.Array, rows: jax.Array, centre: jax.Array) -> jax.Array:
    """‖x − y‖² − ‖x‖² [m, r] by one matrix product, all about the centre."""
    x, y = queries - centre, rows - centre
    return jnp.sum(y * y, axis=1) - 2 * jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def _direct_scores(queries: jax.Array, rows: jax.Array, centre: jax.Array) -> jax.Array:
    """‖x − y‖² [m, r] by differences, one query at a time so that memory stays at [r, d]."""
    return jax.lax.map(lambda x: jnp.sum((x - rows) ** 2, axis=1), queries)


@functools.partial(jax.jit, static_argnums=1)
def _merge_block(best, score, queries: jax.Array, rows: jax.Array, centre: jax.Array, start):
    """The candidates with the smallest scores among those so far and those of one more block."""
    scores = score(queries, rows, centre)
    scores = jnp.pad(scores, ((0, 0), (0, -len(rows) % GROUP)), constant_values=jnp.inf)
    # the k smallest entries lie in the k groups with the smallest minima
    groups = scores.reshape(len(queries), -1, GROUP)
    count = best[0].shape[1]
    _, chosen = jax.lax.top_k(-groups.min(axis=2), min(count, groups.shape[1]))
    values = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(len(queries), -1)
    index = (chosen[:, :, None] * GROUP + jnp.arange(GROUP)).reshape(len(queries), -1)
    values = jnp.concatenate([best[0], values], axis=1)
    index = jnp.concatenate([best[1], index.astype(jnp.int32) + start], axis=1)
    values, order = jax.lax.top_k(-values, count)
    return -values, jnp.take_along_axis(index, order, axis=1)
