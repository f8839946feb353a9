"""Conditional, empirical and exact regression targets of flow matching.

Given a row x1 of the data, noise x0 and x_t = alpha x1 + sigma x0, all three have the same expectation given
x_t, the closed-form velocity û(x_t, t), so a network trained on any of them has the same optimum. They differ
in variance:

    conditional   alpha' x1 + sigma' x0                               (CFM; one point)
    empirical     the closed form over x1 and M − 1 other rows        (EFM; M points)
    closed form   û itself                                            (all n points, no variance)

Reference: Bertrand, Gagneux, Massias, Emonet, arXiv 2506.03719, §4.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from flowjax.closed_form import ClosedFormField, to_float
from flowjax.paths import Linear, Path
from flowjax.typing import (
    Array,
    Batch,
    Bool,
    HostOrDeviceData,
    Indices,
    Int,
    PerQuery,
    PRNGKey,
    RowLabels,
    typed,
)


class Target(abc.ABC):
    """A regression target: a pure function of an explicit key and one batch. A pytree."""

    path: Path

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Short name for tables and file names."""

    @typed
    def __call__(
        self,
        key: PRNGKey,
        x0: ArrayLike,
        x1: ArrayLike,
        t: ArrayLike,
        *,
        index: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        rows: HostOrDeviceData | None = None,
    ) -> Batch:
        """The velocity to regress on at x_t = path.interpolate(x0, x1, t).

        Args:
            key: randomness of the target itself (the other rows of the empirical target).
            x0: noise, [b, *event] float32.
            x1: data, [b, *event] float32, row `index` of the data set.
            t: [b], in [0, 1).
            index: [b] int32 row numbers of x1; the empirical target needs them, the closed form screens faster with
                them (in vain if they number the rows of other data).
            labels: [b] int32 classes for class-conditional training, None otherwise.
            rows: the data set [n, *event] in storage dtype; only the empirical target needs it.

        Returns:
            [b, *event] float32.
        """
        index = None if index is None else jnp.asarray(index)
        labels = None if labels is None else jnp.asarray(labels)
        return self._velocity(
            key, jnp.asarray(x0), jnp.asarray(x1), jnp.asarray(t), index=index, labels=labels, rows=rows
        )

    @abc.abstractmethod
    def _velocity(self, key, x0, x1, t, *, index, labels, rows) -> jax.Array:
        """What `__call__` returns, for one kind of target."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ConditionalTarget(Target):
    """alpha' x1 + sigma' x0. See `conditional`."""

    path: Path

    @property
    def name(self) -> str:
        return "conditional"

    def _velocity(self, key, x0, x1, t, *, index, labels, rows):
        return self.path.conditional_velocity(x0, x1, t)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EmpiricalTarget(Target):
    """The closed form over x1 and other rows drawn at random. See `empirical`."""

    num_samples: int = dataclasses.field(metadata={"static": True})
    path: Path = dataclasses.field(metadata={"static": True})
    row_labels: jax.Array | None = None
    horizontal_flip: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def name(self) -> str:
        return f"empirical-{self.num_samples}"

    def _velocity(self, key, x0, x1, t, *, index, labels, rows):
        if index is None or rows is None:
            raise ValueError("the empirical target needs index= (row numbers of x1) and rows= (the data set)")
        if labels is not None and self.row_labels is None:
            raise ValueError(
                "class-conditional use needs the rows' labels: empirical(num_samples, labels=...)"
            )
        if self.horizontal_flip and rows.ndim != 4:
            raise ValueError(
                f"horizontal_flip needs rows of shape [n, height, width, channels], got {rows.shape}"
            )
        if self.row_labels is not None and self.row_labels.shape != rows.shape[:1]:
            raise ValueError(
                f"the target's labels have shape {self.row_labels.shape}, but there are {rows.shape[0]} rows"
            )
        count = rows.shape[0] * (2 if self.horizontal_flip else 1)
        if self.num_samples > count:
            raise ValueError(
                f"num_samples={self.num_samples} exceeds the {count} points of the data set; "
                "use at most that many, or closed_form(field) for all of them"
            )
        if not isinstance(index, Tracer) and index.size and not 0 <= index.min() <= index.max() < count:
            raise ValueError(f"index must lie in 0..{count - 1}, got {index.min()} to {index.max()}")
        support = draw_distinct(key, count, self.num_samples)
        return empirical_velocity(
            self.path, x0, x1, t, index, support, rows, row_labels=self.row_labels, labels=labels
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClosedFormTarget(Target):
    """û over the whole data set. See `closed_form`."""

    field: ClosedFormField

    @property
    def path(self) -> Path:  # type: ignore[override]
        return self.field.path

    @property
    def name(self) -> str:
        return "closed-form"

    def _velocity(self, key, x0, x1, t, *, index, labels, rows):
        return jax.lax.stop_gradient(self.field(self.path.interpolate(x0, x1, t), t, labels, hint=index))


def conditional(path: Path | None = None) -> ConditionalTarget:
    """The target of conditional flow matching, alpha' x1 + sigma' x0 (Lipman et al., arXiv 2210.02747)."""
    return ConditionalTarget(Linear() if path is None else path)


def empirical(
    num_samples: int = 1000,
    path: Path | None = None,
    *,
    labels: jax.Array | None = None,
    horizontal_flip: bool = False,
) -> EmpiricalTarget:
    """The closed form over `num_samples` rows: b_1 := x1, the others without replacement from the other n − 1.

    num_samples = 1 is the conditional target, num_samples = n the exact one. One draw of rows serves the whole
    batch, so the cost is two matrix products with num_samples rows; every example's target is unbiased, since
    from its own point of view the others are a uniform draw from the rows that are not x1.

    Args:
        num_samples: M ≥ 1.
        path: Gaussian path; Linear by default.
        labels: [n] classes of the rows, for class-conditional training: rows of other classes are left out.
            Unbiased as well, since given their number the remaining rows are uniform in the class.
        horizontal_flip: draw from the rows and their mirror images, 2n points in all; the mirror image of row i has
            number i + n, in `index` too.

    Raises:
        ValueError: num_samples < 1, and at the call: more than n, or index or rows missing.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int):
        raise TypeError(f"num_samples must be a whole number, got {num_samples!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    return EmpiricalTarget(num_samples, Linear() if path is None else path, labels, horizontal_flip)


def closed_form(field: ClosedFormField) -> ClosedFormTarget:
    """The exact velocity of the field's whole data set: the conditional expectation itself, without variance."""
    return ClosedFormTarget(field)


def draw_distinct(key: PRNGKey, n: int, m: int) -> jax.Array:
    """m different numbers below n, [m] int32 in random order, every such sequence as likely as any other.

    The first m different ones of 2m independent draws, or of 2m others should there be fewer. That sorts 2m numbers,
    where a permutation of all n sorts these: 25 ms for 60 000 and .7 s for 1.3 million on two CPU cores, this .2 to
    .9 ms.

    Raises:
        ValueError: m is no number from 1 to n.
    """
    if not 1 <= m <= n:
        raise ValueError(f"cannot draw {m} different numbers below {n}")
    if 4 * m > n:  # where 2m draws repeat themselves too often
        return jax.random.permutation(key, n)[:m].astype(jnp.int32)

    def draw(state):
        key, subkey = jax.random.split(state[0])
        drawn = jax.random.randint(subkey, (2 * m,), 0, n, dtype=jnp.int32)
        order = jnp.argsort(drawn, stable=True)
        in_order = drawn[order]
        changes = jnp.concatenate([jnp.ones(1, bool), in_order[1:] != in_order[:-1]])
        first = jnp.zeros(2 * m, bool).at[order].set(changes)
        place = jnp.where(first, jnp.cumsum(first) - 1, m)
        return key, jnp.zeros(m, jnp.int32).at[place].set(drawn, mode="drop"), jnp.sum(first) < m

    return jax.lax.while_loop(lambda state: state[2], draw, draw((key,)))[1]


@typed
def draw_support(index: Indices, support: Int[Array, "m"]) -> Bool[Array, "b m"]:
    """Which of the M drawn rows are somebody's "other" M − 1 rows, [b, M] bool.

    A row that drew itself leaves itself out (it takes part as b_1 anyway); one that did not leaves out the
    last of the draw. Either way M − 1 distinct others remain, uniform over the rows that are not x1.
    """
    itself = index[:, None] == support
    last = jnp.arange(support.shape[0]) == support.shape[0] - 1
    return ~jnp.where(jnp.any(itself, 1, keepdims=True), itself, last)


@typed
def empirical_velocity(
    path: Path,
    x0: Batch,
    x1: Batch,
    t: PerQuery,
    index: Indices,
    support: Int[Array, "m"],
    rows: HostOrDeviceData,
    *,
    row_labels: RowLabels | None = None,
    labels: Indices | None = None,
) -> Batch:
    """The empirical target for a given draw `support` of M distinct points; arguments as for a target.

    Numbers from n on, in `support` and `index`, are the mirror images of rows 0, 1, … (for [height, width, channels]).

    With q = x_t/alpha, points relative to the mean of the draw (they may lie far from the origin), and w the softmax:

        logit_j − logit_1 = −alpha²/(2 sigma²) (‖y_j‖² − ‖x1‖² − 2 q·(y_j − x1))
        velocity          = conditional velocity + (alpha' − sigma' alpha/sigma) Σ_j w_j (y_j − x1)

    In float32, by products: near-duplicates late in time cost digits, which
    `closed_form` re-scores and this target, noisy as it is, does not.
    """
    b = x1.shape[0]
    shape = x1.shape
    x0, x1 = x0.reshape(b, -1), x1.reshape(b, -1)
    others = _points(jnp.asarray(rows), support)
    support_rows = support % rows.shape[0]
    allowed = draw_support(index, support)
    if labels is not None:
        assert row_labels is not None
        allowed &= jnp.asarray(row_labels)[support_rows] == labels[:, None]
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    highest = jax.lax.Precision.HIGHEST
    x1_data, reference = x1, jnp.mean(others, 0)
    others, x1 = others - reference, x1 - reference
    query = x1 + (sigma / jnp.where(alpha == 0, 1, alpha)) * x0
    # ‖query − y‖² − ‖query − x1‖² by products; at alpha = 0 the logits vanish whatever stands here.
    square = (
        jnp.sum(others**2, 1)
        - jnp.sum(x1**2, 1)[:, None]
        - 2 * (jnp.matmul(query, others.T, precision=highest) - jnp.sum(query * x1, 1)[:, None])
    )
    logits = jnp.where(allowed, -(alpha**2) * square / (2 * sigma**2), -jnp.inf)
    logits = jnp.concatenate([jnp.zeros((b, 1), logits.dtype), logits], 1)
    weights = jax.nn.softmax(logits, axis=1)[:, 1:]
    shift = jnp.matmul(weights, others, precision=highest) - jnp.sum(weights, 1)[:, None] * x1
    alpha_dot, sigma_dot = path.alpha_dot(t)[:, None], path.sigma_dot(t)[:, None]
    velocity = alpha_dot * x1_data + sigma_dot * x0 + (alpha_dot - sigma_dot * alpha / sigma) * shift
    return velocity.reshape(shape)


def _points(rows: jax.Array, numbers: jax.Array) -> jax.Array:
    """Points of these numbers as float32 [m, d]; from n on they are mirror images."""
    n = rows.shape[0]
    points = rows[numbers % n]
    if rows.ndim == 4:
        mirrored = (numbers >= n).reshape(-1, 1, 1, 1)
        points = jnp.where(mirrored, points[:, :, ::-1], points)
    return to_float(points.reshape(numbers.shape[0], -1))
