"""Batches on eight devices: who holds which rows."""

import jax
import numpy as np
import pytest

from flowjax.data import Dataset, batches, choose_rows_over, mesh, place, place_rows


def test_mesh_covers_the_devices():
    whole = mesh()
    assert whole.axis_names == ("data",)
    assert whole.devices.tolist() == jax.devices()
    assert whole.axis_types == (jax.sharding.AxisType.Auto,)
    assert mesh(jax.devices()[2:5]).devices.tolist() == jax.devices()[2:5]
    with pytest.raises(ValueError, match="at least one device"):
        mesh([])


def test_a_mesh_that_splits_rows():
    grid = mesh(rows_over=4)
    assert dict(grid.shape) == {"data": 2, "rows": 4}
    placed = place(np.arange(16), grid)  # a batch goes over both axes
    assert [s.data.tolist() for s in placed.addressable_shards] == [[2 * k, 2 * k + 1] for k in range(8)]
    with pytest.raises(ValueError, match="rows_over=3 does not divide 8 devices"):
        mesh(rows_over=3)
    with pytest.raises(ValueError, match=r"\(12,\) cannot be split over 8 devices"):
        place(np.zeros(12), grid)


def test_rows_are_filled_up_to_a_multiple():
    images, labels = np.arange(42, dtype=np.uint8).reshape(21, 2), np.arange(21)
    placed, numbers, weights = place_rows(mesh(rows_over=4), images, labels=labels)
    assert placed.shape == (24, 2)
    assert {s.data.shape for s in placed.addressable_shards} == {(6, 2)}
    np.testing.assert_array_equal(placed[:21], images)
    np.testing.assert_array_equal(
        placed[21:], np.repeat(images[:1], 3, 0)
    )  # neither mean nor norms leave the data's
    np.testing.assert_array_equal(numbers[:21], labels)
    np.testing.assert_array_equal(weights, np.repeat([1, 0], [21, 3]))
    whole, none, unweighted = place_rows(mesh(), images)
    assert whole.is_fully_replicated
    assert (none, unweighted) == (None, None)


def test_rows_are_split_over_as_few_devices_as_will_do():
    gib = 2**30
    assert choose_rows_over(1, 8, 1e12, gib) == 1
    assert choose_rows_over(256, 1024, 1e6, gib) == 16  # 64 queries a device
    assert choose_rows_over(256, 1 << 14, 1e6, gib) == 1
    assert choose_rows_over(256, 1 << 14, 2 * gib, gib) == 8  # a quarter of the memory
    assert choose_rows_over(256, 8, 1e6, gib) == 256


def test_rows_are_split_in_order():
    data = Dataset("toy", np.arange(60, dtype=np.float32).reshape(20, 3), np.arange(20) % 4)
    batch = next(batches(data, 16, seed=0))
    with jax.transfer_guard("disallow"):
        placed = place(batch, mesh())
    assert placed.keys() == batch.keys()
    for key, array in placed.items():
        assert array.dtype == batch[key].dtype
        for k, device in enumerate(jax.devices()):
            (shard,) = (s for s in array.addressable_shards if s.device == device)
            np.testing.assert_array_equal(shard.data, batch[key][2 * k : 2 * k + 2])


def test_a_sharding_is_used_as_it_is():
    everywhere = jax.NamedSharding(mesh(), jax.P())
    placed = place({"x": np.arange(3)}, everywhere)
    assert placed["x"].sharding == everywhere
    single = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    assert place(np.arange(3), single).devices() == {jax.devices()[3]}


def test_a_mesh_with_more_axes_splits_over_data_only():
    grid = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    placed = place(np.arange(12), grid)
    assert {s.data.shape for s in placed.addressable_shards} == {(3,)}


def test_refuses():
    with pytest.raises(ValueError, match=r"\['image'\] of shape \(12, 2\) cannot be split over 8 devices"):
        place({"image": np.zeros((12, 2))}, mesh())
    with pytest.raises(ValueError, match=r"the batch of shape \(\) cannot be split"):
        place(np.float32(1), mesh())
    other = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="none is named 'data'"):
        place(np.zeros(8), other)
    grid = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match="a multiple of 4"):
        place(np.zeros(6), grid)
