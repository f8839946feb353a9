"""What a field is asked: queries, times, labels and hints, checked and flat."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


class Queries(NamedTuple):
    """x [b, d] float32 or float64, t [b] in its dtype, labels and hint [b] int32 or None, and the shape of the batch,
    whose product b is."""

    x: jax.Array
    t: jax.Array
    labels: jax.Array | None
    hint: jax.Array | None
    batch: tuple[int, ...]


def flat(
    event_shape: tuple[int, ...],
    x: ArrayLike,
    t: ArrayLike,
    labels: ArrayLike | None = None,
    hint: ArrayLike | None = None,
) -> Queries:
    """Arguments as of a field's call; its labels are checked by `check_labels`.

    Raises:
        TypeError, ValueError: as for a field's call.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"queries must be floating point, got {x.dtype}; convert with flowjax.closed_form.to_float"
        )
    if x.ndim < len(event_shape) or x.shape[x.ndim - len(event_shape) :] != event_shape:
        raise ValueError(f"queries of shape {x.shape} do not end in the data's event shape {event_shape}")
    spread = jax.typeof(x).sharding
    if any(spread.spec) and set(spread.mesh.axis_types) == {jax.sharding.AxisType.Explicit}:
        raise ValueError(
            f"queries split over axes of explicit type ({spread.spec}) are not supported; make the mesh with "
            "axis_types=(jax.sharding.AxisType.Auto, ...), or give every device all queries"
        )
    batch = x.shape[: x.ndim - len(event_shape)]
    x = x.reshape(-1, int(np.prod(event_shape)))
    if x.dtype not in (jnp.float32, jnp.float64):
        x = x.astype(jnp.float32)
    t = _broadcast_to_batch(_check_times(t, x.dtype), batch, "t")
    if labels is not None:
        labels = _broadcast_to_batch(jnp.asarray(labels).astype(jnp.int32), batch, "labels")
    if hint is not None:
        hint = jnp.asarray(hint)
        if not jnp.issubdtype(hint.dtype, jnp.integer):
            raise TypeError(f"hint must be integers, numbers of points, got {hint.dtype}")
        hint = _broadcast_to_batch(hint.astype(jnp.int32), batch, "hint")
    return Queries(x, t, labels, hint, batch)


def check_labels(labels: ArrayLike, num_classes: int, empty: tuple[int, ...]) -> None:
    """Refuse what no class is, and the `empty` ones; values of a trace are unknown.

    Args:
        labels: of any shape.
        num_classes: C, for labels 0..C−1.
        empty: classes without points of positive weight.

    Raises:
        TypeError: no integers.
        ValueError: out of range, or a class without points of positive weight.
    """
    values = np.zeros(0, labels.dtype) if isinstance(labels, Tracer) else _at_hand(labels)
    if values.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {values.dtype}")
    last = num_classes - 1
    if values.size and (values.min() < 0 or values.max() > last):
        raise ValueError(f"labels must lie in 0..{last}, got values from {values.min()} to {values.max()}")
    asked = [label for label in empty if bool((values == label).any())]
    if asked:
        raise ValueError(
            f"class {asked[0]} has no points of positive weight, so it has no velocity; ask for another label"
        )


def _check_times(t: ArrayLike, dtype) -> jax.Array:
    if not isinstance(t, Tracer):
        values = _at_hand(t)
        real = values.dtype.kind in "fiu" or jnp.issubdtype(values.dtype, jnp.floating)
        if not real:
            raise TypeError(f"t must be real numbers, got {t!r}")
        # In the dtype that is computed in: 1 − 1e-9 is 1 as a float32.
        values = values.astype(dtype)
        if not bool(((values >= 0) & (values < 1)).all()):
            raise ValueError(
                f"t must lie in [0, 1) as {values.dtype}, got values from {values.min():g} to {values.max():g}; "
                "the field is singular at t = 1"
            )
    return jnp.asarray(t, dtype)


def inside(t: jax.Array) -> jax.Array:
    """Traced times outside [0, 1) at the nearest inside. Not jnp.clip, which halves the derivative at the ends."""
    last = float(np.nextafter(np.ones((), t.dtype), np.zeros((), t.dtype)))
    return jnp.where(t < 0, 0, jnp.where(t > last, last, t))


def _at_hand(value: ArrayLike) -> np.ndarray | jax.Array:
    """As NumPy, or as it is where other processes have a part of it, whose reductions are then made by all."""
    if isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated):
        return value
    return np.asarray(value)


def _broadcast_to_batch(value: jax.Array, batch: tuple[int, ...], name: str) -> jax.Array:
    # A path pairs t with the first axes of x, broadcasting with the last: where both fit, one of them would be wrong.
    first, last = batch[: value.ndim], batch[len(batch) - value.ndim :]
    if 0 < value.ndim < len(batch) and value.shape == first == last and max(value.shape) > 1:
        raise ValueError(
            f"{name} of shape {value.shape} could go with the first or the last axes of the queries' batch {batch}; "
            f"give it all {len(batch)} axes, for example {name}[..., None]"
        )
    try:
        return jnp.broadcast_to(value, batch).reshape(-1)
    except ValueError:
        raise ValueError(
            f"{name} of shape {value.shape} does not broadcast to the queries' batch shape {batch}"
        ) from None
