"""Log densities against normal and mixture distributions, the field's own kernel density, and linear flows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import Gaussian, Recorder, TwoPeaks, noise
from scipy.special import ndtr
from scipy.stats import norm

from flowjax import paths
from flowjax.closed_form import ClosedFormField
from flowjax.closed_form.oracle import posterior as oracle
from flowjax.sampling import bits_per_dimension, hybrid, log_density, sample

PATHS = [paths.Linear(), paths.Trigonometric(), paths.VariancePreserving(), paths.VarianceExploding()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
SCALES = np.array([0.3, 0.8, 1.5])
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def normal_log_density(x, mean, variance) -> np.ndarray:
    """Sum over the last axes of log N(x; mean, variance), in float64."""
    terms = norm.logpdf(np.asarray(x, np.float64), mean, np.sqrt(variance))
    return terms.reshape(len(terms), -1).sum(1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix:
    """dx/dt = A x: x_t = expm(A t) x_0 and the divergence is tr A, whatever A."""

    matrix: Any

    def __call__(self, x, t):
        return (x.reshape(len(x), -1) @ self.matrix.T).reshape(x.shape)

    def log_density(self, x, final):
        from scipy.linalg import expm

        matrix = np.asarray(self.matrix, np.float64)
        start = np.asarray(x, np.float64).reshape(len(x), -1) @ expm(-final * matrix).T
        return normal_log_density(start, 0, 1) - final * np.trace(matrix)


@every_path
@pytest.mark.parametrize(
    "options", [TIGHT, {"solver": "tsit5", **TIGHT}, {"solver": "rk4", "num_steps": 400, "grid": "cosine"}],
    ids=["dopri5", "tsit5", "rk4"],
)  # fmt: skip
def test_states_of_a_normal_distribution(path, options):
    """The flow is linear, so what it makes of the prior is normal, with moments known in closed form."""
    if isinstance(path, paths.VarianceExploding) and "num_steps" in options:
        options = {**options, "grid": "uniform"}  # its own time is warped already
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


@pytest.mark.parametrize("path", PATHS[:2], ids=["Linear", "Trigonometric"])
def test_data_are_blurred_by_what_is_left_of_the_noise(path):
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
    np.testing.assert_allclose(sample(field, out.noise).samples, x, atol=2e-3)
    half = log_density(field, x.astype(np.float16))
    assert half.log_density.dtype == jnp.float32


@every_path
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
    np.testing.assert_allclose(velocity, field(x.astype(np.float32), t, own), rtol=1e-6)


@pytest.mark.parametrize("path", PATHS[:2], ids=["Linear", "Trigonometric"])
@pytest.mark.parametrize("divergence", ["auto", "hutchinson"])
def test_the_exact_field_has_the_density_that_it_states(path, divergence):
    """The kernel density at t = .5 without any flow, against the flow; many probes where it is estimated."""
    data, labels, own = noise(13, 3, seed=3), np.arange(13) % 2, np.array([0, 1, 0, 1, 1])
    field, x = ClosedFormField(data, path=path, labels=labels), noise(5, 3)
    options = {"final_time": 0.5, "of": "state", "condition": {"labels": own}, "divergence": divergence}
    out = log_density(field, x, key=jax.random.key(1), num_probes=64, **options)
    stated = field.posterior(x, 0.5, own).log_density
    if divergence == "auto":
        np.testing.assert_allclose(out.log_density, stated, atol=2e-4)
    else:
        assert np.all(np.abs(out.log_density - stated) < 4 * out.standard_error)
        assert 0 < out.standard_error.min() < out.standard_error.max() < 0.1


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
    out = log_density(Wrong(), x, divergence=divergence, key=key, final_time=0.5, of="state")
    off = 0 if divergence == "hutchinson" else 0.5 * 2
    np.testing.assert_allclose(out.log_density, exact - off, atol=1e-4)


@pytest.mark.parametrize("probes", ["rademacher", "gaussian"])
@pytest.mark.parametrize("num_probes", [2, 8])
def test_the_estimate_is_unbiased_within_its_own_standard_error(probes, num_probes):
    d, count, final = 6, 600, 0.5
    flow = Matrix(noise(d, d, seed=5) / 2)
    x = np.repeat(noise(1, d), count, 0)
    options = {"divergence": "hutchinson", "final_time": final, "of": "state", "probes": probes}
    out = log_density(flow, x, num_probes=num_probes, key=jax.random.key(3), **options)
    off = np.asarray(out.log_density, np.float64) - flow.log_density(x, final)
    spread = off.std(ddof=1)
    assert abs(off.mean()) < 3 * spread / np.sqrt(count)
    # The squares of the stated errors are unbiased for the variance, however few probes.
    np.testing.assert_allclose(np.mean(np.square(out.standard_error)), spread**2, rtol=0.2)
    # Known variance of e·Ae: signs see the symmetric part's off-diagonal entries only.
    symmetric = (flow.matrix + flow.matrix.T) / 2
    seen = symmetric - np.diag(np.diag(symmetric)) if probes == "rademacher" else symmetric
    np.testing.assert_allclose(spread, final * np.sqrt(2 * np.sum(seen**2) / num_probes), rtol=0.1)


def test_signs_are_exact_on_a_diagonal_and_one_probe_knows_no_error():
    x, options = noise(3, 4), {"divergence": "hutchinson", "of": "state", "final_time": 0.5}
    flow = Matrix(np.diag(np.float32([1, -2, 0.5, 3])))
    out = log_density(flow, x, key=jax.random.key(0), **options)
    np.testing.assert_allclose(out.log_density, flow.log_density(x, 0.5), atol=2e-4)
    assert np.max(out.standard_error) < 1e-5
    single = log_density(flow, x, key=jax.random.key(0), num_probes=1, **options)
    np.testing.assert_allclose(single.log_density, out.log_density, atol=2e-4)
    assert np.all(np.isnan(single.standard_error))


def test_many_dimensions_are_estimated_unless_the_trace_is_asked_for():
    flow, x = Matrix(noise(70, 70, seed=5) / 20), noise(2, 70)
    options = {"final_time": 0.5, "of": "state", "rtol": 1e-6, "atol": 1e-6}
    exact = flow.log_density(x, 0.5)
    with pytest.raises(ValueError, match=r"in 70 dimensions is estimated .* give key=jax.random.key\(0\)"):
        log_density(flow, x, **options)
    out = log_density(flow, x, key=jax.random.key(0), **options)
    assert np.all(np.abs(out.log_density - exact) < 4 * out.standard_error)
    assert np.all(out.standard_error > 0)
    trace = log_density(flow, x, divergence="exact", **options)
    np.testing.assert_allclose(trace.log_density, exact, rtol=2e-6)
    np.testing.assert_array_equal(trace.standard_error, 0)


@pytest.mark.parametrize("options", [TIGHT, {"solver": "rk4", "num_steps": 101}], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("pieces", ["hybrid", "breakpoints"])
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


def test_pieces_of_a_hybrid_are_judged_one_by_one():
    """An exact field of 100 dimensions needs no probes, what follows it does; the error is that one's alone."""
    field, x = ClosedFormField(noise(5, 100)), noise(2, 100)
    options = {"key": jax.random.key(0), "final_time": 0.5, "of": "state"}
    whole = log_density(field, x, **{**options, "key": None})
    np.testing.assert_array_equal(whole.standard_error, 0)
    flow = Matrix(noise(100, 100, seed=4) / 20)
    late = log_density(hybrid(field, flow, 0.4), x, **options)
    later = log_density(hybrid(field, flow, 0.49), x, **options)
    assert np.all(later.standard_error > 0)
    np.testing.assert_allclose(late.standard_error, 10 * later.standard_error, rtol=1e-2)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize(
    "options",
    [{}, {"per_sample_steps": True}, {"solver": "heun", "num_steps": 7}],
    ids=["adaptive", "per sample", "fixed"],
)
def test_evaluations_are_those_really_made(divergence, options):
    field = Recorder(TwoPeaks())
    out = log_density(field, noise(1, 2), divergence=divergence, key=jax.random.key(0), **options)
    assert field.count() == int(np.sum(out.num_evaluations)) > 10
    field(noise(1, 2), 0.5)
    assert max(field.calls) < 1


