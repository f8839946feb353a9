"""Schedules against independent float64 formulas, their derivatives, their ends and their precision near t = 1."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import paths

PATHS = [paths.Linear(), paths.Trigonometric(), paths.VariancePreserving(), paths.VarianceExploding()]
NAMES = [type(path).__name__ for path in PATHS]
every_path = pytest.mark.parametrize("path", PATHS, ids=NAMES)


def reference(path, t):
    """(alpha, sigma) in float64 NumPy, written from the definitions; t float64."""
    s = 1 - t
    match path:
        case paths.Linear():
            return t, s
        case paths.Trigonometric():
            # cos(πt/2), in the form that keeps its digits near t = 1.
            return np.sin(np.pi * t / 2), np.sin(np.pi * s / 2)
        case paths.VariancePreserving():
            # exp(−½∫_0^s (.1 + 19.9 r) dr)
            integral = 0.1 * s + 19.9 * s**2 / 2
            return np.exp(-integral / 2), np.sqrt(-np.expm1(-integral))
        case paths.VarianceExploding():
            high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
            return np.ones_like(t), (high + t * (low - high)) ** 7
    raise AssertionError


@every_path
def test_alpha_and_sigma_are_the_defined_functions(path):
    with jax.enable_x64(True):
        t = np.linspace(0, 1, 101)
        alpha, sigma = reference(path, t)
        np.testing.assert_allclose(path.alpha(jnp.asarray(t)), alpha, rtol=1e-12)
        np.testing.assert_allclose(path.sigma(jnp.asarray(t)), sigma, rtol=1e-12)


@every_path
def test_derivatives_agree_with_jvp(path):
    with jax.enable_x64(True):
        t = jnp.linspace(0.0, 0.9999, 101)
        for function, derivative in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
            _, expected = jax.jvp(function, (t,), (jnp.ones_like(t),))
            np.testing.assert_allclose(derivative(t), expected, rtol=1e-10, atol=1e-12)


@every_path
def test_ends(path):
    with jax.enable_x64(True):
        ends = jnp.array([0.0, 1.0])
        alpha, sigma = np.asarray(path.alpha(ends)), np.asarray(path.sigma(ends))
    expected = {
        "Linear": ((0, 1), (1, 0)),
        "Trigonometric": ((0, 1), (1, 0)),
        "VariancePreserving": ((math.exp(-5.025), 1), (math.sqrt(1 - math.exp(-10.05)), 0)),
        "VarianceExploding": ((1, 1), (80, 0.002)),
    }[type(path).__name__]
    np.testing.assert_allclose(alpha, expected[0], atol=1e-15)
    np.testing.assert_allclose(sigma, expected[1], rtol=1e-12, atol=1e-15)


@every_path
def test_derivatives_are_finite_except_where_documented(path):
    ends = jnp.array([0.0, 1.0])
    assert np.all(np.isfinite(path.alpha_dot(ends)))
    finite = np.isfinite(path.sigma_dot(ends))
    assert finite[0]
    assert finite[1] == (not isinstance(path, paths.VariancePreserving))


@every_path
@pytest.mark.parametrize("distance", [2**-3, 2**-10, 2**-17, 2**-24])
def test_sigma_keeps_its_digits_near_the_data(path, distance):
    """float32 sigma at a float32 t against float64 at that same t: the relative error stays near rounding."""
    t = np.float32(1 - distance)
    _, expected = reference(path, np.float64(t))
    assert abs(float(path.sigma(jnp.float32(t))) / expected - 1) < 1e-6


@every_path
def test_dtype_and_shape_are_those_of_t(path):
    for shape in ((), (3,), (2, 1, 3)):
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
            for function in (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot):
                out = jax.eval_shape(function, jax.ShapeDtypeStruct(shape, dtype))
                assert (out.shape, out.dtype) == (shape, dtype)


@every_path
def test_signal_grows_and_noise_shrinks(path):
    t = jnp.linspace(0, 1, 257)
    ratio = path.sigma(t) / jnp.maximum(path.alpha(t), 1e-30)
    assert bool(jnp.all(ratio[1:] < ratio[:-1]))


@every_path
def test_static_equal_by_value_and_no_reason_to_compile_twice(path):
    assert jax.tree.leaves(path) == []
    traces = []

    @jax.jit
    def f(path, t):
        traces.append(path)
        return path.sigma(t)

    f(path, 0.5)
    f(type(path)(), 0.25)
    assert len(traces) == 1


def test_variance_is_preserved_where_promised():
    t = jnp.linspace(0, 1, 33)
    for path in (paths.Trigonometric(), paths.VariancePreserving(beta_min=0.3, beta_max=5.0)):
        np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1, atol=1e-6)


def test_variance_exploding_time_is_the_karras_grid():
    """Equation (5) of arXiv 2206.00364 with N = 18 steps."""
    i = np.arange(18)
    grid = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(
        paths.VarianceExploding().sigma(jnp.asarray(i / 17, jnp.float32)), grid, rtol=2e-5
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: paths.VariancePreserving(beta_min=0.0),
        lambda: paths.VariancePreserving(beta_min=2.0, beta_max=1.0),
        lambda: paths.VariancePreserving(beta_max=math.inf),
        lambda: paths.VariancePreserving(beta_min=math.nan),
        lambda: paths.VarianceExploding(sigma_min=0.0),
        lambda: paths.VarianceExploding(sigma_min=2.0, sigma_max=1.0),
        lambda: paths.VarianceExploding(sigma_max=math.inf),
        lambda: paths.VarianceExploding(rho=0.0),
        lambda: paths.VarianceExploding(rho=math.nan),
    ],
)
def test_parameters_that_make_no_path_are_refused(build):
    with pytest.raises(ValueError, match="need 0 <"):
        build()


def test_a_path_cannot_be_made_from_the_abstract_class():
    with pytest.raises(TypeError, match="abstract"):
        paths.Path()  # type: ignore[abstract]
