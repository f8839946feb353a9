"""Predictors of data, noise and score as velocity functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Gaussian, noise

from flowjax import paths
from flowjax.sampling import from_prediction, sample

PATHS = [
    paths.Linear(),
    paths.Trigonometric(),
    paths.VariancePreserving(),
    paths.VarianceExploding(0.01, 5.0),
]
every_path = pytest.mark.parametrize("path", PATHS, ids=[type(path).__name__ for path in PATHS])


def predictor(path, kind, mean=0.7, scale=0.4):
    """E[· | x_t = x] for data N(mean, scale²), written out for each kind."""

    def predict(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        deviation = (x - alpha * mean) / (alpha**2 * scale**2 + sigma**2)
        return {"data": mean + alpha * scale**2 * deviation, "noise": sigma * deviation, "score": -deviation}[
            kind
        ]

    return predict


@every_path
@pytest.mark.parametrize("kind", ["data", "noise", "score"])
def test_velocity_of_each_kind_is_the_exact_one(path, kind):
    velocity, exact = from_prediction(predictor(path, kind), path, kind), Gaussian(path=path)
    with jax.enable_x64(True):
        x = jnp.asarray(noise(6, 2, dtype=np.float64))
        for t in (0.0 if kind == "data" else 1e-3, 0.3, 0.97):
            np.testing.assert_allclose(velocity(x, t), exact(x, jnp.asarray(t)), rtol=1e-8)


@every_path
@pytest.mark.parametrize("kind", ["noise", "score"])
def test_samples_from_the_noise_end_are_those_of_the_velocity(path, kind):
    """From t = 0, where the conversion is singular on two of the paths: what first_time does costs 1e-6."""
    with jax.enable_x64(True):
        exact = Gaussian(path=path)
        x = path.sigma(jnp.zeros(())) * jnp.asarray(noise(6, 2, dtype=np.float64))
        options = {"rtol": 1e-8, "atol": 1e-8, "final_time": 0.99, "denoise_last": False}
        out = sample(from_prediction(predictor(path, kind), path, kind), x, **options)
        np.testing.assert_allclose(out.samples, exact.flow(x, 0.0, 0.99), atol=2e-5)


def test_first_time_is_used_only_where_it_is_needed():
    predict = predictor(paths.Linear(), "noise")
    assert from_prediction(predict, paths.Linear(), "noise").first_time == 1e-3
    assert from_prediction(predict, paths.Linear(), "data").first_time == 0
    assert from_prediction(predict, paths.Linear(), "velocity").first_time == 0
    assert from_prediction(predict, paths.VariancePreserving(), "noise").first_time == 0
    assert from_prediction(predict, paths.VarianceExploding(), "score").first_time == 0
    velocity = from_prediction(predict, paths.Linear(), "noise", first_time=0.1)
    x = jnp.asarray(noise(3, 2))
    np.testing.assert_array_equal(velocity(x, 0.02), velocity(x, 0.1))
    assert np.all(np.isfinite(from_prediction(predict, paths.Linear(), "noise")(x, 0.0)))


def test_the_path_is_kept_for_the_last_jump():
    path = paths.Trigonometric()
    velocity = from_prediction(predictor(path, "data"), path, "data")
    assert velocity.path == path
    x = noise(5, 2)
    out = sample(velocity, x, solver="rk4", num_steps=20, final_time=0.9, trajectory=True)
    assert out.trajectory is not None
    np.testing.assert_allclose(
        out.samples, predictor(path, "data")(out.trajectory[-2], jnp.float32(0.9)), atol=1e-5
    )


def test_conditions_are_passed_on_and_times_per_query_work():
    def predict(x, t, labels):
        return labels[:, None] * jnp.ones_like(x)

    velocity = from_prediction(predict, paths.Linear(), "data")
    x, t, labels = jnp.asarray(noise(3, 2)), jnp.array([0.0, 0.5, 0.75]), jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(
        velocity(x, t, labels=labels), (labels[:, None] - x) / (1 - t)[:, None], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"source": "nois"}, ValueError, "source='nois' is not a prediction; did you mean 'noise'"),
        ({"source": "x"}, ValueError, "choose one of velocity, data, noise, score"),
        (
            {"source": "noise", "first_time": 0.0},
            ValueError,
            r"noise prediction at t = 0 cannot be converted on Linear",
        ),
        ({"source": "data", "first_time": 1.0}, ValueError, r"first_time must lie in \[0, 1\), got 1.0"),
        ({"source": "data", "path": "linear"}, TypeError, "path must be a flowjax.paths.Path"),
    ],
)
def test_misuse(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        from_prediction(lambda x, t: x, **arguments)
    with pytest.raises(TypeError, match="ndarray is not callable"):
        from_prediction(np.zeros(3))
