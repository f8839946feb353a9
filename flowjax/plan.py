"""Compile the field and a training step for a TPU slice without having one, and read off what it would cost.

The real TPU compiler (the package libtpu) runs on any Linux machine. For a slice it tells the bytes a chip needs, the
collectives between chips, and an estimate of the cycles of every fusion. What is shown, and what it is not:

    bytes       the compiler's own allocation: arguments + temporaries + outputs + code of one device
    cycles      the compiler's `estimated_cycles` of every fusion, times the trip counts of the loops around it,
                which are read from the loops' conditions. An estimate of the compiler, never a measurement. It
                leaves out the transfers between chips, and whatever the compiler gives no estimate for
    seconds     cycles over the clock of `CHIPS`
    roofline    a lower bound that does not come from the compiler: the two products of the pass in float32, which are
                six bfloat16 products on a TPU, at the peak rate; or the bytes of the rows at the memory's bandwidth,
                whichever takes longer. For a training step the network's operations come on top, at one bfloat16 pass
    transfers   bytes that a device sends in collectives; `transfer_seconds` is their time at the full rate of its links
    share       seconds of the field over those of the training step that holds it

Rows lie split over all devices of the slice, queries of the field on every device; in the training step the batch is
split like the rows and the parameters lie on every device, as `flowjax.training` does it. Each compilation runs in a
process of its own: platform variables must be set before JAX is imported, and the compiler logs to standard error.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowjax.closed_form.shapes import DataShape

FLOAT32_PASSES = 6
"""bfloat16 products in one float32 product at `Precision.HIGHEST` on a TPU."""


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
    def chip(self) -> Chip:
        return CHIPS[self.name.partition(":")[0]]

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


# -- what the compiler says ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program, figures of one device.

    Attributes:
        needed: bytes of HBM, or what the compiler asked for where it gave up.
        arguments, temporaries: parts of it (0 where the compiler gave up).
        fits: the compiler found room.
        cycles: estimated cycles with trip counts; None where the compiler gave up.
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

    Args:
        text: `compiled.as_text()`.
        num_devices: of the slice, for the bytes that a collective sends.

    Returns:
        The fields cycles, loops, loops_unknown, collectives and sent of `Program`.
    """
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
                total.sent += _sent(kind, sum(sizes), num_devices)
            elif " conditional(" in line:
                names = re.findall(r"%?([\w.\-]+)", _braces(line, "branch_computations")) or _CALLS.findall(
                    line
                )
                total.add(max((cost(n) for n in names), key=lambda c: c.cycles, default=_Cost()))
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


def _sent(kind: str, size: int, count: int) -> float:
    """Bytes a device sends at least, for a result of `size` bytes over `count` devices."""
    rest = (count - 1) / count
    return {"all-reduce": 2 * rest, "reduce-scatter": count - 1, "collective-permute": 1}.get(
        kind, rest
    ) * size


# -- the planner ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one data set costs on one slice, a row of the table.

    Attributes:
        topology: of the slice.
        shape: the data set.
        batch: queries, and examples of a training step.
        field: the field alone.
        step: the training step on the exact target; None where it was left out or the field does not fit.
        network_operations: floating-point operations of the step without its target, over all devices.
        smallest: where something does not fit, the smallest slice of the chip where all does, or None for none.
    """

    topology: str
    shape: DataShape
    batch: int
    field: Program
    step: Program | None = None
    network_operations: float = 0.0
    smallest: str | None = None

    @property
    def slice(self) -> Slice:
        return Slice(self.topology)

    @property
    def num_points(self) -> int:
        """Rows that are stored: n padded to a multiple of the devices."""
        return padded(self.shape.num_points, self.slice.num_devices)

    @property
    def fits(self) -> bool:
        return self.field.fits and (self.step is None or self.step.fits)

    @property
    def field_roofline(self) -> float:
        """Seconds below which this engine's evaluation of every row cannot come; see the module."""
        return field_roofline(self.shape, self.batch, self.slice)

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
        way_out = (
            f"the smallest slice of {self.topology.partition(':')[0]} that does is {self.smallest}"
            if self.smallest
            else "no larger slice of this chip does; take a smaller --batch or a chip with more memory"
        )
        return (
            f"{what} of {self.shape.name} with batch {self.batch} does not fit on {self.topology}: it needs "
            f"{gibibytes(program.needed)} a {unit} of {gibibytes(self.slice.device_memory)}; {way_out}"
        )


