"""Where batches lie: one mesh axis named `data` over the devices, the first axis of every array split along it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

AXIS = "data"


def mesh(devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """A mesh with the one axis `data` over all devices of all processes, or over those given."""
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("a mesh needs at least one device, got none")
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def place(batch: Any, where: jax.sharding.Mesh | jax.sharding.Sharding) -> Any:
    """Put a host batch on the devices, rows split along the mesh axis `data`.

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
        sharding, count = jax.NamedSharding(where, jax.P(AXIS)), where.shape[AXIS]
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
