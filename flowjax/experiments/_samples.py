"""What experiments with trained networks share: rows to train on, rows held out, a network's configuration, samples."""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

import flowjax as fj
from flowjax._choices import check_choice
from flowjax.closed_form import to_float
from flowjax.data import Dataset
from flowjax.models import MLPConfig, UNetConfig
from flowjax.training.config import OptimizerConfig, TrainConfig

from ._networks import configured, subset

NetworkName = Literal["unet", "mlp", "paper"]
TOLERANCE = 1e-3
"""Of the adaptive solver: a network is no more exact than this."""
_AT_ONCE = 256


class Rows(NamedTuple):
    """Rows to train on, without labels, and others that no network sees.

    Attributes:
        train: the rows, in the order that smaller subsets are cut from.
        held_out: [m, *event].
        words: where the held-out rows come from.
    """

    train: Dataset
    held_out: np.ndarray
    words: str


def check_network(experiment: str, dataset: Dataset, network: str) -> None:
    """Raises ValueError for rows that the network cannot take: a U-Net wants pictures with even sides."""
    check_choice("network", network, get_args(NetworkName))
    shape = dataset.event_shape
    if network != "mlp" and (len(shape) != 3 or shape[0] % 2 or shape[1] % 2):
        raise ValueError(
            f"{experiment} trains a U-Net on pictures [height, width, channels] with even sides, and the rows of "
            f"{dataset.name!r} have the shape {shape}; for those take --network mlp"
        )


def check_rows(experiment: str, dataset: Dataset, count: int, held_out: int, option: str) -> None:
    """Raises ValueError where so many rows to train on, and others to hold out, are not there."""
    test = dataset.test_images
    needed = count + (held_out if test is None else 0)
    if dataset.num_points < needed:
        beside = f" and {held_out} others to hold out" if test is None else ""
        raise ValueError(
            f"{experiment} needs {needed} rows, {count} to train on{beside}, and {dataset.name!r} has "
            f"{dataset.num_points}; choose fewer with {option}"
        )
    if test is not None and len(test) < held_out:
        raise ValueError(
            f"{experiment} needs {held_out} held-out rows, and {dataset.name!r} has {len(test)}; "
            f"choose fewer with --num-held-out"
        )


def rows_of(dataset: Dataset, count: int, held_out: int, seed: int) -> Rows:
    """`count` rows to train on, drawn once, and `held_out` of the test rows or, without those, of the others."""
    plain = dataclasses.replace(dataset, labels=None, class_names=None, test_images=None, test_labels=None)
    if dataset.test_images is not None:
        order = np.random.default_rng(seed).permutation(len(dataset.test_images))[:held_out]
        return Rows(subset(plain, count, seed), dataset.test_images[order], "the data set's own test rows")
    both = subset(plain, count + held_out, seed).images
    return Rows(subset(plain, count, seed), both[count:], "the rows that no network was trained on")


def first(rows: Dataset, count: int) -> Dataset:
    """The first rows of a training set."""
    return dataclasses.replace(rows, name=f"{rows.name}, first {count}", images=rows.images[:count])


def coarser(dataset: Dataset, largest_side: int) -> Dataset:
    """Pictures averaged over 2×2 pixels until no side is longer, or one would be odd; the data set itself where none
    is, and rows that are no pictures."""
    images, test = dataset.images, dataset.test_images
    while images.ndim == 4 and max(images.shape[1:3]) > largest_side:
        if images.shape[1] % 4 or images.shape[2] % 4:
            break
        images, test = _halved(images), None if test is None else _halved(test)
    if images is dataset.images:
        return dataset
    name = f"{dataset.name}-{images.shape[1]}x{images.shape[2]}"
    return dataclasses.replace(dataset, name=name, images=images, test_images=test)


