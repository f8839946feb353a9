"""`flowjax config PRESET`: the configuration a run would have, as JSON."""

import json
from dataclasses import dataclass

from ._common import parse, preset_help, split_preset


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
    config, rest = split_preset(argv, "config")
    _, config = parse(Options, config, rest, f"flowjax config {argv[0]}", "Print the configuration as JSON.")
    print(json.dumps(config.to_dict(), indent=2))
    return 0
