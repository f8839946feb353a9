"""Rows on the host or on disk, block after block through the device: any amount of data in bounded memory.

The rows are cut into blocks of equal size, at most `BLOCK_BYTES`, of which the last overlaps its predecessor with
the repeated rows masked. A block goes through the whole pass of a data set in memory, re-scoring included, and the
contributions merge; nothing else in the engine knows that there were several. While the device works on a block, a
thread reads, decodes and converts the next, so at most three blocks exist at once: the one read ahead, the one handed
over and its copy on the device.

The loop is a `lax.scan` whose body asks the host for its block, so it can be compiled into a sampler, batched and
differentiated: the callback only reads, runs nothing on the device, and does not depend on the query. Reverse mode
reads the file a second time instead of keeping it. The rounding of the sums stays within what is certified for one
pass over all n rows in inner blocks of m: a streamed block of k inner ones adds n/(k m) merges to its own k, and
k + n/(k m) − 1 ≤ n/m.
"""

import contextlib
import dataclasses
import functools
import logging
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from .construct import make_rows as make_rows_with
from .construct import square_norms
from .dense import Query, Rows
from .rows import to_float
from .sources import HostRows, OnHost, find, of_array

BLOCK_BYTES = 2**26
INNER = 512
"""Rows that the device handles at once inside a block, unless the user gave `block_size`."""

_MOST_POINTS = 2**30
"""Row numbers, and the end of a last block, are int32."""

_SAMPLE, _PIECE = 1024, 16

_PATIENCE = 2.0
"""Seconds before a pass shows that it is going on."""

_Parts = TypeVar("_Parts")
_background = ThreadPoolExecutor(4, "flowjax-read-ahead")


def is_streamed(rows: Rows) -> bool:
    return isinstance(rows.data, OnHost)


def given(leaf: Any) -> Any:
    """An array of the field as the user knows it."""
    return leaf.held.given if isinstance(leaf, OnHost) and leaf.held is not None else leaf


