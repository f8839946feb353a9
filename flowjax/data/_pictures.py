"""Pictures of rows: a grid of images, or a scatter plot of points in the plane."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowjax._files import replacing

_GAP = 2  # pixels between two pictures
_SMALLEST_TILE = 64  # pictures with a shorter side are enlarged by a whole factor, up to this
_WIDEST = 2048
_BACKGROUND = 48


def contact_sheet(
    images: Any,
    path: str | Path | None = None,
    columns: int | None = None,
    *,
    labels: Any = None,
) -> np.ndarray:
    """Draw rows as one picture.

    Args:
        images: [n, height, width, 1 or 3] or [n, height, width], uint8, or floating point in [−1, 1] (clipped; NaN
            is black); or points [n, 2], drawn as a scatter plot.
        path: where to save it too (see `save_picture`).
        columns: pictures in a row; the default makes the grid about square.
        labels: integers [n]: colours of the points. Pictures do not use them.

    Returns:
        uint8 [H, W, 3]. Small pictures are enlarged without smoothing.

    Raises:
        TypeError: rows that are neither uint8 nor floating point.
        ValueError: no rows, or of a shape that is neither pictures nor points; labels of another length.
    """
    array = np.asarray(images)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"there is nothing to draw in an array of shape {array.shape}")
    if array.dtype != np.uint8 and not jax.dtypes.issubdtype(array.dtype, np.floating):
        raise TypeError(f"pictures must be uint8 or floating point, got {array.dtype}")
    if labels is not None and np.shape(labels) != array.shape[:1]:
        raise ValueError(f"labels must have shape {array.shape[:1]}, one a row, got {np.shape(labels)}")
    if not drawable(array.shape[1:]):
        raise ValueError(
            f"rows of shape {array.shape[1:]} are neither pictures [height, width, 1 or 3] nor points [2]; there is no "
            "way to draw them"
        )
    if array.ndim == 2:
        sheet = _scatter(array.astype(np.float64), None if labels is None else np.asarray(labels))
    else:
        sheet = _grid(_to_pixels(array if array.ndim == 4 else array[..., None]), columns)
    if path is not None:
        save_picture(sheet, path)
    return sheet


def drawable(event_shape: tuple[int, ...]) -> bool:
    """Whether `contact_sheet` can draw rows of this shape: pictures with 1 or 3 channels, or points in the plane."""
    return (
        tuple(event_shape) == (2,)
        or len(event_shape) == 2
        or (len(event_shape) == 3 and event_shape[-1] in (1, 3))
    )


def save_picture(picture: np.ndarray, path: str | Path) -> Path:
    """Write uint8 [H, W, 3] to a file; its ending says the format (`.png`, `.jpg`, `.webp`). Whole or not at all.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: an unknown ending.
    """
    from PIL import Image

    path = Path(path).expanduser()
    check_picture_path(path)
    image = Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8))
    with replacing(path) as part:
        image.save(part, format=Image.registered_extensions()[path.suffix.lower()])
    return path


def check_picture_path(path: str | Path) -> Path:
    """The path, if a picture could be written there; else the error that says why not."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{path} must end in .png, .jpg or .webp to be a picture")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    return path


def _to_pixels(images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        values = np.nan_to_num(images.astype(np.float32), nan=-1.0).clip(-1, 1)
        images = np.round((values + 1) * 127.5).astype(np.uint8)
    return np.broadcast_to(images, (*images.shape[:3], 3))


def _grid(pixels: np.ndarray, columns: int | None) -> np.ndarray:
    n, height, width, _ = pixels.shape
    if columns is None:
        columns = int(np.ceil(np.sqrt(n * height / width)))
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, n)
    lines = -(-n // columns)
    factor = max(1, min(-(-_SMALLEST_TILE // min(height, width)), _WIDEST // (columns * width + _GAP)))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor + _GAP, width * factor + _GAP
    sheet = np.full((lines * height + _GAP, columns * width + _GAP, 3), _BACKGROUND, np.uint8)
    for k, picture in enumerate(pixels):
        top, left = (k // columns) * height + _GAP, (k % columns) * width + _GAP
        sheet[top : top + height - _GAP, left : left + width - _GAP] = picture
    return sheet


def _scatter(points: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    finite = np.isfinite(points).all(axis=1)
    points = points[finite]
    extent = np.ptp(points, axis=0) if len(points) else np.ones(2)
    ratio = float(np.clip((extent[1] + 1e-9) / (extent[0] + 1e-9), 0.4, 1.5))
    figure = Figure(figsize=(6.4, 6.4 * ratio + 0.4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    size = float(np.clip(20_000 / max(len(points), 1), 2, 40))
    colours = {}
    if labels is not None and len(points):
        labels = labels[finite]
        # Class k has colour k of the ten, or its place in a long scale.
        few = labels.max() < 10
        scale = {"cmap": "tab10", "vmax": 9} if few else {"cmap": "turbo", "vmax": labels.max()}
        colours = {"c": labels, "vmin": 0, **scale}
    axes.scatter(*points.T, s=size, alpha=0.7, linewidths=0, **colours)
    axes.set_aspect("equal")
    axes.grid(alpha=0.25)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
