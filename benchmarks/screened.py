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


@jax.jit
def _evaluate(field: fj.ClosedFormField, x: jax.Array, t: jax.Array) -> jax.Array:
    return field(x, t)


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


def run(*, rounds: int = 5, data: str | None = None) -> dict[str, Any]:
    """All times, uniform times, off-path queries; see the module's docstring."""
    images = jnp.asarray(_pictures(data))
    fields = {method: fj.ClosedFormField(images, method=method) for method in ("dense", "screened")}
    noise = jax.random.normal(jax.random.key(1), (QUERIES, *images.shape[1:]))
    order = np.random.default_rng(2).permutation(len(images))
    rows, others = images[order[:QUERIES]], images[order[QUERIES : 2 * QUERIES]]
    uniform = jax.random.uniform(jax.random.key(3), (QUERIES,))

    def on_path(ends, t):
        t = t.reshape(-1, 1, 1, 1)
        return t * ends + (1 - t) * noise

    batches = {f"t = {t:g}": (rows, jnp.full(QUERIES, t, jnp.float32)) for t in TIMES}
    batches["t uniform"] = rows, uniform
    batches["off path, t uniform"] = 0.7 * rows + 0.3 * others, uniform
    cases = []
    for name, (ends, t) in batches.items():
        x = on_path(ends, t)
        seconds = harness.measure(
            [harness.Case(m, functools.partial(_evaluate, f, x, t)) for m, f in fields.items()],
            rounds=rounds,
        )
        expected = _posterior(fields["dense"], x, t)
        found = _posterior(fields["screened"], x, t)
        size = jnp.linalg.norm(expected.velocity.reshape(QUERIES, -1), axis=1)
        difference = jnp.linalg.norm((found.velocity - expected.velocity).reshape(QUERIES, -1), axis=1)
        cases.append(
            {
                "name": name,
                "seconds": seconds,
                "speed": seconds["dense"] / seconds["screened"],
                "largest_relative_difference": float(jnp.max(difference / size)),
                "certified": float(jnp.mean(found.error_bound <= 1e-5 * size)),
            }
        )
        print(f"{name}: {cases[-1]['speed']:.2f} x dense", flush=True)
    return {
        "benchmark": "screened",
        "machine": harness.machine(),
        "rounds": rounds,
        "data": data or "waves",
        "points": len(images),
        "queries": QUERIES,
        "cases": cases,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: a row a batch."""
    header = ["queries", "dense", "screened", "speed", "certified to 1e-5", "largest difference"]
    return header, [
        [
            case["name"],
            f"{1e3 * case['seconds']['dense']:.0f} ms",
            f"{1e3 * case['seconds']['screened']:.0f} ms",
            f"{case['speed']:.2f}",
            f"{case['certified']:.0%}",
            f"{case['largest_relative_difference']:.1e}",
        ]
        for case in result["cases"]
    ]
