"""Feature vectors collected batch by batch, for the measures that need all of them and not only their moments."""

import dataclasses
from typing import Any

import numpy as np

from ._checks import finite_matrix


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """Feature vectors seen so far; immutable, float32, mergeable in any order.

        features = FeatureSet.empty(64).update(batch_a).update(batch_b).merge(of_another_process)
        kernel_distance(features, reference), precision_recall(features, reference), ...

    Attributes:
        dim: number of features.
        parts: [m_i, dim] float32 each, as they came.
    """

    dim: int
    parts: tuple[np.ndarray, ...] = ()

    @classmethod
    def empty(cls, dim: int) -> "FeatureSet":
        """No vector at all: what `update` starts from and `merge` leaves unchanged."""
        if dim < 1:
            raise ValueError(f"{dim=} must be positive")
        return cls(dim)

    @property
    def count(self) -> int:
        """Number of vectors seen."""
        return sum(len(part) for part in self.parts)

    @property
    def values(self) -> np.ndarray:
        """[count, dim] float32."""
        return np.concatenate([np.zeros((0, self.dim), np.float32), *self.parts])

    def update(self, features: Any) -> "FeatureSet":
        """The set with `features` [m, dim] added (any real dtype, host or device; m = 0 is allowed).

        Raises:
            ValueError: another number of features, NaN or infinite features.
        """
        features = finite_matrix("features", features, dtype=np.float32)
        if features.shape[1] != self.dim:
            raise ValueError(f"features have {features.shape[1]} columns, but this set has {self.dim}")
        return FeatureSet(self.dim, (*self.parts, features)) if len(features) else self

    def merge(self, other: "FeatureSet") -> "FeatureSet":
        """Both sets together."""
        if self.dim != other.dim:
            raise ValueError(
                f"sets of {self.dim} and of {other.dim} features cannot be merged; use one feature network"
            )
        return FeatureSet(self.dim, self.parts + other.parts)


def two_sets(samples: Any, reference: Any, *, least: int, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of both sides [m, dim] and [n, dim] float32, each of at least `least` rows.

    Raises:
        ValueError: too few rows, different numbers of features, NaN or infinite features.
    """
    pair = []
    for name, values in (("samples", samples), ("reference", reference)):
        values = values.values if isinstance(values, FeatureSet) else values
        values = finite_matrix(name, values, dtype=np.float32)
        if len(values) < least:
            raise ValueError(f"{measure} takes at least {least} {name}, but there are {len(values)}")
        pair.append(values)
    samples, reference = pair
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(
            f"{samples.shape[1]} and {reference.shape[1]} features cannot be compared; use one feature network"
        )
    return samples, reference
