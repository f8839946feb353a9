"""Fréchet distance between two sets of features, each taken as a Gaussian.

    d² = ‖m₁ − m₂‖² + tr S₁ + tr S₂ − 2 tr (S₁^{1/2} S₂ S₁^{1/2})^{1/2}

Reported is d², as everybody does under the name "Fréchet inception distance".

References:
    Dowson and Landau, J. Multivariate Analysis 12 (1982); Heusel et al., arXiv 1706.08500;
    Chan, Golub and LeVeque, The American Statistician 37 (1983), for merging means and scatter matrices;
    Higham, Accuracy and Stability, §10.3, for Cholesky factors of singular matrices.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from ._checks import finite_matrix


@dataclasses.dataclass(frozen=True, eq=False)
class FrechetStatistics:
    """Count, mean and scatter matrix of feature vectors; immutable, float64, mergeable in any order.

        reference = FrechetStatistics.empty(64).update(features_a).update(features_b)
        distance = FrechetStatistics.empty(64).update(features_c).frechet_distance(reference)

    Attributes:
        count: number of vectors seen.
        mean: [dim] float64.
        scatter: [dim, dim] float64, Σ (f − mean)(f − mean)ᵀ.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dim: int) -> "FrechetStatistics":
        """Statistics of no vector at all: what `update` starts from and `merge` leaves unchanged."""
        if dim < 1:
            raise ValueError(f"{dim=} must be positive")
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @property
    def dim(self) -> int:
        """Number of features."""
        return len(self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """[dim, dim], with the unbiased denominator count − 1.

        Raises:
            ValueError: fewer than two vectors were seen.
        """
        if self.count < 2:
            raise ValueError(f"a covariance takes at least 2 samples, but there were {self.count}")
        return self.scatter / (self.count - 1)

    def update(self, features: Any) -> "FrechetStatistics":
        """The statistics with `features` [m, dim] added (any real dtype, host or device; m = 0 is allowed).

        Raises:
            ValueError: another number of features, NaN or infinite features.
        """
        features = finite_matrix("features", features)
        if features.shape[1] != self.dim:
            raise ValueError(
                f"features have {features.shape[1]} columns, but these statistics have {self.dim}"
            )
        if not len(features):
            return self
        mean = features.mean(axis=0)
        centred = features - mean
        return self.merge(FrechetStatistics(len(features), mean, centred.T @ centred))

    def merge(self, other: "FrechetStatistics") -> "FrechetStatistics":
        """The statistics of both sets together; associative and commutative to float64 rounding."""
        self._check_same_features(other)
        count = self.count + other.count
        if count == 0:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = np.outer(step, step) * (self.count * other.count / count)
        return FrechetStatistics(count, mean, self.scatter + other.scatter + between)

    def frechet_distance(self, other: "FrechetStatistics") -> float:
        """d² to other; symmetric, 0 between equal statistics (to rounding), never negative.

        Raises:
            ValueError: fewer than two vectors on either side, or another number of features.
        """
        self._check_same_features(other)
        return _distance(self.mean, self._root, other.mean, other._root)

    @functools.cached_property
    def _root(self) -> np.ndarray:
        """Kept, because many sets are compared with one reference and this is most of the work."""
        return _factor(self.covariance)

    def _check_same_features(self, other: "FrechetStatistics") -> None:
        if self.dim != other.dim:
            raise ValueError(
                f"statistics of {self.dim} and of {other.dim} features cannot be compared; use one feature network"
            )


def gaussian_frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """d² between two Gaussians, each [dim] and [dim, dim], also where a covariance is singular.

    With S = F Fᵀ, the trace of the square root is the sum of the singular values of F₁ᵀ F₂. Taking those
    directly, and not as roots of the eigenvalues of S₁^{1/2} S₂ S₁^{1/2}, keeps the digits that a square
    root of a rounded zero would lose: √1e-16 is 1e-8 for every missing rank, of which there may be thousands.
    """
    return _distance(mean_a, _factor(covariance_a), mean_b, _factor(covariance_b))


def _distance(mean_a: np.ndarray, factor_a: np.ndarray, mean_b: np.ndarray, factor_b: np.ndarray) -> float:
    overlap = np.linalg.svd(factor_a.T @ factor_b, compute_uv=False).sum()
    step = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    distance = step @ step + np.sum(factor_a**2) + np.sum(factor_b**2) - 2 * overlap
    return max(float(distance), 0.0)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F with F Fᵀ = covariance, [dim, rank], by Cholesky with pivots: pivots of the size of rounding are zeros.

    The nuclear norm that F goes into is the same for every F. Eigenvectors would be one, at 10 to 60 times the cost.
    """
    from scipy.linalg import get_lapack_funcs

    covariance = np.asarray(covariance, np.float64)
    dim = len(covariance)
    tolerance = dim * np.finfo(np.float64).eps * covariance.diagonal().max()
    (pstrf,) = get_lapack_funcs(("pstrf",), (covariance,))
    lower, pivots, rank, _ = pstrf(covariance, tol=tolerance, lower=1)
    factor = np.zeros((dim, rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


def frechet_distance(a: Any, b: Any) -> float:
    """d² between two sets of features [m, dim] and [n, dim] (or `FrechetStatistics`).

    Raises:
        ValueError: fewer than two samples, different numbers of features, NaN or infinite features.
    """
    return _statistics(a).frechet_distance(_statistics(b))


def _statistics(value: Any) -> FrechetStatistics:
    if isinstance(value, FrechetStatistics):
        return value
    value = finite_matrix("features", value)
    return FrechetStatistics.empty(value.shape[1]).update(value)
