"""Fréchet distance against closed forms and scipy's matrix square root."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from flowjax.metrics import FrechetStatistics, frechet_distance, gaussian_frechet_distance

RNG = np.random.default_rng(0)


def covariance(dim, rank):
    factor = RNG.normal(size=(dim, rank))
    return factor @ factor.T / rank


def by_sqrtm(mean_a, a, mean_b, b):
    return np.sum((mean_a - mean_b) ** 2) + np.trace(a + b - 2 * np.real(scipy.linalg.sqrtm(a @ b)))


@pytest.mark.parametrize("dim", [1, 2, 7, 20])
def test_equals_scipy_s_square_root(dim):
    a, b = covariance(dim, dim + 3), covariance(dim, dim + 5)
    mean_a, mean_b = RNG.normal(size=(2, dim))
    np.testing.assert_allclose(
        gaussian_frechet_distance(mean_a, a, mean_b, b), by_sqrtm(mean_a, a, mean_b, b), rtol=1e-9
    )


def test_commuting_covariances_have_a_closed_form():
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    a, b = np.array([4.0, 1, 0, 9, 0, 2]), np.array([1.0, 1, 3, 0, 0, 8])  # both singular
    mean_a, mean_b = RNG.normal(size=(2, 6))
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    distance = gaussian_frechet_distance(mean_a, rotation * a @ rotation.T, mean_b, rotation * b @ rotation.T)
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


def test_equal_and_singular_statistics_are_at_distance_zero():
    few = RNG.normal(size=(5, 300))  # rank 4 of 300
    assert 0 <= frechet_distance(few, few) < 1e-10
    shifted = few + 0.1
    np.testing.assert_allclose(frechet_distance(few, shifted), 300 * 0.01, rtol=1e-9)
    np.testing.assert_allclose(
        frechet_distance(few, 2 * few - few.mean(0)), np.trace(np.cov(few.T)), rtol=1e-9
    )


def test_constant_features():
    constant = np.full((4, 3), 2.0)
    assert frechet_distance(constant, constant) == 0
    spread = RNG.normal(size=(9, 3))
    expected = np.sum((2 - spread.mean(0)) ** 2) + np.trace(np.cov(spread.T))
    np.testing.assert_allclose(frechet_distance(constant, spread), expected, rtol=1e-12)


def test_statistics_are_numpy_s():
    features = RNG.normal(size=(50, 4)) * [1, 10, 100, 0.1] + 5
    statistics = FrechetStatistics.empty(4).update(features)
    assert statistics.count == 50
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-13)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.T), rtol=1e-12)


def test_any_split_and_order_gives_the_same():
    features = RNG.normal(size=(1000, 5)) @ RNG.normal(size=(5, 5)) + 1e4  # a large mean: cancellation
    whole = FrechetStatistics.empty(5).update(features)
    for cuts in ([], [1], [1, 2, 3], [0, 500, 500, 999], list(range(0, 1000, 7))):
        parts = [FrechetStatistics.empty(5).update(part) for part in np.split(features, cuts)]
        one = FrechetStatistics.empty(5)
        for part in RNG.permutation(np.array(parts, dtype=object)):
            one = one.merge(part)
        assert one.count == 1000
        np.testing.assert_allclose(one.mean, whole.mean, rtol=1e-14)
        np.testing.assert_allclose(one.scatter, whole.scatter, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(whole.covariance, np.cov(features.T), rtol=1e-9, atol=1e-9)


def test_merge_leaves_its_operands_alone():
    a, b = (FrechetStatistics.empty(2).update(RNG.normal(size=(4, 2))) for _ in range(2))
    before = a.mean.copy(), a.scatter.copy()
    a.merge(b)
    a.update(RNG.normal(size=(3, 2)))
    np.testing.assert_array_equal(a.mean, before[0])
    np.testing.assert_array_equal(a.scatter, before[1])


def test_is_symmetric_and_takes_device_arrays():
    a, b = RNG.normal(size=(30, 3)), RNG.normal(size=(40, 3)) + 1
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-12)
    np.testing.assert_allclose(frechet_distance(jnp.asarray(a), b), frechet_distance(a, b), rtol=1e-5)


def test_large_samples_of_two_gaussians():
    a = RNG.normal(size=(100_000, 2)) * [1.0, 2.0]
    b = RNG.normal(size=(100_000, 2)) * [3.0, 1.0] + [1.0, -1.0]
    np.testing.assert_allclose(frechet_distance(a, b), 2 + (3 - 1) ** 2 + (2 - 1) ** 2, rtol=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: frechet_distance(np.ones((1, 3)), np.ones((5, 3))), "at least 2 samples, but there were 1"),
        (lambda: frechet_distance(np.ones((4, 3)), np.ones((5, 2))), "of 3 and of 2 features"),
        (lambda: FrechetStatistics.empty(3).update(np.ones((4, 2))), "2 columns"),
        (lambda: FrechetStatistics.empty(3).covariance, "there were 0"),
        (lambda: FrechetStatistics.empty(0), "dim=0"),
        (lambda: frechet_distance(np.ones(4), np.ones(4)), "one row a sample"),
        (
            lambda: frechet_distance(np.array([[1.0], [np.nan], [np.inf]]), np.ones((4, 1))),
            "2 of 3 rows .* row 1",
        ),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_complex_features():
    with pytest.raises(TypeError, match="complex128"):
        frechet_distance(np.ones((4, 1)) + 1j, np.ones((4, 1)))
