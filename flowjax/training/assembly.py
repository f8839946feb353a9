"""The parts of a run, built from its configuration and data and put on the devices; and what its target costs."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flowjax as fj
from flowjax.closed_form import ClosedFormField

from .config import TrainConfig
from .state import TrainState, create
from .step import Step, draw, make_step


class Assembly(NamedTuple):
    """What the loop turns over.

    Attributes:
        mesh: batches are split over it, the rows of an exact target over its axis `rows` if it has one; everything else
            lies on each of its devices.
        target: the regression target.
        rows: the data set, for targets that need more of it than the batch; else None.
        graphdef: the network's structure.
        state: as at step 0.
        iterator: batches on the host, from the first.
        step: the compiled step.
    """

    mesh: jax.sharding.Mesh
    target: fj.targets.Target
    rows: jax.Array | None
    graphdef: nnx.GraphDef
    state: TrainState
    iterator: Any
    step: Step


def assemble(config: TrainConfig, dataset: fj.data.Dataset, mesh: jax.sharding.Mesh) -> Assembly:
    """Build and place the parts of a run. Touches no file."""
    everywhere = jax.NamedSharding(mesh, jax.P())
    target, rows = make_target(config, dataset, mesh)
    if not _splits_rows(config, mesh):
        target, rows = jax.device_put((target, rows), everywhere)
    graphdef, state = create(config)
    return Assembly(
        mesh=mesh,
        target=target,
        rows=rows,
        graphdef=graphdef,
        state=jax.device_put(state, everywhere),
        iterator=fj.data.batches(dataset, config.batch_size, seed=config.seed),
        step=make_step(config, graphdef),
    )


def make_mesh(
    config: TrainConfig,
    dataset: fj.data.Dataset,
    devices: Sequence[Any] | None = None,
    rows_over: int | None = None,
) -> jax.sharding.Mesh:
    """The mesh of a run, over all devices or those given.

    Args:
        config, dataset: of the run.
        devices: to use.
        rows_over: devices that the rows behind an exact target are split over, groups of so many having all of them;
            None: on TPUs what `flowjax.data.choose_rows_over` says, elsewhere 1 (every device has all).

    Raises:
        ValueError: a number that does not divide the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if rows_over is None:
        rows_over = 1
        if config.target.name == "closed-form" and devices[0].platform == "tpu":
            here = [device for device in devices if device.process_index == jax.process_index()]
            stats = here[0].memory_stats() if here else None
            memory = stats["bytes_limit"] if stats else np.inf
            nbytes = dataset.images.nbytes
            rows_over = fj.data.choose_rows_over(len(devices), config.batch_size, nbytes, memory)
    return fj.data.mesh(devices, rows_over=rows_over)


def _splits_rows(config: TrainConfig, mesh: jax.sharding.Mesh) -> bool:
    return config.target.name == "closed-form" and fj.data.ROWS in mesh.axis_names


def make_field(
    config: TrainConfig, dataset: fj.data.Dataset, mesh: jax.sharding.Mesh | None = None
) -> ClosedFormField:
    """The exact field of the data set as this run sees it: its path, its flips, its classes.

    Rows are split over the mesh's axis `rows` if it has one, filled up with rows of no weight where it does not divide
    them.
    """
    images, labels, weights = dataset.images, dataset.labels if config.data.class_conditional else None, None
    if mesh is not None and _splits_rows(config, mesh):
        images, labels, weights = fj.data.place_rows(mesh, images, labels=labels)
    return ClosedFormField(
        images,
        config.target.build_path(),
        method=config.target.method,
        labels=labels,
        weights=weights,
        horizontal_flip=config.data.horizontal_flip,
    )


def make_target(
    config: TrainConfig, dataset: fj.data.Dataset, mesh: jax.sharding.Mesh | None = None
) -> tuple[fj.targets.Target, jax.Array | None]:
    """The target and the rows it needs beside the batch (None for targets that need none)."""
    path = config.target.build_path()
    if config.target.name == "conditional":
        return fj.targets.conditional(path), None
    if config.target.name == "empirical":
        target = fj.targets.empirical(
            config.target.num_samples,
            path,
            labels=jnp.asarray(dataset.labels) if config.data.class_conditional else None,
            horizontal_flip=config.data.horizontal_flip,
        )
        return target, jnp.asarray(dataset.images)
    return fj.targets.closed_form(make_field(config, dataset, mesh)), None


def time_target(config: TrainConfig, dataset: fj.data.Dataset, *, rounds: int = 7) -> dict[str, float]:
    """Median seconds of a whole step and of its target alone, in turn, on the run's own shapes.

    On as many of the devices as the batch divides over: a run may have been trained elsewhere.
    """
    devices = jax.devices()
    part = config.batch_size // config.optimizer.accumulate
    count = max(k for k in range(1, len(devices) + 1) if part % k == 0)
    parts = assemble(config, dataset, make_mesh(config, dataset, devices[:count]))
    state = parts.state
    batch = fj.data.place(next(parts.iterator), parts.mesh)
    example = draw(config, jax.random.key(0), batch, parts.rows)

    @jax.jit
    def alone(target, example, rows):
        key = jax.random.key(0)
        labels = example.get("labels")
        x0, x1, t, index = (example[name] for name in ("x0", "x1", "t", "index"))
        return target(key, x0, x1, t, index=index, labels=labels, rows=rows)

    seconds = []
    for _ in range(rounds + 1):  # the first round compiles
        begin = time.perf_counter()
        state, metrics = parts.step(state, batch, parts.target, parts.rows)
        jax.block_until_ready(metrics)
        middle = time.perf_counter()
        jax.block_until_ready(alone(parts.target, example, parts.rows))
        seconds.append((middle - begin, time.perf_counter() - middle))
    step_seconds, target_seconds = np.median(seconds[1:], axis=0).tolist()
    return {
        "seconds_per_step": step_seconds,
        "seconds_per_target": target_seconds,
        "target_share_of_step": target_seconds / step_seconds,
    }
