"""`flowjax plan`: what a TPU slice would need for the field and a training step, by compiling for it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flowjax._files import replacing

from ._common import check_new, parse

if TYPE_CHECKING:
    from flowjax.plan import Estimate, Program

_HELP = """Compile the exact field, and a training step on it, for a TPU slice; no TPU is needed, nothing is run.

Needs the TPU compiler: pip install "jax[tpu]" (Linux). Each compilation takes minutes of one core.

The table shows, for one chip (one core of it for v4 and tpu7x):
  memory     the compiler's allocation: arguments, temporaries, results, code; and the chip's HBM
  compiler   its estimated cycles, loops multiplied out, at the chip's clock; transfers between chips not included
  at least   a bound from public figures: float32 products at the peak rate, or the rows read once from memory
  sent       bytes to other chips, the number of collectives, and the time at the full rate of the links
  target     share of the exact target in the training step, by the compiler's estimate
All of it is estimated, nothing measured.

data:
{shapes}
  N,H,W,C          any sizes, stored as uint8

examples:
  flowjax plan                                                 CIFAR-10 on {topologies}
  flowjax plan --data imagenet-64 --topology v5e:16x16 --batch 1024
  flowjax plan --data 60000,28,28,1 --topology v6e:2x2,v6e:4x4 --batch 256 --no-step
"""


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    topology: Annotated[str | None, tyro.conf.arg(metavar="CHIP:SIDES")] = None
    """Slices such as v5e:16x16 or v5p:8x8x8, separated by commas. Default: four of different kinds."""
    data: Annotated[str, tyro.conf.arg(metavar="NAME|N,H,W,C")] = "cifar10"
    """The data set's name or its sizes (see above)."""
    batch: int = 1024
    """Queries of the field, and examples of a training step over all chips together."""
    rows_over: int | None = None
    """Chips that the rows are split over; every other group of so many has them too. Default: as training chooses,
    and all of them where that does not fit."""
    step: bool = True
    """Compile a training step too (the paper's U-Net for pictures, an MLP for points)."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write every figure to this new file."""
    fast: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compile with little effort: minutes become tens of seconds, times come out two to three times higher."""
    jobs: int | None = None
    """Compilations at once; each takes about 2 GiB. Default: one for every two cores."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand. Raises ValueError or RuntimeError for what the user got wrong."""
    from flowjax import plan
    from flowjax.closed_form import shapes

    width = max(map(len, shapes.SHAPES)) + 2
    listing = "\n".join(
        f"  {name:<{width}}{shape.num_points} × {' × '.join(map(str, shape.event_shape))}, {shape.dtype}"
        for name, shape in shapes.SHAPES.items()
    )
    text = _HELP.format(shapes=listing, topologies=", ".join(plan.TOPOLOGIES))
    options = parse(Options, argv, "flowjax plan", text)
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    shape = shapes.parse(options.data)
    topologies = plan.TOPOLOGIES if options.topology is None else tuple(options.topology.split(","))
    for topology in topologies:
        plan.check(topology, shape, options.batch, step=options.step, rows_over=options.rows_over)
    out = None if options.json is None else check_new(options.json)

    def say(text: str) -> None:
        print(text, flush=True)

    def one(topology: str) -> "Estimate":
        return plan.estimate(
            topology,
            shape,
            options.batch,
            rows_over=options.rows_over,
            step=options.step,
            fast=options.fast,
            say=say,
        )

    jobs = options.jobs or max(1, (os.cpu_count() or 1) // 2)
    with ThreadPoolExecutor(min(jobs, len(topologies))) as pool:
        estimates = list(pool.map(one, topologies))
    if out is not None:
        with replacing(out) as part:
            part.write_text(json.dumps([estimate.to_dict() for estimate in estimates], indent=2) + "\n")
    if len(estimates) == 1 and not estimates[0].fits:
        raise ValueError(estimates[0].refusal())
    _show(estimates, fast=options.fast)
    for estimate in estimates:
        if not estimate.fits:
            print(estimate.refusal())
    return 0


def _show(estimates: "list[Estimate]", *, fast: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    first = estimates[0]
    table = Table(
        title=f"{first.shape.name}: {first.shape.num_points} rows of {' × '.join(map(str, first.shape.event_shape))}, "
        f"{first.shape.dtype}; batch {first.batch}",
        caption="compiler's estimates and public figures, nothing measured; see flowjax plan --help"
        + ("; compiled with little effort" if fast else ""),
    )
    for header in ("slice", "rows a chip", "program", "memory", "compiler", "at least", "sent", "target"):
        table.add_column(header, justify="left" if header in ("slice", "program", "sent") else "right")
    for estimate in estimates:
        rows = estimate.num_points // estimate.rows_over
        padding = estimate.num_points - estimate.shape.num_points
        split = f"{rows}, over {estimate.rows_over}" + (f" ({padding} padded)" if padding else "")
        names = estimate.topology, split
        table.add_row(*names, "field", *_figures(estimate, estimate.field, estimate.field_roofline), "")
        if estimate.step is not None:
            share = "" if estimate.share is None else f"{estimate.share:.0%}"
            table.add_row("", "", "step", *_figures(estimate, estimate.step, estimate.step_roofline), share)
        table.add_section()
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width of its own
        console = Console(width=140)
    console.print(table)


def _figures(estimate: "Estimate", program: "Program", roofline: float) -> list[str]:
    memory = f"{program.needed / 2**30:.3g} of {estimate.slice.device_memory / 2**30:.3g} GiB"
    seconds = estimate.seconds(program)
    if seconds is None:
        return [memory, "does not fit", _milliseconds(roofline), ""]
    count = sum(program.collectives.values())
    sent = f"{program.sent / 2**20:.3g} MiB in {count}, {_milliseconds(estimate.transfer_seconds(program))}"
    # A loop whose trips the compiler's text does not tell counts once.
    unknown = "≥ " if program.loops_unknown else ""
    return [memory, unknown + _milliseconds(seconds), _milliseconds(roofline), sent if count else "nothing"]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
