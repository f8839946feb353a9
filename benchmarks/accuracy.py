"""Velocity error against float64, beside the certified bound, on natural pictures.

Rows: 32×32×3 crops of scikit-learn's two photographs at three scales, in [−1, 1]. Queries: on the path (x_t of a row
and noise) and half-way between a row and its nearest neighbour, where two weights are equal and the velocity hangs on
a difference of two huge logits. Both precisions. About five minutes on two cores.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj
from flowjax.closed_form import oracle

from . import harness

NUM_POINTS, NUM_QUERIES, SIZE = 5000, 32, 32
TIMES = (0.0, 0.001, 0.05, 0.2, 0.5, 0.9, 0.99, 0.999)


def natural_crops(count: int, size: int, seed: int = 0) -> np.ndarray:
    """[count, size, size, 3] float32 crops of scikit-learn's photographs, reduced 2×, 4× or 8×."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photographs = load_sample_images().images
    crops = []
    for _ in range(count):
        picture = photographs[rng.integers(len(photographs))]
        scale = int(rng.choice([2, 4, 8]))
        top, left = (rng.integers(side - scale * size) for side in picture.shape[:2])
        crop = picture[top : top + scale * size, left : left + scale * size].astype(np.float32)
        crops.append(crop.reshape(size, scale, size, scale, 3).mean((1, 3)))
    return np.stack(crops) / np.float32(127.5) - 1


def neighbours(data: np.ndarray) -> np.ndarray:
    """[n] number of each row's nearest other row."""
    points = data.reshape(len(data), -1).astype(np.float64)
    distances = (points**2).sum(1) - 2 * points @ points.T
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(1)


def linear_schedules(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """alpha, sigma, alpha', sigma' of the linear path in float64 at the float32 times that a field sees, [b] each."""
    path = fj.paths.Linear()
    with jax.enable_x64(True):
        exact = jnp.asarray(t.astype(np.float32), jnp.float64)
        return (
            np.asarray(path.alpha(exact)),
            np.asarray(path.sigma(exact)),
            np.asarray(path.alpha_dot(exact)),
            np.asarray(path.sigma_dot(exact)),
        )


def run() -> dict[str, Any]:
    """One row per time and kind of query."""
    data = natural_crops(NUM_POINTS, SIZE)
    noise = np.random.default_rng(1).normal(size=(NUM_QUERIES, *data.shape[1:])).astype(np.float32)
    partner = neighbours(data)[:NUM_QUERIES]
    fields = {p: fj.ClosedFormField(data, precision=p) for p in ("float32", "float64")}
    rows = []
    for time in TIMES:
        t = np.float32(time)
        for kind, x in (
            ("on path", (1 - t) * noise + t * data[:NUM_QUERIES]),
            ("between neighbours", t * (data[:NUM_QUERIES] + data[partner]) / 2),
        ):
            schedules = linear_schedules(np.full(NUM_QUERIES, t))
            expected = oracle.posterior(data, x, schedules).velocity
            size = np.linalg.norm(expected, axis=1)
            row: dict[str, Any] = {"t": time, "queries": kind}
            for precision, field in fields.items():
                posterior = field.posterior(x, t)
                velocity = np.asarray(posterior.velocity, np.float64).reshape(NUM_QUERIES, -1)
                error = np.linalg.norm(velocity - expected, axis=1)
                bound = np.asarray(posterior.error_bound, np.float64)
                row[precision] = {
                    "largest_relative_error": float((error / size).max()),
                    "largest_relative_bound": float((bound / size).max()),
                    "broken_bounds": int((error > bound).sum()),
                }
            rows.append(row)
    return {
        "benchmark": "accuracy",
        "machine": harness.machine(),
        "points": NUM_POINTS,
        "queries": NUM_QUERIES,
        "dimension": int(np.prod(data.shape[1:])),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    header = ["t", "queries", "error", "bound", "broken", "error, float64", "bound, float64", "broken"]
    rows = []
    for row in result["rows"]:
        cells = [f"{row['t']:g}", row["queries"]]
        for precision in ("float32", "float64"):
            values = row[precision]
            cells += [
                f"{values['largest_relative_error']:.1e}",
                f"{values['largest_relative_bound']:.1e}",
                str(values["broken_bounds"]),
            ]
        rows.append(cells)
    return header, rows
