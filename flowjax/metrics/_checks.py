"""Checks that metrics share."""

import numpy as np


def finite_matrix(name: str, values, *, dtype: type[np.floating] = np.float64) -> np.ndarray:
    """[m, k] of floats in host memory.

    Raises:
        ValueError: another rank, or NaN or infinite entries.
        TypeError: entries that are no real numbers.
    """
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(
            f"{name} has shape {values.shape}, but one row a sample is wanted: [samples, features]"
        )
    if values.dtype.kind not in "fiub" and values.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {values.dtype}, but features are real numbers")
    values = values.astype(dtype)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(values)} rows of {name} hold NaN or infinite entries, "
            f"row {int(bad.argmax())} first; leave them out before measuring"
        )
    return values
