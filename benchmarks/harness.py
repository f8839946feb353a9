"""Interleaved timing beside the machine's own limits, memory, and results as JSON.

A figure counts as a ratio inside one run: every case is timed in turn with its references, round after round,
and medians are compared, so that a machine that slows down slows all of them.
"""

import dataclasses
import datetime
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax._files import replacing

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of no arguments that returns arrays, and the work it stands for.

    What JAX returns is waited for; any other library must have finished when the function returns.

    Attributes:
        name: in results and tables.
        run: the function.
        flop: floating-point operations.
        bytes: read and written.
    """

    name: str
    run: Callable[[], Any]
    flop: float = 0.0
    bytes: float = 0.0


_LEAST_SECONDS = 0.02


def measure(cases: list[Case], *, rounds: int = 7) -> dict[str, float]:
    """Median seconds of each case, timed in turn `rounds` times after one warm-up (which compiles).

    On an accelerator a short case is called so often in a row that it takes 20 ms, and waited for once: its own time
    counts then, not that of handing it over.
    """
    calls = dict.fromkeys((case.name for case in cases), 1)
    for case in cases:
        jax.block_until_ready(case.run())
        if jax.default_backend() != "cpu":
            start = time.perf_counter()
            jax.block_until_ready(case.run())
            calls[case.name] = min(200, math.ceil(_LEAST_SECONDS / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    # A large result is freed when the next computation starts, which takes tens of milliseconds: not on its account.
    settle, some = jax.jit(jnp.negative), jnp.ones(2**16)
    for _ in range(rounds):
        for case in cases:
            jax.block_until_ready(settle(some))
            start = time.perf_counter()
            for _ in range(calls[case.name] - 1):
                case.run()
            jax.block_until_ready(case.run())
            seconds[case.name].append((time.perf_counter() - start) / calls[case.name])
    return {name: statistics.median(times) for name, times in seconds.items()}


def product_case(name: str, rows: int, inner: int, columns: int) -> Case:
    """One float32 matrix product [rows, inner] × [inner, columns]: a limit of the machine itself."""
    left = jax.random.normal(jax.random.key(0), (rows, inner))
    right = jax.random.normal(jax.random.key(1), (inner, columns))
    product = jax.jit(functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))
    return Case(name, lambda: product(left, right), 2.0 * rows * inner * columns)


def both_products_case(
    name: str, x: jax.Array, data: jax.Array, precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST
) -> Case:
    """x Yᵀ and W Y of a field's own shapes, apart from each other and with nothing in between."""
    average = jax.jit(functools.partial(jnp.matmul, precision=precision))
    scores = jax.jit(lambda x, y: jnp.matmul(x, y.T, precision=precision))
    weights = jnp.full((len(x), len(data)), 1 / len(data))
    return Case(name, lambda: (scores(x, data), average(weights, data)), 4.0 * len(x) * data.size)


def copy_case(name: str, size: int = 2**28) -> Case:
    """Read and write `size` bytes: far more than any cache holds, so the rate is the memory's."""
    array = jnp.ones(size // 4, jnp.float32)
    negate = jax.jit(jnp.negative)  # the compiler could leave a plain copy out
    return Case(name, lambda: negate(array), bytes=2.0 * array.nbytes)


_EXPONENTIALS_BLOCK = 500


def exponentials_case(name: str, queries: int, points: int) -> Case:
    """Σ exp over `points` columns, block after block of one [queries, m] array that stays in the cache."""
    size = min(_EXPONENTIALS_BLOCK, points)
    block = -jax.random.uniform(jax.random.key(2), (queries, size))

    @jax.jit
    def total(block):
        def add(total, _):
            # A scale that depends on the sum so far, or the compiler would compute one block only.
            return total + jnp.exp(block - 1e-9 * total[:, None]).sum(1), None

        return jax.lax.scan(add, jnp.zeros(len(block)), length=points // size)[0]

    return Case(name, lambda: total(block))


def temporary_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes a compiled function needs beside its arguments and results, as its compiler states them."""
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    if memory is None:
        raise RuntimeError(f"the compiler of {jax.default_backend()} states no memory use")
    return memory.temp_size_in_bytes


def machine() -> dict[str, Any]:
    """What the figures were taken on: processor, device, versions, commit, time."""
    import flowjax

    return {
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "flowjax": flowjax.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def save(name: str, result: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    with replacing(file) as part:
        part.write_text(json.dumps(result, indent=2) + "\n")
    return file


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table as README and other documents hold it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
