"""At which time of a trajectory new samples come about (figure 3 of arXiv 2506.03719).

A trajectory follows the exact velocity û on [0, tau) and a network, trained with plain flow matching on the same rows,
on [tau, 1]: tau = 0 is the network alone, tau = 1 the closed form alone, which can only give training rows. From the
same noise for every tau: the distance of the samples to the nearest training row (and that of held-out rows), the
share of samples whose nearest row is the one that the whole trajectory of û ends in, the share of memorised ones
(nearest distance below 1/3 of the second nearest), their cosine with the samples of û about the mean of the rows, and
their Fréchet distance to held-out rows.

Held-out rows are the data set's test rows; without those, rows set aside before training.

Cost: "quick", with a fully connected network, about half a minute on two cores. "cpu": 11 minutes on digits, 29 on
Fashion-MNIST at 14×14 (both beside other jobs) and on patches at 16×16. "gpu", reckoned from the time of single steps
and not run: 20 minutes. "paper": a day.
Expect: distances of the network's own samples up to tau about .2, hardly any from .3 to .4 on; for pictures of few
pixels both come later, with the collapse of û, whose time is measured beside it (digits: .4 and .8, û from .625;
Fashion-MNIST at 14×14: .6 and .8, û from .625; patches at 16×16: .5 and .8, û from .525). A small network that takes
over at .8 still ends some way from any row: all three cannot tell.

Command: flowjax experiment hybrid --data fashion-mnist
"""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

import flowjax as fj
from flowjax.data import Dataset
from flowjax.report import COLOURS

from . import _samples
from ._finding import Figure, Finding, Picture, curve
from ._networks import trained
from ._workspace import Workspace

CLAIM = (
    "Where the exact velocity is followed up to tau and a network after that, samples are new for tau up to about .2 "
    "and copies of the training data from .3 or .4 on: new images come from the network's early failure."
)
HIGH_DIMENSION = 1000
NEW, COPIED = 0.25, 0.75
"""Shares of the way from the network's samples to those of û, see `verdict`."""
POOR = 1.5
"""Samples so many times as far from the training rows as held-out rows are noisy rather than new."""
ONE_ROW = 0.9
"""Weight of one row from which on û knows where it goes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes.

    Attributes:
        taus: times of the change, increasing from 0 to 1.
        num_rows: rows to train on; None takes all that are not held out.
        steps: optimizer steps of the network.
        batch_size: of them.
        channels: of its first level.
        largest_side: larger pictures are averaged over 2×2 pixels until their sides are no longer.
        num_samples: noises, the same for every tau.
        num_columns: of them in the picture.
        num_held_out: rows held out.
        network: unet, which takes pictures; mlp, for rows of any shape; paper, 35.7 M parameters with the paper's
            optimizer. `channels` is for the first.
        pretrained_features: Fréchet distances of colour pictures in a pretrained network's features.
        seed: of rows, network and noise.
    """

    taus: tuple[float, ...] = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)
    num_rows: int | None = None
    steps: int = 6000
    batch_size: int = 64
    channels: int = 32
    largest_side: int = 16
    num_samples: int = 256
    num_columns: int = 16
    num_held_out: int = 256
    network: _samples.NetworkName = "unet"
    pretrained_features: bool = False
    seed: int = 0


PRESETS = {
    "quick": Settings(
        taus=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        num_rows=200,
        steps=2000,
        largest_side=8,
        network="mlp",
        num_samples=64,
        num_held_out=64,
    ),
    "cpu": Settings(),
    "gpu": Settings(steps=40_000, batch_size=128, channels=64, largest_side=32, num_held_out=2048),
    "paper": Settings(
        steps=400_000,
        batch_size=128,
        largest_side=32,
        num_held_out=10_000,
        network="paper",
        pretrained_features=True,
    ),
}


def check(dataset: Dataset, settings: Settings) -> None:
    """Raises ValueError for data or sizes that show nothing, RuntimeError for a feature network that is missing."""
    taus = settings.taus
    if len(taus) < 3 or taus[0] != 0 or taus[-1] != 1 or any(a >= b for a, b in itertools.pairwise(taus)):
        raise ValueError(f"hybrid needs three increasing taus or more, from 0 to 1, got {taus}")
    if settings.num_samples < 2 or settings.num_held_out < 2 or settings.num_columns < 1:
        raise ValueError(
            "hybrid needs at least 2 samples, 2 held-out rows and one column of pictures, got "
            f"{settings.num_samples}, {settings.num_held_out} and {settings.num_columns}"
        )
    _samples.check_network("hybrid", dataset, settings.network)
    count = 3 if settings.num_rows is None else settings.num_rows
    if count < 3:
        raise ValueError(f"hybrid needs 3 rows at least, a nearest and others to compare with, got {count}")
    option = "--num-held-out" if settings.num_rows is None else "--num-rows"
    _samples.check_rows("hybrid", dataset, count, settings.num_held_out, option)
    _samples.check_features(dataset, settings.pretrained_features)


