"""Certified screening against the dense pass, time by time: speed, survivors, certificates.

Pictures of CIFAR-10's shape, n = 50 000, b = 128, float32, Linear path, default tolerance. Queries lie on the path,
t y + (1 − t) noise: one time a batch, then one batch with a uniform time each. Off-path queries stand for samples of a
network: a data point blended with another one before the noise is added, so that no row is at their centre.

`--data SOURCE` takes any source that `flowjax data` knows, for example `npz:cifar10.npz`; without it the pictures are
drawn (sums of random waves with the spectrum 1/f² of natural images), which no screening was tuned on.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj

from . import harness

NUM_POINTS, QUERIES = 50_000, 128
TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COLUMNS = 46
"""Coordinates and norms of a row that the cheapest pass reads: its product is the limit of any screening."""


@jax.jit
def _evaluate(
    field: fj.ClosedFormField, x: jax.Array, t: jax.Array, hint: jax.Array | None = None
) -> jax.Array:
    return field(x, t, hint=hint)


@jax.jit
def _posterior(field: fj.ClosedFormField, x: jax.Array, t: jax.Array) -> fj.Posterior:
    return field.posterior(x, t)


def waves(count: int, seed: int = 0, *, size: int = 32) -> np.ndarray:
    """[count, size, size, 3] float32 pictures in [−1, 1] with the amplitude spectrum 1/f and correlated channels."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    amplitude = 1 / np.maximum(frequency, 1 / size)
    mixing = np.array([[1.0, 0.25, 0.1], [1.0, 0.0, -0.2], [1.0, -0.25, 0.1]])
    result = np.empty((count, size, size, 3), np.float32)
    for start in range(0, count, 1000):
        noise = rng.normal(size=(min(1000, count - start), 3, size, size))
        planes = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(size, size)) * 0.02
        planes = np.einsum("kc,nchw->nhwk", mixing, planes) + rng.normal(size=(len(noise), 1, 1, 1)) * 0.2
        result[start : start + 1000] = np.clip(planes, -1, 1)
    return result


def _pictures(source: str | None) -> np.ndarray:
    if source is None:
        return waves(NUM_POINTS)
    images = fj.data.load(source).images[:NUM_POINTS]
    return np.asarray(fj.closed_form.to_float(jnp.asarray(images)))


def _fields(images: jax.Array) -> dict[str, fj.ClosedFormField]:
    return {
        "dense": fj.ClosedFormField(images, method="dense"),
        "screened": fj.ClosedFormField(images, method="screened"),
    }


def run(*, rounds: int = 5, data: str | None = None) -> dict[str, Any]:
    """All times, uniform times, off-path queries, data without structure, a trajectory; see the module's docstring."""
    images = jnp.asarray(_pictures(data))
    n, d = len(images), int(np.prod(images.shape[1:]))
    noise = jax.random.normal(jax.random.key(1), (QUERIES, *images.shape[1:]))
    order = np.random.default_rng(2).permutation(n)
    rows, others = images[order[:QUERIES]], images[order[QUERIES : 2 * QUERIES]]
    hint, uniform = jnp.asarray(order[:QUERIES]), jax.random.uniform(jax.random.key(3), (QUERIES,))
    fields = _fields(images)
    limits = [
        harness.both_products_case("both products", noise.reshape(QUERIES, -1), images.reshape(n, -1)),
        harness.product_case(f"product with {COLUMNS} columns", QUERIES, COLUMNS, n),
    ]

    batches = {f"t = {t:g}": (rows, jnp.full(QUERIES, t, jnp.float32)) for t in TIMES}
    batches["t uniform"] = rows, uniform
    batches["off path, t uniform"] = 0.7 * rows + 0.3 * others, uniform
    cases = []
    for name, (ends, t) in batches.items():
        column = t.reshape(-1, 1, 1, 1)
        x = column * ends + (1 - column) * noise
        cases.append(_case(name, fields, x, t, hint, limits, rounds))
    isotropic = jax.random.normal(jax.random.key(4), (n, *images.shape[1:]))
    alike = _fields(isotropic)
    for t in (0.3, 0.6):
        x = t * isotropic[:QUERIES] + (1 - t) * noise
        times = jnp.full(QUERIES, t, jnp.float32)
        cases.append(
            _case(f"isotropic data, t = {t:g}", alike, x, times, jnp.arange(QUERIES), limits, rounds)
        )
    del isotropic, alike
    cases.append(_trajectory(fields, noise))
    return {
        "benchmark": "screened",
        "machine": harness.machine(),
        "rounds": rounds,
        "data": data or "waves",
        "points": n,
        "dimension": d,
        "queries": QUERIES,
        "cases": cases,
    }


