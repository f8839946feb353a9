"""Nearest distances against scipy's in float64, and what counts as memorised."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from flowjax.metrics import memorised_fraction, nearest_distances, nearest_neighbours

RNG = np.random.default_rng(0)


def check(samples, data, reference_data=None, rtol=1e-5, **options):
    result = nearest_distances(samples, data, **options)
    reference_data = data if reference_data is None else reference_data
    first, second = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (samples, reference_data))
    distances = cdist(first, second)
    expected = np.sort(distances, axis=1)
    np.testing.assert_allclose(result.nearest, expected[:, 0], rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(result.second, expected[:, 1], rtol=rtol, atol=1e-6)
    chosen = distances[np.arange(len(samples)), result.index]
    np.testing.assert_allclose(chosen, expected[:, 0], rtol=rtol, atol=1e-6)
    return result


@pytest.mark.parametrize("block_size", [1, 7, 64, 100, 4096])
@pytest.mark.parametrize("event", [(2,), (5, 5, 3)])
def test_equals_cdist_for_any_block_size(event, block_size):
    data = RNG.normal(size=(101, *event)).astype(np.float32)
    check(RNG.normal(size=(13, *event)).astype(np.float32), data, block_size=block_size)


def test_many_samples_on_device():
    data = jnp.asarray(RNG.normal(size=(300, 40)), jnp.float32)
    samples = jnp.asarray(RNG.normal(size=(1030, 40)), jnp.float32)
    check(samples, data, block_size=128)


def test_copies_are_at_distance_exactly_zero_and_duplicates_second_too():
    data = RNG.normal(size=(500, 6, 6, 3)).astype(np.float32) + 30  # far from 0: products would cancel
    data[77] = data[400]
    result = nearest_distances(data, data, block_size=64)
    assert (result.nearest == 0).all()
    assert result.second[77] == result.second[400] == 0
    assert (np.delete(result.second, [77, 400]) > 1).all()
    np.testing.assert_array_equal(result.index, [*range(400), 77, *range(401, 500)])


def test_crowds_closer_than_the_rounding_of_a_product_are_told_apart():
    centre = RNG.normal(size=(1, 48)) * 10
    data = np.concatenate([centre + 1e-3 * RNG.normal(size=(200, 48)), RNG.normal(size=(50, 48)) * 10])
    data = data.astype(np.float32)
    samples = (data[:30] + 2e-4 * RNG.normal(size=(30, 48))).astype(np.float32)
    check(samples, data, rtol=2e-3, block_size=100)


def test_uint8_pixels():
    data = RNG.integers(0, 256, size=(90, 4, 4, 3), dtype=np.uint8)
    samples = RNG.uniform(-1, 1, size=(20, 4, 4, 3)).astype(np.float32)
    check(samples, data, reference_data=data / 127.5 - 1)
    copies = nearest_distances(data[:9], data)
    assert (copies.nearest == 0).all()
    np.testing.assert_array_equal(copies.index, np.arange(9))
    floats = (data / np.float32(127.5) - np.float32(1)).astype(np.float32)
    assert (nearest_distances(floats, data).nearest < 1e-6).all()


def test_few_data_points():
    samples = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)
    one = nearest_distances(samples, np.zeros((1, 2), np.float32))
    np.testing.assert_allclose(one.nearest, [0, 5])
    assert np.isinf(one.second).all()
    assert memorised_fraction(one.nearest, one.second) == 1
    two = nearest_distances(samples, np.array([[0, 0], [3, 0]], np.float32))
    np.testing.assert_allclose(two.second, [3, 5])
    np.testing.assert_array_equal(two.index, [0, 1])
    assert nearest_distances(samples[:0], samples).nearest.shape == (0,)


@pytest.mark.parametrize(
    ("samples", "data", "error", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 2)), ValueError, r"\(3,\), but the data \(2,\)"),
        (np.ones((2, 3)), np.ones((0, 3)), ValueError, "data is empty"),
        (np.ones(3), np.ones((4, 3)), ValueError, "samples have shape"),
        (np.full((2, 3), np.nan), np.ones((4, 3)), ValueError, "samples hold NaN"),
        (np.ones((2, 3)), np.full((4, 3), np.inf), ValueError, "data holds NaN"),
        (np.ones((2, 3), int), np.ones((4, 3)), TypeError, "int64"),
        (np.ones((2, 3)), np.ones((4, 3), complex), TypeError, "complex128"),
    ],
)
def test_refuses(samples, data, error, message):
    with pytest.raises(error, match=message):
        nearest_distances(samples, data)


def test_memorised_fraction():
    nearest, second = np.array([0.0, 1.0, 1.0, 2.0]), np.array([9.0, 3.5, 2.0, 2.0])
    assert memorised_fraction(nearest, second) == 0.5
    assert memorised_fraction(nearest, second, 2 / 3) == 0.75
    assert memorised_fraction(nearest, second, 0.1) == 0.25
    assert memorised_fraction([0.0], [0.0]) == 1  # a copy of a point that the data holds twice
    assert memorised_fraction([1.0], [1.0], 1.0) == 0


@pytest.mark.parametrize(
    ("nearest", "second", "ratio", "message"),
    [
        ([], [], 0.5, "at least one sample"),
        ([1.0], [1.0, 2.0], 0.5, "shapes"),
        ([2.0], [1.0], 0.5, "swapped"),
        ([np.nan], [1.0], 0.5, "NaN"),
        ([1.0], [1.0], 0.0, "ratio=0.0"),
        ([1.0], [1.0], 1.5, "ratio=1.5"),
    ],
)
def test_memorised_fraction_refuses(nearest, second, ratio, message):
    with pytest.raises(ValueError, match=message):
        memorised_fraction(nearest, second, ratio)


@pytest.mark.parametrize("dim", [3, 60])
def test_k_neighbours_in_any_parts_of_the_data(dim):
    data = RNG.normal(size=(97, dim)).astype(np.float32)
    data[90] = data[4]  # of equally near points the first row
    samples = np.concatenate([data[[4, 90]], RNG.normal(size=(11, dim)).astype(np.float32)])
    distances = cdist(samples.astype(np.float64), data.astype(np.float64))
    whole = nearest_neighbours(samples, data, 12, block_size=40)
    np.testing.assert_array_equal(whole.index, np.argsort(distances, axis=1, kind="stable")[:, :12])
    np.testing.assert_allclose(whole.distances, np.sort(distances, axis=1)[:, :12], rtol=1e-5, atol=1e-6)
    cuts = [0, 5, 50, 97]
    parts = [nearest_neighbours(samples, data[a:b], 12, first_row=a) for a, b in itertools.pairwise(cuts)]
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = functools.reduce(type(whole).merge, [parts[i] for i in order])
        np.testing.assert_array_equal(merged.index, whole.index)
        np.testing.assert_array_equal(merged.distances, whole.distances)


def test_more_neighbours_than_data():
    few = nearest_neighbours(np.zeros((2, 1)), np.array([[3.0], [-1.0]]), 4)
    np.testing.assert_array_equal(few.distances, [[1, 3, np.inf, np.inf]] * 2)
    np.testing.assert_array_equal(few.index, [[1, 0, -1, -1]] * 2)


def test_neighbours_of_data_on_a_mesh():
    data = RNG.normal(size=(96, 40)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.device_put(data, jax.NamedSharding(mesh, jax.P("rows")))
    samples = RNG.normal(size=(5, 40)).astype(np.float32)
    for a, b in zip(
        nearest_neighbours(samples, placed, 3), nearest_neighbours(samples, data, 3), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_neighbours_refuse():
    with pytest.raises(ValueError, match="k=0"):
        nearest_neighbours(np.ones((2, 3)), np.ones((4, 3)), 0)
    one, two = (nearest_neighbours(np.ones((2, 3)), np.ones((4, 3)), k) for k in (1, 2))
    with pytest.raises(ValueError, match="same k"):
        one.merge(two)
