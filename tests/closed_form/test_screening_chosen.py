"""Screening as users get it: what it chooses, and what it keeps on pictures."""

import numpy as np
import pytest
from support import flat, holds, natural_patches, nearest_neighbour, normal, on_path, oracle_posterior

import flowjax as fj

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


def test_explain_tells_how_queries_were_evaluated():
    data, t = normal(0, 1301, 256), np.repeat(np.float32([0.0, 0.95]), 3)
    field = fj.ClosedFormField(data, method="screened")
    report = field.explain(on_path(data, normal(1, 6, 256), t), t)
    assert report.dense.tolist() == [True] * 3 + [False] * 3  # at t = 0 every row weighs the same
    assert report.evaluated[3:].min() >= 1
    assert report.evaluated.max() < 100
    assert report.columns[3:].min() > 0
    assert report.relative_bound[3:].max() <= 1e-5
    assert "3 by the dense pass, 3 by screening" in str(report)
    assert "'dense'" in str(fj.ClosedFormField(data, method="dense").explain(data[:2], 0.5))
