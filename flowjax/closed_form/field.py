"""`ClosedFormField` and `Posterior`: what users hold."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from flowjax._choices import check_choice
from flowjax.paths import Linear, Path

from . import costs, queries, streamed
from .construct import Placement, as_rows, check_rows, empty_classes, make_rows, placement
from .costs import Costs
from .dense import block_rows
from .evaluate import Evaluation, Plan, evaluate
from .explain import Explanation
from .passes import Settings
from .rows import Rows, take
from .screen import Screen, can_screen, fits, make_screen
from .screened import evaluate_screened
from .sources import RowSource, is_remote, open_rows

Method = Literal["auto", "dense", "screened", "streamed", "pallas_tpu", "pallas_gpu"]
Precision = Literal["float32", "float16x3", "bfloat16x6", "float64"]

_TILE = 1024
_NUM_CANDIDATES = 16
_AUTO_SCREEN_ENTRIES = 50_000_000
_AUTO_SCREEN_POINTS = 500_000
_AUTO_KERNEL_DIMENSION = 128
_LEAST_KERNEL_QUERIES = 64


class Posterior(NamedTuple):
    """The posterior over data points seen from each query (x, t).

    Attributes:
        mean: [*batch, *event] x̂, the optimal denoiser.
        velocity: [*batch, *event] û.
        log_density: [*batch] log p̂_t(x) in nats, with respect to Lebesgue measure on the d flattened axes.
        entropy: [*batch] of the weights, in nats.
        effective_sample_size: [*batch] 1/Σw².
        max_weight: [*batch].
        argmax: [*batch] int32 row of the largest weight; a flipped copy of row i counts as i + num_points.
        variance: [*batch] trace of the covariance of the data points under the weights.
        error_bound: [*batch] certified ‖velocity − û‖ in absolute units, rounding included.
    """

    mean: jax.Array
    velocity: jax.Array
    log_density: jax.Array
    entropy: jax.Array
    effective_sample_size: jax.Array
    max_weight: jax.Array
    argmax: jax.Array
    variance: jax.Array
    error_bound: jax.Array


@dataclasses.dataclass(frozen=True)
class _Static:
    event_shape: tuple[int, ...]
    path: Path
    method: Method
    tolerance: float
    precision: Precision
    block_size: int | None
    horizontal_flip: bool
    placement: Placement | None
    empty_classes: tuple[int, ...]
    costs: Costs
    kernel: bool
    """Whether "auto" may be "pallas_gpu"."""
    platform: str
    """Where the rows lie; of rows on the host, where JAX computes."""


@jax.tree_util.register_pytree_with_keys_class
class ClosedFormField:
    """The exact velocity field of flow matching on a finite data set.

    `field(x, t)` is û(x, t) = alpha' x̂ + sigma' (x − alpha x̂)/sigma with x̂ the average of all data points under
    the weights softmax_i(−‖x − alpha y_i‖²/(2 sigma²) + log w_i). It is a velocity function and a pytree: pass it
    through `jit`, `vmap`, `grad`, `shard_map`, `device_put` as an argument, and the data stays an argument too.

    Data that lies sharded over a mesh axis (first axis only) is evaluated where it lies, with one merge over the
    devices, which may belong to several processes: each of them makes the same calls with the same queries, and
    `flowjax.data.place` makes global arrays of the rows (weights, labels) that each one holds. Queries may lie split
    over another axis of that mesh, if its axes are of type Auto. Derivatives in x and t of any order run in bounded
    memory; the data itself is a constant.

    Args:
        data: [n, *event]; uint8 (meaning y/127.5 − 1), bfloat16, float16 or float32, kept in its dtype and
            converted block by block; pictures on an accelerator are copied once, into flat rows. float64 NumPy arrays
            are rounded to float32. For "streamed", "screened" and "auto"
            also the path of a `.npy` file, or what `flowjax.data.stream` opens; for "streamed" a `np.memmap` too, which
            the others load.
        path: Gaussian path.
        method: "dense" looks at every row. "screened" bounds the rows' weights and looks at those that may
            matter: cheaper the later in time, at the price of tables of up to 1400 float32 a row built here
            (`screen_bytes`; the directions behind them are kept on disk, in the folder that the environment variable
            FLOWJAX_CACHE names, by default ~/.cache/flowjax); where screening would cost more, or what it drops might
            exceed the tolerance, a query is evaluated densely; `explain` tells which were. Rows over a mesh have their
            tables where they are; of a path or records it makes tables of 350 float32 a row and reads the rows that may
            matter. "streamed" leaves the rows on the host or on disk and reads them block by block at every
            evaluation, the next block while the device works on the present one; it works under `jit`, `vmap` and
            `grad` too, and is to be kept until the results are there. "pallas_tpu" makes the float32 pass one TPU
            kernel up to 512 dimensions; above them, and for sharded rows, XLA's two products do it; off a TPU the
            kernel is interpreted, which is for tests. "pallas_gpu" does the same on a GPU up to 128 dimensions, with
            2.6 times the roundoff in its bound; where derivatives are taken "dense" does the pass. "auto" streams paths
            and records; screens arrays of 50 million entries and more, up to 500 000 points, in float32 precision on
            one CPU device; is "pallas_gpu" for 64 queries and more, where one NVIDIA GPU (from Ampere on) holds the
            rows and no precision is asked for; and is "dense" for the others.
        tolerance: relative velocity error ‖v − û‖/‖û‖ that dropping rows may cost; "dense" sees every row, and
            leaves out of its re-scoring only what stays below it. What is certified for a query is its `error_bound`.
        precision: of the pass over all rows. None is "float32". "float16x3" forms its products on a GPU's tensor cores,
            as three of float16 pieces (two where rows are uncentred pixels or 16-bit numbers), with 2.6 times the
            roundoff in its bound; where derivatives are taken the whole pass is float32's. "bfloat16x6" does so with
            six of bfloat16 pieces, as a TPU does for "float32"; a CPU computes float32 for it. "float64": two to four
            times the time on a CPU, and a bound near the rounding of the result at every t.
        block_size: rows handled at once (streamed: read at once); None chooses.
        weights: [n] non-negative prior weights of the points; None means equal.
        labels: [n] integers 0..C−1, for queries restricted to a class.
        horizontal_flip: count the mirror image of every [height, width, channels] row as a point too.
            The copies are never stored.

    Raises:
        ValueError, TypeError: for data, weights, labels or options that make no sense, with the values.
        RuntimeError: streamed, here or at an evaluation: a file that changed since the field was built. Inside a
            compiled function of the caller's the same sentence comes in the error that JAX makes of it.

    Reference: Bertrand, Gagneux, Massias, Emonet, "On the Closed-Form of Flow Matching", arXiv 2506.03719, eq. (4).
    """

    def __init__(
        self,
        data: RowSource,
        path: Path | None = None,
        *,
        method: Method = "auto",
        tolerance: float = 1e-5,
        precision: Precision | None = None,
        block_size: int | None = None,
        weights: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        horizontal_flip: bool = False,
    ):
        path = Linear() if path is None else path
        _check_options(path, method, tolerance, precision, block_size)
        stream = method == "streamed" or (method in ("auto", "screened") and is_remote(data))
        if stream:
            stored = open_rows(data)  # type: ignore[arg-type]
            check_rows(stored, horizontal_flip=horizontal_flip)
            event_shape = tuple(stored.shape[1:])
            self._rows = streamed.make_rows(stored, weights, labels, horizontal_flip, block_size)
        else:
            stored, event_shape = as_rows(data, horizontal_flip=horizontal_flip)  # type: ignore[arg-type]
            self._rows = make_rows(stored, weights, labels, event_shape if horizontal_flip else None)
        others = [d for d in _devices(self._rows) if d.platform != "cpu" and not have_tensor_cores([d])]
        if others and (method == "pallas_gpu" or precision == "float16x3"):
            asked = "method='pallas_gpu'" if method == "pallas_gpu" else "precision='float16x3'"
            raise ValueError(
                f"{asked} needs an NVIDIA GPU of compute capability 8.0 or above, and the data lies on "
                f"{others[0].device_kind}; use method='dense', precision='float32'"
            )
        self._static = _Static(
            event_shape,
            path,
            method,
            float(tolerance),
            precision or "float32",
            block_size,
            horizontal_flip,
            placement(stored),
            empty_classes(self._rows),
            costs.STREAMED if stream else costs.MEASURED,
            precision is None and _kernel_by_itself(self._rows),
            _platform(self._rows),
        )
        self._screen = None
        if method == "auto" and _screens_by_itself(self._rows, self._static):
            method = "screened"
        if method == "screened" and can_screen(self._rows):
            self._screen = make_screen(self._rows, self._static.placement)

    # -- pytree -----------------------------------------------------------------------------------------

    def tree_flatten_with_keys(self):
        static = self._static
        if isinstance(self._rows.data, jax.Array) and not isinstance(self._rows.data, Tracer):
            # device_put may have moved the rows since.
            kernel = static.kernel and _kernel_by_itself(self._rows)
            static = dataclasses.replace(
                static, placement=placement(self._rows.data), kernel=kernel, platform=_platform(self._rows)
            )
        key = jax.tree_util.GetAttrKey
        return ((key("rows"), self._rows), (key("screen"), self._screen)), static

    @classmethod
    def tree_unflatten(cls, static, children):
        field = object.__new__(cls)
        field._rows, field._screen = children
        field._static = static
        return field

    # -- facts ------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self._static.path

    @property
    def data(self) -> jax.Array:
        """[n, *event] in the dtype stored, a copy of pictures; of a streamed field, what it was built from."""
        data = streamed.given(self._rows.data)
        return data if streamed.is_streamed(self._rows) else data.reshape(self.num_points, *self.event_shape)

    def rows(self, index: ArrayLike) -> jax.Array:
        """The points of these numbers, wherever they are stored; of a streamed field read now.

        Args:
            index: [*batch] integers in 0..num_points − 1; with horizontal_flip up to 2 num_points − 1, where
                num_points + i is the mirror image of row i, as in `Posterior.argmax`.

        Returns:
            [*batch, *event] float32; uint8 pixels as y/127.5 − 1.

        Raises:
            TypeError: no integers, or a streamed field under a trace.
            ValueError: a number that is no point's. Under a trace, where it is unknown, that gives NaN.
            RuntimeError: streamed: as for an evaluation.
        """
        traced = isinstance(index, Tracer)
        values = index if traced else np.asarray(index)
        if not jnp.issubdtype(values.dtype, jnp.integer):
            raise TypeError(f"row numbers must be integers, got {values.dtype}")
        last = self.num_points * (2 if self.horizontal_flip else 1) - 1
        if not traced and values.size and (values.min() < 0 or values.max() > last):
            raise ValueError(
                f"row numbers must lie in 0..{last}, got values from {values.min()} to {values.max()}"
            )
        if streamed.is_streamed(self._rows):
            return streamed.take(self._rows, values)
        return take(
            self._rows.data, self.event_shape, values.astype(np.int32), horizontal_flip=self.horizontal_flip
        )

    @property
    def labels(self) -> jax.Array | None:
        return None if self._rows.labels is None else streamed.given(self._rows.labels)

    @property
    def num_points(self) -> int:
        return self._rows.count

    @property
    def num_classes(self) -> int | None:
        return None if self._rows.labels is None else self._rows.class_log_weights.shape[0]

    @property
    def screen_bytes(self) -> int:
        """Bytes of the tables that screening uses beside the data; 0 if the field does not screen."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._screen))

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self._static.event_shape

    @property
    def horizontal_flip(self) -> bool:
        return self._static.horizontal_flip

    def __repr__(self) -> str:
        return (
            f"ClosedFormField({self.num_points} points of shape {self.event_shape}, {self._rows.data.dtype}, "
            f"path={self.path}, method={self._static.method!r}"
            + (f", {self.screen_bytes / 2**20:.0f} MB of tables)" if self._screen is not None else ")")
        )

    # -- evaluation -------------------------------------------------------------------------------------

    def __call__(
        self, x: ArrayLike, t: ArrayLike, labels: ArrayLike | None = None, *, hint: ArrayLike | None = None
    ) -> jax.Array:
        """Velocity û(x, t).

        Args:
            x: [*batch, *event] floating queries.
            t: [*batch] or broadcastable to it, in [0, 1).
            labels: integers broadcastable to [*batch]: restrict each query to the points of its class.
            hint: integers broadcastable to [*batch]: a point thought to be near, as `Posterior.argmax` counts
                them (in training the row that x was made of, along a trajectory the last argmax). Spares "screened"
                the search for one; a bad hint costs time and changes nothing else. The other methods ignore it.

        Returns:
            [*batch, *event], in x's dtype if that is float32 or float64, else float32.

        Raises:
            TypeError: x not floating, t not real, labels or hint no integers.
            ValueError: x of another event shape, or t or labels out of range. Under a trace, where values
                are unknown, t outside [0, 1) is evaluated at the nearest time inside (0, or 1 − 2^-24 in float32),
                and a label out of range or of an empty class gives NaN, as does a NaN anywhere.
        """
        return self._evaluate(x, t, labels, hint, scalars=False)[1]

    def posterior(
        self, x: ArrayLike, t: ArrayLike, labels: ArrayLike | None = None, *, hint: ArrayLike | None = None
    ) -> Posterior:
        """Everything about the posterior, in the same single pass. Arguments and errors as for a call."""
        return Posterior(*self._evaluate(x, t, labels, hint, scalars=True)[:-1])

    def velocity_and_divergence(
        self, x: ArrayLike, t: ArrayLike, labels: ArrayLike | None = None, *, hint: ArrayLike | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """û(x, t) [*batch, *event] and its divergence in x [*batch], in the same single pass.

        The Jacobian of x̂ is alpha/sigma² times the covariance of the points under the weights, so on d flattened axes

            div û = d sigma'/sigma + (alpha' − sigma' alpha/sigma)(alpha/sigma²) variance,

        which is what `flowjax.sampling.log_density` integrates. Arguments and errors as for a call.
        """
        posterior = self.posterior(x, t, labels, hint=hint)
        x, t, _, _, batch = queries.flat(self.event_shape, x, t)
        t = queries.inside(t).reshape(batch)
        alpha, sigma, alpha_dot, sigma_dot = (
            schedule(t)
            for schedule in (self.path.alpha, self.path.sigma, self.path.alpha_dot, self.path.sigma_dot)
        )
        towards_mean = (alpha_dot - sigma_dot * alpha / sigma) * (alpha / sigma**2)
        return posterior.velocity, x.shape[1] * sigma_dot / sigma + towards_mean * posterior.variance

    def explain(
        self, x: ArrayLike, t: ArrayLike, labels: ArrayLike | None = None, *, hint: ArrayLike | None = None
    ) -> Explanation:
        """What an evaluation at these queries does: how many rows were looked at, and the bound. Evaluates them.

        Arguments and errors as for a call; not for use under a trace.
        """
        evaluation = self._evaluate(x, t, labels, hint, scalars=True)
        bound = np.asarray(evaluation.error_bound, np.float64)
        velocity = np.asarray(evaluation.velocity, np.float64).reshape(*bound.shape, -1)
        method, course = "screened", evaluation.course
        if course is None:
            method = "streamed" if streamed.is_streamed(self._rows) else "dense"
            course = (np.zeros(bound.shape, kind) for kind in (bool, np.int32, np.int32, np.int32))
        holds, columns, survivors, evaluated = map(np.asarray, course)
        return Explanation(
            method=method,
            num_points=self.num_points * (2 if self.horizontal_flip else 1),
            dense=~holds,
            columns=columns,
            survivors=survivors,
            evaluated=np.where(holds, evaluated, 0),
            relative_bound=bound / np.maximum(np.linalg.norm(velocity, axis=-1), np.finfo(np.float32).tiny),
        )

    def _evaluate(self, x, t, labels, hint, *, scalars: bool):
        self.check_condition(labels)
        x, t, labels, hint, batch = queries.flat(self.event_shape, x, t, labels, hint)
        hint = hint if self._screen is not None else None
        with streamed.reporting(self._rows, x, t, labels) as (rows, wait):
            field = self if rows is self._rows else self.tree_unflatten(self._static, (rows, self._screen))
            flat = wait(_evaluate_jit(field, x, t, labels, hint, scalars=scalars))
        d_shape = self.event_shape

        def unflatten(leaf):
            return leaf.reshape(batch + d_shape) if leaf.ndim == 2 else leaf.reshape(batch)

        return jax.tree.map(unflatten, flat)

    def check_condition(self, labels: ArrayLike | None = None, **others) -> None:
        """What a call would refuse of its labels, without the call; `flowjax.sampling.sample` asks before it compiles.

        Raises:
            TypeError: no integers.
            ValueError: a field without labels; out of range; a class without points, or whose points have no weight;
                a condition of another name.
        """
        if others:
            raise ValueError(f"a closed-form field takes the condition labels, not {', '.join(others)}")
        if labels is None:
            return
        if self._rows.labels is None:
            raise ValueError(
                "labels were given with the query, but this field has none; build it with labels=..."
            )
        queries.check_labels(labels, self._rows.class_log_weights.shape[0], self._static.empty_classes)


def _devices(rows: Rows) -> set[Any]:
    """Where the rows lie; nowhere if they are traced, or on the host."""
    data = rows.data
    return data.devices() if isinstance(data, jax.Array) and not isinstance(data, Tracer) else set()


def _platform(rows: Rows) -> str:
    devices = _devices(rows)
    return next(iter(devices)).platform if devices else jax.default_backend()


def have_tensor_cores(devices: Iterable[Any]) -> bool:
    """Whether all are NVIDIA GPUs of compute capability 8.0 and above.

    Older ones (a T4 in Colab) add fewer products at a time than the roundoff of the float16 pieces counts on, and the
    kernels' compiler does not know them; of other GPUs' additions no model is published.
    """
    return all(
        device.platform == "gpu"
        and device.device_kind.startswith("NVIDIA")
        and float(device.compute_capability) >= 8
        for device in devices
    )


def _kernel_by_itself(rows: Rows) -> bool:
    """Whether "auto" is the GPU's kernel: six to eight times as fast as XLA's passes at d = 2 and 16, and at d = 128 it
    takes a quarter of the time that those take at d = 16 (benchmarks/results/gpu.md). XLA cannot split its call over
    devices."""
    devices = _devices(rows)
    return len(devices) == 1 and have_tensor_cores(devices) and rows.dimension <= _AUTO_KERNEL_DIMENSION


def _screens_by_itself(rows: Rows, static: _Static) -> bool:
    """Whether "auto" screens. At 154 million entries of pictures it pays from t = .3 on, for uniform times and off the
    path, and costs at most 1.10 times the dense pass before, as on isotropic data at t = .3
    (benchmarks/results/screened.json). Where it begins to pay was not measured, nor above 500 000 points, whose tables
    (5600 bytes a row) would be gigabytes."""
    if static.placement is not None or [device.platform for device in _devices(rows)] != ["cpu"]:
        return False
    data = rows.data
    large = data.size >= _AUTO_SCREEN_ENTRIES and rows.count <= _AUTO_SCREEN_POINTS
    return static.precision == "float32" and large and can_screen(rows)


def _plan(field: ClosedFormField, num_queries: int, scalars: bool) -> Plan:
    static, rows = field._static, field._rows
    mesh, axis = static.placement or (None, None)
    if axis is not None and axis in jax.sharding.get_abstract_mesh().manual_axes:
        mesh, axis = None, None  # already inside shard_map: the rows at hand are the data set
    local = rows.count // (1 if mesh is None else mesh.shape[axis])
    stream_block = streamed.block_rows(rows, static.block_size) if streamed.is_streamed(rows) else None
    usual = (
        streamed.INNER if stream_block else block_rows(local, num_queries, rows.dimension, static.platform)
    )
    backend, block, tile = "dense", min(local, static.block_size or usual, stream_block or local), _TILE
    # Interpreted, the kernels fail shard_map's check of varying axes: sharded rows are left to XLA.
    sharded = axis is not None or jax.sharding.get_abstract_mesh().manual_axes
    if static.method == "pallas_tpu" and not sharded:
        from . import pallas_tpu  # imports Pallas, which nobody else needs

        if rows.dimension <= pallas_tpu.MAX_DIMENSION:
            backend, block = "pallas_tpu", pallas_tpu.block_size(local, rows.dimension, static.block_size)
    # Single queries under vmap would each get a whole tile.
    alone = static.method == "auto" and static.kernel and num_queries >= _LEAST_KERNEL_QUERIES
    if (static.method == "pallas_gpu" or alone) and not sharded:
        from . import pallas_gpu

        if rows.dimension <= pallas_gpu.MAX_DIMENSION:
            backend, tile = "pallas_gpu", pallas_gpu.most_queries(rows.dimension, _NUM_CANDIDATES)
    settings = Settings(
        block_size=block,
        scalars=scalars,
        num_candidates=min(_NUM_CANDIDATES, block),
        precision=static.precision,
        axis_name=axis,
        backend=backend,
        unrolled=static.platform == "gpu",
    )
    return Plan(
        static.path,
        settings,
        field.event_shape,
        static.horizontal_flip,
        static.tolerance,
        mesh,
        tile,
        stream_block,
        static.costs,
    )


def _screen_for(plan: Plan, field: ClosedFormField) -> Screen | None:
    """The field's tables, unless its rows have moved since they were made."""
    shards = 1 if plan.mesh is None else plan.mesh.shape[plan.settings.axis_name]
    screen, count = field._screen, field._rows.count
    return screen if screen is not None and fits(screen, count // shards, shards) else None


def _evaluate_flat(field: ClosedFormField, x, t, labels, hint, *, scalars: bool) -> Evaluation:
    plan = _plan(field, x.shape[0], scalars)
    inside = queries.inside(t)
    screen = _screen_for(plan, field)
    if screen is None:
        result = evaluate(plan, field._rows, x, inside, labels)
    else:
        result = evaluate_screened(plan, screen, field._rows, x, inside, labels, hint)
    if labels is None:
        return result
    valid = (labels >= 0) & (labels < field._rows.class_log_weights.shape[0])

    def mark(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.where(valid[:, None] if leaf.ndim == 2 else valid, leaf, jnp.nan)

    return jax.tree.map(mark, result)


_evaluate_jit = jax.jit(_evaluate_flat, static_argnames=("scalars",))


def _check_options(path, method, tolerance, precision, block_size) -> None:
    if not isinstance(path, Path):
        raise TypeError(f"path must be a flowjax.paths.Path such as Linear(), got {path!r}")
    check_choice("method", method, get_args(Method))
    if precision is not None:
        check_choice("precision", precision, get_args(Precision))
    if method in ("pallas_tpu", "pallas_gpu") and precision not in (None, "float32"):
        raise ValueError(
            f"method={method!r} computes in float32; for precision={precision!r} use method='dense'"
        )
    if not isinstance(tolerance, int | float | np.number) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie in (0, 1), got {tolerance!r}")
    whole = isinstance(block_size, int | np.integer) and not isinstance(block_size, bool)
    if block_size is not None and not (whole and block_size >= 1):
        raise ValueError(f"block_size must be a whole number of at least 1, got {block_size!r}")
