"""Building a field: checks of data, weights and labels, and what is computed from them once."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from . import moments as algebra
from .rows import Rows, to_float
from .sources import HostRows

_LARGEST_NORM = 1e12
"""Above it alpha²‖y‖²/(2 sigma²) leaves float32 at the last float32 time, sigma = 6e-8, and logits are infinite."""

_Values = TypeVar("_Values")

Placement = tuple[jax.sharding.Mesh | jax.sharding.AbstractMesh, str]
"""The mesh and the name of its axis that rows lie split over."""


def as_rows(data: ArrayLike, *, horizontal_flip: bool = False) -> tuple[jax.Array, tuple[int, ...]]:
    """Check the data set itself and put it on a device in its storage dtype: rows [n, d] and their event shape.

    Flat, because a TPU lays an array out by its last two axes: of [n, 32, 32, 3] every pass would copy the blocks, and
    the re-scoring all rows, into another layout (by its compiler twice the time of the pass itself).
    """
    array = data if isinstance(data, jax.Array) else np.asarray(data)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    check_rows(array, horizontal_flip=horizontal_flip)
    return _flat(array), tuple(array.shape[1:])


def _flat(array: jax.Array | np.ndarray) -> jax.Array:
    """Rows [n, d] of [n, *event]; pictures that lie on one CPU are seen in another shape, not copied."""
    shape = array.shape[0], int(np.prod(array.shape[1:]))
    if array.ndim == 2 or not isinstance(array, jax.Array) or isinstance(array, Tracer):
        return jnp.asarray(array.reshape(shape))
    if {device.platform for device in array.devices()} == {"cpu"} and len(array.devices()) == 1:
        return jax.device_put(np.asarray(array).reshape(shape), array.sharding if array.committed else None)
    return array.reshape(shape)


def check_rows(array: jax.Array | np.ndarray | HostRows, *, horizontal_flip: bool = False) -> None:
    """TypeError or ValueError unless dtype and shape can be those of a data set (of pictures, for flips)."""
    allowed = (jnp.uint8, jnp.bfloat16, jnp.float16, jnp.float32)
    if array.dtype not in [jnp.dtype(a) for a in allowed]:
        raise TypeError(
            f"data of dtype {array.dtype} cannot be used; give floating-point rows, or uint8 pixels "
            "(0..255, read as y/127.5 − 1)"
        )
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"data must have shape [n, *event] with at least one row, got shape {array.shape}")
    if horizontal_flip and array.ndim != 4:
        raise ValueError(
            f"horizontal_flip needs data of shape [n, height, width, channels], got {array.shape}; "
            "reshape the data or leave horizontal_flip=False"
        )


def make_rows(data: jax.Array, weights, labels, mirrored: tuple[int, ...] | None, geometry=None) -> Rows:
    """Everything that is computed once: norms, centre, log weights; placed like the data.

    Args:
        data: [n, d], or `HostRows` [n, *event].
        weights, labels: as given to the field.
        mirrored: the event shape if mirror images count as points too.
        geometry: replaces `_geometry` for data that is on no device.
    """
    n = data.shape[0]
    if labels is not None:
        labels = _check_row_labels(labels, n)
    log_weights = None if weights is None else _log_weights(weights, n)
    centre, squares, max_norm = (geometry or _geometry)(data, mirrored)
    if not isinstance(max_norm, Tracer) and not max_norm <= _LARGEST_NORM:
        raise ValueError(
            f"data holds NaN, inf, or rows of a norm above {_LARGEST_NORM:g}, whose squares leave float32 late in "
            "time; remove or rescale those rows"
        )
    num_classes = 1 if labels is None else int(jnp.max(labels)) + 1
    class_weights = functools.partial(_class_weights, n=n, num_classes=num_classes)
    mesh, axis = placement(data) or (None, None)
    split = whole = None
    if isinstance(mesh, jax.sharding.Mesh):
        split, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P(axis), jax.P()))
    if split is not None and not split.is_fully_addressable:
        # No process has the weights of all rows: each sums those of its own.
        log_weights, labels = put((log_weights, labels), split)
        class_weights = jax.shard_map(
            functools.partial(class_weights, axis_name=axis),
            mesh=mesh,
            in_specs=jax.P(axis),
            out_specs=jax.P(),
        )
    with jax.enable_x64(True):
        class_log_weights, bound = class_weights(log_weights, labels)
        log_weights = None if log_weights is None else log_weights.astype(jnp.float32)
    if split is not None and whole is not None:
        squares, log_weights, labels = put((squares, log_weights, labels), split)
        everywhere = centre, max_norm, bound, class_log_weights
        centre, max_norm, bound, class_log_weights = put(everywhere, whole)
    return Rows(data, squares, log_weights, labels, centre, max_norm, bound, class_log_weights)


def put(values: _Values, sharding: jax.sharding.Sharding) -> _Values:
    """A pytree of arrays under a sharding that may reach over several processes, each of which has all of them."""

    def leaf(value):
        if sharding.is_fully_addressable or (isinstance(value, jax.Array) and not value.is_fully_addressable):
            return jax.device_put(value, sharding)
        # device_put would compare the values of all processes by sending them around.
        local = np.asarray(value)
        return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])

    return jax.tree.map(leaf, values)


@functools.partial(jax.jit, static_argnames=("n", "num_classes", "axis_name"))
def _class_weights(
    log_weights: jax.Array | None,
    labels: jax.Array | None,
    *,
    n: int,
    num_classes: int,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log of the total weight of each class [num_classes], and the largest finite |log weight| []; float32.

    With an axis name those of all devices along it, from [n / devices] log weights and labels on each.
    """
    with jax.enable_x64(True):
        if log_weights is None and labels is None:
            return jnp.full(1, np.log(n), jnp.float32), jnp.zeros((), jnp.float32)
        (count,) = next(leaf.shape for leaf in (log_weights, labels) if leaf is not None)
        logs = jnp.zeros(count, jnp.float64) if log_weights is None else log_weights
        classes = jnp.zeros(count, jnp.int32) if labels is None else labels
        bound = jnp.max(jnp.where(jnp.isfinite(logs), jnp.abs(logs), 0)).astype(jnp.float32)
        largest = jax.ops.segment_max(logs, classes, num_classes)
        if axis_name is not None:
            largest, bound = algebra.max_across(largest, axis_name), lax.pmax(bound, axis_name)
        largest = algebra.finite_max(largest)
        # Shares of the class's largest: none underflows them all.
        totals = jax.ops.segment_sum(jnp.exp(logs - largest[classes]), classes, num_classes)
        if axis_name is not None:
            totals = algebra.sum_across(totals, axis_name)
        return (largest + jnp.log(totals)).astype(jnp.float32), bound


