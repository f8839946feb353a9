"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from typing import Any


class Progress(contextlib.AbstractContextManager):
    """Step, loss, speed and time left.

    Args:
        total: last step.
        start: step that the run begins at.
        every: steps between plain lines where the output is no terminal.
        quiet: neither bar nor lines, only what `say` is given.
    """

    def __init__(self, total: int, start: int, every: int, *, quiet: bool = False):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._total, self._start, self._every, self._quiet = total, start, every, quiet
        self._began = time.perf_counter()
        self._bar = None
        console = Console(file=sys.stdout)
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TextColumn("{task.fields[speed]} steps/s"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("", total=total, completed=start, loss="–", speed="–")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        """Step `step` is done with these metrics."""
        speed = (step - self._start) / max(time.perf_counter() - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"{metrics['loss']:.4f}", speed=f"{speed:.1f}")
        elif not self._quiet and (step % self._every == 0 or step == self._total):
            left = (self._total - step) / speed
            print(
                f"step {step}/{self._total}  loss {metrics['loss']:.4f}  {speed:.1f} steps/s  {left:.0f} s left",
                flush=True,
            )

    def say(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            print(text, flush=True)
