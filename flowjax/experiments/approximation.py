"""Where a network fails to learn the exact velocity field, by the number of rows it learns from (figure 2 of arXiv
2506.03719).

Networks are trained with plain flow matching (conditional target, no flips) on nested subsets of 10, 100, 1000 … rows.
Along the path of the rows they learned from, each is compared with the field that it would be if training had
succeeded, û of its own subset: E‖u_theta − û‖² against t, and its share of E‖û‖². Beside it stands what becomes of
the samples: their distance to the nearest row of the subset (and that of held-out rows), the Fréchet distance to
held-out rows (and that of as many rows of the subset, which is what copying would give), and the share of memorised
samples: nearest distance below 1/3, or 2/3, of the second nearest.

Held-out rows are the data set's test rows; without those, rows outside the largest subset.

Cost: "quick", with fully connected networks, about a minute on two cores. "cpu": 19 minutes on digits beside other
jobs; reckoned from the time of single steps and not run, 35 on Fashion-MNIST at 14×14, 55 on patches at 16×16. "gpu",
likewise: 20 minutes. "paper": days.
Expect: a bump of the error near t = .15 (for small pictures later: for 100 digits near t = .55) that grows with the
number of rows, a rise towards t = 1 for every subset, most samples memorised at 10 rows and none at the most.

Command: flowjax experiment approximation --data fashion-mnist
"""

import dataclasses
import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj
from flowjax.data import Dataset
from flowjax.report import COLOURS
from flowjax.sampling._callable import as_pytree

from . import _samples
from ._finding import Figure, Finding, curve
from ._networks import trained
from ._workspace import Workspace

