"""One topology and data set, compiled in a process with a JAX of its own."""

import dataclasses
import json
import sys
import time
from typing import Any

from flowjax import data
from flowjax.closed_form.shapes import DataShape

from .chips import parse_topology
from .hlo import Program, out_of_memory, read_hlo
from .lowering import lower_field, lower_step


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
        return Program(asked, 0, 0, False, None, None, (), 0, {}, 0, seconds)
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


def network_operations(shape: DataShape, batch: int) -> float:
    """Floating-point operations of one optimizer step without the target, by JAX's count before optimisation."""
    import jax

    # Lowered for a CPU: for a slice that is not there nothing is counted.
    plain = lower_step(shape, batch, data.mesh(jax.devices("cpu")[:1]), exact=False).cost_analysis()
    return plain["flops"] if plain else 0.0


def _work(request: dict[str, Any]) -> dict[str, Any]:
    import jax
    from jax.experimental import topologies

    place = parse_topology(request["topology"])
    shape = DataShape(**{**request["shape"], "event_shape": tuple(request["shape"]["event_shape"])})
    # A slice of one chip is no whole host, which the compiler would take for granted.
    options = {"chips_per_host_bounds": [1, 1, 1]} if place.num_chips == 1 else {}
    try:
        devices = topologies.get_topology_desc(topology_name=place.name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the TPU compiler knows no topology {place.name!r}: {error}") from None
    mesh = data.mesh(devices, rows_over=request["rows_over"])
    lowered = (
        lower_step(shape, request["batch"], mesh)
        if request["step"]
        else lower_field(shape, request["batch"], mesh)
    )
    result = dataclasses.asdict(compile_program(lowered, len(devices), fast=request["fast"]))
    if request["step"]:
        result["network_operations"] = network_operations(shape, request["batch"])
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
