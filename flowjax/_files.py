"""Files that are whole or not there: written beside their place, then moved over it."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_SUFFIX = ".part"


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A new path to write to in `file`'s place: it takes the place when the block ends, and goes if the block fails.

    A reader sees the old file or the new one, never a part; so does whoever comes after a kill, beside a leftover that
    `is_leftover` knows. Of two writers at a time the last one wins.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")
    try:
        yield part
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def is_leftover(file: Path) -> bool:
    """Whether this is a part that a killed process left behind."""
    return file.name.startswith(".") and file.name.endswith(_SUFFIX)