def gibibytes(size: float) -> str:
    """For people: 1.25 GiB."""
    return f"{size / 2**30:.3g} GiB"


def field_roofline(shape: DataShape, batch: int, place: Slice) -> float:
    """Seconds of the longer of two: float32 products over all rows at the peak rate, or the rows read from memory.

    In few dimensions the engine forms direct differences and no product for the logits; one product remains.
    """
    from flowjax.closed_form.dense import uses_direct_differences
    from flowjax.closed_form.field import _TILE

    products = 1 if uses_direct_differences(shape.dimension) else 2
    rows = padded(shape.num_points, place.num_devices) / place.num_devices
    operations = 2 * products * rows * batch * shape.dimension * FLOAT32_PASSES
    tiles = -(-batch // _TILE)
    chip = place.chip
    return max(operations / chip.peak, rows * shape.row_bytes * tiles / chip.bandwidth) * chip.devices


def estimate(
    topology: str,
    shape: DataShape,
    batch: int,
    *,
    step: bool = True,
    fast: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Estimate:
    """Compile for a slice; where something does not fit, find the smallest slice of the chip where it does.

    Args:
        topology: such as v5e:16x16.
        shape: the data set.
        batch: queries, and examples of a training step.
        step: compile the training step too.
        fast: compile with little effort: a program less optimised, estimated times two to three times higher.
        say: told what is being compiled, before and after.

    Raises:
        ValueError: no such topology, a batch that cannot be split over it, a picture that the network cannot take.
        RuntimeError: no TPU compiler here, or it failed.
    """
    result = _compile_both(parse_topology(topology), shape, batch, step, fast, say)
    if result.fits:
        return result
    return dataclasses.replace(result, smallest=_smallest(result, step, fast, say))


def check(topology: str, shape: DataShape, batch: int, *, step: bool) -> None:
    """What `estimate` would refuse, without compiling. Errors as there."""
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError(
            'there is no TPU compiler here; install it with pip install "jax[tpu]" (Linux; no TPU needed)'
        )
    place = parse_topology(topology)
    if batch < 1:
        raise ValueError(f"--batch must be at least 1, got {batch}")
    if step:
        check_batch(batch, place.num_devices)
        train_config(shape, batch)


def check_batch(batch: int, num_devices: int) -> None:
    """Raises ValueError for a batch that training cannot split over the devices."""
    if batch % num_devices:
        raise ValueError(
            f"a training batch of {batch} cannot be split over {num_devices} devices; take a multiple of "
            f"{num_devices}, or leave the training step out with --no-step"
        )


def _compile_both(place: Slice, shape: DataShape, batch: int, step: bool, fast: bool, say) -> Estimate:
    field, _ = _compile(place, shape, batch, False, fast, say)
    result = Estimate(place.name, shape, batch, field)
    if not step or not field.fits:
        return result
    program, operations = _compile(place, shape, batch, True, fast, say)
    return dataclasses.replace(result, step=program, network_operations=operations)


def _smallest(failed: Estimate, step: bool, fast: bool, say) -> str | None:
    """The first larger slice that compiles, leaving out those where even the memory model says no.

    The model is optimistic: of the field everything but the rows stays as it is, of a step everything shrinks with
    the devices.
    """
    here = failed.slice
    rows = failed.shape.num_points * failed.shape.row_bytes
    for place in slices_of(here.name.partition(":")[0]):
        if place.num_devices <= here.num_devices or (step and failed.batch % place.num_devices):
            continue
        if failed.step is None:
            least = failed.field.needed - rows / here.num_devices + rows / place.num_devices
        else:
            least = failed.step.needed * here.num_devices / place.num_devices
        if (
            least <= place.device_memory
            and _compile_both(place, failed.shape, failed.batch, step, fast, say).fits
        ):
            return place.name
    return None


def _compile(
    place: Slice, shape: DataShape, batch: int, step: bool, fast: bool, say
) -> tuple[Program, float]:
    """In a process of its own: the program, and the network's operations for a step."""
    what = "a training step" if step else "the field"
    say(f"{place.name}: compiling {what} of {shape.name}, batch {batch}")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        request = {
            "topology": place.name,
            "shape": dataclasses.asdict(shape),
            "batch": batch,
            "step": step,
            "fast": fast,
            "answer": str(answer),
        }
        done = subprocess.run(
            [sys.executable, "-m", "flowjax.plan"],
            input=json.dumps(request),
            text=True,
            capture_output=True,
            # Nothing is asked of a cloud's metadata server, and several compilers may run at once.
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "TPU_SKIP_MDS_QUERY": "1",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            },
        )
        if not answer.is_file():
            raise RuntimeError(
                f"the TPU compiler failed for {what} on {place.name}: {_last_words(done.stderr)}"
            )
        result = json.loads(answer.read_text())
    if "refusal" in result:
        raise ValueError(result["refusal"])
    values = result["program"]
    operations = values.pop("network_operations", 0.0)
    program = Program.from_dict(values)
    say(f"{place.name}: {what} compiled in {program.compile_seconds:.0f} s")
    return program, operations


def _last_words(log: str) -> str:
    """The line of an exception, or the last line there is."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["it said nothing"])[-1][:500]


# -- the worker: one topology and data set, in a process with JAX of its own --------------------------------------


def abstract_field(shape: DataShape, mesh: Any) -> Any:
    """The field of a data set that is not there: rows split over the mesh axis `data`, leaves without values.

    Args:
        shape: the data set; n is padded up to a multiple of the mesh's size.
        mesh: with the one axis `data`.

    Returns:
        A `ClosedFormField` of `jax.ShapeDtypeStruct`s, to be lowered with and for nothing else.
    """
    import jax
    import jax.numpy as jnp

    from flowjax.closed_form import ClosedFormField
    from flowjax.closed_form.dense import Rows

    # The treedef of a small real field, the leaves of the large one.
    small = ClosedFormField(jnp.zeros((1, *shape.event_shape), shape.dtype))
    structure = dataclasses.replace(small._static, placement=(mesh, "data") if mesh.size > 1 else None)
    n = padded(shape.num_points, mesh.size)

    def leaf(sides, dtype, *spec):
        return jax.ShapeDtypeStruct(sides, dtype, sharding=jax.NamedSharding(mesh, jax.P(*spec)))

    rows = Rows(
        data=leaf((n, *shape.event_shape), shape.dtype, "data"),  # type: ignore[arg-type]
        square_norms=leaf((n,), "float32", "data"),  # type: ignore[arg-type]
        log_weights=None,
        labels=None,
        centre=None,
        max_norm=leaf((), "float32"),  # type: ignore[arg-type]
        log_weight_bound=leaf((), "float32"),  # type: ignore[arg-type]
        class_log_weights=leaf((1,), "float32"),  # type: ignore[arg-type]
    )
    return ClosedFormField.tree_unflatten(structure, (rows, None))


def padded(count: int, parts: int) -> int:
    """The least multiple of `parts` that is at least `count`."""
    return -(-count // parts) * parts


def train_config(shape: DataShape, batch: int) -> Any:
    """The paper's U-Net for pictures, the preset MLP for everything else, on the exact target.

    Raises:
        ValueError: a picture whose sides the U-Net cannot halve often enough.
    """
    from flowjax.models import MLPConfig, UNetConfig
    from flowjax.training.config import TrainConfig

    if len(shape.event_shape) == 3:
        model = dataclasses.replace(UNetConfig.paper(), event_shape=shape.event_shape)
    else:
        model = MLPConfig(event_shape=shape.event_shape)
    return TrainConfig(model=model, batch_size=batch)


def lower_field(shape: DataShape, batch: int, mesh: Any) -> Any:
    """`field(x, t)` for [batch, *event] queries on every device, lowered."""
    import jax

    whole = jax.NamedSharding(mesh, jax.P())
    x = jax.ShapeDtypeStruct((batch, *shape.event_shape), "float32", sharding=whole)
    t = jax.ShapeDtypeStruct((batch,), "float32", sharding=whole)
    return jax.jit(lambda field, x, t: field(x, t)).lower(abstract_field(shape, mesh), x, t)


def lower_step(shape: DataShape, batch: int, mesh: Any, *, exact: bool = True) -> Any:
    """A whole training step on the exact target (or on the conditional one), lowered.

    Raises:
        ValueError: the batch does not divide over the devices.
    """
    import jax

    from flowjax import targets
    from flowjax.training.state import create
    from flowjax.training.step import make_step

    check_batch(batch, mesh.size)
    config = train_config(shape, batch)

    def spread(tree, *spec):
        sharding = jax.NamedSharding(mesh, jax.P(*spec))
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    structure = []

    def state_only():
        graphdef, state = create(config)
        structure.append(graphdef)
        return state

    state = spread(jax.eval_shape(state_only))
    rows = {
        "image": jax.ShapeDtypeStruct((batch, *shape.event_shape), shape.dtype),
        "index": jax.ShapeDtypeStruct((batch,), "int32"),
    }
    field = abstract_field(shape, mesh)
    target = targets.closed_form(field) if exact else targets.conditional(field.path)
    program: Any = make_step(config, structure[0])  # a jitted function, typed as a plain one
    return program.lower(state, spread(rows, "data"), target, None)


def compile_program(lowered: Any, num_devices: int, *, fast: bool = False) -> Program:
    """Compile, and read what the compiler says; running out of memory is an answer too.

    Args:
        lowered: for the slice.
        num_devices: of the slice.
        fast: let the compiler try less to make the program fast.
    """
    import jax

    begin = time.perf_counter()
    try:
        options = {"exec_time_optimization_effort": -1.0} if fast else None
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        asked = out_of_memory(str(error))
        if asked is None:
            raise
        seconds = time.perf_counter() - begin
        return Program(asked, 0, 0, False, None, (), 0, {}, 0, seconds)
    seconds = time.perf_counter() - begin
    stats = compiled.memory_analysis()
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    needed = arguments + temporaries + results + stats.generated_code_size_in_bytes
    return Program(
        needed=needed,
        arguments=arguments,
        temporaries=temporaries,
        fits=True,  # else the compiler had given up
        compile_seconds=seconds,
        **read_hlo(compiled.as_text(), num_devices),
    )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def out_of_memory(message: str) -> float | None:
    """The bytes of HBM that the compiler asked for in vain, or None for another error."""
    found = re.search(r"memory space hbm\. Used ([\d.]+)([KMGT]?) of", message)
    return float(found[1]) * _UNITS[found[2]] if found else None


def _work(request: dict[str, Any]) -> dict[str, Any]:
    import jax
    import numpy as np
    from jax.experimental import topologies

    place = parse_topology(request["topology"])
    shape = DataShape(**{**request["shape"], "event_shape": tuple(request["shape"]["event_shape"])})
    # A slice of one chip is no whole host, which the compiler would take for granted.
    options = {"chips_per_host_bounds": [1, 1, 1]} if place.num_chips == 1 else {}
    try:
        devices = topologies.get_topology_desc(topology_name=place.name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the TPU compiler knows no topology {place.name!r}: {error}") from None
    mesh = jax.sharding.Mesh(np.array(devices), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    lowered = (
        lower_step(shape, request["batch"], mesh)
        if request["step"]
        else lower_field(shape, request["batch"], mesh)
    )
    result = dataclasses.asdict(compile_program(lowered, len(devices), fast=request["fast"]))
    if request["step"]:
        # Of the unsplit program of one optimizer step without the target, before optimisation.
        plain = lower_step(shape, request["batch"], mesh, exact=False).cost_analysis() or {}
        result["network_operations"] = plain.get("flops", 0.0)
    return result


def main() -> None:
    """The worker: one request as JSON on standard input, one answer as JSON in the file it names."""
    request = json.load(sys.stdin)
    try:
        answer = {"program": _work(request)}
    except (ValueError, TypeError) as error:
        answer = {"refusal": str(error)}
    with open(request["answer"], "w") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
