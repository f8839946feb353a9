"""The exact field on TPU slices, by the TPU compiler, ahead of time: bytes, estimated time, collectives.

CIFAR-10, ImageNet-64 and latents at batch 1024, for one chip of every slice, the rows split over as few chips as
training would take; and one training step, of the paper's U-Net on CIFAR-10, compiled with little effort: the times of
both its parts come out two to three times higher, and the target's share of it is what it is for. Nothing here ran on a
device; the limit is that of public figures (`flowjax plan --help` says what every column is). Twenty-five minutes on
two cores; needs `pip install "jax[tpu]"`.
"""

import importlib.metadata
import importlib.util
from typing import Any

from flowjax import plan
from flowjax.closed_form import shapes

from . import harness

LABEL = "ahead-of-time, by the compiler, not measured on a device"
SHAPES = ("cifar10", "imagenet-64", "latents")
BATCH = 1024
STEP = "cifar10", "v5e:16x16"


def run() -> dict[str, Any]:
    """An estimate a shape and slice, and one of a training step.

    Raises:
        ValueError: no TPU compiler is installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the TPU compiler is missing; install it with `pip install 'jax[tpu]'`")
    estimates = [
        plan.estimate(topology, shapes.parse(name), BATCH, step=False, fast=False, say=print).to_dict()
        for name in SHAPES
        for topology in plan.TOPOLOGIES
    ]
    return {
        "benchmark": "plan",
        "label": LABEL,
        "machine": harness.machine() | {"libtpu": importlib.metadata.version("libtpu")},
        "estimates": estimates,
        "step": step(),
    }


def step() -> dict[str, Any]:
    """The estimate of `STEP`."""
    name, topology = STEP
    return plan.estimate(topology, shapes.parse(name), BATCH, fast=True, say=print).to_dict()


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    header = [
        "rows",
        "slice",
        "split over",
        "memory of a chip",
        "compiler's estimate",
        "limit",
        "sent, collectives",
    ]
    rows = [_row(_name(each), each, "field") for each in result["estimates"]]
    each = result["step"]
    rows.append(
        _row(
            f"{_name(each)}: a training step, {each['target_share_of_step']:.1%} of it the target",
            each,
            "step",
        )
    )
    return header, rows


def _name(each: dict[str, Any]) -> str:
    shape = each["shape"]
    return f"{shape['name']}, {shape['num_points']} × {' × '.join(map(str, shape['event_shape']))}"


def _row(name: str, each: dict[str, Any], part: str) -> list[str]:
    """`part` of an estimate, the field or the training step."""
    program = each[part]
    collectives = sum(program["collectives"].values())
    return [
        name,
        each["topology"],
        str(each["rows_over"]),
        f"{program['needed'] / 2**30:.2g} of {each['device_memory'] / 2**30:.0f} GiB",
        _milliseconds(program["seconds"]),
        _milliseconds(program["roofline_seconds"]),
        f"{program['sent'] / 2**20:.0f} MiB in {collectives}, {_milliseconds(program['transfer_seconds'])}",
    ]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