def block_rows(rows: Rows, block_size: int | None) -> int:
    """Rows of a block: `block_size`, or what fits in BLOCK_BYTES; a multiple of INNER where it is more than that."""
    n = rows.count
    if block_size is not None:
        return min(n, block_size)
    stored = [leaf for leaf in _per_row(rows) if leaf is not None]
    row_bytes = sum(leaf.dtype.itemsize * int(np.prod(leaf.shape[1:])) for leaf in stored)
    most = max(1, BLOCK_BYTES // row_bytes)
    if most > INNER:
        most -= most % INNER
    even = -(-n // -(-n // most))  # as few rows twice as possible
    return even if even <= INNER else min(n, -(-even // INNER) * INNER)


def make_rows(
    data: HostRows,
    weights: ArrayLike | None,
    labels: ArrayLike | None,
    horizontal_flip: bool,
    block_size: int | None,
) -> Rows:
    """What is computed once, in one pass over the data; four bytes a row stay in host memory, and four more each for
    weights and labels.

    Raises:
        ValueError: as for data in memory, or more rows than int32 can number.
        RuntimeError: the file changed meanwhile.
    """
    copies = 2 if horizontal_flip else 1
    if data.shape[0] * copies >= _MOST_POINTS:
        raise ValueError(
            f"{data.name} has {data.shape[0] * copies} points, mirror images included; at most {_MOST_POINTS} can be "
            "numbered, so split the data into several fields"
        )
    rows = make_rows_with(
        data,  # type: ignore[arg-type]
        weights,
        labels,
        horizontal_flip,
        functools.partial(_geometry, block_size=block_size),  # type: ignore[arg-type]
    )
    on_host = [data, *(None if leaf is None else of_array(np.asarray(leaf)) for leaf in _per_row(rows)[1:])]
    blocks = _Blocks(*on_host, size=block_rows(rows, block_size))
    # The blocks hold everything; the others only stand for what is there.
    held = [blocks, *on_host[1:]]
    leaves = [
        None if rows is None else OnHost(what, rows.shape, rows.dtype)
        for what, rows in zip(held, on_host, strict=True)
    ]
    return Rows(*leaves, *_whole(rows))  # type: ignore[arg-type]


def accumulate(
    rows: Rows,
    query: Query,
    size: int,
    one_block: Callable[[Rows, Query], _Parts],
    merge: Callable[[_Parts, _Parts], _Parts],
    nothing: _Parts,
) -> _Parts:
    """`one_block` of every block, merged.

    Args:
        rows: leaves with one entry a row on the host.
        query: what `one_block` sees the rows from.
        size: rows of a block.
        one_block: contribution of a set of rows; its `best_index` counts rows of the block.
        merge, nothing: associative, and its neutral element.
    """
    n = rows.count
    number = rows.data.number  # type: ignore[union-attr]
    shapes = _block_shapes(rows, size)

    # Checkpointed: the reverse pass reads the block again instead of keeping all of them.
    @jax.checkpoint
    def contribution(number, step, query, whole):
        arrays = jax.pure_callback(_read, shapes, number, step)
        parts: Any = one_block(Rows(*arrays, *whole), query)
        start = jnp.minimum(step * size, n - size).astype(jnp.int32)
        mirrored = parts.best_index >= size  # counted from the end of the rows at hand
        index = parts.best_index + start + jnp.where(mirrored, n - size, 0).astype(jnp.int32)
        return dataclasses.replace(parts, best_index=index)

    def body(total, step):
        return merge(total, contribution(number, step, query, _whole(rows))), None

    return lax.scan(body, nothing, jnp.arange(-(-n // size), dtype=jnp.int32))[0]


@contextlib.contextmanager
def reporting(rows: Rows) -> Iterator[None]:
    """Let a failure to read come out of a pass as the sentence that it is.

    Out of compiled code it comes wrapped, as one of several types, and after a logged traceback.
    """
    held = rows.data.held if is_streamed(rows) else None  # type: ignore[union-attr]
    if held is None:  # in memory, or inside somebody else's compiled function
        yield
        return
    log = logging.getLogger("jax._src.callback")
    silent, log.disabled = log.disabled, True
    held.failure = None
    try:
        yield
    except Exception:
        if held.failure is None:
            raise
        raise held.failure from None
    finally:
        log.disabled = silent


def _per_row(rows: Rows) -> tuple[Any, Any, Any, Any]:
    return rows.data, rows.square_norms, rows.log_weights, rows.labels


def _whole(rows: Rows) -> tuple[Any, Any, Any, Any]:
    return rows.centre, rows.max_norm, rows.log_weight_bound, rows.class_log_weights


def _block_shapes(rows: Rows, size: int) -> tuple[Any, ...]:
    """Of data, square norms, log weights and labels of a block; None for what is not there."""

    def shape(leaf):
        return None if leaf is None else jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)

    data, squares, log_weights, labels = (shape(leaf) for leaf in _per_row(rows))
    if log_weights is None and rows.count % size:  # to mask what the last block repeats
        log_weights = jax.ShapeDtypeStruct((size,), np.float32)
    return data, squares, log_weights, labels


def _read(number: ArrayLike, step: ArrayLike) -> tuple[Any, ...]:
    return find(int(number)).read(int(step))  # type: ignore[arg-type]


class _Blocks:
    """Blocks [size, ...] of host arrays by number, the next one always on its way."""

    def __init__(
        self,
        data: HostRows,
        squares: HostRows | None = None,
        log_weights: HostRows | None = None,
        labels: HostRows | None = None,
        *,
        size: int,
    ):
        self.given = data.given
        self.failure: BaseException | None = None
        self.size = size
        self.count = -(-data.shape[0] // size)
        self._arrays = data, squares, log_weights, labels
        self._rows = data.shape[0]
        self._next: tuple[int, Future] | None = None
        self._lock = threading.Lock()
        self._progress = _Progress(data.name, self.count)
        self._sums = (
            [self._sum(data.read(*self._range(step))) for step in range(self.count)]
            if data.volatile
            else None
        )

    def read(self, step: int) -> tuple[Any, ...]:
        """Data, square norms, log weights and labels of block `step`; None for what is not there."""
        try:
            with self._lock:
                ahead, self._next = self._next, None
            block = ahead[1].result() if ahead is not None and ahead[0] == step else self._load(step)
            if step + 1 < self.count:
                with self._lock:
                    self._next = step + 1, _background.submit(self._load, step + 1)
        except BaseException as error:
            self.failure = error
            self._progress.stop()
            raise
        self._progress.update(step)
        return block

    @staticmethod
    def _sum(block: np.ndarray) -> int:
        return zlib.adler32(block.reshape(-1).view(np.uint8).data)

    def _range(self, step: int) -> tuple[int, int]:
        start = min(step * self.size, self._rows - self.size)
        return start, start + self.size

    def _load(self, step: int) -> tuple[Any, ...]:
        start, stop = self._range(step)

        data, squares, log_weights, labels = (
            None if array is None else array.read(start, stop) for array in self._arrays
        )
        if self._sums is not None and data is not None and self._sum(data) != self._sums[step]:
            raise RuntimeError(
                f"{self._arrays[0].name} changed after the field was built: rows {start} to {stop - 1} differ; "
                "build the field again"
            )
        if self._rows % self.size:
            log_weights = np.zeros(self.size, np.float32) if log_weights is None else log_weights.copy()
            log_weights[: step * self.size - start] = -np.inf
        return data, squares, log_weights, labels


class _Progress:
    """A bar on standard error for a pass that takes longer than a moment, where that is a terminal."""

    def __init__(self, name: str, total: int):
        self._name, self._total = name, total
        self._began = time.perf_counter()
        self._bar: Any = None

    def update(self, step: int) -> None:
        """Block `step` is handed over."""
        if step == 0:
            self.stop()
            self._began = time.perf_counter()
        elif step == self._total - 1:
            self.stop()
        elif self._bar is not None:
            self._bar.update(self._task, completed=step)
        elif time.perf_counter() - self._began > _PATIENCE and sys.stderr.isatty():
            self._start(step)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start(self, step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("streaming {task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        with contextlib.suppress(Exception):  # another bar of the caller's may hold the terminal
            bar.start()
            self._task = bar.add_task(self._name, total=self._total, completed=step)
            self._bar = bar


def _geometry(
    data: HostRows, horizontal_flip: bool, block_size: int | None
) -> tuple[jax.Array | None, np.ndarray, jax.Array]:
    """What `construct._geometry` gives: centre or None, square norms [n] float32, largest norm. One pass.

    Any point near the mean is as good a centre as the mean, so the mean of a sample is taken.
    """
    sample = _sample(data)
    mean = sample.mean(0)
    if horizontal_flip:
        mean = (mean + mean[:, ::-1]) / 2
    centre = None
    if np.sum(mean**2) > np.mean(np.sum((sample - mean).reshape(len(sample), -1) ** 2, 1)):
        centre = jnp.asarray(mean.reshape(-1), jnp.float32)
    squares = np.empty(data.shape[0], np.float32)
    size = block_rows(Rows(data, squares, None, None, *(None,) * 4), block_size)  # type: ignore[arg-type]
    blocks = _Blocks(data, size=size)
    largest = np.float32(0)
    for step in range(blocks.count):
        start = min(step * size, data.shape[0] - size)
        norms, most = square_norms(jnp.asarray(blocks.read(step)[0]), centre)
        squares[start : start + size] = norms
        largest = np.maximum(largest, most)  # NaN stays
    return centre, squares, jnp.asarray(largest)


def _sample(data: HostRows) -> np.ndarray:
    """Up to _SAMPLE rows as float64, in pieces from all over the data."""
    n = data.shape[0]
    pieces = -(-_SAMPLE // _PIECE)
    if n <= _SAMPLE:
        starts, length = [0], n
    else:
        starts, length = np.linspace(0, n - _PIECE, pieces).astype(int).tolist(), _PIECE
    return np.concatenate([to_float(data.read(start, start + length)) for start in starts]).astype(np.float64)
