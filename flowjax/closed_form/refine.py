"""Exact re-scoring of the few rows that may carry the weight: direct differences in float64.

Between near neighbours late in time the velocity hangs on the difference of two huge logits, which no float32
evaluation resolves. The candidates of a pass are few, so they are evaluated again in double precision from the
stored rows themselves. Everything here must be called inside `jax.enable_x64(True)`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flowjax.typing import Flat, Indices, PerCandidate, PerQuery, typed

from . import streamed
from .dense import Candidates, Query, Rows, Settings
from .moments import Moments, Scalars, finite_max
from .rows import to_float


@typed
def gather_points(rows: Rows, index: Indices) -> Flat:
    """Rows `index` [b] as centred float64 points [b, d], from wherever they are stored."""
    stored = streamed.gather(rows, index) if streamed.is_streamed(rows) else rows.data[index]
    points = to_float(stored.reshape(index.shape[0], rows.dimension)).astype(jnp.float64)
    return points if rows.centre is None else points - rows.centre.astype(jnp.float64)


@typed
def exact_logits(rows: Rows, query: Query, candidates: Candidates) -> PerCandidate:
    """−‖x − alpha y‖²/(2 sigma²) + log w of every candidate, [b, k] float64, −inf in unused slots."""

    @jax.checkpoint
    def logit(index):
        difference = query.x - query.alpha[:, None] * gather_points(rows, index)
        value = -jnp.sum(difference**2, 1) / (2 * query.sigma**2)
        return value if rows.log_weights is None else value + rows.log_weights[index].astype(jnp.float64)

    values = lax.map(logit, candidates.index.T).T
    return jnp.where(candidates.logit == -jnp.inf, -jnp.inf, values)


@typed
def candidate_moments(
    settings: Settings, rows: Rows, candidates: Candidates, logits: PerCandidate, maximum: PerQuery
) -> Moments:
    """Moments of the candidates alone under the given logits [b, k], relative to `maximum` [b]."""
    shifted = logits - finite_max(maximum)[:, None]
    weights = jnp.exp(shifted)

    @jax.checkpoint
    def row_sums(index, weight):
        points = gather_points(rows, index)
        return weight[:, None] * points, weight * jnp.sum(points**2, 1)

    def body(carry, slot):
        return jax.tree.map(jnp.add, carry, row_sums(*slot)), None

    b = weights.shape[0]
    zero = jnp.zeros((b, rows.dimension), jnp.float64), jnp.zeros(b, jnp.float64)
    if settings.axis_name is not None:
        zero = lax.pcast(zero, settings.axis_name, to="varying")
    (weighted_sum, weighted_square), _ = lax.scan(body, zero, (candidates.index.T, weights.T))
    scalars = None
    if settings.scalars:
        scalars = Scalars(
            logit=jnp.sum(weights * jnp.where(weights > 0, shifted, 0), 1),
            square=weighted_square,
            squared=jnp.sum(weights * weights, 1),
        )
    return Moments(maximum, jnp.sum(weights, 1), weighted_sum, scalars)