def run(work: Workspace, dataset: Dataset, settings: Settings) -> Finding:
    """The network a run of its own, every tau a part."""
    small = _samples.coarser(dataset, settings.largest_side)
    set_aside = settings.num_held_out if dataset.test_images is None else 0
    count = settings.num_rows or dataset.num_points - set_aside
    rows = _samples.rows_of(small, count, settings.num_held_out, settings.seed)
    config = _samples.network_config(
        rows.train,
        steps=settings.steps,
        batch_size=settings.batch_size,
        channels=settings.channels,
        seed=settings.seed,
        network=settings.network,
    )
    velocity = trained(work, "network", config, rows.train)
    field = fj.ClosedFormField(rows.train.images)
    noise = _samples.prior(rows.train.event_shape, settings.num_samples, settings.seed)
    seen = {
        tau: work.once(f"tau-{tau:g}", lambda tau=tau: _at(field, velocity, tau, noise, rows.train.images))
        for tau in work.track(settings.taus, "hybrid")
    }
    beside = work.once("beside", lambda: _beside(seen, field, rows, small, settings))
    return _found(work, dataset, small, rows, settings, seen, beside)


def samples_at(field: Any, velocity: Any, tau: float, noise: np.ndarray) -> np.ndarray:
    """Samples [b, *event] of `field` on [0, tau) and `velocity` on [tau, 1]."""
    return _samples.draw(fj.sampling.hybrid(field, velocity, tau), noise)


