"""How noisy the gradient of training is, for each of the three targets (not in arXiv 2506.03719).

The conditional, the empirical and the exact target have one expectation given x_t, so the gradient of the loss has one
expectation G, and its covariance Sigma over the draw of an example differs. With the network's Jacobian J and
residual r = u − target, the gradient of one example is (2/d) J^T r, and the law of total variance says

    tr Sigma(conditional) = tr Sigma(exact) + (2/d)² E ‖J^T (û − conditional target)‖²,

the second term being what the exact target takes away: the noise of the regression target seen through the Jacobian.
Measured are both sides, at fixed times and for t uniform as in training, before training and after some of it. The
gradient noise scale tr Sigma/‖G‖² (McCandlish, Kaplan, Amodei, et al., arXiv 1812.06162) is the batch size beyond which
more examples a step hardly help: a step of B examples gains 1/(1 + scale/B) of one without noise. It is that of plain
gradient descent and of the averaged parameters; at initialisation the last layer is zero, so only it has a gradient.

Estimators, all without bias, from the mean gradients g_k of K independent groups of m examples, rows drawn with
replacement:

    ‖G‖²       mean of <g_k, g_l> over k ≠ l, of the exact target: the others' expectation is the same
    tr Sigma   m (mean of ‖g_k‖² − mean of <g_k, g_l> over k ≠ l)
    the noise  m × mean of ‖g_k − g_k(exact)‖², an expectation of zero-mean terms, so nothing is subtracted

Bands are two standard errors, from leaving out each group in turn. At fixed times every example of the empirical target
draws rows of its own; against batch size one draw serves a whole batch, as in training, so its examples' noise is
correlated and the variance of its batches falls more slowly than 1/B.

Cost: quick about a minute on two idle cores, most of it compilation; cpu about 40 minutes for digits beside three other
jobs, and longer for pictures of 28×28 (not run).
Expect: digits, 600 steps of a small U-Net: target noise is .9 of the conditional gradient's variance at t = .1 to .25,
half of it at t = .5, a tenth at the collapse (t = .62) and 1e-3 at .75; over uniform t the exact target has .74 of the
conditional one's variance, for the late times, in which the targets agree, are the noisiest. The noise scale falls as
much, from 1700 to 1300, and at t = .1 alone from 180 to 17. The empirical target's advantage is gone in batches much
larger than M.

Command: flowjax experiment variance
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree

import flowjax as fj
from flowjax.data import Dataset
from flowjax.report import COLOURS
from flowjax.training.state import create

from . import _networks
from ._finding import Figure, Finding, curve
from ._workspace import Workspace

CLAIM = (
    "The exact target removes the noise of the regression target from the gradient: a third and more of its variance "
    "before the collapse, nothing after. So early fewer examples a step suffice, and the largest useful batch is "
    "smaller."
)
LARGE = 1 / 3
NOTHING = 0.05
TARGETS = ("exact", "conditional", "empirical")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes.

    Attributes:
        num_groups: K, independent groups of examples at every time, and batches of every size.
        group_size: m, examples a group, and the smallest batch.
        num_times: fixed times, evenly from 0 to 1 − 1/num_times.
        largest_batch: batch sizes are group_size times powers of 4 up to this.
        num_samples: M of the empirical target, cut to the number of rows.
        training_steps: after how many steps of training to measure; one run each, beside the start.
        batch_size: of the training, on the conditional target.
        channels: of the U-Net's first level.
        learning_rate: of the training.
        seed: of everything.
    """

    num_groups: int = 32
    group_size: int = 8
    num_times: int = 16
    largest_batch: int = 128
    num_samples: int = 128
    training_steps: tuple[int, ...] = (100, 1000)
    batch_size: int = 128
    channels: int = 32
    learning_rate: float = 1e-3
    seed: int = 0


PRESETS = {
    "quick": Settings(
        num_groups=12,
        group_size=4,
        num_times=8,
        largest_batch=64,
        num_samples=32,
        training_steps=(60,),
        batch_size=64,
        channels=8,
    ),
    "cpu": Settings(),
    "gpu": Settings(
        num_groups=64,
        num_times=32,
        largest_batch=2048,
        num_samples=1000,
        training_steps=(100, 1000, 10_000),
        channels=64,
    ),
    "paper": Settings(
        num_groups=64,
        num_times=32,
        largest_batch=8192,
        num_samples=1000,
        training_steps=(1000, 10_000, 100_000),
        channels=128,
        learning_rate=2e-4,
    ),
}


