"""Gaussian paths x_t = alpha(t) x_1 + sigma(t) x_0, and conversions between what a network may predict."""

from ._base import Path as Path
from ._base import Prediction as Prediction
from ._paths import Linear as Linear
from ._paths import Trigonometric as Trigonometric
from ._paths import VarianceExploding as VarianceExploding
from ._paths import VariancePreserving as VariancePreserving
