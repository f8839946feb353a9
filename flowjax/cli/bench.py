"""`flowjax bench NAME`: run a benchmark of the repository, print its table, record it as JSON."""

import importlib
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Bench:
    """Time flowjax beside the machine's own limits, interleaved in one process.

    Figures are ratios inside one run; the whole result goes to benchmarks/results/NAME.json of the checkout.

    Example: flowjax bench dense
    """

    name: Annotated[Literal["dense", "accuracy"], tyro.conf.Positional] = "dense"
    """dense: speed beside the product rate and the textbook version. accuracy: error and bound against float64."""
    rounds: int = 7
    """Timed rounds; medians are reported."""
    dry_run: bool = False
    """Print, but record nothing."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand. Raises ValueError for what the user got wrong."""
    arguments = tyro.cli(Bench, args=argv, prog="flowjax bench")
    if arguments.rounds < 1:
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
    result = benchmark.run(rounds=arguments.rounds)
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