def check(dataset: Dataset, settings: Settings) -> None:
    """Raises ValueError for data or sizes that show nothing."""
    if dataset.num_points < 2:
        raise ValueError(f"variance needs at least 2 rows, {dataset.name!r} has {dataset.num_points}")
    if len(dataset.event_shape) != 3:
        raise ValueError(
            f"variance trains a U-Net on pictures [height, width, channels], {dataset.name!r} has rows of shape "
            f"{dataset.event_shape}"
        )
    if settings.num_groups < 3 or settings.num_times < 2 or settings.group_size < 1:
        raise ValueError(
            "variance needs at least three groups of at least one example and two times, got "
            f"{settings.num_groups} of {settings.group_size} and {settings.num_times}"
        )
    if settings.largest_batch < settings.group_size or settings.num_samples < 1:
        raise ValueError(
            f"largest_batch={settings.largest_batch} must be at least group_size={settings.group_size}, and "
            f"num_samples={settings.num_samples} at least 1"
        )
    steps = settings.training_steps
    if not steps or min(steps) < 1 or list(steps) != sorted(set(steps)):
        raise ValueError(f"training_steps must be positive and rising, got {steps}")
    _config(dataset, settings, steps[-1])


def run(work: Workspace, dataset: Dataset, settings: Settings) -> Finding:
    """Every network, and every time of every network, a part of its own."""
    field = fj.ClosedFormField(dataset.images)
    setting = _Setting(
        field,
        fj.targets.empirical(min(settings.num_samples, dataset.num_points)),
        jnp.asarray(dataset.images),
    )
    graphdef, state = create(_config(dataset, settings, settings.training_steps[-1]))

    def apply(params, x, t):
        return nnx.merge(graphdef, params)(x, t)

    times = np.arange(settings.num_times) / settings.num_times
    sizes = batch_sizes(settings)
    fixed, batches = {}, {}
    for steps in (0, *settings.training_steps):
        stage = f"{steps} steps"
        params = state.params
        if steps:
            config = _config(dataset, settings, steps)
            params = nnx.state(_networks.trained(work, f"steps-{steps}", config, dataset))
        params = jax.tree.map(np.asarray, params)
        at = [
            work.once(
                f"{steps}-steps-time-{k}",
                lambda k=k, params=params: _fixed(setting, apply, params, times[k], settings, k),
            )
            for k in work.track(range(len(times)), f"variance after {stage}")
        ]
        fixed[stage] = {name: np.stack([part[name] for part in at]) for name in at[0]}
        batches[stage] = work.once(
            f"{steps}-steps-batches", lambda params=params: _batches(setting, apply, params, sizes, settings)
        )["gram"]
    return _finding(dataset, settings, times, sizes, fixed, batches, setting.empirical.num_samples)


def batch_sizes(settings: Settings) -> list[int]:
    """group_size times powers of 4, up to the largest batch."""
    sizes = [settings.group_size]
    while sizes[-1] * 4 <= settings.largest_batch:
        sizes.append(sizes[-1] * 4)
    return sizes


def _config(dataset: Dataset, settings: Settings, steps: int) -> Any:
    return _networks.configured(
        dataset,
        steps=steps,
        batch_size=settings.batch_size,
        channels=settings.channels,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )


# -- gradients -------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def gradients(
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
    params: Any,
    x: jax.Array,
    t: jax.Array,
    exact: jax.Array,
    conditional: jax.Array,
    empirical: jax.Array,
) -> jax.Array:
    """Mean gradients of K groups, split in the exact target's and what the two others add to it.

    Args:
        apply: u(params, x [m, *event], t [m]).
        x, exact, conditional, empirical: [K, m, *event]; t: [K, m].

    Returns:
        [3, K, P]: the gradient of the mean squared error against the exact target over m and d; the other two targets'
        less that. As differences of residuals they keep their digits where the targets nearly agree.
    """

    def of_group(group):
        x, t, exact, conditional, empirical = group
        u, pull = jax.vjp(lambda p: apply(p, x, t), params)
        residuals = (u - exact, exact - conditional, exact - empirical)
        return jnp.stack([ravel_pytree(pull(2 / u.size * r)[0])[0] for r in residuals])

    return jnp.swapaxes(jax.lax.map(of_group, (x, t, exact, conditional, empirical)), 0, 1)


