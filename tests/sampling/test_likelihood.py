"""Log densities against normal and mixture distributions, the field's own kernel density, and linear flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Gaussian, Recorder, TwoPeaks, noise, normal_log_density
from flax import nnx
from scipy.special import ndtr
from scipy.stats import norm

from flowjax import paths
from flowjax.closed_form import ClosedFormField
from flowjax.sampling import bits_per_dimension, hybrid, log_density

SCALES = np.array([0.3, 0.8, 1.5])
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize(
    ("path", "options"),
    [
        (paths.Linear(), {"solver": "tsit5", **TIGHT}),
        (paths.Trigonometric(), {"solver": "rk4", "num_steps": 400, "grid": "cosine"}),
        (paths.VariancePreserving(), TIGHT),
        (paths.VarianceExploding(), TIGHT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_states_of_a_normal_distribution(path, options):
    """The flow is linear, so what it makes of the prior is normal, with moments known in closed form."""
    with jax.enable_x64(True):
        field = Gaussian(mean=0.7, scale=SCALES, path=path)
        first, last = jnp.zeros(()), jnp.asarray(0.7)
        x = jnp.asarray(noise(5, 3, dtype=np.float64)) * float(path.sigma(last) + 1)
        mean = field.flow(jnp.zeros((1, 3)), 0.0, 0.7)
        variance = path.sigma(first) ** 2 * field.variance(last) / field.variance(first)
        out = log_density(field, x, of="state", final_time=0.7, **options)
        np.testing.assert_allclose(out.log_density, normal_log_density(x, mean, variance), rtol=2e-7)
        np.testing.assert_allclose(out.noise, field.flow(x, 0.7, 0.0), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(out.standard_error, 0)


def test_data_are_blurred_by_what_is_left_of_the_noise():
    path = paths.Trigonometric()
    with jax.enable_x64(True):
        field, x = Gaussian(scale=SCALES, path=path), 0.7 + SCALES * noise(6, 3, dtype=np.float64)
        exact = normal_log_density(x, 0.7, SCALES**2)
        for left in (0.1, 1e-3):
            last = jnp.asarray(1 - left)
            blurred = SCALES**2 + float(path.sigma(last) / path.alpha(last)) ** 2
            out = log_density(field, x, final_time=1 - left, **TIGHT)
            np.testing.assert_allclose(out.log_density, normal_log_density(x, 0.7, blurred), rtol=1e-6)
        assert np.max(np.abs(out.log_density - exact)) < 2e-4  # at the default end: of second order


def test_the_defaults_in_float32_on_a_mixture():
    """Two peaks in each of four coordinates: not linear, and the trace is taken by forward-mode products."""
    field, x = TwoPeaks(), np.float32([[-0.8, 0.8, 0.0, 1.9], [0.1, -0.3, 2.4, -1.0], [0, 0, 0, 0]])
    peaks = [norm.logpdf(np.float64(x), sign * 0.8, np.sqrt(0.25 + 1e-6)) for sign in (-1, 1)]
    exact = (np.logaddexp(*peaks) - np.log(2)).sum(1)
    out = log_density(field, x)
    np.testing.assert_allclose(out.log_density, exact, atol=5e-4)
    again = log_density(field, x.reshape(3, 2, 1, 2))
    np.testing.assert_allclose(again.log_density, exact, atol=5e-4)
    assert again.noise.shape == (3, 2, 1, 2)
    half = log_density(field, x.astype(np.float16))
    assert half.log_density.dtype == jnp.float32


@pytest.mark.parametrize(
    ("path", "divergence"),
    [
        (paths.Linear(), "auto"),
        pytest.param(paths.Trigonometric(), "hutchinson", marks=pytest.mark.slow),
    ],
)
def test_the_exact_field_has_the_density_that_it_states(path, divergence):
    """The kernel density at t = .5 without any flow, against the flow; many probes where it is estimated."""
    data, labels, own = noise(13, 3, seed=3), np.arange(13) % 2, np.array([0, 1, 0, 1, 1])
    field, x = ClosedFormField(data, path=path, labels=labels), noise(5, 3)
    options = {"final_time": 0.5, "of": "state", "condition": {"labels": own}, "divergence": divergence}
    out = log_density(field, x, key=jax.random.key(1), num_probes=64, **options)
    stated = field.posterior(x, 0.5, own).log_density
    if divergence == "auto":
        np.testing.assert_allclose(out.log_density, stated, atol=2e-4)
        # Beside its data the way back is smooth from the default end too: a kernel density of width .001.
        near, last = data[:5] + 1e-3 * noise(5, 3, seed=8), np.float32(1 - 1e-3)
        options = {"rtol": 1e-7, "atol": 1e-7, "condition": {"labels": labels[:5]}}
        stated = field.posterior(last * near, last, labels[:5]).log_density + 3 * np.log(last)
        np.testing.assert_allclose(log_density(field, near, **options).log_density, stated, atol=2e-3)
    else:
        assert np.all(np.abs(out.log_density - stated) < 4 * out.standard_error)
        assert 0 < out.standard_error.min() < out.standard_error.max() < 0.1


@pytest.mark.parametrize(
    ("pieces", "options"), [("hybrid", TIGHT), ("breakpoints", {"solver": "rk4", "num_steps": 101})]
)
def test_hybrids_change_where_they_switch(pieces, options):
    switch, final = 0.37, 0.9
    first, second = Gaussian(), Gaussian(mean=-1.0, scale=SCALES[:2])

    class Jumps:
        breakpoints = (switch,)

        def __call__(self, x, t):
            return jnp.where(t < switch, first(x, t), second(x, t))

    velocity = hybrid(first, second, np.float64(switch)) if pieces == "hybrid" else Jumps()
    with jax.enable_x64(True):
        x = jnp.asarray(noise(4, 2, dtype=np.float64))
        cut = float(np.float32(switch)) if pieces == "hybrid" else switch
        start = first.flow(second.flow(x, final, cut), cut, 0.0)
        stretch = np.log(second.variance(final) / second.variance(cut)).sum() / 2
        stretch += 2 * np.log(first.variance(cut) / first.variance(0.0)) / 2
        out = log_density(velocity, x, final_time=final, of="state", **options)
        np.testing.assert_allclose(out.log_density, normal_log_density(start, 0, 1) - stretch, rtol=1e-6)


@pytest.mark.parametrize(
    ("divergence", "options"),
    [
        ("exact", {}),
        ("hutchinson", {"per_sample_steps": True}),
        ("hutchinson", {"solver": "heun", "num_steps": 7}),
    ],
    ids=["adaptive", "per sample", "fixed"],
)
def test_evaluations_are_those_really_made(divergence, options):
    field = Recorder(TwoPeaks())
    out = log_density(field, noise(1, 2), divergence=divergence, key=jax.random.key(0), **options)
    assert field.count() == int(np.sum(out.num_evaluations)) > 10
    field(noise(1, 2), 0.5)
    assert max(field.calls) < 1


def test_per_sample_steps_equal_common_ones():
    """Probes and labels go with their sample."""

    def velocity(x, t, labels):
        return -x * (1 + jnp.reshape(labels, (-1, 1))) + jnp.sin(3 * x[:, ::-1])

    options = {"condition": {"labels": np.arange(4)}, "of": "state", "rtol": 1e-6, "atol": 1e-6}
    options |= {"divergence": "hutchinson", "key": jax.random.key(0), "probes": "gaussian"}
    together, alone = (
        log_density(velocity, noise(4, 2), per_sample_steps=flag, **options) for flag in (False, True)
    )
    assert alone.num_evaluations.shape == (4,)
    np.testing.assert_allclose(alone.log_density, together.log_density, atol=1e-3)
    np.testing.assert_allclose(alone.standard_error, together.standard_error, atol=1e-3)
    assert np.ptp(alone.standard_error) > 0.1


def test_the_density_of_any_network_adds_up_to_one():
    """A random network of two inputs, no gradient field: its density summed over a fine grid of the plane."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(2, 16, rngs=rngs)
            self.outer = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x, t):
            return 2 * self.outer(jnp.tanh(self.inner(x) + 3 * t))

    line = np.linspace(-7, 7, 71, dtype=np.float32)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    out = log_density(Network(nnx.Rngs(1)), grid, of="state", final_time=0.9)
    density = np.exp(np.float64(out.log_density))
    assert density.max() > 0.05
    assert abs(density.sum() * (line[1] - line[0]) ** 2 - 1) < 1e-3


