"""`flowjax experiment NAME`: one of the paper's experiments, or of those it did not run, on data of your own."""

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ._common import parse

_USAGE = """usage: flowjax experiment NAME [--data SOURCE] [--preset quick|cpu|gpu|paper] [--out DIR] [--FIELD ...]

One experiment on the closed form of flow matching: figures, numbers and a page that says whether they agree with the
claim of "On the Closed-Form of Flow Matching" (arXiv 2506.03719).

experiments:
{experiments}

presets:
{presets}

examples:
  flowjax experiment collapse
  flowjax experiment collapse --data npz:cifar10.npz --out runs/collapse-cifar10
  flowjax experiment collapse --preset quick --num-pairs 32

The same command goes on where an interrupted run stopped. `flowjax experiment NAME --help` says what it shows, what it
costs and what to expect, and lists every field; `flowjax data` lists the sources.
"""


@dataclass(frozen=True)
class Options:
    """What the experiment looks at, how large it is, and where it writes."""

    data: Annotated[str, tyro.conf.arg(metavar="SOURCE")] = "digits"
    """The data set: digits, patches, npz:FILE, idx:DIR, tfds:NAME_OR_DIR …"""
    preset: Annotated[str, tyro.conf.arg(metavar="quick|cpu|gpu|paper")] = "cpu"
    """Its size; every field below has the preset's value unless it is given."""
    out: Path | None = None
    """A new folder for result.json, figures and report.html. Default: runs/NAME-DATA-PRESET."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand. Raises ValueError or RuntimeError for what the user got wrong."""
    from flowjax import experiments

    if not argv or argv[0] in ("-h", "--help"):
        print(
            _USAGE.format(experiments=_listed(experiments.EXPERIMENTS), presets=_listed(experiments.PRESETS))
        )
        return 0
    name, rest = argv[0], argv[1:]
    if name.startswith("-"):
        raise ValueError(
            f"flowjax experiment needs a name before its options: {', '.join(experiments.EXPERIMENTS)}"
        )
    module = experiments.module(name)
    options, settings = _parse(name, module, rest)

    from flowjax.training.loop import Stopped

    try:
        result = experiments.run(
            name, options.data, preset=options.preset, settings=settings, out=options.out
        )
    except Stopped:
        print("stopped by a signal, and saved; the same command goes on from here", file=sys.stderr)
        return 0
    verdict = {True: "agrees", False: "does not agree", None: "cannot tell on this data"}[result["agrees"]]
    print(f"claim:  {result['claim']}")
    print(f"found:  {result['sentence']}")
    print(f"        {verdict}; {result['seconds']:.0f} s")
    print(f"report: {Path(result['folder']) / 'report.html'}")
    return 0


def _parse(name: str, module: Any, rest: list[str]) -> tuple[Options, Any]:
    from flowjax._choices import check_choice
    from flowjax.experiments import PRESETS

    flat = tyro.conf.arg(name="")
    preset = _preset_of(rest)
    check_choice("preset", preset, PRESETS)
    default = module.PRESETS[preset]

    def collect(
        own: Annotated[Options, flat],
        settings: Annotated[type(default), flat] = default,  # pyright: ignore[reportInvalidTypeForm]
    ):
        return own, settings

    return parse(collect, rest, f"flowjax experiment {name}", inspect.getdoc(module))


def _preset_of(rest: list[str]) -> str:
    """The preset among the arguments, which decides the defaults of the others."""
    for argument, value in zip(rest, [*rest[1:], ""], strict=True):
        if argument == "--preset":
            return value
        if argument.startswith("--preset="):
            return argument.removeprefix("--preset=")
    return Options.preset


def _listed(names: dict[str, str]) -> str:
    width = max(map(len, names)) + 2
    return "\n".join(f"  {name:<{width}}{text}" for name, text in names.items())
