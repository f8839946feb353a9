"""Rows streamed from a file against the same rows in memory, and how much memory streaming takes.

Speed: CIFAR-10's shape in uint8 (n = 50 000, d = 3072, b = 128 queries, t = 0.5), dense in memory and streamed from a
`.npy` file that the operating system has in its cache, beside the time to read the file alone. Screening: pictures of
that shape with the spectrum of natural ones (float32; harder to tell apart than real ones, which --data SOURCE names),
on the path at several times; streamed and screened, of which the second holds small tables and reads only the rows that
may matter. Memory: the growth of the peak resident memory of a fresh process that builds a field over 1.2 GB and 20 GB
of uint8 rows (holes in a sparse file) and evaluates two queries (Linux only). About ten minutes on two cores.
"""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import flowjax as fj
from flowjax.closed_form import streamed
from flowjax.closed_form.sources import open_rows

from . import harness
from .screened import waves

NUM_POINTS, DIMENSION, QUERIES, TIME = 50_000, 3072, 128, 0.5
SCREENED_TIMES = (0.2, 0.5, 0.8, 0.95)
LARGE = (1_200_000_000, 20_000_000_000)

_MEMORY = """
import json, sys, time
from pathlib import Path
import numpy as np
import flowjax as fj

def peak():  # not ru_maxrss, which a new process inherits from the one that started it
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

x = np.zeros((2, int(sys.argv[2])), np.float32)
warm = fj.ClosedFormField(np.zeros((3, x.shape[1]), np.uint8), method="streamed")
warm(x, 0.5).block_until_ready()
before, start = peak(), time.perf_counter()
field = fj.ClosedFormField(sys.argv[1], method="streamed")
built = time.perf_counter()
field(x, 0.5).block_until_ready()
print(json.dumps({
    "bytes": field.num_points * x.shape[1],
    "growth_bytes": peak() - before,
    "build_seconds": built - start,
    "evaluation_seconds": time.perf_counter() - built,
}))
"""


@jax.jit
def _field(field: fj.ClosedFormField, x: jax.Array, t: float = TIME) -> jax.Array:
    return field(x, t)


def _read(file: Path) -> int:
    """Read all rows block by block and do nothing with them."""
    rows = open_rows(file)
    size = streamed.BLOCK_BYTES // DIMENSION
    return sum(len(rows.read(k, min(k + size, NUM_POINTS))) for k in range(0, NUM_POINTS, size))


def _speed(folder: Path, rounds: int) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_POINTS, DIMENSION), np.uint8)
    file = folder / "rows.npy"
    np.save(file, pixels)
    x = jax.random.normal(jax.random.key(1), (QUERIES, DIMENSION))
    flop = 4.0 * QUERIES * NUM_POINTS * DIMENSION
    dense, from_file = fj.ClosedFormField(pixels, method="dense"), fj.ClosedFormField(file)
    cases = [
        harness.Case("in memory", functools.partial(_field, dense, x), flop),
        harness.Case("streamed", functools.partial(_field, from_file, x), flop),
        harness.Case("reading alone", lambda: _read(file)),
        harness.product_case("square product", 2048, 2048, 2048),
    ]
    seconds = harness.measure(cases, rounds=rounds)
    return {
        "queries": QUERIES,
        "points": NUM_POINTS,
        "dimension": DIMENSION,
        "blocks": -(-NUM_POINTS // streamed.block_rows(from_file._rows, None)),
        "seconds": seconds,
        "gigaflop_per_second": {
            case.name: case.flop / seconds[case.name] / 1e9 for case in cases if case.flop
        },
        "speed_against_memory": seconds["in memory"] / seconds["streamed"],
    }


def _screened(folder: Path, rounds: int, data: str | None) -> dict[str, Any]:
    file = folder / "pictures.npy"
    stored = waves(40_000) if data is None else fj.data.load(data).images
    np.save(file, stored)
    pictures = np.asarray(fj.closed_form.to_float(stored[:QUERIES]))
    fields = {method: fj.ClosedFormField(file, method=method) for method in ("streamed", "screened")}
    noise = np.random.default_rng(1).normal(size=(QUERIES, *pictures.shape[1:])).astype(np.float32)
    times = {}
    for t in SCREENED_TIMES:
        x = jax.numpy.asarray((1 - t) * noise + t * pictures)
        cases = [
            harness.Case(method, functools.partial(_field, field, x, t)) for method, field in fields.items()
        ]
        seconds = harness.measure(cases, rounds=rounds)
        times[str(t)] = {"seconds": seconds, "speed": seconds["streamed"] / seconds["screened"]}
    return {
        "data": data,
        "points": len(stored),
        "bytes": stored.nbytes,
        "table_bytes": fields["screened"].screen_bytes,
        "times": times,
    }


def _memory(folder: Path, size: int) -> dict[str, Any]:
    file = folder / f"{size}.npy"
    shape = size // DIMENSION, DIMENSION
    np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape).flush()
    command = [sys.executable, "-c", _MEMORY, str(file), str(DIMENSION)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def run(*, rounds: int = 7, data: str | None = None) -> dict[str, Any]:
    """Speed and memory; see the module's docstring."""
    with tempfile.TemporaryDirectory() as folder:
        speed = _speed(Path(folder), rounds)
        screened = _screened(Path(folder), rounds, data)
        memory = [_memory(Path(folder), size) for size in LARGE]
    return {
        "benchmark": "streamed",
        "machine": harness.machine(),
        "rounds": rounds,
        "speed": speed,
        "screened": screened,
        "memory": memory,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    speed = result["speed"]
    rows = [[name, f"{1e3 * seconds:.0f} ms"] for name, seconds in speed["seconds"].items()]
    rows.append(["speed against memory", f"{speed['speed_against_memory']:.2f}"])
    screened = result["screened"]
    share = screened["table_bytes"] / screened["bytes"]
    rows.append(["screened from the file: tables", f"{share:.0%} of the rows' bytes"])
    rows += [
        [f"screened, t = {t}", f"{case['speed']:.1f} × streamed"] for t, case in screened["times"].items()
    ]
    for case in result["memory"]:
        name = f"{case['bytes'] / 1e9:.1f} GB"
        rows.append([f"{name}: growth of peak memory", f"{case['growth_bytes'] / 1e9:.2f} GB"])
        rows.append([f"{name}: first pass", f"{case['build_seconds']:.0f} s"])
        rows.append([f"{name}: two queries", f"{case['evaluation_seconds']:.0f} s"])
    return ["", f"d = {speed['dimension']}, b = {speed['queries']}"], rows
