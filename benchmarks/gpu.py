"""A GPU's own benchmark: the precision algorithms' product rates, the kernel for few dimensions beside XLA.

`products`: x Yᵀ and W Y of CIFAR-10's shape (n = 50 000, d = 3072) for 128 and 1024 queries in each precision algorithm
that the GPU has, and the dense field in those it offers. `passes`: `method="pallas_gpu"` beside "dense" (float32 and
float16x3) on points in few dimensions, velocity and whole posterior, with the largest relative error of each and the
share of the rate of exponentials. `blocks`: the dense field by rows of a block. Minutes, most of them compilation;
not yet run to its end on a GPU.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj
from flowjax.closed_form.field import Precision

from . import harness
from .dense import TIME
from .peers.problems import mixture

PASSES = (
    (50_000, 1024, 2),
    (50_000, 1024, 16),
    (50_000, 1024, 64),
    (50_000, 1024, 128),
    (32_768, 32_768, 16),
)
LARGEST = ((1_000_000, 131_072, 16),)
"""Shapes where XLA's passes would take seconds: without them, and once."""
PRODUCTS = ((128, 50_000, 3072), (1024, 50_000, 3072))
BLOCKS = (1024, 4096, 12_544, 50_000), (128, 50_000, 3072)
ALGORITHMS = ("F32_F32_F32", "TF32_TF32_F32_X3", "BF16_BF16_F32_X6")
_CHECKED = 256
"""Queries whose errors are taken, against float64."""


@jax.jit
def _field(field: fj.ClosedFormField, x: jax.Array) -> jax.Array:
    return field(x, TIME)


@jax.jit
def _posterior(field: fj.ClosedFormField, x: jax.Array) -> fj.Posterior:
    return field.posterior(x, TIME)


@jax.jit
def _velocity_and_log_density(field: fj.ClosedFormField, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    posterior = field.posterior(x, TIME)
    return posterior.velocity, posterior.log_density


def _products(queries: int, num_points: int, dimension: int, rounds: int) -> dict[str, Any]:
    data = jax.random.normal(jax.random.key(0), (num_points, dimension)) * jnp.float32(0.5)
    pixels = jax.random.randint(jax.random.key(2), data.shape, 0, 256).astype(jnp.uint8)
    x = jax.random.normal(jax.random.key(1), (queries, dimension))
    flop = 4.0 * queries * data.size
    cases = [_three_products_case("three products of float16", x, data)]
    for name in ALGORITHMS:
        preset = getattr(jax.lax.DotAlgorithmPreset, name)
        cases.append(harness.both_products_case(name, x, data, preset))
    rows = {"float32": data, "bfloat16": data.astype(jnp.bfloat16), "uint8": pixels}
    asked: tuple[tuple[Precision, Any], ...] = (
        ("float32", ("float32", "uint8")),
        ("float16x3", rows),
        ("bfloat16x6", ("float32",)),
    )
    for precision, kinds in asked:
        for kind in kinds:
            field = fj.ClosedFormField(rows[kind], method="dense", precision=precision)
            run = functools.partial(_field, field, x)
            cases.append(harness.Case(f"field, {precision}, {kind} rows", run, flop))
    working, failed = [], {}
    for case in cases:
        start = time.perf_counter()
        try:
            jax.block_until_ready(case.run())
        except Exception as error:  # an algorithm that this platform lacks
            failed[case.name] = str(error).splitlines()[0][:200]
            continue
        working.append(case)
        print(f"    {case.name}: first call {time.perf_counter() - start:.1f} s", flush=True)
    seconds = harness.measure(working, rounds=rounds)
    return {
        "queries": queries,
        "points": num_points,
        "dimension": dimension,
        "seconds": seconds,
        "teraflop_per_second": {name: flop / value / 1e12 for name, value in seconds.items()},
        "failed": failed,
    }


def _three_products_case(name: str, x: jax.Array, data: jax.Array) -> harness.Case:
    """What "float16x3" multiplies, apart from each other: the limit of that algorithm."""
    pieces = data.astype(jnp.float16)
    both, weights = (
        jnp.concatenate([x, x]).astype(jnp.float16),
        jnp.ones((2 * len(x), len(data)), jnp.float16),
    )

    def product(a, b, axis):
        return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)

    @jax.jit
    def scores(both, first, second):
        return product(both, first, 1), product(both[: len(x)], second, 1)

    @jax.jit
    def sums(weights, first, second):
        return product(weights, first, 0), product(weights[: len(x)], second, 0)

    second = pieces * jnp.float16(0.5)  # an array of its own
    return harness.Case(name, lambda: (scores(both, pieces, second), sums(weights, pieces, second)))


