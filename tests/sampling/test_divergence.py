"""The divergence: the field's own against a float64 reference, exact traces, Hutchinson's estimate and its error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Matrix, noise

from flowjax import paths
from flowjax.closed_form import ClosedFormField
from flowjax.closed_form.oracle import posterior as oracle
from flowjax.sampling import hybrid, log_density

FIXED = {"solver": "rk4", "num_steps": 20, "final_time": 0.5, "of": "state"}


@pytest.mark.parametrize(
    "path",
    [paths.Linear(), paths.Trigonometric(), paths.VariancePreserving(), paths.VarianceExploding()],
    ids=lambda path: type(path).__name__,
)
def test_the_divergence_of_the_field_is_that_of_the_oracle(path):
    """Central differences of the float64 reference, with mirror images, weights and classes."""
    rng = np.random.default_rng(0)
    data, weights = rng.normal(size=(7, 1, 3, 1)).astype(np.float32), rng.uniform(0.1, 1, 7)
    labels, own = np.arange(7) % 2, np.array([0, 1, 1, 0])
    t = np.float32([0.0, 0.3, 0.6, 0.8])
    x = path.interpolate(rng.normal(size=(4, 1, 3, 1)), data[:4], t)
    field = ClosedFormField(data, path=path, weights=weights, labels=labels, horizontal_flip=True)
    velocity, divergence = field.velocity_and_divergence(x, t, own)
    with jax.enable_x64(True):
        times = jnp.asarray(t, jnp.float64)
        schedules = tuple(
            np.asarray(s(times)) for s in (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot)
        )

    def reference(x):
        return oracle(
            data, x, schedules, weights=weights, labels=labels, query_labels=own, horizontal_flip=True
        ).velocity

    x, expected, step = np.asarray(x, np.float64), np.zeros(4), 1e-5
    for i in range(3):
        move = np.zeros((1, 3, 1))
        move[0, i] = step
        expected += (reference(x + move) - reference(x - move))[:, i] / (2 * step)
    np.testing.assert_allclose(divergence, expected, rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(velocity.reshape(4, 3), reference(x), rtol=1e-4, atol=1e-4)


class Wrong:
    """A velocity function whose own divergence is off by 2: shows who asks for it."""

    def __call__(self, x, t):
        return -x

    def velocity_and_divergence(self, x, t):
        return -x, jnp.full(x.shape[:1], 2.0 - x[0].size)


@pytest.mark.parametrize("divergence", ["auto", "exact", "hutchinson"])
def test_a_divergence_of_its_own_is_used_where_it_should_be(divergence):
    x, key = noise(3, 2), jax.random.key(0)
    exact = Matrix(-np.eye(2)).log_density(x, 0.5)
    out = log_density(Wrong(), x, divergence=divergence, key=key, **FIXED)
    off = 0 if divergence == "hutchinson" else 0.5 * 2
    np.testing.assert_allclose(out.log_density, exact - off, atol=1e-4)


@pytest.mark.parametrize(("probes", "num_probes"), [("rademacher", 2), ("gaussian", 8)])
def test_the_estimate_is_unbiased_within_its_own_standard_error(probes, num_probes):
    d, count = 6, 600
    flow = Matrix(noise(d, d, seed=5) / 2)
    x = np.repeat(noise(1, d), count, 0)
    options = {"divergence": "hutchinson", "probes": probes, **FIXED}
    out = log_density(flow, x, num_probes=num_probes, key=jax.random.key(3), **options)
    off = np.asarray(out.log_density, np.float64) - flow.log_density(x, 0.5)
    spread = off.std(ddof=1)
    assert abs(off.mean()) < 3 * spread / np.sqrt(count)
    # The squares of the stated errors are unbiased for the variance, however few probes.
    np.testing.assert_allclose(np.mean(np.square(out.standard_error)), spread**2, rtol=0.2)
    # Known variance of e·Ae: signs see the symmetric part's off-diagonal entries only.
    symmetric = (flow.matrix + flow.matrix.T) / 2
    seen = symmetric - np.diag(np.diag(symmetric)) if probes == "rademacher" else symmetric
    np.testing.assert_allclose(spread, 0.5 * np.sqrt(2 * np.sum(seen**2) / num_probes), rtol=0.1)


def test_signs_are_exact_on_a_diagonal_and_one_probe_knows_no_error():
    x, options = noise(3, 4), {"divergence": "hutchinson", **FIXED}
    flow = Matrix(np.diag(np.float32([1, -2, 0.5, 3])))
    out = log_density(flow, x, key=jax.random.key(0), **options)
    np.testing.assert_allclose(out.log_density, flow.log_density(x, 0.5), atol=2e-4)
    assert np.max(out.standard_error) < 1e-5
    single = log_density(flow, x, key=jax.random.key(0), num_probes=1, **options)
    np.testing.assert_allclose(single.log_density, out.log_density, atol=2e-4)
    assert np.all(np.isnan(single.standard_error))


def test_many_dimensions_are_estimated_unless_the_trace_is_asked_for():
    flow, x = Matrix(noise(70, 70, seed=5) / 20), noise(2, 70)
    exact = flow.log_density(x, 0.5)
    with pytest.raises(ValueError, match=r"in 70 dimensions is estimated .* give key=jax.random.key\(0\)"):
        log_density(flow, x, **FIXED)
    out = log_density(flow, x, key=jax.random.key(0), **FIXED)
    assert np.all(np.abs(out.log_density - exact) < 4 * out.standard_error)
    assert np.all(out.standard_error > 0)
    trace = log_density(flow, x, divergence="exact", **FIXED)
    np.testing.assert_allclose(trace.log_density, exact, rtol=2e-6)
    np.testing.assert_array_equal(trace.standard_error, 0)


@pytest.mark.slow
def test_pieces_of_a_hybrid_are_judged_one_by_one():
    """An exact field of 100 dimensions needs no probes, what follows it does; the error is that one's alone."""
    field, x = ClosedFormField(noise(5, 100)), noise(2, 100)
    options = {"key": jax.random.key(0), **FIXED}
    whole = log_density(field, x, **{**options, "key": None})
    np.testing.assert_array_equal(whole.standard_error, 0)
    flow = Matrix(noise(100, 100, seed=4) / 20)
    late = log_density(hybrid(field, flow, 0.4), x, **options)
    later = log_density(hybrid(field, flow, 0.49), x, **options)
    assert np.all(later.standard_error > 0)
    np.testing.assert_allclose(late.standard_error, 10 * later.standard_error, rtol=1e-2)


