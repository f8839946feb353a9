"""What samples are compared with: the features of a data set, computed once and kept on disk by content."""

import dataclasses
import functools
import hashlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .._files import replacing
from ..closed_form.basis import CACHE_VARIABLE, cache_folder
from .feature_set import FeatureSet
from .features import Features
from .frechet import FrechetStatistics


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The features of a set of pictures, with the name of both: made by `Reference.of`.

    Attributes:
        name: of the pictures, as reports print it.
        content: hash of the pictures, 32 hexadecimal digits.
        network: the feature space.
        features: [n, dim] of the pictures.
        moments: count, mean and scatter matrix of the features where they were found on disk; see `frechet`.
    """

    name: str
    content: str
    network: Features
    features: FeatureSet
    moments: FrechetStatistics | None = None

    @functools.cached_property
    def frechet(self) -> FrechetStatistics:
        """Count, mean and scatter matrix of the features: n·dim² operations where they were not found on disk."""
        if self.moments is not None:
            return self.moments
        return FrechetStatistics.empty(self.features.dim).update(self.features.values)

    @classmethod
    def of(cls, images: Any, network: Features, *, name: str) -> "Reference":
        """The reference that these pictures are.

        Features of a network with a fingerprint are kept in the folder that FLOWJAX_CACHE names ("off": nowhere),
        by default ~/.cache/flowjax: 4·n·dim bytes. They are found again by the content of the pictures and the
        fingerprint. A damaged file is computed anew and a folder that cannot be written to is done without, both
        with a warning.

        Args:
            images: [n, *event], whatever the network takes.
            network: the feature space; samples are measured in the same one.
            name: of the pictures with their split, for reports: "cifar10 train".

        Raises:
            ValueError: fewer than two pictures, or pictures that the network refuses.
        """
        images = np.asarray(images)
        if images.ndim < 2 or len(images) < 2:
            raise ValueError(
                f"a reference of shape {images.shape} is too small; give two pictures at least, [n, *event]"
            )
        content = content_hash(images)
        file = _file(content, network)
        if file is not None:
            try:
                return cls(name, content, network, *_read(file, len(images)))
            except (FileNotFoundError, NotADirectoryError):
                pass
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
                _warn(f"{file} cannot be used ({error}); its features are computed anew")
        values = np.asarray(network.features(images), np.float32)
        reference = cls(name, content, network, FeatureSet.empty(values.shape[1]).update(values))
        if file is not None:
            _write(file, values, reference.frechet)
        return reference


def content_hash(images: np.ndarray) -> str:
    """32 hexadecimal digits that change with any entry, the shape and the dtype."""
    digest = hashlib.blake2b(f"{images.dtype.str} {images.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(images).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _file(content: str, network: Features) -> Path | None:
    folder = cache_folder()
    if folder is None or network.fingerprint is None:
        return None
    digest = hashlib.blake2b(f"{content} {network.fingerprint}".encode(), digest_size=16).hexdigest()
    return folder / f"features-{digest}.npz"


def _read(file: Path, count: int) -> tuple[FeatureSet, FrechetStatistics]:
    with file.open("rb") as stream, np.load(stream) as stored:
        values, mean, scatter = stored["features"], stored["mean"], stored["scatter"]
    dim = values.shape[-1]
    found = [(part.dtype.name, part.shape) for part in (values, mean, scatter)]
    wanted = [("float32", (count, dim)), ("float64", (dim,)), ("float64", (dim, dim))]
    if found != wanted:
        raise ValueError(f"{found} instead of {wanted}")
    return FeatureSet.empty(dim).update(values), FrechetStatistics(count, mean, scatter)


def _write(file: Path, values: np.ndarray, frechet: FrechetStatistics) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part, part.open("wb") as stream:
            np.savez(stream, features=values, mean=frechet.mean, scatter=frechet.scatter)
    except OSError as error:
        _warn(
            f"the reference's features could not be kept in {file.parent} ({error}); next time they are computed anew. "
            f"The environment variable {CACHE_VARIABLE} names another folder, or is off"
        )


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
