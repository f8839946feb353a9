"""The parts of a run, built from its configuration and data and put on the devices; and what its target costs."""

import time
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
        mesh: batches are split over it; everything else lies on each of its devices.
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
    target, rows = jax.device_put(make_target(config, dataset), everywhere)
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


def make_field(config: TrainConfig, dataset: fj.data.Dataset) -> ClosedFormField:
    """The exact field of the data set as this run sees it: its path, its flips, its classes."""
    labels = dataset.labels if config.data.class_conditional else None
    return ClosedFormField(
        dataset.images,
        config.target.build_path(),
        method=config.target.method,
        labels=labels,
        horizontal_flip=config.data.horizontal_flip,
    )


def make_target(config: TrainConfig, dataset: fj.data.Dataset) -> tuple[fj.targets.Target, jax.Array | None]:
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
    return fj.targets.closed_form(make_field(config, dataset)), None


def time_target(config: TrainConfig, dataset: fj.data.Dataset, *, rounds: int = 7) -> dict[str, float]:
    """Median seconds of a whole step and of its target alone, in turn, on the run's own shapes.

    On as many of the devices as the batch divides over: a run may have been trained elsewhere.
    """
    devices = jax.devices()
    part = config.batch_size // config.optimizer.accumulate
    count = max(k for k in range(1, len(devices) + 1) if part % k == 0)
    parts = assemble(config, dataset, fj.data.mesh(devices[:count]))
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
