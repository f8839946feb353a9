"""What a data set costs on a slice: the compiler's figures, bounds that are not the compiler's, and what fits."""

import dataclasses
import math
from typing import Any

from flowjax import data
from flowjax.closed_form.shapes import DataShape

from .chips import Slice
from .hlo import Program

FLOAT32_PASSES, BFLOAT16_PASSES = 6, 3
"""bfloat16 products in one float32 product at `Precision.HIGHEST` on a TPU, and where one factor is bfloat16."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one data set costs on one slice, a row of the table.

    Attributes:
        topology: of the slice.
        shape: the data set.
        batch: queries, and examples of a training step.
        rows_over: devices that the rows are split over.
        field: the field alone.
        step: the training step on the exact target; None where it was left out or the field does not fit.
        network_operations: floating-point operations of the step without its target, over all devices.
        smallest: where something does not fit, the smallest slice of the chip where all does, or None for none.
        untried: larger slices that were not asked because a training batch cannot be split over their devices.
    """

    topology: str
    shape: DataShape
    batch: int
    rows_over: int
    field: Program
    step: Program | None = None
    network_operations: float = 0.0
    smallest: str | None = None
    untried: tuple[str, ...] = ()

    @property
    def slice(self) -> Slice:
        return Slice(self.topology)

    @property
    def num_points(self) -> int:
        """Rows that are stored: n padded to a multiple of the devices they are split over."""
        return padded(self.shape.num_points, self.rows_over)

    @property
    def fits(self) -> bool:
        return self.field.fits and (self.step is None or self.step.fits)

    @property
    def field_roofline(self) -> float:
        """Seconds below which this engine's evaluation of every row cannot come; see the module."""
        return field_roofline(self.shape, self.batch, self.slice, self.rows_over)

    @property
    def step_roofline(self) -> float:
        """The field's, and the network's operations at the peak rate."""
        chips = self.slice.num_chips * self.slice.chip.peak
        return self.field_roofline + self.network_operations / chips

    def seconds(self, program: Program | None) -> float | None:
        """Estimated seconds of computation, without transfers."""
        return None if program is None or program.cycles is None else program.cycles / self.slice.chip.clock

    def transfer_seconds(self, program: Program) -> float:
        """The bytes sent, at the full rate of the device's links."""
        chip = self.slice.chip
        return program.sent / (chip.links / chip.devices)

    @property
    def share(self) -> float | None:
        """Of the field in the step's estimated seconds, transfers included at the links' full rate in both."""
        field, step = self.seconds(self.field), self.seconds(self.step)
        if field is None or step is None or self.step is None:
            return None
        return (field + self.transfer_seconds(self.field)) / (step + self.transfer_seconds(self.step))

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types; seconds, bytes and operations."""
        result = dataclasses.asdict(self)
        for name in ("field", "step"):
            program = getattr(self, name)
            if program is not None:
                result[name]["seconds"] = self.seconds(program)
                result[name]["transfer_seconds"] = self.transfer_seconds(program)
                result[name]["roofline_seconds"] = getattr(self, f"{name}_roofline")
        return {
            **result,
            "num_devices": self.slice.num_devices,
            "device_memory": self.slice.device_memory,
            "num_points_padded": self.num_points,
            "target_share_of_step": self.share,
            "fits": self.fits,
        }

    def refusal(self) -> str:
        """One sentence for what does not fit."""
        what, program = ("the field", self.field) if not self.field.fits else ("the training step", self.step)
        assert program is not None
        unit = "chip" if self.slice.chip.devices == 1 else "core"
        if self.smallest:
            way_out = f"the smallest slice of {self.slice.kind} that does is {self.smallest}"
        elif self.untried:
            way_out = (
                f"no larger slice that a batch of {self.batch} can be split over does ({', '.join(self.untried)} not "
                "tried); take another --batch or a chip with more memory"
            )
        else:
            way_out = "no larger slice of this chip does; take a smaller --batch or a chip with more memory"
        return (
            f"{what} of {self.shape.name} with batch {self.batch} does not fit on {self.topology}: it needs "
            f"{gibibytes(program.needed)} a {unit} of {gibibytes(self.slice.device_memory)}; {way_out}"
        )


def gibibytes(size: float) -> str:
    """For people: 1.25 GiB."""
    return f"{size / 2**30:.3g} GiB"


def rows_over_by_default(shape: DataShape, batch: int, place: Slice) -> int:
    """Devices to split the rows over, as training on TPUs does where it is not told."""
    nbytes = shape.num_points * shape.row_bytes
    return data.choose_rows_over(place.num_devices, batch, nbytes, place.device_memory)


def field_roofline(shape: DataShape, batch: int, place: Slice, rows_over: int) -> float:
    """Seconds of the longer of two: float32 products over all rows at the peak rate, or the rows read from memory.

    In few dimensions the engine forms direct differences and no product for the logits; one product remains.
    """
    from flowjax.closed_form.field import _TILE
    from flowjax.closed_form.passes import uses_direct_differences

    products = 1 if uses_direct_differences(shape.dimension) else 2
    rows, queries = padded(shape.num_points, rows_over) / rows_over, batch * rows_over / place.num_devices
    passes = BFLOAT16_PASSES if shape.dtype == "bfloat16" else FLOAT32_PASSES
    operations = 2 * products * rows * queries * shape.dimension * passes
    tiles = math.ceil(queries / _TILE)
    chip = place.chip
    return max(operations / chip.peak, rows * shape.row_bytes * tiles / chip.bandwidth) * chip.devices


def padded(count: int, parts: int) -> int:
    """The least multiple of `parts` that is at least `count`."""
    return -(-count // parts) * parts