@jax.jit
def gram(parts: jax.Array) -> jax.Array:
    """[3, K, P] → inner products [3, K, 3, K]."""
    flat = parts.reshape(-1, parts.shape[-1])
    return jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST).reshape(parts.shape[:2] * 2)


class _Setting(NamedTuple):
    """The field, the empirical target and the rows in storage dtype."""

    field: fj.ClosedFormField
    empirical: fj.targets.EmpiricalTarget
    rows: jax.Array


@jax.jit
def _examples(setting: _Setting, keys, x0, index, t):
    """x_t and its three targets for g draws of the empirical target's rows, c examples each.

    Args:
        keys: [g], one a draw. x0: [g, c, *event]. index, t: [g, c].

    Returns:
        x_t, exact, conditional, empirical [g, c, *event]; effective sample size and posterior variance [g, c].
    """
    field, empirical, rows = setting
    event, flat = x0.shape[2:], (-1, *x0.shape[2:])
    x1 = field.rows(index.reshape(-1))
    path, times = field.path, t.reshape(-1)
    x = path.interpolate(x0.reshape(flat), x1, times)
    posterior = field.posterior(x, times, hint=index.reshape(-1))
    conditional = path.conditional_velocity(x0.reshape(flat), x1, times)

    def one_draw(draw):
        key, x0, x1, t, index = draw
        return empirical(key, x0, x1, t, index=index, rows=rows)

    noisy = jax.lax.map(one_draw, (keys, x0, x1.reshape(x0.shape), t, index))
    shaped = [a.reshape(*t.shape, *event) for a in (x, posterior.velocity, conditional)]
    scalars = [a.reshape(t.shape) for a in (posterior.effective_sample_size, posterior.variance)]
    return *shaped, noisy, *scalars


def _fixed(setting: _Setting, apply, params, t: float, settings: Settings, k: int) -> dict[str, Any]:
    """Inner products [3, K, 3, K] of the groups' gradients at one time; the same draws for every network."""
    shape = settings.num_groups, settings.group_size
    count = shape[0] * shape[1]
    rng = np.random.default_rng((settings.seed, k))
    index = rng.integers(0, setting.field.num_points, count).astype(np.int32)
    x0 = rng.normal(size=(count, *setting.field.event_shape)).astype(np.float32)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), k), count)
    # A draw of rows for every example: groups of one.
    *arrays, effective, variance = _examples(
        setting, keys, x0[:, None], index[:, None], np.full((count, 1), t, np.float32)
    )
    x, *targets = (a.reshape(*shape, *a.shape[2:]) for a in arrays)
    parts = gradients(apply, params, x, jnp.full(shape, t, jnp.float32), *targets)
    return {"gram": gram(parts), "effective": effective.ravel(), "variance": variance.ravel()}


