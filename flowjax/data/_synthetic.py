"""Data sets that need no file: scikit-learn's digits and two sets of points in the plane."""

import numpy as np

from ._dataset import Dataset


def digits() -> Dataset:
    """1 797 handwritten digits, float32 [1797, 8, 8, 1] in [−1, 1], ten classes (E. Alpaydin, C. Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # Pixels are whole numbers 0..16, so pixel/8 − 1 is exact.
    images = (pixels / 8 - 1).astype(np.float32).reshape(-1, 8, 8, 1)
    return Dataset("digits", images, labels, class_names=tuple("0123456789"))


def two_moons(num_points: int = 2000, seed: int = 0) -> Dataset:
    """Two interleaved half circles of radius 1 with noise .05, centred, float32 [n, 2], two classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_points) % 2)
    angle = rng.uniform(0, np.pi, num_points)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    # The lower moon is the upper one turned by half a turn about (.5, .25), the centre of the whole.
    centre = np.array([0.5, 0.25])
    points = np.where(labels[:, None] == 0, upper - centre, centre - upper)
    points += 0.05 * rng.standard_normal(points.shape)
    return Dataset("two-moons", points, labels, class_names=("upper", "lower"))


def eight_gaussians(num_points: int = 2000, seed: int = 0) -> Dataset:
    """Eight normal distributions of deviation .1 on a circle of radius 2, float32 [n, 2], eight classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_points) % 8)
    angle = labels * (np.pi / 4)
    points = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    points += 0.1 * rng.standard_normal(points.shape)
    compass = ("east", "north-east", "north", "north-west", "west", "south-west", "south", "south-east")
    return Dataset("eight-gaussians", points, labels, class_names=compass)