def _case(name, fields, x, t, hint, limits, rounds: int) -> dict[str, Any]:
    """Seconds in turn, largest difference from dense, and what screening did."""
    hinted = functools.partial(_evaluate, fields["screened"], x, t, hint)
    seconds = harness.measure(
        [
            *(harness.Case(method, functools.partial(_evaluate, f, x, t)) for method, f in fields.items()),
            harness.Case("hinted", hinted),
            *limits,
        ],
        rounds=rounds,
    )
    expected, found = (_posterior(fields[method], x, t) for method in ("dense", "screened"))
    size = jnp.linalg.norm(expected.velocity.reshape(len(x), -1), axis=1)
    difference = jnp.linalg.norm((found.velocity - expected.velocity).reshape(len(x), -1), axis=1)
    report = fields["screened"].explain(x, t)
    case = {
        "name": name,
        "seconds": seconds,
        "speed": seconds["dense"] / seconds["screened"],
        "speed_hinted": seconds["dense"] / seconds["hinted"],
        "largest_relative_difference": float(jnp.max(difference / size)),
        "certified": float(jnp.mean(found.error_bound <= 1e-5 * size)),
        "by_dense": float(report.dense.mean()),
        # A query of the dense pass keeps every row.
        "survivors": np.where(report.dense, report.num_points, report.survivors).tolist(),
    }
    print(f"{name}: {case['speed']:.2f} x dense, hinted {case['speed_hinted']:.2f}", flush=True)
    return case


def _trajectory(fields, noise) -> dict[str, Any]:
    """All of dopri5's steps from noise to data, timed once a method after the run that compiles."""
    results: dict[str, fj.sampling.Sample] = {}

    def run(method: str) -> jax.Array:
        results[method] = fj.sampling.sample(fields[method], noise, solver="dopri5")
        return results[method].samples

    seconds = harness.measure(
        [harness.Case(method, functools.partial(run, method)) for method in fields], rounds=1
    )
    case = {
        "name": f"dopri5 trajectory of {len(noise)} samples",
        "seconds": seconds,
        "speed": seconds["dense"] / seconds["screened"],
        "evaluations": {method: int(jnp.max(result.num_evaluations)) for method, result in results.items()},
        "largest_difference": float(jnp.max(jnp.abs(results["dense"].samples - results["screened"].samples))),
    }
    print(f"{case['name']}: {case['speed']:.2f} x dense", flush=True)
    return case


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: a row a batch."""
    header = [
        "queries",
        "dense",
        "screened",
        "speed",
        "hinted",
        "by dense",
        "certified to 1e-5",
        "difference",
    ]

    def optional(case, key, form):
        return form.format(case[key]) if key in case else ""

    return header, [
        [
            case["name"],
            f"{1e3 * case['seconds']['dense']:.0f} ms",
            f"{1e3 * case['seconds']['screened']:.0f} ms",
            f"{case['speed']:.2f}",
            optional(case, "speed_hinted", "{:.2f}"),
            optional(case, "by_dense", "{:.0%}"),
            optional(case, "certified", "{:.0%}"),
            optional(case, "largest_relative_difference", "{:.1e}"),
        ]
        for case in result["cases"]
    ]
