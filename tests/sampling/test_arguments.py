"""Every misuse has its sentence, before any work; and the time grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import noise

from flowjax.sampling import grids, sample

X = noise(3, 2)
FIXED = {"solver": "heun", "num_steps": 4}


def velocity(x, t):
    raise AssertionError("bad arguments must be found before the velocity is called")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"solver": "Dopri"}, "unknown solver 'Dopri'; did you mean 'dopri5'"),
        ({"solver": "rk45"}, "unknown solver 'rk45'; did you mean 'rk4'"),
        ({"solver": "?"}, "choose one of euler, midpoint, heun, rk4, dopri5, tsit5"),
        ({"solver": "heun"}, "solver='heun' takes fixed steps: give num_steps"),
        ({"solver": "heun", "num_steps": 0}, "num_steps must be a positive integer, got 0"),
        ({"solver": "heun", "num_steps": -3}, "positive integer, got -3"),
        ({"solver": "heun", "num_steps": 2.5}, "positive integer, got 2.5"),
        ({"num_steps": 10}, "solver='dopri5' chooses its own steps, so num_steps and grid do not apply"),
        ({"grid": "cosine"}, "num_steps and grid do not apply"),
        ({**FIXED, "per_sample_steps": True}, "per_sample_steps needs 'dopri5' or 'tsit5'"),
        ({**FIXED, "grid": "cosin"}, "unknown grid 'cosin'; did you mean 'cosine'"),
        ({**FIXED, "grid": lambda u: u * 2}, "a grid must increase from 0 to 1, but it runs from 0 to 2"),
        ({**FIXED, "grid": lambda u: np.abs(u - 0.5) * 2}, "runs from 1 to 1 and does not increase"),
        ({**FIXED, "grid": lambda u: u[:2]}, r"the grid returned shape \(2,\) for 5 points"),
        ({"solver": "heun", "grid": [0.0, 0.5, 0.5]}, "the grid's times must increase"),
        ({"solver": "heun", "grid": [0.5, 0.0]}, "the grid's times must increase"),
        ({"solver": "heun", "grid": [0.0]}, "at least two times"),
        ({"solver": "heun", "grid": [0.0, 0.5, 1.0]}, "final_time=1.0 must be below 1"),
        ({"solver": "heun", "grid": [-0.5, 0.5]}, r"start_time must lie in \[0, 1\), got -0.5"),
        ({"solver": "heun", "grid": [0.0, 0.5], "num_steps": 3}, "num_steps=3 contradicts the grid's 2 times"),
        ({"solver": "heun", "grid": [0.0, 0.5], "final_time": 0.9}, "the grid runs from 0.0 to 0.5, which contradicts"),
        ({"rtol": 0.0}, "rtol must be positive and finite, got 0.0"),
        ({"rtol": -1e-3}, "rtol must be positive"),
        ({"rtol": float("nan")}, "rtol must be positive"),
        ({"atol": -1.0}, "atol must be positive"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"start_time": -0.1}, r"start_time must lie in \[0, 1\), got -0.1"),
        ({"start_time": float("nan")}, "start_time must lie in"),
        ({"start_time": 0.5, "final_time": 0.25}, "final_time=0.25 must come after start_time=0.5"),
        ({"final_time": 1.0}, "final_time=1.0 must be below 1, where velocities may be singular"),
        ({"final_time": 1 - 1e-9}, "must be below 1"),
        ({"final_time": 1.5}, "must be below 1"),
        ({"final_time": float("nan")}, "final_time=nan"),
        ({"save_times": []}, "save_times must be a non-empty list"),
        ({"save_times": [0.5, 0.2]}, "save_times must increase"),
        ({"save_times": [0.2, 0.9995]}, r"save_times must lie in \[0.0, 0.999\], or 1 for the end itself"),
        ({"save_times": [0.2, 1.0], "denoise_last": False}, r"save_times must lie in \[0.0, 0.999\], got"),
        ({"save_times": [-0.2]}, "save_times must lie in"),
        ({"save_times": [0.2], "trajectory": True}, "both choose times"),
        ({"noise": np.full((3, 2), np.nan, np.float32)}, "noise holds NaN or inf in 3 of 3 samples, first in number 0"),
        ({"noise": np.array([[0.0], [np.inf]], np.float32)}, "in 1 of 2 samples, first in number 1"),
        ({"noise": np.zeros(3, np.float32)}, r"noise must have shape \[b, \*event\]"),
        ({"noise": np.zeros((0, 3), np.float32)}, "at least one sample"),
        ({"condition": {"labels": np.zeros(4, np.int32)}}, r"labels of shape \(4,\) do not fit 3 samples"),
    ],
)  # fmt: skip
def test_values(arguments, sentence):
    arguments = {"noise": X, **arguments}
    with pytest.raises(ValueError, match=sentence):
        sample(velocity, **arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"noise": np.zeros((3, 2), np.int32)}, "noise must be floating point, got int32"),
        ({"noise": np.zeros((3, 2), np.complex64)}, "noise must be floating point, got complex64"),
        ({"velocity": np.zeros(3)}, "ndarray is not callable"),
        ({"condition": np.zeros(3)}, "condition must map names to values"),
        ({"path": "linear"}, "path must be a flowjax.paths.Path"),
    ],
)
def test_types(arguments, sentence):
    with pytest.raises(TypeError, match=sentence):
        sample(**{"velocity": velocity, "noise": X, **arguments})


@pytest.mark.parametrize("options", [FIXED, {"solver": "dopri5"}], ids=["heun", "dopri5"])
@pytest.mark.parametrize(
    "bad",
    [lambda x, t: x[0], lambda x, t: jnp.zeros(()), lambda x, t: x * (1 + 0j), lambda x, t: x.astype(int)],
)
def test_a_velocity_of_another_shape_or_kind(bad, options):
    with pytest.raises(ValueError, match=r"the velocity function returned .* for x of shape \(3, 2\)"):
        sample(bad, X, **options)


def test_fixed_steps_that_blow_up_are_an_error_outside_jit_and_visible_inside():
    def bad(x, t):
        return jnp.where((t > 0.5) & (jnp.arange(3)[:, None] == 1), jnp.nan, -x)

    with pytest.raises(RuntimeError, match="1 of 3 samples are not finite, first number 1"):
        sample(bad, X, **FIXED)
    inside = np.asarray(jax.jit(lambda x: sample(bad, x, **FIXED).samples)(X))
    np.testing.assert_array_equal(np.isnan(inside).all(1), [False, True, False])


@pytest.mark.parametrize("name", sorted(grids.NAMED))
@pytest.mark.parametrize("num_steps", [1, 7, 100])
def test_named_grids_run_from_end_to_end(name, num_steps):
    times = grids.times(grids.find(name), num_steps, 0.125, 0.75)
    assert times.shape == (num_steps + 1,)
    assert times[0] == 0.125
    assert times[-1] == 0.75
    assert np.all(np.diff(times) > 0)


def test_shapes_of_the_grids():
    steps = {name: np.diff(grids.times(warp, 10, 0, 1)) for name, warp in grids.NAMED.items()}
    np.testing.assert_allclose(steps["uniform"], 0.1, rtol=1e-12)
    np.testing.assert_allclose(steps["cosine"], steps["cosine"][::-1])
    assert steps["cosine"][0] < 0.03
    assert steps["karras"][0] < steps["karras"][4] > steps["karras"][-1]
    np.testing.assert_allclose(grids.times(grids.power(2), 4, 0, 1), [0, 7 / 16, 12 / 16, 15 / 16, 1])


def test_karras_is_the_published_grid_before_it_is_stretched():
    """(1 − t)/t at the 18 times, undoing the stretch, against equation (5) of arXiv 2206.00364."""
    u = np.linspace(0, 1, 18)
    sigma = (80 ** (1 / 7) + u * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    first, last = 1 / 81, 1 / 1.002
    times = first + grids.karras()(u) * (last - first)
    np.testing.assert_allclose((1 - times) / times, sigma, rtol=1e-9)


@pytest.mark.parametrize("exponent", [0, -1, np.inf, np.nan])
def test_exponents_that_make_no_grid(exponent):
    with pytest.raises(ValueError, match="exponent must be positive and finite"):
        grids.power(exponent)
    with pytest.raises(ValueError, match="need 0 < sigma_min"):
        grids.karras(rho=exponent)
