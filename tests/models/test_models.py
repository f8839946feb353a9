"""What every velocity network must do, whatever its architecture."""

import dataclasses
import functools
import json

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from flowjax import models

# Every line of both U-Nets in as few blocks as possible: what these tests cost is compilation.
CONFIGS = {
    "mlp": models.MLPConfig(width=16, num_layers=2),
    "adm": models.UNetConfig(
        event_shape=(4, 4, 2), channels=8, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=(4,), num_heads=2, middle_blocks=1, dropout=0.0,
    ),
    "light": models.UNetConfig.digits(
        event_shape=(4, 4, 1), channels=8, channel_mult=(1, 2), middle_attention=True
    ),
}  # fmt: skip
FAST_COMPILE = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=FAST_COMPILE)


PLAIN = models.MLPConfig(width=16, num_layers=2, residual=False, activation="tanh")


SLOW = [pytest.param(name, marks=[pytest.mark.slow] * (name == "adm")) for name in CONFIGS]


@pytest.fixture(params=SLOW)
def config(request):
    return CONFIGS[request.param]


@functools.cache
def awake(config, seed=0):
    """A model whose parameters are all random: zero-initialised layers hide what is before them."""
    model = models.build(config, rngs=seed)
    params = nnx.state(model, nnx.Param)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    nnx.update(model, unravel(flat + 0.2 * jax.random.normal(jax.random.key(seed + 1), flat.shape)))
    return model


def run(model, *args, key=None, deterministic=None):
    """The call compiled as a whole: operation by operation a small network takes seconds."""
    graphdef, params = nnx.split(model)
    return _run(graphdef, params, args, key, deterministic)


@functools.partial(jit, static_argnames=("graphdef", "deterministic"))
def _run(graphdef, params, args, key, deterministic):
    return nnx.merge(graphdef, params)(*args, rngs=key, deterministic=deterministic)


def close(first, second):
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


def points(config, batch=(5,), seed=3):
    return jax.random.normal(jax.random.key(seed), (*batch, *config.event_shape))


@pytest.mark.slow
def test_any_batch_shape_agrees_with_single_points(config):
    model, x = awake(config), points(config, (2, 3))
    t = jnp.linspace(0.0, 0.9, 6).reshape(2, 3)
    singles = np.stack([[run(model, x[i, j], t[i, j]) for j in range(3)] for i in range(2)])
    assert singles.shape == x.shape
    close(run(model, x, t), singles)
    close(jit(jax.vmap(model))(x, t), singles)


def test_time_broadcasts_and_batches_may_be_empty():
    model, x = awake(CONFIGS["mlp"]), points(CONFIGS["mlp"], (2, 3))
    t = jnp.linspace(0.0, 0.9, 6).reshape(2, 3)
    close(model(x, 0.5), model(x, jnp.full((2, 3), 0.5)))
    close(model(x, t[:, :1]), model(x, jnp.broadcast_to(t[:, :1], (2, 3))))
    close(model(x, t[0]), model(x, jnp.broadcast_to(t[0], (2, 3))))
    assert model(x[:0], t[:0]).shape == (0, 3, 2)


def test_time_and_point_change_the_velocity_and_start_is_zero(config):
    x = points(config)
    assert not run(models.build(config, rngs=0), x, 0.3).any()
    model = awake(config)
    assert jnp.abs(run(model, x, 0.3) - run(model, x, 0.31)).max() > 1e-4
    assert jnp.abs(run(model, x, 0.3) - run(model, x + 0.1, 0.3)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*SLOW, "plain"])
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(kind):
    config = PLAIN if kind == "plain" else CONFIGS[kind]
    config = dataclasses.replace(config, num_classes=3)
    graphdef, params = nnx.split(awake(config))
    labels = jnp.array([0, 1, 2, 3])

    def loss(params):
        return jnp.mean(
            nnx.merge(graphdef, params)(points(config, (4,)), jnp.linspace(0.1, 0.9, 4), labels) ** 2
        )

    for path, leaf in nnx.to_flat_state(jit(jax.grad(loss))(params)):
        assert jnp.isfinite(leaf[...]).all(), path
        assert jnp.abs(leaf[...]).max() > 0, path


