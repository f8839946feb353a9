"""A trained network from a run directory, and samples from it."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

import flowjax as fj
from flowjax.models import Network

from .checkpoint import Checkpoints
from .config import TrainConfig
from .run_dir import RunDirectory
from .state import create

_TOLERANCE = (
    1e-3  # a network is no more exact than this; the sampler's own default would triple the evaluations
)
_AT_ONCE = 1024


class Drawn(NamedTuple):
    """samples [num, *event] on the host, and the largest number of evaluations that a block of them took."""

    samples: np.ndarray
    num_evaluations: int


class TrainedNetwork(NamedTuple):
    """What `load_network` returns.

    Attributes:
        velocity: the velocity function: call it as `velocity(x, t)`, with labels if the run is class-conditional; give
            it to `flowjax.sampling.sample`.
        config: of the run.
        step: after which the parameters were saved.
    """

    velocity: Network
    config: TrainConfig
    step: int


def load_network(run: RunDirectory | str | os.PathLike) -> TrainedNetwork:
    """The network of a run's newest checkpoint, with its averaged parameters.

    Args:
        run: a run directory, as `train` returns it, or its path.

    Raises:
        FileNotFoundError: no run, or no checkpoint yet.
        RuntimeError: no checkpoint can be read.
    """
    run = run if isinstance(run, RunDirectory) else RunDirectory(run)
    config = run.config()
    missing = FileNotFoundError(f"{run.path} has no checkpoint yet; train it first")
    if not run.checkpoints.is_dir():
        raise missing
    graphdef, state = create(config)
    with Checkpoints(run.checkpoints) as checkpoints:
        restored = checkpoints.restore(state, None)
    if restored is None:
        raise missing
    return TrainedNetwork(nnx.merge(graphdef, restored.ema), config, int(restored.step))


def draw_samples(
    config: TrainConfig,
    velocity: Network,
    num: int,
    *,
    seed: int,
    labels: np.ndarray | None = None,
    **options,
) -> Drawn:
    """`num` samples of a network by `flowjax.sampling.sample`, in blocks, each split over all devices.

    Args:
        config: of the run.
        velocity: the network.
        num: how many.
        seed: of the noise.
        labels: [num] classes, for class-conditional runs; see `spread_labels`.
        options: for `sample`; dopri5 at a tolerance that suits networks by default.

    Raises:
        ValueError: a class-conditional run without labels.
        RuntimeError: the solver gives up.
    """
    if config.data.class_conditional and labels is None:
        raise ValueError("a class-conditional network needs labels: one class a sample")
    path = config.target.build_path()
    if options.get("solver", "dopri5") in ("dopri5", "tsit5"):
        options = {"rtol": _TOLERANCE, "atol": _TOLERANCE, **options}
    mesh = fj.data.mesh()
    everywhere = jax.NamedSharding(mesh, jax.P())
    graphdef, params = nnx.split(velocity)
    velocity = nnx.merge(graphdef, jax.device_put(params, everywhere))
    key = jax.random.fold_in(jax.random.key(seed), 2)
    noise = np.asarray(path.sample_prior(key, (num, *config.model.event_shape)))
    size = -(-min(num, _AT_ONCE) // mesh.size) * mesh.size
    blocks, evaluations = [], 0
    for start in range(0, num, size):
        # The last block repeats its first rows up to the size of the others: one compilation, equal shares.
        rows = np.resize(np.arange(start, min(start + size, num)), size)
        block = {"noise": noise[rows]}
        if config.data.class_conditional and labels is not None:
            block["labels"] = np.asarray(labels, np.int32)[rows]
        block = fj.data.place(block, mesh)
        condition = {"labels": block["labels"]} if "labels" in block else None
        drawn = fj.sampling.sample(velocity, block["noise"], condition=condition, path=path, **options)
        blocks.append(np.asarray(drawn.samples)[: num - start])
        evaluations = max(evaluations, int(drawn.num_evaluations))
    return Drawn(np.concatenate(blocks), evaluations)


def spread_labels(counts: list[int] | None, num: int) -> np.ndarray | None:
    """Classes for `num` samples in the proportions of the data's class counts, mixed; None without classes.

    Every class gets its share to within one sample, and classes without rows get none: the network never saw them.
    """
    if counts is None:
        return None
    edges = np.cumsum(counts) / np.sum(counts)
    labels = np.searchsorted(edges, (np.arange(num) + 0.5) / num, side="right").astype(np.int32)
    return np.random.default_rng(0).permutation(labels)


def save_grid(images: np.ndarray, file: Path) -> None:
    """A contact sheet of pictures (or a scatter plot of points in the plane); nothing for rows without a picture."""
    if fj.data.drawable(images.shape[1:]):
        fj.data.save_picture(fj.data.contact_sheet(images), file)
