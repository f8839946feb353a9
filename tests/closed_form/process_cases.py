"""What `test_processes` and the processes that it starts evaluate."""

import dataclasses
from typing import Any

import numpy as np
from support import normal

TIMES = np.float32([0, 0.3, 0.6, 0.9, 0.99, 0.999])


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set [n, *event], the field's options (arrays have one entry a row), and labels of six queries."""

    data: np.ndarray
    options: dict[str, Any]
    query_labels: np.ndarray | None = None


CASES = {
    "far away": Case(normal(1, 64, 12) + np.float32(100), {}),
    "everything": Case(
        np.random.default_rng(2).integers(0, 256, (64, 2, 3, 2), np.uint8),
        {
            "weights": np.linspace(0.5, 2, 64, dtype=np.float32),
            "labels": np.arange(64) % 3,
            "horizontal_flip": True,
        },
        np.arange(6) % 3,
    ),
    "screened": Case(normal(4, 96, 20), {"method": "screened"}),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh of the four devices in this order, with rows split over the axis `data`, and the cases to evaluate."""

    order: tuple[int, ...]
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    kind: str
    cases: tuple[str, ...]


LAYOUTS = {
    "rows over all devices": Layout((0, 1, 2, 3), (4,), ("data",), "Auto", tuple(CASES)),
    "devices in another order": Layout((2, 0, 3, 1), (4,), ("data",), "Explicit", ("everything",)),
    "rows over processes": Layout((0, 1, 2, 3), (2, 2), ("data", "queries"), "Auto", ("everything",)),
    "queries over processes": Layout((0, 1, 2, 3), (2, 2), ("queries", "data"), "Auto", ("everything",)),
}


def queries(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """x [6, *event] on the path to the first rows, t [6], labels [6] or None."""
    from flowjax.closed_form import to_float

    x1 = to_float(case.data[:6])
    t = TIMES.reshape(-1, *(1,) * (x1.ndim - 1))
    return (1 - t) * normal(3, *x1.shape) + t * x1, TIMES, case.query_labels
