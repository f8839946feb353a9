"""Crops of the photographs that scikit-image and scikit-learn carry as files: colour data with nothing to fetch."""

import importlib.util
from pathlib import Path

import numpy as np

from ._dataset import Dataset

_PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
_SIDE = 32
_REDUCTIONS = (1, 2, 3)
_CELL = 128  # leaves the largest crop, 96, a thousand places in a cell
_CONTRAST = 10  # standard deviation of a crop's brightness, in steps of 0..255: no plain sky


def patches(num_points: int = 50_000, seed: int = 0) -> Dataset:
    """Natural colours at CIFAR-10's size: uint8 [n, 32, 32, 3] out of seven photographs, which are the classes.

    A crop covers 32, 64 or 96 pixels a side, one size as often as the others, and is averaged down to 32; the
    photographs take turns. Plain surfaces, where brightness deviates by 10 of 255 or less, are left out.

    Beside the n crops there are n/5 for testing (at least one). No pixel of a photograph is in both: it is ruled in
    cells of 128 pixels, every fifth of them (a knight's move apart) belongs to the test crops, which lie inside one
    cell, and the crops for training keep out of those. Crops of one region overlap each other, and both regions show
    the same scenes.

    Made anew at every call, in 1.2 s on one core. The same numbers give the same crops. Three of the files are JPEG,
    which another version of Pillow may decode to slightly other pixels; the rest is without loss.

    Args:
        num_points: crops for training.
        seed: of their places.

    Raises:
        FileNotFoundError: scikit-image is not installed, or lacks one of the photographs.
    """
    photographs = [_read(*place) for place in _PHOTOGRAPHS.values()]
    counts = {"train": num_points, "test": max(1, num_points // 5)}
    arrays = {}
    for stream, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng((seed, stream))
        labels = rng.permutation(np.arange(count) % len(photographs))
        reductions = rng.integers(len(_REDUCTIONS), size=count)
        images = np.empty((count, _SIDE, _SIDE, 3), np.uint8)
        for k, photograph in enumerate(photographs):
            for i, reduction in enumerate(_REDUCTIONS):
                rows = np.flatnonzero((labels == k) & (reductions == i))
                images[rows] = _crops(photograph, reduction, split == "test", len(rows), rng)
        arrays[split] = images, labels
    (images, labels), (test_images, test_labels) = arrays["train"], arrays["test"]
    return Dataset("patches", images, labels, tuple(_PHOTOGRAPHS), test_images, test_labels)


def _read(package: str, file: str) -> np.ndarray:
    """One photograph, uint8 [height, width, 3], of an installed package that is not imported for it."""
    from PIL import Image

    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "'patches' are cut out of photographs that scikit-image carries, which is not installed; "
            'pip install "flowjax-closedform[patches]", or pip install scikit-image'
        )
    path = Path(spec.origin).parent / file
    if not path.is_file():
        raise FileNotFoundError(
            f"'patches' need the photograph {path}, which this version of its package lacks; "
            'pip install --upgrade "scikit-image>=0.25"'
        )
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _crops(
    photograph: np.ndarray, reduction: int, test: bool, count: int, rng: np.random.Generator
) -> np.ndarray:
    """uint8 [count, 32, 32, 3] at random places, no place twice while there are enough."""
    side = reduction * _SIDE
    places = _places(photograph, side, test)
    chosen = rng.choice(len(places), count, replace=count > len(places))
    means = _block_means(photograph, reduction)
    # Of the square from each corner every reduction-th mean, as a view: only what is chosen is copied.
    windows = np.lib.stride_tricks.sliding_window_view(means, (side - reduction + 1,) * 2, (0, 1))
    windows = np.moveaxis(windows[..., ::reduction, ::reduction], 2, -1)
    top, left = places[chosen].T
    return windows[top, left]


def _block_means(photograph: np.ndarray, size: int) -> np.ndarray:
    """uint8 [height − size + 1, width − size + 1, 3]: mean of the block from each corner, halves upwards."""
    height, width = (length - size + 1 for length in photograph.shape[:2])
    total = np.zeros((height, width, 3), np.uint16)
    for i in range(size):
        for j in range(size):
            total += photograph[i : i + height, j : j + width]
    return ((2 * total + size**2) // (2 * size**2)).astype(np.uint8)


def _places(photograph: np.ndarray, side: int, test: bool) -> np.ndarray:
    """Every upper left corner (row, column) of a square that lies in its split and shows something, [m, 2]."""
    row, column = (np.arange(length) // _CELL for length in photograph.shape[:2])
    held_out = (row[:, None] + 2 * column[None, :]) % 5 == 0
    # Two test cells never touch, not even at corners: a square of test pixels lies inside one cell.
    inside = _window_sums(~held_out if test else held_out, side) == 0
    # Whole numbers decide alike on every machine: area² times the variance of the three colours' sum.
    grey, area = photograph.sum(-1, dtype=np.int64), side**2
    variance = area * _window_sums(grey**2, side) - _window_sums(grey, side) ** 2
    return np.argwhere(inside & (variance > (3 * _CONTRAST * area) ** 2))


def _window_sums(values: np.ndarray, side: int) -> np.ndarray:
    """Sum over the square from each corner, by differences of the sums from the origin."""
    sums = np.pad(values.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
