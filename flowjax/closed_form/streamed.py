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
import weakref
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from flowjax.typing import Indices

from .construct import make_rows as make_rows_with
from .construct import square_norms
from .passes import Query
from .rows import Rows, to_float
from .sources import HostRows, OnHost, find, of_array, sample_pieces

BLOCK_BYTES = 2**26
INNER = 512
"""Rows that the device handles at once inside a block, unless the user gave `block_size`."""

_MOST_POINTS = 2**30
"""Row numbers, and the end of a last block, are int32."""

_PATIENCE = 2.0
"""Seconds before a pass shows that it is going on."""

_Parts = TypeVar("_Parts")
_Result = TypeVar("_Result")
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
    number = jax.ShapeDtypeStruct(data.shape[:1], np.float32)
    present = number, *(None if leaf is None else number for leaf in (weights, labels))
    size = block_rows(Rows(data, *present, *(None,) * 4), block_size)  # type: ignore[arg-type]
    sums: list[int] = []
    rows = make_rows_with(
        data,  # type: ignore[arg-type]
        weights,
        labels,
        data.shape[1:] if horizontal_flip else None,
        functools.partial(_geometry, size=size, sums=sums),  # type: ignore[arg-type]
    )
    on_host = [data, *(None if leaf is None else of_array(np.asarray(leaf)) for leaf in _per_row(rows)[1:])]
    blocks = _Blocks(*on_host, size=size, sums=sums if data.volatile else None)
    # The blocks hold everything; the others only stand for what is there.
    held = [blocks, *on_host[1:]]
    leaves = [
        None if rows is None else OnHost(what, rows.shape, rows.dtype)
        for what, rows in zip(held, on_host, strict=True)
    ]
    return Rows(*leaves, *_whole(rows))  # type: ignore[arg-type]


def take(rows: Rows, index: np.ndarray | jax.Array) -> jax.Array:
    """Points [*batch, *event] float32 by number [*batch], as in `rows.take`, every number that of a point.

    Raises:
        RuntimeError: the data cannot be read, or its file is not what it was.
        TypeError: under a trace.
    """
    held = rows.data.held  # type: ignore[union-attr]
    if held is None or isinstance(index, Tracer):
        raise TypeError("a streamed field reads rows on the host; ask for them outside jit")
    flat = np.asarray(index).reshape(-1)
    points = to_float(held.data.take(flat % rows.count))
    mirrored = flat >= rows.count
    if mirrored.any():
        points[mirrored] = points[mirrored][..., ::-1, :]
    return jnp.asarray(points.reshape(*index.shape, *points.shape[1:]))


def gather(rows: Rows, index: Indices) -> jax.Array:
    """Rows [k, *event] of these numbers as they are stored, read when the compiled function gets there.

    Files are compared with what they were; of an array in memory that somebody writes into, single rows are not.
    """
    shape = jax.ShapeDtypeStruct((index.shape[0], *rows.data.shape[1:]), rows.data.dtype)
    return jax.pure_callback(_take, shape, rows.data.number, index)  # type: ignore[union-attr]


def blocks(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """Where each block begins, and its rows; a block may begin with rows of the one before it."""
    held = rows.data.held  # type: ignore[union-attr]
    for step in range(held.count):
        yield held.start(step), Rows(*held.read(step), *_whole(rows))  # type: ignore[call-arg]


def on_device(leaf: Any) -> jax.Array | None:
    """All of an array of the field that has one number a row."""
    return None if leaf is None else jnp.asarray(leaf.held.read(0, leaf.shape[0]))


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
def reporting(rows: Rows, *queries: Any) -> Iterator[tuple[Rows, Callable[[_Result], _Result]]]:
    """One evaluation: gives the rows to evaluate and what waits for their result.

    Out of compiled code a failure to read comes wrapped, as one of several types, and after a logged traceback; out of
    here it comes as the sentence that it is, and only that. Evaluations may overlap: each has a pass of its own.
    """
    held = rows.data.held if is_streamed(rows) else None  # type: ignore[union-attr]
    if held is None or any(isinstance(query, Tracer) for query in queries):
        # In memory, or part of somebody else's compiled function or transform, which may run when this is over.
        yield rows, lambda result: result
        return
    one = _Pass(held, reports=True)

    def wait(result):
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(result)):
            held.kept.append(one)  # somebody else's function after all: its queries are constants
        return jax.block_until_ready(result)

    try:
        yield dataclasses.replace(rows, data=OnHost(one, rows.data.shape, rows.data.dtype)), wait  # type: ignore[arg-type]
    except Exception:
        if one.failure is None:
            raise
        raise one.failure from None


class _ReportedError(RuntimeError):
    """A failure to read inside compiled code that `reporting` raises again by itself."""


def _is_news(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], _ReportedError)


# JAX logs the traceback of every failed callback.
logging.getLogger("jax._src.callback").addFilter(_is_news)


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


def _take(number: ArrayLike, index: ArrayLike) -> np.ndarray:
    return find(int(number)).take(np.asarray(index))  # type: ignore[arg-type]


