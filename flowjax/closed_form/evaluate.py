"""From a pass over the rows to the posterior: re-scoring, merging, the physics of the path, the error bound.

A pass (dense, float32) leaves the moments of all rows and a few candidates. Three estimates come of it:

    dense     as the pass computed it; its derivatives are what callers differentiate
    combined  the candidates' share replaced by their exact one: dense − approximate candidates + exact candidates
    exact     the candidates alone, every other row dropped

`combined` is right when many rows share the weight, `exact` when few do. A query gets `exact` where what it drops
is certified to stay below the tolerance and its bound is the smaller one; else `combined`, which is far better than
its worst case, with the smaller of its own bound and that of `exact` plus the distance between the two. All of it is
[b, d] work in float64; only the pass itself touches all rows.

Error analysis (u = unit roundoff of the pass, Y = max ‖y − centre‖, X = ‖x − alpha centre‖):

    (1)  |computed − true logit| ≤ E = 1.01 u ((d + 16) alpha X Y/sigma² + 8 alpha² Y²/(2 sigma²) + 64) + weights' share
         any order of summation: Higham, Accuracy and Stability of Numerical Algorithms, §3.1. With direct
         differences the first two terms become (d + 8)|l| + 3 (alpha Y + X) sqrt(2 |l|)/sigma.
    (2)  rows with wrong logits carry at most the share rho of the weight, so the mean moves by at most
         (exp(2E) − 1) min(2 sqrt(rho V), 4 rho Y), V = variance; sums add 10 (block + 4 blocks + 16) u exp(E) Y
    (3)  dropping n' rows whose logits are ≤ r moves the mean by at most 2 Y eps/(1 + eps), with
         eps = n' exp(r + E − log normaliser of the candidates)
    (4)  no error of the mean exceeds 4 Y: û's lies in the convex hull of the data, `exact` too, and `combined` within
         3 Y of the centre, since a remainder of mere rounding is left out or small beside the rest (`_significant`).

The velocity error is |alpha' − sigma' alpha/sigma| times that of the mean, plus rounding of the result.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from flowjax.paths import Path
from flowjax.typing import Flat, Indices, PerQuery, Scalar, typed

from . import moments as algebra
from . import streamed
from .dense import Query, Rows, Settings, stream, uses_direct_differences
from .moments import Moments
from .refine import candidate_moments, exact_logits

Result = TypeVar("Result")

RELEVANT = 40.0
"""Rows more than this many nats below the best weigh less than 5e-18 each: beyond any rounding considered."""


class Evaluation(NamedTuple):
    """Flat results: vectors [b, d], scalars [b]; the scalars are None when only the velocity was asked for."""

    mean: Flat
    velocity: Flat
    log_density: PerQuery | None
    entropy: PerQuery | None
    effective_sample_size: PerQuery | None
    max_weight: PerQuery | None
    argmax: Indices | None
    variance: PerQuery | None
    error_bound: PerQuery | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Parts:
    """What one set of rows contributes; merged over flipped copies and devices. All float64, full logits."""

    dense: Moments
    remainder: Moments
    exact: Moments
    rest: PerQuery
    best_logit: PerQuery
    best_index: Indices


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything static about an evaluation."""

    path: Path
    settings: Settings
    event_shape: tuple[int, ...]
    horizontal_flip: bool
    tolerance: float
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None
    tile: int
    stream_block: int | None = None


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


def _parts(plan: Plan, rows: Rows, query: Query) -> _Parts:
    """One pass over local rows and the exact re-scoring of its candidates."""
    settings = plan.settings
    low = jax.tree.map(lambda leaf: leaf.astype(settings.dtype), dataclasses.replace(query, labels=None))
    total, candidates = stream(settings, dataclasses.replace(low, labels=query.labels), rows)
    candidates = lax.stop_gradient(candidates)
    # The term −‖x‖²/(2 sigma²) common to all logits: the products leave it out, direct differences have it.
    # The maximum is a constant of the algebra, so its derivative goes into the sums.
    constant = -jnp.sum(query.x**2, 1) / (2 * query.sigma**2)
    fixed = lax.stop_gradient(constant)
    offset = jnp.zeros_like(fixed) if uses_direct_differences(rows.dimension) else fixed
    dense = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), total)
    dense = algebra.shift_logits(dataclasses.replace(dense, max=dense.max + offset), constant - fixed)
    approximate = candidates.logit.astype(jnp.float64) + offset[:, None]
    rest = candidates.rest.astype(jnp.float64) + offset
    index = candidates.index
    if settings.axis_name is not None:
        index = index + lax.axis_index(settings.axis_name).astype(jnp.int32) * rows.count
    logits = exact_logits(rows, query, candidates)
    exact = candidate_moments(settings, rows, candidates, logits, jnp.max(lax.stop_gradient(logits), 1))
    held = jax.tree.map(lax.stop_gradient, dense)
    part = candidate_moments(settings, rows, candidates, approximate, held.max)
    # Compared as float32 gaps to the maximum: argmax is lowered outside the float64 island.
    gap = (lax.stop_gradient(logits) - exact.max[:, None]).astype(jnp.float32)
    best = lax.argmax(gap, 1, jnp.int32)
    chosen = jnp.arange(settings.num_candidates, dtype=jnp.int32) == best[:, None]
    return _Parts(
        dense=dense,
        remainder=_significant(
            algebra.subtract(held, part),
            jax.tree.map(lax.stop_gradient, exact),
            4 * _summation_error(plan, rows) * held.normaliser,
        ),
        exact=exact,
        rest=rest,
        best_logit=jnp.sum(jnp.where(chosen, logits, 0), 1),
        best_index=jnp.sum(jnp.where(chosen, index, 0), 1, dtype=jnp.int32),
    )