def _pass(n: int, b: int, d: int, rounds: int) -> dict[str, Any]:
    data = mixture(n, d)
    rng = np.random.default_rng(1)
    rows = data[rng.integers(0, n, b)]
    x = jnp.asarray(np.float32(TIME) * rows + np.float32(1 - TIME) * rng.standard_normal((b, d), np.float32))
    few = x[:_CHECKED]
    with jax.enable_x64(True):
        exact = fj.ClosedFormField(data, method="dense", precision="float64")
        truth = np.asarray(exact(few.astype(jnp.float64), TIME))
    methods: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "pallas_gpu": ({"method": "pallas_gpu"}, ("velocity", "with log density", "posterior"))
    }
    if (n, b, d) not in LARGEST:
        methods["dense"] = {"method": "dense"}, ("velocity", "posterior")
        methods["dense, float16x3"] = {"method": "dense", "precision": "float16x3"}, ("velocity",)
    functions = {"velocity": _field, "with log density": _velocity_and_log_density, "posterior": _posterior}
    cases, errors, bounds = [], {}, {}
    for name, (options, asked) in methods.items():
        field = fj.ClosedFormField(data, **options)
        found = _posterior(field, few)
        error = np.linalg.norm(np.asarray(found.velocity, np.float64) - truth, axis=1)
        errors[name] = float(np.max(error / np.linalg.norm(truth, axis=1)))
        bounds[name] = float(jnp.max(error / found.error_bound))
        for what in asked:
            cases.append(harness.Case(f"{name}, {what}", functools.partial(functions[what], field, x)))
    cases.append(_exponentials_case("exponentials", b * n))
    seconds = harness.measure(cases, rounds=rounds)
    return {
        "points": n,
        "queries": b,
        "dimension": d,
        "seconds": seconds,
        "largest_relative_error": errors,
        "largest_error_over_bound": bounds,
        "share_of_exponential_rate": seconds["exponentials"] / seconds["pallas_gpu, with log density"],
    }


def _exponentials_case(name: str, count: int) -> harness.Case:
    """So many exponentials, 64 of every number read: the rate is that of the unit that computes them."""
    values = -jax.random.uniform(jax.random.key(2), (count // 64,))

    @jax.jit
    def total(values):
        return functools.reduce(jnp.add, [jnp.exp(values * jnp.float32(1 + k / 64)) for k in range(64)])

    return harness.Case(name, lambda: total(values))


def _blocks(rounds: int) -> list[dict[str, Any]]:
    results = []
    sizes, (b, n, d) = BLOCKS
    data = jax.random.normal(jax.random.key(0), (n, d)) * jnp.float32(0.5)
    x = jax.random.normal(jax.random.key(1), (b, d))
    for precision in ("float32", "float16x3"):
        cases = []
        for size in sizes:
            field = fj.ClosedFormField(data, method="dense", precision=precision, block_size=size)
            cases.append(harness.Case(str(size), functools.partial(_field, field, x)))
        seconds = harness.measure(cases, rounds=rounds)
        results.append({"dimension": d, "queries": b, "precision": precision, "seconds": seconds})
    return results


def run(*, rounds: int = 5) -> dict[str, Any]:
    """Everything; see the module's docstring."""
    passes = []
    for shape in (*PASSES, *LARGEST):
        passes.append(_pass(*shape, rounds=1 if shape in LARGEST else rounds))
        milliseconds = {name: round(1e3 * value, 3) for name, value in passes[-1]["seconds"].items()}
        print(
            shape,
            milliseconds,
            passes[-1]["largest_relative_error"],
            passes[-1]["largest_error_over_bound"],
            flush=True,
        )
    blocks = _blocks(rounds)
    print(blocks, flush=True)
    products = []
    for shape in PRODUCTS:
        products.append(_products(*shape, rounds=rounds))
        print(products[-1]["teraflop_per_second"], products[-1]["failed"], flush=True)
    return {
        "benchmark": "gpu",
        "machine": harness.machine(),
        "rounds": rounds,
        "products": products,
        "passes": passes,
        "blocks": blocks,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: the passes, then the products."""
    header = ["n, b, d", "what", "ms", "dense float32 / it", "largest relative error"]
    rows = []
    for each in result["passes"]:
        seconds, shape = each["seconds"], f"{each['points']}, {each['queries']}, {each['dimension']}"
        for name, value in seconds.items():
            method, _, asked = name.rpartition(", ")
            plain = seconds.get(f"dense, {asked}")
            rows.append(
                [
                    shape,
                    name,
                    f"{1e3 * value:.3g}",
                    "" if plain is None else f"{plain / value:.2f}",
                    f"{each['largest_relative_error'][method]:.0e}" if method else "",
                ]
            )
    for each in result["products"]:
        seconds, shape = each["seconds"], f"{each['points']}, {each['queries']}, {each['dimension']}"
        plain = seconds["field, float32, float32 rows"]
        rows += [[shape, name, f"{1e3 * v:.3g}", f"{plain / v:.2f}", ""] for name, v in seconds.items()]
    return header, rows
