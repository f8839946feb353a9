"""Screening with rows over a mesh of eight CPU devices: every device among its own rows, one threshold, one merge."""

import jax
import numpy as np
import pytest
from support import flat, normal, on_path, oracle_posterior
from test_sharding import collectives_of, place, two_axes

import flowjax as fj
from flowjax.closed_form import costs

N, EVENT = 8 * 40, (4, 4, 2)
T = np.float32([0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999])


@pytest.fixture(autouse=True)
def always_screened(monkeypatch):
    """On data as small as here the dense pass is nearly always cheaper."""
    monkeypatch.setattr(costs, "MEASURED", costs.ONLY_SURVIVORS)


def problem():
    data = normal(0, N, *EVENT)
    return data, on_path(data, normal(1, len(T), *EVENT), T)


def check(found, data, x, **options):
    truth = oracle_posterior(data, x, T, **options)
    error = np.linalg.norm(flat(found.velocity) - truth.velocity, axis=1)
    size = np.linalg.norm(truth.velocity, axis=1)
    assert np.all(error <= found.error_bound)
    assert np.all(error <= 1.1e-5 * size)
    np.testing.assert_array_equal(found.argmax, truth.argmax)
    np.testing.assert_allclose(found.log_density, truth.log_density, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.effective_sample_size, truth.effective_sample_size, rtol=2e-5)


@pytest.mark.parametrize("kind", ["Auto", pytest.param("Explicit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("hinted", [False, True])
def test_sharded_screening_against_the_oracle(kind, hinted):
    data, x = problem()
    field = fj.ClosedFormField(place(data, kind), method="screened")
    hint = np.arange(len(T)) * 3 if hinted else None  # right for the first one alone
    check(field.posterior(x, T, hint=hint), data, x)
    explained = field.explain(x, T, hint=hint)
    assert explained.method == "screened"
    assert not explained.dense[2:].any()
    assert np.all(explained.evaluated[2:] < N)


@pytest.mark.slow
def test_weights_labels_and_flips():
    data, x = problem()
    weights, labels = np.linspace(0.5, 2, N, dtype=np.float32), np.arange(N) % 3
    weights[:40] = 0  # all of the first device's
    asked = np.arange(len(T)) % 3
    options = {"weights": weights, "labels": labels, "horizontal_flip": True}
    field = fj.ClosedFormField(place(data), method="screened", **options)
    check(field.posterior(x, T, asked), data, x, query_labels=asked, **options)


@pytest.mark.slow
def test_queries_of_which_some_are_dense(monkeypatch):
    monkeypatch.setattr(
        costs, "MEASURED", costs.ONLY_SURVIVORS._replace(evaluated=8)
    )  # dense where all survive
    data = normal(0, N, *EVENT)
    t = np.repeat(np.float32([0.05, 0.99]), [7, 33])
    x = on_path(data, normal(1, 40, *EVENT), t)
    field = fj.ClosedFormField(place(data), method="screened")
    dense = field.explain(x, t).dense
    assert dense[:7].all()
    assert dense.sum() <= 20  # in the room of a half
    np.testing.assert_allclose(field(x, t), fj.ClosedFormField(data)(x, t), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_rows_and_queries_over_two_axes():
    by_row, by_query = two_axes()
    data, x = problem()
    field = fj.ClosedFormField(jax.device_put(data, by_row), method="screened")
    check(field.posterior(*jax.device_put((x, T), by_query)), data, x)
    odd = field(x[:5], T[:5])  # do not divide over the axis
    np.testing.assert_allclose(odd, field(x, T)[:5], rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_number_of_collectives_does_not_grow_with_the_rows():
    x = normal(1, 8, 20)

    def asked(n):
        field = fj.ClosedFormField(place(normal(0, n, 20)), method="screened")
        return collectives_of(lambda field, x: field(x, 0.6), field, x)

    few, many = asked(8 * 300), asked(16 * 1200)
    assert few == many
    # Guess, slack, costs of near and far passes, what was found; and the dense pass of what is left, twice.
    assert 1 <= len(few) <= 24, few


@pytest.mark.slow
def test_rows_that_moved_are_not_screened_by_tables_of_another_layout():
    data = normal(0, 248, *EVENT)  # as many padded rows on one device as on eight
    x = on_path(data, normal(1, len(T), *EVENT), T)
    placed = place(data)
    one, eight = (fj.ClosedFormField(rows, method="screened") for rows in (data, placed))
    everywhere = jax.NamedSharding(placed.sharding.mesh, jax.P())
    assert not one.explain(x, T).dense.all()
    assert not eight.explain(x, T).dense.all()
    moved = jax.device_put(eight, everywhere)
    check(moved.posterior(x, T), data, x)
    assert moved.explain(x, T).dense.all()
    moved = jax.device_put(one, everywhere)
    check(moved.posterior(x, T), data, x)


@pytest.mark.slow
def test_more_rows_than_a_shard_can_pool(monkeypatch):
    monkeypatch.setattr("flowjax.closed_form.survivors.POOL", 64)
    monkeypatch.setattr("flowjax.closed_form.search.POOL", 10**9)  # not known before
    data = normal(0, 8 * 41, *EVENT)
    t = np.float32([0.99] * 4 + [0.05] * 4)
    x = on_path(data, normal(1, len(t), *EVENT), t)
    explained = fj.ClosedFormField(place(data), method="screened").explain(x, t)
    assert not explained.dense[:4].any()
    assert explained.dense[5:].all()  # one has room


@pytest.mark.slow
def test_queries_of_all_devices_on_a_mesh_of_explicit_axes():
    by_row, _ = two_axes("Explicit")
    data, x = problem()
    field = fj.ClosedFormField(jax.device_put(data, by_row), method="screened")
    np.testing.assert_allclose(field(x, T), fj.ClosedFormField(data)(x, T), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_derivatives():
    data, x = problem()
    fields = (fj.ClosedFormField(rows, method="screened") for rows in (data, place(data)))

    def total(field, x):
        return (field(x, T) ** 2).sum()

    one, sharded = (jax.jit(jax.value_and_grad(total, 1))(field, x) for field in fields)
    np.testing.assert_allclose(one[0], sharded[0], rtol=1e-5)
    np.testing.assert_allclose(one[1], sharded[1], rtol=1e-4, atol=1e-4 * np.abs(one[1]).max())
