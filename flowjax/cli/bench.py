"""`flowjax bench`: run a benchmark of the repository and record it; show all that is recorded; check against it."""

import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ._common import parse

_HELP = """Time flowjax beside the machine's own limits, interleaved in one process.

Figures are ratios inside one run; the whole result goes to benchmarks/results/NAME.json of the checkout.

benchmarks:
  dense      speed beside the machine's product rate, the textbook version and the broadcast
  peers      time and true error beside torch, KeOps, deepinv, FAISS and scikit-learn: pip install -e ".[bench]"
  streamed   rows read from a file against the same rows in memory; how much memory that takes
  accuracy   velocity error and certified bound against float64
  screened   certified screening against dense, time by time; --data SOURCE for pictures of your own
  certificate  is a certified bound ever broken, and how tight is it, over 100 000 queries
  training   the target's share of a training step
  sampling   does the exact field end in the data, in how many evaluations; measured orders of the solvers
  imports    seconds to import flowjax beside jax and flax
  pallas     the TPU kernel beside XLA, by the TPU compiler alone
  plan       the field on TPU slices, by the TPU compiler alone
  gpu        on a GPU: its kernel beside XLA, its precision algorithms beside their products' rates

examples:
  flowjax bench dense
  flowjax bench peers --rounds 1 --dry-run     a first look, nothing recorded
  flowjax bench --report --out speed.html      everything recorded as one page; measures nothing
  flowjax bench --check                        three small ratios against recorded ones; status 1 if one has halved
  flowjax bench --check --record               record those ratios
"""


@dataclass(frozen=True)
class Bench:
    """The command's flags."""

    name: Annotated[
        Literal[
            "dense",
            "peers",
            "screened",
            "certificate",
            "streamed",
            "accuracy",
            "training",
            "sampling",
            "imports",
            "pallas",
            "plan",
            "gpu",
        ]
        | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="NAME"),
    ] = None
    """Which one; without a name, dense."""
    rounds: int | None = None
    """Timed rounds, of which medians are reported; each benchmark has its own default."""
    data: str | None = None
    """A source as `flowjax data` takes it, for the benchmarks that accept one."""
    dry_run: bool = False
    """Print, but record nothing."""
    report: bool = False
    """Write what is recorded as one HTML page, and measure nothing."""
    out: Path | None = None
    """Where --report writes; without it, benchmarks/report.html of the checkout."""
    check: bool = False
    """Measure three small ratios and compare them with the recorded ones; under a minute."""
    record: bool = False
    """With --check: record the ratios instead."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand. Raises ValueError for what the user got wrong."""
    arguments = parse(Bench, argv, "flowjax bench", _HELP)
    _refuse_what_does_not_apply(arguments)
    harness = _repository("harness")
    if arguments.report:
        out = arguments.out or Path(harness.__file__).parent / "report.html"
        print(f"written to {_repository('report').write(out)}")
        return 0
    if arguments.check and not arguments.record:
        result = _repository("check").check()
        _show(_repository("check"), result)
        if result["failed"]:
            failed = "; ".join(result["failed"])
            print(f"flowjax: slower than recorded, in every try: {failed}", file=sys.stderr)
        return 1 if result["failed"] else 0
    name = "check" if arguments.check else arguments.name or "dense"
    benchmark = _repository(name)
    accepted = inspect.signature(benchmark.run).parameters
    options = {option: getattr(arguments, option) for option in ("rounds", "data")}
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        if option not in accepted:
            raise ValueError(f"--{option} does not apply to {name}; leave it out")
    result = benchmark.run(**options)
    _show(benchmark, result)
    if not arguments.dry_run:
        print(f"recorded in {harness.save(name, result)}")
    return 0


def _refuse_what_does_not_apply(arguments: Bench) -> None:
    if arguments.rounds is not None and arguments.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {arguments.rounds}")
    if arguments.report and arguments.check:
        raise ValueError("--report measures nothing and --check does; give one of them")
    if arguments.record and not arguments.check:
        raise ValueError(
            "--record goes with --check; a benchmark is recorded unless --dry-run says otherwise"
        )
    if arguments.out is not None and not arguments.report:
        raise ValueError("--out goes with --report; results are recorded under benchmarks/results")
    for mode in ("report", "check"):
        if getattr(arguments, mode) and arguments.name is not None:
            raise ValueError(f"--{mode} takes no benchmark's name; leave out {arguments.name!r}")
    measures = not arguments.report and (arguments.record or not arguments.check)
    for option in ("rounds", "data", "dry_run"):
        if not measures and getattr(arguments, option):
            mode = "report" if arguments.report else "check"
            raise ValueError(f"--{option.replace('_', '-')} does not apply to --{mode}; leave it out")


def _repository(module: str) -> Any:
    """A module of benchmarks/, which lies beside the package in the repository."""
    try:
        return importlib.import_module(f"benchmarks.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("benchmarks"):
            raise
        raise ValueError(
            "the benchmarks live in the repository, not in the installed package; "
            "clone it and run `python -m flowjax bench` from its top folder"
        ) from None


def _show(benchmark: Any, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    header, rows = benchmark.table(result)
    machine = result["machine"]
    table = Table(*header, caption=f"{machine['processor']}, {machine['cores']} cores, jax {machine['jax']}")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
