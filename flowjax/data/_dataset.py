"""A data set in memory: pictures or points, perhaps with classes, checked once and then trusted."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Rows of one shape, with or without classes. Every value is checked at construction.

    Args:
        name: what to call it in titles and file names.
        images: [n, *event], n ≥ 1. uint8 pixels (they mean y/127.5 − 1) or real numbers, kept as float32.
        labels: integers [n] in 0 … num_classes − 1, kept as int32; None without classes.
        class_names: one name a class; None if classes have numbers only.
        test_images: rows held out by whoever made the data set, of the same shape and dtype; never trained on.
        test_labels: their classes.

    Raises:
        TypeError: complex, text, or integer (other than uint8) rows; labels that are not integers.
        ValueError: no rows, NaN, inf, labels of another length or out of range, names that do not fit.

    The arrays are read-only views: one data set can be shared by a field, a pipeline and a report.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None

    def __post_init__(self):
        names = None if self.class_names is None else _check_class_names(self.class_names)
        images = check_rows(self.images, "images")
        labels = _check_labels(self.labels, "labels", len(images), names)
        if names is not None and labels is None:
            raise ValueError(
                f"class_names names {len(names)} classes but there are no labels; give labels too"
            )
        test_images = None
        if self.test_images is not None:
            test_images = check_rows(self.test_images, "test_images")
            if test_images.shape[1:] != images.shape[1:] or test_images.dtype != images.dtype:
                raise ValueError(
                    f"test_images are {test_images.dtype} of shape {test_images.shape[1:]} but images are "
                    f"{images.dtype} of shape {images.shape[1:]}; bring both to one form"
                )
        elif self.test_labels is not None:
            raise ValueError("test_labels came without test_images; give both or neither")
        if labels is None and self.test_labels is not None:
            raise ValueError("test_labels came without labels; give labels too, or leave test_labels out")
        count = 0 if test_images is None else len(test_images)
        test_labels = _check_labels(self.test_labels, "test_labels", count, names)
        checked = (str(self.name), images, labels, names, test_images, test_labels)
        for field, value in zip(dataclasses.fields(self), checked, strict=True):
            if isinstance(value, np.ndarray):
                value = value.view()
                value.flags.writeable = False
            object.__setattr__(self, field.name, value)

    @property
    def num_points(self) -> int:
        """Number of training rows n."""
        return len(self.images)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.images.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Storage type of the rows: uint8 or float32."""
        return self.images.dtype

    @functools.cached_property
    def num_classes(self) -> int | None:
        """How many classes there are: as many as names, or one more than the largest label. None without labels."""
        if self.labels is None:
            return None
        if self.class_names is not None:
            return len(self.class_names)
        largest = int(self.labels.max())
        return 1 + (largest if self.test_labels is None else max(largest, int(self.test_labels.max())))

    @property
    def class_counts(self) -> list[int] | None:
        """Training rows of every class; None without labels."""
        if self.labels is None:
            return None
        return np.bincount(self.labels, minlength=self.num_classes or 0).tolist()

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that change with any training row, label or number of classes.

        Neither the name nor the test rows take part, so a data set keeps its fingerprint when it is prepared on
        disk and read back. Resuming compares it.
        """
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.images, self.labels):
            digest.update(b"none" if array is None else f"{array.dtype.str}{array.shape}".encode())
            if array is not None:
                digest.update(array.data)
        digest.update(f"classes {self.num_classes}".encode())
        return digest.hexdigest()

    def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers: `image` [b, *event] and, where there are classes, `label` int32 [b]."""
        picked = {"image": self.images[index]}
        if self.labels is not None:
            picked["label"] = self.labels[index]
        return picked

    def __repr__(self) -> str:
        classes = "no classes" if self.num_classes is None else f"{self.num_classes} classes"
        test = "" if self.test_images is None else f", {len(self.test_images)} test rows"
        return f"Dataset({self.name!r}: {self.dtype}{list(self.images.shape)}, {classes}{test})"


def check_rows(rows: Any, what: str) -> np.ndarray:
    """Rows as a C-contiguous uint8 or float32 array [n, *event], or the error that says what is wrong."""
    try:
        array = np.asarray(rows)
    except ValueError:
        raise ValueError(f"{what} are ragged: every row must have the same shape") from None
    if array.dtype.kind == "c":
        raise TypeError(f"{what} are complex ({array.dtype}); stack real and imaginary part as two channels")
    if array.dtype.kind in "iub" and array.dtype != np.uint8:
        raise TypeError(
            f"{what} are {array.dtype}; store pixels 0..255 as uint8 (.astype(numpy.uint8)) and other numbers as "
            "float32"
        )
    if array.dtype != np.uint8 and not jax.dtypes.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{what} of dtype {array.dtype} are not numbers; give uint8 pixels or floating point")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{what} must have shape [n, *event] with at least one row, got shape {array.shape}")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    # One sum finds out whether all is well without a second array: it is finite unless a row is not (or the
    # sum overflows, which the row-by-row look then clears up).
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(array.sum(dtype=np.float64))
    if suspicious:
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        raise ValueError(
            f"{what} hold NaN, inf or numbers too large for float32 in {bad.size} of {len(array)} rows, the first is "
            f"row {bad[0]}; remove or repair those rows"
        )
    return array


def _check_labels(labels: Any, what: str, count: int, names: Sequence[str] | None) -> np.ndarray | None:
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{what} must be integers, got dtype {array.dtype}; number the classes 0, 1, 2, …")
    if array.shape != (count,):
        raise ValueError(f"{what} must have one entry a row, shape ({count},), got shape {array.shape}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise ValueError(f"{what} must lie in 0 … num_classes − 1, got values from {low} to {high}")
    if names is not None and high >= len(names):
        raise ValueError(
            f"{what} reach {high} but there are only {len(names)} class_names (0 … {len(names) - 1})"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


def _check_class_names(names: Any) -> tuple[str, ...]:
    if isinstance(names, str):
        raise TypeError(f"class_names must be a sequence of names, got the single text {names!r}")
    names = tuple(str(name) for name in names)
    if not names:
        raise ValueError("class_names is empty; give one name a class, or None")
    twice = [name for k, name in enumerate(names) if name in names[:k]]
    if twice:
        raise ValueError(f"class_names holds {twice[0]!r} twice; names must differ")
    untidy = [name for name in names if not name.strip() or name != name.strip() or "\n" in name]
    if untidy:
        raise ValueError(
            f"class name {untidy[0]!r} is blank, or has blanks at its ends or a line break; tidy it"
        )
    return names