def _at(field, velocity, tau: float, noise: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    samples = samples_at(field, velocity, tau, noise)
    nearest, second, index = fj.metrics.nearest_distances(samples, images)
    return {"samples": samples, "nearest": nearest, "second": second, "index": index}


def _beside(seen, field, rows, small: Dataset, settings: Settings) -> dict[str, Any]:
    """Fréchet distances by tau, of training rows too; how near held-out rows are; and when û knows its row."""
    images = rows.train.images
    features = _samples.features_of(small, settings.pretrained_features)
    rng = np.random.default_rng([settings.seed, 3])
    some = images[rng.integers(0, len(images), settings.num_samples)]
    times, known = one_row_by_time(field, settings.num_samples, settings.seed)
    return {
        "frechet": [_samples.frechet(features, seen[tau]["samples"], rows.held_out) for tau in settings.taus],
        "frechet_of_rows": _samples.frechet(features, some, rows.held_out),
        "features": features.name,
        "held_out": fj.metrics.nearest_distances(rows.held_out, images).nearest,
        "mean": np.asarray(field.posterior(np.zeros((1, *images.shape[1:]), np.float32), 0.0).mean[0]),
        "times": times,
        "known": known,
    }


def one_row_by_time(
    field: fj.ClosedFormField, num_pairs: int, seed: int, num_times: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Times, and the share of queries on the path of the field's rows that give one row the weight `ONE_ROW`."""
    rng = np.random.default_rng([seed, 2])
    x1 = np.asarray(field.rows(rng.integers(0, field.num_points, num_pairs)))
    x0 = rng.normal(size=x1.shape).astype(np.float32)
    times = np.arange(num_times) / num_times
    weights = jax.jit(lambda field, t: field.posterior((1 - t) * x0 + t * x1, t).max_weight)
    return times, np.asarray([np.mean(weights(field, np.float32(t)) > ONE_ROW) for t in times])


def verdict(
    taus: np.ndarray,
    distance: np.ndarray,
    same: np.ndarray,
    *,
    held_out: float,
    known_at: float,
    dimension: int,
) -> dict[str, Any]:
    """When samples stop being new.

    Args:
        taus: [T].
        distance: [T] median distance to the nearest training row.
        same: [T] share of samples whose nearest row is that of û.
        held_out: median distance of held-out rows.
        known_at: when û knows its row.
        dimension: of a row.

    Returns:
        new_until: the last tau up to which less than `NEW` of the way from the network's distance (tau = 0) to that
            of û (tau = 1) is gone.
        copied_from: the first tau from which on the share `same` is over more than `COPIED` of its way.
        near_from: the first tau from which on the distance is.
        agrees: samples are new for some tau of .1 and more, and copied and near from .45 or earlier. That is for
            `HIGH_DIMENSION` and above; in lower dimension û itself knows its row later, and the bounds are .05 and
            .15 after `known_at`. None where it says nothing: the network's own samples (tau = 0) are not twice as far
            from the rows as those of û, or they are `POOR` times as far as held-out rows, which is what noise left in
            pictures looks like, or the network comes near no row even from the last tau before 1, so that its late
            failure hides the early one.
    """
    gone = (distance[0] - distance) / max(distance[0] - distance[-1], 1e-30)
    decided = (same - same[0]) / max(same[-1] - same[0], 1e-30)
    still = np.logical_and.accumulate(gone < NEW)
    new_until = float(taus[still].max())
    copied_from, near_from = _from(taus, decided > COPIED), _from(taus, gone > COPIED)
    first, last = (0.1, 0.45) if dimension >= HIGH_DIMENSION else (0.05, known_at + 0.15)
    tells = bool(2 * distance[-1] < distance[0] < POOR * held_out) and near_from < 1
    agrees = first <= new_until and max(copied_from, near_from) <= last
    return {
        "new_until": new_until,
        "copied_from": copied_from,
        "near_from": near_from,
        "agrees": agrees if tells else None,
    }


def _from(taus: np.ndarray, reached: np.ndarray) -> float:
    """The first tau from which on it stays reached; 1 if it never does."""
    stays = np.logical_and.accumulate(reached[::-1])[::-1]
    return float(taus[np.argmax(stays)]) if stays.any() else 1.0


def _found(work, dataset, small, rows, settings, seen, beside) -> Finding:
    taus = np.asarray(settings.taus)
    dimension = int(np.prod(small.event_shape))
    middle = np.asarray([np.median(seen[tau]["nearest"]) for tau in settings.taus])
    final = seen[1.0]["index"]
    same = np.asarray([np.mean(seen[tau]["index"] == final) for tau in settings.taus])
    memorised = {
        name: np.asarray(
            [
                fj.metrics.memorised_fraction(seen[tau]["nearest"], seen[tau]["second"], ratio)
                for tau in settings.taus
            ]
        )
        for name, ratio in (("1/3", 1 / 3), ("2/3", 2 / 3))
    }
    cosine = np.asarray(
        [_cosine(seen[tau]["samples"], seen[1.0]["samples"], beside["mean"]) for tau in settings.taus]
    )
    reached = beside["known"] >= 0.5
    known_at = float(beside["times"][np.argmax(reached)]) if reached.any() else 1.0
    held_out = float(np.median(beside["held_out"]))
    judged = verdict(taus, middle, same, held_out=held_out, known_at=known_at, dimension=dimension)
    sentence = (
        f"on {small.name} (n = {rows.train.num_points}, d = {dimension}) samples of the network lie {middle[0]:.3g} "
        f"from the nearest training row, held-out rows {held_out:.3g}. With û up to tau they are as far up to tau = "
        f"{judged['new_until']:g}, near from {judged['near_from']:g} on, and belong to the row of û from "
        f"{judged['copied_from']:g} on. At tau = .2, .3 and .4 the nearest row is that of û for "
        + ", ".join(f"{np.interp(t, taus, same):.0%}" for t in (0.2, 0.3, 0.4))
        + f" of the samples; on its path û gives one row {ONE_ROW:.0%} of the weight from t = {known_at:g} on (half of "
        "the queries)."
    )

    def by_tau(values) -> dict[str, float]:
        return {f"{tau:g}": float(f"{value:.5g}") for tau, value in zip(taus, values, strict=True)}

    findings = {
        "dimension": dimension,
        "num_points": rows.train.num_points,
        "new_until": judged["new_until"],
        "copied_from": judged["copied_from"],
        "near_from": judged["near_from"],
        "closed_form_knows_its_row_at": known_at,
        "nearest_distance_median": by_tau(middle),
        "nearest_distance_median_of_held_out": float(f"{held_out:.5g}"),
        "same_row_as_closed_form": by_tau(same),
        "memorised_1/3": by_tau(memorised["1/3"]),
        "memorised_2/3": by_tau(memorised["2/3"]),
        "cosine_with_closed_form": by_tau(cosine),
        "frechet_to_held_out": by_tau(beside["frechet"]),
        "frechet_to_held_out_of_training_rows": float(f"{float(beside['frechet_of_rows']):.5g}"),
        "features": str(beside["features"]),
        "held_out": rows.words,
    }
    low, high = np.transpose([np.quantile(seen[tau]["nearest"], (0.1, 0.9)) for tau in settings.taus])
    curves = {
        "nearest_distance": curve(taus, middle, low=low, high=high),
        "same_row_as_closed_form": curve(taus, same),
        "memorised_1/3": curve(taus, memorised["1/3"]),
        "cosine_with_closed_form": curve(taus, cosine),
        "frechet_to_held_out": curve(taus, beside["frechet"]),
        "closed_form_knows_its_row": curve(beside["times"], beside["known"]),
    }
    figures = _figures(taus, (low, middle, high), held_out, same, memorised, beside, known_at)
    picture = _picture(work, rows, settings, seen)
    return Finding(
        agrees=judged["agrees"],
        sentence=sentence,
        findings=findings,
        curves=curves,
        figures=[figures[0], picture, *figures[1:]] if picture else figures,
        notes=tuple(_notes(dataset, small, rows, settings, judged)),
    )


def _cosine(samples: np.ndarray, others: np.ndarray, mean: np.ndarray) -> float:
    """Mean cosine of samples and others about a mean."""
    a, b = (np.reshape(part - mean, (len(part), -1)) for part in (samples, others))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(1) / np.maximum(norms, 1e-30)))


