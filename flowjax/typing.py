"""Named array types shared by the whole package (jaxtyping aliases; checked under pytest).

`*batch` is any number of leading batch axes, `*event` the shape of one data point (for example
`32 32 3`). `n` counts data points, `b` queries, `d = prod(event)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, UInt8

Data = Float[Array, "n *event"] | UInt8[Array, "n *event"]
"""A data set: one row a point. uint8 rows mean y/127.5 − 1."""

Event = Float[Array, "*batch *event"]
"""Points of data space: queries x_t, noise x_0, data x_1, velocities."""

Time = Float[Array, "*batch"]
"""Time in [0, 1]: 0 is noise, 1 is data."""

Velocity = Float[Array, "*batch *event"]
Labels = Int[Array, "*batch"]
Scalar = Float[Array, ""]
PRNGKey = Key[Array, ""]

VelocityFunction = Callable[..., Any]
"""Anything `f(x, t, **condition) -> velocity`: a field, a network, a hybrid of both, a guided model."""

HostOrDeviceArray = np.ndarray | jax.Array

__all__ = [
    "Array",
    "ArrayLike",
    "Bool",
    "Data",
    "Event",
    "Float",
    "HostOrDeviceArray",
    "Int",
    "Labels",
    "PRNGKey",
    "Scalar",
    "Time",
    "UInt8",
    "Velocity",
    "VelocityFunction",
]
