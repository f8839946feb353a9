"""Screening of rows in a file: small tables on the device, and only the rows that may matter read."""

import os

import jax
import numpy as np
import pytest
from support import flat, normal, on_path, oracle_posterior

import flowjax as fj
from flowjax.closed_form import costs, sources, streamed

N, EVENT = 311, (4, 4, 2)
T = np.float32([0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999])
LATE = T >= 0.6


@pytest.fixture(autouse=True)
def always_screened(monkeypatch):
    """On data as small as here the dense pass is nearly always cheaper."""
    monkeypatch.setattr(costs, "STREAMED", costs.ONLY_SURVIVORS)


@pytest.fixture
def problem(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (N, *EVENT)).astype(np.uint8)
    file = tmp_path / "rows.npy"
    np.save(file, data)
    points = np.asarray(fj.closed_form.to_float(data))
    return file, points, on_path(points, normal(1, len(T), *EVENT), T)


def check(found, points, x, **options):
    truth = oracle_posterior(points, x, T, **options)
    error = np.linalg.norm(flat(found.velocity) - truth.velocity, axis=1)
    assert np.all(error <= found.error_bound)
    assert np.all(error <= 1.1e-5 * np.linalg.norm(truth.velocity, axis=1))
    np.testing.assert_array_equal(found.argmax, truth.argmax)
    np.testing.assert_allclose(found.log_density, truth.log_density, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("hinted", [False, True])
def test_against_the_oracle(problem, hinted):
    file, points, x = problem
    field = fj.ClosedFormField(file, method="screened", block_size=100)  # the last block overlaps
    hint = np.arange(len(T)) if hinted else None
    check(field.posterior(x, T, hint=hint), points, x)
    explained = field.explain(x, T, hint=hint)
    assert explained.method == "screened"
    assert not explained.dense[LATE].any()


@pytest.mark.slow
def test_weights_labels_and_flips(problem):
    file, points, x = problem
    options = {
        "weights": np.linspace(0.5, 2, N, dtype=np.float32),
        "labels": np.arange(N) % 3,
        "horizontal_flip": True,
    }
    asked = np.arange(len(T)) % 3
    field = fj.ClosedFormField(file, method="screened", **options)
    check(field.posterior(x, T, asked), points, x, query_labels=asked, **options)


@pytest.fixture
def counts(monkeypatch):
    """Rows of every read."""
    read, counts = sources._read_into, []

    def counted(path, buffer, offset):
        counts.append(buffer.nbytes // np.prod(EVENT))
        read(path, buffer, offset)

    monkeypatch.setattr(sources, "_read_into", counted)
    return counts


@pytest.mark.slow
def test_only_rows_that_may_matter_are_read(problem, counts):
    file, _, x = problem
    field = fj.ClosedFormField(file, method="screened")
    late = T >= 0.9
    counts.clear()
    field(x[late], T[late])
    assert 0 < sum(counts) < N / 4
    counts.clear()
    field(x, np.zeros(len(T), np.float32) + 0.01)
    assert sum(counts) >= N


@pytest.mark.slow
@pytest.mark.parametrize("early", [1, 10, 40])
def test_queries_of_which_some_are_dense_share_one_pass(problem, monkeypatch, counts, early):
    monkeypatch.setattr(
        costs, "STREAMED", costs.ONLY_SURVIVORS._replace(evaluated=100)
    )  # dense where all survive
    file, points, _ = problem
    t = np.full(70, 0.98, np.float32)
    t[:early] = 0.05
    x = on_path(points, normal(1, 70, *EVENT), t)
    field = fj.ClosedFormField(file, method="screened")
    dense = field.explain(x, t).dense
    assert dense[:early].all()
    truth = oracle_posterior(points, x, t).velocity
    counts.clear()
    error = np.linalg.norm(flat(field(x, t)) - truth, axis=1)
    assert N <= sum(size for size in counts if size > 1) < 1.5 * N  # of single rows, those screened
    assert np.all(error <= 1.1e-5 * np.linalg.norm(truth, axis=1))


@pytest.mark.slow
def test_jit_vmap_and_derivatives(problem):
    file, points, x = problem
    field = fj.ClosedFormField(file, method="screened")
    memory = fj.ClosedFormField(points)

    def total(field, x):
        return (field(x, T) ** 2).sum()

    found, expected = (jax.jit(jax.value_and_grad(total, 1))(f, x) for f in (field, memory))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-4 * np.abs(expected[1]).max())
    np.testing.assert_allclose(jax.vmap(field)(x, T), memory(x, T), rtol=1e-4, atol=1e-4)


def test_a_file_that_changes(problem):
    file, _, x = problem
    field = fj.ClosedFormField(file, method="screened")
    field(x, T)
    with file.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(bytes(100))
    for evaluate in (field, field.posterior, field.explain):
        with pytest.raises(RuntimeError, match=r"rows\.npy changed after the field was built"):
            evaluate(x, T)


@pytest.mark.slow
def test_tables_are_small(tmp_path):
    file = tmp_path / "pictures.npy"
    data = np.random.default_rng(0).integers(0, 256, (2048, 32, 32, 3)).astype(np.uint8)
    np.save(file, data)
    field = fj.ClosedFormField(file, method="screened")
    assert 0 < field.screen_bytes - 4 * 256 * 3072 < 0.6 * data.nbytes
    assert streamed.is_streamed(field._rows)