class _Blocks:
    """Blocks [size, ...] of host arrays by number.

    Attributes:
        given: what the user gave as data.
        size, count: rows of a block, and number of blocks.
        kept: passes that a compiled function of the user's refers to.
    """

    def __init__(
        self,
        data: HostRows,
        squares: HostRows | None = None,
        log_weights: HostRows | None = None,
        labels: HostRows | None = None,
        *,
        size: int,
        sums: list[int] | None = None,
    ):
        self.given = data.given
        self.size = size
        self.count = -(-data.shape[0] // size)
        self.kept: list[_Pass] = []
        self.data = data
        self._arrays = data, squares, log_weights, labels
        self._rows = data.shape[0]
        self._sums = sums
        self._shared = _Pass(self, reports=False)

    def read(self, step: int) -> tuple[Any, ...]:
        """What `load` gives, for compiled functions of the user's, which all share one pass."""
        return self._shared.read(step)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows of these numbers. Errors as for `load`."""
        return self.data.take(index)

    def start(self, step: int) -> int:
        """The first row of block `step`."""
        return min(step * self.size, self._rows - self.size)

    def load(self, step: int) -> tuple[Any, ...]:
        """Data, square norms, log weights and labels of block `step`; None for what is not there.

        Raises:
            RuntimeError: the data cannot be read, or is not what it was.
        """
        start = self.start(step)
        stop = start + self.size
        data, squares, log_weights, labels = (
            None if array is None else array.read(start, stop) for array in self._arrays
        )
        if self._sums is not None and data is not None and _sum(data) != self._sums[step]:
            raise RuntimeError(
                f"{self.data.name} changed after the field was built: rows {start} to {stop - 1} differ; "
                "build the field again"
            )
        if self._rows % self.size:
            log_weights = np.zeros(self.size, np.float32) if log_weights is None else log_weights.copy()
            log_weights[: step * self.size - start] = -np.inf
        return data, squares, log_weights, labels


def _sum(block: np.ndarray) -> int:
    return zlib.adler32(block.reshape(-1).view(np.uint8).data)


class _Pass:
    """One way through the blocks, the next one always on its way.

    Attributes:
        failure: of a read, where `reporting` asks for it.
    """

    def __init__(self, blocks: _Blocks, *, reports: bool):
        # The blocks hold the pass that compiled functions share, and must not live longer for it.
        self._blocks = blocks if reports else weakref.proxy(blocks)
        self._reports = reports
        self.failure: BaseException | None = None
        self._next: tuple[int, Future] | None = None
        self._lock = threading.Lock()
        self._progress = _Progress(blocks.data.name, blocks.count)

    def read(self, step: int) -> tuple[Any, ...]:
        """What `_Blocks.load` gives of block `step`."""
        blocks = self._blocks
        with self._failing():
            with self._lock:
                ahead, self._next = self._next, None
            block = ahead[1].result() if ahead is not None and ahead[0] == step else blocks.load(step)
            if step + 1 < blocks.count:
                with self._lock:
                    self._next = step + 1, _background.submit(blocks.load, step + 1)
        self._progress.update(step)
        return block

    def take(self, index: np.ndarray) -> np.ndarray:
        """What `_Blocks.take` gives."""
        with self._failing():
            return self._blocks.take(index)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._progress.stop()
            if not self._reports:
                raise
            self.failure = error
            raise _ReportedError(str(error)) from error


class _Progress:
    """A bar on standard error for a pass that takes longer than a moment, where that is a terminal."""

    def __init__(self, name: str, total: int):
        self._name, self._total = name, total
        self._began = time.perf_counter()
        self._bar: Any = None
        self._lock = threading.Lock()

    def update(self, step: int) -> None:
        """Block `step` is handed over."""
        with self._lock:
            if step == 0:
                self._stop()
                self._began = time.perf_counter()
            elif step == self._total - 1:
                self._stop()
            elif self._bar is not None:
                self._bar.update(self._task, completed=step)
            elif time.perf_counter() - self._began > _PATIENCE and sys.stderr.isatty():
                self._start(step)

    def stop(self) -> None:
        with self._lock:
            self._stop()

    def _stop(self) -> None:
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
    data: HostRows, mirrored: tuple[int, ...] | None, *, size: int, sums: list[int]
) -> tuple[jax.Array | None, np.ndarray, jax.Array]:
    """What `construct._geometry` gives: centre or None, square norms [n] float32, largest norm. One pass.

    Appends to `sums` what later passes compare the blocks of volatile data with.

    Any point near the mean is as good a centre as the mean, so the mean of a sample is taken.
    """
    sample = _sample(data)
    mean = sample.mean(0)
    if mirrored is not None:
        mean = (mean + mean[:, ::-1]) / 2
    centre = None
    if np.sum(mean**2) > np.mean(np.sum((sample - mean).reshape(len(sample), -1) ** 2, 1)):
        centre = jnp.asarray(mean.reshape(-1), jnp.float32)
    squares = np.empty(data.shape[0], np.float32)
    largest = np.float32(0)
    blocks = _Blocks(data, size=size)
    for step in range(blocks.count):
        start = min(step * size, data.shape[0] - size)
        block = blocks.read(step)[0]
        if data.volatile:
            sums.append(_sum(block))
        norms, most = square_norms(jnp.asarray(block), centre)
        squares[start : start + size] = norms
        largest = np.maximum(largest, most)  # NaN stays
    return centre, squares, jnp.asarray(largest)


def _sample(data: HostRows) -> np.ndarray:
    """Some rows as float64, in pieces from all over the data."""
    return np.concatenate([to_float(data.read(*piece)) for piece in sample_pieces(data.shape[0])]).astype(
        np.float64
    )
