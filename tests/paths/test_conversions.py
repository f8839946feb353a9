"""Interpolation and the conversions between velocity, data, noise and score."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import paths

PATHS = [paths.Linear(), paths.Trigonometric(), paths.VariancePreserving(), paths.VarianceExploding()]
KINDS: list[paths.Prediction] = ["velocity", "data", "noise", "score"]
every_path = pytest.mark.parametrize("path", PATHS, ids=[type(path).__name__ for path in PATHS])


def known(path, t, seed=0, shape=(5, 2, 3)):
    """A pair (x1, x0), its x_t and all four quantities, which for one pair are known without any conversion."""
    rng = np.random.default_rng(seed)
    data, noise = rng.normal(size=shape), rng.normal(size=shape)
    column = np.asarray(t).reshape(np.shape(t) + (1,) * (len(shape) - np.ndim(t)))
    alpha, sigma, alpha_dot, sigma_dot = (
        np.asarray(f(jnp.asarray(column, jnp.float64)))
        for f in (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot)
    )
    return alpha * data + sigma * noise, {
        "velocity": alpha_dot * data + sigma_dot * noise,
        "data": data,
        "noise": noise,
        "score": -noise / sigma,
    }


@every_path
@pytest.mark.parametrize(("source", "target"), list(itertools.product(KINDS, KINDS)))
def test_every_conversion_finds_the_pair(path, source, target):
    with jax.enable_x64(True):
        t = np.array([0.02, 0.3, 0.5, 0.9, 0.999])
        x, quantities = known(path, t)
        out = path.convert(jnp.asarray(quantities[source]), jnp.asarray(x), t, source=source, target=target)
        np.testing.assert_allclose(out, quantities[target], rtol=1e-8, atol=1e-8)


@every_path
@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(KINDS, 2)))
def test_there_and_back_in_float32(path, source, target):
    key = jax.random.split(jax.random.key(0), 2)
    value, x = (jax.random.normal(k, (64, 4)) for k in key)
    t = jnp.linspace(0.1, 0.9, 64)
    there = path.convert(value, x, t, source=source, target=target)
    back = path.convert(there, x, t, source=target, target=source)
    # Rounding is amplified by at most the larger quantity over the smaller and by the ratio of the schedules.
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    amplification = jnp.maximum(alpha / sigma, sigma / alpha) * jnp.maximum(sigma, 1 / sigma)
    scale = jnp.abs(value) + jnp.abs(there) + jnp.abs(x)
    rate = jnp.maximum(1, jnp.maximum(path.alpha_dot(t), -path.sigma_dot(t)))[:, None]
    assert np.all(np.abs(back - value) <= 1e-6 * amplification**2 * scale * rate)


def test_by_hand_on_the_linear_path():
    """t = 1/4, x1 = 3, x0 = −1: x = 0, u = 4, score = 4/3."""
    path, x, t = paths.Linear(), jnp.zeros(1), 0.25
    values: dict[paths.Prediction, float] = {"velocity": 4.0, "data": 3.0, "noise": -1.0, "score": 4 / 3}
    for source, target in itertools.product(KINDS, KINDS):
        out = path.convert(jnp.array([values[source]]), x, t, source=source, target=target)
        np.testing.assert_allclose(out, values[target], rtol=1e-6, err_msg=f"{source} to {target}")


def test_by_hand_on_the_trigonometric_path():
    """t = 1/2, x1 = √2, x0 = 0: x = 1, u = π/2, score = 0."""
    path, x, t = paths.Trigonometric(), jnp.ones(1), 0.5
    values: dict[paths.Prediction, float] = {
        "velocity": np.pi / 2,
        "data": np.sqrt(2),
        "noise": 0.0,
        "score": 0.0,
    }
    for source, target in itertools.product(KINDS, KINDS):
        out = path.convert(jnp.array([values[source]]), x, t, source=source, target=target)
        np.testing.assert_allclose(out, values[target], atol=1e-6, err_msg=f"{source} to {target}")


def test_the_score_is_that_of_a_gaussian():
    """Data N(0, s²) gives x_t ~ N(0, v), v = alpha² s² + sigma²: x̂ = alpha s² x/v and score −x/v."""
    with jax.enable_x64(True):
        x = jnp.linspace(-2, 2, 7)[:, None]
        for path in PATHS:
            for t in (0.1, 0.6, 0.99):
                alpha, sigma, s = float(path.alpha(t)), float(path.sigma(t)), 0.7
                v = alpha**2 * s**2 + sigma**2
                out = path.convert(alpha * s**2 * x / v, x, t, source="data", target="score")
                np.testing.assert_allclose(out, -x / v, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("path", PATHS[:2], ids=["Linear", "Trigonometric"])
def test_at_the_noise_end(path):
    """alpha = 0: the data is lost to noise and score, everything else is regular."""
    x, other = jnp.array([[1.5, -0.5]]), jnp.array([[0.25, 2.0]])
    convert = path.convert
    alpha_dot = path.alpha_dot(jnp.zeros(()))
    velocity = convert(other, x, 0.0, source="data", target="velocity")
    np.testing.assert_allclose(velocity, alpha_dot * other + path.sigma_dot(jnp.zeros(())) * x, rtol=1e-6)
    np.testing.assert_allclose(convert(velocity, x, 0.0, source="velocity", target="data"), other, rtol=1e-6)
    np.testing.assert_array_equal(convert(velocity, x, 0.0, source="velocity", target="noise"), x)
    np.testing.assert_array_equal(convert(other, x, 0.0, source="data", target="score"), -x)
    np.testing.assert_array_equal(convert(x, x, 0.0, source="noise", target="score"), -x)
    np.testing.assert_array_equal(convert(-x, x, 0.0, source="score", target="noise"), x)
    for source in ("noise", "score"):
        assert not np.any(np.isfinite(convert(other, x, 0.0, source=source, target="data")))
        assert not np.any(np.isfinite(convert(other, x, 0.0, source=source, target="velocity")))


@pytest.mark.parametrize("path", PATHS[:2], ids=["Linear", "Trigonometric"])
def test_at_the_data_end(path):
    """sigma = 0: the data prediction is x itself; a data prediction says nothing about the velocity."""
    x, other = jnp.array([[1.5, -0.5]]), jnp.array([[0.25, 2.0]])
    np.testing.assert_array_equal(path.convert(other, x, 1.0, source="velocity", target="data"), x)
    np.testing.assert_array_equal(path.convert(other, x, 1.0, source="noise", target="data"), x)
    assert not np.any(np.isfinite(path.convert(other, x, 1.0, source="data", target="velocity")))


@every_path
def test_interpolation_and_conditional_velocity(path):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x0, x1 = jnp.asarray(rng.normal(size=(2, 4, 3, 2)))
        t = jnp.array([0.0, 0.25, 0.5, 0.75])
        out, velocity = jax.jvp(lambda t: path.interpolate(x0, x1, t), (t,), (jnp.ones(4),))
        expected = np.stack(
            [float(path.alpha(s)) * b + float(path.sigma(s)) * a for s, a, b in zip(t, x0, x1, strict=True)]
        )
        np.testing.assert_allclose(out, expected, rtol=1e-12)
        np.testing.assert_allclose(path.conditional_velocity(x0, x1, t), velocity, rtol=1e-10)
        np.testing.assert_allclose(path.interpolate(x0, x1, 0.25)[1], expected[1], rtol=1e-12)


@every_path
def test_the_prior_has_the_scale_of_sigma_at_zero(path):
    noise = path.sample_prior(jax.random.key(3), (4096, 2))
    assert noise.dtype == jnp.float32
    np.testing.assert_allclose(noise.std(), float(path.sigma(jnp.zeros(()))), rtol=0.03)


@every_path
def test_conversions_differentiate(path):
    """∂(data)/∂(velocity) on the linear path is sigma/(alpha' sigma − …) = 1 − t; finite on every path."""
    x, value = jnp.ones((3, 2)), jnp.full((3, 2), 0.3)
    slope = jax.grad(lambda v: jnp.sum(path.convert(v, x, 0.4, source="velocity", target="data")))(value)
    assert np.all(np.isfinite(slope))
    if isinstance(path, paths.Linear):
        np.testing.assert_allclose(slope, 0.6, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"source": "velocty", "target": "data"}, "source='velocty'.*did you mean 'velocity'"),
        ({"source": "data", "target": "x"}, "target='x'.*choose one of velocity, data, noise, score"),
        ({"source": None, "target": "data"}, "source=None"),
    ],
)
def test_unknown_predictions_are_named(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        paths.Linear().convert(jnp.ones((2, 3)), jnp.ones((2, 3)), 0.5, **kwargs)


@pytest.mark.parametrize(("t", "sentence"), [(jnp.zeros(3), "batch"), (jnp.zeros((2, 3, 1)), "axes")])
def test_times_that_do_not_fit_the_batch_are_refused(t, sentence):
    """A [3] time against [2, 3] points would otherwise broadcast against nothing, or against the wrong axis."""
    x = jnp.ones((2, 3))
    for call in (
        lambda: paths.Linear().convert(x, x, t, source="velocity", target="data"),
        lambda: paths.Linear().interpolate(x, x, t),
        lambda: paths.Linear().conditional_velocity(x, x, t),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
