"""Checkpoints seen by a second process, by a disk that fails once, and by a disk that is full."""

import resource
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax import models, training
from flowjax.training import state
from flowjax.training.checkpoint import Checkpoints


def configuration() -> training.TrainConfig:
    return training.TrainConfig(
        model=models.MLPConfig(event_shape=(2,), width=16), data=training.DataConfig(source="two-moons")
    )


def saved(directory, steps):
    """A state of each step, told apart by its parameters, and an iterator that has taken as many batches."""
    _, start = state.create(configuration())
    iterator = fj.data.batches(fj.data.load("two-moons"), 4, seed=0)
    with Checkpoints(directory, exclusive=True) as checkpoints:
        for step in steps:
            next(iterator)
            checkpoints.save(step, at(start, step), iterator)
    return start


def at(start, step):
    numbered = jax.tree.map(lambda leaf: jnp.full_like(leaf, step), start)
    return numbered


def fresh_iterator():
    return fj.data.batches(fj.data.load("two-moons"), 4, seed=0)


def first_batch_after(taken):
    iterator = fresh_iterator()
    for _ in range(taken):
        next(iterator)
    return next(iterator)["index"]


def test_a_reader_leaves_a_save_under_way_alone(tmp_path):
    directory = tmp_path / "checkpoints"
    saved(directory, [1])
    under_way = directory / "2.orbax-checkpoint-tmp"
    under_way.mkdir()
    (under_way / "part").write_bytes(b"half a checkpoint")
    with Checkpoints(directory) as reader:
        assert reader.steps() == [1]
    assert (under_way / "part").read_bytes() == b"half a checkpoint"
    with Checkpoints(
        directory, exclusive=True
    ):  # the one writer clears up after a killed save, in the background
        deadline = time.monotonic() + 20
        while under_way.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert not under_way.exists()


def damage(directory, step):
    for file in (directory / str(step)).rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_one_before_a_damaged_checkpoint_with_its_batches(tmp_path, exclusive):
    directory = tmp_path / "checkpoints"
    start = saved(directory, [1, 2])
    damage(directory, 2)
    iterator, said = fresh_iterator(), []
    with Checkpoints(directory, exclusive=exclusive) as checkpoints:
        restored = checkpoints.restore(start, iterator, warn=said.append)
        assert checkpoints.steps() == ([1] if exclusive else [1, 2])
    jax.tree.map(np.testing.assert_array_equal, restored, at(start, 1))
    np.testing.assert_array_equal(next(iterator)["index"], first_batch_after(1))
    assert len(said) == 1
    assert "step 2 is damaged" in said[0]


def test_a_checkpoint_that_failed_to_load_once_is_not_lost(tmp_path, monkeypatch):
    """What reads like damage may be a full memory: the files stay, and the step can be saved again."""
    directory = tmp_path / "checkpoints"
    start = saved(directory, [1, 2])
    before = {
        p.relative_to(directory / "2"): p.read_bytes() for p in (directory / "2").rglob("*") if p.is_file()
    }
    with Checkpoints(directory, exclusive=True) as checkpoints:
        real = checkpoints._checkpointer.load_checkpointables

        def fails_on_two(step, *rest):
            if step == 2:
                raise MemoryError("cannot allocate")
            return real(step, *rest)

        monkeypatch.setattr(checkpoints._checkpointer, "load_checkpointables", fails_on_two)
        iterator = fresh_iterator()
        checkpoints.restore(start, iterator, warn=lambda _: None)
        next(iterator)
        checkpoints.save(2, at(start, 20), iterator)
    aside = tmp_path / "damaged" / "2"
    assert {p.relative_to(aside): p.read_bytes() for p in aside.rglob("*") if p.is_file()} == before
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        restored = checkpoints.restore(start, fresh_iterator())
    jax.tree.map(np.testing.assert_array_equal, restored, at(start, 20))


def test_none_that_can_be_read(tmp_path):
    directory = tmp_path / "checkpoints"
    start = saved(directory, [1, 2])
    damage(directory, 1)
    damage(directory, 2)
    with (
        Checkpoints(directory, exclusive=True) as checkpoints,
        pytest.raises(RuntimeError, match="none of the checkpoints"),
    ):
        checkpoints.restore(start, fresh_iterator(), warn=lambda _: None)
    assert sorted(p.name for p in directory.iterdir()) == ["1", "2"]


_FILLS_UP = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_checkpoint as t
directory = Path(sys.argv[1])
_, start = t.state.create(t.configuration())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with t.Checkpoints(directory, exclusive=True) as checkpoints:
    # From here on no file may grow past a kilobyte: every write beyond it fails, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    try:
        checkpoints.save(2, t.at(start, 2), t.fresh_iterator())
    except RuntimeError as error:
        print("REFUSED:", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ") or not hasattr(resource, "RLIMIT_FSIZE"), reason="POSIX")
def test_a_disk_that_fills_up_leaves_the_previous_checkpoint(tmp_path, request):
    """The operating system refuses the bytes, not a stand-in for Orbax."""
    directory = tmp_path / "checkpoints"
    start = saved(directory, [1])
    command = [sys.executable, "-c", _FILLS_UP, str(directory), str(request.path.parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert "REFUSED: the checkpoint of step 2 could not be written" in result.stdout, (
        result.stdout + result.stderr
    )
    assert "the checkpoint of step 1 is intact" in result.stdout
    with Checkpoints(directory, exclusive=True) as checkpoints:
        assert checkpoints.steps() == [1]
        restored = checkpoints.restore(start, fresh_iterator())
    jax.tree.map(np.testing.assert_array_equal, restored, at(start, 1))
