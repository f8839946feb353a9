"""Screening against the oracle: the shared suite once more, and data made to break the bounds."""

import functools

import jax
import numpy as np
import pytest
import test_dense
from support import holds, nearest_neighbour, normal, on_path
from test_dense import PATHS

import flowjax as fj
from benchmarks.certificate import adversaries
from flowjax.closed_form import basis, costs, search

TIMES = np.float32([0.0, 0.05, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999])
# Each of the two programs takes ten seconds to compile.
check = functools.partial(test_dense.check, method="screened", tolerance=1.1e-5, both_programs=False)


@pytest.fixture(autouse=True)
def always_screened(monkeypatch):
    """On data as small as here the dense pass is nearly always cheaper."""
    monkeypatch.setattr(costs, "MEASURED", costs.ONLY_SURVIVORS)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_every_path_and_time_in_one_batch(path):
    data, noise = normal(0, 211, 20), normal(1, len(TIMES), 20)
    x = np.asarray(path.interpolate(noise, data[: len(TIMES)], TIMES))
    check(data, x, TIMES, path=path, both_programs=True)


@pytest.mark.parametrize(("n", "dimension"), [(1, 12), (2, 12), (17, 12), (211, 1)])
def test_small_data_sets_and_few_dimensions(n, dimension):
    check(normal(0, n, dimension), normal(1, 4, dimension), 0.6)


@pytest.mark.slow
@pytest.mark.parametrize(("b", "shared_by"), [(300, 128), (1, 1), (70, 64)])
def test_any_number_of_queries(b, shared_by, monkeypatch):
    """With costs that make one pass of many queries cheaper than two of fewer."""
    priced = costs.ONLY_SURVIVORS._replace(row=0.01, entry=0.01, setup=3)
    monkeypatch.setattr(costs, "MEASURED", priced)
    find_survivors, sizes = search.find_survivors, []

    def counted(screen, seen, level, threshold):
        jax.debug.callback(lambda: sizes.append(len(threshold)))
        return find_survivors(screen, seen, level, threshold)

    monkeypatch.setattr(search, "find_survivors", counted)
    data, t = normal(0, 1301, 20), np.random.default_rng(2).random(b).astype(np.float32)
    x = on_path(np.resize(data, (max(b, 1301), 20)), normal(1, b, 20), t)
    check(data, x, t, tolerance=1e-4)
    jax.effects_barrier()
    assert set(sizes) == {shared_by}


@pytest.mark.slow
def test_late_queries_keep_their_certificate_whoever_is_evaluated_with_them(monkeypatch):
    """Among twenty near-duplicates the float32 pass certifies nothing; it is for those beside them.

    Screening costs a small part of that pass here. Where it costs a quarter or more they may go the others' way.
    """
    monkeypatch.undo()
    centres = normal(0, 2000, 16, 16, 3) * np.float32(0.3)
    data = np.repeat(centres, 20, 0) + np.float32(1e-3) * normal(1, 40_000, 16, 16, 3)
    late, early = np.float32(0.9) * centres[:5], normal(2, 13, 16, 16, 3)
    for count in (1, 13):
        x = np.concatenate([early[:count], late])
        t = np.repeat(np.float32([0.0, 0.9]), [count, 5])
        posterior = holds(data, x, t)
        dense = fj.ClosedFormField(data, method="dense").posterior(x, t)
        speed = np.linalg.norm(np.asarray(posterior.velocity).reshape(len(x), -1), axis=1)
        assert np.all(np.asarray(dense.error_bound)[count:] > 1e-5 * speed[count:])
        assert np.all(np.asarray(posterior.error_bound)[count:] <= 1e-5 * speed[count:])


