"""From a pass over the rows to the posterior: re-scoring, merging, the physics of the path, the error bound.

A pass (dense, float32) leaves the moments of all rows and a few candidates. Three estimates come of it:

    dense     as the pass computed it; its derivatives are what callers differentiate
    combined  the candidates' share replaced by their exact one: dense − approximate candidates + exact candidates
    exact     the candidates alone, every other row dropped

`combined` is right when many rows share the weight, `exact` when few do. A query gets `exact` where what it drops
is certified to stay below the tolerance and its bound is the smaller one; else `combined`, which is far better than
its worst case, with the smaller of its own bound and that of `exact` plus the distance between the two. All of it is
[b, d] work in float64; only the pass itself touches all rows. `certificate` holds the error analysis.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from flowjax.typing import Array, Bool, Flat, Indices, PerQuery, Scalar, typed

from . import moments as algebra
from .certificate import error_bounds, query_norm
from .moments import Moments
from .parts import Plan, all_parts, query_parts
from .passes import Query
from .rows import Rows

Result = TypeVar("Result")


class Course(NamedTuple):
    """How screening went, [b]: which queries it holds for, coordinates that its pass used, rows left, evaluated."""

    holds: Bool[Array, "b"]
    columns: Indices
    survivors: Indices
    evaluated: Indices


class Evaluation(NamedTuple):
    """Flat results: vectors [b, d], scalars [b]; the scalars are None when only the velocity was asked for, and the
    course where every row was looked at."""

    mean: Flat
    velocity: Flat
    log_density: PerQuery | None
    entropy: PerQuery | None
    effective_sample_size: PerQuery | None
    max_weight: PerQuery | None
    argmax: Indices | None
    variance: PerQuery | None
    error_bound: PerQuery | None
    course: Course | None = None


def _clip_above(value: jax.Array) -> jax.Array:
    return jnp.where(value > 0, 0.0, value)


class Schedule(NamedTuple):
    alpha: PerQuery
    sigma: PerQuery
    alpha_dot: PerQuery
    sigma_dot: PerQuery


def _clip(value: jax.Array) -> jax.Array:
    """Rounding must not make a non-negative quantity negative. (`maximum` has a derivative rule that makes
    float64 constants outside the island.)"""
    return jnp.where(value < 0, 0.0, value)


def along_path(schedule: Schedule) -> PerQuery:
    """|alpha' − sigma' alpha/sigma|, the velocity's error for an error of the mean, [b]."""
    return jnp.abs(schedule.alpha_dot - schedule.sigma_dot * schedule.alpha / schedule.sigma)


def velocity_of(rows: Rows, x: Flat, schedule: Schedule, relative: Flat) -> Flat:
    """Velocity at x [b, d] for means [b, d] relative to the centre.

    The difference x̂ − x is formed before it is divided by sigma; on the linear path the second coefficient is
    exactly zero.
    """
    alpha, sigma, alpha_dot, sigma_dot = schedule
    centre = 0.0 if rows.centre is None else rows.centre.astype(jnp.float64)
    towards_mean = alpha_dot - sigma_dot * alpha / sigma
    along_x = alpha_dot + sigma_dot * (1 - alpha) / sigma
    return towards_mean[:, None] * (relative + (centre - x)) + along_x[:, None] * x


@typed
def finalise(
    rows: Rows,
    x: Flat,
    schedule: Schedule,
    total: Moments,
    log_prior: Scalar | PerQuery,
    best_logit: PerQuery,
) -> Evaluation:
    """Moments → posterior. x is the query itself, [b, d] float64; every field float64, no bound yet."""
    sigma, normaliser = schedule.sigma, total.normaliser
    relative = total.weighted_sum / normaliser[:, None]
    centre = 0.0 if rows.centre is None else rows.centre.astype(jnp.float64)
    velocity = velocity_of(rows, x, schedule, relative)
    mean = relative + centre
    scalars = total.scalars
    if scalars is None:
        return Evaluation(mean, velocity, *(None,) * 7)
    log_sum = jnp.log(normaliser)
    log_normaliser = total.max + log_sum
    d = x.shape[1]
    constant = d * jnp.log(sigma) + d / 2 * jnp.log(2 * jnp.pi)
    return Evaluation(
        mean=mean,
        velocity=velocity,
        log_density=log_normaliser - log_prior - constant,
        entropy=_clip(log_sum - scalars.logit / normaliser),
        effective_sample_size=normaliser * normaliser / scalars.squared,
        # No weight exceeds 1. The dense estimate of the normaliser may, late in time: exp would overflow.
        max_weight=jnp.exp(_clip_above(best_logit - log_normaliser)),
        argmax=None,
        variance=_clip(scalars.square / normaliser - jnp.sum(relative * relative, 1)),
        error_bound=None,
    )


@typed
def log_prior(rows: Rows, plan: Plan, labels: Indices | None) -> Scalar | PerQuery:
    """Log of the total prior weight that a query sees, [] or [b]."""
    value = rows.class_log_weights.astype(jnp.float64)
    value = value[0] if labels is None else value[labels]
    return value + jnp.log(2.0) if plan.horizontal_flip else value


