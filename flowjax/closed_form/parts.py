"""What a set of rows contributes to the posterior, and how the contributions of blocks, flips and devices merge."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from flowjax.paths import Path
from flowjax.typing import Indices, PerQuery, typed

from . import moments as algebra
from . import streamed
from .costs import MEASURED, Costs
from .dense import stream
from .moments import Moments
from .passes import Query, Settings, uses_direct_differences
from .refine import best_of_all, rescore
from .rows import Rows


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
    costs: Costs = MEASURED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parts:
    """What one set of rows contributes; merged over flipped copies and devices. All float64, full logits."""

    dense: Moments
    remainder: Moments
    exact: Moments
    rest: PerQuery
    best_logit: PerQuery
    best_index: Indices


def _parts(plan: Plan, rows: Rows, query: Query) -> Parts:
    """One pass over local rows and the exact re-scoring of its candidates."""
    settings = plan.settings
    low = jax.tree.map(lambda leaf: leaf.astype(settings.dtype), dataclasses.replace(query, labels=None))
    total, candidates = stream(settings, dataclasses.replace(low, labels=query.labels), rows)
    candidates = lax.stop_gradient(candidates)
    if settings.axis_name is not None:
        candidates = best_of_all(candidates, settings.axis_name)
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
    held = jax.tree.map(lax.stop_gradient, dense)
    logits, exact, part = rescore(settings, rows, query, candidates, approximate, held.max)
    # Compared as float32 gaps to the maximum: argmax is lowered outside the float64 island.
    gap = (lax.stop_gradient(logits) - exact.max[:, None]).astype(jnp.float32)
    best = lax.argmax(gap, 1, jnp.int32)
    chosen = jnp.arange(settings.num_candidates, dtype=jnp.int32) == best[:, None]
    return Parts(
        dense=dense,
        remainder=algebra.subtract(held, part),
        exact=exact,
        rest=rest,
        best_logit=jnp.sum(jnp.where(chosen, logits, 0), 1),
        best_index=jnp.sum(jnp.where(chosen, index, 0), 1, dtype=jnp.int32),
    )


@typed
def _significant(remainder: Moments, exact: Moments, level: PerQuery) -> Moments:
    """The remainder, or no rows where it is nothing but rounding of a pass gone astray.

    Late in time the pass errs by thousands of nats: what rounding leaves of the subtraction, relative to a maximum that
    far above the exact one, would drown the exact candidates, or divide nothing by nothing. Only all rows together
    tell: a block or device without candidates has all of its rows in the remainder, at logits that astray.
    """
    astray = jnp.abs(remainder.max - exact.max) > 1
    keep = (remainder.normaliser > jnp.where(astray, level, 0.0)) & (remainder.max > -jnp.inf)

    def masked(leaf):
        return jnp.where(keep[:, None] if leaf.ndim == 2 else keep, leaf, 0.0)

    return dataclasses.replace(jax.tree.map(masked, remainder), max=jnp.where(keep, remainder.max, -jnp.inf))


def summation_error(plan: Plan, rows: Rows) -> float:
    """Relative error of a sum over all rows."""
    return plan.settings.unit * (plan.settings.roundings(rows.count) + 16)


def _merge_parts(first: Parts, second: Parts) -> Parts:
    keep = first.best_logit >= second.best_logit
    return Parts(
        dense=algebra.merge(first.dense, second.dense),
        remainder=algebra.merge(first.remainder, second.remainder),
        exact=algebra.merge(first.exact, second.exact),
        rest=jnp.maximum(first.rest, second.rest),
        best_logit=jnp.where(keep, first.best_logit, second.best_logit),
        best_index=jnp.where(keep, first.best_index, second.best_index),
    )


def _no_parts(plan: Plan, rows: Rows, query: Query) -> Parts:
    """What no rows contribute: the neutral element of `_merge_parts`."""
    b = query.x.shape[0]
    none = algebra.empty(b, rows.dimension, jnp.float64, scalars=plan.settings.scalars)
    return Parts(none, none, none, none.max, none.max, jnp.zeros(b, jnp.int32))


def _merge_parts_across(parts: Parts, axis_name: str) -> Parts:
    """The collective form of `_merge_parts`; ties for the best row go to the lowest index."""
    fixed = lax.stop_gradient(parts.best_logit)
    best = algebra.max_across(fixed, axis_name)
    last = jnp.iinfo(jnp.int32).max
    index = lax.pmin(jnp.where(fixed == best, parts.best_index, last), axis_name)
    mine = (fixed == best) & (parts.best_index == index)
    return Parts(
        dense=algebra.merge_across(parts.dense, axis_name),
        remainder=algebra.merge_across(parts.remainder, axis_name),
        exact=algebra.merge_across(parts.exact, axis_name),
        rest=algebra.max_across(lax.stop_gradient(parts.rest), axis_name),
        best_logit=lax.psum(jnp.where(mine, parts.best_logit, 0), axis_name),
        best_index=index,
    )


def _with_flips(plan: Plan, rows: Rows, query: Query) -> Parts:
    """Flipped copies as extra queries: ‖x − alpha F y‖ = ‖F x − alpha y‖, and F is undone on the sums."""
    if not plan.horizontal_flip:
        return _parts(plan, rows, query)
    b = query.x.shape[0]

    def flip(x):
        return x.reshape(-1, *plan.event_shape)[:, :, ::-1].reshape(x.shape)

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


def all_parts(plan: Plan, rows: Rows, query: Query) -> Parts:
    """What all rows contribute to b queries; a number of queries that `query_parts` divides."""
    parts = _of_all_rows(plan, rows, query)
    level = 4 * summation_error(plan, rows) * lax.stop_gradient(parts.dense.normaliser)
    exact = jax.tree.map(lax.stop_gradient, parts.exact)
    return dataclasses.replace(parts, remainder=_significant(parts.remainder, exact, level))


def _of_all_rows(plan: Plan, rows: Rows, query: Query) -> Parts:
    if plan.stream_block is not None:
        one_block = functools.partial(_with_flips, plan)
        return streamed.accumulate(
            rows, query, plan.stream_block, one_block, _merge_parts, _no_parts(plan, rows, query)
        )
    axis = plan.settings.axis_name
    if axis is None or plan.mesh is None:
        return _with_flips(plan, rows, query)

    over = query_axes(plan)
    local_plan = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, varying=(axis, *over)))

    def local(rows, query):
        return _merge_parts_across(_with_flips(local_plan, rows, query), axis)

    mapped = jax.shard_map(
        local,
        mesh=plan.mesh,
        in_specs=(row_specs(rows, axis), jax.P(over)),
        out_specs=jax.P(over),
        axis_names=set(plan.mesh.axis_names),
    )
    return mapped(rows, query)


def query_axes(plan: Plan) -> tuple[str, ...]:
    """The mesh axes that queries are split over: all of type Auto beside that of the rows."""
    if plan.mesh is None:
        return ()
    kinds = zip(plan.mesh.axis_names, plan.mesh.axis_types, strict=True)
    auto = jax.sharding.AxisType.Auto
    return tuple(name for name, kind in kinds if kind == auto and name != plan.settings.axis_name)


def query_parts(plan: Plan) -> int:
    """In how many parts queries are split."""
    return 1 if plan.mesh is None else math.prod(plan.mesh.shape[name] for name in query_axes(plan))


def row_specs(rows: Rows, axis: str) -> Rows:
    """How rows lie over a mesh axis: partition specs in the places of arrays."""
    split, whole = jax.P(axis), jax.P()
    return Rows(
        data=split,  # type: ignore[arg-type]
        square_norms=split,  # type: ignore[arg-type]
        log_weights=None if rows.log_weights is None else split,  # type: ignore[arg-type]
        labels=None if rows.labels is None else split,  # type: ignore[arg-type]
        centre=None if rows.centre is None else whole,  # type: ignore[arg-type]
        max_norm=whole,  # type: ignore[arg-type]
        log_weight_bound=whole,  # type: ignore[arg-type]
        class_log_weights=whole,  # type: ignore[arg-type]
    )
