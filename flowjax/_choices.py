"""Names that users type: an unknown one is refused together with the nearest known one."""

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(name: Any, choices: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, upper case and underscores aside, or None if none does."""
    plain = str(name).strip().lower().replace("_", "-")
    by_plain = {choice.lower().replace("_", "-"): choice for choice in choices}
    near = difflib.get_close_matches(plain, by_plain, 1)
    return by_plain[near[0]] if near else None


def hint(name: Any, choices: Iterable[str]) -> str:
    """The way out of an unknown name: "did you mean 'x'?", or all the choices there are."""
    choices = list(choices)
    near = nearest(name, choices)
    return f"choose one of {', '.join(choices)}" if near is None else f"did you mean {near!r}?"


def check_choice(what: str, name: Any, choices: Iterable[str]) -> None:
    """Raises ValueError, with the nearest name or all of them, unless `name` is one of the choices."""
    choices = list(choices)
    if name not in choices:
        raise ValueError(f"unknown {what} {name!r}; {hint(name, choices)}")
