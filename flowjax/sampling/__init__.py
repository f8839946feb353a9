"""From noise to data along any velocity function, and back: solvers, grids, hybrids, predictors, likelihood."""

from . import grids as grids
from ._likelihood import BitsPerDimension as BitsPerDimension
from ._likelihood import LogDensity as LogDensity
from ._likelihood import bits_per_dimension as bits_per_dimension
from ._likelihood import log_density as log_density
from ._sample import Sample as Sample
from ._sample import sample as sample
from ._velocity import ConvertedPrediction as ConvertedPrediction
from ._velocity import Hybrid as Hybrid
from ._velocity import from_prediction as from_prediction
from ._velocity import hybrid as hybrid
