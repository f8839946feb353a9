"""The U-Net's own facts: its size, its checks, and the layers written here against independent ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax import models
from flowjax.models import _layers


def test_paper_network_has_torchcfm_s_parameters():
    config = models.UNetConfig.paper()
    assert (config.channels, config.channel_mult, config.num_res_blocks) == (128, (1, 2, 2, 2), 2)
    assert (config.attention_resolutions, config.num_heads, config.dropout) == ((16,), 4, 0.1)
    assert models.count_parameters(config) == 35_746_307
    assert models.count_parameters(models.UNetConfig.paper(num_classes=10)) == 35_746_307 + 11 * 512


@pytest.mark.slow
def test_count_by_shapes_is_the_count():
    for config in (models.UNetConfig.digits(), models.MLPConfig()):
        leaves = jax.tree.leaves(nnx.state(models.build(config, rngs=0), nnx.Param))
        assert models.count_parameters(config) == sum(leaf.size for leaf in leaves)
        assert models.count_parameters(models.build(config, rngs=0)) == models.count_parameters(config)
    assert 400_000 < models.count_parameters(models.UNetConfig.digits()) < 560_000


def test_paper_network_evaluates_to_its_event_shape():
    model = nnx.eval_shape(lambda: models.build(models.UNetConfig.paper(num_classes=10), rngs=0))
    graphdef, params = nnx.split(model)
    out = jax.eval_shape(
        lambda p, x, t, c, k: nnx.merge(graphdef, p)(x, t, c, deterministic=False, rngs=k),
        params,
        jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.float32),
        jax.ShapeDtypeStruct((128,), jnp.float32),
        jax.ShapeDtypeStruct((128,), jnp.int32),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    assert (out.shape, out.dtype) == ((128, 32, 32, 3), jnp.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"event_shape": (28, 28, 1)}, "cannot be halved 3 times"),
        ({"event_shape": (32, 20, 1)}, "multiples of 8"),
        ({"event_shape": (32, 32)}, "takes 3"),
        ({"event_shape": (32, 32, 0)}, "no empty one"),
        ({"attention_resolutions": (14,)}, "14, but the levels have the heights"),
        ({"num_heads": 3}, "cannot be split over num_heads=3"),
        ({"channels": 0}, "channels=0 must be positive"),
        ({"channels": 33}, "must be even"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"dropout": float("nan")}, r"\[0, 1\)"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"dtype": "bfloat_16"}, "did you mean 'bfloat16'"),
    ],
)
def test_unet_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        models.UNetConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"event_shape": ()}, "event_shape"),
        ({"width": -1}, "width=-1"),
        ({"time_features": 7}, "even"),
        ({"activation": "sliu"}, "did you mean 'silu'"),
    ],
)
def test_mlp_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        models.MLPConfig(**changes)


@pytest.mark.slow
def test_rectangular_pictures_and_three_levels():
    config = models.UNetConfig.digits(event_shape=(12, 8, 3), channels=8)
    x = jnp.ones((2, 12, 8, 3))
    graphdef, params = nnx.split(models.build(config, rngs=0))
    assert jax.eval_shape(lambda p: nnx.merge(graphdef, p)(x, 0.5), params).shape == x.shape


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("strides", [1, 2])
def test_convolution_is_a_sum_over_neighbours(size, strides):
    layer = _layers.conv3x3(3, 5, strides=strides, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    assert layer.bias is not None
    layer.bias[...] = jnp.arange(5.0)
    kernel, bias = np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.stack(
        [
            [
                np.einsum("bijc,ijco->bo", padded[:, i : i + 3, j : j + 3], kernel) + bias
                for j in range(0, size, strides)
            ]
            for i in range(0, size, strides)
        ]
    ).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(2, 1), (8, 2), (32, 8), (36, 9), (128, 32), (256, 32), (384, 32)]
)
def test_group_sizes(channels, groups):
    assert _layers.group_norm(channels, 32, jnp.float32, rngs=nnx.Rngs(0)).num_groups == groups


def test_sinusoidal_time():
    t = np.array([0.0, 0.25, 1.0], np.float32)
    frequencies = 100.0 / 10_000 ** (np.arange(4) / 4)
    expected = np.concatenate([np.cos(t[:, None] * frequencies), np.sin(t[:, None] * frequencies)], axis=1)
    np.testing.assert_allclose(_layers.sinusoidal(jnp.asarray(t), 8, 100.0), expected, atol=2e-5)


def test_configurations_are_frozen_and_hashable():
    config = models.UNetConfig.paper()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.channels = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert hash(config) == hash(models.UNetConfig())
