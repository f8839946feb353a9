"""The folder of an experiment: who may write there, and the parts of the work that are done already."""

import contextlib
import dataclasses
import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flowjax._files import is_leftover, replacing
from flowjax.training.config import first_difference

Item = TypeVar("Item")
_SECONDS = "seconds of this part"


class Workspace(contextlib.AbstractContextManager):
    """Claims a folder for one experiment, or goes on in the folder of the same one.

    Args:
        out: a new or empty folder, or one that an interrupted run of the same experiment left.
        facts: what the run is: experiment, data, fingerprint, preset, settings.

    Raises:
        ValueError: the folder holds a finished run, another one, or something else; another process is at work in it.
    """

    def __init__(self, out: Path, facts: dict[str, Any]):
        self.out = out
        self._facts = json.loads(json.dumps(facts))

    def __enter__(self) -> "Workspace":
        self.out.mkdir(parents=True, exist_ok=True)
        self._lock = (self.out / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ValueError(f"another process is at work in {self.out}; choose another --out") from None
        try:
            self._claim()
        except BaseException:
            self._lock.close()
            raise
        return self

    def _claim(self) -> None:
        kept = self.out / "experiment.json"
        if kept.is_file():
            difference = first_difference(json.loads(kept.read_text()), self._facts)
            if difference is not None:
                raise ValueError(f"{self.out} holds another run ({difference}); choose another --out")
            if (self.out / "result.json").is_file():
                raise ValueError(
                    f"{self.out} holds this experiment, finished; see report.html there, or choose another --out"
                )
            return
        strangers = [f.name for f in self.out.iterdir() if f.name != ".lock" and not is_leftover(f)]
        if strangers:
            raise ValueError(f"{self.out} is not empty ({sorted(strangers)[0]}); choose another --out")
        with replacing(kept) as part:
            part.write_text(json.dumps(self._facts, indent=2) + "\n")

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def once(
        self, name: str, compute: Callable[[], dict[str, Any]], *, seconds: float | None = None
    ) -> dict[str, np.ndarray]:
        """Arrays by name, computed now or read from `parts/NAME.npz`, where an interrupted run left them.

        `seconds` says how long it took, where that is known better.
        """
        file = self.out / "parts" / f"{name}.npz"
        if not file.is_file():
            begin = time.perf_counter()
            arrays = {key: np.asarray(value) for key, value in compute().items()}
            file.parent.mkdir(exist_ok=True)
            arrays[_SECONDS] = np.asarray(time.perf_counter() - begin if seconds is None else seconds)
            with replacing(file) as part, part.open("wb") as stream:
                np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
        with np.load(file) as stored:
            return {key: stored[key] for key in stored.files if key != _SECONDS}

    def spent(self, name: str, seconds: float) -> None:
        """Count work that keeps its results elsewhere."""
        self.once(f"{name}-seconds-{time.time_ns()}", lambda: {"seconds": seconds}, seconds=seconds)

    @property
    def seconds(self) -> float:
        """Of all parts that are done, in this run and the interrupted ones before it."""
        total = 0.0
        for file in sorted((self.out / "parts").glob("*.npz")):
            with np.load(file) as stored:
                total += float(stored[_SECONDS])
        return total

    def track(self, items: Iterable[Item], description: str) -> Iterator[Item]:
        """The items, with a bar on a terminal and a line now and then elsewhere."""
        from rich.console import Console
        from rich.progress import track

        items = list(items)
        console = Console(file=sys.stderr)
        if console.is_terminal:
            yield from track(items, description, console=console, transient=True)
            return
        said = begin = time.perf_counter()
        for done, item in enumerate(items):
            now = time.perf_counter()
            if done and now - said > 30:
                said, left = now, (now - begin) / done * (len(items) - done)
                print(
                    f"{description}: {done} of {len(items)}, {left:.0f} s left", file=sys.stderr, flush=True
                )
            yield item


def settings_of(settings: Any) -> dict[str, Any]:
    """A frozen dataclass of settings as plain types."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))
