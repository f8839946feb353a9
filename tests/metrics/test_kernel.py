"""Kernel distance against the double sum, its expectation between Gaussians, and the spread of its estimates."""

import itertools

import numpy as np
import pytest

from flowjax.metrics import FeatureSet, kernel, kernel_distance

RNG = np.random.default_rng(0)


def double_sum(x, y):
    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def pairs(z):
        return [k(a, b) for a, b in itertools.permutations(z, 2)]

    across = [k(a, b) for a, b in itertools.product(x, y)]
    return np.mean(pairs(x)) + np.mean(pairs(y)) - 2 * np.mean(across)


@pytest.mark.parametrize("block", [1, 4, 2048])
def test_equals_the_double_sum(block, monkeypatch):
    monkeypatch.setattr(kernel, "_BLOCK", block)
    x = RNG.normal(size=(7, 3)).astype(np.float32)
    y = (RNG.normal(size=(11, 3)) + 0.5).astype(np.float32)
    expected = double_sum(x.astype(float).tolist(), y.astype(float).tolist())
    np.testing.assert_allclose(kernel_distance(x, y).value, expected, rtol=1e-9)
    sets = (FeatureSet.empty(3).update(z[:4]).update(z[4:]) for z in (x, y))
    np.testing.assert_allclose(kernel_distance(*sets).value, expected, rtol=1e-9)


@pytest.mark.parametrize("swapped", [False, True])
def test_expectation_and_error_between_two_gaussians(swapped):
    """1-D, N(0, 1) and N(1, 1): E k(x, y) = Σ binom(3, j) E xʲ E yʲ with the Gaussian's moments."""
    zero, one = np.array([1, 0, 1, 0]), np.array([1, 1, 2, 4])
    binomial = np.array([1, 3, 3, 1])
    expected = np.sum(binomial * (zero**2 + one**2 - 2 * zero * one))
    shift = np.array([1, 0] if swapped else [0, 1])
    found = [
        kernel_distance(*(s + RNG.normal(size=(m, 1)) for s, m in zip(shift, (100, 150), strict=True)))
        for _ in range(400)
    ]
    values, errors = np.array(found).T
    assert abs(values.mean() - expected) < 4 * values.std() / 20
    # the error follows the larger of two terms, which swapping exchanges
    np.testing.assert_allclose(np.sqrt(np.mean(errors**2)), values.std(), rtol=0.2)


def test_equal_distributions_are_around_zero():
    values = [kernel_distance(RNG.normal(size=(50, 20)), RNG.normal(size=(50, 20))).value for _ in range(100)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / 10


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((1, 3)), np.ones((5, 3)), "at least 2 samples, but there are 1"),
        (np.ones((4, 3)), np.ones((1, 3)), "at least 2 reference, but there are 1"),
        (np.ones((4, 3)), np.ones((4, 2)), "3 and 2 features"),
        (np.ones((4, 3)), np.full((4, 3), np.inf), "rows of reference"),
    ],
)
def test_refuses(x, y, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(x, y)
