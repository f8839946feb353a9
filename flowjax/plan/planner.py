"""Compile for slices, each time in a process of its own, and look for the smallest slice that will do."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from flowjax.closed_form.shapes import DataShape

from .chips import Slice, parse_topology, slices_of
from .estimates import Estimate, rows_over_by_default
from .hlo import Program
from .lowering import check_batch, train_config


def estimate(
    topology: str,
    shape: DataShape,
    batch: int,
    *,
    rows_over: int | None = None,
    step: bool = True,
    fast: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Estimate:
    """Compile for a slice; where something does not fit, find the smallest slice of the chip where it does.

    Args:
        topology: such as v5e:16x16.
        shape: the data set.
        batch: queries, and examples of a training step.
        rows_over: devices that the rows are split over; None chooses as training on TPUs does, and all of them where
            that does not fit.
        step: compile the training step too.
        fast: compile with little effort: a program less optimised, estimated times two to three times higher.
        say: told what is being compiled, before and after.

    Raises:
        ValueError: no such topology, a batch that cannot be split over it, a picture that the network cannot take.
        RuntimeError: no TPU compiler here, or it failed.
    """
    result = _compile_both(parse_topology(topology), shape, batch, rows_over, step, fast, say)
    if result.fits:
        return result
    larger = [place for place in slices_of(result.slice.kind) if place.num_devices > result.slice.num_devices]
    untried = [place for place in larger if step and batch % place.num_devices]
    tried = [place for place in larger if place not in untried]
    smallest = _smallest(result, tried, rows_over, step, fast, say)
    return dataclasses.replace(result, smallest=smallest, untried=tuple(place.name for place in untried))


def check(topology: str, shape: DataShape, batch: int, *, step: bool, rows_over: int | None = None) -> None:
    """What `estimate` would refuse, without compiling. Errors as there."""
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError(
            'there is no TPU compiler here; install it with pip install "jax[tpu]" (Linux; no TPU needed)'
        )
    place = parse_topology(topology)
    if batch < 1:
        raise ValueError(f"--batch must be at least 1, got {batch}")
    if rows_over is not None and (rows_over < 1 or place.num_devices % rows_over):
        raise ValueError(
            f"--rows-over {rows_over} does not divide the {place.num_devices} devices of {topology}"
        )
    if step:
        check_batch(batch, place.num_devices)
        train_config(shape, batch)


def _compile_both(
    place: Slice, shape: DataShape, batch: int, rows_over: int | None, step: bool, fast: bool, say
) -> Estimate:
    chosen = rows_over or rows_over_by_default(shape, batch, place)
    result = _compile_split(place, shape, batch, chosen, step, fast, say)
    if result.fits or rows_over or chosen == place.num_devices:
        return result
    return _compile_split(place, shape, batch, place.num_devices, step, fast, say)


def _compile_split(
    place: Slice, shape: DataShape, batch: int, rows_over: int, step: bool, fast: bool, say
) -> Estimate:
    field, _ = _compile(place, shape, batch, rows_over, False, fast, say)
    result = Estimate(place.name, shape, batch, rows_over, field)
    if not step or not field.fits:
        return result
    program, operations = _compile(place, shape, batch, rows_over, True, fast, say)
    return dataclasses.replace(result, step=program, network_operations=operations)


def _smallest(
    failed: Estimate, larger: list[Slice], rows_over: int | None, step: bool, fast: bool, say
) -> str | None:
    """The first of these slices that compiles, leaving out those where even the memory model says no.

    The model is optimistic: of the field everything but the rows stays as it is, of a step everything shrinks with
    the devices.
    """
    here = failed.slice
    rows = failed.shape.num_points * failed.shape.row_bytes
    for place in larger:
        if failed.step is None:
            least = failed.field.needed - rows / failed.rows_over + rows / (rows_over or place.num_devices)
        else:
            least = failed.step.needed * here.num_devices / place.num_devices
        if (
            least <= place.device_memory
            and _compile_both(place, failed.shape, failed.batch, rows_over, step, fast, say).fits
        ):
            return place.name
    return None


def _compile(
    place: Slice, shape: DataShape, batch: int, rows_over: int, step: bool, fast: bool, say
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
            "rows_over": rows_over,
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
