"""The regression target of a run: building it from the configuration and the data, and what it costs."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj
from flowjax.closed_form import ClosedFormField

from .config import TrainConfig
from .state import create
from .step import draw, make_step

_ROUNDS = 7


def make_field(config: TrainConfig, dataset) -> ClosedFormField:
    """The exact field of the data set as this run sees it: its path, its flips, its classes."""
    labels = dataset.labels if config.data.class_conditional else None
    return ClosedFormField(
        dataset.images, config.target.build_path(), labels=labels, horizontal_flip=config.data.horizontal_flip
    )


def make_target(config: TrainConfig, dataset) -> tuple[Any, Any]:
    """The target and the rows it needs beside the batch (None for targets that need none)."""
    if config.target.name == "conditional":
        return fj.targets.conditional(config.target.build_path()), None
    if config.target.name == "empirical":
        labels = jnp.asarray(dataset.labels) if config.data.class_conditional else None
        target = fj.targets.empirical(config.target.num_samples, config.target.build_path(), labels=labels)
        return target, jnp.asarray(dataset.images)
    return fj.targets.closed_form(make_field(config, dataset)), None


def time_target(config: TrainConfig, dataset) -> dict[str, float]:
    """Median seconds of a whole step and of its target alone, interleaved, on the run's own shapes."""
    target, rows = make_target(config, dataset)
    graphdef, state = create(config)
    step = make_step(config, graphdef)
    batch = jax.device_put(next(fj.data.batches(dataset, config.batch_size, seed=config.seed)))
    example = draw(config, jax.random.key(0), batch)

    @jax.jit
    def alone(target, example, index, rows):
        labels = example.get("labels")
        key = jax.random.key(0)
        return target(key, example["x0"], example["x1"], example["t"], index=index, labels=labels, rows=rows)

    seconds = []
    for _ in range(_ROUNDS + 1):  # the first round compiles
        begin = time.perf_counter()
        state, metrics = step(state, batch, target, rows)
        jax.block_until_ready(metrics)
        middle = time.perf_counter()
        jax.block_until_ready(alone(target, example, batch["index"], rows))
        seconds.append((middle - begin, time.perf_counter() - middle))
    step_seconds, target_seconds = np.median(seconds[1:], axis=0).tolist()
    return {
        "seconds_per_step": step_seconds,
        "seconds_per_target": target_seconds,
        "target_share_of_step": target_seconds / step_seconds,
    }
