"""Everything that changes during training, as one pytree, and how it starts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from flowjax import models

from .config import OptimizerConfig, TrainConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, their average, the optimizer, the step, and the root of all randomness.

    Attributes:
        step: [] int32, optimizer steps done.
        params: nnx state of the model's parameters.
        ema: the same tree, exponentially averaged.
        optimizer: optax state.
        key: uint32 data of the run's base key; step k uses fold_in(key, k).
    """

    step: jax.Array
    params: Any
    ema: Any
    optimizer: optax.OptState
    key: jax.Array


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up from 0, then constant or cosine to 0 at the last step."""
    optimizer = config.optimizer
    if optimizer.schedule == "cosine":
        decay = max(config.steps, optimizer.warmup_steps + 1)
        return optax.warmup_cosine_decay_schedule(0.0, optimizer.learning_rate, optimizer.warmup_steps, decay)
    if optimizer.warmup_steps == 0:
        return optax.constant_schedule(optimizer.learning_rate)
    return optax.warmup_constant_schedule(0.0, optimizer.learning_rate, optimizer.warmup_steps)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clip by global norm, then the named optimizer."""
    optimizer: OptimizerConfig = config.optimizer
    schedule = learning_rate(config)
    # optax counts updates from 0, so the first step of a warm-up from 0 would not move: shift by one.
    shifted = lambda count: schedule(count + 1)  # noqa: E731
    if optimizer.name == "adamw":
        rule = optax.adamw(shifted, weight_decay=optimizer.weight_decay)
    else:
        rule = {"adam": optax.adam, "radam": optax.radam}[optimizer.name](shifted)
    return optax.chain(optax.clip_by_global_norm(optimizer.clip), rule)


def create(config: TrainConfig) -> tuple[nnx.GraphDef, TrainState]:
    """The model's structure and the state at step 0, both determined by the configuration."""
    root = jax.random.key(config.seed)
    model = models.build(config.model, rngs=nnx.Rngs(jax.random.fold_in(root, 0)))
    graphdef, params = nnx.split(model)
    return graphdef, TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),  # its own buffers: the state is donated
        optimizer=make_optimizer(config).init(params),
        key=jax.random.key_data(jax.random.fold_in(root, 1)),
    )
