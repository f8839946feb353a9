"""`load`: from the name of a source to a data set."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from flowjax._choices import check_choice, hint, nearest

from ._dataset import Dataset
from ._folder import load_folder
from ._idx import load_idx, load_installed
from ._npz import load_npz
from ._patches import patches
from ._records import load_records
from ._synthetic import digits, eight_gaussians, two_moons

_NAMED: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "two-moons": two_moons,
    "eight-gaussians": eight_gaussians,
    "mnist": lambda: load_installed("mnist"),
    "fashion-mnist": lambda: load_installed("fashion-mnist"),
    "patches": patches,
}
_PLACES: dict[str, Callable[..., Dataset]] = {
    "idx": load_idx,
    "npz": load_npz,
    "images": load_folder,
    "tfds": load_records,
}

SOURCES: dict[str, str] = {
    "digits": "1 797 handwritten digits, 8×8, embedded (scikit-learn)",
    "two-moons": "synthetic: two interleaved half circles in the plane",
    "eight-gaussians": "synthetic: eight blobs on a circle in the plane",
    "patches": "50 000 crops of photographs, 32×32 in colour, embedded (scikit-image: the extra patches)",
    "mnist": "MNIST where it is installed, else use idx:DIR",
    "fashion-mnist": "Fashion-MNIST where it is installed (Debian: dataset-fashion-mnist)",
    "idx:DIR": "the four files of the MNIST family, gzipped or not",
    "npz:FILE": "NumPy archive with images and, if you have them, labels",
    "images:DIR": "pictures, one subfolder a class",
    "tfds:NAME_OR_DIR": "a TFDS data set prepared as array_record, read without TensorFlow",
}
"""Every source and what it is, for help texts."""


Split = Literal["train", "test"]


def load(
    source: str,
    *,
    split: Split = "train",
    num_points: int | None = None,
    seed: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Load a data set into memory.

    Args:
        source: a name (`digits`, `two-moons`, `eight-gaussians`, `patches`, `mnist`, `fashion-mnist`) or a kind and a
            place (`idx:DIR`, `npz:FILE`, `images:DIR`, `tfds:NAME_OR_DIR`); `SOURCES` describes them.
        split: "train" is the data set whole, its held-out rows beside it as `test_images` and `test_labels`; "test"
            are the held-out rows alone, as the `images` and `labels` of a data set.
        num_points: how many points of a synthetic set (default 2 000), or training crops of `patches` (50 000).
        seed: of a synthetic set or of `patches` (default 0).
        image_size: `images:` and `tfds:` only: resize the short side to this many pixels and cut out the middle.

    Returns:
        A `Dataset`: `images` uint8 as stored, or float32 (`digits` in [−1, 1]), channels last.

    Raises:
        ValueError: an unknown source (with the nearest match), an option that the source does not have, no held-out
            rows where they are asked for, or a damaged file, named.
        FileNotFoundError: nothing at that place.

    Example:
        >>> load("digits")
        Dataset('digits': float32[1797, 8, 8, 1], 10 classes)
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"source must be text such as 'digits' or 'npz:FILE', got {type(source).__name__}")
    check_choice("split", split, get_args(Split))
    source = str(source).strip()
    kind, colon, place = source.partition(":")
    if source in _NAMED:
        loader, arguments = _NAMED[source], ()
    elif colon and kind in _PLACES:
        if not place:
            raise ValueError(f"{source!r} names no place; write for example {_example(kind)!r}")
        loader, arguments = _PLACES[kind], (place,)
    else:
        raise ValueError(f"unknown data set {source!r}; {_hint(source)}")
    options = {"num_points": num_points, "seed": seed, "image_size": image_size}
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in inspect.signature(loader).parameters:
            takers = [s for s, f in (_NAMED | _PLACES).items() if name in inspect.signature(f).parameters]
            raise ValueError(f"{name}={value} does not apply to {source!r}, only to {' and '.join(takers)}")
        check_integer(name, value, least=0 if name == "seed" else 1)
    dataset = loader(*arguments, **given)
    return dataset if split == "train" else _held_out(dataset, source)


def _held_out(dataset: Dataset, source: str) -> Dataset:
    """The test rows as a data set of their own."""
    if dataset.test_images is None:
        raise ValueError(
            f"{source!r} has no held-out rows; hold some of its rows out yourself, or take a source that has them, "
            "such as 'fashion-mnist' or 'patches'"
        )
    names = None if dataset.test_labels is None else dataset.class_names
    return Dataset(dataset.name, dataset.test_images, dataset.test_labels, names)


def check_integer(name: str, value: object, least: int) -> None:
    """TypeError or ValueError unless `value` is a whole number of at least `least`."""
    # anything with __index__ is an integer (NumPy's too), but True is no number of points
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _example(kind: str) -> str:
    return next(name for name in SOURCES if name.startswith(f"{kind}:"))


def _hint(source: str) -> str:
    path = Path(source).expanduser()
    if path.is_dir():
        found = "idx" if any(path.glob("train-images*")) else "images"
        found = "tfds" if (path / "dataset_info.json").exists() else found
        return f"to read that folder, write '{found}:{source}'"
    if path.suffix == ".npz":
        return f"to read a NumPy archive, write 'npz:{source}'"
    kind, colon, place = source.partition(":")
    if colon:
        near = nearest(kind, _PLACES)
        if near:
            return f"did you mean '{near}:{place}'?"
    return hint(source, _NAMED) if nearest(source, _NAMED) else hint(source, SOURCES)
