"""Public figures of TPU chips, and the slices of them that can be had."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Chip:
    """Public figures of one chip.

    Attributes:
        memory: bytes of HBM.
        peak: bfloat16 operations a second.
        bandwidth: bytes a second of HBM.
        links: bytes a second in one direction, all links to other chips together.
        clock: cycles a second: the peak over the operations of the matrix units in one cycle.
        devices: what JAX sees of a chip: one device, or one for each of two cores.
        slices: topologies that can be had, smallest first.
    """

    memory: float
    peak: float
    bandwidth: float
    links: float
    clock: float
    devices: int
    slices: tuple[str, ...]


_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")

CHIPS: dict[str, Chip] = {
    "v4": Chip(32 * 2**30, 275e12, 1228e9, 300e9, 1.05e9, 2, (*_CUBE, "16x16x16")),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9, 1.50e9, 1, _PLANE),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9, 1.75e9, 1, (*_CUBE, "16x16x16")),
    "v6e": Chip(32 * 2**30, 918e12, 1640e9, 448e9, 1.75e9, 1, _PLANE),
    "tpu7x": Chip(192 * 2**30, 2307e12, 7380e9, 600e9, 2.20e9, 2, _CUBE),
}
"""Memory, peak, bandwidth and links: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}.

Clocks: the peak over the operations in a cycle, 4 matrix units of 128² multiply-adds a core up to v5p (two cores in v4
and v5p) and of 256² since v6e. For v5e and v5p that is the published clock (jax-ml.github.io/scaling-book/tpus).
"""

TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v5p:8x8x8", "v6e:16x16")
"""What a plan without a topology shows."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice by name, such as v5e:4x4."""

    name: str

    @property
    def kind(self) -> str:
        """The chip's name."""
        return self.name.partition(":")[0]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def num_chips(self) -> int:
        return math.prod(int(side) for side in self.name.partition(":")[2].split("x"))

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices

    @property
    def device_memory(self) -> float:
        """HBM bytes of one device."""
        return self.chip.memory / self.chip.devices


def parse_topology(name: str) -> Slice:
    """The slice of a name CHIP:SIDES.

    Raises:
        ValueError: no such chip, or no such slice of it, with those there are.
    """
    kind, _, sides = name.partition(":")
    if kind not in CHIPS:
        raise ValueError(
            f"unknown topology {name!r}; name one of the chips {', '.join(CHIPS)} and a slice of it, such as "
            f"{', '.join(TOPOLOGIES)}"
        )
    if sides not in CHIPS[kind].slices:
        raise ValueError(f"there is no topology {name!r}; slices of {kind}: {', '.join(CHIPS[kind].slices)}")
    return Slice(name)


def slices_of(chip: str) -> list[Slice]:
    """All slices of a chip, smallest first."""
    return [Slice(f"{chip}:{sides}") for sides in CHIPS[chip].slices]