@pytest.mark.slow
def test_weights_labels_and_flips_together():
    data, x = normal(0, 101, 4, 3, 2), normal(1, 7, 4, 3, 2)
    weights = np.random.default_rng(2).random(101).astype(np.float32)
    weights[3:20] = 0
    labels = np.random.default_rng(3).integers(0, 3, 101)
    for t in (0.0, 0.9):
        check(data, x, t, weights=weights)
        check(data, x, t, horizontal_flip=True)
        check(data, x, t, labels=labels, query_labels=np.arange(7) % 3)
        check(data, x, t, labels=labels, query_labels=np.arange(7) % 3, weights=weights, horizontal_flip=True)


@pytest.mark.slow
def test_flips_of_early_and_late_queries_in_one_batch(monkeypatch):
    monkeypatch.setattr(costs, "MEASURED", costs.ONLY_SURVIVORS._replace(row=0.03, setup=3))
    data = normal(0, 1301, 4, 4, 2)
    t = np.repeat(np.float32([0.65, 0.35]), 64)
    field = fj.ClosedFormField(data, method="screened", horizontal_flip=True)
    x = on_path(data, normal(1, 128, 4, 4, 2), t)
    check(data, x, t, horizontal_flip=True, tolerance=1e-4, both_programs=True)
    assert len(np.unique(field.explain(x, t).columns)) > 1


@pytest.mark.slow
def test_pixels():
    data = np.random.default_rng(0).integers(0, 256, (101, 4, 4, 1)).astype(np.uint8)
    points = np.asarray(fj.closed_form.to_float(data))
    check(data, on_path(points, normal(1, 5, 4, 4, 1), 0.6), 0.6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data"), list(adversaries(211, 24)), ids=lambda v: v if isinstance(v, str) else ""
)
def test_no_bound_is_broken(name, data):
    """On the path, half-way between neighbours, and far from everything, at every time."""
    times = np.repeat(TIMES, 6)
    noise, partner = np.tile(normal(9, 6, 24), (len(TIMES), 1)), nearest_neighbour(data, 6)
    rows, between = (np.tile(part, (len(TIMES), 1)) for part in (data[:6], (data[:6] + data[partner]) / 2))
    t = times[:, None]
    x = np.concatenate([(1 - t) * noise + t * rows, t * between, 50 * noise])
    holds(data, x, np.tile(times, 3))


@pytest.mark.slow
def test_transformations():
    data, t = normal(0, 97, 20), np.float32([0.1, 0.3, 0.5, 0.7, 0.9])
    x, direction = on_path(data, normal(1, 5, 20), t), normal(2, 5, 20)
    screened, dense = (fj.ClosedFormField(data, method=m) for m in ("screened", "dense"))
    np.testing.assert_allclose(jax.vmap(screened)(x, t), dense(x, t), rtol=2e-5, atol=2e-5)
    for derivative in (
        lambda f: jax.jvp(lambda x: f(x, t), (x,), (direction,))[1],
        lambda f: jax.grad(lambda x: (f(x, t) * direction).sum())(x),
        lambda f: jax.vmap(jax.grad(lambda x, t: f.posterior(x, t).log_density))(x, t),
        lambda f: jax.vmap(jax.hessian(lambda x, t: f.posterior(x, t).entropy))(x, t),
    ):
        np.testing.assert_allclose(derivative(screened), derivative(dense), rtol=1e-4, atol=1e-4)


def test_nan_stays_where_it_is():
    data, x = normal(0, 97, 20), normal(1, 3, 20)
    x[1, 0] = np.nan
    result = fj.ClosedFormField(data, method="screened")(x, 0.6)
    assert np.isnan(np.asarray(result)).all(1).tolist() == [False, True, False]
    assert np.isfinite(np.asarray(result)[[0, 2]]).all()


def test_no_queries():
    assert fj.ClosedFormField(normal(0, 97, 20), method="screened")(
        np.zeros((0, 20), np.float32), 0.5
    ).shape == (0, 20)


@pytest.mark.slow
def test_more_dimensions_than_the_eigensolver_takes(monkeypatch):
    monkeypatch.setattr(basis, "_EIGH_DIMENSIONS", 16)
    data = normal(0, 307, 24)
    holds(data, on_path(data, normal(1, 6, 24), 0.8), 0.8)
