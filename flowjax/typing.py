"""Array types with named axes (jaxtyping), and the decorator that checks them under pytest.

`b` counts queries, `n` data points, `k` candidates, `d = prod(event)`; `*event` is the shape of one data point and
`*shape` any batch axes followed by it. Names that occur twice in one signature must have one size.

What users call checks its arguments itself, with sentences. Below that, functions that carry `@typed` are checked;
elsewhere the annotations document.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array as Array
from jaxtyping import Bool as Bool
from jaxtyping import Float as Float
from jaxtyping import Int as Int
from jaxtyping import Key, UInt8

Points = Float[Array, "*shape"]
"""Points of data space with any batch axes: queries x_t, noise x_0, data x_1, velocities."""

Batch = Float[Array, "b *event"]
"""The same with one batch axis."""

Flat = Float[Array, "b d"]
"""The same with one batch axis and the event flattened: what the engine works on."""

PerQuery = Float[Array, "b"]
"""One number a query: times, schedules, logits, bounds."""

PerCandidate = Float[Array, "b k"]
Indices = Int[Array, "b"]
"""One whole number a query: row numbers, classes."""

Data = Float[Array, "n *event"] | UInt8[Array, "n *event"]
"""A data set as stored, one row a point; uint8 pixels mean y/127.5 − 1."""

HostOrDeviceData = Data | Float[np.ndarray, "n *event"] | UInt8[np.ndarray, "n *event"]

PerRow = Float[Array, "n"]
RowLabels = Int[Array, "n"]
Scalar = Float[Array, ""]
PRNGKey = Key[Array, ""]

VelocityFunction = Callable[..., Any]
"""Anything `f(x, t, **condition) -> velocity`: a field, a network, a hybrid of both, a guided model."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

CHECKED = os.environ.get("FLOWJAX_CHECK_SHAPES", "0") == "1"


def typed(function: _Function) -> _Function:
    """Check the annotated shapes and dtypes at every call (while tracing: never at run time of compiled code).

    Only where the environment has FLOWJAX_CHECK_SHAPES=1 when flowjax is imported, as in its test suite; it needs
    beartype. Elsewhere the function is returned as it is and costs nothing.
    """
    if not CHECKED:
        return function
    from beartype import beartype
    from jaxtyping import jaxtyped

    return jaxtyped(typechecker=beartype)(function)
