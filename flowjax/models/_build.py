"""From a configuration to a model, or to its size without building it."""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ._network import Network
from .mlp import MLP, MLPConfig
from .unet import UNet, UNetConfig

NETWORKS: dict[str, tuple[type, Callable[..., Network]]] = {
    "mlp": (MLPConfig, MLP),
    "unet": (UNetConfig, UNet),
}
"""Configuration and class of every kind of network, by the name that configuration files have for it."""


def _network(config: Any) -> Callable[..., Network] | None:
    return next((network for kind, network in NETWORKS.values() if type(config) is kind), None)


def build(config: Any, *, rngs: nnx.Rngs | int) -> Network:
    """The model of a configuration, in evaluation mode.

    Args:
        config: `MLPConfig` or `UNetConfig`.
        rngs: a generator with a stream `params` (or a default one), or a seed.

    Raises:
        TypeError: config is not a model's configuration.
    """
    network = _network(config)
    if network is None:
        known = ", ".join(kind.__name__ for kind, _ in NETWORKS.values())
        raise TypeError(f"{type(config).__name__} is no model configuration; the known ones are {known}")
    return network(config, rngs=nnx.Rngs(rngs) if isinstance(rngs, int) else rngs)


def count_parameters(model: Any) -> int:
    """Number of parameters of a configuration (by shapes alone, nothing is computed) or of a model."""
    if _network(model) is not None:
        config = model
        model = nnx.eval_shape(lambda: build(config, rngs=0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
