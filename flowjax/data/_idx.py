"""The IDX files of the MNIST family (Y. LeCun, C. Cortes, C. Burges), gzipped or not.

A file is: two zero bytes, one byte for the element type (8 = unsigned byte), one byte for the number of axes,
each axis as a big-endian uint32, then the elements, last axis fastest, and nothing after them.
"""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from ._dataset import Dataset

_UNSIGNED_BYTE = 8
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """One IDX file of unsigned bytes with `num_axes` axes, as a uint8 array.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an IDX file, of another type or number of axes, cut short, or with bytes after its end.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            # MNIST is handed round both as .gz and unpacked under either name: the first bytes decide.
            content = gzip.GzipFile(fileobj=raw).read() if zipped else raw.read()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is a damaged gzip file ({error}); fetch it again") from None
    header = 4 + 4 * num_axes
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(
            f"{path} is no IDX file: it starts with {content[:4].hex(' ') or 'nothing'}, not with 00 00"
        )
    if content[2] != _UNSIGNED_BYTE or content[3] != num_axes:
        raise ValueError(
            f"{path} holds element type {content[2]} with {content[3]} axes where type {_UNSIGNED_BYTE} (unsigned "
            f"bytes) with {num_axes} is wanted; are images and labels swapped?"
        )
    if len(content) < header:
        raise ValueError(f"{path} is cut short inside its header, at byte {len(content)} of {header}")
    shape = tuple(int(a) for a in np.frombuffer(content, ">u4", num_axes, 4))
    wanted = math.prod(shape)
    if len(content) - header != wanted:
        state = "is cut short" if len(content) - header < wanted else "has bytes after its end"
        raise ValueError(
            f"{path} {state}: {' × '.join(map(str, shape))} elements need {wanted} bytes after the header, "
            f"{len(content) - header} are there; fetch it again"
        )
    return np.frombuffer(content, np.uint8, wanted, header).reshape(shape)


def load_idx(directory: str | Path, *, name: str | None = None, class_names=None) -> Dataset:
    """`train-images-idx3-ubyte[.gz]`, `train-labels-idx1-ubyte[.gz]` and, where present, the `t10k-` pair.

    Returns:
        uint8 images [n, 28, 28, 1] (whatever the height and width), labels, and the test split.
    """
    directory = Path(directory).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(
            f"there is no folder {directory}; write 'idx:DIR' with the folder of the IDX files"
        )
    images, labels = _read_pair(directory, "train")
    test_images = test_labels = None
    if _find(directory, "t10k", "images", 3) or _find(directory, "t10k", "labels", 1):
        test_images, test_labels = _read_pair(directory, "t10k")
    return Dataset(name or directory.resolve().name, images, labels, class_names, test_images, test_labels)


def load_installed(name: str) -> Dataset:
    """MNIST or Fashion-MNIST from the places where packages and other libraries put it."""
    places = [
        Path("data") / name,
        Path("data") / {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name] / "raw",  # torchvision
        Path.home() / ".keras" / "datasets" / name,
        Path("/usr/share/datasets") / name,  # Debian
    ]
    if "FLOWJAX_DATA" in os.environ:
        places.insert(0, Path(os.environ["FLOWJAX_DATA"]) / name)
    for place in places:
        if _find(place, "train", "images", 3):
            names = _FASHION if name == "fashion-mnist" else tuple("0123456789")
            return load_idx(place, name=name, class_names=names)
    package = "; on Debian and Ubuntu: apt install dataset-fashion-mnist" if name == "fashion-mnist" else ""
    raise FileNotFoundError(
        f"{name} is in none of {', '.join(map(str, places))}; name the folder of its four IDX files with "
        f"'idx:DIR'{package}"
    )


def _read_pair(directory: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for what, num_axes in (("images", 3), ("labels", 1)):
        path = _find(directory, split, what, num_axes)
        if path is None:
            raise FileNotFoundError(
                f"{directory} holds no {split}-{what}-idx{num_axes}-ubyte, gzipped or not"
            )
        arrays.append(read_idx(path, num_axes))
    images, labels = arrays
    if len(images) != len(labels):
        raise ValueError(
            f"{directory}: {len(images)} {split} images but {len(labels)} labels; files of two data sets?"
        )
    return images[..., None], labels


def _find(directory: Path, split: str, what: str, num_axes: int) -> Path | None:
    for dot in "-.":
        for suffix in ("", ".gz"):
            path = directory / f"{split}-{what}{dot}idx{num_axes}-ubyte{suffix}"
            if path.is_file():
                return path
    return None
