"""When the stochastic target becomes the exact one (figures 1a and 1c of arXiv 2506.03719).

Along the path x_t = (1 − t) x0 + t x1 the exact velocity û(x_t, t) is compared with the conditional one, x1 − x0, by
their cosine. Where one point carries all the weight the two are the same. Beside it stand the effective sample size,
the entropy and the variance left in the target, for the data at full resolution and at half of it again and again, and
two times predicted from n and the covariance's eigenvalues lambda_j alone (Biroli, Bonnaire, de Bortoli, Mézard,
arXiv 2402.18491, in the time of the linear path, for Gaussian data of that covariance):

    speciation   lambda_max t²/(1 − t)² = 1: the direction of a sample begins to be decided
    collapse     ½ Σ_j log(1 + lambda_j t²/(1 − t)²) = log n: the query knows which point it came from

Data of that covariance that is not Gaussian tells no more than that, so the predicted collapse is an early one.

Cost: digits 10 s, Fashion-MNIST half a minute, CIFAR-10 and patches (n = 50 000, d = 3072) one to two minutes on two
cores.
Expect: for CIFAR-10's pictures 98 % of the cosines above .9 at t = .2 and all from .25 on, with two points or fewer
sharing the weight from .19 on where .18 is predicted; patches 99 % at .2; Fashion-MNIST 89 % at .2, 99 % at .3; for
points in the plane only late.

Command: flowjax experiment collapse --data npz:cifar10.npz
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj
from flowjax.data import Dataset
from flowjax.report import COLOURS

from ._finding import Figure, Finding, curve
from ._workspace import Workspace

CLAIM = (
    "In high dimension the target of flow matching is not stochastic: from t of about .2 on the conditional velocity "
    "is the exact one, and the higher the dimension the earlier."
)
HIGH_DIMENSION = 1000
ALIGNED = 0.9
MOST = 0.9
"""Share of the pairs that must be aligned. Half of them are early too, where noise makes up most of both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes.

    Attributes:
        num_pairs: pairs (x0, x1) per time.
        num_times: times, evenly from 0 to 1 − 1/num_times.
        smallest_side: of the lower resolutions.
        seed: of pairs and noise.
    """

    num_pairs: int = 256
    num_times: int = 100
    smallest_side: int = 4
    seed: int = 0


PRESETS = {
    "quick": Settings(num_pairs=64, num_times=20),
    "cpu": Settings(),
    "gpu": Settings(num_pairs=4096),
    "paper": Settings(),
}


def check(dataset: Dataset, settings: Settings) -> None:
    """Raises ValueError for data or sizes that show nothing."""
    if dataset.num_points < 2:
        raise ValueError(f"collapse needs at least 2 rows, {dataset.name!r} has {dataset.num_points}")
    if settings.num_pairs < 1 or settings.num_times < 2:
        raise ValueError(
            f"collapse needs at least one pair and two times, got {settings.num_pairs} and {settings.num_times}"
        )


def run(work: Workspace, dataset: Dataset, settings: Settings) -> Finding:
    """Every resolution a part of its own."""
    times = np.arange(settings.num_times) / settings.num_times
    versions = resolutions(dataset.images, settings.smallest_side)
    measured = {
        side: work.once(
            f"side-{side}", lambda rows=rows, side=side: _measure(work, rows, times, settings, side)
        )
        for side, rows in versions.items()
    }
    sides = sorted(measured, reverse=True)
    full = measured[sides[0]]
    aligned = {side: (measured[side]["cosine"] > ALIGNED).mean(1) for side in sides}
    passed = {side: _first(times, aligned[side] >= MOST) for side in sides}
    dimension = int(np.prod(dataset.event_shape))

    earlier = all(passed[a] <= passed[b] for a, b in itertools.pairwise(sides))
    high = dimension >= HIGH_DIMENSION
    early = bool(np.interp(0.25, times, aligned[sides[0]]) >= MOST) if high else None
    tells = high or (len(sides) > 1 and np.isfinite(passed[sides[0]]))
    agrees = earlier and early is not False if tells else None
    names = {
        side: f"{side}×{side}" if len(dataset.event_shape) == 3 else f"d = {dimension}" for side in sides
    }
    sentence = (
        f"on {dataset.name} (n = {dataset.num_points}, d = {dimension}) the share of cosines above .9 is "
        + ", ".join(f"{np.interp(t, times, aligned[sides[0]]):.0%} at t = {t}" for t in (0.2, 0.3, 0.5))
        + f"; the time from which on nine in ten are: {_time(passed[sides[0]])}"
        + "".join(f", {_time(passed[side])} at {names[side]}" for side in sides[1:])
        + f". From n and covariance alone {_time(float(full['collapse']))} is predicted."
    )
    findings = {
        "dimension": dimension,
        "num_points": dataset.num_points,
        "fraction_above_0.9": {
            str(t): _round(np.interp(t, times, aligned[sides[0]])) for t in (0.1, 0.2, 0.3, 0.5)
        },
        "nine_in_ten_above_0.9_at": {names[side]: _round(passed[side]) for side in sides},
        "predicted_collapse": {names[side]: _round(measured[side]["collapse"]) for side in sides},
        "predicted_speciation": {names[side]: _round(measured[side]["speciation"]) for side in sides},
        "effective_sample_size_below_2_at": _round(_first(times, np.median(full["effective"], 1) < 2)),
    }
    curves = {
        "fraction_cosine_above_0.9": curve(times, aligned[sides[0]]),
        "effective_sample_size_median": curve(times, np.median(full["effective"], 1)),
        "entropy_median": curve(times, np.median(full["entropy"], 1)),
        "variance_left": curve(times, full["variance"].mean(1) / full["variance"][0].mean()),
    }
    curves |= {f"fraction_cosine_above_0.9, {names[side]}": curve(times, aligned[side]) for side in sides[1:]}
    return Finding(
        agrees=agrees,
        sentence=sentence,
        findings=findings,
        curves=curves,
        figures=_figures(times, measured, aligned, names),
        notes=()
        if tells
        else (f"{dimension} dimensions, and no resolution to compare with: the claim is about many.",),
    )


def resolutions(images: np.ndarray, smallest: int) -> dict[int, np.ndarray]:
    """The rows by side: as they are, and pictures averaged over 2×2 pixels as long as their side is even, down to the
    smallest. Rows that are no square pictures come once, by their dimension."""
    if images.ndim != 4 or images.shape[1] != images.shape[2]:
        return {int(np.prod(images.shape[1:])): images}
    result = {images.shape[1]: images}
    rows, side = images, images.shape[1]
    while side % 2 == 0 and side // 2 >= smallest:
        side //= 2
        rows = np.asarray(fj.closed_form.to_float(rows))
        rows = rows.reshape(len(rows), side, 2, side, 2, -1).mean((2, 4), dtype=np.float32)
        result[side] = rows
    return result


def _measure(
    work: Workspace, rows: np.ndarray, times: np.ndarray, settings: Settings, side: int
) -> dict[str, Any]:
    """Cosine, effective sample size, entropy and variance, [times, pairs] each, and the predicted times."""
    field = fj.ClosedFormField(rows)
    rng = np.random.default_rng(settings.seed)
    index = rng.integers(0, len(rows), settings.num_pairs)
    x1 = np.asarray(field.rows(index))
    x0 = rng.normal(size=x1.shape).astype(np.float32)

    @jax.jit
    def at(field, t):
        p = field.posterior((1 - t) * x0 + t * x1, t, hint=jnp.asarray(index))
        u, v = (jnp.reshape(a, (len(x1), -1)) for a in (p.velocity, x1 - x0))
        cosine = jnp.sum(u * v, 1) / jnp.maximum(
            jnp.linalg.norm(u, axis=1) * jnp.linalg.norm(v, axis=1), 1e-30
        )
        return cosine, p.effective_sample_size, p.entropy, p.variance

    columns = [jax.device_get(at(field, np.float32(t))) for t in work.track(times, f"collapse at {side}")]
    cosine, effective, entropy, variance = (np.stack(part) for part in zip(*columns, strict=True))
    speciation, collapse = predicted_times(rows)
    return {
        "cosine": cosine,
        "effective": effective,
        "entropy": entropy,
        "variance": variance,
        "speciation": speciation,
        "collapse": collapse,
    }


def predicted_times(rows: np.ndarray, *, most: int = 4096) -> tuple[float, float]:
    """Speciation and collapse of the module's text, from the covariance of at most so many rows [n, *event].

    NaN where the equation has no solution in (0, 1).
    """
    from scipy.optimize import brentq

    n = len(rows)
    some = np.asarray(fj.closed_form.to_float(rows[:: -(-n // most)]), np.float64).reshape(
        -1, int(np.prod(rows.shape[1:]))
    )
    some -= some.mean(0)
    gram = some @ some.T if len(some) < some.shape[1] else some.T @ some
    eigenvalues = np.maximum(np.linalg.eigvalsh(gram / len(some)), 0)
    if not eigenvalues[-1] > 0:
        return np.nan, np.nan
    speciation = 1 / (1 + np.sqrt(eigenvalues[-1]))

    def excess(log_ratio):
        return 0.5 * np.log1p(eigenvalues * np.exp(2 * log_ratio)).sum() - np.log(n)

    ratio = float(np.exp(brentq(excess, -60.0, 60.0)))  # type: ignore[arg-type]
    return float(speciation), ratio / (1 + ratio)


def _first(times: np.ndarray, reached: np.ndarray) -> float:
    """The first time from which on it stays reached; infinity if it never does."""
    stays = np.logical_and.accumulate(reached[::-1])[::-1]
    return float(times[np.argmax(stays)]) if stays.any() else np.inf


def _time(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "none"


def _round(value: Any) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _figures(times, measured, aligned, names) -> list[Figure]:
    sides = list(names)
    full = measured[sides[0]]

    def fractions(axes):
        for side, colour in zip(sides, COLOURS * 2, strict=False):
            axes.plot(times, aligned[side], color=colour, label=names[side])
            axes.axvline(float(measured[side]["collapse"]), color=colour, linestyle=":", linewidth=1)
        axes.set(xlabel="t", ylabel="share of cosines above .9", ylim=(-0.02, 1.02))
        axes.legend(fontsize=8)

    def histogram(axes):
        edges = np.linspace(-0.2, 1, 61)
        counts = (
            np.stack([np.histogram(row, edges)[0] for row in full["cosine"]], 1) / full["cosine"].shape[1]
        )
        mesh = axes.pcolormesh(
            times, edges[:-1], np.sqrt(counts), shading="nearest", cmap="viridis", rasterized=True
        )
        axes.set(xlabel="t", ylabel="cosine of û and x1 − x0")
        axes.figure.colorbar(mesh, ax=axes, label="√ share of the pairs")

    def collapse(axes):
        left = axes.plot(
            times, np.median(full["effective"], 1), color=COLOURS[0], label="effective sample size (median)"
        )
        axes.set(xlabel="t", ylabel="points", yscale="log")
        for name, style in (("speciation", "--"), ("collapse", ":")):
            axes.axvline(float(full[name]), color="grey", linestyle=style, linewidth=1)
            axes.text(float(full[name]), 1, f" {name}", color="grey", fontsize=8, rotation=90, va="bottom")
        other = axes.twinx()
        variance = full["variance"].mean(1) / full["variance"][0].mean()
        right = other.plot(times, variance, color=COLOURS[1], label="variance left in the target")
        other.set(ylabel="share of the data's variance", ylim=(-0.02, 1.05))
        axes.legend(handles=left + right, fontsize=8, loc="upper right")

    return [
        Figure(
            "fraction",
            "Share of pairs whose exact velocity and conditional one have a cosine above .9, by resolution; dotted: "
            "the collapse predicted from n and covariance.",
            fractions,
        ),
        Figure("cosine", "All cosines at full resolution against time.", histogram),
        Figure(
            "collapse",
            "How many points share the weight, and how much variance the conditional target has left, with the two "
            "predicted times.",
            collapse,
        ),
    ]