def test_a_field_with_its_labels_bound_keeps_its_own_divergence():
    """Else it would ask for a key in 100 dimensions."""
    field = ClosedFormField(noise(5, 100), labels=np.arange(5) % 2)
    x, options = noise(2, 100), {**FIXED, "solver": "heun"}
    bound = log_density(functools.partial(field, labels=1), x, **options)
    np.testing.assert_array_equal(bound.standard_error, 0)
    given = log_density(field, x, condition={"labels": 1}, **options)
    np.testing.assert_allclose(bound.log_density, given.log_density, rtol=1e-6)


def test_the_integral_is_held_to_the_tolerance_in_any_dimension():
    """A state at rest with a wild divergence: among its own coordinates the error of the integral would be lost."""

    class AtRest:
        def __call__(self, x, t):
            return jnp.zeros_like(x)

        def velocity_and_divergence(self, x, t):
            return jnp.zeros_like(x), jnp.full(x.shape[:1], 100 * jnp.cos(40 * t))

    exact = -100 / 40 * np.sin(40 * 0.5)
    outs = [log_density(AtRest(), np.zeros((1, d), np.float32), final_time=0.5, of="state") for d in (1, 400)]
    for out, d in zip(outs, (1, 400), strict=True):
        assert abs(out.log_density[0] + d / 2 * np.log(2 * np.pi) - exact) < 2e-3
    assert int(outs[0].num_evaluations) == int(outs[1].num_evaluations)