def _notes(dataset, small, rows, settings, judged):
    yield f"Held out: {len(rows.held_out)} of {rows.words}."
    if small is not dataset:
        yield f"Cut: pictures are averaged to {small.event_shape[0]}×{small.event_shape[1]}."
    words = _samples.network_words(settings.network, settings.channels, settings.steps, settings.batch_size)
    if words:
        yield words
    if judged["agrees"] is None:
        yield (
            "The network cannot tell: alone its samples must lie at least twice as far from the training rows as those "
            f"of û and less than {POOR} times as far as held-out rows, and after the last tau before 1 it must come "
            "near a row."
        )


def _picture(work: Workspace, rows, settings: Settings, seen) -> Picture | None:
    """One line a tau and, below, the training rows that û ends in."""
    if not (len(rows.train.event_shape) == 3 and fj.data.drawable(rows.train.event_shape)):
        return None
    columns = min(settings.num_columns, settings.num_samples)
    lines = [seen[tau]["samples"][:columns] for tau in settings.taus]
    lines.append(fj.closed_form.to_float(rows.train.images[seen[1.0]["index"][:columns]]))
    sheet = fj.data.contact_sheet(np.concatenate(lines), columns=columns)
    fj.data.save_picture(sheet, work.out / "samples.png")
    listed = ", ".join(f"{tau:g}" for tau in settings.taus)
    return Picture(
        "samples",
        f"Every column starts from the same noise; from top to bottom tau = {listed}, and last the training row "
        "nearest to the sample of tau = 1.",
    )


def _figures(taus, distances, held_out, same, memorised, beside, known_at) -> list[Figure]:
    low, middle, high = distances

    def distance(axes):
        axes.plot(taus, middle, color=COLOURS[0], marker="o", markersize=4, label="samples")
        axes.fill_between(taus, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
        axes.axhline(held_out, color=COLOURS[1], linestyle="--", label="held-out rows")
        axes.axvline(known_at, color="grey", linestyle=":", label="û knows its row")
        axes.set(xlabel="tau", ylabel="distance to the nearest training row", xlim=(0, 1), ylim=(0, None))
        axes.legend(fontsize=8)

    def copies(axes):
        axes.plot(taus, same, color=COLOURS[0], marker="o", markersize=4, label="nearest row is that of û")
        for (name, values), colour, line in zip(memorised.items(), COLOURS[1:], ("-", "--"), strict=False):
            label = f"nearest < {name} second nearest"
            axes.plot(taus, values, color=colour, linestyle=line, marker="o", markersize=4, label=label)
        axes.plot(
            beside["times"],
            beside["known"],
            color="grey",
            linestyle=":",
            label=f"weight of one row > {ONE_ROW}, at t",
        )
        axes.set(xlabel="tau", ylabel="share", xlim=(0, 1), ylim=(-0.03, 1.03))
        axes.legend(fontsize=8)

    def frechet(axes):
        axes.plot(taus, beside["frechet"], color=COLOURS[0], marker="o", markersize=4, label="samples")
        axes.axhline(
            float(beside["frechet_of_rows"]), color=COLOURS[1], linestyle="--", label="training rows"
        )
        axes.set(xlabel="tau", ylabel="Fréchet distance to held-out rows", xlim=(0, 1), ylim=(0, None))
        axes.legend(fontsize=8)

    return [
        Figure(
            "distance",
            "Distance to the nearest training row against the time at which the network takes over: median, and from "
            "the first to the ninth decile.",
            distance,
        ),
        Figure("copies", "Share of samples that are copies, by three measures.", copies),
        Figure(
            "frechet", "Fréchet distance of samples, and of as many training rows, to held-out rows.", frechet
        ),
    ]
