"""The one algebra: softmax-weighted sums over a set of rows, mergeable in any order.

For logits l_i and rows y_i (relative to a fixed centre), with running maximum m = max_i l_i:

    (1)  normaliser   s = Σ_i exp(l_i − m)                 vector sum  a = Σ_i exp(l_i − m) y_i
    (2)  scalar sums    Σ_i exp(l_i − m)(l_i − m),  Σ_i exp(l_i − m)‖y_i‖²,  Σ_i exp(2(l_i − m))

Two disjoint sets of rows merge by rescaling both to the larger maximum, so blocks, devices, flipped copies
and re-scored rows all combine through `merge` (or `merge_across`, its collective form). The maximum only
fixes the scale: derivatives treat it as a constant and flow through the sums.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from flowjax.typing import Flat, PerQuery, typed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scalars:
    """The sums of equation (2) in its order, [b] each: of exp · logit, exp · ‖y‖² and exp²."""

    logit: PerQuery
    square: PerQuery
    squared: PerQuery


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over a set of rows, one per query; see the module's equations (1) and (2).

    Attributes:
        max: [b] largest logit, −inf for no rows.
        normaliser: [b].
        weighted_sum: [b, d].
        scalars: the sums of (2), or None where only (1) was asked for.
    """

    max: PerQuery
    normaliser: PerQuery
    weighted_sum: Flat
    scalars: Scalars | None


def empty(num_queries: int, dimension: int, dtype, *, scalars: bool) -> Moments:
    """The moments of no rows: the neutral element of `merge`."""
    zero = jnp.zeros(num_queries, dtype)
    return Moments(
        max=jnp.full(num_queries, -jnp.inf, dtype),
        normaliser=zero,
        weighted_sum=jnp.zeros((num_queries, dimension), dtype),
        scalars=Scalars(zero, zero, zero) if scalars else None,
    )


@typed
def finite_max(maximum: PerQuery) -> PerQuery:
    """A maximum safe to subtract: 0 where there are no rows, so that exp(−inf − 0) = 0 and not NaN."""
    return jnp.where(maximum == -jnp.inf, 0, lax.stop_gradient(maximum))


@typed
def rescale(moments: Moments, maximum: PerQuery) -> Moments:
    """The same sums relative to another maximum (≥ the present one)."""
    gap = jnp.where(moments.max == -jnp.inf, -jnp.inf, moments.max - finite_max(maximum))
    gap = lax.stop_gradient(gap)
    # exp(−inf) removes an empty set; multiplying by −inf would make 0·inf of it.
    scaled = shift_logits(moments, jnp.where(gap == -jnp.inf, 0, gap))
    keep = jnp.where(gap == -jnp.inf, 0, 1).astype(gap.dtype)
    return dataclasses.replace(scaled, max=lax.stop_gradient(maximum), normaliser=keep * scaled.normaliser)


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of the union of two disjoint sets of rows. Associative and commutative up to rounding."""
    maximum = jnp.maximum(*lax.stop_gradient((first.max, second.max)))
    return _add(rescale(first, maximum), rescale(second, maximum))


def merge_across(moments: Moments, axis_name: str) -> Moments:
    """Merge the moments that the devices along a mesh axis hold for their own rows."""
    maximum = max_across(lax.stop_gradient(moments.max), axis_name)
    scaled = rescale(moments, maximum)
    sums = dataclasses.replace(scaled, max=jnp.zeros_like(maximum))
    return dataclasses.replace(sum_across(sums, axis_name), max=maximum)


def max_across(value: jax.Array, axis_name: str) -> jax.Array:
    """Largest float32 or float64 `value` [b] along a mesh axis; no derivative.

    A TPU's compiler has no maximum of float64 across chips ("supported lowering only of Sum all reduce"), so there it
    is found in float32 parts.
    """
    if value.dtype != jnp.float64:
        return lax.pmax(value, axis_name)
    whole = functools.partial(lax.pmax, axis_name=axis_name)
    return lax.platform_dependent(
        value, tpu=functools.partial(max_of_parts, axis_name=axis_name), default=whole
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def sum_across(tree, axis_name: str):
    """Sum of a pytree of equal dtype along a mesh axis. Differentiated it is a plain `psum`.

    For float64 a TPU's compiler gathers every chip's summand on every chip: memory and traffic grow with the number of
    chips. There each chip sums a part of the entries for all, and the parts are put together again.
    """
    if any(leaf.dtype != jnp.float64 for leaf in jax.tree.leaves(tree)):
        return lax.psum(tree, axis_name)
    whole = functools.partial(lax.psum, axis_name=axis_name)
    return lax.platform_dependent(
        tree, tpu=functools.partial(sum_by_parts, axis_name=axis_name), default=whole
    )


@sum_across.defjvp
def _sum_across_jvp(axis_name: str, primals, tangents):
    (tree,), (tangent,) = primals, tangents
    with jax.enable_x64(True):  # derivatives are taken outside the island that called `sum_across`
        return sum_across(tree, axis_name), lax.psum(tangent, axis_name)


def sum_by_parts(tree, axis_name: str):
    """Sum of a pytree of float64 arrays along a mesh axis, sent as two float32: one all-to-all, one all-reduce."""
    count = lax.axis_size(axis_name)

    def total(value):
        flat = value.reshape(-1)
        size = -(-flat.size // count)
        parts = jnp.pad(flat, (0, size * count - flat.size)).reshape(count, size)
        mine = jnp.sum(_whole(lax.all_to_all(_halves(parts), axis_name, 1, 1)), 0)
        return _whole(joined(_halves(mine), axis_name))[: flat.size].reshape(value.shape)

    return jax.tree.map(total, tree)


def joined(part: jax.Array, axis_name: str) -> jax.Array:
    """The devices' float32 parts [..., m], one after the other, on all of them: [..., devices · m]."""
    # All summands but one are zero, so the sum is exact. (A gather is not known to be equal everywhere.)
    place = jnp.arange(lax.axis_size(axis_name), dtype=jnp.int32) == lax.axis_index(axis_name).astype(
        jnp.int32
    )
    parts = lax.psum(jnp.where(place[:, None], part[..., None, :], 0), axis_name)
    return parts.reshape(*part.shape[:-1], -1)


