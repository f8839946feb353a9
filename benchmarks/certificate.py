"""Is the certified bound of screening ever broken, and how tight is it? At least 100 000 pairs (query, t) by default.

Every set below is made to break something; queries lie on the path, between neighbours, and far from everything, at
times drawn from [0, 1) and from its late end. Screening is chosen wherever it can hold, whatever it costs. Truth is
float64 by direct differences (`closed_form.oracle`). Minutes on two cores; --rounds N takes N × 1000 queries a set.
"""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

import flowjax as fj
from flowjax.closed_form import costs, oracle

from . import harness
from .accuracy import linear_schedules, natural_crops, neighbours

NUM_POINTS, DIMENSION, QUERIES = 2111, 48, 1000


def adversaries(n: int, d: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and data sets [n, d] float32, of one shape, so that one executable serves them all."""
    rng = np.random.default_rng(5)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def repeated(rows):
        return np.resize(rows, (n, d))

    base = normal(n, d)
    yield "near-duplicates, 1e-3 apart", repeated(base[: n // 4]) + np.float32(1e-3) * normal(n, d)
    yield "duplicates", repeated(base[: n // 2])
    yield "offset by 1000", base + 1000
    yield "scale 1e-3", base * np.float32(1e-3)
    yield "scale 100", base * np.float32(100)
    yield "heavy-tailed norms", base * rng.pareto(1.5, (n, 1)).astype(np.float32)
    yield "on a sphere", 30 * base / np.linalg.norm(base, axis=1, keepdims=True)
    # All rows along few directions, differing by their lengths: Cauchy-Schwarz is attained.
    yield "rays", rng.gamma(2, 3, (n, 1)).astype(np.float32) * repeated(normal(3, d))
    yield "on a line", np.linspace(-5, 5, n, dtype=np.float32)[:, None] * normal(1, d)
    yield "one spike each", np.eye(d, dtype=np.float32)[rng.integers(0, d, n)] * 20
    yield "isotropic", base


def _queries(
    data: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [count, *event], t [count] and the row that each was made of: on the path, between neighbours and far from
    everything, in equal parts."""
    t = np.where(rng.random(count) < 0.75, rng.random(count), 1 - 10 ** rng.uniform(-3.5, -1, count))
    t = t.astype(np.float32)
    row = rng.integers(0, len(data), count)
    noise = rng.normal(size=(count, *data.shape[1:])).astype(np.float32)
    column = t.reshape(-1, *[1] * (data.ndim - 1))
    on_path = (1 - column) * noise + column * data[row]
    between = column * (data[row] + data[neighbours(data)[row]]) / 2
    kind = np.arange(count).reshape(column.shape) % 3
    return np.where(kind == 0, on_path, np.where(kind == 1, between, 50 * noise)), t, row


def _check(
    data: np.ndarray, x: np.ndarray, t: np.ndarray, labels=None, hint=None, **options
) -> dict[str, Any]:
    """Counts and errors. `labels`: [n] of the rows and [b] of the queries; hint [b]; options of field and oracle."""
    row_labels, query_labels = labels or (None, None)
    with mock.patch.object(costs, "MEASURED", costs.ONLY_SURVIVORS):
        field = fj.ClosedFormField(data, method="screened", labels=row_labels, **options)
    posterior = field.posterior(x, t, query_labels, hint=hint)
    dense = field.explain(x, t, query_labels, hint=hint).dense
    expected = oracle.posterior(
        data,
        x,
        linear_schedules(t),
        labels=row_labels,
        query_labels=query_labels,
        **options,
    ).velocity
    error = np.linalg.norm(np.asarray(posterior.velocity, np.float64).reshape(len(x), -1) - expected, axis=1)
    bound, size = np.asarray(posterior.error_bound, np.float64), np.linalg.norm(expected, axis=1)
    ratio = bound / np.maximum(error, np.finfo(np.float64).tiny)
    held = ~dense
    return {
        "pairs": len(x),
        "broken": int(np.sum(~(error <= bound))),
        "screened": int(held.sum()),
        "worst_error": float(np.max(error / size)),
        "worst_error_screened": float(np.max(error[held] / size[held], initial=0)),
        "median_tightness": float(np.median(ratio[error > 0])),
        "largest_tightness": float(np.max(ratio[error > 0])),
        "median_tightness_screened": float(np.median(ratio[held & (error > 0)])) if held.any() else None,
    }


def run(*, rounds: int = 9) -> dict[str, Any]:
    """One case a data set; see the module's docstring."""
    sets = [*adversaries(NUM_POINTS, DIMENSION)]
    sets.append(("natural pictures 16×16×3", natural_crops(NUM_POINTS, 16).reshape(NUM_POINTS, -1)))
    cases = []

    def add(name, data, x, t, **options):
        cases.append({"name": name, "shape": list(data.shape), **_check(data, x, t, **options)})
        print(f"{name}: {cases[-1]['broken']} of {cases[-1]['pairs']} broken", flush=True)

    for name, data in sets:
        add(name, data, *_queries(data, rounds * QUERIES, np.random.default_rng(len(cases)))[:2])
    data, rng = natural_crops(NUM_POINTS, 8), np.random.default_rng(len(cases))
    x, t, row = _queries(data, rounds * QUERIES, rng)
    labels = rng.integers(0, 3, NUM_POINTS)
    add(
        "natural pictures 8×8×3 with flips, weights, classes and hints",
        *(data, x, t),
        labels=(labels, labels[row]),
        hint=row,
        horizontal_flip=True,
        weights=rng.gamma(1, 1, NUM_POINTS).astype(np.float32),
    )
    return {
        "benchmark": "certificate",
        "machine": harness.machine(),
        "rounds": rounds,
        "pairs": sum(case["pairs"] for case in cases),
        "broken": sum(case["broken"] for case in cases),
        "cases": cases,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: a row a data set, then the sums."""
    header = [
        "data",
        "pairs",
        "by screening",
        "broken",
        "worst error",
        "of these by screening",
        "bound / error, median",
        "largest",
        "median by screening",
    ]
    rows = [
        [
            case["name"],
            str(case["pairs"]),
            str(case["screened"]),
            str(case["broken"]),
            f"{case['worst_error']:.1e}",
            f"{case['worst_error_screened']:.1e}",
            f"{case['median_tightness']:.1f}",
            f"{case['largest_tightness']:.1e}",
            "" if case["median_tightness_screened"] is None else f"{case['median_tightness_screened']:.1f}",
        ]
        for case in result["cases"]
    ]
    return header, [*rows, ["all", str(result["pairs"]), "", str(result["broken"]), "", "", "", "", ""]]