CLAIM = (
    "A network fails to follow the closed form at two times, early (t about .15) and late (t → 1); the failure grows "
    "with the number of rows, and only small subsets are memorised."
)
HIGH_DIMENSION = 1000
FAILURE = 1.5
"""An error so many times another one is a failure beside it."""
TRAINED = 0.25
"""Share of E‖û‖² up to which the error on the smallest subset, mean over t, leaves the networks worth a verdict."""
EARLY = 0.6
"""The early failure is looked for up to here: for small pictures the rows are told apart later than at .15."""
_BLOCK = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes.

    Attributes:
        sizes: rows of the subsets, increasing.
        steps: optimizer steps of every network.
        batch_size: of them.
        channels: of their first level.
        largest_side: larger pictures are averaged over 2×2 pixels until their sides are no longer.
        num_pairs: pairs (x0, x1) per time behind an error.
        num_times: times of the error, in the middles of so many equal parts of [0, 1].
        num_samples: samples of every network.
        num_held_out: rows held out.
        network: unet, which takes pictures; mlp, for rows of any shape; paper, 35.7 M parameters with the paper's
            optimizer. `channels` is for the first.
        pretrained_features: Fréchet distances of colour pictures in a pretrained network's features.
        seed: of subsets, networks, pairs and noise.
    """

    sizes: tuple[int, ...] = (10, 100, 1000)
    steps: int = 2500
    batch_size: int = 64
    channels: int = 32
    largest_side: int = 16
    num_pairs: int = 512
    num_times: int = 50
    num_samples: int = 512
    num_held_out: int = 512
    network: _samples.NetworkName = "unet"
    pretrained_features: bool = False
    seed: int = 0


_ALL = (10, 100, 1000, 2000, 3000, 4000, 5000, 10_000)
PRESETS = {
    "quick": Settings(
        sizes=(10, 100, 1000),
        steps=2500,
        largest_side=8,
        network="mlp",
        num_pairs=256,
        num_times=25,
        num_samples=256,
        num_held_out=256,
    ),
    "cpu": Settings(),
    "gpu": Settings(
        sizes=(10, 100, 1000, 10_000),
        steps=10_000,
        batch_size=128,
        channels=64,
        largest_side=32,
        num_pairs=2048,
        num_samples=2048,
        num_held_out=2048,
    ),
    "paper": Settings(
        sizes=_ALL,
        steps=400_000,
        batch_size=128,
        largest_side=32,
        num_pairs=4096,
        num_times=100,
        num_samples=10_000,
        num_held_out=10_000,
        network="paper",
        pretrained_features=True,
    ),
}


def check(dataset: Dataset, settings: Settings) -> None:
    """Raises ValueError for data or sizes that show nothing, RuntimeError for a feature network that is missing."""
    sizes = settings.sizes
    if len(sizes) < 2 or min(sizes) < 2 or any(a >= b for a, b in itertools.pairwise(sizes)):
        raise ValueError(f"approximation needs two increasing sizes or more, of 2 rows at least, got {sizes}")
    if settings.num_pairs < 1 or settings.num_times < 4:
        raise ValueError(
            f"approximation needs at least one pair and four times, got {settings.num_pairs} and {settings.num_times}"
        )
    if settings.num_samples < 2 or settings.num_held_out < 2:
        raise ValueError(
            "approximation needs at least 2 samples and 2 held-out rows for a Fréchet distance, got "
            f"{settings.num_samples} and {settings.num_held_out}"
        )
    _samples.check_network("approximation", dataset, settings.network)
    _samples.check_rows("approximation", dataset, sizes[-1], settings.num_held_out, "--sizes")
    _samples.check_features(dataset, settings.pretrained_features)


def run(work: Workspace, dataset: Dataset, settings: Settings) -> Finding:
    """Every network a run of its own, its errors and its samples a part each."""
    small = _samples.coarser(dataset, settings.largest_side)
    rows = _samples.rows_of(small, settings.sizes[-1], settings.num_held_out, settings.seed)
    times = (np.arange(settings.num_times) + 0.5) / settings.num_times
    measured, drawn = {}, {}
    for size in work.track(settings.sizes, "approximation"):
        some = _samples.first(rows.train, size)
        config = _samples.network_config(
            some,
            steps=settings.steps,
            batch_size=settings.batch_size,
            channels=settings.channels,
            seed=settings.seed,
            network=settings.network,
        )
        velocity = trained(work, f"rows-{size}", config, some)
        measured[size] = work.once(
            f"error-{size}", lambda v=velocity, s=some: _errors_on(v, s.images, times, settings)
        )
        drawn[size] = work.once(
            f"samples-{size}", lambda v=velocity, s=some: _of_samples(v, s.images, rows, small, settings)
        )
    return _found(dataset, small, rows, settings, times, measured, drawn)


def errors(
    velocity: Any, field: fj.ClosedFormField, x0: np.ndarray, x1: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """‖velocity − û‖² and ‖û‖² at (1 − t) x0 + t x1, [times, pairs] each."""
    velocity = as_pytree(velocity)
    error, size = np.zeros((2, len(times), len(x0)))
    for row, t in enumerate(times):
        for start in range(0, len(x0), _BLOCK):
            part = slice(start, start + _BLOCK)
            error[row, part], size[row, part] = _at(velocity, field, x0[part], x1[part], np.float32(t))
    return error, size


@jax.jit
def _at(velocity, field, x0, x1, t):
    x = (1 - t) * x0 + t * x1
    u = field(x, t)
    axes = tuple(range(1, x.ndim))
    return jnp.sum((velocity(x, t) - u) ** 2, axes), jnp.sum(u**2, axes)


def _errors_on(velocity, images: np.ndarray, times: np.ndarray, settings: Settings) -> dict[str, Any]:
    field = fj.ClosedFormField(images)
    rng = np.random.default_rng([settings.seed, 2])
    x1 = np.asarray(field.rows(rng.integers(0, len(images), settings.num_pairs)))
    x0 = rng.normal(size=x1.shape).astype(np.float32)
    error, size = errors(velocity, field, x0, x1, times)
    return {"error": error.mean(1), "size": size.mean(1)}


def _of_samples(velocity, images: np.ndarray, rows, small: Dataset, settings: Settings) -> dict[str, Any]:
    noise = _samples.prior(images.shape[1:], settings.num_samples, settings.seed)
    samples = _samples.draw(velocity, noise)
    nearest, second, _ = fj.metrics.nearest_distances(samples, images)
    held_out, _, _ = fj.metrics.nearest_distances(rows.held_out, images)
    features = _samples.features_of(small, settings.pretrained_features)
    copies = images[np.random.default_rng([settings.seed, 3]).integers(0, len(images), len(samples))]
    return {
        "samples": samples[:64],
        "nearest": nearest,
        "second": second,
        "held_out": held_out,
        "frechet": _samples.frechet(features, samples, rows.held_out),
        "frechet_of_copies": _samples.frechet(features, copies, rows.held_out),
        "features": features.name,
    }


def failures(times: np.ndarray, relative: np.ndarray) -> dict[str, float]:
    """The two failures of an error curve, in shares of E‖û‖²: its value at the first time, the largest one up to
    `EARLY` and its time, the smallest one after that, and the one at the last time."""
    peak = int(np.argmax(np.where(times <= EARLY, relative, -np.inf)))
    return {
        "start": float(relative[0]),
        "early": float(relative[peak]),
        "early_at": float(times[peak]),
        "between": float(relative[peak:].min()),
        "late": float(relative[-1]),
    }


def verdict(
    times: np.ndarray, relative: dict[int, np.ndarray], memorised: dict[int, float], dimension: int
) -> dict[str, bool | float | None]:
    """Each part of the claim by itself, from error curves and memorised share (ratio 1/3) by size.

    The errors are those of `failures`, and "fails" means `FAILURE` times the other one.

    early_growth, late_growth: error of the largest subset over that of the smallest, at its early and the last time.
    early_is_a_peak: on the largest subset the early error fails beside the smallest one after it.
    fails_early: it fails beside the first one, and is a peak. In less than `HIGH_DIMENSION` it may run into the late
        failure, if it is of another kind: early_growth is at least `FAILURE` times late_growth.
    fails_late: the last error fails beside the smallest one after the early failure or, without a peak, beside that.
    failure_grows: the early error of the largest subset fails beside that of the smallest, falls nowhere by more than
        a tenth from one size to the next, and the last error does not fall from the smallest subset to the largest.
    only_small_are_memorised: less than half as many samples on the largest subset as on the smallest.
    agrees: the last four. None, for networks trained too little, where the smallest subset itself is not learned:
        half of its samples memorised and an error of at most `TRAINED` in the mean over t.
    """
    sizes = sorted(relative)
    seen = {size: failures(times, relative[size]) for size in sizes}
    small, large = relative[sizes[0]], relative[sizes[-1]]
    low, high = seen[sizes[0]], seen[sizes[-1]]
    early = [seen[size]["early"] for size in sizes]
    growth = large / np.maximum(small, 1e-30)
    peak = high["early"] >= FAILURE * high["between"]
    early_growth, late_growth = float(growth[times == high["early_at"]][0]), float(growth[-1])
    merged = dimension < HIGH_DIMENSION and early_growth >= FAILURE * late_growth
    parts = {
        "fails_early": high["early"] >= FAILURE * high["start"] and (peak or merged),
        "fails_late": high["late"] >= FAILURE * high["between"],
        "failure_grows": early[-1] >= FAILURE * early[0]
        and all(b >= 0.9 * a for a, b in itertools.pairwise(early))
        and high["late"] >= low["late"],
        "only_small_are_memorised": memorised[sizes[-1]] < 0.5 * memorised[sizes[0]],
    }
    learned = memorised[sizes[0]] >= 0.5 and float(small.mean()) <= TRAINED
    return {
        "early_growth": early_growth,
        "late_growth": late_growth,
        "early_is_a_peak": peak,
        **parts,
        "agrees": all(parts.values()) if learned else None,
    }


def _found(dataset, small, rows, settings, times, measured, drawn) -> Finding:
    sizes = settings.sizes
    relative = {size: measured[size]["error"] / measured[size]["size"] for size in sizes}
    seen = {size: failures(times, relative[size]) for size in sizes}
    share = {
        name: {
            size: fj.metrics.memorised_fraction(drawn[size]["nearest"], drawn[size]["second"], ratio)
            for size in sizes
        }
        for name, ratio in (("1/3", 1 / 3), ("2/3", 2 / 3))
    }
    parts = verdict(times, relative, share["1/3"], int(np.prod(small.event_shape)))
    agrees = cast(bool | None, parts.pop("agrees"))
    most, high = sizes[-1], seen[sizes[-1]]
    valley = (
        f", {high['between']:.1%} at the least after that"
        if parts["early_is_a_peak"]
        else ", where the early failure runs into the late one,"
    )
    sentence = (
        f"on {small.name} with {most} rows the network is off by {high['early']:.1%} of E‖û‖² at t = "
        f"{high['early_at']:.2f}{valley} and {high['late']:.1%} at t = {times[-1]:.2f}: {parts['early_growth']:.1f} "
        f"and {parts['late_growth']:.1f} times as much as with {sizes[0]} rows. Memorised (1/3): "
        + ", ".join(f"{share['1/3'][size]:.0%} of the samples with {size} rows" for size in sizes)
        + "."
    )

    def by_size(value) -> dict[str, float]:
        return {str(size): float(f"{value(size):.5g}") for size in sizes}

    findings = {
        **{key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in parts.items()},
        **{
            f"{name}": by_size(lambda size, key=key: seen[size][key])
            for name, key in (
                ("relative_error_early", "early"),
                ("relative_error_early_at", "early_at"),
                ("relative_error_between", "between"),
                ("relative_error_late", "late"),
            )
        },
        "relative_error_mean": by_size(lambda size: relative[size].mean()),
        "nearest_distance_median": by_size(lambda size: np.median(drawn[size]["nearest"])),
        "nearest_distance_median_of_held_out": by_size(lambda size: np.median(drawn[size]["held_out"])),
        "frechet_to_held_out": by_size(lambda size: drawn[size]["frechet"]),
        "frechet_to_held_out_of_training_rows": by_size(lambda size: drawn[size]["frechet_of_copies"]),
        "memorised_1/3": by_size(lambda size: share["1/3"][size]),
        "memorised_2/3": by_size(lambda size: share["2/3"][size]),
        "features": str(drawn[most]["features"]),
        "held_out": rows.words,
    }
    curves = {f"error, {size} rows": curve(times, measured[size]["error"]) for size in sizes}
    curves |= {f"relative error, {size} rows": curve(times, relative[size]) for size in sizes}
    return Finding(
        agrees=agrees,
        sentence=sentence,
        findings=findings,
        curves=curves,
        figures=_figures(times, relative, drawn, share, sizes),
        notes=tuple(_notes(dataset, small, rows, settings, agrees)),
    )


def _notes(dataset, small, rows, settings, agrees):
    yield f"Held out: {len(rows.held_out)} of {rows.words}."
    if settings.sizes[-1] < 10_000:
        yield f"Cut: subsets of up to {settings.sizes[-1]} rows; the paper goes to 10 000."
    if small is not dataset:
        yield f"Cut: pictures are averaged to {small.event_shape[0]}×{small.event_shape[1]}."
    words = _samples.network_words(settings.network, settings.channels, settings.steps, settings.batch_size)
    if words:
        yield words
    if agrees is None:
        yield (
            "Trained too little to tell: on the smallest subset fewer than half of the samples are memorised, or the "
            f"error is above {TRAINED:.0%} of E‖û‖² in the mean over t."
        )


def _figures(times, relative, drawn, share, sizes) -> list[Figure]:
    import matplotlib

    shades = matplotlib.colormaps["viridis"](np.linspace(0.85, 0.1, len(sizes)))

    def error(axes):
        for size, colour in zip(sizes, shades, strict=True):
            axes.plot(times, relative[size], color=colour, label=f"{size} rows")
        axes.set(xlabel="t", ylabel="E‖u_theta − û‖² / E‖û‖²", yscale="log", xlim=(0, 1))
        _samples.plain_log(axes.yaxis)
        axes.legend(fontsize=8)

    def distance(axes):
        for key, label, colour in (
            ("nearest", "samples", COLOURS[0]),
            ("held_out", "held-out rows", COLOURS[1]),
        ):
            low, middle, high = np.transpose([np.quantile(drawn[s][key], (0.1, 0.5, 0.9)) for s in sizes])
            axes.plot(sizes, middle, color=colour, marker="o", label=label)
            axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(ylabel="distance to the nearest of them", ylim=(0, None))
        _samples.by_size(axes, sizes)
        axes.legend(fontsize=8)

    def frechet(axes):
        axes.plot(sizes, [drawn[s]["frechet"] for s in sizes], color=COLOURS[0], marker="o", label="samples")
        copies = [drawn[s]["frechet_of_copies"] for s in sizes]
        axes.plot(sizes, copies, color=COLOURS[1], marker="o", label="rows trained on")
        axes.set(ylabel="Fréchet distance to held-out rows", yscale="log")
        _samples.by_size(axes, sizes)
        _samples.plain_log(axes.yaxis)
        axes.legend(fontsize=8)

    def memorised(axes):
        for (name, values), colour in zip(share.items(), COLOURS, strict=False):
            axes.plot(
                sizes,
                [values[s] for s in sizes],
                color=colour,
                marker="o",
                label=f"nearest < {name} second nearest",
            )
        axes.set(ylabel="share of the samples", ylim=(-0.03, 1.03))
        _samples.by_size(axes, sizes)
        axes.legend(fontsize=8)

    return [
        Figure("error", "Error of the networks as a share of E‖û‖², each against û of its own rows.", error),
        Figure(
            "distance",
            "Distance to the nearest training row: median, and from the first to the ninth decile.",
            distance,
        ),
        Figure(
            "frechet",
            "Fréchet distance to held-out rows of samples, and of as many rows trained on.",
            frechet,
        ),
        Figure("memorised", "Share of samples that are copies.", memorised),
    ]