def _halved(images: np.ndarray) -> np.ndarray:
    n, height, width, channels = images.shape
    blocks = np.asarray(to_float(images)).reshape(n, height // 2, 2, width // 2, 2, channels)
    return blocks.mean((2, 4), dtype=np.float32)


def network_config(
    dataset: Dataset, *, steps: int, batch_size: int, channels: int, seed: int, network: NetworkName
) -> TrainConfig:
    """Plain conditional flow matching, no flips.

    Args:
        dataset: rows to train on; a batch may be larger than they are.
        channels: of a U-Net's first level.
        network: "unet", of a size that two cores train; "mlp", for rows of any shape; "paper", with the optimizer of
            arXiv 2506.03719 too.
    """
    model = None
    if network == "mlp":
        model = MLPConfig(event_shape=dataset.event_shape)
    elif network == "paper":
        model = _paper_network(dataset.event_shape)
    every = max(1, min(steps // 4, 5000))
    config = configured(
        dataset, steps=steps, channels=channels, seed=seed, model=model, checkpoint_every=every
    )
    optimizer = OptimizerConfig() if network == "paper" else config.optimizer
    return dataclasses.replace(config, batch_size=batch_size, optimizer=optimizer)


def network_words(network: NetworkName, channels: int, steps: int, batch_size: int) -> str | None:
    """What was cut from the paper's networks, or None."""
    if network == "paper":
        return None
    what = (
        f"U-Nets with {channels} channels on two levels" if network == "unet" else "fully connected networks"
    )
    return (
        f"Cut: {what}, {steps} steps of {batch_size} at a learning rate of 1e-3; the paper has U-Nets with 128 "
        "channels on four levels."
    )


def _paper_network(event_shape: tuple[int, ...]) -> UNetConfig:
    """The network for CIFAR-10, with fewer levels where the sides cannot be halved three times."""
    height, width, channels = event_shape
    levels = next(k for k in (4, 3, 2, 1) if not (height % 2 ** (k - 1) or width % 2 ** (k - 1)))
    attention = min((height >> level for level in range(levels)), key=lambda side: abs(side - 16))
    return UNetConfig.paper(
        event_shape=(height, width, channels),
        channel_mult=(1, 2, 2, 2)[:levels],
        attention_resolutions=(attention,),
    )


def prior(shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    """Noise [count, *shape], the same for the same seed."""
    return np.random.default_rng([seed, 1]).normal(size=(count, *shape)).astype(np.float32)


def draw(velocity: Any, noise: np.ndarray) -> np.ndarray:
    """Samples [b, *event] of a velocity function by dopri5, a block at a time."""
    blocks = []
    for start in range(0, len(noise), _AT_ONCE):
        block = noise[start : start + _AT_ONCE]
        padded = np.resize(block, (min(_AT_ONCE, len(noise)), *block.shape[1:]))
        drawn = fj.sampling.sample(velocity, padded, rtol=TOLERANCE, atol=TOLERANCE)
        blocks.append(np.asarray(drawn.samples)[: len(block)])
    return np.concatenate(blocks)


def features_of(dataset: Dataset, pretrained: bool) -> Any:
    """The feature space of Fréchet distances.

    Args:
        dataset: with labels; a classifier learns from them.
        pretrained: a published network where there is one for these pictures, else the small classifier or pixels.
    """
    module = fj.metrics.features
    return module.for_dataset(dataset) if pretrained else module.default_features(dataset)


def check_features(dataset: Dataset, pretrained: bool) -> None:
    """Raises RuntimeError, before anything is trained, where a pretrained network is asked for and not installed."""
    if pretrained and dataset.images.ndim == 4 and dataset.event_shape[2] == 3:
        features_of(dataset, pretrained)


def frechet(features: Any, samples: np.ndarray, reference: np.ndarray) -> float:
    """Fréchet distance of pictures [m, *event] to others."""
    return float(fj.metrics.frechet_distance(features.features(samples), features.features(reference)))


def plain_log(axis: Any) -> None:
    """Marks at 1, 2 and 5 of every decade of a logarithmic matplotlib axis, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def by_size(axes: Any, sizes: tuple[int, ...]) -> None:
    """A logarithmic x-axis of matplotlib Axes with a mark at every decade of the numbers of rows."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set(xlabel="rows trained on", xscale="log", xlim=(sizes[0] / 1.2, sizes[-1] * 1.2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
