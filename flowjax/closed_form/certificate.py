"""The error analysis: what is certified of the three estimates of the mean that `evaluate` forms.

With u the unit roundoff of the pass, Y = max ‖y − centre‖ and X = ‖x − alpha centre‖:

    (1)  |computed − true logit| ≤ E = 1.01 u ((d + 16) alpha X Y/sigma² + 8 alpha² Y²/(2 sigma²) + 64) + weights' share
         any order of summation: Higham, Accuracy and Stability of Numerical Algorithms, §3.1. With direct
         differences the first two terms become (d + 8)|l| + 3 (alpha Y + X) sqrt(2 |l|)/sigma.
    (2)  rows with wrong logits carry at most the share rho of the weight, so the mean moves by at most
         (exp(2E) − 1) min(2 sqrt(rho V), 4 rho Y), V = variance; sums add
         10 (rows of a part + parts of a block + 4 blocks + 16) u exp(E) Y
    (3)  dropping n' rows whose logits are ≤ r moves the mean by at most 2 Y eps/(1 + eps), with
         eps = n' exp(r + E − log normaliser of the candidates)
    (4)  no error of the mean exceeds 4 Y: û's lies in the convex hull of the data, `exact` too, and `combined` within
         3 Y of the centre, since a remainder of mere rounding is left out or small beside the rest (in `parts`).

The velocity error is |alpha' − sigma' alpha/sigma| times that of the mean, plus rounding of the result.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from flowjax.typing import Flat, PerQuery, Scalar, typed

from .moments import Moments
from .parts import Parts, Plan, summation_error
from .passes import Query, uses_direct_differences
from .rows import Rows

RELEVANT = 40.0
"""Rows more than this many nats below the best weigh less than 5e-18 each: beyond any rounding considered."""


@typed
def _logit_error(plan: Plan, rows: Rows, query: Query, log_normaliser: PerQuery) -> PerQuery:
    """E of equation (1), [b]. With direct differences it depends on how negative the logits are."""
    unit, d = plan.settings.unit, rows.dimension
    x, y = query_norm(query.x), rows.max_norm.astype(jnp.float64)
    if uses_direct_differences(d):
        size = jnp.abs(log_normaliser) + RELEVANT + rows.log_weight_bound.astype(jnp.float64)
        terms = (d + 8) * size + 3 * (query.alpha * y + x) * jnp.sqrt(2 * size) / query.sigma
    else:
        scale = query.alpha / query.sigma**2
        terms = (d + 16) * scale * x * y + 4 * query.alpha * scale * y**2
    return 1.01 * unit * (terms + 64) + _weight_error(rows)


@typed
def _weight_error(rows: Rows) -> Scalar:
    """Rounding of the stored float32 log weights."""
    return 2.0**-23 * rows.log_weight_bound.astype(jnp.float64)


@typed
def query_norm(x: Flat) -> PerQuery:
    """Row norms [b], with a derivative that is never followed (norms only enter bounds)."""
    return jnp.sqrt(jnp.sum(lax.stop_gradient(x) ** 2, 1))


class Bounds(NamedTuple):
    """Bounds of the error of the mean, [b]. The coarse pair needs no scalar moments and decides which
    estimate is taken, so that the velocity alone and the whole posterior take the same one; `lost` is the part of
    `exact` that comes of dropping rows."""

    combined: PerQuery
    combined_coarse: PerQuery
    exact: PerQuery
    exact_coarse: PerQuery
    lost: PerQuery


def error_bounds(plan: Plan, rows: Rows, query: Query, parts: Parts, combined: Moments) -> Bounds:
    """Equations (2), (3) and (4)."""
    settings = plan.settings
    y = rows.max_norm.astype(jnp.float64)
    summation = summation_error(plan, rows)

    log_normaliser = combined.max + jnp.log(combined.normaliser)
    e = _logit_error(plan, rows, query, log_normaliser)
    growth, spread = jnp.exp(jnp.minimum(e, 50.0)), jnp.expm1(jnp.minimum(2 * e, 100.0))
    remainder = parts.remainder.normaliser * jnp.exp(parts.remainder.max - log_normaliser)
    rho = jnp.minimum(1.0, growth * (remainder + 5 * summation))
    # Of the weighted sum and of the normaliser, and what `_significant` leaves out.
    sums = (2 + 8) * summation * growth * y
    tail = (
        num_seen(plan, rows) * jnp.exp(-RELEVANT + 2 * e) * 2 * y
        if uses_direct_differences(rows.dimension)
        else 0
    )
    coarse = spread * 4 * rho * y + sums + tail
    fine = coarse
    if settings.scalars:
        fine = jnp.minimum(
            coarse, spread * 2 * jnp.sqrt(rho * _variance(combined, summation * growth * y**2)) + sums + tail
        )

    exact = parts.exact
    exact_log = exact.max + jnp.log(exact.normaliser)
    gap = jnp.minimum(parts.rest + e - exact_log, 700.0)
    dropped = num_seen(plan, rows) * jnp.exp(gap)
    exact_fine, exact_coarse, lost = exact_bound(
        rows, query, exact, dropped, settings.num_candidates * (2 if plan.horizontal_flip else 1)
    )
    worst = 4 * y
    no_less = [
        jnp.where(jnp.isnan(v), worst, jnp.minimum(v, worst))
        for v in (fine, coarse, exact_fine, exact_coarse, lost)
    ]
    return Bounds(*no_less)


def exact_bound(
    rows: Rows, query: Query, exact: Moments, dropped: PerQuery, num_terms: int | PerQuery
) -> tuple[PerQuery, PerQuery, PerQuery]:
    """Bounds of the error of the mean of `num_terms` rows scored exactly, `dropped` the others' share by equation (3).

    The second one needs no scalar moments; the first one is the same if there are none. The third is the part of
    both that comes of dropping rows.
    """
    y = rows.max_norm.astype(jnp.float64)
    exact_log = exact.max + jnp.log(exact.normaliser)
    d, x = rows.dimension, query_norm(query.x)
    size = jnp.abs(exact_log) + RELEVANT + rows.log_weight_bound.astype(jnp.float64)
    e_exact = 2.0**-53 * ((d + 16) * size + 4 * (query.alpha * y + x) * jnp.sqrt(2 * size) / query.sigma)
    e_exact = e_exact + _weight_error(rows) + 1e-15
    lost = 2 * y * dropped / (1 + dropped)
    sums = 1e-13 + 2.0**-52 * num_terms  # of the weighted sum and of the normaliser, relative to y
    exact_coarse = lost + 4 * y * jnp.expm1(2 * e_exact) + sums * y
    exact_fine = exact_coarse
    if exact.scalars is not None:
        deviation = jnp.sqrt(_variance(exact, sums * y**2))
        exact_fine = lost + 2 * deviation * jnp.expm1(2 * e_exact) + sums * y
    return exact_fine, exact_coarse, lost


@typed
def _variance(total: Moments, rounding: Scalar | PerQuery) -> PerQuery:
    """An upper bound of the variance of the rows under their weights, [b]."""
    relative = total.weighted_sum / total.normaliser[:, None]
    assert total.scalars is not None
    value = total.scalars.square / total.normaliser - jnp.sum(relative**2, 1)
    return jnp.maximum(value, 0) + 4 * rounding


def num_seen(plan: Plan, rows: Rows) -> int:
    """Number of points a query sees, flipped copies included."""
    return rows.count * (2 if plan.horizontal_flip else 1)