def test_forward_derivative_agrees_with_differences(config):
    model, x = awake(config), points(config, (2,))
    direction = points(config, (2,), seed=8)
    tangent = jit(lambda x, v: jax.jvp(lambda x: model(x, 0.4), (x,), (v,))[1])(x, direction)
    step = 1e-2
    difference = run(model, x + step * direction, 0.4) - run(model, x - step * direction, 0.4)
    difference = difference / (2 * step)
    np.testing.assert_allclose(tangent, difference, rtol=0.05, atol=0.02)


@pytest.mark.slow
def test_labels(config):
    config = dataclasses.replace(config, num_classes=3)
    model, x = awake(config), points(config)
    null = run(model, x, 0.5)
    close(null, run(model, x, 0.5, jnp.full(5, 3)))
    outputs = [run(model, x, 0.5, label) for label in range(4)]
    for first in range(4):
        for second in range(first):
            assert jnp.abs(outputs[first] - outputs[second]).max() > 1e-3
    each = run(model, x, 0.5, jnp.array([0, 1, 2, 1, 0]))
    close(each[1], outputs[1][1])
    close(jit(jax.vmap(model, (0, None, 0)))(x, 0.5, jnp.arange(5) % 3)[4], outputs[1][4])
    for wrong in (4, -1, np.array([0, 1, 2, 9, 0])):
        with pytest.raises(ValueError, match=r"outside \[0, 3\]"):
            model(x, 0.5, wrong)
    with pytest.raises(TypeError, match="float32"):
        model(x, 0.5, jnp.zeros(5))
    with pytest.raises(ValueError, match="does not broadcast"):
        model(x, 0.5, jnp.zeros(4, int))
    traced = jit(model)(x, 0.5, jnp.array([0, 1, 2, 3, 4]))
    assert jnp.isfinite(traced[:4]).all()
    assert jnp.isnan(traced[4]).all()


def test_unconditional_model_refuses_labels(config):
    with pytest.raises(ValueError, match="num_classes"):
        awake(config)(points(config), 0.5, jnp.zeros(5, int))


def test_refuses_other_shapes_and_types(config):
    model, x = awake(config), points(config)
    with pytest.raises(ValueError, match="event_shape"):
        model(x[..., :1, None], 0.5)
    with pytest.raises(TypeError, match="floating-point"):
        model(jnp.zeros(config.event_shape, jnp.uint8), 0.5)
    with pytest.raises(ValueError, match="does not broadcast"):
        model(x, jnp.zeros(4))


@pytest.mark.parametrize("kind", ["mlp", "light"])
def test_dropout_is_a_function_of_the_key(kind):
    model = awake(dataclasses.replace(CONFIGS[kind], dropout=0.5))
    x = points(model.config)
    key, other = jax.random.split(jax.random.key(0))
    still = run(model, x, 0.5)
    np.testing.assert_array_equal(still, run(model, x, 0.5, key=key))  # evaluation mode has no use for a key
    with pytest.raises(ValueError, match="no rngs"):
        model(x, 0.5, deterministic=False)
    first = run(model, x, 0.5, deterministic=False, key=key)
    np.testing.assert_array_equal(first, run(model, x, 0.5, deterministic=False, key=key))
    assert jnp.abs(first - run(model, x, 0.5, deterministic=False, key=other)).max() > 1e-3
    assert jnp.abs(first - still).max() > 1e-3
    close(first, jit(lambda k: model(x, 0.5, deterministic=False, rngs=nnx.Rngs(dropout=k)))(key))


