"""What is stored of a data set, and how rows become float32 points: uint8 pixels mean y/127.5 − 1, float types are
themselves."""

import dataclasses
import functools
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.typing import Array, Data, Float, PerRow, RowLabels, Scalar

PIXEL_SCALE = 255


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What is stored of a data set; leaves down to `labels` have one entry a row.

    Attributes:
        data: [n, d], on the host [n, *event], in the dtype given (uint8, bfloat16, float16 or float32).
        square_norms: [n] float32, ‖y_i − centre‖².
        log_weights: [n] float32 or None for equal weights.
        labels: [n] int32 or None.
        centre: [d] float32, or None where centring would gain nothing.
        max_norm: [] float32, upper bound of ‖y_i − centre‖.
        log_weight_bound: [] float32, largest finite |log w_i|.
        class_log_weights: [number of classes] float32, log of the total weight of each class; [1] without labels.
    """

    data: Data
    square_norms: PerRow
    log_weights: PerRow | None
    labels: RowLabels | None
    centre: Float[Array, "d"] | None
    max_norm: Scalar
    log_weight_bound: Scalar
    class_log_weights: Float[Array, "classes"]

    @property
    def count(self) -> int:
        return self.data.shape[0]

    @property
    def dimension(self) -> int:
        return int(np.prod(self.data.shape[1:]))


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


@functools.partial(jax.jit, static_argnames=("event_shape", "horizontal_flip"))
def take(
    data: jax.Array, event_shape: tuple[int, ...], index: jax.Array, *, horizontal_flip: bool
) -> jax.Array:
    """Points by number: index [*batch] int32 into data [n, d] gives [*batch, *event] float32.

    With flips n + i is the mirror image of row i. Numbers that are no row's give NaN.
    """
    n = data.shape[0]
    known = (index >= 0) & (index < (2 * n if horizontal_flip else n))
    mesh = jax.typeof(data).sharding.mesh
    everywhere = jax.NamedSharding(mesh, jax.P()) if mesh.explicit_axes else None
    points = to_float(data.at[jnp.where(known, index % n, 0)].get(out_sharding=everywhere))
    points = points.reshape(*index.shape, *event_shape)
    points = jnp.where(_over_event(known, points), points, jnp.nan)
    return (
        jnp.where(_over_event(index >= n, points), points[..., ::-1, :], points)
        if horizontal_flip
        else points
    )


def _over_event(mask: jax.Array, points: jax.Array) -> jax.Array:
    return mask.reshape(*mask.shape, *(1,) * (points.ndim - mask.ndim))
