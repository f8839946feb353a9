"""Named real data sets by their shapes alone: what plans, benchmarks and tests compile for without having the data."""

import dataclasses
import math

from flowjax._choices import hint

_ITEM_SIZES = {"uint8": 1, "bfloat16": 2, "float32": 4}


@dataclasses.dataclass(frozen=True)
class DataShape:
    """The shape of a data set [num_points, *event_shape] as it is stored.

    Attributes:
        name: for tables.
        num_points: rows.
        event_shape: of one row.
        dtype: storage, uint8, bfloat16 or float32.

    Raises:
        ValueError: no rows, an axis without entries, or another dtype.
    """

    name: str
    num_points: int
    event_shape: tuple[int, ...]
    dtype: str = "uint8"

    def __post_init__(self):
        if self.num_points < 1 or not self.event_shape or min(self.event_shape) < 1:
            raise ValueError(
                f"a data set needs at least one row and no empty axis, got n = {self.num_points} "
                f"and event shape {self.event_shape}"
            )
        if self.dtype not in _ITEM_SIZES:
            raise ValueError(f"unknown dtype {self.dtype!r}; {hint(self.dtype, _ITEM_SIZES)}")

    @property
    def dimension(self) -> int:
        """d, the number of entries of a row."""
        return math.prod(self.event_shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return self.dimension * _ITEM_SIZES[self.dtype]


SHAPES: dict[str, DataShape] = {
    shape.name: shape
    for shape in (
        DataShape("cifar10", 50_000, (32, 32, 3)),
        DataShape("celeba-64", 162_770, (64, 64, 3)),  # the training split
        DataShape("imagenet-64", 1_281_167, (64, 64, 3)),
        DataShape("latents", 1_281_167, (32, 32, 4), "bfloat16"),  # ImageNet's training pictures, encoded
        DataShape("points-2", 50_000, (2,), "float32"),
        DataShape("points-16", 50_000, (16,), "float32"),
        DataShape("points-64", 50_000, (64,), "float32"),
    )
}
"""By name; n and event shapes are those of the published training splits."""


def parse(text: str) -> DataShape:
    """A name of `SHAPES`, or sizes `N,H,W,C` (any number of axes after N) of rows stored as uint8.

    Raises:
        ValueError: neither of the two.
    """
    if text in SHAPES:
        return SHAPES[text]
    sizes = text.split(",")
    if len(sizes) < 2:
        raise ValueError(f"unknown data {text!r}; {hint(text, SHAPES)}, or sizes such as 50000,32,32,3")
    try:
        n, *event = (int(size) for size in sizes)
    except ValueError:
        raise ValueError(
            f"sizes must be whole numbers separated by commas, such as 50000,32,32,3, got {text!r}"
        ) from None
    return DataShape(text, n, tuple(event))
