"""Statistics of all processes together: each measures its own samples, and every one learns the whole."""

import dataclasses
import functools
import io
from typing import Any, TypeVar

import jax
import numpy as np

from .feature_set import FeatureSet
from .frechet import FrechetStatistics
from .score import SampleScore

_Statistics = TypeVar("_Statistics", bound=FrechetStatistics | FeatureSet | SampleScore)


def merge_processes(statistics: _Statistics) -> _Statistics:
    """What all processes of `jax.distributed` have seen, merged in their order: the same on every one.

    All of them must call this. With a single process the statistics are returned as they are.

    Raises:
        ValueError: processes with different numbers of features.
    """
    if jax.process_count() == 1:
        return statistics
    if isinstance(statistics, SampleScore):
        return dataclasses.replace(statistics, features=merge_processes(statistics.features))
    parts: list[Any] = [_unpacked(statistics, part) for part in _gathered(_packed(statistics))]
    return functools.reduce(lambda whole, part: whole.merge(part), parts)


def _packed(statistics: FrechetStatistics | FeatureSet) -> np.ndarray:
    """As bytes, [length] uint8: collectives would round float64 to float32."""
    stream = io.BytesIO()
    if isinstance(statistics, FeatureSet):
        np.savez(stream, values=statistics.values)
    else:
        np.savez(stream, count=statistics.count, mean=statistics.mean, scatter=statistics.scatter)
    return np.frombuffer(stream.getvalue(), np.uint8)


def _unpacked(like: Any, content: np.ndarray) -> Any:
    with np.load(io.BytesIO(content.tobytes())) as stored:
        if isinstance(like, FeatureSet):
            return FeatureSet.empty(stored["values"].shape[1]).update(stored["values"])
        return FrechetStatistics(int(stored["count"]), stored["mean"], stored["scatter"])


def _gathered(content: np.ndarray) -> list[np.ndarray]:
    """The bytes of every process, in their order."""
    from jax.experimental.multihost_utils import process_allgather

    lengths = np.asarray(process_allgather(np.int32(len(content)))).reshape(-1)
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(content)] = content
    everyone = np.asarray(process_allgather(padded))
    return [row[:length] for row, length in zip(everyone, lengths, strict=True)]
