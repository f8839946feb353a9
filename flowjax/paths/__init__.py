"""Gaussian paths x_t = alpha(t) x_1 + sigma(t) x_0, and conversions between what a network may predict."""

from ._base import Path as Path, Prediction as Prediction
from ._paths import (
    Linear as Linear,
    Trigonometric as Trigonometric,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
)
