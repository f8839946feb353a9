"""`flowjax sample RUN_DIR`: samples of a trained run as a picture or as an array."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ._common import check_new, parse

_HELP = """Draw samples from a run's newest checkpoint (its averaged parameters).

examples:
  flowjax sample runs/digits --num 64 --out samples.png
  flowjax sample runs/digits --num 1000 --out samples.npz --solver heun --num-steps 20
"""


@dataclass(frozen=True)
class SampleCommand:
    """The command's flags."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """A run directory."""
    out: Path
    """FILE.png (.jpg, .webp) for a contact sheet, FILE.npz for the array `samples` [num, *event] in [-1, 1]. Never
    overwritten."""
    num: int = 64
    """How many."""
    seed: int = 0
    """Of their noise."""
    solver: Literal["dopri5", "tsit5", "euler", "midpoint", "heun", "rk4"] = "dopri5"
    """Adaptive: dopri5, tsit5. Fixed steps: the others, with --num-steps."""
    num_steps: int | None = None
    """Steps of a fixed-step solver."""
    label: int | None = None
    """Class of every sample, for class-conditional runs; by default the classes have the data's proportions."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand."""
    options = parse(SampleCommand, argv, "flowjax sample", _HELP)
    out = check_new(options.out)
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")

    import numpy as np

    from flowjax._files import replacing
    from flowjax.data import check_picture_path, drawable
    from flowjax.training.config import check_seed
    from flowjax.training.run_dir import RunDirectory
    from flowjax.training.samples import draw_samples, load_network, save_grid, spread_labels

    check_seed(options.seed)
    as_array = out.suffix == ".npz"
    if not as_array:
        try:
            check_picture_path(out)
        except ValueError:
            raise ValueError(f"--out must end in .npz, or in .png, .jpg or .webp, got {out}") from None
    run = RunDirectory(options.run_dir)
    event_shape = run.config().model.event_shape
    if not (as_array or drawable(event_shape)):
        raise ValueError(
            f"there is no way to draw samples of shape {event_shape}; give an --out that ends in .npz"
        )
    velocity, config, step = load_network(run)
    labels = spread_labels(run.class_counts(), options.num)
    if options.label is not None:
        if labels is None:
            raise ValueError("--label needs a class-conditional run, and this one is not")
        classes = config.model.num_classes or 0
        if not 0 <= options.label < classes:
            raise ValueError(f"--label must lie in 0..{classes - 1}, got {options.label}")
        labels = np.full(options.num, options.label, np.int32)
    samples, num_evaluations = draw_samples(
        config,
        velocity,
        options.num,
        seed=options.seed,
        labels=labels,
        solver=options.solver,
        num_steps=options.num_steps,
    )
    if as_array:
        with replacing(out) as part, part.open("wb") as file:
            np.savez_compressed(file, samples=samples)
    else:
        save_grid(samples, out)
    print(f"{options.num} samples of step {step}, {num_evaluations} evaluations: {out}")
    return 0
