"""Kernel distance between two sets of features: squared maximum mean discrepancy, unbiased at any number of samples.

    d² = E k(x, x') + E k(y, y') − 2 E k(x, y),    k(x, y) = (x·y/dim + 1)³

The estimate leaves out pairs of a sample with itself, so its expectation is d² and it can be negative. It has the
expectation of the published kernel inception distance, which averages over random subsets, and less noise.

References:
    Gretton et al., JMLR 13 (2012), lemma 6; Bińkowski et al., arXiv 1801.01401, for the kernel;
    Hoeffding, Annals of Mathematical Statistics 19 (1948), for the error.
"""

from typing import Any, NamedTuple

import numpy as np

from .feature_set import two_sets

_BLOCK = 2048


class KernelDistance(NamedTuple):
    """An estimate and its standard deviation over draws of both sets, to first order in 1/m and 1/n."""

    value: float
    standard_error: float


def kernel_distance(samples: Any, reference: Any) -> KernelDistance:
    """The unbiased estimate from all pairs, in float64, block by block.

    Args:
        samples: [m, dim] features, or a `FeatureSet`.
        reference: [n, dim], likewise.

    Raises:
        ValueError: fewer than two rows, different numbers of features, NaN or infinite features.
    """
    x, y = two_sets(samples, reference, least=2, measure="a kernel distance")
    to_own_x, to_own_y = _own_means(x), _own_means(y)
    across_x, across_y = _sums(x, y)
    to_y, to_x = across_x / len(y), across_y / len(x)
    value = to_own_x.mean() + to_own_y.mean() - 2 * to_y.mean()
    # how much one sample moves the estimate: twice its own mean of the symmetric kernel of pairs
    variance = 4 * np.var(to_own_x - to_y, ddof=1) / len(x) + 4 * np.var(to_own_y - to_x, ddof=1) / len(y)
    return KernelDistance(float(value), float(np.sqrt(variance)))


def _own_means(rows: np.ndarray) -> np.ndarray:
    """Mean of k(row, other row) over the others, [m] float64."""
    itself = _kernel(np.einsum("md,md->m", rows, rows, dtype=np.float64), rows.shape[1])
    return (_sums(rows, rows)[0] - itself) / (len(rows) - 1)


def _sums(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of k(row, column) over columns [m] and over rows [n], float64."""
    of_row, of_column = np.zeros(len(rows)), np.zeros(len(columns))
    for i in range(0, len(rows), _BLOCK):
        block = rows[i : i + _BLOCK].astype(np.float64)
        for j in range(0, len(columns), _BLOCK):
            values = _kernel(block @ columns[j : j + _BLOCK].astype(np.float64).T, rows.shape[1])
            of_row[i : i + _BLOCK] += values.sum(axis=1)
            of_column[j : j + _BLOCK] += values.sum(axis=0)
    return of_row, of_column


def _kernel(products: np.ndarray, dim: int) -> np.ndarray:
    base = products / dim + 1
    return base * base * base
