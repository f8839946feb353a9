"""One optimizer step, a pure function of the state, a batch and the target."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from flowjax.closed_form import to_float
from flowjax.targets import Target, couplings

from .config import TrainConfig
from .state import TrainState, learning_rate, make_optimizer

Batch = dict[str, jax.Array]
Step = Callable[[TrainState, Batch, Target, jax.Array | None], tuple[TrainState, dict[str, jax.Array]]]

_LAST_TIME = 1 - 2.0**-24  # rounding must not turn a logit-normal time into 1


def make_step(config: TrainConfig, graphdef: nnx.GraphDef) -> Step:
    """Compile-ready step(state, batch, target, rows) → (state, metrics); the state's buffers are donated.

    `batch` has image [b, *event], index [b] and, for class-conditional training, label [b]. `target` and `rows`
    (the data set, or None for targets without need of it) are arguments, so the data is never a constant.
    Metrics: loss, grad_norm, learning_rate, and whether loss, gradient and new parameters are all finite; scalars.

    Runs that differ in their seed, or in what they write when, get one function and so compile it once a process.
    """
    alike = dataclasses.replace(
        config, seed=0, log_every=1, sample_every=1, checkpoint_every=1, num_samples=2
    )
    return _make_step(alike, graphdef)


@functools.lru_cache(maxsize=8)
def _make_step(config: TrainConfig, graphdef: nnx.GraphDef) -> Step:
    optimizer = make_optimizer(config)
    schedule = learning_rate(config)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch, target: Target, rows: jax.Array | None):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        target_key, noise_key, dropout_key = jax.random.split(key, 3)
        example = draw(config, noise_key, batch, rows)
        x0, x1, t = example["x0"], example["x1"], example["t"]
        index, labels = example.pop("index"), example.get("labels")
        velocity = target(target_key, x0, x1, t, index=index, labels=labels, rows=rows)
        example["x_t"] = target.path.interpolate(x0, x1, t)
        example["velocity"] = jax.lax.stop_gradient(velocity)
        loss, gradient = _loss_and_gradient(config, graphdef, state.params, dropout_key, example)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        count = (state.step + 1).astype(jnp.float32)
        # Early on a plain average: the decay's memory would otherwise be full of the random start.
        decay = jnp.minimum(config.optimizer.ema_decay, count / (count + 10))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
        finite = jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), (loss, gradient, params))
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(schedule(state.step + 1), jnp.float32),
            "finite": jax.tree.reduce(jnp.logical_and, finite),
        }
        return TrainState(state.step + 1, params, ema, optimizer_state, state.key), metrics

    return step


def draw(config: TrainConfig, key: jax.Array, batch: Batch, rows: jax.Array | None) -> dict[str, Any]:
    """Noise x0, data x1, time t, row numbers and labels of one batch. The mirror image of row i is row i + n."""
    noise_key, time_key, flip_key = jax.random.split(key, 3)
    x1, index = to_float(batch["image"]), batch["index"]
    if config.data.horizontal_flip:
        flip = jax.random.bernoulli(flip_key, 0.5, (x1.shape[0],) + (1,) * (x1.ndim - 1))
        x1 = jnp.where(flip, jnp.flip(x1, -2), x1)
        if rows is not None:
            index = index + rows.shape[0] * flip.reshape(-1).astype(index.dtype)
    if config.time == "uniform":
        t = jax.random.uniform(time_key, (x1.shape[0],))
    else:
        t = jnp.minimum(jax.nn.sigmoid(jax.random.normal(time_key, (x1.shape[0],))), _LAST_TIME)
    example = {"x0": jax.random.normal(noise_key, x1.shape), "x1": x1, "t": t, "index": index}
    if config.data.class_conditional:
        example["labels"] = batch["label"]
    if config.target.coupling == "optimal-transport":
        example["x0"] = couplings.optimal_transport(example["x0"], x1, example.get("labels"))
    return example


def _loss_and_gradient(config: TrainConfig, graphdef, params, key, example):
    """Mean squared error and its gradient, averaged over `accumulate` micro-batches."""

    def loss(params, key, part):
        model = nnx.merge(graphdef, params)
        prediction = model(part["x_t"], part["t"], part.get("labels"), deterministic=False, rngs=key)
        return jnp.mean((prediction - part["velocity"]) ** 2)

    count = config.optimizer.accumulate
    if count == 1:
        return jax.value_and_grad(loss)(params, key, example)
    # The batch's rows are split over the devices; so stay those of every part when each takes every count-th row.
    parts = jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]).swapaxes(0, 1), example)

    def add(total, inputs):
        part_key, part = inputs
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, part_key, part)), None

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, zero, (jax.random.split(key, count), parts))
    return jax.tree.map(lambda value: value / count, total)
