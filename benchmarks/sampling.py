"""Solving along the exact field: does it end in the data, in how many evaluations, at which order.

Ends: the digits' field from 256 noises by dopri5 at the default tolerance; distance of every sample to the nearest
training row. Orders: the two-moons' field up to t = 0.5, where it is smooth, in float64; slope of log error on log
step between 16 and 64 steps, against RK4 with 1 024. Two minutes on two cores.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj

from . import harness

NUM_NOISES = 256
STEPS = (16, 32, 64)
SOLVERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def run() -> dict[str, Any]:
    """Ends and orders; see the module's docstring."""
    return {"benchmark": "sampling", "machine": harness.machine(), **_ends(), "orders": _orders()}


def _ends() -> dict[str, Any]:
    digits = fj.data.load("digits")
    noise = jax.random.normal(jax.random.key(0), (NUM_NOISES, *digits.event_shape))
    drawn = fj.sampling.sample(fj.ClosedFormField(digits.images), noise, solver="dopri5")
    nearest, _, index = fj.metrics.nearest_distances(np.asarray(drawn.samples), digits.images)
    return {
        "noises": NUM_NOISES,
        "evaluations": int(drawn.num_evaluations),
        "largest_distance_to_the_data": float(nearest.max()),
        "different_training_rows_reached": len(np.unique(index)),
    }


def _orders() -> dict[str, float]:
    moons = fj.data.load("two-moons", num_points=200)
    with jax.enable_x64(True):
        field = fj.ClosedFormField(moons.images, precision="float64")
        noise = jax.random.normal(jax.random.key(0), (64, 2), jnp.float64)

        def end(solver: Any, num_steps: int) -> jax.Array:
            return fj.sampling.sample(
                field, noise, solver=solver, num_steps=num_steps, final_time=0.5, denoise_last=False
            ).samples

        reference = end("rk4", 1024)
        orders = {}
        for solver in SOLVERS:
            errors = [float(jnp.sqrt(jnp.mean((end(solver, n) - reference) ** 2))) for n in STEPS]
            orders[solver] = -float(np.polyfit(np.log(STEPS), np.log(errors), 1)[0])
    return orders


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people."""
    rows = [
        [
            f"dopri5 from {result['noises']} noises",
            f"at most {result['largest_distance_to_the_data']:.1e} from a training row "
            f"({result['different_training_rows_reached']} different ones), {result['evaluations']} evaluations",
        ]
    ]
    rows += [
        [solver, f"order {order:.2f} (theory {SOLVERS[solver]})"]
        for solver, order in result["orders"].items()
    ]
    return ["exact field", "found"], rows