@pytest.mark.slow
def test_jit_vmap_and_the_score_as_derivative():
    """The gradient of a normal log density is −(x − mean)/variance."""
    field, x = Gaussian(scale=SCALES), noise(4, 3)
    expected, options = normal_log_density(x, 0.7, SCALES**2 + 1e-6), {"solver": "rk4", "num_steps": 60}
    compiled = jax.jit(lambda f, x: log_density(f, x, **options).log_density)
    np.testing.assert_allclose(compiled(field, x), expected, atol=1e-3)
    one_by_one = jax.vmap(lambda x: log_density(field, x[None], **options).log_density[0])(x)
    np.testing.assert_allclose(one_by_one, expected, atol=1e-3)
    score = jax.grad(lambda x: log_density(field, x, rtol=1e-6, atol=1e-6).log_density.sum())(x)
    np.testing.assert_allclose(score, -(x - 0.7) / (SCALES**2 + 1e-6), rtol=2e-3, atol=2e-3)


def test_one_compilation_for_all_data_and_keys():
    traces = []

    def velocity(x, t):
        traces.append(t)
        return -x

    options = {"divergence": "hutchinson", "of": "state"}
    log_density(velocity, noise(3, 2), key=jax.random.key(0), **options)
    seen = len(traces)
    log_density(velocity, noise(3, 2, seed=1), key=jax.random.key(1), final_time=0.7, rtol=1e-4, **options)
    assert len(traces) == seen


def test_bits_per_dimension_of_discretised_normal_pictures():
    """Against the probability of every pixel's bin, which is exact; a mean of 3072 pixels."""
    # All of them above the mean, where bins that are off their centres would show.
    scale, rng = 0.15, np.random.default_rng(0)
    normal = np.abs(rng.normal(size=(256, 2, 2, 3)))
    pixels = np.round((0.1 + scale * normal + 1) * 127.5).clip(0, 255).astype(np.uint8)
    field = Gaussian(mean=0.1, scale=scale)
    edges = ((pixels[..., None] + np.array([-0.5, 0.5])) / 127.5 - 1 - 0.1) / scale
    exact = -np.log2(ndtr(edges[..., 1]) - ndtr(edges[..., 0])).mean()
    out = bits_per_dimension(field, pixels, jax.random.key(0))
    assert out.bits.shape == (256,)
    assert abs(np.mean(out.bits) - exact) < 1e-3
    options = {"divergence": "hutchinson", "num_probes": 2, "solver": "rk4", "num_steps": 50}
    estimate = bits_per_dimension(field, pixels, jax.random.key(0), **options)
    assert abs(np.mean(estimate.bits) - exact) < 1e-3
    assert np.max(estimate.standard_error) < 1e-4  # its Jacobian is diagonal
    # Two bits a factor of four: the change of scale is accounted for.
    assert abs(exact - np.log2(127.5 * scale * np.sqrt(2 * np.pi * np.e))) < 0.02
