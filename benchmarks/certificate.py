"""Is the certified bound of screening ever broken, and how tight is it? At least 100 000 pairs (query, t) by default.

Every set below is made to break something; queries lie on the path, between neighbours, and far from everything, at
times drawn from [0, 1) and from its late end. Screening is chosen wherever it can hold, whatever it costs. Truth is
float64 by direct differences (`closed_form.oracle`). Minutes on two cores; --rounds N takes N × 1000 queries a set.
"""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj
from flowjax.closed_form import oracle, screened

from . import harness
from .accuracy import natural_crops, neighbours

NUM_POINTS, DIMENSION, QUERIES = 509, 48, 1000


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


def _queries(data: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """x [count, d] and t [count]: on the path, between neighbours and far from everything, in equal parts."""
    t = np.where(rng.random(count) < 0.75, rng.random(count), 1 - 10 ** rng.uniform(-3.5, -1, count))
    t = t.astype(np.float32)
    row = rng.integers(0, len(data), count)
    noise = rng.normal(size=(count, data.shape[1])).astype(np.float32)
    column = t[:, None]
    on_path = (1 - column) * noise + column * data[row]
    between = column * (data[row] + data[neighbours(data)[row]]) / 2
    kind = np.arange(count)[:, None] % 3
    return np.where(kind == 0, on_path, np.where(kind == 1, between, 50 * noise)), t


def _check(data: np.ndarray, x: np.ndarray, t: np.ndarray) -> dict[str, Any]:
    field = fj.ClosedFormField(data, method="screened")
    posterior = jax.jit(lambda field, x, t: field.posterior(x, t))(field, x, t)
    dense = field.explain(x, t).dense
    with jax.enable_x64(True):
        exact, path = jnp.asarray(t, jnp.float64), field.path
        schedules = path.alpha(exact), path.sigma(exact), path.alpha_dot(exact), path.sigma_dot(exact)
        schedules = tuple(np.asarray(s) for s in schedules)
    expected = oracle.posterior(data, x, schedules).velocity  # type: ignore[arg-type]
    error = np.linalg.norm(np.asarray(posterior.velocity, np.float64) - expected, axis=1)
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
    pictures = natural_crops(NUM_POINTS, 16).reshape(NUM_POINTS, -1)
    cases = []
    with mock.patch.object(screened, "COSTS", screened.ONLY_SURVIVORS):
        for name, data in [*adversaries(NUM_POINTS, DIMENSION), ("natural pictures 16×16×3", pictures)]:
            x, t = _queries(data, rounds * QUERIES, np.random.default_rng(len(cases)))
            cases.append({"name": name, "shape": list(data.shape), **_check(data, x, t)})
            print(f"{name}: {cases[-1]['broken']} of {cases[-1]['pairs']} broken", flush=True)
    jax.clear_caches()  # what was compiled with these costs is nobody else's
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
