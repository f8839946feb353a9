"""The dense field against the machine's product rate and what one would otherwise write.

Cases, float32, Linear path, t = 0.5: CIFAR-10's shape (b = 128, n = 50 000, d = 3072), and many queries in few
dimensions (b = 1024, n = 50 000, d = 64 and 2). The product rate is taken from the two products of the same shapes,
x Yᵀ and W Y, alone; the rate of a square product is recorded beside it. "two-step" is the textbook version in jnp
that keeps the [b, n] weights: a product, a softmax, a product. "broadcast" is what public code does, the
[queries, chunk, d] differences themselves, here in NumPy; it is timed on four queries and scaled to all of them.
"exponentials" is what b·n exponentials and their sum cost with no logits to compute: the limit in few dimensions. On a
GPU the field with precision="bfloat16x6" and its two products stand beside. About eight minutes on two cores.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj

from . import harness

NUM_POINTS = 50_000
TIME = 0.5


@jax.jit
def two_step(data: jax.Array, square_norms: jax.Array, x: jax.Array) -> jax.Array:
    """û as one would write it: all weights at once. Data as an argument, norms precomputed: a fair peer."""
    logits = (TIME * (x @ data.T) - TIME**2 * square_norms / 2) / (1 - TIME) ** 2
    return (jax.nn.softmax(logits, axis=1) @ data - x) / (1 - TIME)


_BROADCAST_QUERIES, _BROADCAST_CHUNK = 4, 1000


def broadcast(data: np.ndarray, x: np.ndarray) -> np.ndarray:
    """û from differences [b, chunk, d], in two passes over the data: logits first, then the weighted sum."""
    chunks = range(0, len(data), _BROADCAST_CHUNK)
    logits = []
    for start in chunks:
        difference = x[:, None] - np.float32(TIME) * data[None, start : start + _BROADCAST_CHUNK]
        logits.append(-(difference**2).sum(-1) / np.float32(2 * (1 - TIME) ** 2))
    logits = np.concatenate(logits, 1)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    mean = np.zeros_like(x)
    for start in chunks:
        part = weights[:, start : start + _BROADCAST_CHUNK]
        mean += (part[:, :, None] * data[None, start : start + _BROADCAST_CHUNK]).sum(1)
    return (mean - x) / np.float32(1 - TIME)


@jax.jit
def _field(field: fj.ClosedFormField, x: jax.Array) -> jax.Array:
    return field(x, TIME)


@jax.jit
def _posterior(field: fj.ClosedFormField, x: jax.Array) -> fj.Posterior:
    return field.posterior(x, TIME)


def _data(dimension: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (NUM_POINTS, dimension)) * jnp.float32(0.5)


def _shape(dimension: int, queries: int, rounds: int) -> dict[str, Any]:
    """One shape: the field, its posterior, the two-step version and the product, interleaved."""
    data = _data(dimension)
    x = jax.random.normal(jax.random.key(1), (queries, dimension))
    field = fj.ClosedFormField(data, method="dense")
    norms = jnp.sum(data**2, 1)
    flop = 4.0 * queries * NUM_POINTS * dimension
    cases = [
        harness.Case("field", functools.partial(_field, field, x), flop),
        harness.Case("posterior", functools.partial(_posterior, field, x), flop),
        harness.Case("two-step", functools.partial(two_step, data, norms, x), flop),
    ]
    if jax.default_backend() == "gpu":  # elsewhere it is the same program
        pieces = fj.ClosedFormField(data, method="dense", precision="bfloat16x6")
        cases.append(harness.Case("field, bfloat16x6", functools.partial(_field, pieces, x), flop))
        six = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6
        cases.append(harness.both_products_case("both products, bfloat16x6", x, data, six))
    precise = fj.ClosedFormField(data, method="dense", precision="float64")
    cases.append(harness.Case("field, float64", functools.partial(_field, precise, x), flop))
    if dimension >= 1024:
        pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, data.shape, np.uint8))
        cases.append(
            harness.Case(
                "field, uint8", functools.partial(_field, fj.ClosedFormField(pixels, method="dense"), x), flop
            )
        )
    on_host, few = np.asarray(data), np.asarray(x[:_BROADCAST_QUERIES])
    cases.append(
        harness.Case("broadcast, 4 queries", lambda: broadcast(on_host, few), flop * len(few) / queries)
    )
    cases += [
        harness.exponentials_case("exponentials", queries, NUM_POINTS),
        harness.product_case("square product", 2048, 2048, 2048),
        harness.both_products_case("both products", x, data),
    ]
    seconds = harness.measure(cases, rounds=rounds)
    seconds["broadcast"] = seconds["broadcast, 4 queries"] * queries / len(few)  # its cost is linear in them
    rate = {case.name: case.flop / seconds[case.name] for case in cases if case.flop}
    return {
        "queries": queries,
        "points": NUM_POINTS,
        "dimension": dimension,
        "seconds": seconds,
        "gigaflop_per_second": {name: value / 1e9 for name, value in rate.items()},
        "share_of_product_rate": rate["field"] / rate["both products"],
        "share_of_product_rate_bfloat16x6": _ratio(rate, "field, bfloat16x6", "both products, bfloat16x6"),
        "speed_of_bfloat16x6": _ratio(seconds, "field", "field, bfloat16x6"),
        "share_of_square_product_rate": rate["field"] / rate["square product"],
        "speed_against_two_step": seconds["two-step"] / seconds["field"],
        "speed_against_broadcast": seconds["broadcast"] / seconds["field"],
        "share_of_exponential_rate": seconds["exponentials"] / seconds["field"],
        "uint8_speed": _ratio(seconds, "field", "field, uint8"),
        "temporary_mebibytes": harness.temporary_bytes(_field, field, x) / 2**20,
        "two_step_temporary_mebibytes": harness.temporary_bytes(two_step, data, norms, x) / 2**20,
    }


def _ratio(values: dict[str, float], first: str, second: str) -> float | None:
    return values[first] / values[second] if second in values else None


def run(*, rounds: int = 7) -> dict[str, Any]:
    """All shapes; see the module's docstring."""
    shapes = [_shape(d, b, rounds) for d, b in ((3072, 128), (64, 1024), (2, 1024))]
    return {"benchmark": "dense", "machine": harness.machine(), "rounds": rounds, "shapes": shapes}


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: a column a shape."""
    shapes = result["shapes"]

    def row(name: str, cell) -> list[str]:
        return [name, *(cell(shape) for shape in shapes)]

    return ["", *(f"d = {shape['dimension']}, b = {shape['queries']}" for shape in shapes)], [
        row("field", lambda s: f"{1e3 * s['seconds']['field']:.0f} ms"),
        row("posterior", lambda s: f"{1e3 * s['seconds']['posterior']:.0f} ms"),
        row("share of the rate of both products", lambda s: f"{s['share_of_product_rate']:.2f}"),
        row("share of the rate of a square product", lambda s: f"{s['share_of_square_product_rate']:.2f}"),
        row("share of the rate of exponentials", lambda s: f"{s['share_of_exponential_rate']:.2f}"),
        row("two-step jnp / field", lambda s: f"{s['speed_against_two_step']:.2f}"),
        row("broadcast / field", lambda s: f"{s['speed_against_broadcast']:.0f}"),
        row("float64 / float32", lambda s: f"{s['seconds']['field, float64'] / s['seconds']['field']:.1f}"),
        row("float32 / uint8", lambda s: "" if s["uint8_speed"] is None else f"{s['uint8_speed']:.2f}"),
        *(
            row(text, lambda s, key=key: f"{s[key]:.2f}")
            for key, text in (
                ("speed_of_bfloat16x6", "float32 / bfloat16x6"),
                ("share_of_product_rate_bfloat16x6", "share of the rate of its products"),
            )
            if shapes[0].get(key) is not None
        ),
        row("temporaries", lambda s: f"{s['temporary_mebibytes']:.0f} MiB"),
        row("temporaries of two-step", lambda s: f"{s['two_step_temporary_mebibytes']:.0f} MiB"),
    ]
