"""What `train` and `config` share: a preset, then every field of its configuration as a flag."""

from typing import Annotated, Any

from flowjax.training.config import TrainConfig
from flowjax.training.presets import PRESETS, preset


def split_preset(argv: list[str], command: str) -> tuple[TrainConfig, list[str]]:
    """Take the preset's name off the arguments.

    Raises:
        ValueError: none given, or an unknown one.
    """
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"flowjax {command} needs a preset first: {', '.join(PRESETS)}")
    return preset(argv[0]), argv[1:]


def preset_help() -> str:
    """One line a preset."""
    width = max(map(len, PRESETS)) + 2
    lines = [f"  {name:{width}}{(build.__doc__ or '').splitlines()[0]}" for name, build in PRESETS.items()]
    return "presets:\n" + "\n".join(lines)


def parse(
    options: Any, config: TrainConfig, argv: list[str], prog: str, description: str
) -> tuple[Any, TrainConfig]:
    """Parse the command's own options (a dataclass type) beside the overridable configuration."""
    import tyro

    flat = tyro.conf.arg(name="")

    def collect(
        own: Annotated[options, flat],  # pyright: ignore[reportInvalidTypeForm]
        config: Annotated[TrainConfig, flat] = config,
    ):
        return own, config

    # The preset decides the kind of network: its fields are flags, the kind itself is not.
    return tyro.cli(
        collect, args=argv, prog=prog, description=description, config=(tyro.conf.AvoidSubcommands,)
    )