def test_per_sample_steps_equal_common_ones():
    x, labels = noise(4, 2), np.arange(4) % 2
    field = ClosedFormField(noise(6, 2, seed=2), labels=np.arange(6) % 2)
    options = {"condition": {"labels": labels}, "of": "state", "final_time": 0.6, "rtol": 1e-6, "atol": 1e-6}
    for divergence in ("auto", "hutchinson"):
        run = {"divergence": divergence, "key": jax.random.key(0), **options}
        together, alone = (log_density(field, x, per_sample_steps=flag, **run) for flag in (False, True))
        assert alone.num_evaluations.shape == (4,)
        np.testing.assert_allclose(alone.log_density, together.log_density, atol=1e-3)
        np.testing.assert_allclose(alone.standard_error, together.standard_error, atol=1e-3)


def test_jit_vmap_and_the_score_as_derivative():
    """The gradient of a normal log density is −(x − mean)/variance."""
    field, x = Gaussian(scale=SCALES), noise(4, 3)
    expected = log_density(field, x).log_density
    np.testing.assert_allclose(
        jax.jit(lambda f, x: log_density(f, x).log_density)(field, x), expected, atol=1e-4
    )
    one_by_one = jax.vmap(lambda x: log_density(field, x[None]).log_density[0])(x)
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
    """Against the probability of every pixel's bin, which is exact; a mean of 12 288 pixels."""
    scale, rng = 0.3, np.random.default_rng(0)
    pixels = (
        np.round((0.1 + scale * rng.normal(size=(256, 4, 4, 3)) + 1) * 127.5).clip(0, 255).astype(np.uint8)
    )
    field = Gaussian(mean=0.1, scale=scale)
    edges = ((pixels[..., None] + np.array([-0.5, 0.5])) / 127.5 - 1 - 0.1) / scale
    exact = -np.log2(ndtr(edges[..., 1]) - ndtr(edges[..., 0])).mean()
    out = bits_per_dimension(field, pixels, jax.random.key(0))
    assert out.bits.shape == (256,)
    assert abs(np.mean(out.bits) - exact) < 1e-3
    estimate = bits_per_dimension(field, pixels, jax.random.key(0), divergence="hutchinson", num_probes=2)
    assert abs(np.mean(estimate.bits) - exact) < 1e-3
    assert np.max(estimate.standard_error) < 1e-4  # its Jacobian is diagonal
    # Two bits a factor of four: the change of scale is accounted for.
    assert abs(exact - np.log2(127.5 * scale * np.sqrt(2 * np.pi * np.e))) < 0.02


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

    class Scalar(Wrong):
        def velocity_and_divergence(self, x, t):
            return x, jnp.zeros(())

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
