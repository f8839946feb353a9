"""`flowjax data SOURCE`: look at a data set, draw it, or prepare it on disk for large training."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ._common import parse

if TYPE_CHECKING:
    import numpy as np

    from flowjax.data import Dataset

_MANY_CLASSES = 40
_MANY_POINTS = 20_000
_MANY_PICTURES = 100

_HELP = """Show a data set: shape, type, range, counts per class, and a contact sheet.

sources:
{sources}

examples:
  flowjax data digits                                     table, and digits-contact-sheet.png
  flowjax data two-moons --num-points 500 --out moons.png
  flowjax data idx:/usr/share/datasets/fashion-mnist      MNIST's file format
  flowjax data images:photos --image-size 32              a folder of pictures, one subfolder a class
  flowjax data images:photos --image-size 32 --prepare photos-32
  flowjax train cifar10 --data.source tfds:photos-32      train on what was prepared
"""


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Name of a data set, or KIND:PLACE (see above)."""
    prepare: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write the data set to this new folder as TFDS array_record files; read it with tfds:DIR."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture to write (.png, .jpg, .webp). Default: SOURCE-contact-sheet.png here; none with --prepare."""
    image_size: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Resize pictures to this many pixels and cut out the middle square (images: and tfds:)."""
    num_points: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """How many points a synthetic set has."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Seed of a synthetic set."""
    num: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Rows in the picture, classes taking turns. Default: 100 pictures, or 20 000 points in the plane."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the picture if it is there already."""


def run(argv: list[str]) -> int:
    """Entry of the subcommand. Raises ValueError, TypeError or FileNotFoundError for what the user got wrong."""
    from flowjax import data

    width = max(map(len, data.SOURCES)) + 2
    text = _HELP.format(sources="\n".join(f"  {name:{width}}{line}" for name, line in data.SOURCES.items()))
    options = parse(Options, argv, "flowjax data", text)
    picture = _check(options)
    dataset = data.load(
        options.source, image_size=options.image_size, num_points=options.num_points, seed=options.seed
    )
    _show(dataset)
    if options.prepare is not None:
        data.prepare(dataset, options.prepare)
        print(f"prepared in {options.prepare}; read it with tfds:{options.prepare}")
    if picture is not None:
        _draw(dataset, picture, options.num, required=options.out is not None)
    return 0


def _check(options: Options) -> Path | None:
    """Refuse before any work what would fail after it. Returns where the picture goes."""
    from flowjax.data import check_picture_path, check_vacant

    if options.num is not None and options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    if options.prepare is not None:
        check_vacant(options.prepare)
    picture = options.out
    if picture is None:
        if options.prepare is not None:
            return None
        picture = Path(f"{_file_name(options.source)}-contact-sheet.png")
    check_picture_path(picture)
    if picture.exists() and not options.overwrite:
        raise ValueError(
            f"{picture} exists already; choose another file with --out, or replace it with --overwrite"
        )
    return picture


def _file_name(source: str) -> str:
    """`images:~/my pictures/` becomes `my-pictures`, `npz:a/b.npz` becomes `b`."""
    kind, colon, place = source.partition(":")
    name = Path(place).expanduser().resolve().stem if colon else kind
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


def _show(dataset: "Dataset") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    images = dataset.images
    facts = {
        "name": dataset.name,
        "points": _grouped(dataset.num_points),
        "shape": " × ".join(map(str, dataset.event_shape)),
        "type": f"{dataset.dtype}, {_size(images.nbytes)}",
        "range": "{:g} … {:g}, mean {:.4g}, deviation {:.4g}".format(*_statistics(images)),
        "test points": "none" if dataset.test_images is None else _grouped(len(dataset.test_images)),
        "fingerprint": dataset.fingerprint,
    }
    header, rows = _class_table(dataset)
    if console.is_terminal:
        table = Table(show_header=False, title=None)
        for name, value in facts.items():
            table.add_row(name, value)
        console.print(table)
        if rows:
            table = Table(*header)
            for row in rows:
                table.add_row(*row)
            console.print(table)
        return
    # Plain lines for pipes and files: nothing wrapped, no frames.
    for name, value in facts.items():
        print(f"{name:<12} {value}")
    for row in [header, *rows] if rows else []:
        print(
            "  ".join(
                f"{cell:<{max(len(r[k]) for r in [header, *rows])}}" for k, cell in enumerate(row)
            ).rstrip()
        )


def _statistics(images: "np.ndarray") -> tuple[float, float, float, float]:
    """Smallest and largest value, mean and standard deviation, without a float copy of the whole."""
    import numpy as np

    total = square = 0.0
    for start in range(0, len(images), 1024):
        block = images[start : start + 1024].astype(np.float64)
        total, square = total + block.sum(), square + (block**2).sum()
    mean = total / images.size
    return images.min(), images.max(), mean, max(square / images.size - mean**2, 0.0) ** 0.5


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _class_table(dataset: "Dataset") -> tuple[list[str], list[list[str]]]:
    """Header and rows of the counts per class; no rows without classes."""
    if dataset.labels is None or dataset.num_classes is None:
        return [], []
    columns = [("train", dataset.labels)]
    if dataset.test_labels is not None:
        columns.append(("test", dataset.test_labels))
    counts = [_count(labels, dataset.num_classes) for _, labels in columns]
    names = dataset.class_names or ("",) * dataset.num_classes
    rows = [[str(k), name, *(str(c[k]) for c in counts)] for k, name in enumerate(names)]
    if len(rows) > _MANY_CLASSES:
        rest = len(rows) - _MANY_CLASSES
        ranges = [f"{c.min()} to {c.max()} each" for c in counts]
        rows = [*rows[:_MANY_CLASSES], ["…", f"{rest} more; in all", *ranges]]
    return ["class", "name", *(name for name, _ in columns)], rows


def _count(labels: "np.ndarray", num_classes: int) -> "np.ndarray":
    import numpy as np

    return np.bincount(labels, minlength=num_classes)


def _size(num_bytes: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024  # pyright: ignore[reportAssignmentType]
    return f"{num_bytes:.3g} GiB"


def _draw(dataset: "Dataset", path: Path, num: int | None, required: bool) -> None:
    from flowjax.data import contact_sheet, save_picture

    if num is None:
        num = _MANY_POINTS if dataset.event_shape == (2,) else _MANY_PICTURES
    rows = _taking_turns(dataset, num)
    try:
        sheet = contact_sheet(
            dataset.images[rows], labels=None if dataset.labels is None else dataset.labels[rows]
        )
    except ValueError as error:
        # Data without a natural picture can still be looked at in numbers.
        if required:
            raise
        print(f"no picture: {error}")
        return
    save_picture(sheet, path)
    print(f"drawn in {path}")


def _taking_turns(dataset: "Dataset", num: int) -> "np.ndarray":
    """Row numbers of the first of each class, then the second of each, and so on: columns are classes if ten fit."""
    import numpy as np

    if dataset.labels is None:
        return np.arange(min(num, dataset.num_points))
    order = np.argsort(dataset.labels, kind="stable")
    starts = np.searchsorted(dataset.labels[order], dataset.labels[order])
    turn = np.arange(len(order)) - starts
    return order[np.lexsort((dataset.labels[order], turn))][:num]
