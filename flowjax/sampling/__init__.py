"""From noise to data along any velocity function: solvers, time grids, hybrid fields, converted predictors."""

from . import grids as grids
from ._sample import Sample as Sample
from ._sample import sample as sample
from ._velocity import ConvertedPrediction as ConvertedPrediction
from ._velocity import Hybrid as Hybrid
from ._velocity import from_prediction as from_prediction
from ._velocity import hybrid as hybrid
