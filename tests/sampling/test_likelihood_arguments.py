"""Every misuse of `log_density` has its sentence, before any work where possible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Gaussian, noise

from flowjax.sampling import bits_per_dimension, log_density


class Scalar:
    """A velocity function whose own divergence has no batch."""

    def __call__(self, x, t):
        return x

    def velocity_and_divergence(self, x, t):
        return x, jnp.zeros(())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"divergence": "exakt"}, "unknown divergence 'exakt'; did you mean 'exact'"),
        ({"probes": "rademacker"}, "unknown kind of probes 'rademacker'; did you mean 'rademacher'"),
        ({"of": "noise"}, "unknown of 'noise'; choose one of data, state"),
        ({"num_probes": 0}, "num_probes must be a positive integer, got 0"),
        ({"num_probes": 2.5}, "num_probes must be a positive integer, got 2.5"),
        ({"divergence": "hutchinson"}, "estimated with random probes: give key"),
        ({"solver": "heun"}, "solver='heun' takes fixed steps"),
        ({"num_steps": 3}, "solver='dopri5' chooses its own steps"),
        ({"solver": "heun", "grid": [0.1, 0.5]}, "the grid must start there and not at 0.1"),
        ({"solver": "heun", "grid": [0.0, 0.5], "final_time": 0.7}, "contradicts"),
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"final_time": 1.0}, "final_time=1.0 must be below 1"),
        ({"final_time": 0.0}, "must come after"),
        ({"x": np.full((3, 2), np.nan, np.float32)}, "x holds NaN or inf in 3 of 3 samples"),
        ({"x": np.zeros(3, np.float32)}, r"x must have shape \[b, \*event\]"),
        ({"condition": {"labels": np.zeros(4, np.int32)}}, r"labels of shape \(4,\) do not fit 3 samples"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense(arguments, sentence):
    def velocity(x, t):
        raise AssertionError("bad arguments must be found before the velocity is called")

    with pytest.raises(ValueError, match=sentence):
        log_density(velocity, **{"x": noise(3, 2), **arguments})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"x": np.zeros((3, 2), np.uint8)}, "x must be floating point, got uint8"),
        ({"velocity": 3}, "int is not callable"),
        ({"path": "linear"}, "path must be a flowjax.paths.Path"),
        ({"condition": 3}, "condition must map names to values"),
    ],
)
def test_types_that_make_no_sense(arguments, sentence):
    with pytest.raises(TypeError, match=sentence):
        log_density(**{"velocity": Gaussian(), "x": noise(3, 2), **arguments})


def test_pictures_of_another_kind_and_velocities_of_another_shape():
    with pytest.raises(
        TypeError, match="images must be uint8, got float32; for other data there is log_density"
    ):
        bits_per_dimension(Gaussian(), noise(3, 2), jax.random.key(0))
    with pytest.raises(TypeError, match="leave of out"):
        bits_per_dimension(Gaussian(), np.zeros((3, 2), np.uint8), jax.random.key(0), of="state")
    with pytest.raises(ValueError, match=r"returned float32 of shape \(2,\) for x of shape \(3, 2\)"):
        log_density(lambda x, t: x[0], noise(3, 2))

    with pytest.raises(ValueError, match=r"divergence of shape \(\) for 3 samples"):
        log_density(Scalar(), noise(3, 2))


def test_a_velocity_that_fails_is_an_error_outside_jit_and_nan_inside():
    def bad(x, t):
        return jnp.where((t > 0.5) & (jnp.arange(3)[:, None] == 1), jnp.nan, -x)

    options = {"solver": "heun", "num_steps": 4}
    with pytest.raises(RuntimeError, match="1 of 3 samples are not finite, first number 1"):
        log_density(bad, noise(3, 2), **options)
    inside = jax.jit(lambda x: log_density(bad, x, **options).log_density)(noise(3, 2))
    np.testing.assert_array_equal(np.isnan(inside), [False, True, False])
    with pytest.raises(RuntimeError, match=r"used up max_steps=3 .* on the way to 0"):
        log_density(Gaussian(), noise(3, 2), max_steps=3)
