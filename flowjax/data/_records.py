"""TFDS data sets stored as array_record: random access to rows on disk, without TensorFlow.

`stream` leaves the rows on disk, `load_records` (behind `load("tfds:…")`) reads them all.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flowjax._choices import nearest

from ._dataset import Dataset
from ._folder import fit_picture

_IMAGE_KEYS = ("image", "images", "point", "points")
_LABEL_KEYS = ("label", "labels")
_READ_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Records:
    """Rows on disk with the face that `batches` asks of a `Dataset`: for data too large for memory.

    `name`, `num_points`, `event_shape`, `dtype`, `num_classes`, `class_names`, `fingerprint`, `rows(index)`; and the
    `files` that the rows are in, of the folder `directory`.
    """

    name: str
    event_shape: tuple[int, ...]
    dtype: np.dtype
    num_classes: int | None
    class_names: tuple[str, ...] | None
    directory: Path
    files: tuple[Path, ...]
    _source: Any = dataclasses.field(repr=False)
    _keys: tuple[str, str | None] = dataclasses.field(repr=False)

    @property
    def num_points(self) -> int:
        """Number of training rows n."""
        return len(self._source)

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits over the metadata and the names and sizes of the files.

        Not the fingerprint of the same rows in memory, which would have to read them all. What `prepare` wrote
        holds the rows' own fingerprint in its metadata, so other rows give another value here too.
        """
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted(self.directory.iterdir()):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            if path.suffix in (".json", ".txt"):
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Read the rows of these numbers: `image` [b, *event] and, where there are classes, `label` int32 [b]."""
        return self._read(index)

    def _read(self, index: Iterable[int], image_size: int | None = None) -> dict[str, np.ndarray]:
        try:
            elements = self._source.__getitems__([int(i) for i in index])
        except (
            Exception
        ) as error:  # a missing or damaged file surfaces from several libraries, each in its own way
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(f"{self.directory} is damaged ({reason}); prepare the data set again") from error
        image, label = self._keys
        pictures = [np.asarray(e[image], self.dtype) for e in elements]
        read = {
            "image": np.stack(pictures if image_size is None else [_fit(p, image_size) for p in pictures])
        }
        if label is not None:
            read["label"] = np.array([e[label] for e in elements], np.int32)
        return read

    def __repr__(self) -> str:
        classes = "no classes" if self.num_classes is None else f"{self.num_classes} classes"
        shape = [self.num_points, *self.event_shape]
        return f"Records({self.name!r}: {self.dtype}{shape} on disk, {classes})"


def stream(source: str) -> Records:
    """Open `tfds:NAME_OR_DIR` without reading it: what `batches` reads row by row as it needs them.

    Raises:
        FileNotFoundError: no such data set, or no array_record files.
        ValueError: rows of several shapes (use `load` with `image_size`), or no picture in them.
    """
    kind, _, place = str(source).partition(":")
    if kind != "tfds" or not place:
        raise ValueError(
            f"only 'tfds:NAME_OR_DIR' can be read row by row, got {source!r}; use load for the others"
        )
    return _open(_builder(place), "train", place)


def load_records(place: str, image_size: int | None = None) -> Dataset:
    """Read a prepared TFDS data set: its `train` split and, where present, `test`.

    Args:
        place: the folder that holds `dataset_info.json`, or the name (NAME, NAME/CONFIG, NAME/CONFIG/VERSION) of a
            data set prepared under `TFDS_DATA_DIR` (default `~/tensorflow_datasets`); the newest if there are several.
        image_size: resize and cut pictures to this size; needed where their sizes differ.
    """
    builder = _builder(place)
    arrays: dict[str, Any] = {}
    for split, prefix in (("train", ""), ("test", "test_")):
        if split == "test" and split not in builder.info.splits:
            continue
        records = _open(builder, split, place, image_size)
        if not records.num_points:
            raise ValueError(f"tfds:{place} has an empty {split} split; prepare it again")
        images = np.empty((records.num_points, *records.event_shape), records.dtype)
        labels = np.empty(records.num_points, np.int32)
        for start in range(0, len(images), _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, len(images)))
            read = records._read(rows, image_size)
            images[start : rows.stop] = read["image"]
            labels[start : rows.stop] = read.get("label", -1)
        arrays[f"{prefix}images"] = images
        # TFDS gives rows whose class is kept secret the label −1.
        arrays[f"{prefix}labels"] = None if records.num_classes is None or np.all(labels == -1) else labels
        if split == "train" and arrays["labels"] is not None:
            arrays["class_names"] = records.class_names
    if arrays["labels"] is None:
        arrays["test_labels"] = None
    return Dataset(builder.info.name, **arrays)


def _fit(pixels: np.ndarray, image_size: int) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return np.asarray(fit_picture(picture, image_size)).reshape(image_size, image_size, -1)


def _builder(place: str) -> Any:
    import tensorflow_datasets as tfds

    path = Path(place).expanduser()
    if (path / "dataset_info.json").is_file():
        try:
            return tfds.builder_from_directory(path)
        except (
            Exception
        ) as error:  # damaged metadata fails in many ways: JSON, protocol buffers, missing keys
            raise ValueError(
                f"the metadata in {path} is damaged ({error}); prepare the data set again"
            ) from None
    if path.is_dir():
        below = sorted(found.parent for found in path.glob("**/dataset_info.json"))
        hint = (
            f"did you mean 'tfds:{below[-1]}'?"
            if below
            else "write one with `flowjax data SOURCE --prepare DIR`"
        )
        raise FileNotFoundError(f"{path} holds no prepared TFDS data set (no dataset_info.json); {hint}")
    home = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    known = sorted(p.name for p in home.iterdir() if p.is_dir()) if home.is_dir() else []
    below = _prepared_below(home / place)
    if below:
        return tfds.builder_from_directory(below[-1])
    near = nearest(place, known)
    raise FileNotFoundError(
        f"there is neither a folder {place!r} nor a data set of that name under {home}; "
        + (
            f"did you mean 'tfds:{near}'?"
            if near
            else f"prepare it once with tensorflow_datasets.builder({place!r}, "
            "file_format='array_record').download_and_prepare()"
        )
    )


def _prepared_below(folder: Path) -> list[Path]:
    """Prepared data sets under NAME/VERSION, NAME/CONFIG/VERSION and the like, the newest last."""
    found = [info for depth in range(4) for info in folder.glob("*/" * depth + "dataset_info.json")]
    return [info.parent for info in sorted(found, key=lambda info: (info.stat().st_mtime, info))]


def _open(builder: Any, split: str, place: str, image_size: int | None = None) -> Records:
    import tensorflow_datasets as tfds

    if split not in builder.info.splits:
        have = ", ".join(builder.info.splits) or "none"
        raise ValueError(f"tfds:{place} has no split {split!r}; its splits are: {have}")
    try:
        source = builder.as_data_source(split)
    except NotImplementedError:
        raise ValueError(
            f"tfds:{place} is stored as {builder.info.file_format.value}, which needs TensorFlow; prepare it with "
            "file_format='array_record'"
        ) from None
    features = builder.info.features
    image = next((key for key in _IMAGE_KEYS if key in features), None)
    if image is None:
        raise ValueError(f"tfds:{place} has no feature 'image'; its features are {', '.join(features)}")
    label = next(
        (k for k in _LABEL_KEYS if k in features and isinstance(features[k], tfds.features.ClassLabel)), None
    )
    # `.dtype` would ask TensorFlow; `.np_dtype` does not.
    shape, dtype = features[image].shape, np.dtype(features[image].np_dtype)
    if image_size is not None:
        if dtype != np.uint8 or len(shape) != 3 or shape[-1] not in (1, 3):
            raise ValueError(
                f"image_size={image_size} needs uint8 pictures with 1 or 3 channels, tfds:{place} has {dtype} rows of "
                f"shape {shape}"
            )
        shape = (image_size, image_size, shape[-1])
    elif None in shape:
        raise ValueError(f"tfds:{place} has pictures of several sizes {shape}; load it with image_size")
    names = None
    if label is not None and (builder.data_path / f"{label}.labels.txt").exists():
        names = tuple(features[label].names)
    return Records(
        name=builder.info.name,
        event_shape=tuple(shape),
        dtype=dtype,
        num_classes=None if label is None else features[label].num_classes,
        class_names=names,
        directory=Path(builder.data_path),
        files=tuple(map(Path, builder.info.splits[split].filepaths)),
        _source=source,
        _keys=(image, label),
    )
