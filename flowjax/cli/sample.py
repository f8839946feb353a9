"""`flowjax sample RUN_DIR`: samples of a trained run as a picture or as an array."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class SampleCommand:
    """Draw samples from a run's newest checkpoint (its averaged parameters).

    Examples:
      flowjax sample runs/digits --num 64 --out samples.png
      flowjax sample runs/digits --num 1000 --out samples.npz --solver heun --num-steps 20
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    """A run directory."""
    out: Path
    """FILE.png for a contact sheet, FILE.npz for the array `samples` [num, *event] in [-1, 1]. Never overwritten."""
    num: int = 64
    """How many."""
    seed: int = 0
    """Of their noise."""
    solver: Literal["dopri5", "tsit5", "euler", "midpoint", "heun", "rk4"] = "dopri5"
    """Adaptive: dopri5, tsit5. Fixed steps: the others, with --num-steps."""
    num_steps: int | None = None
    """Steps of a fixed-step solver."""
    label: int | None = None
    """Class of every sample, for class-conditional runs; all classes in turn by default."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand."""
    options = tyro.cli(SampleCommand, args=argv, prog="flowjax sample")
    if options.out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out must end in .png or .npz, got {options.out}")
    if options.out.exists():
        raise ValueError(f"{options.out} exists already; choose another --out")
    if not options.out.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"there is no directory {options.out.absolute().parent} to write {options.out.name} to"
        )
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")

    import numpy as np

    from flowjax.training.evaluation import draw_samples, load_network, save_grid
    from flowjax.training.run_dir import RunDirectory

    config, graphdef, params, step = load_network(RunDirectory(options.run_dir))
    labels = None
    if options.label is not None:
        classes = config.model.num_classes if config.data.class_conditional else None
        if classes is None:
            raise ValueError("--label needs a class-conditional run, and this one is not")
        if not 0 <= options.label < classes:
            raise ValueError(f"--label must lie in 0..{classes - 1}, got {options.label}")
        labels = np.full(options.num, options.label, np.int32)
    drawn = draw_samples(
        config,
        graphdef,
        params,
        options.num,
        seed=options.seed,
        labels=labels,
        solver=options.solver,
        num_steps=options.num_steps,
    )
    samples = np.asarray(drawn.samples)
    if options.out.suffix == ".png":
        save_grid(samples, options.out)
    else:
        np.savez_compressed(options.out, samples=samples)
    print(f"{options.num} samples of step {step}, {int(drawn.num_evaluations)} evaluations: {options.out}")
    return 0
