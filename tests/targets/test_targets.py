"""The three targets: same expectation, falling variance."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.targets import draw_distinct, draw_support, empirical_velocity

PATHS = [fj.paths.Linear(), fj.paths.Trigonometric(), fj.paths.VariancePreserving()]


def exact_velocity(data, x, t, path):
    """û by direct differences, whatever dtype the arguments have; x [d]."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    weights = jax.nn.softmax(-jnp.sum((x - alpha * data) ** 2, 1) / (2 * sigma**2))
    mean = weights @ data
    return path.alpha_dot(t) * mean + path.sigma_dot(t) * (x - alpha * mean) / sigma, weights


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("num_samples", [1, 2, 3, 5])
def test_expectation_over_all_draws_is_the_exact_velocity(path, num_samples, monkeypatch):
    """Enumerate every x1 and every ordered draw, weigh x1 by its posterior given x_t: the mean is û."""
    monkeypatch.setattr("flowjax.targets._targets.to_float", lambda rows: rows)  # keep float64 rows
    n, d, t = 5, 3, 0.45
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        data, x = jnp.asarray(rng.normal(size=(n, d))), jnp.asarray(rng.normal(size=d))
        time = jnp.full(n, t, jnp.float64)
        velocity, posterior = exact_velocity(data, x, time[0], path)
        noise = (x - path.alpha(time)[:, None] * data) / path.sigma(time)[:, None]
        index = jnp.arange(n, dtype=jnp.int32)
        draws = [jnp.asarray(p, jnp.int32) for p in itertools.permutations(range(n), num_samples)]
        targets = [empirical_velocity(path, noise, data, time, index, s, data) for s in draws]
        expectation = posterior @ (sum(targets) / len(targets))
        np.testing.assert_allclose(expectation, velocity, rtol=1e-13, atol=1e-13)
        if num_samples == n:
            np.testing.assert_allclose(targets[0], jnp.broadcast_to(velocity, (n, d)), rtol=1e-12)


def test_every_draw_has_the_right_size_and_never_the_row_itself():
    n, m = 6, 4
    for support in itertools.permutations(range(n), m):
        allowed = np.asarray(draw_support(jnp.arange(n), jnp.asarray(support)))
        assert np.all(allowed.sum(1) == m - 1)
        for row in range(n):
            assert row not in np.asarray(support)[allowed[row]]


@pytest.mark.parametrize(("n", "m"), [(8, 2), (4, 1), (5, 3)])  # draws, one draw, a permutation
def test_draws_are_uniform(n, m):
    """Every ordered draw equally often, by a chi-square of 40 000 (some of which had to be repeated for n = 8)."""
    keys = jax.random.split(jax.random.key(0), 40_000)
    drawn = np.asarray(jax.vmap(lambda key: draw_distinct(key, n, m))(keys))
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    outcomes = math.perm(n, m)
    assert len(counts) == outcomes  # so none holds a number twice
    expected = len(keys) / outcomes
    excess = (np.sum((counts - expected) ** 2) / expected - (outcomes - 1)) / math.sqrt(2 * (outcomes - 1))
    assert abs(excess) < 4


@pytest.mark.parametrize("m", [1, 128, 1000, 3000])
def test_draws_are_different_rows(m):
    drawn = np.asarray(draw_distinct(jax.random.key(m), 10_000, m))
    assert drawn.dtype == np.int32
    assert len(np.unique(drawn)) == m
    assert drawn.min() >= 0
    assert drawn.max() < 10_000


@pytest.mark.slow
def test_draws_of_every_device_by_itself():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0), 2)
    draw = jax.shard_map(
        lambda key: draw_distinct(key[0], 1000, 5)[None],
        mesh=mesh,
        in_specs=jax.P("data"),
        out_specs=jax.P("data"),
    )
    np.testing.assert_array_equal(draw(keys), [draw_distinct(key, 1000, 5) for key in keys])


@pytest.mark.parametrize("m", [0, 11])
def test_more_rows_than_there_are(m):
    with pytest.raises(ValueError, match=f"cannot draw {m} different numbers below 10"):
        draw_distinct(jax.random.key(0), 10, m)


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    data = rng.normal(size=(40, 4)).astype(np.float32)
    index = np.arange(16, dtype=np.int32)
    x0 = rng.normal(size=(16, 4)).astype(np.float32)
    t = np.linspace(0.05, 0.9, 16, dtype=np.float32)
    return data, index, x0, data[index], t


