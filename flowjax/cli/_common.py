"""What subcommands share: one parser with one kind of error, presets, and the checks of an output file."""

import contextlib
import inspect
import io
from pathlib import Path
from typing import Annotated, Any

import tyro

_FRAME = "╭╮╰╯│─ "


def parse(options: Any, argv: list[str], prog: str, description: str | None = None) -> Any:
    """`options`, a dataclass type or a function, filled from the arguments.

    Args:
        options: what to fill.
        argv: the arguments after the subcommand.
        prog: the command as the user typed it, for help texts.
        description: shown above the options, line breaks kept; None takes the docstring of `options`.

    Raises:
        ValueError: arguments that cannot be parsed, in one sentence.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            # The preset decides the kind of network: its fields are flags, the kind itself is not.
            return tyro.cli(
                options, args=argv, prog=prog, description=description, config=(tyro.conf.AvoidSubcommands,)
            )
    except SystemExit as left:
        if not left.code:
            raise
        raise ValueError(f"{_sentence(complaint.getvalue())}; see {prog} --help") from None


def _sentence(box: str) -> str:
    """The text of tyro's framed complaint, its parts joined by semicolons."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        text = line.strip(_FRAME)
        if text.startswith("For full helptext"):
            break
        if text:
            parts[-1].append(text)
        elif parts[-1]:
            parts.append([])
    return "; ".join(" ".join(part).rstrip(".") for part in parts if part)


def parse_run(options: Any, argv: list[str], command: str, description: str) -> tuple[str, Any, Any]:
    """Parse PRESET, the command's own options (a dataclass type) and the fields of the preset's configuration.

    Returns:
        The preset's name, the options and the `TrainConfig`.

    Raises:
        ValueError: no preset, an unknown one, arguments that cannot be parsed or that no run can have.
    """
    from flowjax.training.config import TrainConfig
    from flowjax.training.presets import PRESETS, preset

    if not argv or argv[0].startswith("-"):
        raise ValueError(f"flowjax {command} needs a preset first: {', '.join(PRESETS)}")
    name, rest = argv[0], argv[1:]
    default = preset(name)
    flat = tyro.conf.arg(name="")

    def collect(
        own: Annotated[options, flat],  # pyright: ignore[reportInvalidTypeForm]
        config: Annotated[TrainConfig, flat] = default,
    ):
        return own, config

    text = f"{description}\n\n{inspect.getdoc(PRESETS[name])}"
    return name, *parse(collect, rest, f"flowjax {command} {name}", text)


def preset_help() -> str:
    """One line a preset."""
    from flowjax.training.presets import PRESETS

    width = max(map(len, PRESETS)) + 2
    lines = [f"  {name:{width}}{(build.__doc__ or '').splitlines()[0]}" for name, build in PRESETS.items()]
    return "presets:\n" + "\n".join(lines)


def check_new(out: Path) -> Path:
    """The path, if a new file can be written there.

    Raises:
        ValueError: it exists.
        FileNotFoundError: its folder does not.
    """
    out = out.expanduser()
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {out.absolute().parent} to write {out.name} to; make it first"
        )
    return out
