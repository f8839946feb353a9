"""Building a field: checks of data, weights and labels, and what is computed from them once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from .dense import Rows
from .rows import to_float

Placement = tuple[jax.sharding.Mesh | jax.sharding.AbstractMesh, str]
"""The mesh and the name of its axis that rows lie split over."""


def as_rows(data: ArrayLike) -> jax.Array:
    """Check the data set itself and put it on a device, in its storage dtype."""
    array = data if isinstance(data, jax.Array) else np.asarray(data)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    allowed = (jnp.uint8, jnp.bfloat16, jnp.float16, jnp.float32)
    if array.dtype not in [jnp.dtype(a) for a in allowed]:
        raise TypeError(
            f"data of dtype {array.dtype} cannot be used; give floating-point rows, or uint8 pixels "
            "(0..255, read as y/127.5 − 1)"
        )
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"data must have shape [n, *event] with at least one row, got shape {array.shape}")
    return jnp.asarray(array)


def make_rows(data: jax.Array, weights, labels, horizontal_flip: bool) -> Rows:
    """Everything that is computed once: norms, centre, log weights; placed like the data."""
    n = data.shape[0]
    if labels is not None:
        labels = _check_row_labels(labels, n)
    if weights is not None:
        weights = _check_weights(weights, n)
    centre, squares, max_norm, far = _statistics(data, horizontal_flip=horizontal_flip)
    if isinstance(max_norm, Tracer) or not bool(far):
        centre = None
        squares, max_norm = _uncentred(data)
    if not isinstance(max_norm, Tracer) and not np.isfinite(max_norm):
        raise ValueError(
            "data holds NaN, inf, or numbers too large for float32; remove or rescale those rows"
        )
    with jax.enable_x64(True):
        prior = jnp.ones(n, jnp.float64) if weights is None else jnp.asarray(weights, jnp.float64)
        if labels is None:
            totals = jnp.sum(prior)[None]
        else:
            totals = jax.ops.segment_sum(prior, labels, int(jnp.max(labels)) + 1)
        class_log_weights = jnp.log(totals).astype(jnp.float32)
        log_weights, bound = None, jnp.zeros((), jnp.float32)
        if weights is not None:
            logs = jnp.log(prior)
            log_weights = logs.astype(jnp.float32)
            bound = jnp.max(jnp.where(jnp.isfinite(logs), jnp.abs(logs), 0)).astype(jnp.float32)
    placed = placement(data)
    if placed is not None:
        mesh, axis = placed
        if isinstance(mesh, jax.sharding.Mesh):
            split, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P(axis), jax.P()))
            squares = jax.device_put(squares, split)
            log_weights = None if log_weights is None else jax.device_put(log_weights, split)
            labels = None if labels is None else jax.device_put(labels, split)
            centre, max_norm, bound, class_log_weights = jax.device_put(
                (centre, max_norm, bound, class_log_weights), whole
            )
    return Rows(data, squares, log_weights, labels, centre, max_norm, bound, class_log_weights)


@jax.jit
def _uncentred(data: jax.Array):
    """Square norms and their maximum, accumulated in float64."""
    with jax.enable_x64(True):
        points = to_float(data.reshape(data.shape[0], -1)).astype(jnp.float64)
        squares = jnp.sum(points**2, 1)
        return squares.astype(jnp.float32), _round_up(jnp.sqrt(jnp.max(squares)))


@functools.partial(jax.jit, static_argnames="horizontal_flip")
def _statistics(data: jax.Array, *, horizontal_flip: bool):
    """Mean row, square norms and largest norm about it, and whether the data lies far from the origin.

    Centring makes the products smaller where the mean is large compared with the spread; it costs one
    subtraction per element and block, so it is done only then.
    """
    with jax.enable_x64(True):
        points = to_float(data.reshape(data.shape[0], -1)).astype(jnp.float64)
        mean = jnp.mean(points, 0)
        if horizontal_flip:
            mean = (mean + mean.reshape(data.shape[1:])[:, ::-1].reshape(-1)) / 2
        centre = mean.astype(jnp.float32)
        squares = jnp.sum((points - centre) ** 2, 1)
        far = jnp.sum(mean**2) > jnp.mean(squares)
        return centre, squares.astype(jnp.float32), _round_up(jnp.sqrt(jnp.max(squares))), far


def _round_up(value: jax.Array) -> jax.Array:
    return (value * (1 + 2.0**-20)).astype(jnp.float32)


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


def _check_weights(weights, n: int) -> jax.Array:
    weights = jnp.asarray(weights)
    if jnp.issubdtype(weights.dtype, jnp.complexfloating) or weights.dtype == jnp.bool_:
        raise TypeError(f"weights must be real numbers, got {weights.dtype}")
    if weights.shape != (n,):
        raise ValueError(
            f"weights have shape {weights.shape}, but the data has {n} rows; give one weight a row"
        )
    if not isinstance(weights, Tracer):
        values = np.asarray(weights)
        if not np.all(np.isfinite(values)) or values.min() < 0 or values.max() == 0:
            raise ValueError(
                "weights must be finite, non-negative and not all zero, "
                f"got values from {values.min():g} to {values.max():g}"
            )
    return weights.astype(jnp.float32)


def placement(data: jax.Array) -> Placement | None:
    """(mesh, axis name) if the rows lie split over one mesh axis, else None."""
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
