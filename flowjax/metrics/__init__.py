"""Measures of samples: Fréchet distance, distance to the training data, memorisation, moments, features."""

from . import features as features
from .frechet import FrechetStatistics as FrechetStatistics
from .frechet import frechet_distance as frechet_distance
from .frechet import gaussian_frechet_distance as gaussian_frechet_distance
from .moments import pixel_moments as pixel_moments
from .neighbours import Nearest as Nearest
from .neighbours import memorised_fraction as memorised_fraction
from .neighbours import nearest_distances as nearest_distances
