"""Moments of pixel values: the cheapest sign that samples drift (too grey, too dark, out of range)."""

from typing import Any

import numpy as np

from ..closed_form.rows import to_float


def pixel_moments(images: Any) -> dict[str, float]:
    """Moments over all entries of all images, in float64.

    Args:
        images: [m, *event], uint8 (meaning y/127.5 − 1) or floating point, host or device.

    Returns:
        `mean`, `std` (denominator m·d), `skewness` (0 for constant images), `min`, `max`, and `outside`: the
        share of entries outside [−1, 1].

    Raises:
        ValueError: no entries, or NaN or infinite ones.
    """
    images = np.asarray(images)
    if not images.size:
        raise ValueError(f"images have shape {images.shape}, so there is nothing to measure")
    values = to_float(images).astype(np.float64).ravel()
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} entries are NaN or infinite")
    mean, std = values.mean(), values.std()
    skewness = np.mean(((values - mean) / std) ** 3) if std > 0 else 0.0
    return {
        "mean": float(mean),
        "std": float(std),
        "skewness": float(skewness),
        "min": float(values.min()),
        "max": float(values.max()),
        "outside": float(np.mean(np.abs(values) > 1)),
    }
