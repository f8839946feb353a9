"""Folders of pictures: one subfolder a class, brought to one size."""

import concurrent.futures
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ._dataset import Dataset

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def load_folder(directory: str | Path, image_size: int | None = None) -> Dataset:
    """Every picture below a folder, in the order of their paths.

    If all of them lie in subfolders, the subfolders are the classes, in alphabetical order; if the subfolders
    are `train` and `test`, they are the two splits and what lies below them the classes. Grey pictures only give
    one channel, otherwise all become RGB; transparent parts are laid on white.

    Args:
        image_size: resize the short side to this many pixels and cut the middle out. Without it all pictures must
            have one size.

    Returns:
        uint8 images [n, height, width, 1 or 3].

    Raises:
        FileNotFoundError: no folder, or no pictures in it.
        ValueError: sizes differ and `image_size` is missing; a picture that cannot be decoded, named.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; write 'images:DIR' with a folder of pictures")
    files = _find(root)
    if not files:
        raise FileNotFoundError(
            f"{root} holds no pictures ({', '.join(sorted(_SUFFIXES))}), nor do its subfolders"
        )
    splits = {"train": root / "train", "test": root / "test"}
    first = {path.relative_to(root).parts[0] for path in files}
    if first != set(splits):
        splits = {"train": root}
    parts = {split: [f for f in files if f.is_relative_to(base)] for split, base in splits.items()}
    classes = {split: _classes(parts[split], base) for split, base in splits.items()}
    names = None
    if all(c is not None for c in classes.values()):
        names = tuple(sorted({name for c in classes.values() for name in c or ()}))
    number = {name: k for k, name in enumerate(names or ())}
    pictures = _decode(files, image_size)
    arrays: dict[str, np.ndarray] = {}
    row = {path: k for k, path in enumerate(files)}
    for split, prefix in (("train", ""), ("test", "test_")):
        if split in parts:
            whole = len(parts[split]) == len(files)
            arrays[f"{prefix}images"] = pictures if whole else pictures[[row[path] for path in parts[split]]]
            if names is not None:
                arrays[f"{prefix}labels"] = np.array([number[c] for c in classes[split] or ()], np.int32)
    return Dataset(root.resolve().name, class_names=names, **arrays)


def fit_picture(picture: Any, image_size: int) -> Any:
    """A Pillow image resized to `image_size` on its short side, the middle square cut out of it."""
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, (image_size, image_size), Image.Resampling.LANCZOS)


def _find(root: Path) -> list[Path]:
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        # Class folders are often links, and links can lead in circles.
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in files
            if Path(name).suffix.lower() in _SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def _classes(files: list[Path], base: Path) -> list[str] | None:
    """The subfolder that each file lies in, or None if one lies in none."""
    parts = [path.relative_to(base).parts for path in files]
    return [p[0] for p in parts] if all(len(p) > 1 for p in parts) else None


def _decode(files: list[Path], image_size: int | None) -> np.ndarray:
    """All pictures as one uint8 array. First their headers (quick, decides the form), then their pixels."""
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        forms = list(pool.map(lambda path: _guarded(_form, path), files))
        grey = all(form[1] for form in forms)
        if image_size is None:
            for path, (size, _) in zip(files, forms, strict=True):
                if size != forms[0][0]:
                    raise ValueError(
                        f"pictures have several sizes ({files[0]} is {'×'.join(map(str, forms[0][0]))}, {path} is "
                        f"{'×'.join(map(str, size))}); give image_size to bring them to one"
                    )
            width, height = forms[0][0]
        else:
            width = height = image_size
        pixels = np.empty((len(files), height, width, 1 if grey else 3), np.uint8)

        def read(k: int) -> None:
            pixels[k] = _guarded(lambda path: _pixels(path, grey, image_size), files[k])

        for _ in pool.map(read, range(len(files))):
            pass
    return pixels


def _form(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height as one sees it, and whether it is grey."""
    from PIL import Image

    with Image.open(path) as picture:
        size = picture.size
        if picture.getexif().get(0x0112, 1) >= 5:  # orientations 5..8 lie on their side
            size = (size[1], size[0])
        return size, picture.mode in ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L")


def _pixels(path: Path, grey: bool, image_size: int | None) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(path) as picture:
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I;16"):
            # Pillow would clip sixteen bits to eight instead of scaling them.
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("L" if grey else "RGB")
        if image_size is not None:
            picture = fit_picture(picture, image_size)
        array = np.asarray(picture)
        return array.reshape(*array.shape[:2], -1)


def _guarded(read: Callable[[Path], Any], path: Path) -> Any:
    from PIL import Image

    # What Pillow raises depends on the format; UserWarning is for programs that turn warnings into errors.
    damage = (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        UserWarning,
        Image.DecompressionBombError,
    )
    try:
        return read(path)
    except damage as error:
        raise ValueError(f"picture {path} cannot be decoded ({error}); repair or remove it") from None
