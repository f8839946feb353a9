"""Seconds to import flowjax beside importing what it cannot do without, jax and flax.nnx, each in a new process."""

import statistics
import subprocess
import sys
import time
from typing import Any

from . import harness

STATEMENTS = {
    "jax, flax.nnx": "import jax; import flax.nnx",
    "flowjax": "import flowjax",
    "flowjax.ClosedFormField": "import flowjax; flowjax.ClosedFormField",
    "flowjax.training": "import flowjax.training",
}


def run(*, rounds: int = 7) -> dict[str, Any]:
    """Median seconds of each statement, in turn `rounds` times after one warm-up (which fills the file cache)."""
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for round_ in range(rounds + 1):
        for name, statement in STATEMENTS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            if round_:
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {"benchmark": "imports", "machine": harness.machine(), "rounds": rounds, "seconds": medians}


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    seconds = result["seconds"]
    reference = seconds["jax, flax.nnx"]
    return ["import", "seconds", "ratio"], [
        [name, f"{value:.2f}", f"{value / reference:.2f}"] for name, value in seconds.items()
    ]