@typed
def _significant(remainder: Moments, exact: Moments, level: PerQuery) -> Moments:
    """The remainder, or no rows where it is nothing but rounding of a pass gone astray.

    Late in time the pass errs by thousands of nats: what rounding leaves of the subtraction, relative to a maximum that
    far above the exact one, would drown the exact candidates, or divide nothing by nothing.
    """
    astray = jnp.abs(remainder.max - exact.max) > 1
    keep = (remainder.normaliser > jnp.where(astray, level, 0.0)) & (remainder.max > -jnp.inf)

    def masked(leaf):
        return jnp.where(keep[:, None] if leaf.ndim == 2 else keep, leaf, 0.0)

    return dataclasses.replace(jax.tree.map(masked, remainder), max=jnp.where(keep, remainder.max, -jnp.inf))


def _summation_error(plan: Plan, rows: Rows) -> float:
    """Relative error of a sum over all rows: within a block, and a rescaling and an addition per merge."""
    unit = plan.settings.unit
    blocks = -(-rows.count // plan.settings.block_size)
    return unit * (plan.settings.block_size + 4 * blocks + 16)


def _merge_parts(first: _Parts, second: _Parts) -> _Parts:
    keep = first.best_logit >= second.best_logit
    return _Parts(
        dense=algebra.merge(first.dense, second.dense),
        remainder=algebra.merge(first.remainder, second.remainder),
        exact=algebra.merge(first.exact, second.exact),
        rest=jnp.maximum(first.rest, second.rest),
        best_logit=jnp.where(keep, first.best_logit, second.best_logit),
        best_index=jnp.where(keep, first.best_index, second.best_index),
    )


def _no_parts(plan: Plan, rows: Rows, query: Query) -> _Parts:
    """What no rows contribute: the neutral element of `_merge_parts`."""
    b = query.x.shape[0]
    none = algebra.empty(b, rows.dimension, jnp.float64, scalars=plan.settings.scalars)
    return _Parts(none, none, none, none.max, none.max, jnp.zeros(b, jnp.int32))


def _merge_parts_across(parts: _Parts, axis_name: str) -> _Parts:
    """The collective form of `_merge_parts`; ties for the best row go to the lowest index."""
    fixed = lax.stop_gradient(parts.best_logit)
    best = algebra.max_across(fixed, axis_name)
    last = jnp.iinfo(jnp.int32).max
    index = lax.pmin(jnp.where(fixed == best, parts.best_index, last), axis_name)
    mine = (fixed == best) & (parts.best_index == index)
    return _Parts(
        dense=algebra.merge_across(parts.dense, axis_name),
        remainder=algebra.merge_across(parts.remainder, axis_name),
        exact=algebra.merge_across(parts.exact, axis_name),
        rest=algebra.max_across(lax.stop_gradient(parts.rest), axis_name),
        best_logit=lax.psum(jnp.where(mine, parts.best_logit, 0), axis_name),
        best_index=index,
    )


def _with_flips(plan: Plan, rows: Rows, query: Query) -> _Parts:
    """Flipped copies as extra queries: ‖x − alpha F y‖ = ‖F x − alpha y‖, and F is undone on the sums."""
    if not plan.horizontal_flip:
        return _parts(plan, rows, query)
    b = query.x.shape[0]

    def flip(x):
        return x.reshape(-1, *plan.event_shape)[:, :, ::-1].reshape(x.shape)

    # Side by side, not one batch after the other: queries that lie split over a mesh axis stay where they are.
    def pair(first, second):
        return jnp.stack([first, second], 1).reshape(2 * b, *first.shape[1:])

    both = jax.tree.map(lambda leaf: pair(leaf, leaf), query)
    both = dataclasses.replace(both, x=pair(query.x, flip(query.x)))
    parts = jax.tree.map(lambda leaf: leaf.reshape(b, 2, *leaf.shape[1:]), _parts(plan, rows, both))
    plain, mirrored = (jax.tree.map(lambda leaf, s=s: leaf[:, s], parts) for s in (0, 1))

    def unflip(part: Moments) -> Moments:
        return dataclasses.replace(part, weighted_sum=flip(part.weighted_sum))

    total = rows.count * (1 if plan.settings.axis_name is None else lax.axis_size(plan.settings.axis_name))
    mirrored = dataclasses.replace(
        mirrored,
        dense=unflip(mirrored.dense),
        remainder=unflip(mirrored.remainder),
        exact=unflip(mirrored.exact),
        best_index=mirrored.best_index + total,
    )
    return _merge_parts(plain, mirrored)


def _all_parts(plan: Plan, rows: Rows, query: Query) -> _Parts:
    if plan.stream_block is not None:
        one_block = functools.partial(_with_flips, plan)
        return streamed.accumulate(
            rows, query, plan.stream_block, one_block, _merge_parts, _no_parts(plan, rows, query)
        )
    axis = plan.settings.axis_name
    if axis is None:
        return _with_flips(plan, rows, query)

    def local(rows, query):
        return _merge_parts_across(_with_flips(plan, rows, query), axis)

    split, whole = jax.P(axis), jax.P()
    row_specs = Rows(
        data=split,  # type: ignore[arg-type]
        square_norms=split,  # type: ignore[arg-type]
        log_weights=None if rows.log_weights is None else split,  # type: ignore[arg-type]
        labels=None if rows.labels is None else split,  # type: ignore[arg-type]
        centre=None if rows.centre is None else whole,  # type: ignore[arg-type]
        max_norm=whole,  # type: ignore[arg-type]
        log_weight_bound=whole,  # type: ignore[arg-type]
        class_log_weights=whole,  # type: ignore[arg-type]
    )
    # Over other axes of the mesh queries may lie split as they like.
    mapped = jax.shard_map(
        local, mesh=plan.mesh, in_specs=(row_specs, whole), out_specs=whole, axis_names={axis}
    )
    return mapped(rows, query)


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
    parts = _all_parts(plan, rows, query)

    prior = log_prior(rows, plan, labels)
    dense = finalise(rows, x, schedule, parts.dense, prior, parts.best_logit)
    combined_moments = algebra.merge(parts.exact, parts.remainder)
    combined = finalise(rows, x, schedule, combined_moments, prior, parts.best_logit)
    combined = lax.stop_gradient(combined)
    # Values of `combined`, derivatives of `dense`: the two differ by rounding only.
    result = jax.tree.map(lambda low, high: low + (high - lax.stop_gradient(low)), dense, combined)

    fixed = jax.tree.map(lax.stop_gradient, (query, parts, combined_moments))
    bounds = _error_bounds(plan, rows, *fixed)
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


class _Bounds(NamedTuple):
    """Bounds of the error of the mean, [b]. The coarse pair needs no scalar moments and decides which
    estimate is taken, so that the velocity alone and the whole posterior take the same one; `lost` is the part of
    `exact` that comes of dropping rows."""

    combined: PerQuery
    combined_coarse: PerQuery
    exact: PerQuery
    exact_coarse: PerQuery
    lost: PerQuery


def _error_bounds(plan: Plan, rows: Rows, query: Query, parts: _Parts, combined: Moments) -> _Bounds:
    """Equations (2), (3) and (4)."""
    settings = plan.settings
    y = rows.max_norm.astype(jnp.float64)
    summation = _summation_error(plan, rows)

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
    return _Bounds(*no_less)


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


@typed
def evaluate(plan: Plan, rows: Rows, x: Flat, t: PerQuery, labels: Indices | None) -> Evaluation:
    """Evaluate flat queries in tiles of `plan.tile`, so that memory does not grow with their number.

    Args:
        plan: static choices.
        rows: the data.
        x: [b, d] float32 (or float64).
        t: [b], inside [0, 1).
        labels: [b] int32 or None.

    Returns:
        Evaluation in x's dtype.
    """
    dtype = x.dtype

    def tile(x, t, labels):
        with jax.enable_x64(True):
            result = _evaluate_tile(plan, rows, x, t, labels)
            return jax.tree.map(
                lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, result
            )

    return in_tiles(plan, tile, x, t, labels)


def in_tiles(plan: Plan, tile: Callable[..., Result], x: Flat, t: PerQuery, labels: Indices | None) -> Result:
    """Apply `tile` to at most `plan.tile` queries at a time."""
    b = x.shape[0]
    if b <= plan.tile:
        return tile(x, t, labels)
    num_tiles = -(-b // plan.tile)
    padding = num_tiles * plan.tile - b

    # Queries that lie split over a mesh axis stay where they are if every tile takes some from everywhere.
    scattered = plan.mesh is not None and len(plan.mesh.axis_names) > 1

    def split(leaf):
        # Padding repeats the last query: its result is dropped.
        padded = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], padding, 0)]) if padding else leaf
        if scattered:
            return padded.reshape(plan.tile, num_tiles, *leaf.shape[1:]).swapaxes(0, 1)
        return padded.reshape(num_tiles, plan.tile, *leaf.shape[1:])

    def join(leaf):
        leaf = leaf.swapaxes(0, 1) if scattered else leaf
        return leaf.reshape(-1, *leaf.shape[2:])[:b]

    results = lax.map(lambda args: tile(*args), jax.tree.map(split, (x, t, labels)))
    return jax.tree.map(join, results)
