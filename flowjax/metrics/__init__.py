"""Measures of samples: distances between distributions, precision and recall, memorisation, and feature spaces."""

from . import features as features
from .across import merge_processes as merge_processes
from .feature_set import FeatureSet as FeatureSet
from .frechet import FrechetStatistics as FrechetStatistics
from .frechet import frechet_distance as frechet_distance
from .frechet import gaussian_frechet_distance as gaussian_frechet_distance
from .kernel import KernelDistance as KernelDistance
from .kernel import kernel_distance as kernel_distance
from .manifold import DensityCoverage as DensityCoverage
from .manifold import PrecisionRecall as PrecisionRecall
from .manifold import density_coverage as density_coverage
from .manifold import precision_recall as precision_recall
from .moments import pixel_moments as pixel_moments
from .neighbours import Nearest as Nearest
from .neighbours import Neighbours as Neighbours
from .neighbours import memorised_fraction as memorised_fraction
from .neighbours import nearest_distances as nearest_distances
from .neighbours import nearest_neighbours as nearest_neighbours
from .reference import Reference as Reference
from .score import SampleScore as SampleScore
from .score import Scores as Scores
