"""Pixel moments against scipy."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from flowjax.metrics import pixel_moments


def test_moments_are_scipy_s():
    images = np.random.default_rng(0).gamma(2.0, size=(7, 4, 4, 1)).astype(np.float32) - 1
    moments = pixel_moments(images)
    expected = {
        "mean": np.mean(images, dtype=np.float64),
        "std": np.std(images, dtype=np.float64),
        "skewness": scipy.stats.skew(images.astype(np.float64).ravel()),
        "min": images.min(),
        "max": images.max(),
        "outside": np.mean((images > 1) | (images < -1)),
    }
    assert moments.keys() == expected.keys()
    for name, value in expected.items():
        assert type(moments[name]) is float
        np.testing.assert_allclose(moments[name], value, rtol=1e-6, err_msg=name)
    assert 0 < moments["outside"] < 1
    assert pixel_moments(jnp.asarray(images)) == moments


def test_uint8_means_the_interval():
    moments = pixel_moments(np.array([[0, 255]], np.uint8))
    assert (moments["min"], moments["max"], moments["mean"], moments["outside"]) == (-1, 1, 0, 0)


def test_constant_images_have_no_skewness():
    assert pixel_moments(np.full((2, 3), 0.5))["skewness"] == 0


def test_refuses_nothing_and_nan():
    with pytest.raises(ValueError, match="nothing to measure"):
        pixel_moments(np.zeros((0, 8, 8, 1)))
    with pytest.raises(ValueError, match="1 of 2 entries"):
        pixel_moments(np.array([[np.nan, 0.0]]))
