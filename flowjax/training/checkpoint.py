"""Orbax v1 checkpoints of the state and the data iterator, with a fallback to the one before a damaged one."""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax

from .state import TrainState

_KEPT = 2


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits for saves under way.

    Args:
        directory: absolute; made at the first save.
        exclusive: this process alone writes here, so what a killed save left behind is removed, and checkpoints that
            cannot be read are moved aside. A reader must not: another process may be training, and its save under
            way looks like such a leftover.
    """

    def __init__(self, directory: Path, *, exclusive: bool = False):
        # Orbax warns on every start that it was handed no mesh; nothing depends on one here.
        logging.getLogger("absl").setLevel(logging.ERROR)
        from orbax.checkpoint import v1 as ocp

        training: Any = ocp.training  # its annotations do not fit its own policies
        self.directory = directory
        self._exclusive = exclusive
        self._checkpointer = training.Checkpointer(
            directory.absolute(),
            preservation_policy=training.preservation_policies.LatestN(_KEPT),
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=exclusive,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def newest(self) -> str:
        """In words, for errors: what a run can be resumed from."""
        steps = self.steps()
        return f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no checkpoint yet"

    def save(self, step: int, state: TrainState, iterator: Any) -> None:
        """Save and wait: when this returns the checkpoint is whole.

        Raises:
            RuntimeError: the save failed, for example on a full disk; earlier checkpoints are as they were.
        """
        if step in self.steps():
            return
        try:
            saved = self._checkpointer.save_checkpointables(
                step, {"state": state, "dataset": iterator}, force=True
            )
        except (OSError, ValueError) as error:
            raise RuntimeError(
                f"the checkpoint of step {step} could not be written to {self.directory} ({error}); "
                f"{self.newest()}. Free some disk space and continue with --resume"
            ) from error
        if not saved:
            raise RuntimeError(f"orbax declined to save the checkpoint of step {step}")

    def restore(self, state: TrainState, iterator: Any, warn=print) -> TrainState | None:
        """The newest checkpoint that can be read, its iterator state put into `iterator`; None if there is none.

        Args:
            state: gives shapes, dtypes and shardings.
            iterator: the pipeline, positioned where the checkpoint left it; None leaves its position unread.
            warn: told about every damaged checkpoint that is passed over.

        Raises:
            RuntimeError: there are checkpoints, but none can be read.
        """
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
        )
        steps = self.steps()
        damaged, reason = [], ""
        for step in reversed(steps):
            try:
                # One after the other: where one of two is damaged, Orbax leaves the other's load unawaited.
                loaded = self._checkpointer.load_checkpointables(step, {"state": abstract})
                if iterator is not None:
                    self._checkpointer.load_checkpointables(step, {"dataset": iterator})
            # Orbax wraps what a damaged file raises in many types; whatever it is, the one before may be whole.
            except Exception as error:
                warn(
                    f"the checkpoint of step {step} is damaged ({type(error).__name__}); trying the one before"
                )
                damaged.append(step)
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                continue
            if self._exclusive and damaged:
                self._set_aside(damaged)
            return loaded["state"]
        if steps:
            raise RuntimeError(
                f"none of the checkpoints in {self.directory} (steps {', '.join(map(str, steps))}) can be read: "
                f"{reason}; move them away and use --resume to start over, or choose another --run-dir"
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Move checkpoints out of the way, since their steps will be saved again.

        Not deleted: a full memory or a disk that failed once reads like damage.
        """
        aside = self.directory.with_name("damaged")
        aside.mkdir(exist_ok=True)
        for step in steps:
            target = aside / str(step)
            shutil.rmtree(target, ignore_errors=True)
            (self.directory / str(step)).rename(target)
        self._checkpointer.reload()