@pytest.mark.parametrize("kind", ["mlp", "light"])
def test_dropout_follows_every_way_to_switch_the_mode(kind):
    model = models.build(dataclasses.replace(CONFIGS[kind], dropout=0.5), rngs=0)
    nnx.update(model, nnx.state(awake(model.config)))
    x, key = points(model.config), jax.random.key(0)
    on, off = (run(model, x, 0.5, deterministic=mode, key=key) for mode in (False, True))

    evaluation, params = nnx.split(model)
    training = nnx.graphdef(nnx.view(model, deterministic=False))
    np.testing.assert_array_equal(run(nnx.merge(training, params), x, 0.5, key=key), on)
    np.testing.assert_array_equal(run(nnx.merge(evaluation, params), x, 0.5, key=key), off)
    np.testing.assert_array_equal(run(model, x, 0.5, key=key), off)  # a view leaves the model as it was
    model.train()
    np.testing.assert_array_equal(run(model, x, 0.5, key=key), on)
    model.eval()
    np.testing.assert_array_equal(run(model, x, 0.5, key=key), off)


@pytest.mark.slow
@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("kind", ["mlp", "light"])
def test_works_in_graph_and_tree_mode(kind, graph):
    config = dataclasses.replace(CONFIGS[kind], dropout=0.1)
    model = models.build(config, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    x = points(config)

    @nnx.jit(graph=graph)
    def step(model, optimizer, key):
        def loss(model):
            return jnp.mean((model(x, 0.5, deterministic=False, rngs=key) - 1) ** 2)

        value, gradient = nnx.value_and_grad(loss, graph=graph)(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(step(model, optimizer, jax.random.key(i))) for i in range(5)]
    assert losses[-1] < losses[0]
    graphdef, params = nnx.split(model, graph=graph)
    assert all(isinstance(leaf, nnx.Param) for _, leaf in nnx.to_flat_state(params))
    close(run(nnx.merge(graphdef, params), x, 0.2), run(model, x, 0.2))


@pytest.mark.slow
def test_overfits_a_tiny_batch(config):
    graphdef, params = nnx.split(models.build(config, rngs=0))
    x, target = points(config, (4,)), points(config, (4,), seed=9)
    optimizer = optax.adam(1e-2)

    @jit
    def step(carry):
        params, state = carry
        loss = lambda p: jnp.mean((nnx.merge(graphdef, p)(x, jnp.linspace(0, 0.9, 4)) - target) ** 2)  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    carry, losses = (params, optimizer.init(params)), []
    for _ in range(150):
        carry, value = step(carry)
        losses.append(float(value))
    assert losses[-1] < 0.02 * losses[0]


def test_bfloat16_computes_near_float32_with_float32_parameters(config):
    model = awake(config)
    half = models.build(dataclasses.replace(config, dtype="bfloat16"), rngs=0)
    nnx.update(half, nnx.state(model))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    x = points(config)
    exact, rounded = run(model, x, 0.5), run(half, x, 0.5)
    assert rounded.dtype == jnp.float32
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert 1e-5 < error < 0.05
    assert run(half, x.astype(jnp.bfloat16), 0.5).dtype == jnp.bfloat16


def test_batch_sharded_over_devices_gives_the_same(config):
    model, x = awake(config), points(config, (16,))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    graphdef, params = nnx.split(model)
    params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    output = jit(lambda p, x: nnx.merge(graphdef, p)(x, 0.5))(params, spread)
    assert len(output.sharding.device_set) == 8
    close(output, run(model, x, 0.5))


def test_configuration_survives_json(config):
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    stored = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    assert type(config)(**stored) == config


def test_build_refuses_what_is_no_configuration():
    with pytest.raises(TypeError, match="MLPConfig, UNetConfig"):
        models.build({"width": 3}, rngs=0)


def test_seeds_differ_and_repeat(config):
    first, again, other = (nnx.state(models.build(config, rngs=seed)) for seed in (0, 0, 1))
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), first, again)
    assert all(jax.tree.leaves(equal))
    assert not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, other)))
