"""The Inception network of published Fréchet inception distances, out of a weights file that the user names.

Its weights are TensorFlow's of 2015-12-05, as the torch file of pytorch-fid. What it does otherwise than
torchvision's Inception v3: averages leave padding out, and the last block takes maxima where the others average.

References:
    Szegedy et al., arXiv 1512.00567; Heusel et al., arXiv 1706.08500; github.com/mseitzer/pytorch-fid.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from .weights import Convolution, Weights

DIM = 2048
SIDE = 299
PUBLISHED_SHA256 = "6726825d"
"""What the hash of the published file begins with; torch's hub writes it into the file's name."""

_CLASSES = 1008


def _layer(
    weights: Weights, name: str, size: tuple[int, int], window=(1, 1), stride: int = 1, padding="SAME"
):
    return Convolution(
        weights, f"{name}.conv.weight", f"{name}.bn", size, window, stride=stride, padding=padding
    )


class _Chain(nnx.Module):
    """Convolutions one after the other, each with its ReLU."""

    def __init__(self, *layers: Convolution):
        self.layers = nnx.List(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x


class _Fork(nnx.Module):
    """A chain whose end is two convolutions side by side: 1×3 and 3×1."""

    def __init__(self, stem: _Chain, wide: Convolution, tall: Convolution):
        self.stem, self.wide, self.tall = stem, wide, tall

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        return jnp.concatenate([jax.nn.relu(self.wide(x)), jax.nn.relu(self.tall(x))], axis=-1)


class _Mixed(nnx.Module):
    """Branches side by side, and one more behind a pool of 3×3: "average", "max", or "reduce", which has stride 2."""

    def __init__(self, branches: list[nnx.Module], pool: str, behind_pool: _Chain | None):
        self.branches = nnx.List(branches)
        self.pool = pool
        self.behind_pool = behind_pool

    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = {"average": _average, "max": _maximum, "reduce": _reduce}[self.pool](x)
        parts = [branch(x) for branch in self.branches]
        parts.append(pooled if self.behind_pool is None else self.behind_pool(pooled))
        return jnp.concatenate(parts, axis=-1)


def _average(x: jax.Array) -> jax.Array:
    """Mean over 3×3 neighbours; at the border over those that exist."""
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _maximum(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), (1, 1), "SAME")


def _reduce(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), (2, 2), "VALID")


def _mixed_35(weights: Weights, name: str, size: int, pooled: int) -> _Mixed:
    """35×35: 1×1, 5×5 and twice 3×3."""
    w, n = weights, f"{name}.branch"
    return _Mixed(
        [
            _Chain(_layer(w, f"{n}1x1", (size, 64))),
            _Chain(_layer(w, f"{n}5x5_1", (size, 48)), _layer(w, f"{n}5x5_2", (48, 64), (5, 5))),
            _Chain(
                _layer(w, f"{n}3x3dbl_1", (size, 64)),
                _layer(w, f"{n}3x3dbl_2", (64, 96), (3, 3)),
                _layer(w, f"{n}3x3dbl_3", (96, 96), (3, 3)),
            ),
        ],
        "average",
        _Chain(_layer(w, f"{n}_pool", (size, pooled))),
    )


def _to_17(weights: Weights, name: str) -> _Mixed:
    """35×35×288 → 17×17×768."""
    w, n = weights, f"{name}.branch"
    return _Mixed(
        [
            _Chain(_layer(w, f"{n}3x3", (288, 384), (3, 3), 2, "VALID")),
            _Chain(
                _layer(w, f"{n}3x3dbl_1", (288, 64)),
                _layer(w, f"{n}3x3dbl_2", (64, 96), (3, 3)),
                _layer(w, f"{n}3x3dbl_3", (96, 96), (3, 3), 2, "VALID"),
            ),
        ],
        "reduce",
        None,
    )


def _mixed_17(weights: Weights, name: str, middle: int) -> _Mixed:
    """17×17×768: 1×1, once and twice 7×7, each as 1×7 and 7×1."""
    w, n, wide, tall = weights, f"{name}.branch", (1, 7), (7, 1)
    return _Mixed(
        [
            _Chain(_layer(w, f"{n}1x1", (768, 192))),
            _Chain(
                _layer(w, f"{n}7x7_1", (768, middle)),
                _layer(w, f"{n}7x7_2", (middle, middle), wide),
                _layer(w, f"{n}7x7_3", (middle, 192), tall),
            ),
            _Chain(
                _layer(w, f"{n}7x7dbl_1", (768, middle)),
                _layer(w, f"{n}7x7dbl_2", (middle, middle), tall),
                _layer(w, f"{n}7x7dbl_3", (middle, middle), wide),
                _layer(w, f"{n}7x7dbl_4", (middle, middle), tall),
                _layer(w, f"{n}7x7dbl_5", (middle, 192), wide),
            ),
        ],
        "average",
        _Chain(_layer(w, f"{n}_pool", (768, 192))),
    )


def _to_8(weights: Weights, name: str) -> _Mixed:
    """17×17×768 → 8×8×1280."""
    w, n = weights, f"{name}.branch"
    return _Mixed(
        [
            _Chain(
                _layer(w, f"{n}3x3_1", (768, 192)), _layer(w, f"{n}3x3_2", (192, 320), (3, 3), 2, "VALID")
            ),
            _Chain(
                _layer(w, f"{n}7x7x3_1", (768, 192)),
                _layer(w, f"{n}7x7x3_2", (192, 192), (1, 7)),
                _layer(w, f"{n}7x7x3_3", (192, 192), (7, 1)),
                _layer(w, f"{n}7x7x3_4", (192, 192), (3, 3), 2, "VALID"),
            ),
        ],
        "reduce",
        None,
    )


def _mixed_8(weights: Weights, name: str, size: int, pool: str) -> _Mixed:
    """8×8 → 8×8×2048: 1×1, and 3×3 once and twice that end in 1×3 beside 3×1."""
    w, n = weights, f"{name}.branch"
    return _Mixed(
        [
            _Chain(_layer(w, f"{n}1x1", (size, 320))),
            _Fork(
                _Chain(_layer(w, f"{n}3x3_1", (size, 384))),
                _layer(w, f"{n}3x3_2a", (384, 384), (1, 3)),
                _layer(w, f"{n}3x3_2b", (384, 384), (3, 1)),
            ),
            _Fork(
                _Chain(_layer(w, f"{n}3x3dbl_1", (size, 448)), _layer(w, f"{n}3x3dbl_2", (448, 384), (3, 3))),
                _layer(w, f"{n}3x3dbl_3a", (384, 384), (1, 3)),
                _layer(w, f"{n}3x3dbl_3b", (384, 384), (3, 1)),
            ),
        ],
        pool,
        _Chain(_layer(w, f"{n}_pool", (size, 192))),
    )


class FIDInceptionNetwork(nnx.Module):
    """The network itself, up to the 2048 averages of its last layer.

    Args:
        weights: all of its layers; what is left over is another network's.

    Raises:
        ValueError: weights of another network.
    """

    def __init__(self, weights: Weights):
        w = weights
        self.first = _Chain(
            _layer(w, "Conv2d_1a_3x3", (3, 32), (3, 3), 2, "VALID"),
            _layer(w, "Conv2d_2a_3x3", (32, 32), (3, 3), 1, "VALID"),
            _layer(w, "Conv2d_2b_3x3", (32, 64), (3, 3)),
        )
        self.second = _Chain(
            _layer(w, "Conv2d_3b_1x1", (64, 80)),
            _layer(w, "Conv2d_4a_3x3", (80, 192), (3, 3), 1, "VALID"),
        )
        self.mixed = nnx.List(
            [
                _mixed_35(w, "Mixed_5b", 192, 32),
                _mixed_35(w, "Mixed_5c", 256, 64),
                _mixed_35(w, "Mixed_5d", 288, 64),
                _to_17(w, "Mixed_6a"),
                _mixed_17(w, "Mixed_6b", 128),
                _mixed_17(w, "Mixed_6c", 160),
                _mixed_17(w, "Mixed_6d", 160),
                _mixed_17(w, "Mixed_6e", 192),
                _to_8(w, "Mixed_7a"),
                _mixed_8(w, "Mixed_7b", 1280, "average"),
                _mixed_8(w, "Mixed_7c", 2048, "max"),
            ]
        )
        # the classifier is in the file, and no feature: checked and left behind
        w.take("fc.weight", (_CLASSES, DIM))
        w.take("fc.bias", (_CLASSES,))
        w.finish()

    def features(self, pixels: jax.Array) -> jax.Array:
        """RGB in [0, 255], [b, 299, 299, 3] → [b, 2048]."""
        x = _reduce(self.first(pixels / 127.5 - 1))
        x = _reduce(self.second(x))
        for block in self.mixed:
            x = block(x)
        return x.mean(axis=(1, 2))
