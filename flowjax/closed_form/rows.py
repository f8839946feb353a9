"""How stored rows become float32 points: uint8 pixels mean y/127.5 − 1, float types are themselves."""

from typing import overload

import jax
import jax.numpy as jnp
import numpy as np

PIXEL_SCALE = 255


@overload
def to_float(rows: jax.Array) -> jax.Array: ...
@overload
def to_float(rows: np.ndarray) -> np.ndarray: ...
def to_float(rows: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Rows as float32: uint8 becomes y/127.5 − 1, bfloat16 and float32 keep their value. NumPy stays NumPy.

    Args:
        rows: uint8, bfloat16, float16, float32 or float64 array of any shape.
    """
    xp = jnp if isinstance(rows, jax.Array) else np
    if rows.dtype == np.uint8:
        # 2y − 255 is exact and one product follows, so that every compiler and NumPy give the same bits:
        # y/127.5 − 1 would round differently where the division or the sum is contracted.
        odd = 2 * rows.astype(xp.float32) - xp.float32(PIXEL_SCALE)
        return odd * xp.float32(1 / PIXEL_SCALE)
    return rows.astype(xp.float32)
