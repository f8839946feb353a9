"""Networks that an experiment trains: in run directories of its own, so that they too go on where they stopped."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from flowjax.data import Dataset
from flowjax.models import MLPConfig, Network, UNetConfig
from flowjax.training.config import OptimizerConfig, TargetConfig, TrainConfig
from flowjax.training.loop import train
from flowjax.training.run_dir import RunDirectory
from flowjax.training.samples import load_network

from ._workspace import Workspace


def configured(
    dataset: Dataset,
    *,
    steps: int,
    batch_size: int = 128,
    channels: int = 32,
    learning_rate: float = 1e-3,
    target: TargetConfig | None = None,
    model: MLPConfig | UNetConfig | None = None,
    seed: int = 0,
    **options: Any,
) -> TrainConfig:
    """A run for pictures of any side by a U-Net of a size that two cores train, or by another network.

    Args:
        dataset: [n, height, width, channels]; with a `model` whatever that takes.
        channels: of the U-Net's first level; two levels, attention from 14×14 on down.
        model: another network.
        options: further fields of `TrainConfig`.
    """
    if model is None:
        height, width, _ = dataset.event_shape
        model = UNetConfig(
            event_shape=(height, width, dataset.event_shape[2]),
            channels=channels,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(min(height, width) // 2,),
            dropout=0.0,
        )
    optimizer = OptimizerConfig(
        learning_rate=learning_rate, schedule="cosine", warmup_steps=min(100, steps // 10), ema_decay=0.999
    )
    few: dict[str, Any] = {"sample_every": steps, "checkpoint_every": max(1, steps // 4), "num_samples": 64}
    return TrainConfig(
        model=model,
        optimizer=optimizer,
        target=target or TargetConfig(name="conditional"),
        steps=steps,
        batch_size=min(batch_size, max(1, dataset.num_points)),
        seed=seed,
        **few | options,
    )


def train_to_the_end(
    work: Workspace,
    name: str,
    config: TrainConfig,
    dataset: Dataset,
    *,
    measure: Callable[[np.ndarray], dict[str, float]] | None = None,
) -> RunDirectory:
    """Train `runs/NAME` in the experiment's folder to its last step, or go on with it, or read what is there.

    The data set is the one given, whatever the configuration names; `measure` is for `flowjax.training.train`.
    """
    path = work.out / "runs" / name
    file = path / "checkpoints" / str(config.steps)
    if not file.is_dir():
        print(f"training {name}, {config.steps} steps", flush=True)
        begin = time.perf_counter()
        path.parent.mkdir(exist_ok=True)
        train(config, path, resume=(path / "config.json").is_file(), dataset=dataset, measure=measure)
        work.spent(f"training-{name}", time.perf_counter() - begin)
    return RunDirectory(path)


def trained(work: Workspace, name: str, config: TrainConfig, dataset: Dataset) -> Network:
    """The velocity function of the run that `train_to_the_end` makes or finds."""
    return load_network(train_to_the_end(work, name, config, dataset)).velocity


def subset(dataset: Dataset, count: int, seed: int = 0) -> Dataset:
    """So many of the rows, drawn once; the first of a larger subset are those of a smaller one."""
    order = np.random.default_rng(seed).permutation(dataset.num_points)[:count]
    labels = None if dataset.labels is None else dataset.labels[order]
    return dataclasses.replace(
        dataset, name=f"{dataset.name}-{count}", images=dataset.images[order], labels=labels
    )
