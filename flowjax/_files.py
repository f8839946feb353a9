"""Files that are whole or not there: written beside their place, then moved over it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to in `file`'s place: it takes the place when the block ends, and goes if the block fails.

    A reader, or a run that is killed, sees the old file or the new one, never a part.
    """
    part = file.with_name(file.name + ".part")
    try:
        yield part
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
