"""Screening as users get it: what it chooses, and what it keeps on pictures."""

import jax
import numpy as np
import pytest
from support import flat, holds, natural_patches, nearest_neighbour, normal, on_path, oracle_posterior

import flowjax as fj
from flowjax.closed_form import field as field_module
from flowjax.closed_form.costs import dense_sizes
from flowjax.closed_form.search import cheapest_screened

TIMES = np.float32([0.0, 0.05, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999])


@pytest.mark.slow
def test_natural_pictures_keep_the_tolerance():
    """In truth everywhere, and by certificate where screening holds: the dense pass's own bound is a worst case."""
    data = natural_patches(3000)
    field = fj.ClosedFormField(data, method="screened")
    noise, partner = normal(1, 16, *data.shape[1:]), nearest_neighbour(data, 16)
    held = 0
    for t in TIMES:
        x = on_path(data, noise, t)
        posterior = holds(data, x, t)
        expected = oracle_posterior(data, x, t).velocity
        speed = np.linalg.norm(expected, axis=1)
        assert np.all(np.linalg.norm(flat(posterior.velocity) - expected, axis=1) <= 1e-5 * speed)
        screened = ~field.explain(x, t).dense
        held += screened.sum()
        assert np.all(np.asarray(posterior.error_bound)[screened] <= 1e-5 * speed[screened])
        holds(data, t * (data[:16] + data[partner]) / 2, t)
    assert held >= 64  # from t = .8 on everything


@pytest.mark.slow
def test_explain_tells_how_queries_were_evaluated():
    data, t = normal(0, 1301, 256), np.repeat(np.float32([0.0, 0.95]), 12)
    field = fj.ClosedFormField(data, method="screened")
    report = field.explain(on_path(data, normal(1, 24, 256), t), t)
    assert report.dense.tolist() == [True] * 12 + [False] * 12  # at t = 0 every row weighs the same
    assert report.evaluated[12:].min() >= 1
    assert report.evaluated.max() < 100
    assert report.columns[12:].min() > 0
    assert report.relative_bound[12:].max() <= 1e-5
    assert "12 by the dense pass, 12 by screening" in str(report)
    assert "'dense'" in str(fj.ClosedFormField(data, method="dense").explain(data[:2], 0.5))


def test_auto_screens_large_arrays_only(monkeypatch):
    data = normal(0, 97, 20)
    assert fj.ClosedFormField(data).screen_bytes == 0
    monkeypatch.setattr(field_module, "_AUTO_SCREEN_ENTRIES", data.size)
    field = fj.ClosedFormField(data)
    assert field.screen_bytes > data.nbytes
    assert "MB of tables" in repr(field)
    assert fj.ClosedFormField(data[:96]).screen_bytes == 0
    assert fj.ClosedFormField(data, precision="float64").screen_bytes == 0
    assert fj.ClosedFormField(data[:, :8]).screen_bytes == 0
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(np.tile(data, (8, 1)), jax.NamedSharding(mesh, jax.P("data")))
    assert fj.ClosedFormField(sharded).screen_bytes == 0
    assert jax.jit(lambda data: fj.ClosedFormField(data)(data[:2], 0.5))(data).shape == (2, 20)


@pytest.mark.slow
def test_a_hint_changes_the_work_and_not_the_result():
    data, t = normal(0, 1301, 256), np.full(6, 0.9, np.float32)
    field, x = fj.ClosedFormField(data, method="screened"), on_path(data, normal(1, 6, 256), 0.9)
    expected = field(x, t)
    for hint in (np.arange(6), np.arange(6)[::-1], 1300):
        np.testing.assert_allclose(field(x, t, hint=hint), expected, rtol=1e-6, atol=1e-6)
    assert not field.explain(x, t, hint=np.arange(6)).dense.any()
    assert field.explain(x, t, hint=1300).dense.all()  # the threshold of a far row keeps everything
    with pytest.raises(TypeError, match="hint must be integers"):
        field(x, t, hint=0.5)
    np.testing.assert_array_equal(fj.ClosedFormField(data)(x, t, hint=3), fj.ClosedFormField(data)(x, t))


@pytest.mark.parametrize("setup", [0.0, 3.0, 40.0])
def test_the_queries_screened_are_those_that_cost_least_together(setup):
    generator, dense = np.random.default_rng(0), 2.0
    for _ in range(20):
        costs = generator.exponential(dense, 17)
        costs[generator.random(17) < 0.2] = np.inf
        certain = costs < dense / 4

        def together(screened, costs=costs):
            others = np.sum(~screened)
            room = min((size for size in dense_sizes(costs.size) if size >= others), default=0)
            return costs[screened].sum() + (dense * (room + setup) if others else 0)

        # Of as many, none costs less than the cheapest.
        ascending = np.argsort(np.argsort(costs))
        least = min(together(ascending < count) for count in range(certain.sum(), 18))
        with jax.enable_x64(True):
            chosen = np.asarray(cheapest_screened(costs, certain, dense, setup))
        assert np.all(chosen[certain])
        assert together(chosen) == pytest.approx(least)
