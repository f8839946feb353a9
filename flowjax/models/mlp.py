"""A fully connected velocity network, for points in a few dimensions."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from flowjax._choices import check_choice

from ._config import check_event_shape, check_positive, check_rate
from ._layers import DTYPES, Conditioning
from ._network import Network

ACTIVATIONS = {"silu": jax.nn.silu, "gelu": jax.nn.gelu, "relu": jax.nn.relu, "tanh": jnp.tanh}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Every choice of an `MLP`; the defaults fit a density in the plane.

    Attributes:
        event_shape: of one point, any rank; it is flattened.
        width: of every hidden layer.
        num_layers: hidden layers; with `residual` each is a residual block of two matrices.
        residual: whether a layer adds to its input or replaces it.
        activation: "silu", "gelu", "relu" or "tanh".
        time_features: cosines and sines of time; even.
        time_scale: largest angular frequency among them.
        dropout: rate inside the hidden layers, active in training mode only.
        num_classes: None for an unconditional network; otherwise label `num_classes` is the null label.
        dtype: of the computation; parameters are float32 always.

    Raises:
        ValueError: for sizes that do not fit, in one sentence.
    """

    event_shape: tuple[int, ...] = (2,)
    width: int = 256
    num_layers: int = 3
    residual: bool = True
    activation: Literal["silu", "gelu", "relu", "tanh"] = "silu"
    time_features: int = 64
    time_scale: float = 100.0
    dropout: float = 0.0
    num_classes: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        check_event_shape(self.event_shape)
        check_positive(
            width=self.width,
            num_layers=self.num_layers,
            time_features=self.time_features,
            time_scale=self.time_scale,
            num_classes=self.num_classes,
        )
        check_rate(dropout=self.dropout)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("dtype", self.dtype, DTYPES)
        if self.time_features % 2:
            raise ValueError(f"time_features={self.time_features} must be even: cosines and sines in pairs")


class Layer(nnx.Module):
    """One hidden layer, the conditioning added before its (inner) activation."""

    def __init__(self, config: MLPConfig, *, rngs: nnx.Rngs):
        dtype = DTYPES[config.dtype]
        self.activation = ACTIVATIONS[config.activation]
        self.input = nnx.Linear(config.width, config.width, dtype=dtype, rngs=rngs)
        self.condition = nnx.Linear(config.width, config.width, use_bias=False, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, deterministic=True)
        self.output = (
            nnx.Linear(config.width, config.width, dtype=dtype, rngs=rngs) if config.residual else None
        )

    def __call__(self, h: jax.Array, condition: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """[b, width] and [b, width] → [b, width]."""
        branch = self.activation(self.input(h) + self.condition(condition))
        branch = self.dropout(branch, rngs=rngs, deterministic=rngs is None)
        return branch if self.output is None else h + self.output(branch)


class MLP(Network):
    """A velocity function of points: `model(x, t, labels=None)`; its value is zero before training."""

    def __init__(self, config: MLPConfig, *, rngs: nnx.Rngs):
        """Initialises the parameters from the stream `params` of rngs."""
        self.config = config
        self.event_shape, self.num_classes = config.event_shape, config.num_classes
        self.dropout_rate = config.dropout
        self.deterministic = True
        dtype, size = DTYPES[config.dtype], math.prod(config.event_shape)
        self.conditioning = Conditioning(
            config.time_features, config.width, config.time_scale, config.num_classes, dtype, rngs=rngs
        )
        self.input = nnx.Linear(size, config.width, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.output = nnx.Linear(
            config.width, size, dtype=dtype, kernel_init=nnx.initializers.zeros_init(), rngs=rngs
        )

    def evaluate(self, x, t, labels, rngs):
        condition = self.conditioning(t, labels)
        h = self.input(x.reshape(x.shape[0], math.prod(self.event_shape)).astype(DTYPES[self.config.dtype]))
        for layer in self.layers:
            h = layer(h, condition, rngs)
        return self.output(ACTIVATIONS[self.config.activation](h)).reshape(x.shape)
