"""What every peer is asked: a data set of a named shape, queries on the path at t = 0.5, and the true answer.

Pictures are sums of random waves with the spectrum of natural images (`benchmarks.screened.waves`); points in few
dimensions are a mixture of 32 Gaussians. Three of the data sets have fewer rows than the published ones, so that every
peer's copies fit in memory together and the run in minutes: every method here but the nearest neighbours' has a cost
proportional to n, so that a ratio stays what it is.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj
from flowjax.closed_form.shapes import SHAPES

from ..dense import TIME
from ..screened import waves

POINTS = {
    "cifar10": 50_000,
    "celeba-64": 6_000,
    "imagenet-64": 12_000,
    "latents": 20_000,
    "points-64": 50_000,
    "points-16": 50_000,
    "points-2": 50_000,
}
"""Rows of each named shape in this benchmark."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """û of the Linear path at `TIME`.

    Attributes:
        name: of the shape.
        data: [n, d] float32.
        x: [b, d] float32.
        few: so many of the queries are given to a peer that would take minutes over all of them.
    """

    name: str
    data: np.ndarray
    x: np.ndarray
    few: int

    alpha = TIME
    sigma = 1 - TIME

    @property
    def flop(self) -> float:
        """Of the two products that an evaluation needs."""
        return 4.0 * len(self.x) * self.data.size


def named(name: str) -> Problem:
    """The named shape, drawn."""
    shape, n = SHAPES[name], POINTS[name]
    if len(shape.event_shape) == 1:
        data, b, few = mixture(n, shape.dimension), 1024, 16
    elif shape.event_shape[-1] == 3:
        data, b, few = waves(n, size=shape.event_shape[0]), 128, 2
    else:
        channels = [waves(n, seed, size=shape.event_shape[0]) for seed in (0, 1)]
        data, b, few = np.concatenate(channels, -1)[..., : shape.event_shape[-1]], 128, 2
    data = np.ascontiguousarray(data.reshape(n, -1))
    return on_path(name, data, b, few)


def on_path(name: str, data: np.ndarray, num_queries: int, few: int) -> Problem:
    """Queries t y + (1 − t) noise around rows chosen at random."""
    rng = np.random.default_rng(1)
    rows = data[rng.choice(len(data), num_queries)]
    noise = rng.standard_normal(rows.shape, np.float32)
    return Problem(name, data, np.float32(TIME) * rows + np.float32(1 - TIME) * noise, few)


def truth(problem: Problem) -> fj.Posterior:
    """The posterior in double precision throughout: what errors are measured against. Tests hold it to the oracle."""
    with jax.enable_x64(True):
        field = fj.ClosedFormField(problem.data, method="dense", precision="float64")
        return jax.tree.map(np.asarray, field.posterior(jnp.asarray(problem.x, jnp.float64), TIME))


def mixture(n: int, dimension: int) -> np.ndarray:
    """n points [n, dimension] float32 around 32 centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((32, dimension), np.float32)
    spread = np.float32(0.2) * rng.standard_normal((n, dimension), np.float32)
    return centres[rng.integers(0, len(centres), n)] + spread
