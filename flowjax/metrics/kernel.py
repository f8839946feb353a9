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
    to_own_x, to_own_y = _means(x, x, leave_out_self=True), _means(y, y, leave_out_self=True)
    to_y, to_x = _means(x, y), _means(y, x)
    value = to_own_x.mean() + to_own_y.mean() - 2 * to_y.mean()
    # how much one sample moves the estimate: twice its own mean of the symmetric kernel of pairs
    variance = 4 * np.var(to_own_x - to_y, ddof=1) / len(x) + 4 * np.var(to_own_y - to_x, ddof=1) / len(y)
    return KernelDistance(float(value), float(np.sqrt(variance)))


def _means(rows: np.ndarray, columns: np.ndarray, *, leave_out_self: bool = False) -> np.ndarray:
    """Mean of k(row, column) over the columns, [m] float64; of one set with itself without the row's own column."""
    sums = np.zeros(len(rows))
    for i in range(0, len(rows), _BLOCK):
        block = rows[i : i + _BLOCK].astype(np.float64)
        for j in range(0, len(columns), _BLOCK):
            sums[i : i + _BLOCK] += _kernel(block @ columns[j : j + _BLOCK].astype(np.float64).T, block).sum(
                axis=1
            )
        if leave_out_self:
            sums[i : i + _BLOCK] -= _kernel(np.sum(block * block, axis=1), block)
    return sums / (len(columns) - leave_out_self)


def _kernel(products: np.ndarray, block: np.ndarray) -> np.ndarray:
    base = products / block.shape[1] + 1
    return base * base * base
