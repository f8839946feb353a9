"""Derivatives, vmap, jit, memory: the field under JAX's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import PATHS, normal

import flowjax as fj
from flowjax.closed_form import construct

N, D, B = 97, 12, 5
TIMES = np.float32([0.1, 0.3, 0.5, 0.7, 0.9])


def reference(data):
    """The posterior by plain autodiff in float64: x [d], t [] → dict of outputs."""

    def evaluate(x, t):
        logits = -jnp.sum((x - t * data) ** 2, 1) / (2 * (1 - t) ** 2)
        log_weights = jax.nn.log_softmax(logits)
        weights = jnp.exp(log_weights)
        mean = weights @ data
        return {
            "velocity": (mean - x) / (1 - t),
            "log_density": jax.scipy.special.logsumexp(logits) - x.shape[0] * jnp.log(1 - t),
            "entropy": -jnp.sum(weights * log_weights),
            "effective_sample_size": 1 / jnp.sum(weights**2),
            "max_weight": jnp.max(weights),
            "variance": weights @ jnp.sum(data**2, 1) - jnp.sum(mean**2),
        }

    return evaluate


@pytest.fixture(scope="module", params=[D, 3], ids=["products", "direct"])
def case(request):
    d = request.param
    data, noise = normal(0, N, d), normal(1, B, d)
    x = (1 - TIMES)[:, None] * noise + TIMES[:, None] * data[:B]
    return data, x


def in_float64(function, data, x):
    with jax.enable_x64(True):
        arguments = jnp.asarray(x, jnp.float64), jnp.asarray(TIMES, jnp.float64)
        result = jax.vmap(function(reference(jnp.asarray(data, jnp.float64))))(*arguments)
        return jax.tree.map(np.asarray, result)


def assert_close(actual, expected, tolerance):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("argument", [0, 1], ids=["x", "t"])
@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_first_derivatives_of_the_velocity(case, mode, argument):
    data, x = case
    field = fj.ClosedFormField(data)
    actual = jax.vmap(mode(lambda f, x, t: f(x, t), argument + 1), (None, 0, 0))(field, x, TIMES)
    expected = in_float64(lambda f: jax.jacfwd(lambda x, t: f(x, t)["velocity"], argument), data, x)
    assert_close(actual, expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_second_derivatives_of_the_velocity(case, outer, inner):
    data, x = case
    field = fj.ClosedFormField(data)
    actual = jax.vmap(outer(inner(field)))(x, TIMES)
    expected = in_float64(lambda f: jax.jacfwd(jax.jacfwd(lambda x, t: f(x, t)["velocity"])), data, x)
    assert_close(actual, expected, 1e-4)


@pytest.mark.parametrize(
    "name", ["log_density", "entropy", "effective_sample_size", "max_weight", "variance"]
)
def test_gradients_of_the_scalars(case, name):
    data, x = case
    field = fj.ClosedFormField(data)
    actual = jax.vmap(jax.grad(lambda x, t: getattr(field.posterior(x, t), name), (0, 1)))(x, TIMES)
    expected = in_float64(lambda f: jax.grad(lambda x, t: f(x, t)[name], (0, 1)), data, x)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 3e-5)


@pytest.mark.parametrize(
    ("path", "precision"),
    [*((path, "float32") for path in PATHS), (PATHS[0], "float64"), (PATHS[3], "float64")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_transformation_on_every_path_and_in_both_precisions(path, precision):
    """jvp, vjp and vmap of the velocity along x and t, from the first time on, against float64 autodiff."""
    times = np.float32([0.0, 0.2, 0.5, 0.8, 0.9])
    data, noise = normal(0, 60, D), normal(1, B, D)
    x = np.asarray(path.interpolate(noise, data[:B], times))
    dx, dt, cotangent = normal(2, B, D), normal(3, B), normal(4, B, D)
    field = fj.ClosedFormField(data, path, precision=precision)

    with jax.enable_x64(True):
        rows = jnp.asarray(data, jnp.float64)

        def exact(x, t):
            alpha, sigma, alpha_dot, sigma_dot = (
                path.alpha(t),
                path.sigma(t),
                path.alpha_dot(t),
                path.sigma_dot(t),
            )
            mean = jax.nn.softmax(-jnp.sum((x - alpha * rows) ** 2, 1) / (2 * sigma**2)) @ rows
            return alpha_dot * mean + sigma_dot * (x - alpha * mean) / sigma

        def by_reference(function, *arguments):
            arguments = [jnp.asarray(a, jnp.float64) for a in arguments]
            return jax.tree.map(np.asarray, jax.vmap(function)(*arguments))

        forward = by_reference(lambda x, t, dx, dt: jax.jvp(exact, (x, t), (dx, dt))[1], x, times, dx, dt)
        reverse = by_reference(lambda x, t, c: jax.vjp(exact, x, t)[1](c), x, times, cotangent)

    assert_close(jax.jvp(field, (x, times), (dx, dt))[1], forward, 1e-4)
    mapped = jax.vmap(lambda x, t, dx, dt: jax.jvp(field, (x, t), (dx, dt))[1])
    assert_close(mapped(x, times, dx, dt), forward, 1e-4)
    for a, e in zip(jax.vjp(field, x, times)[1](cotangent), reverse, strict=True):
        assert_close(a, e, 1e-4)
    assert_close(jax.vmap(field)(x, times), field(x, times), 1e-5)


@pytest.mark.parametrize("t", [0.99, 0.9999, 1 - 2.0**-24])
def test_gradients_stay_finite_late_in_time(t):
    data, x = normal(0, N, D), normal(1, N, D)[:B] * np.float32(0.01) + normal(0, N, D)[:B]
    field = fj.ClosedFormField(data)
    for name in ("log_density", "entropy", "effective_sample_size", "max_weight", "variance"):
        gradient = jax.grad(lambda x, name=name: getattr(field.posterior(x, np.float32(t)), name).sum())(x)
        assert np.all(np.isfinite(gradient)), name


def test_the_score_is_the_gradient_of_the_log_density():
    data, x = normal(0, N, D), normal(1, B, D)
    field = fj.ClosedFormField(data)
    gradient = jax.grad(lambda x: field.posterior(x, 0.4).log_density.sum())(x)
    score = field.path.convert(field(x, 0.4), x, 0.4, source="velocity", target="score")
    np.testing.assert_allclose(gradient, score, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_derivatives_with_labels_weights_flips_and_other_paths():
    data, x = normal(0, N, 2, 3, 2), normal(1, B, 2, 3, 2)
    labels = np.arange(N) % 2
    weights = np.linspace(0.1, 2, N, dtype=np.float32)
    field = fj.ClosedFormField(
        data, fj.paths.Trigonometric(), labels=labels, weights=weights, horizontal_flip=True
    )
    direction = normal(2, B, 2, 3, 2)
    query = np.arange(B) % 2

    def along(step):
        return field(x + step * direction, TIMES, query)

    _, derivative = jax.jvp(along, (jnp.float32(0),), (jnp.float32(1),))
    difference = (along(np.float32(5e-3)) - along(np.float32(-5e-3))) / 1e-2
    np.testing.assert_allclose(derivative, difference, atol=2e-2 * np.abs(derivative).max())
    _, pullback = jax.vjp(lambda x: field(x, TIMES, query), x)
    cotangent = normal(3, B, 2, 3, 2)
    (transposed,) = pullback(cotangent)
    np.testing.assert_allclose(jnp.vdot(transposed, direction), jnp.vdot(cotangent, derivative), rtol=1e-4)


@pytest.mark.slow
def test_any_batch_shape_and_vmap():
    data = normal(0, N, D)
    x, t = normal(1, 2, 3, D), np.float32([0.1, 0.5, 0.8])
    field = fj.ClosedFormField(data)
    whole = field(x, t)
    assert whole.shape == (2, 3, D)
    np.testing.assert_allclose(jax.vmap(field, (0, None))(x, t), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(field, (1, 0), 1)(x, t), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(field(x[0, 1], t[1]), whole[0, 1], rtol=1e-5, atol=1e-6)
    assert field.posterior(x, t).entropy.shape == (2, 3)
    assert field.posterior(x[0, 0], 0.3).argmax.shape == ()
    assert field(x[:0], 0.3).shape == (0, 3, D)


def test_data_is_an_argument_of_the_executable_and_calls_do_not_recompile():
    data, x = normal(0, 4001, D), normal(1, B, D)
    field = fj.ClosedFormField(data)
    traces = []

    @jax.jit
    def step(field, x, t):
        traces.append(1)
        return field(x, t)

    text = step.lower(field, x, TIMES).as_text()
    assert max(map(len, text.splitlines())) < 5000  # 4001 × 12 literals would fill a line of a megabyte
    step(field, x, TIMES)
    step(fj.ClosedFormField(normal(5, 4001, D)), x, TIMES)
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_building_a_field_copies_no_data(dtype):
    rows = jax.ShapeDtypeStruct((20_000, 768), dtype)
    centre = jax.ShapeDtypeStruct((768,), np.float32)
    for lowered in (
        construct._mean.lower(rows, mirrored=(16, 16, 3)),
        construct.square_norms.lower(rows, None),
        construct.square_norms.lower(rows, centre),
    ):
        assert lowered.compile().memory_analysis().temp_size_in_bytes < 2**20  # the rows are 15 or 61 MB
    pictures = jax.numpy.zeros((20, 16, 16, 3), dtype)
    (flat, _), kept = construct.as_rows(pictures), pictures.unsafe_buffer_pointer()
    assert flat.unsafe_buffer_pointer() == kept
    del pictures
    assert not np.asarray(flat).any()


def test_memory_stays_below_the_weights():
    """Forward, jvp and vjp keep well below the [b, n] weights' size times a few."""
    n, b, d = 20_000, 64, 64
    field = fj.ClosedFormField(normal(0, n, d), block_size=256)
    x = normal(1, b, d)

    def value(field, x):
        return field(x, 0.5)

    def jvp(field, x):
        return jax.jvp(lambda x: field(x, 0.5), (x,), (x,))[1]

    def vjp(field, x):
        return jax.vjp(lambda x: field(x, 0.5), x)[1](x)[0]

    for function in (value, jvp, vjp):
        memory = jax.jit(function).lower(field, x).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 4e6, function.__name__  # the weights alone would be 5.1 MB


@pytest.mark.slow
def test_traced_misuse_is_documented():
    data, x = normal(0, N, D), normal(1, 2, D)
    field = fj.ClosedFormField(data, labels=np.arange(N) % 3)
    evaluate = jax.jit(lambda f, x, t, labels=None: f(x, t, labels))
    np.testing.assert_array_equal(evaluate(field, x, -0.5), field(x, 0.0))
    last = np.float32(1) - np.float32(2**-24)
    np.testing.assert_array_equal(evaluate(field, x, 1.0), field(x, last))
    assert np.all(np.isfinite(evaluate(field, x, 7.0)))
    assert np.all(np.isnan(evaluate(field, x, np.float32(np.nan))))
    result = evaluate(field, x, 0.3, jnp.array([1, 3]))
    assert np.all(np.isfinite(result[0]))
    assert np.all(np.isnan(result[1]))
    poisoned = x.copy()
    poisoned[1, 0] = np.nan
    result = field(poisoned, 0.3)
    assert np.all(np.isfinite(result[0]))
    assert np.all(np.isnan(result[1]))
