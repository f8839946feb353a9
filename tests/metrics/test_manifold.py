"""Precision, recall, density, coverage against all pairs in float64."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from flowjax.metrics import FeatureSet, density_coverage, manifold, precision_recall

RNG = np.random.default_rng(0)


def brute_force(samples, reference, k):
    """The definitions, read off full distance matrices."""
    samples, reference = samples.astype(np.float64), reference.astype(np.float64)
    across = cdist(samples, reference)
    of_reference = np.sort(cdist(reference, reference), axis=1)[:, k]
    of_samples = np.sort(cdist(samples, samples), axis=1)[:, k]
    inside = across <= of_reference
    return {
        "precision": inside.any(axis=1).mean(),
        "recall": (across <= of_samples[:, None]).any(axis=0).mean(),
        "density": inside.sum(axis=1).mean() / k,
        "coverage": inside.any(axis=0).mean(),
    }


def measured(samples, reference, k):
    pair, other = precision_recall(samples, reference, k), density_coverage(samples, reference, k)
    return pair._asdict() | other._asdict()


def cloud(count, dim, scale=1.0, shift=0.0):
    return (scale * RNG.normal(size=(count, dim)) + shift).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 5, 70])
@pytest.mark.parametrize("dim", [1, 2, 100])
def test_equals_brute_force(dim, k):
    samples, reference = cloud(101, dim, 0.8, 0.3), cloud(83, dim)
    expected = brute_force(samples, reference, k)
    assert measured(samples, reference, k) == expected
    if k < 70 and dim < 100:
        assert 0 < expected["recall"] < 1
        assert 0 < expected["coverage"] < 1


def test_any_block_size_gives_the_same(monkeypatch):
    samples, reference = cloud(101, 40, 0.9), cloud(83, 40)
    expected = brute_force(samples, reference, 3)
    for block in (9, 40, 100):
        monkeypatch.setattr(manifold, "_BLOCK", block)
        assert measured(samples, reference, 3) == expected


def test_samples_far_from_zero_and_on_the_surface_of_balls():
    """Whole numbers: distances and radii coincide exactly all over, far beyond what a float32 product resolves."""
    grid = np.stack(np.meshgrid(*[np.arange(6.0)] * 3), axis=-1).reshape(-1, 3).astype(np.float32) + 4000
    samples = grid[RNG.permutation(len(grid))[:90]]
    samples[::2] += [1, 0, 0]
    assert measured(samples, grid, 4) == brute_force(samples, grid, 4)


def test_duplicates_have_balls_of_radius_zero():
    reference = np.repeat(cloud(8, 50), 5, axis=0)
    samples = np.concatenate([reference[:7], cloud(7, 50)])
    assert measured(samples, reference, 3) == brute_force(samples, reference, 3)
    assert precision_recall(samples, reference).precision == 0.5


def test_copies_of_the_reference():
    reference = cloud(200, 12)
    assert precision_recall(reference, reference) == (1, 1)
    density, coverage = density_coverage(reference, reference)
    assert coverage == 1
    assert density == pytest.approx(6 / 5)  # every ball holds its centre and k neighbours


def test_tells_fidelity_from_diversity():
    reference = cloud(400, 8)
    timid, wild = cloud(400, 8, 0.3), cloud(400, 8, 3.0)
    assert precision_recall(timid, reference).precision > 0.95
    assert precision_recall(timid, reference).recall < 0.2
    assert precision_recall(wild, reference).precision < 0.3
    assert density_coverage(timid, reference).density > 1.5
    assert density_coverage(timid, reference).coverage < density_coverage(cloud(400, 8), reference).coverage


def test_feature_sets_collect_batches():
    samples, reference = cloud(90, 5), cloud(70, 5)
    a, b = FeatureSet.empty(5).update(samples[:30]), FeatureSet.empty(5).update(samples[30:31])
    merged = a.merge(b.update(samples[31:])).merge(FeatureSet.empty(5))
    assert (a.count, b.count, merged.count) == (30, 1, 90)
    np.testing.assert_array_equal(merged.values, samples)
    other = FeatureSet.empty(5).update(reference)
    assert precision_recall(merged, other) == precision_recall(samples, reference)
    assert FeatureSet.empty(3).values.shape == (0, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: precision_recall(cloud(3, 2), cloud(9, 2)), "at least 4 samples, but there are 3"),
        (lambda: density_coverage(cloud(9, 2), cloud(5, 2)), "at least 6 reference, but there are 5"),
        (lambda: precision_recall(cloud(9, 2), cloud(9, 3)), "2 and 3 features"),
        (lambda: density_coverage(cloud(9, 2), cloud(9, 2), k=0), "k=0"),
        (lambda: precision_recall(np.full((9, 2), np.nan), cloud(9, 2)), "9 of 9 rows of samples"),
        (lambda: FeatureSet.empty(0), "dim=0"),
        (lambda: FeatureSet.empty(2).update(cloud(3, 4)), "4 columns"),
        (lambda: FeatureSet.empty(2).merge(FeatureSet.empty(3)), "one feature network"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
