"""Batches: every row once an epoch, a new order each, resumed to the bit."""

import itertools

import numpy as np
import pytest

from flowjax.data import Dataset, batches

RNG = np.random.default_rng(0)
DATA = Dataset("toy", RNG.standard_normal((10, 3)), np.arange(10) % 4)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def indices(iterator, count):
    return np.concatenate([batch["index"] for batch in take(iterator, count)])


def equal(left, right):
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])


def test_batches_hold_the_rows_they_name():
    for batch in take(batches(DATA, 4, seed=0), 20):
        assert batch.keys() == {"index", "image", "label"}
        assert (batch["index"].dtype, batch["label"].dtype, batch["image"].dtype) == (
            np.int32,
            np.int32,
            np.float32,
        )
        np.testing.assert_array_equal(batch["image"], DATA.images[batch["index"]])
        np.testing.assert_array_equal(batch["label"], DATA.labels[batch["index"]])
    pixels = Dataset("pixels", np.zeros((5, 2, 2, 1), np.uint8))
    batch = next(batches(pixels, 3, seed=0))
    assert batch.keys() == {"index", "image"}
    assert batch["image"].dtype == np.uint8


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 13, 40])
def test_every_epoch_is_a_permutation_and_nothing_is_dropped(batch_size):
    epochs = indices(batches(DATA, batch_size, seed=7), 60 * 10 // batch_size).copy()
    epochs = epochs[: len(epochs) // 10 * 10].reshape(-1, 10)
    assert len(epochs) >= 50
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_the_order_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(
        indices(batches(DATA, 3, seed=1), 20), indices(batches(DATA, 12, seed=1), 5)
    )


def test_orders_are_uniform():
    # First row of each of 2 000 epochs: each of ten rows 200 ± 13.4; five deviations.
    first = indices(batches(DATA, 10, seed=0), 2000).reshape(-1, 10)[:, 0]
    assert np.abs(np.bincount(first, minlength=10) - 200).max() < 67


def test_seeds_decide():
    equal(take(batches(DATA, 4, seed=3), 9), take(batches(DATA, 4, seed=3), 9))
    assert (indices(batches(DATA, 4, seed=3), 5) != indices(batches(DATA, 4, seed=4), 5)).any()


def test_state_resumes_exactly():
    straight = batches(DATA, 7, seed=0)
    before = take(straight, 11)
    state = straight.get_state()
    after = take(straight, 11)
    fresh = batches(DATA, 7, seed=0)
    fresh.set_state(state)
    equal(take(fresh, 11), after)
    # and back again
    fresh.set_state(batches(DATA, 7, seed=0).get_state())
    equal(take(fresh, 11), before)


def test_orbax_saves_and_restores_the_iterator(tmp_path):
    from orbax.checkpoint import v1 as ocp

    straight = batches(DATA, 7, seed=0)
    take(straight, 5)
    with ocp.training.Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save_checkpointables(5, {"dataset": straight})
        after = take(straight, 6)
        fresh = batches(DATA, 7, seed=0)
        checkpointer.load_checkpointables(5, {"dataset": fresh})
    equal(take(fresh, 6), after)


def test_processes_share_each_batch():
    whole = take(batches(DATA, 12, seed=5), 6)
    shares = [take(batches(DATA, 12, seed=5, process_index=k, process_count=3), 6) for k in range(3)]
    for step, batch in enumerate(whole):
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([share[step][key] for share in shares]))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer, got 2.0"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"process_count": 3}, ValueError, "batch_size=4 cannot be split over 3 processes"),
        ({"process_index": 1}, ValueError, "process_index must be below process_count=1, got 1"),
    ],
)
def test_refuses(options, error, words):
    with pytest.raises(error, match=words):
        batches(DATA, **({"batch_size": 4, "seed": 0} | options))
