"""`flowjax bench NAME`: run a benchmark of the repository, print its table, record it as JSON."""

import importlib
import inspect
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ._common import parse

_HELP = """Time flowjax beside the machine's own limits, interleaved in one process.

Figures are ratios inside one run; the whole result goes to benchmarks/results/NAME.json of the checkout.

benchmarks:
  dense      speed beside the machine's product rate, the textbook version and the broadcast
  streamed   rows read from a file against the same rows in memory; how much memory that takes
  accuracy   velocity error and certified bound against float64
  screened   certified screening against dense, time by time; --data SOURCE for pictures of your own
  training   the target's share of a training step
  sampling   does the exact field end in the data, in how many evaluations; measured orders of the solvers
  imports    seconds to import flowjax beside jax and flax
  pallas     the TPU kernel beside XLA, by the TPU compiler alone

example:
  flowjax bench dense
"""


@dataclass(frozen=True)
class Bench:
    """The command's flags."""

    name: Annotated[
        Literal["dense", "screened", "streamed", "accuracy", "training", "sampling", "imports", "pallas"],
        tyro.conf.Positional,
    ] = "dense"
    """Which one."""
    rounds: int | None = None
    """Timed rounds, of which medians are reported; each benchmark has its own default."""
    data: str | None = None
    """A source as `flowjax data` takes it, for the benchmarks that accept one."""
    dry_run: bool = False
    """Print, but record nothing."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand. Raises ValueError for what the user got wrong."""
    arguments = parse(Bench, argv, "flowjax bench", _HELP)
    if arguments.rounds is not None and arguments.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {arguments.rounds}")
    try:
        harness = importlib.import_module("benchmarks.harness")
        benchmark = importlib.import_module(f"benchmarks.{arguments.name}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("benchmarks"):
            raise
        raise ValueError(
            "the benchmarks live in the repository, not in the installed package; "
            "clone it and run `python -m flowjax bench` from its top folder"
        ) from None
    accepted = inspect.signature(benchmark.run).parameters
    options = {name: getattr(arguments, name) for name in ("rounds", "data")}
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if name not in accepted:
            raise ValueError(f"--{name} does not apply to {arguments.name}; leave it out")
    result = benchmark.run(**options)
    header, rows = benchmark.table(result)
    _show(header, rows, result["machine"])
    if not arguments.dry_run:
        print(f"recorded in {harness.save(arguments.name, result)}")
    return 0


def _show(header: list[str], rows: list[list[str]], machine: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, caption=f"{machine['processor']}, {machine['cores']} cores, jax {machine['jax']}")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
