"""`flowjax evaluate RUN_DIR`: evaluate the newest checkpoint and rewrite the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ._common import parse

_HELP = """Evaluate a run's newest checkpoint: Fréchet distance, memorisation, pixel moments, what the exact target is.

Writes evaluation.json, samples/final.png, samples/nearest.png and report.html into the run directory.

examples:
  flowjax evaluate runs/digits --num 1000
  flowjax evaluate runs/digits --full
  flowjax evaluate runs/cifar10 --num 50000 --weights pt_inception-2015-12-05-6726825d.pth
"""


@dataclass(frozen=True)
class Evaluate:
    """The command's flags."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """A run directory."""
    num: int | None = None
    """Samples to draw; the run's own number by default."""
    seed: int = 1
    """Of the samples' noise."""
    full: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Kernel distance, precision and recall, density and coverage too, against training and held-out rows."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The torch file of FID-Inception: all measures in its features. It is read without running anything in it."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand."""
    options = parse(Evaluate, argv, "flowjax evaluate", _HELP)

    from flowjax.metrics import Scores
    from flowjax.report import write_report
    from flowjax.training.config import check_seed
    from flowjax.training.evaluation import evaluate

    check_seed(options.seed)
    result = evaluate(
        options.run_dir,
        num_samples=options.num,
        seed=options.seed,
        full=options.full,
        weights=options.weights,
    )
    print(f"step {result['step']}, {result['num_samples']} samples, {result['num_evaluations']} evaluations")
    print(summary(result))
    for scores in result.get("scores", ()):
        print(Scores(**scores))
    print(f"report: {write_report(options.run_dir)}")
    return 0


def summary(result: dict[str, Any]) -> str:
    """What an evaluation found, in four lines."""
    real = result["frechet_distance_of_real_rows"]
    beside = "" if real is None else f" (as many real rows: {real['mean']:.3g} ± {real['std']:.2g})"
    fractions = result["memorised_fraction"]
    return (
        f"Fréchet distance {result['frechet_distance']:.3g}{beside} in the features of {result['features']}\n"
        f"nearest training row: median distance {result['nearest_distance_median']:.3g}, "
        f"second nearest {result['second_nearest_distance_median']:.3g}\n"
        f"memorised: {fractions['1/3']:.1%} at ratio 1/3, {fractions['2/3']:.1%} at ratio 2/3\n"
        f"the target took {result['timings']['target_share_of_step']:.1%} of a step"
    )
