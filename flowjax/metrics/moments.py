"""Moments of pixel values: the cheapest sign that samples drift (too grey, too dark, out of range)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..closed_form.rows import to_float

_BLOCK = 4096  # images converted at a time


def pixel_moments(images: Any) -> dict[str, float]:
    """Moments over all entries of all images, in float64.

    Args:
        images: [m, *event], uint8 (meaning y/127.5 − 1) or floating point, host or device.

    Returns:
        `mean`, `std` (denominator m·d), `skewness` (0 for constant images), `min`, `max`, and `outside`: the
        share of entries outside [−1, 1].

    Raises:
        ValueError: no entries, or NaN or infinite ones.
        TypeError: integers other than uint8, complex numbers, text.
    """
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images have dtype {images.dtype}, but pixels are uint8 or floating point")
    if not images.size:
        raise ValueError(f"images have shape {images.shape}, so there is nothing to measure")

    images = images[None] if images.ndim == 0 else images

    def blocks():
        for start in range(0, len(images), _BLOCK):
            yield to_float(np.asarray(images[start : start + _BLOCK])).astype(np.float64)

    bad = sum(int(np.size(block) - np.isfinite(block).sum()) for block in blocks())
    if bad:
        raise ValueError(f"{bad} of {images.size} entries are NaN or infinite")
    mean = sum(block.sum() for block in blocks()) / images.size
    std = np.sqrt(sum(np.square(block - mean).sum() for block in blocks()) / images.size)
    third = sum(((block - mean) ** 3).sum() for block in blocks()) / images.size
    return {
        "mean": float(mean),
        "std": float(std),
        "skewness": float(third / std**3) if std > 0 else 0.0,
        "min": float(min(block.min() for block in blocks())),
        "max": float(max(block.max() for block in blocks())),
        "outside": float(sum((np.abs(block) > 1).sum() for block in blocks()) / images.size),
    }
