"""NumPy archives: `images`, `labels`, and the test pair, under the names people use."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ._dataset import Dataset

_KEYS = {
    "images": ("images", "train_images", "x_train", "X_train", "data", "x", "X", "arr_0"),
    "labels": ("labels", "train_labels", "y_train", "label", "targets", "y"),
    "test_images": ("test_images", "x_test", "X_test"),
    "test_labels": ("test_labels", "y_test"),
    "class_names": ("class_names",),
}


def load_npz(file: str | Path) -> Dataset:
    """An archive written by `numpy.savez` or `numpy.savez_compressed`.

    Keys: `images` (also `train_images`, `x_train`, `data`, `x`), and where present `labels` (`train_labels`,
    `y_train`, `y`), `test_images` (`x_test`), `test_labels` (`y_test`), `class_names`. uint8 pictures without a
    channel axis get one; labels of shape [n, 1] lose theirs. Nothing in the file is executed (no pickles).
    Floating-point values are taken as they are: bring pictures to [−1, 1] yourself, or store uint8.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an archive, damaged, pickled objects, or no such keys (those it has are listed).
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; write 'npz:FILE' with the path of a NumPy archive")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no NumPy archive; write it with numpy.savez({path.stem!r}, images=…, labels=…)"
        )
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = list(archive.keys())
            for what, spellings in _KEYS.items():
                key = next((k for k in spellings if k in keys), None)
                if key is not None:
                    arrays[what] = _read(archive, key, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); write or fetch it again") from None
    if "images" not in arrays:
        raise ValueError(
            f"{path} has no key 'images' (or {', '.join(_KEYS['images'][1:5])}); its keys are "
            f"{', '.join(keys) or 'none at all'}"
        )
    for what in ("images", "test_images"):
        if what in arrays and arrays[what].dtype == np.uint8 and arrays[what].ndim == 3:
            arrays[what] = arrays[what][..., None]
    for what in ("labels", "test_labels"):
        if what in arrays and arrays[what].ndim == 2 and arrays[what].shape[1] == 1:
            arrays[what] = arrays[what][:, 0]
    names = arrays.pop("class_names", None)
    try:
        return Dataset(path.stem, class_names=None if names is None else tuple(map(str, names)), **arrays)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None


def _read(archive, key: str, path: Path) -> np.ndarray:
    try:
        array = archive[key]
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(
                f"{path}: {key!r} holds pickled objects, which could run code when read; store plain numbers"
            ) from None
        raise ValueError(f"{path}: {key!r} is damaged ({error}); write or fetch it again") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {key!r} is no NumPy array; write the archive with numpy.savez")
    return array
