"""flowjax beside what else computes the field: how long each takes, and how wrong each is, in one interleaved run.

Every peer of `methods.PEERS` at every shape of `problems.POINTS`, float32, Linear path, t = 0.5, queries on the path.
Times are divided by the time of flowjax's dense pass in the same run; errors are the largest ‖v − û‖/‖û‖ over the
queries against double precision. KeOps, the broadcast and scikit-learn are timed on a few of the queries and scaled to
all of them (`scaled_by`), since their cost is proportional to the number of queries; their errors are over those few.
Where the posterior is one row (the effective sample size is recorded), everybody is right; where it is many, a few
neighbours are not enough.

Beside them stand the machine's own limits: the rate of the field's two products and of a square one, of exponentials,
and of copying memory.

A peer whose package is missing, or that fails, keeps its row with the reason. `pip install -e ".[bench]"` brings all.
KeOps compiles a shape when it first meets it. About seven minutes on two quiet cores, in 8 GB of memory.
"""

import dataclasses
import functools
import gc
import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowjax.closed_form.shapes import SHAPES

from .. import harness
from .methods import DENSE, PEERS, Peer, threads
from .problems import POINTS, Problem, named, truth

_PACKAGES = ("torch", "pykeops", "deepinv", "faiss-cpu", "scikit-learn")
_LIMITS = ("both products", "square product", "exponentials", "copy")


def run(*, rounds: int = 3) -> dict[str, Any]:
    """All shapes; see the module's docstring."""
    shapes = []
    for name in POINTS:
        shapes.append(compare(named(name), rounds=rounds))
        print(f"{name}: done", flush=True)
        gc.collect()
    return {
        "benchmark": "peers",
        "machine": harness.machine() | {"threads": threads()},
        "packages": {name: _version(name) for name in _PACKAGES},
        "rounds": rounds,
        "truth": "flowjax, precision float64, float64 queries",
        "shapes": shapes,
    }


def compare(problem: Problem, *, rounds: int, peers: tuple[Peer, ...] = PEERS) -> dict[str, Any]:
    """One shape: all peers that can run, and the machine's limits, interleaved."""
    (n, d), b = problem.data.shape, len(problem.x)
    posterior = truth(problem)
    true = {"velocity": np.asarray(posterior.velocity), "log density": np.asarray(posterior.log_density)}
    rows, cases = [], []
    for peer in peers:
        if peer.dimensions[0] <= d <= peer.dimensions[1]:
            row, case = _prepare(peer, problem, true)
            rows.append(row)
            cases += [case] if case else []
    limits = [
        harness.both_products_case("both products", jnp.asarray(problem.x), jnp.asarray(problem.data)),
        harness.product_case("square product", 2048, 2048, 2048),
        harness.exponentials_case("exponentials", b, n),
        harness.copy_case("copy"),
    ]
    seconds = harness.measure([*cases, *limits], rounds=rounds)
    product_rate = problem.flop / seconds["both products"]
    for row in rows:
        if row["name"] in seconds:
            row["seconds"] = seconds[row["name"]] * row["scaled_by"]
            row["time_against_dense"] = row["seconds"] / seconds[DENSE.name]
            row["share_of_product_rate"] = problem.flop / row["seconds"] / product_rate
    return {
        "name": problem.name,
        "points": n,
        "published_points": SHAPES[problem.name].num_points if problem.name in SHAPES else None,
        "dimension": d,
        "queries": b,
        "effective_sample_size_median": float(np.median(posterior.effective_sample_size)),
        "limits": {
            "both_products_gigaflop_per_second": product_rate / 1e9,
            "square_product_gigaflop_per_second": limits[1].flop / seconds["square product"] / 1e9,
            "exponentials_per_second": b * n / seconds["exponentials"],
            "copy_gigabyte_per_second": limits[3].bytes / seconds["copy"] / 1e9,
        },
        "limit_seconds": {name: seconds[name] for name in _LIMITS},
        "peers": rows,
    }


def _prepare(
    peer: Peer, problem: Problem, true: dict[str, np.ndarray]
) -> tuple[dict[str, Any], harness.Case | None]:
    """The peer's row, with its error, and its case; the row alone, with the reason, if it cannot run."""
    asked = problem
    if peer.few:
        asked = dataclasses.replace(problem, x=problem.x[: problem.few])
    row: dict[str, Any] = {
        "name": peer.name,
        "answer": peer.answer,
        "queries": len(asked.x),
        "scaled_by": len(problem.x) / len(asked.x),
    }
    try:
        function = peer.prepare(asked)
        found = np.asarray(function(), np.float64)
    except Exception as error:  # whatever a package that does not fit this machine comes up with
        missing = isinstance(error, ModuleNotFoundError) and peer.package is not None
        reason = " ".join(str(error).split()) or type(error).__name__
        row["missing"] = (
            f"not installed: pip install {peer.package}" if missing else f"not available: {reason[:300]}"
        )
        return row, None
    expected = true[peer.answer][: len(asked.x)]
    if peer.answer == "velocity":
        error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        row["largest_relative_error"] = float(error.max())
    else:
        row["largest_error_nats"] = float(np.abs(found - expected).max())
    return row, harness.Case(peer.name, function)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: a column a shape, time beside error."""
    shapes = result["shapes"]

    def row(name: str, cell: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *(cell(shape) for shape in shapes)]

    names = dict.fromkeys(peer["name"] for shape in shapes for peer in shape["peers"])
    header = row("time / flowjax dense (below 1: faster), error", lambda s: s["name"])
    return header, [
        row("n", lambda s: f"{s['points']}"),
        row("d", lambda s: f"{s['dimension']}"),
        row("b", lambda s: f"{s['queries']}"),
        row("rows that matter", lambda s: f"{s['effective_sample_size_median']:.0f}"),
        *(row(name, functools.partial(_cell, name=name)) for name in names),
        row("both products, GFLOP/s", lambda s: f"{s['limits']['both_products_gigaflop_per_second']:.3g}"),
        row("square product, GFLOP/s", lambda s: f"{s['limits']['square_product_gigaflop_per_second']:.3g}"),
        row("exponentials, 10⁹/s", lambda s: f"{s['limits']['exponentials_per_second'] / 1e9:.3g}"),
        row("copy, GB/s", lambda s: f"{s['limits']['copy_gigabyte_per_second']:.3g}"),
    ]


def _cell(shape: dict[str, Any], name: str) -> str:
    row = next((row for row in shape["peers"] if row["name"] == name), None)
    if row is None:
        return ""
    if "missing" in row:
        return row["missing"][:60]
    ratio = row["time_against_dense"]
    time = f"{1e3 * row['seconds']:.0f} ms" if name == DENSE.name else f"{ratio:.3g}"
    if row["answer"] == "velocity":
        return f"{time}, {row['largest_relative_error']:.0e}"
    return f"{time}, {row['largest_error_nats']:.0e} nats"
