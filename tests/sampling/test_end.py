"""The end t → 1: reaching the data points themselves, and what the last jump costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Gaussian, Recorder, nearest, noise, order

from flowjax import paths
from flowjax.closed_form import ClosedFormField
from flowjax.sampling import sample

PATHS = [
    paths.Linear(),
    paths.Trigonometric(),
    paths.VariancePreserving(),
    paths.VarianceExploding(),
]


def digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return (load_digits().images[:600] / 8 - 1).astype(np.float32)[..., None]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=[type(path).__name__ for path in PATHS])
def test_every_sample_of_the_exact_field_is_a_data_point(path):
    """256 noises, real data, the default solver: all end on a data point, and control near t = 1 does not explode."""
    data = digits()
    x = path.sample_prior(jax.random.key(0), (256, 8, 8, 1))
    field = Recorder(ClosedFormField(data, path=path))
    out = sample(field, x, path=path)
    distance, index = nearest(out.samples, data)
    assert distance.max() < 1e-4
    assert len(set(index.tolist())) > 100
    assert field.count() == int(out.num_evaluations) < 400


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "dopri5"},
        {"solver": "tsit5", "per_sample_steps": True},
        {"solver": "rk4", "num_steps": 30},
        {"solver": "heun", "num_steps": 30, "grid": "cosine"},
        {"solver": "euler", "num_steps": 30},
    ],
    ids=lambda options: options["solver"],
)
def test_every_solver_reaches_data_points(options):
    data = noise(37, 6, seed=3)
    out = sample(ClosedFormField(data), noise(64, 6), **options)
    assert nearest(out.samples, data)[0].max() < 1e-4


def test_without_the_jump_samples_stop_one_noise_level_away():
    """At final_time the state is alpha y + sigma ε: off the data by about sigma·sqrt(d)."""
    data, x = noise(37, 6, seed=3), noise(64, 6)
    out = sample(ClosedFormField(data), x, denoise_last=False, final_time=0.99)
    distance, index = nearest(out.samples, data)
    assert 0.01 < distance.mean() < 0.1
    rest = np.linalg.norm(np.asarray(out.samples) - 0.99 * data[index], axis=1) / 0.01
    assert 0.5 < rest.mean() / np.sqrt(6) < 1.5


def test_points_closer_than_the_documented_resolution_are_averaged_and_a_later_end_resolves_them():
    data = np.array([[1.0], [1.0005]], np.float32)
    x = noise(32, 1)
    coarse = nearest(sample(ClosedFormField(data), x).samples, data)[0]
    fine = nearest(sample(ClosedFormField(data), x, final_time=1 - 1e-5).samples, data)[0]
    assert np.median(coarse) > 2e-5
    assert np.mean(fine < 1e-6) > 0.9


@pytest.mark.parametrize("path", PATHS[:2], ids=["Linear", "Trigonometric"])
def test_the_jump_is_of_second_order_on_a_smooth_field(path):
    """Doubling what is left to the jump quadruples its error, and at the default it stays below the tolerance."""
    with jax.enable_x64(True):
        field, x = Gaussian(path=path), jnp.asarray(noise(8, 2, dtype=np.float64))
        exact = field.flow(x, 0.0, 1.0)
        left = [0.04, 0.02, 0.01, 0.005]
        errors = [
            float(
                jnp.max(jnp.abs(sample(field, x, rtol=1e-10, atol=1e-10, final_time=1 - d).samples - exact))
            )
            for d in left
        ]
        measured = order([1 / d for d in left], errors)
        default = float(jnp.max(jnp.abs(sample(field, x, rtol=1e-10, atol=1e-10).samples - exact)))
    assert abs(measured - 2) < 0.15, measured
    assert default < 1e-5


def test_the_velocity_is_never_evaluated_at_or_after_the_end():
    field = Recorder(Gaussian())
    for options in ({}, {"per_sample_steps": True}, {"final_time": 1 - 2.0**-24}):
        sample(field, noise(3, 1), **options)
    jax.effects_barrier()
    assert max(field.calls) < 1


def test_the_path_of_the_velocity_is_used_and_can_be_replaced():
    """A constant velocity of 1: data = x + (1 − t) on the linear path, another value on the trigonometric one."""

    class Constant:
        path = paths.Trigonometric()

        def __call__(self, x, t):
            return jnp.ones_like(x)

    x = np.zeros((1, 1), np.float32)
    t = 0.9
    angle = np.pi / 2 * t
    expected = {None: t * np.sin(angle) + np.cos(angle) / (np.pi / 2), paths.Linear(): 1.0}
    for path, value in expected.items():
        out = sample(Constant(), x, solver="euler", num_steps=3, final_time=t, path=path)
        np.testing.assert_allclose(out.samples, value, rtol=1e-5)
    out = sample(lambda x, t: jnp.ones_like(x), x, solver="euler", num_steps=3, final_time=t)
    np.testing.assert_allclose(out.samples, 1.0, rtol=1e-5)