def _halves(value: jax.Array) -> jax.Array:
    """float64 [...] as float32 [2, ...]: the nearest, and what is missing of it."""
    high = value.astype(jnp.float32)
    return jnp.stack([high, (value - high.astype(value.dtype)).astype(jnp.float32)])


def _whole(halves: jax.Array) -> jax.Array:
    """The inverse of `_halves`, to 48 bits."""
    high, low = halves.astype(jnp.float64)
    return high + low


def max_of_parts(value: jax.Array, axis_name: str) -> jax.Array:
    """Largest float64 `value` [b] along a mesh axis, by the maxima of float32 parts, the most significant first.

    Three parts hold all of a float64, so that the result equals the largest value bit for bit.
    """
    total: jax.Array | float = 0.0
    for _ in range(3):
        part = value.astype(jnp.float32)
        largest = lax.pmax(part, axis_name)
        total = largest.astype(value.dtype) + total
        rest = jnp.where(jnp.isfinite(part), value - part.astype(value.dtype), 0)
        value = jnp.where(part == largest, rest, -jnp.inf)
    return jnp.asarray(total)


@typed
def shift_logits(moments: Moments, shift: PerQuery) -> Moments:
    """Add `shift` [b] to every logit, with the maximum that the sums are relative to left as it is.

    With a shift of value zero this gives the sums the derivative of a term common to all logits.
    """
    factor = jnp.exp(shift)
    scalars = moments.scalars
    if scalars is not None:
        scalars = Scalars(
            logit=factor * (scalars.logit + shift * moments.normaliser),
            square=factor * scalars.square,
            squared=factor * factor * scalars.squared,
        )
    return dataclasses.replace(
        moments,
        normaliser=factor * moments.normaliser,
        weighted_sum=factor[:, None] * moments.weighted_sum,
        scalars=scalars,
    )


def subtract(total: Moments, part: Moments) -> Moments:
    """Moments of `total` without a subset of its rows; both must be relative to the same maximum.

    Cancellation leaves an absolute error of the rounding level of `total`; sums that must be non-negative
    are kept so.
    """
    result = jax.tree.map(jnp.subtract, total, part)
    scalars = result.scalars
    if scalars is not None:
        scalars = dataclasses.replace(
            scalars, square=jnp.maximum(scalars.square, 0), squared=jnp.maximum(scalars.squared, 0)
        )
    normaliser = jnp.maximum(result.normaliser, 0)
    return dataclasses.replace(result, max=total.max, normaliser=normaliser, scalars=scalars)


def _add(first: Moments, second: Moments) -> Moments:
    total = jax.tree.map(jnp.add, first, second)
    return dataclasses.replace(total, max=first.max)
