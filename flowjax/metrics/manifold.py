"""Fidelity and diversity apart: which samples lie where the reference lies, and which of the reference is reached.

The support of a set is estimated by balls around its points, each reaching to the point's k-th nearest neighbour in the
set. Over balls B(y) of the reference and B(x) of the samples:

    precision = share of samples in some B(y)             recall   = share of the reference in some B(x)
    density   = mean number of B(y) that hold a sample / k    coverage = share of B(y) that hold some sample

References:
    Kynkäänniemi et al., arXiv 1904.06991 (precision, recall; k = 3);
    Naeem et al., arXiv 2002.09797 (density, coverage; k = 5).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .feature_set import two_sets
from .neighbours import SPARE_CANDIDATES, nearest_neighbours, rounding

_BLOCK = 2048
_PAIR_ENTRIES = 1 << 22  # of pairs measured at a time in float64


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density is at least 0 and about 1 between two draws of one distribution; coverage is in [0, 1]."""

    density: float
    coverage: float


def precision_recall(samples: Any, reference: Any, k: int = 3) -> PrecisionRecall:
    """Precision and recall of k-nearest-neighbour manifolds.

    Args:
        samples: [m, dim] features, or a `FeatureSet`.
        reference: [n, dim], likewise. Shares depend on m and n: compare equal numbers only.
        k: a point's ball reaches to its k-th nearest neighbour in its own set, itself not counted.

    Raises:
        ValueError: k < 1, fewer than k + 1 rows, different numbers of features, NaN or infinite features.
    """
    samples, reference = _sets(samples, reference, k, "precision and recall")
    in_reference, _ = count_in_balls(samples, reference, ball_radii(reference, k))
    in_samples, _ = count_in_balls(reference, samples, ball_radii(samples, k))
    return PrecisionRecall(float(np.mean(in_reference > 0)), float(np.mean(in_samples > 0)))


def density_coverage(samples: Any, reference: Any, k: int = 5) -> DensityCoverage:
    """Density and coverage: as precision and recall, with only the reference's balls, which outliers of it spoil less.

    Args:
        samples: [m, dim] features, or a `FeatureSet`.
        reference: [n, dim], likewise.
        k: a point's ball reaches to its k-th nearest neighbour in the reference, itself not counted.

    Raises:
        ValueError: k < 1, fewer than k + 1 rows, different numbers of features, NaN or infinite features.
    """
    samples, reference = _sets(samples, reference, k, "density and coverage")
    balls_of_sample, samples_of_ball = count_in_balls(samples, reference, ball_radii(reference, k))
    return DensityCoverage(float(np.mean(balls_of_sample) / k), float(np.mean(samples_of_ball > 0)))


def ball_radii(points: np.ndarray, k: int) -> np.ndarray:
    """Distance of every point [n, dim] to its k-th nearest other one, [n] float64; 0 where it has k duplicates."""
    num = min(len(points), k + 1 + SPARE_CANDIDATES)
    index = nearest_neighbours(points, points, num).index
    # float64 decides among the nearest: their float32 distances may be in another order
    rows = np.repeat(np.arange(len(points)), num)
    distances = _distances(points, rows, points, index.reshape(-1)).reshape(index.shape)
    return np.sort(distances, axis=1)[:, k]


def count_in_balls(
    samples: np.ndarray, centres: np.ndarray, radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many closed balls hold each sample, and how many samples each ball holds.

    Distances come from one matrix product a block with a rounding bound; pairs that the bound leaves open are measured
    by differences in float64, as the radii are, so that no pair is misjudged.

    Args:
        samples: [m, dim] float32.
        centres: [n, dim] float32.
        radii: [n] float64, of `ball_radii`.

    Returns:
        ([m], [n]) int64.
    """
    of_sample, of_ball = np.zeros(len(samples), np.int64), np.zeros(len(centres), np.int64)
    middle = jnp.asarray(centres.mean(axis=0, dtype=np.float64), jnp.float32)
    for i in range(0, len(samples), _BLOCK):
        block = jnp.asarray(samples[i : i + _BLOCK])
        for j in range(0, len(centres), _BLOCK):
            balls = jnp.asarray(centres[j : j + _BLOCK]), jnp.asarray(radii[j : j + _BLOCK], jnp.float32)
            inside, open_pairs = (np.asarray(part) for part in _compare(block, *balls, middle))
            rows, columns = np.nonzero(open_pairs)
            held = _distances(samples, i + rows, centres, j + columns) <= radii[j + columns]
            np.add.at(of_sample, i + rows[held], 1)
            np.add.at(of_ball, j + columns[held], 1)
            of_sample[i : i + _BLOCK] += inside.sum(axis=1)
            of_ball[j : j + _BLOCK] += inside.sum(axis=0)
    return of_sample, of_ball


@jax.jit
def _compare(samples: jax.Array, centres: jax.Array, radii: jax.Array, middle: jax.Array):
    """Which pairs [m, n] are certainly inside, and which are too near the surface to say."""
    x, y = samples - middle, centres - middle
    x_squared, y_squared = jnp.sum(x * x, axis=1)[:, None], jnp.sum(y * y, axis=1)
    products = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    # (‖x‖ + ‖y‖)² ≤ 2‖x‖² + 2‖y‖²; twice the bound covers the sums and the radius in float32
    bound = 4 * rounding(x.shape[1]) * (x_squared + y_squared + radii * radii)
    excess = x_squared + y_squared - 2 * products - radii * radii
    return excess < -bound, jnp.abs(excess) <= bound


def _distances(first: np.ndarray, rows: np.ndarray, second: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """‖first[rows] − second[columns]‖ by differences in float64, [pairs]; the same from either side."""
    found = np.zeros(len(rows))
    step = max(1, _PAIR_ENTRIES // first.shape[1])
    for start in range(0, len(rows), step):
        pair = slice(start, start + step)
        differences = first[rows[pair]].astype(np.float64) - second[columns[pair]]
        found[pair] = np.sqrt(np.sum(differences * differences, axis=1))
    return found


def _sets(samples: Any, reference: Any, k: int, measure: str) -> tuple[np.ndarray, np.ndarray]:
    if k < 1:
        raise ValueError(f"{k=} must be positive")
    return two_sets(samples, reference, least=k + 1, measure=f"{measure} with {k=}")