@typed
def _evaluate_tile(plan: Plan, rows: Rows, x: Flat, t: PerQuery, labels: Indices | None) -> Evaluation:
    """Evaluate a batch of at most `plan.tile` queries: x [b, d], t [b], labels [b] or None."""
    settings = plan.settings
    x, t = x.astype(jnp.float64), t.astype(jnp.float64)
    path = plan.path
    schedule = Schedule(path.alpha(t), path.sigma(t), path.alpha_dot(t), path.sigma_dot(t))
    alpha, sigma = schedule.alpha, schedule.sigma
    centred = x if rows.centre is None else x - alpha[:, None] * rows.centre.astype(jnp.float64)
    query = Query(centred, alpha, sigma, labels)
    parts = all_parts(plan, rows, query)

    prior = log_prior(rows, plan, labels)
    dense = finalise(rows, x, schedule, parts.dense, prior, parts.best_logit)
    combined_moments = algebra.merge(parts.exact, parts.remainder)
    combined = finalise(rows, x, schedule, combined_moments, prior, parts.best_logit)
    combined = lax.stop_gradient(combined)
    # Values of `combined`, derivatives of `dense`: the two differ by rounding only.
    result = jax.tree.map(lambda low, high: low + (high - lax.stop_gradient(low)), dense, combined)

    fixed = jax.tree.map(lax.stop_gradient, (query, parts, combined_moments))
    bounds = error_bounds(plan, rows, *fixed)
    exact = finalise(rows, x, schedule, parts.exact, prior, parts.best_logit)
    speed = along_path(lax.stop_gradient(schedule))
    kept = speed * bounds.lost <= plan.tolerance * query_norm(exact.velocity)
    choose = kept & (bounds.exact_coarse < bounds.combined_coarse)

    def pick(low, high):
        return jnp.where(choose[:, None] if low.ndim == 2 else choose, high, low)

    result = jax.tree.map(pick, result, exact)
    if not settings.scalars:
        return result
    through_exact = bounds.exact + query_norm(combined.mean - exact.mean)
    bound = jnp.where(choose, bounds.exact, jnp.minimum(bounds.combined, through_exact))
    bound = 1.001 * speed * bound + rounding_error(rows, x, query, schedule, result.velocity)
    return result._replace(argmax=parts.best_index, error_bound=bound)


def rounding_error(rows: Rows, x: Flat, query: Query, schedule: Schedule, velocity: Flat) -> PerQuery:
    """Rounding of a velocity [b, d] formed from an exact mean, to the dtype of the result and inside `velocity_of`."""
    alpha, sigma, alpha_dot, sigma_dot = lax.stop_gradient(schedule)
    # 1 − alpha, which multiplies x itself, is formed from a rounded alpha; on the linear path it is not needed.
    along_x = alpha_dot + sigma_dot * (1 - alpha) / sigma
    lost_digits = 2.0**-50 * jnp.abs(sigma_dot / sigma) * query_norm(x)
    lost_digits = jnp.where(along_x == 0, 0.0, lost_digits)
    size = query_norm(query.x) + rows.max_norm
    return (
        lost_digits
        + 2.0**-23 * query_norm(velocity)
        + 2.0**-48 * along_path(lax.stop_gradient(schedule)) * size
    )


@typed
def evaluate(plan: Plan, rows: Rows, x: Flat, t: PerQuery, labels: Indices | None) -> Evaluation:
    """Evaluate flat queries in tiles of `plan.tile` a device, so that memory does not grow with their number.

    Args:
        plan: static choices.
        rows: the data, a constant.
        x: [b, d] float32 (or float64).
        t: [b], inside [0, 1).
        labels: [b] int32 or None.

    Returns:
        Evaluation in x's dtype.
    """
    dtype = x.dtype
    # Over a mesh a derivative by rows would be a sum over devices in a branch that some of them do not take.
    rows = jax.tree.map(lax.stop_gradient, rows)

    def tile(x, t, labels):
        with jax.enable_x64(True):
            result = _evaluate_tile(plan, rows, x, t, labels)
            return jax.tree.map(
                lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, result
            )

    return in_tiles(plan, plan.tile, tile, x, t, labels)


def in_tiles(plan: Plan, size: int, tile: Callable[..., Result], *queries) -> Result:
    """Apply `tile` to at most `size` queries a device at a time; every leaf of `queries` has them first.

    What `tile` gets divides over the mesh axes that queries are split over.
    """
    b, parts = jax.tree.leaves(queries)[0].shape[0], query_parts(plan)
    if not b:  # shapes alone: inside shard_map what is empty differs nowhere
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((parts, *leaf.shape[1:]), leaf.dtype), queries)
        return jax.tree.map(
            lambda leaf: jnp.zeros((0, *leaf.shape[1:]), leaf.dtype), jax.eval_shape(tile, *one)
        )
    size = min(size * parts, -(-b // parts) * parts)
    num_tiles = -(-b // size)
    padding = num_tiles * size - b
    if num_tiles == 1 and not padding:
        return tile(*queries)
    # Queries that lie split over a mesh axis stay where they are if every tile takes some from everywhere.
    scattered = plan.mesh is not None and len(plan.mesh.axis_names) > 1

    def split(leaf):
        # Padding repeats the last query: its result is dropped.
        padded = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], padding, 0)]) if padding else leaf
        if scattered:
            return padded.reshape(size, num_tiles, *leaf.shape[1:]).swapaxes(0, 1)
        return padded.reshape(num_tiles, size, *leaf.shape[1:])

    def join(leaf):
        leaf = leaf.swapaxes(0, 1) if scattered else leaf
        return leaf.reshape(-1, *leaf.shape[2:])[:b]

    results = lax.map(lambda args: tile(*args), jax.tree.map(split, queries))
    return jax.tree.map(join, results)
