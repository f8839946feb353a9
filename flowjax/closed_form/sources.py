"""Rows that stay where they are, in host memory or on disk, and are read a range at a time.

A file is read with `pread`, not through a mapping: mapped pages count as the process's own memory, and touching one
behind the end of a file that has shrunk kills the process. What a file looked like when it was opened (size,
modification time, inode) is compared before and after every read.
"""

import contextlib
import dataclasses
import itertools
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

_SAMPLE, _PIECE = 1024, 16

State = dict[str, int]
"""What identifies the present contents of files, by a name for people."""


class RowReader(Protocol):
    """Rows by number from wherever they are, such as what `flowjax.data.stream` opens."""

    event_shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_points(self) -> int: ...

    def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """`image` [b, *event]."""
        ...

    # And where there are any, `directory` for messages, and `files` that must not change.


RowSource = ArrayLike | str | os.PathLike[str] | RowReader
"""What a field can be built from."""


@jax.tree_util.register_pytree_node_class
class OnHost:
    """What stands in a pytree for something on the host that has the shape of an array.

    Its one leaf is a number, by which a callback finds the object again. So compiled functions depend on shape and
    dtype only, are shared by all data sets that have these, and keep none of them alive: whoever holds this does.
    """

    def __init__(self, held: Any, shape: tuple[int, ...], dtype: Any):
        self.held, self.shape, self.dtype = held, tuple(shape), np.dtype(dtype)
        self.number = np.int32(next(k for k in (i % 2**31 for i in _numbers) if k not in _held))
        _held[int(self.number)] = self.held

    def tree_flatten(self):
        return (self.number,), (self.shape, self.dtype)

    @classmethod
    def tree_unflatten(cls, aux, children):
        new = object.__new__(cls)
        new.shape, new.dtype = aux
        (new.number,) = children
        known = isinstance(new.number, np.generic | np.ndarray | jax.Array) and np.ndim(new.number) == 0
        known = known and not isinstance(new.number, Tracer)
        new.held = _held.get(int(new.number)) if known else None
        return new


_numbers = itertools.count()
_held: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def find(number: int) -> Any:
    """What the `OnHost` of this number holds."""
    try:
        return _held[number]
    except KeyError:
        raise RuntimeError(
            "a streamed field was deleted before its result was there; keep it until then"
        ) from None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class HostRows:
    """An array [n, *event] outside the device.

    Attributes:
        name: what messages call it.
        given: an array of it, or what else the user gave.
        shape, dtype: of the whole array; `read` gives this dtype.
        volatile: it can change without its state telling so.
    """

    name: str
    given: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    _fetch: Callable[[int, int], np.ndarray]
    _state: Callable[[], State] = dict
    _pick: Callable[[np.ndarray], np.ndarray] | None = None
    volatile: bool = False
    _opened: State = dataclasses.field(init=False)

    def __post_init__(self):
        if self.dtype == np.float64:
            object.__setattr__(self, "dtype", np.dtype(np.float32))
        object.__setattr__(self, "_opened", self._state())

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), [stop − start, *event].

        Raises:
            RuntimeError: the file is not what it was when it was opened.
        """
        with self._checked():
            rows = self._fetch(start, stop)
        return np.ascontiguousarray(rows, self.dtype)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows of these numbers 0..n−1, [k] → [k, *event]. Errors as for `read`."""
        unique, inverse = np.unique(index, return_inverse=True)
        if self._pick is not None:
            with self._checked():
                return np.ascontiguousarray(self._pick(unique), self.dtype)[inverse.reshape(-1)]
        rows = np.empty((len(unique), *self.shape[1:]), self.dtype)
        breaks = np.flatnonzero(np.diff(unique) != 1) + 1  # rows that lie side by side are read at once
        with self._checked():
            for place in np.split(np.arange(len(unique)), breaks):
                if len(place):
                    rows[place] = self._fetch(int(unique[place[0]]), int(unique[place[-1]]) + 1)
        return rows if np.array_equal(unique, index) else rows[inverse.reshape(-1)]

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        """Before and after what is read in it."""
        self.check()
        try:
            yield
        except (OSError, ValueError) as error:
            self.check()
            raise RuntimeError(f"{self.name} cannot be read: {error}") from error
        self.check()

    def check(self) -> None:
        """RuntimeError if the contents have changed since they were opened."""
        try:
            now = self._state()
        except OSError as error:
            raise RuntimeError(
                f"{self.name} can no longer be read ({error.strerror}); a field streams it at every evaluation"
            ) from None
        for what in self._opened | now:
            before, after = self._opened.get(what), now.get(what)
            if before != after:
                raise RuntimeError(
                    f"{self.name} changed after the field was built: {what} was {before}, is {after}; "
                    "build the field again"
                )


def is_remote(data: Any) -> bool:
    """Whether data is no array but a place that rows can be read from: a path, or a record data set."""
    return isinstance(data, str | os.PathLike) or (hasattr(data, "num_points") and hasattr(data, "rows"))


