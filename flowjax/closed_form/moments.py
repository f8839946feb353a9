"""The one algebra: softmax-weighted sums over a set of rows, mergeable in any order.

For logits l_i and rows y_i (relative to a fixed centre), with running maximum m = max_i l_i:

    (1)  normaliser   s = Σ_i exp(l_i − m)                 vector sum  a = Σ_i exp(l_i − m) y_i
    (2)  scalar sums    Σ_i exp(l_i − m)(l_i − m),  Σ_i exp(l_i − m)‖y_i‖²,  Σ_i exp(2(l_i − m))

Two disjoint sets of rows merge by rescaling both to the larger maximum, so blocks, devices, flipped copies
and re-scored rows all combine through `merge` (or `merge_across`, its collective form). The maximum only
fixes the scale: derivatives treat it as a constant and flow through the sums.
"""

import dataclasses

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
    maximum = lax.pmax(lax.stop_gradient(moments.max), axis_name)
    scaled = rescale(moments, maximum)
    sums = dataclasses.replace(scaled, max=jnp.zeros_like(maximum))
    return dataclasses.replace(lax.psum(sums, axis_name), max=maximum)


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