def _geometry(
    data: jax.Array, mirrored: tuple[int, ...] | None
) -> tuple[jax.Array | None, jax.Array, jax.Array]:
    """Centre [d] or None, square norms [n] about it, and an upper bound of the largest norm; float32.

    Centring makes the products smaller where the mean is large compared with the spread; it costs one subtraction per
    element and block, so it is done only then (and not under a trace, where the choice cannot be made).
    """
    if not isinstance(data, Tracer):
        centre = _mean(data, mirrored=mirrored)
        squares, max_norm = square_norms(data, centre)
        if bool(jnp.sum(centre**2) > jnp.mean(squares)):
            return centre, squares, max_norm
    return None, *square_norms(data, None)


# Each of the two is one reduction, so that XLA converts and sums in one loop and makes no float64 copy of the data.
@functools.partial(jax.jit, static_argnames="mirrored")
def _mean(data: jax.Array, *, mirrored: tuple[int, ...] | None) -> jax.Array:
    """Mean row, accumulated in float64, [d] float32."""
    with jax.enable_x64(True):
        total = jnp.sum(to_float(data).astype(jnp.float64), 0)
        mean = total / data.shape[0]
        if mirrored is not None:
            mean = (mean + mean.reshape(mirrored)[:, ::-1].reshape(-1)) / 2
        return mean.astype(jnp.float32)


@jax.jit
def square_norms(data: jax.Array, centre: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Square norms about the centre [n] and their largest root rounded up; summed in float64."""
    with jax.enable_x64(True):
        points = to_float(data.reshape(data.shape[0], -1)).astype(jnp.float64)
        if centre is not None:
            points = points - centre.astype(jnp.float64)
        squares = jnp.sum(points**2, 1)
        largest = jnp.sqrt(jnp.max(squares)) * (1 + 2.0**-20)
        return squares.astype(jnp.float32), largest.astype(jnp.float32)


def empty_classes(rows: Rows) -> tuple[int, ...]:
    """Classes without points of positive weight, where that is known."""
    if rows.labels is None or isinstance(rows.class_log_weights, Tracer):
        return ()
    return tuple(np.flatnonzero(np.isneginf(np.asarray(rows.class_log_weights))).tolist())


def _check_row_labels(labels, n: int) -> jax.Array:
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {labels.shape}, but the data has {n} rows; give one label a row")
    if isinstance(labels, Tracer):
        raise ValueError(
            "labels must be concrete when a field is built; build it outside jit and pass it as an argument"
        )
    if int(labels.min()) < 0:
        raise ValueError(f"labels must not be negative, got {int(labels.min())}; number the classes from 0")
    return labels.astype(jnp.int32)


def _log_weights(weights, n: int) -> jax.Array:
    """Log of every weight's share of the largest one, [n] float64; the weights themselves may leave float32."""
    if not isinstance(weights, jax.Array) or (
        not isinstance(weights, Tracer) and weights.is_fully_addressable
    ):
        weights = np.asarray(weights)
    if weights.dtype.kind not in "fiu" and not jnp.issubdtype(weights.dtype, jnp.floating):
        raise TypeError(f"weights must be real numbers, got {weights.dtype}")
    if weights.shape != (n,):
        raise ValueError(
            f"weights have shape {weights.shape}, but the data has {n} rows; give one weight a row"
        )
    with jax.enable_x64(True):
        values = weights.astype(np.float64)
        if isinstance(values, Tracer):
            return jnp.log(values / jnp.max(values))
        least, most = float(values.min()), float(values.max())  # both NaN if one value is
        if not (least >= 0 and 0 < most < np.inf):
            raise ValueError(
                f"weights must be finite, non-negative and not all zero, got values from {least:g} to {most:g}"
            )
        xp = jnp if isinstance(values, jax.Array) else np
        with np.errstate(divide="ignore"):
            return jnp.asarray(xp.log(values) - xp.log(most))


def placement(data: jax.Array | HostRows) -> Placement | None:
    """(mesh, axis name) if the rows lie split over one mesh axis, else None."""
    if isinstance(data, HostRows):
        return None
    sharding = None if isinstance(data, Tracer) else getattr(data, "sharding", None)
    if sharding is None:
        sharding = getattr(jax.typeof(data), "sharding", None)
    if not isinstance(sharding, jax.NamedSharding) or not sharding.spec or sharding.spec[0] is None:
        return None
    axis = sharding.spec[0]
    if isinstance(axis, tuple):
        if len(axis) != 1:
            raise ValueError(
                f"rows split over several mesh axes {axis} are not supported; split them over one"
            )
        axis = axis[0]
    return (sharding.mesh, axis) if sharding.mesh.shape[axis] > 1 else None
