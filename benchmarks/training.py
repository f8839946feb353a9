"""What the regression target costs in a training step: conditional, empirical, exact by dense and by screening.

Step and target alone are timed in turn on the run's own shapes: the digits preset (batch 64, 1 797 rows of 8×8) and,
with --data SOURCE (for example idx:DIR), the fashion-mnist preset (batch 128, 60 000 rows of 28×28). One minute on two
cores for digits, several more for the others.
"""

import dataclasses
from typing import Any

import flowjax as fj
from flowjax.training.assembly import time_target

from . import harness

TARGETS = (
    ("conditional", "auto"),
    ("empirical", "auto"),
    ("closed-form", "dense"),
    ("closed-form", "screened"),
)


def run(*, rounds: int = 7, data: str | None = None) -> dict[str, Any]:
    """One row per preset and target."""
    sources = {"digits": None} | ({} if data is None else {"fashion-mnist": data})
    rows = []
    for name, source in sources.items():
        config = fj.training.preset(name)
        if source is not None:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=source))
        dataset = config.data.load()
        for target, method in TARGETS:
            changed = dataclasses.replace(config.target, name=target, method=method)
            label = f"{target}, {method}" if target == "closed-form" else target
            measured = time_target(dataclasses.replace(config, target=changed), dataset, rounds=rounds)
            rows.append({"preset": name, "target": label, **measured})
            print(f"{name}, {label}: {measured['target_share_of_step']:.1%} of a step", flush=True)
    return {
        "benchmark": "training",
        "machine": harness.machine(),
        "rounds": rounds,
        "data": data,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    header = ["preset", "target", "step, ms", "target, ms", "share of the step"]
    rows = [
        [
            row["preset"],
            row["target"],
            f"{1e3 * row['seconds_per_step']:.1f}",
            f"{1e3 * row['seconds_per_target']:.2f}",
            f"{row['target_share_of_step']:.1%}",
        ]
        for row in result["rows"]
    ]
    return header, rows
