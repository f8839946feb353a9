"""The exact field on TPU slices, by the TPU compiler, ahead of time: bytes, estimated time, collectives.

CIFAR-10, ImageNet-64 and latents at batch 1024, for one chip of every slice, the rows split over as few chips as
training would take. Nothing here ran on a device; the limit is that of public figures (`flowjax plan --help` says what
every column is). Twenty minutes on two cores; needs `pip install "jax[tpu]"`.
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


def run() -> dict[str, Any]:
    """An estimate a shape and slice.

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
    }


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
    rows = []
    for each in result["estimates"]:
        shape, field = each["shape"], each["field"]
        memory = f"{field['needed'] / 2**30:.2g} of {each['device_memory'] / 2**30:.0f} GiB"
        collectives = sum(field["collectives"].values())
        rows.append(
            [
                f"{shape['name']}, {shape['num_points']} × {' × '.join(map(str, shape['event_shape']))}",
                each["topology"],
                str(each["rows_over"]),
                memory,
                _milliseconds(field["seconds"]),
                _milliseconds(field["roofline_seconds"]),
                f"{field['sent'] / 2**20:.0f} MiB in {collectives}, {_milliseconds(field['transfer_seconds'])}",
            ]
        )
    return header, rows


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