def open_rows(data: Any) -> HostRows:
    """A path to a `.npy` file, a memory map, an array, or what `flowjax.data.stream` gives, as `HostRows`.

    Raises:
        FileNotFoundError, ValueError: no such file, no `.npy` file, or columns before rows.
        RuntimeError: a map whose file was replaced since (noticed if the new one is too short, or differs in one of up
            to 1024 rows from all over it).
        TypeError: a value under a trace.
    """
    if isinstance(data, Tracer):
        raise TypeError('method="streamed" reads rows on the host; build the field outside jit')
    if isinstance(data, str | os.PathLike):
        return _open_npy(Path(data).expanduser())
    if is_remote(data):
        return _open_records(data)
    if isinstance(data, np.memmap) and data.filename is not None and data.mode != "c":
        rows = _open_memmap(data)  # a copy-on-write map may hold what its file does not
        _check_map(data, rows)
        return rows
    return of_array(np.asarray(data), data)


def of_array(array: np.ndarray, given: Any = None) -> HostRows:
    """An array in host memory; not copied."""
    given = array if given is None else given
    return HostRows(
        "the data", given, array.shape, array.dtype, lambda start, stop: array[start:stop], volatile=True
    )


def _open_npy(path: Path) -> HostRows:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is not a .npy file of rows: {error}") from None
    if not isinstance(mapped, np.memmap):
        raise ValueError(f"{path} is not a .npy file of rows; extract the array and save it with np.save")
    if mapped.dtype == np.dtype("V2"):  # how NumPy stores a type it does not know
        mapped = mapped.view(jnp.bfloat16)
    return _open_memmap(mapped)  # type: ignore[arg-type]


def _open_memmap(array: np.memmap) -> HostRows:
    """The rows of the file under a map, which may be a part of it."""
    path = Path(os.fspath(array.filename))  # type: ignore[arg-type]
    if not array.flags.c_contiguous:
        raise ValueError(
            f"the rows of {path} do not lie one after the other (shape {array.shape}, strides {array.strides}); "
            "save them with np.save(file, np.ascontiguousarray(rows))"
        )
    # A slice of a map keeps the offset of the whole: only addresses tell where it begins.
    pages = np.frombuffer(array._mmap, np.uint8)  # type: ignore[attr-defined]
    first_page = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    offset = array.ctypes.data - pages.ctypes.data + first_page
    shape, dtype = array.shape, array.dtype
    row_bytes = int(np.prod(shape[1:])) * dtype.itemsize

    def fetch(start: int, stop: int) -> np.ndarray:
        rows = np.empty((stop - start, *shape[1:]), dtype)
        with _opened(path) as file:
            _read_into(file, rows.reshape(-1).view(np.uint8), offset + start * row_bytes)
        return rows

    def pick(index: np.ndarray) -> np.ndarray:
        rows = np.empty((len(index), *shape[1:]), dtype)
        buffers = rows.reshape(len(index), int(np.prod(shape[1:]))).view(np.uint8)
        with _opened(path) as file:
            for buffer, number in zip(buffers, index.tolist(), strict=True):
                _read_into(file, buffer, offset + number * row_bytes)
        return rows

    # What is written through a map reaches the modification time late, or never.
    return HostRows(
        str(path), array, shape, dtype, fetch, lambda: _look(path), pick, volatile=array.mode != "r"
    )


def _check_map(array: np.memmap, rows: HostRows) -> None:
    """RuntimeError unless the file of this name is still the one under the map, as far as some rows tell.

    The map itself keeps the old file open, without a way to ask for it.
    """
    again = f"{rows.name} is not the file that was mapped any more: {{}}; map it again"
    for start, stop in sample_pieces(len(array)):
        try:
            found = rows.read(start, stop)  # first: a map must not be touched behind the end of its file
        except RuntimeError as error:
            raise RuntimeError(again.format(error)) from None
        if found.tobytes() != np.asarray(array[start:stop], found.dtype).tobytes():
            raise RuntimeError(again.format(f"rows {start} to {stop - 1} differ"))


def sample_pieces(n: int) -> list[tuple[int, int]]:
    """Up to 1024 of n rows as ranges (start, stop) from all over them."""
    if n <= _SAMPLE:
        return [(0, n)]
    starts = np.linspace(0, n - _PIECE, _SAMPLE // _PIECE).astype(int).tolist()
    return [(start, start + _PIECE) for start in starts]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def _read_into(file: int, buffer: np.ndarray, offset: int) -> None:
    view, done = buffer.data, 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], offset + done)
        if count == 0:
            raise OSError(f"it ends {len(view) - done} bytes early")
        done += count


def _open_records(records: Any) -> HostRows:
    """Rows decoded record by record. `records`: `num_points`, `event_shape`, `dtype`, `rows(index)["image"]`."""
    directory, files = getattr(records, "directory", None), getattr(records, "files", None)
    if files is None:  # an object of somebody else's: everything that lies there
        files = () if directory is None else [f for f in Path(directory).iterdir() if f.is_file()]
    shape = (records.num_points, *records.event_shape)

    def fetch(start: int, stop: int) -> np.ndarray:
        return pick(np.arange(start, stop))

    def pick(index: np.ndarray) -> np.ndarray:
        return records.rows(index)["image"]

    def state() -> State:
        found = ((path.name, _look(path)) for path in map(Path, files))
        return {f"{what} of {name}": value for name, state in found for what, value in state.items()}

    name = str(directory) if directory is not None else "the data"
    return HostRows(name, records, shape, np.dtype(records.dtype), fetch, state, pick)


def _look(path: Path) -> State:
    found = os.stat(path)
    return {"size": found.st_size, "modification time": found.st_mtime_ns, "inode": found.st_ino}