def test_one_sample_is_conditional_and_all_samples_are_exact(batch):
    data, index, x0, x1, t = batch
    key = jax.random.key(0)
    conditional = fj.targets.conditional()(key, x0, x1, t)
    one = fj.targets.empirical(1)(key, x0, x1, t, index=index, rows=data)
    np.testing.assert_array_equal(one, conditional)
    exact = fj.targets.closed_form(fj.ClosedFormField(data))(key, x0, x1, t)
    everything = fj.targets.empirical(40)(key, x0, x1, t, index=index, rows=data)
    np.testing.assert_allclose(everything, exact, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_variance_falls_with_the_number_of_samples(batch):
    """At one fixed x_t, over x1 from the posterior and over draws: Var(CFM) > Var(EFM-4) > Var(EFM-20) > 0."""
    data, *_ = batch
    t = np.float32(0.4)
    x = 0.6 * np.random.default_rng(2).normal(size=4).astype(np.float32) + 0.4 * data[0]
    path = fj.paths.Linear()
    velocity, posterior = exact_velocity(data, x, t, path)
    rows = jax.random.choice(jax.random.key(1), 40, (4000,), p=posterior).astype(jnp.int32)
    x1 = data[rows]
    x0 = (x - t * x1) / (1 - t)
    times = jnp.full(1, t)
    keys = jax.random.split(jax.random.key(2), 4000)

    def spread(target):
        one = jax.vmap(lambda k, a, b, i: target(k, a[None], b[None], times, index=i[None], rows=data)[0])
        values = one(keys, x0, x1, rows)
        np.testing.assert_allclose(values.mean(0), velocity, atol=0.25)
        return float(jnp.sum((values - velocity) ** 2, 1).mean())

    spreads = [spread(fj.targets.conditional()), *(spread(fj.targets.empirical(m)) for m in (4, 20, 40))]
    assert spreads[0] > 1.3 * spreads[1] > 1.3 * 1.3 * spreads[2]
    assert spreads[3] < 1e-6 * spreads[0]
    exact = fj.targets.closed_form(fj.ClosedFormField(data))(keys[0], x0, x1, jnp.full(4000, t))
    assert float(jnp.abs(exact - velocity).max()) < 1e-3


def test_labels_restrict_the_empirical_and_the_exact_target(batch):
    data, index, x0, x1, t = batch
    row_labels = jnp.arange(40) % 2
    key = jax.random.key(0)
    target = fj.targets.empirical(40, labels=row_labels)
    restricted = target(key, x0, x1, t, index=index, rows=data, labels=row_labels[index])
    field = fj.ClosedFormField(data, labels=row_labels)
    exact = fj.targets.closed_form(field)(key, x0, x1, t, labels=row_labels[index])
    np.testing.assert_allclose(restricted, exact, rtol=2e-4, atol=2e-4)


def test_targets_are_pytrees_and_jit(batch):
    data, index, x0, x1, t = batch
    for target in (
        fj.targets.conditional(),
        fj.targets.empirical(8),
        fj.targets.closed_form(fj.ClosedFormField(data)),
    ):
        eager = target(jax.random.key(3), x0, x1, t, index=index, rows=data)
        jitted = jax.jit(lambda f, *a, **k: f(*a, **k))(
            target, jax.random.key(3), x0, x1, t, index=index, rows=data
        )
        np.testing.assert_allclose(jitted, eager, rtol=1e-5, atol=1e-5)
    assert [fj.targets.conditional().name, fj.targets.empirical(8).name] == ["conditional", "empirical-8"]


def test_errors(batch):
    data, index, x0, x1, t = batch
    with pytest.raises(ValueError, match="at least 1"):
        fj.targets.empirical(0)
    with pytest.raises(ValueError, match="index="):
        fj.targets.empirical(4)(jax.random.key(0), x0, x1, t)
    with pytest.raises(ValueError, match="40 points"):
        fj.targets.empirical(41)(jax.random.key(0), x0, x1, t, index=index, rows=data)
    with pytest.raises(ValueError, match="labels"):
        fj.targets.empirical(4)(jax.random.key(0), x0, x1, t, index=index, rows=data, labels=index)
