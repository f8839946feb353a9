"""Where batches and the rows of a data set lie: a mesh whose axis `data` splits batches, and `rows` both.

Rows may lie whole on every device, or split over groups of them (axis `rows`), each of which has all. A batch is split
over all devices either way, and the exact target gathers the queries of a group on each of its devices. The fewer
devices a group has, the fewer queries its devices score exactly and the less they send; with too few queries a device
the matrix units starve.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

AXIS = "data"
ROWS = "rows"

_QUERIES = 64
"""A device's share of queries below which a TPU's products take no less time (by its compiler, d = 3072)."""


def mesh(devices: Sequence[Any] | None = None, *, rows_over: int = 1) -> jax.sharding.Mesh:
    """A mesh over all devices of all processes, or over those given.

    Args:
        devices: to use.
        rows_over: devices that the rows of a data set are split over; a divisor of their number.

    Returns:
        A mesh with the one axis `data`, or with the axes `data` and `rows` where rows are split.

    Raises:
        ValueError: no device, or a number that does not divide theirs.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("a mesh needs at least one device, got none")
    count, auto = len(devices), jax.sharding.AxisType.Auto
    if rows_over < 1 or count % rows_over:
        raise ValueError(f"rows_over={rows_over} does not divide {count} devices")
    if rows_over == 1:
        return jax.make_mesh((count,), (AXIS,), axis_types=(auto,), devices=devices)
    # A group may be a part of a slice's side (32 of 8×8×8 chips), which `jax.make_mesh` refuses.
    grid = mesh_utils.create_device_mesh(
        (count // rows_over, rows_over), devices, allow_split_physical_axes=True
    )
    return jax.sharding.Mesh(grid, (AXIS, ROWS), axis_types=(auto, auto))


def choose_rows_over(num_devices: int, batch_size: int, nbytes: float, memory: float) -> int:
    """The fewest devices to split rows over so that they fit and every device has enough queries of its group's.

    Args:
        num_devices: of the mesh.
        batch_size: queries on all of them together.
        nbytes: of all rows.
        memory: bytes of a device, a quarter of which may hold rows.
    """
    for count in range(1, num_devices):
        enough = count * batch_size >= _QUERIES * num_devices
        if num_devices % count == 0 and enough and nbytes <= count * memory / 4:
            return count
    return num_devices


def place(batch: Any, where: jax.sharding.Mesh | jax.sharding.Sharding) -> Any:
    """Put a host batch on the devices, split along the mesh axis `data`, and `rows` where there is one.

    For the rows of a data set on a mesh with the axis `rows` see `place_rows`.

    Args:
        batch: a pytree of arrays [b, …] with one b: this process's share of the batch, or of a data set.
        where: a mesh with an axis `data`, or a sharding used for every array as it is.

    Returns:
        The same pytree of `jax.Array`s. With several processes each array is the global one: [b · processes, …], or
        fewer rows where processes hold the same ones because the mesh has other axes.

    Raises:
        ValueError: no axis `data`, or b does not divide over its devices.
    """
    if isinstance(where, jax.sharding.Mesh):
        if AXIS not in where.axis_names:
            raise ValueError(
                f"the mesh has axes {where.axis_names}, none is named {AXIS!r}; flowjax.data.mesh() makes one"
            )
        axes = tuple(axis for axis in (AXIS, ROWS) if axis in where.axis_names)
        sharding, count = jax.NamedSharding(where, jax.P(axes)), math.prod(where.shape[axis] for axis in axes)
    else:
        sharding, count = where, len(where.device_set)
    processes = len({device.process_index for device in sharding.device_set})
    shares = processes if processes == 1 else _shares(sharding, processes)

    def put(path: tuple, array: Any) -> jax.Array:
        shape = np.shape(array)
        whole = (shape[0] * shares, *shape[1:]) if shape else ()
        try:
            sharding.shard_shape(whole)
        except (ValueError, IndexError):  # IndexError: no axis to split at all
            raise ValueError(
                f"{jax.tree_util.keystr(path) or 'the batch'} of shape {whole} cannot be split over {count} devices; "
                f"use a batch size that is a multiple of {count}, or fewer devices"
            ) from None
        if processes == 1:
            return jax.device_put(array, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(array), whole)

    return jax.tree.map_with_path(put, batch)


def place_rows(
    mesh: jax.sharding.Mesh,
    images: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """The rows of a data set, for a `ClosedFormField`: split over the mesh axis `rows`, or whole without such an axis.

    Where the axis does not divide them they are filled up with rows of no weight. Every process has all of the rows;
    only what its devices hold is put on them.

    Args:
        mesh: of `mesh`.
        images: [n, *event].
        labels, weights: [n] or None.

    Returns:
        All three; weights not None where rows were filled up.
    """
    n, over = len(images), mesh.shape.get(ROWS, 1)
    missing = -n % over
    sharding = jax.NamedSharding(mesh, jax.P(ROWS) if over > 1 else jax.P())
    if missing and weights is None:
        weights = np.ones(n, np.float32)

    def put(array: np.ndarray, filler: Any) -> jax.Array:
        values = np.asarray(array)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(n + missing)
            filled = np.full((max(0, stop - max(start, n)), *values.shape[1:]), filler, values.dtype)
            held = values[start : min(stop, n)]
            return np.concatenate([held, filled]) if len(filled) else held

        return jax.make_array_from_callback((n + missing, *values.shape[1:]), sharding, part)

    # Copies of a row, so that neither the centre nor the largest norm is other than that of the data.
    return (
        put(images, images[0]),
        None if labels is None else put(labels, labels[0]),
        None if weights is None else put(weights, 0),
    )


def _shares(sharding: jax.sharding.Sharding, processes: int) -> int:
    """How many times the rows of one process make all rows."""
    if not isinstance(sharding, jax.NamedSharding):
        return processes
    axes = sharding.spec[0] if sharding.spec else None
    axes = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
    parts = math.prod(sharding.mesh.shape[axis] for axis in axes)
    rows = jax.NamedSharding(sharding.mesh, jax.P(axes))
    indices = rows.addressable_devices_indices_map((parts,)).values()
    mine = {index[0].indices(parts)[0] for index in indices if index is not None}
    return parts // len(mine)
