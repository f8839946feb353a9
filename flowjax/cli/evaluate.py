"""`flowjax evaluate RUN_DIR`: evaluate the newest checkpoint and rewrite the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a run's newest checkpoint: Fréchet distance, memorisation, pixel moments, what the exact target is.

    Writes evaluation.json, samples/final.png, samples/nearest.png and report.html into the run directory.

    Example: flowjax evaluate runs/digits --num 1000
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    """A run directory."""
    num: int | None = None
    """Samples to draw; the run's own number by default."""
    seed: int = 1
    """Of the samples' noise."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand."""
    options = tyro.cli(Evaluate, args=argv, prog="flowjax evaluate")

    from flowjax.report import write_report
    from flowjax.training.evaluation import evaluate

    result = evaluate(options.run_dir, num_samples=options.num, seed=options.seed)
    shown = "step", "features", "frechet_distance", "frechet_distance_of_real_rows", "memorised_fraction"
    for name in (*shown, "nearest_distance_median"):
        print(f"{name.replace('_', ' '):31}{result[name]}")
    print(f"report: {write_report(options.run_dir)}")
    return 0