def _batches(setting: _Setting, apply, params, sizes: list[int], settings: Settings) -> dict[str, Any]:
    """Inner products [sizes, 3, K, 3, K] of gradients of K nested batches, t uniform; one draw of rows a batch."""
    k, m = settings.num_groups, settings.group_size
    rng = np.random.default_rng((settings.seed, 1 << 20))
    keys = jax.random.split(jax.random.key(settings.seed + 1), k)
    total, grams = 0.0, []
    for done in range(1, sizes[-1] // m + 1):
        index = rng.integers(0, setting.field.num_points, (k, m)).astype(np.int32)
        x0 = rng.normal(size=(k, m, *setting.field.event_shape)).astype(np.float32)
        t = rng.random((k, m), np.float32)
        x, *targets, _, _ = _examples(setting, keys, x0, index, t)
        total = total + gradients(apply, params, x, jnp.asarray(t), *targets)
        if done * m in sizes:
            grams.append(np.asarray(gram(total / done)))
    return {"gram": np.stack(grams)}


# -- estimates -------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """Numbers with the standard errors that the jackknife over groups gives; arrays of one shape."""

    value: np.ndarray
    error: np.ndarray


def estimates(products: np.ndarray, size: int) -> dict[str, Estimate]:
    """The module's estimators from inner products [3, K, 3, K] of mean gradients of `size` examples.

    Returns:
        square: ‖G‖². trace: tr Sigma of the exact, conditional and empirical target [3], an example. noise: what the
        last two have beyond the exact one's, [2]. share: noise/(noise + trace of exact), [2]. ratio: trace of the
        exact over that of the conditional, for which the law of total variance is used: the noise is subtracted from
        nothing. excess: trace of conditional and empirical less that of exact and noise, [2]: zero by that law. scale:
        tr Sigma/‖G‖² [3], NaN where ‖G‖² is within two errors of zero.
    """
    count = products.shape[1]
    products = np.asarray(products, np.float64)
    whole = _numbers(products, size)
    left_out = [_numbers(np.delete(np.delete(products, k, 1), k, 3), size) for k in range(count)]
    result = {}
    for name, value in whole.items():
        others = np.stack([each[name] for each in left_out])
        error = np.sqrt((count - 1) / count * ((others - others.mean(0)) ** 2).sum(0))
        result[name] = Estimate(value, error)
    resolved = result["square"].value > 2 * result["square"].error
    result["scale"] = Estimate(*(np.where(resolved, part, np.nan) for part in result["scale"]))
    return result


def _numbers(products: np.ndarray, size: int) -> dict[str, np.ndarray]:
    count = products.shape[1]
    own = products[0, :, 0]
    full = [own] + [own + products[0, :, i] + products[i, :, 0] + products[i, :, i] for i in (1, 2)]
    diagonal = np.array([np.trace(a) for a in full]) / count
    across = np.array([a.sum() - np.trace(a) for a in full]) / (count * (count - 1))
    trace = size * (diagonal - across)
    noise = size * np.array([np.trace(products[i, :, i]) for i in (1, 2)]) / count
    square = across[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "square": square,
            "trace": trace,
            "noise": noise,
            "share": noise / (noise + trace[0]),
            "ratio": trace[0] / (trace[0] + noise[0]),
            "excess": trace[1:] - trace[0] - noise,
            "scale": np.array([trace[0], trace[0] + noise[0], trace[0] + noise[1]]) / square,
        }


def collapse_time(times: np.ndarray, effective: np.ndarray) -> float:
    """The first time from which on half of the queries [times, queries] see fewer than two points; NaN if none."""
    few = np.median(effective, 1) < 2
    stays = np.logical_and.accumulate(few[::-1])[::-1]
    return float(times[np.argmax(stays)]) if stays.any() else np.nan


# -- findings --------------------------------------------------------------------------------------------------------


def _finding(dataset, settings, times, sizes, fixed, batches, num_samples) -> Finding:
    stages = list(fixed)
    last = stages[-1]
    at = {
        stage: _stack([estimates(g, settings.group_size) for g in fixed[stage]["gram"]]) for stage in stages
    }
    by_size = {
        stage: _stack([estimates(g, size) for g, size in zip(batches[stage], sizes, strict=True)])
        for stage in stages
    }
    # The largest batches' mean is over the most examples; their variance is an example's only without shared draws.
    uniform = {
        stage: {name: Estimate(e.value[-1], e.error[-1]) for name, e in by_size[stage].items()}
        for stage in stages
    }
    collapsed = collapse_time(times, fixed[last]["effective"])
    before, after = times < collapsed, times >= (1 + collapsed) / 2
    share = {stage: at[stage]["share"].value[:, 0] for stage in stages}
    early = float(share[last][before].max()) if before.any() else np.nan
    late = float(share[last][after].max()) if after.any() else np.nan
    ratio = uniform[last]["ratio"]
    agrees = verdict(early, late, float(ratio.value), float(ratio.error))
    excess = at[last]["excess"]
    deviation = np.abs(excess.value[:, 0]) / np.maximum(excess.error[:, 0], 1e-30)
    scale = uniform[last]["scale"]
    noise = by_size[last]["noise"].value
    removed = 1 - noise[:, 1] / np.maximum(noise[:, 0], 1e-30)

    sentence = (
        f"on {dataset.name} (n = {dataset.num_points}, d = {int(np.prod(dataset.event_shape))}), after {last}, the "
        f"noise of the conditional target makes up to {early:.0%} of its gradient's variance before the collapse "
        f"(t = {collapsed:.2f}) and at most {late:.1%} from half-way between it and 1 on. Over uniform t the exact "
        f"target has {float(ratio.value):.0%} ± {2 * float(ratio.error):.0%} of the conditional one's variance"
        + (
            f", so its largest useful batch is {scale.value[0]:.0f} instead of {scale.value[1]:.0f}."
            if np.isfinite(scale.value[0])
            else "; the mean gradient is too small to tell the largest useful batch."
        )
        + f" The empirical target with M = {num_samples} takes away {removed[0]:.0%} of the noise from batches of "
        f"{sizes[0]} and {removed[-1]:.0%} from batches of {sizes[-1]}, which share one draw of rows."
    )
    findings = {
        "num_points": dataset.num_points,
        "collapse_at": _plain(collapsed),
        "empirical_num_samples": num_samples,
        "largest_noise_share_before_the_collapse": {s: _plain(_largest(share[s][before])) for s in stages},
        "largest_noise_share_well_after": {s: _plain(_largest(share[s][after])) for s in stages},
        "uniform_t_exact_variance_over_conditional": {s: _plain(uniform[s]["ratio"].value) for s in stages},
        "uniform_t_exact_variance_over_conditional_error": {
            s: _plain(uniform[s]["ratio"].error) for s in stages
        },
        "law_of_total_variance_largest_deviation_in_errors": _plain(deviation.max()),
        "law_of_total_variance_mean_deviation": _plain(
            excess.value[:, 0].mean() / at[last]["trace"].value[:, 1].mean()
        ),
    }
    findings["share_of_the_noise_that_the_empirical_target_removes_by_batch_size"] = {
        str(b): _plain(r) for b, r in zip(sizes, removed, strict=True)
    }
    for j, target in enumerate(TARGETS):
        findings[f"noise_scale_{target}"] = {s: _plain(uniform[s]["scale"].value[j]) for s in stages}
        findings[f"noise_scale_{target}_error"] = {s: _plain(uniform[s]["scale"].error[j]) for s in stages}
    curves = {}
    for stage in stages:
        for j, target in enumerate(TARGETS):
            curves[f"variance, {target}, {stage}"] = _curve(times, at[stage]["trace"], j)
            curves[f"noise scale, {target}, {stage}"] = _curve(times, at[stage]["scale"], j)
            b_variance = f"batch size times variance, {target}, {stage}"
            curves[b_variance] = _curve(sizes, by_size[stage]["trace"], j)
        for j, target in enumerate(TARGETS[1:]):
            curves[f"noise share, {target}, {stage}"] = _curve(times, at[stage]["share"], j)
        square = at[stage]["square"]
        curves[f"squared mean gradient, {stage}"] = curve(
            times, square.value, low=square.value - 2 * square.error, high=square.value + 2 * square.error
        )
    notes = [
        "A noise scale of null: the squared mean gradient is within two standard errors of zero.",
        f"The empirical target draws {num_samples} rows; against batch size one draw serves a whole batch.",
    ]
    return Finding(
        agrees=agrees,
        sentence=sentence,
        findings=findings,
        curves=curves,
        figures=_figures(times, sizes, at, by_size, uniform, collapsed, num_samples),
        notes=notes,
    )


def verdict(early: float, late: float, ratio: float, error: float) -> bool | None:
    """Whether the noise share is at least LARGE somewhere before the collapse, at most NOTHING well after it, and the
    variance over uniform t is smaller for the exact target by two standard errors; None without a time on both sides
    of the collapse, or where two errors exceed what the exact target saves."""
    if not np.isfinite([early, late, ratio, error]).all():
        return None
    if early < LARGE or late > NOTHING:
        return False
    return True if ratio + 2 * error < 1 else None


def _stack(each: list[dict[str, Estimate]]) -> dict[str, Estimate]:
    return {
        name: Estimate(np.stack([e[name].value for e in each]), np.stack([e[name].error for e in each]))
        for name in each[0]
    }


def _curve(t: Any, estimate: Estimate, j: int) -> dict[str, list[float]]:
    value, error = estimate.value[:, j], estimate.error[:, j]
    return curve(t, value, low=value - 2 * error, high=value + 2 * error)


def _largest(values: np.ndarray) -> float:
    return float(values.max()) if len(values) else np.nan


def _plain(value: Any) -> float | None:
    return float(f"{float(value):.4g}") if np.isfinite(value) else None


def _figures(times, sizes, at, by_size, uniform, collapsed, num_samples) -> list[Figure]:
    stages = list(at)
    last = stages[-1]
    names = {"exact": "exact", "conditional": "conditional", "empirical": f"empirical, M = {num_samples}"}

    def band(axes, t, value, error, colour, label, **style):
        low = np.maximum(value - 2 * error, 1e-3 * np.abs(value))
        axes.fill_between(t, low, value + 2 * error, color=colour, alpha=0.15, linewidth=0)
        axes.plot(t, value, color=colour, label=label, marker="o", markersize=3, **style)

    def mark(axes):
        if np.isfinite(collapsed):
            axes.axvline(collapsed, color="grey", linestyle=":", linewidth=1)
            axes.text(
                collapsed - 0.01,
                0.25,
                "collapse",
                color="grey",
                fontsize=8,
                rotation=90,
                ha="right",
                transform=axes.get_xaxis_transform(),
            )

    def share(axes):
        for stage, colour in zip(stages, COLOURS, strict=False):
            part = at[stage]["share"]
            band(axes, times, part.value[:, 0], part.error[:, 0], colour, f"conditional, {stage}")
            axes.plot(
                times,
                part.value[:, 1],
                color=colour,
                linestyle="--",
                linewidth=1,
                label=f"empirical, {stage}",
            )
        mark(axes)
        axes.set(xlabel="t", ylabel="share of the gradient's variance", ylim=(-0.02, 1.02), xlim=(-0.02, 1))
        axes.legend(fontsize=8)

    def variance(axes):
        for j, target in enumerate(TARGETS):
            part = at[last]["trace"]
            band(axes, times, part.value[:, j], part.error[:, j], COLOURS[j], names[target])
        square = at[last]["square"]
        positive = np.where(square.value > 0, square.value, np.nan)
        axes.plot(times, positive, color="grey", linestyle="--", label="squared mean gradient")
        mark(axes)
        axes.set(xlabel="t", ylabel="tr Sigma of an example's gradient", yscale="log", xlim=(-0.02, 1))
        axes.legend(fontsize=8)

    def batch(axes):
        b, part = np.asarray(sizes, float), by_size[last]["trace"]
        for j, target in enumerate(TARGETS):
            band(axes, b, part.value[:, j], part.error[:, j], COLOURS[j], names[target])
        square, scale = float(uniform[last]["square"].value), uniform[last]["scale"].value
        if np.isfinite(scale[0]):
            reach = np.array([min(b[0], scale[:2].min() / 2), max(b[-1], 2 * scale[:2].max())])
            axes.plot(reach, square * reach, color="grey", linestyle="--", label="B × squared mean gradient")
            for j in (0, 1):
                axes.plot(scale[j], square * scale[j], "x", color=COLOURS[j], markersize=8)
        axes.set(xlabel="batch size B", ylabel="B × variance of a batch's gradient", yscale="log")
        levels = part.value[part.value > 0]
        axes.set_ylim(levels.min() / 3, levels.max() * 3)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(fontsize=8)

    return [
        Figure(
            "share",
            "How much of the gradient's variance at fixed t is noise of the regression target, for the conditional one "
            "and the empirical one.",
            share,
        ),
        Figure("variance", f"Variance of an example's gradient at fixed t, after {last}.", variance),
        Figure(
            "batch",
            f"Batch size times the variance of a batch's gradient, t uniform, after {last}: level where the examples "
            "are independent, rising where one draw of rows serves them all. Crosses: the noise scales, where the "
            "squared mean gradient is as large as the variance.",
            batch,
        ),
    ]
