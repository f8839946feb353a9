"""What the compiler says of a program: memory, cycles, loops and collectives, read from its text."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program, figures of one device.

    Attributes:
        needed: bytes of HBM, or what the compiler asked for where it gave up.
        arguments, temporaries: parts of it (0 where the compiler gave up).
        fits: the compiler found room.
        cycles: estimated cycles with trip counts, every branch the cheapest; None where the compiler gave up.
        cycles_most: the same with every branch the dearest.
        loops: (trip count, cycles of one trip) of each loop, outermost first.
        loops_unknown: loops whose trip count the text does not hold, counted as one trip.
        collectives: number of executed collectives of each kind.
        sent: bytes sent to other devices in them.
        compile_seconds: of the compilation, on the machine that planned.
    """

    needed: float
    arguments: float
    temporaries: float
    fits: bool
    cycles: float | None
    cycles_most: float | None
    loops: tuple[tuple[int, float], ...]
    loops_unknown: int
    collectives: dict[str, int]
    sent: float
    compile_seconds: float

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Program":
        return cls(**{**values, "loops": tuple(map(tuple, values["loops"]))})


_ITEM = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all)(-start)?\("
)
_CALLS = re.compile(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")


@dataclasses.dataclass
class _Cost:
    cycles: float = 0
    sent: float = 0
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, other: "_Cost", times: int = 1) -> None:
        self.cycles += times * other.cycles
        self.sent += times * other.sent
        for kind, count in other.collectives.items():
            self.collectives[kind] = self.collectives.get(kind, 0) + times * count


def read_hlo(text: str, num_devices: int) -> dict[str, Any]:
    """Cycles, loops and collectives of a compiled program from its HLO text.

    A loop counts its body as often as its condition says: the constant that the counter (from 0, by 1, as
    `lax.scan` makes it) is compared with. The estimate of a fusion stands at the fusion, so nothing inside is counted.
    A conditional counts as its cheapest branch, and in `cycles_most` as its dearest.

    Args:
        text: `compiled.as_text()`.
        num_devices: of the slice, for the bytes that a collective sends.

    Returns:
        The fields cycles, cycles_most, loops, loops_unknown, collectives and sent of `Program`.
    """
    most = _read(text, num_devices, max)["cycles"]
    return {**_read(text, num_devices, min), "cycles_most": most}


def _read(text: str, num_devices: int, choose: Callable[..., Any]) -> dict[str, Any]:
    """With one branch of every conditional, as `choose` does by cycles."""
    computations, entry = _computations(text)
    loops: list[tuple[int, float]] = []
    unknown = 0
    known: dict[str, _Cost] = {}

    def cost(name: str) -> _Cost:
        nonlocal unknown
        if name in known:
            return known[name]
        total = known[name] = _Cost()
        for line in computations.get(name, ()):
            for cycles in re.findall(r'"estimated_cycles":"(\d+)"', line):
                total.cycles += int(cycles)
            if " while(" in line:
                body, condition = (_named(line, word) for word in ("body", "condition"))
                trips = _trip_count(computations.get(condition, ()))
                if trips is None:
                    unknown, trips = unknown + 1, 1
                place = len(loops)
                inner = cost(body)
                loops.insert(place, (trips, inner.cycles))
                total.add(inner, trips)
            elif found := _COLLECTIVE.search(line):
                kind = found[2]
                total.collectives[kind] = total.collectives.get(kind, 0) + 1
                sizes = _sizes(found[1])
                if found[3] and kind in ("all-gather", "collective-permute"):
                    sizes = sizes[1:2]  # the start of these holds its operand first
                total.sent += _sent(kind, sum(sizes), _group(line) or num_devices)
            elif " conditional(" in line:
                names = re.findall(r"%?([\w.\-]+)", _braces(line, "branch_computations")) or _CALLS.findall(
                    line
                )
                place, branches = len(loops), []
                for name in names:
                    branch = cost(name)
                    branches.append((branch, loops[place:]))
                    del loops[place:]
                branch, inside = choose(branches, key=lambda branch: branch[0].cycles, default=(_Cost(), []))
                loops.extend(inside)
                total.add(branch)
            elif " call(" in line or "async-start(" in line:
                for called in _CALLS.findall(line):
                    total.add(cost(called))
        return total

    whole = cost(entry)
    return {
        "cycles": whole.cycles,
        "loops": tuple(loops),
        "loops_unknown": unknown,
        "collectives": whole.collectives,
        "sent": whole.sent,
    }


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head:
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _named(line: str, word: str) -> str:
    found = re.search(rf"\b{word}=%?([\w.\-]+)", line)
    return found[1] if found else ""


def _braces(line: str, word: str) -> str:
    found = re.search(rf"\b{word}=\{{([^}}]*)\}}", line)
    return found[1] if found else ""


def _trip_count(condition: Any) -> int | None:
    """The one constant of a condition `counter < constant`."""
    lines = list(condition)
    bounds = [int(c) for line in lines for c in re.findall(r" constant\((\d+)\)", line)]
    less = any("direction=LT" in line for line in lines)
    return bounds[0] if less and len(bounds) == 1 else None


def _sizes(shapes: str) -> list[int]:
    """Bytes of each array in the text of a shape."""
    return [
        math.prod(int(side) for side in sides.split(",") if side) * _ITEM.get(kind, 4)
        for kind, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    ]


def _group(line: str) -> int | None:
    """How many devices take part in a collective with each other, where its text says."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found[1].split(","))
    return None


def _sent(kind: str, size: int, count: int) -> float:
    """Bytes a device sends at least, for a result of `size` bytes over `count` devices."""
    rest = (count - 1) / count
    return {"all-reduce": 2 * rest, "reduce-scatter": count - 1, "collective-permute": 1}.get(
        kind, rest
    ) * size


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def out_of_memory(message: str) -> float | None:
    """The bytes of HBM that the compiler asked for in vain, or None for another error."""
    found = re.search(r"memory space hbm\. Used ([\d.]+)([KMGT]?) of", message)
    return float(found[1]) * _UNITS[found[2]] if found else None
