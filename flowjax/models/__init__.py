"""Velocity networks in flax NNX: one file, one frozen configuration and one class each.

A model is a velocity function: `model(x, t, labels=None)`, x [*batch, *event] → velocity of the same shape.
It holds `nnx.Param` variables (float32) and nothing else, no random state, no statistics; so
`graphdef, params = nnx.split(model)` is the whole model, and gradients, averages and checkpoints are trees
shaped like `params`.

**Dropout.** A new model is in evaluation mode. Dropout is on in a call that is not deterministic, and that
call brings its key. Training code has three equivalent ways, the first of which needs no mode at all:

    graphdef, params = nnx.split(model)

    def loss(params, key, x, t, target):                     # pure; under jax.jit, jax.grad, jax.checkpoint
        model = nnx.merge(graphdef, params)
        return jnp.mean((model(x, t, deterministic=False, rngs=key) - target) ** 2)

    training, params = nnx.split(nnx.view(model, deterministic=False))     # the mode is part of the graphdef:
    evaluation = nnx.graphdef(model)                                       # same params under either one

    model.train()                                            # in place; model.eval() undoes it

With `nnx.jit` and `nnx.Optimizer(model, optax.adam(2e-4), wrt=nnx.Param)` models work in graph and tree mode.
"""

from ._build import NETWORKS as NETWORKS
from ._build import build as build
from ._build import count_parameters as count_parameters
from ._network import Network as Network
from .mlp import MLP as MLP
from .mlp import MLPConfig as MLPConfig
from .unet import UNet as UNet
from .unet import UNetConfig as UNetConfig
