"""Explicit Runge–Kutta methods of fixed step: one mechanism, a Butcher tableau each."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Evaluate = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Tableau:
    """x_next = x + h Σ weights_i k_i with k_i = f(x + h Σ_j matrix_ij k_j, t + nodes_i h)."""

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int

    @property
    def num_stages(self) -> int:
        return len(self.nodes)


TABLEAUS = {
    "euler": Tableau((0.0,), ((),), (1.0,), order=1),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0), order=2),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), order=2),
    "rk4": Tableau(
        (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4
    ),
}


def step(evaluate: Evaluate, tableau: Tableau, x: jax.Array, start: jax.Array, stop: jax.Array) -> jax.Array:
    """One step from start to stop."""
    h = stop - start
    slopes: list[jax.Array] = []
    for node, row in zip(tableau.nodes, tableau.matrix, strict=True):
        # A stage at the end of the step lands on it exactly, not on start + (stop − start) rounded.
        time = start if node == 0 else stop if node == 1 else start + node * h
        slopes.append(evaluate(_advance(x, h, row, slopes), time))
    return _advance(x, h, tableau.weights, slopes)


def _advance(
    x: jax.Array, h: jax.Array, coefficients: Sequence[float], slopes: Sequence[jax.Array]
) -> jax.Array:
    terms = [c * k for c, k in zip(coefficients, slopes, strict=True) if c != 0]
    return x + h * sum(terms[1:], terms[0]) if terms else x


def integrate(
    pieces: Sequence[Evaluate],
    tableau: Tableau,
    x: jax.Array,
    times: jax.Array,
    piece: jax.Array,
    slots: jax.Array,
    num_saved: int,
) -> tuple[jax.Array, jax.Array]:
    """Step over all of `times` [N + 1].

    Args:
        pieces: the velocity functions; `piece` [N] int32 says which one is in force in each step.
        slots: [N + 1] int32, where the state at each time goes in the trajectory; num_saved means nowhere.

    Returns:
        The final state and the trajectory [num_saved, *x.shape].
    """

    def save(states, slot, x):
        return states.at[slot].set(x, mode="drop") if num_saved else states

    states = save(jnp.zeros((num_saved, *x.shape), x.dtype), slots[0], x)

    def body(carry, inputs):
        x, states = carry
        start, stop, which, slot = inputs
        branches = [lambda x, f=f: step(f, tableau, x, start, stop) for f in pieces]
        x = branches[0](x) if len(branches) == 1 else jax.lax.switch(which, branches, x)
        return (x, save(states, slot, x)), None

    (x, states), _ = jax.lax.scan(body, (x, states), (times[:-1], times[1:], piece, slots[1:]))
    return x, states
