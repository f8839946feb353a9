"""What the regression target costs in a training step of the digits preset: conditional, empirical, exact.

Step and target alone are timed in turn on the run's own shapes (batch 64, 1 797 rows of 8×8). One minute on two cores.
"""

import dataclasses
from typing import Any

import flowjax as fj
from flowjax.training.assembly import time_target

from . import harness

TARGETS = ("conditional", "empirical", "closed-form")


def run(*, rounds: int = 7) -> dict[str, Any]:
    """One row per target."""
    config = fj.training.preset("digits")
    dataset = fj.data.load(config.data.source)
    rows = []
    for name in TARGETS:
        target = dataclasses.replace(config.target, name=name)
        changed = dataclasses.replace(config, target=target)
        rows.append({"target": name, **time_target(changed, dataset, rounds=rounds)})
    return {"benchmark": "training", "machine": harness.machine(), "rounds": rounds, "rows": rows}


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    header = ["target", "step, ms", "target, ms", "share of the step"]
    rows = [
        [
            row["target"],
            f"{1e3 * row['seconds_per_step']:.1f}",
            f"{1e3 * row['seconds_per_target']:.2f}",
            f"{row['target_share_of_step']:.1%}",
        ]
        for row in result["rows"]
    ]
    return header, rows
