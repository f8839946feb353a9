"""`flowjax config PRESET`: the configuration a run would have, as JSON."""

import json
from dataclasses import dataclass

from ._common import parse_run, preset_help


@dataclass(frozen=True)
class Options:
    """No options of its own; every field of the configuration can be overridden."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            f"usage: flowjax config PRESET [--FIELD VALUE ...]\n\n{preset_help()}\n\nexample: flowjax config digits"
        )
        return 0
    _, _, config = parse_run(Options, argv, "config", "Print the configuration as JSON.")
    print(json.dumps(config.to_dict(), indent=2))
    return 0
