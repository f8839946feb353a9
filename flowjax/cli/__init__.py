"""The command line: `flowjax train | sample | evaluate | experiment | data | config | bench | plan`.

Each subcommand is a module with `run(argv) -> int`, imported when it is called, so that `flowjax --help` needs no JAX.
What the user got wrong is raised as ValueError, TypeError, OSError (no such file, no permission, no space left) or
RuntimeError and comes out as one sentence on standard error and exit status 2; an interruption has status 130.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from flowjax._choices import hint

_COMMANDS = {
    "train": "train a network on the exact (or empirical, or conditional) target",
    "sample": "draw samples from a trained run",
    "evaluate": "Fréchet distance, memorisation and a report for a trained run",
    "experiment": "put a claim about flow matching to the test on data of your own",
    "data": "look at a data set, or prepare it for large training",
    "config": "print a preset's configuration as JSON",
    "bench": "time flowjax beside the machine's limits",
    "plan": "memory, time and collectives on a TPU slice, by its compiler, without a TPU",
}

_HELP = """usage: flowjax COMMAND [OPTIONS]

The exact velocity field of flow matching over whole data sets.

commands:
{commands}

examples:
  flowjax train digits                        train on scikit-learn's digits, a few minutes on a CPU
  flowjax train digits --target conditional   the same on the usual noisy target
  flowjax sample runs/digits --num 64 --out samples.png
  flowjax data two-moons

`flowjax COMMAND --help` says more about each.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 for what the user got wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, _COMMANDS)) + 2
        print(_HELP.format(commands="\n".join(f"  {k:{width}}{v}" for k, v in _COMMANDS.items())))
        return 0
    if arguments[0] == "--version":
        from flowjax._version import __version__

        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        return _refuse(f"unknown command {command!r}; {hint(command, _COMMANDS)}")
    try:
        return importlib.import_module(f"flowjax.cli.{command}").run(rest)
    except BrokenPipeError:  # whoever read our output, `head` perhaps, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        return _refuse(str(error) or type(error).__name__)
    except MemoryError as error:
        return _refuse(f"not enough memory: {error}; take fewer or smaller rows")
    except KeyboardInterrupt:
        print("flowjax: interrupted", file=sys.stderr)
        return 130


def _refuse(sentence: str) -> int:
    print(f"flowjax: {' '.join(sentence.split())}", file=sys.stderr)
    return 2
