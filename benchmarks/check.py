"""Has something become slow? A few small ratios of one process against recorded ones: `flowjax bench --check`.

Each ratio is greater the better and compares flowjax with something in the same run, so that a slow or busy machine
moves both. Machines differ all the same: a ratio fails only below half of the recorded one, in three tries of three.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import flowjax as fj

from . import harness
from .dense import TIME, two_step
from .screened import waves

MARGIN, TRIES, ROUNDS = 0.5, 3, 9
_PICTURES, _PICTURE_QUERIES, _LATE = 5000, 64, 0.9
_POINTS, _POINT_QUERIES = 20_000, 512

Cases = dict[str, tuple[harness.Case, harness.Case]]
"""By the name of a ratio: the reference and flowjax's own case; the ratio is the first's time over the second's."""


@jax.jit
def _evaluate(field: fj.ClosedFormField, x: jax.Array, t: jax.Array) -> jax.Array:
    return field(x, t)


def _cases() -> Cases:
    """The three pairs; the screened field's tables are built here, once."""
    pictures = jnp.asarray(waves(_PICTURES))
    flat = pictures.reshape(_PICTURES, -1)
    noise = jax.random.normal(jax.random.key(0), (_PICTURE_QUERIES, *pictures.shape[1:]))
    fields = {method: fj.ClosedFormField(pictures, method=method) for method in ("dense", "screened")}

    def pictures_case(name: str, method: str, t: float) -> harness.Case:
        x = t * pictures[:_PICTURE_QUERIES] + (1 - t) * noise
        return harness.Case(name, functools.partial(_evaluate, fields[method], x, jnp.float32(t)))

    points = jax.random.normal(jax.random.key(1), (_POINTS, 2))
    x = jax.random.normal(jax.random.key(2), (_POINT_QUERIES, 2))
    few = fj.ClosedFormField(points, method="dense")
    return {
        "products / dense, d = 3072": (
            harness.both_products_case("products", noise.reshape(_PICTURE_QUERIES, -1), flat),
            pictures_case("dense", "dense", TIME),
        ),
        f"dense / screened, d = 3072, t = {_LATE}": (
            pictures_case("dense, late", "dense", _LATE),
            pictures_case("screened, late", "screened", _LATE),
        ),
        "two-step / dense, d = 2": (
            harness.Case("two-step", functools.partial(two_step, points, jnp.sum(points**2, 1), x)),
            harness.Case("dense, d = 2", functools.partial(_evaluate, few, x, jnp.float32(TIME))),
        ),
    }


def _measure(cases: Cases, rounds: int) -> dict[str, float]:
    seconds = harness.measure([case for pair in cases.values() for case in pair], rounds=rounds)
    return {name: seconds[slow.name] / seconds[own.name] for name, (slow, own) in cases.items()}


def run(*, rounds: int = ROUNDS) -> dict[str, Any]:
    """The ratios as they are recorded."""
    return {
        "benchmark": "check",
        "machine": harness.machine(),
        "rounds": rounds,
        "ratios": _measure(_cases(), rounds),
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people; the recorded ratios beside the present ones after a check."""
    recorded = result.get("recorded")
    if recorded is None:
        return ["ratio", "found"], [[name, f"{value:.2f}"] for name, value in result["ratios"].items()]
    return ["ratio", "found", "recorded", f"at least {MARGIN:g} of it"], [
        [name, f"{value:.2f}", f"{recorded[name]:.2f}", "yes" if value >= MARGIN * recorded[name] else "NO"]
        for name, value in result["ratios"].items()
    ]


def check() -> dict[str, Any]:
    """The ratios now, beside the recorded ones; `failed` names those that fell below.

    Raises:
        ValueError: no ratios are recorded, or others than these.
    """
    file = harness.RESULTS / "check.json"
    again = "record them with `flowjax bench --check --record`"
    if not file.is_file():
        raise ValueError(f"there are no recorded ratios in {file}; {again}")
    recorded = json.loads(file.read_text())["ratios"]
    cases = _cases()
    if recorded.keys() != cases.keys():
        raise ValueError(f"{file} holds other ratios than today's check measures; {again}")
    ratios, failed = best_of_tries(lambda: _measure(cases, ROUNDS), recorded)
    return {
        "benchmark": "check",
        "machine": harness.machine(),
        "ratios": ratios,
        "recorded": recorded,
        "failed": failed,
    }


def best_of_tries(
    measure: Callable[[], dict[str, float]], recorded: dict[str, float]
) -> tuple[dict[str, float], list[str]]:
    """The best ratio of each name, and the names that stay too low; tried again only while some are."""
    best = dict.fromkeys(recorded, 0.0)
    failed = list(recorded)
    for _ in range(TRIES):
        found = measure()
        best = {name: max(best[name], found[name]) for name in best}
        failed = [name for name in best if best[name] < MARGIN * recorded[name]]
        if not failed:
            break
    return best, failed
