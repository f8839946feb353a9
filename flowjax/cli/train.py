"""`flowjax train PRESET`: train, evaluate, report."""

import sys
from dataclasses import dataclass
from pathlib import Path

from ._common import parse_run, preset_help
from .evaluate import summary

_USAGE = """usage: flowjax train PRESET [--run-dir DIR] [--steps N] [--seed S] [--target NAME] [--resume] [--FIELD ...]

Train a velocity network, draw samples, and write RUN_DIR/report.html.

{presets}

targets:
  closed-form   the exact velocity of the whole data set (default)
  empirical     the closed form over --target.num-samples rows
  conditional   the usual noisy target, one pair

examples:
  flowjax train digits
  flowjax train digits --target conditional --run-dir runs/digits-cfm --seed 1
  flowjax train digits --resume                 go on after an interruption
  flowjax train digits --optimizer.learning-rate 1e-3 --steps 500

`flowjax train PRESET --help` lists every field with the preset's value.
"""


@dataclass(frozen=True)
class Options:
    """Where the run goes and how it starts.

    Attributes:
        run_dir: the run's directory; default runs/PRESET.
        resume: continue the run in run_dir.
        rows_over: devices that the rows behind an exact target are split over; by itself on TPUs, else 1. No part of
            the run: resuming may take another number.
    """

    run_dir: Path | None = None
    resume: bool = False
    rows_over: int | None = None


def run(argv: list[str]) -> int:
    """Entry of the subcommand."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE.format(presets=preset_help()))
        return 0
    name, options, config = parse_run(
        Options, argv, "train", "Train, draw samples, write RUN_DIR/report.html."
    )
    run_dir = options.run_dir or Path("runs") / name

    from flowjax.report import write_report
    from flowjax.training.evaluation import evaluate
    from flowjax.training.loop import Stopped, train

    print(
        f"training {name} on the {config.target.name} target, {config.steps} steps, into {run_dir}",
        flush=True,
    )
    try:
        train(config, run_dir, resume=options.resume, rows_over=options.rows_over)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 0
    result = evaluate(run_dir)
    report = write_report(run_dir)
    print(summary(result))
    picture = run_dir / "samples" / "final.png"
    if picture.is_file():
        print(f"samples: {picture}")
    print(f"report:  {report}")
    return 0
