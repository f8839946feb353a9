"""How much likelier training rows are than rows nobody trained on: the memorisation gap (not in arXiv 2506.03719).

The closed form is the flow of the training rows themselves. Its density at time t is a sum of bumps of width sigma on
them, so what it thinks of a row x is known without any solver, log p̂_t at the state alpha(t) x, or averaged over states
with noise, alpha(t) x + sigma(t) x0. A network is asked the same at the same states, by the change of variables along
the way back to noise. The gap is the mean log density of training rows less that of held-out ones, in nats a dimension.

Late the nearest row is all that counts, so for a held-out row at the distance D of the nearest training row

    gap of the closed form → alpha² E[D²] / (2 d sigma²),

without bound as t → 1. Held-out rows are the data set's own test rows; where there are none, a part of the rows (a
fifth unless `held_out` says otherwise), drawn with the seed, is set apart before anything is trained. The field and the
network see the remaining ones alone. That a network knows something is judged by its likelihood of held-out rows beside
that of isotropic normal noise about the training mean: below it, a small gap says nothing.

The solver's divergence is exact up to 64 dimensions and Hutchinson's estimate above; that estimate has no bias, so the
gap, a mean over rows, has none either. Bands are two standard errors over rows.

Cost: quick about a minute on two idle cores, most of it compilation; cpu, estimated from it, 10 minutes for digits
and 50 for pictures of 28×28.
Expect: digits, n = 1438: the closed form's gap is .02 nats a dimension at t = .5, .6 at .8, 13 at .95 and 36 000 at
.999, as the nearest rows predict. A small U-Net after 400 steps gives both kinds of rows what the closed form gives
held-out ones up to t = .8, and then leaves it: its gap is .04 ± .09 at t = .97, where the closed form has 38.

Command: flowjax experiment likelihood
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj
from flowjax.data import Dataset
from flowjax.report import COLOURS
from flowjax.training.config import TargetConfig

from . import _networks
from ._finding import Figure, Finding, curve
from ._workspace import Workspace

CLAIM = (
    "As t → 1 the closed form makes training rows likelier than held-out ones without bound, and the trained network "
    "does not: it generalises because late it does not follow the closed form."
)
NEAR_ZERO = 0.1
"""Nats a dimension within which a gap counts as near zero, and tenfold of which the field's must exceed."""
TENTH = 0.1
AT_ONCE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes.

    Attributes:
        num_rows: training rows, and as many held-out ones, that the field is asked about.
        num_network_rows: how many of them the network is asked about.
        num_noises: states alpha x + sigma x0 a row for the noised density.
        num_times: times of the field: evenly from 0 to .95, and as many half again towards last_time.
        last_time: of the field.
        network_times: times of the network.
        held_out: rows set apart where the data set brings no test rows; None is a fifth.
        num_train: training rows; None is all.
        target: what the network regresses on.
        training_steps: of the network.
        batch_size: of the training.
        channels: of the U-Net's first level.
        learning_rate: of the training.
        divergence: auto, exact or hutchinson, see `flowjax.sampling.log_density`.
        num_probes: of Hutchinson's estimate, a row.
        tolerance: rtol and atol of the solver.
        seed: of everything.
    """

    num_rows: int = 256
    num_network_rows: int = 128
    num_noises: int = 4
    num_times: int = 20
    last_time: float = 0.999
    network_times: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.9, 0.97, 0.99)
    held_out: int | None = None
    num_train: int | None = None
    target: Literal["conditional", "closed-form"] = "conditional"
    training_steps: int = 1500
    batch_size: int = 128
    channels: int = 32
    learning_rate: float = 1e-3
    divergence: Literal["auto", "exact", "hutchinson"] = "hutchinson"
    num_probes: int = 1
    tolerance: float = 1e-3
    seed: int = 0


PRESETS = {
    "quick": Settings(
        num_rows=128,
        num_network_rows=96,
        num_noises=2,
        num_times=12,
        network_times=(0.3, 0.6, 0.8, 0.9, 0.97),
        training_steps=150,
        batch_size=64,
        channels=8,
        num_probes=1,
    ),
    "cpu": Settings(),
    "gpu": Settings(
        num_rows=2048,
        num_network_rows=1024,
        training_steps=20_000,
        channels=64,
        num_probes=8,
        tolerance=1e-4,
        network_times=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999),
    ),
    "paper": Settings(
        num_rows=10_000,
        num_network_rows=10_000,
        training_steps=200_000,
        channels=128,
        learning_rate=2e-4,
        num_probes=8,
        tolerance=1e-5,
        network_times=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999),
    ),
}


def check(dataset: Dataset, settings: Settings) -> None:
    """Raises ValueError for data or sizes that show nothing."""
    if len(dataset.event_shape) != 3:
        raise ValueError(
            f"likelihood trains a U-Net on pictures [height, width, channels], {dataset.name!r} has rows of shape "
            f"{dataset.event_shape}"
        )
    positive = ("num_rows", "num_noises", "num_times", "training_steps", "num_probes")
    for name in positive:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(settings, name)}")
    if not 2 <= settings.num_network_rows <= settings.num_rows:
        raise ValueError(
            f"num_network_rows={settings.num_network_rows} must lie in 2..num_rows={settings.num_rows}"
        )
    times = settings.network_times
    if not times or list(times) != sorted(set(times)) or not 0 < times[0] <= times[-1] <= settings.last_time:
        raise ValueError(
            f"network_times must rise within (0, last_time={settings.last_time}], got {tuple(times)}"
        )
    if not 0.95 < settings.last_time < 1 or not settings.tolerance > 0:
        raise ValueError(
            "last_time must lie in (.95, 1) and tolerance be positive, "
            f"got {settings.last_time} and {settings.tolerance}"
        )
    need, own = settings.num_rows, dataset.test_images is not None
    held = len(dataset.test_images) if dataset.test_images is not None else held_out_count(dataset, settings)
    if held < need:
        where = "test rows" if own else f"rows set apart of {dataset.num_points}"
        way = "a smaller num_rows" if own else f"held_out={need} or a smaller num_rows"
        raise ValueError(
            f"likelihood asks about num_rows={need} held-out rows, and {dataset.name!r} has {held} {where}; set {way}"
        )
    left = dataset.num_points - (0 if own else held)
    wanted = need if settings.num_train is None else max(need, settings.num_train)
    if left < wanted:
        raise ValueError(
            f"likelihood needs {wanted} training rows, and {dataset.name!r} has {left}"
            + ("" if own else f" beside the {held} set apart")
        )
    if settings.num_train is not None and settings.num_train < need:
        raise ValueError(f"num_train={settings.num_train} is less than num_rows={need}; raise it")
    _config(dataset, settings)


def held_out_count(dataset: Dataset, settings: Settings) -> int:
    """How many rows are set apart where there are no test rows."""
    return dataset.num_points // 5 if settings.held_out is None else settings.held_out


def split(dataset: Dataset, settings: Settings) -> tuple[Dataset, np.ndarray]:
    """The training rows as a data set, and held-out rows [m, *event]; both in an order drawn with the seed."""
    order = np.random.default_rng(settings.seed).permutation(dataset.num_points)
    if dataset.test_images is None:
        held = held_out_count(dataset, settings)
        apart, order = dataset.images[order[:held]], order[held:]
    else:
        rng = np.random.default_rng((settings.seed, 1))
        apart = dataset.test_images[rng.permutation(len(dataset.test_images))]
    order = order[: settings.num_train]
    return Dataset(f"{dataset.name}-{len(order)}", dataset.images[order]), apart


def run(work: Workspace, dataset: Dataset, settings: Settings) -> Finding:
    """The field, the training, and every time of the network are parts of their own."""
    train, held = split(dataset, settings)
    both = [np.asarray(fj.closed_form.to_float(rows[: settings.num_rows])) for rows in (train.images, held)]
    times = field_times(settings)
    known = work.once("field", lambda: _field(work, train, both, times, settings))
    velocity = _networks.trained(work, "network", _config(train, settings), train)
    few = np.concatenate([rows[: settings.num_network_rows] for rows in both])
    asked = [
        work.once(f"network-time-{k}", lambda t=t, k=k: _network(velocity, few, t, settings, k))
        for k, t in enumerate(work.track(settings.network_times, "likelihood"))
    ]
    points = np.asarray(fj.closed_form.to_float(train.images))
    normal = np.stack([normal_density(points, few[len(few) // 2 :], t) for t in settings.network_times])
    learned = np.stack([part["log_density"] for part in asked]).reshape(len(asked), 2, -1)
    failed = [t for t, part in zip(settings.network_times, asked, strict=True) if bool(part["failed"])]
    return _finding(dataset, train, settings, times, known, learned, normal, failed)


def field_times(settings: Settings) -> np.ndarray:
    """Evenly from 0 to .95, geometrically in 1 − t from there to the last, and those of the network."""
    late = max(2, settings.num_times // 2)
    return np.unique(
        np.concatenate(
            [
                np.linspace(0, 0.95, settings.num_times),
                1 - np.geomspace(0.05, 1 - settings.last_time, late),
                settings.network_times,
            ]
        ).round(6)
    )


def _config(dataset: Dataset, settings: Settings) -> Any:
    return _networks.configured(
        dataset,
        steps=settings.training_steps,
        batch_size=settings.batch_size,
        channels=settings.channels,
        learning_rate=settings.learning_rate,
        target=TargetConfig(name=settings.target),
        seed=settings.seed,
    )


# -- densities -------------------------------------------------------------------------------------------------------


@jax.jit
def _log_density(field: fj.ClosedFormField, x: jax.Array, t: jax.Array) -> jax.Array:
    return field.posterior(x, t).log_density


def field_density(field: fj.ClosedFormField, x: np.ndarray, t: float) -> np.ndarray:
    """[b] log p̂_t of the states x [b, *event], in nats, block by block."""
    blocks = [_log_density(field, x[k : k + AT_ONCE], np.float32(t)) for k in range(0, len(x), AT_ONCE)]
    return np.concatenate([np.asarray(block) for block in blocks])


def normal_density(train: np.ndarray, rows: np.ndarray, t: float) -> np.ndarray:
    """[b] log density of the states t rows, were the data normal about the training mean, alike in all directions."""
    flat = np.asarray(train, np.float64).reshape(len(train), -1)
    mean, spread = flat.mean(0), flat.var(0).mean()
    variance = t**2 * spread + (1 - t) ** 2
    square = (t * (np.asarray(rows, np.float64).reshape(len(rows), -1) - mean)) ** 2
    return -(square / variance + np.log(2 * np.pi * variance)).sum(1) / 2


def _field(work: Workspace, train: Dataset, both, times: np.ndarray, settings: Settings) -> dict[str, Any]:
    """plain and noised [times, 2, rows], log density of training and held-out rows; distance [rows] squared, of the
    held-out ones to the nearest training row."""
    field = fj.ClosedFormField(train.images)
    rows = np.concatenate(both)
    rng = np.random.default_rng((settings.seed, 2))
    # The same noise on both sides, so that the gap is of the rows alone.
    noise = rng.normal(size=(settings.num_noises, *both[0].shape)).astype(np.float32)
    noise = np.concatenate([noise, noise], 1)
    plain, noised = [], []
    for t in work.track(times, "closed form"):
        alpha, sigma = np.float32(t), 1 - np.float32(t)
        plain.append(field_density(field, alpha * rows, t).reshape(2, -1))
        states = (alpha * rows + sigma * noise).reshape(-1, *rows.shape[1:])
        noised.append(field_density(field, states, t).reshape(settings.num_noises, 2, -1).mean(0))
    points = np.asarray(fj.closed_form.to_float(train.images), np.float32).reshape(train.num_points, -1)
    queries = both[1].reshape(len(both[1]), -1)
    distance = [((points - query) ** 2).sum(1).min() for query in queries]
    return {"plain": np.stack(plain), "noised": np.stack(noised), "distance": np.array(distance)}


def _network(velocity: Any, rows: np.ndarray, t: float, settings: Settings, k: int) -> dict[str, Any]:
    """[rows] log density of the network at the states alpha x; NaN where the solver gives up."""
    blocks, failed = [], False
    for start in range(0, len(rows), AT_ONCE):
        block = rows[start : start + AT_ONCE]
        try:
            found = fj.sampling.log_density(
                velocity,
                jnp.float32(t) * block,
                of="state",
                final_time=float(t),
                divergence=settings.divergence,
                num_probes=settings.num_probes,
                key=jax.random.fold_in(jax.random.key(settings.seed), k * len(rows) + start),
                rtol=settings.tolerance,
                atol=settings.tolerance,
            )
            blocks.append(np.asarray(found.log_density))
        except RuntimeError as error:
            print(f"no likelihood at t = {t}: {error}", flush=True)
            blocks.append(np.full(len(block), np.nan, np.float32))
            failed = True
    return {"log_density": np.concatenate(blocks), "failed": failed}


def gap(density: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of training less held-out rows [..., 2, rows] in nats a dimension, and its standard error [...]."""
    each = np.asarray(density, np.float64) / dimension
    mean, variance = each.mean(-1), each.var(-1, ddof=1) / each.shape[-1]
    return mean[..., 0] - mean[..., 1], np.sqrt(variance.sum(-1))


def verdict(
    field_gap: np.ndarray, network_gap: np.ndarray, network_error: np.ndarray, knows: bool
) -> bool | None:
    """At the network's times: whether the field's gap grows beyond ten times NEAR_ZERO, and there the network's is a
    tenth of it at most, and at the last time within NEAR_ZERO by two errors. None where the field's gap stays small,
    the network's last is known to no better than NEAR_ZERO, or the network knows nothing yet."""
    known = np.isfinite(network_gap)
    if not known.any() or not known[-1] or field_gap[-1] < 10 * NEAR_ZERO:
        return None
    large = known & (field_gap >= 10 * NEAR_ZERO)
    follows = network_gap[large] - 2 * network_error[large] > TENTH * field_gap[large]
    last, error = float(network_gap[-1]), 2 * float(network_error[-1])
    if follows.any() or abs(last) - error > NEAR_ZERO:
        return False
    return True if abs(last) + error <= NEAR_ZERO and knows else None


# -- findings --------------------------------------------------------------------------------------------------------


def _finding(dataset, train, settings, times, known, learned, normal, failed) -> Finding:
    dimension = int(np.prod(dataset.event_shape))
    own = dataset.test_images is not None
    asked = np.asarray(settings.network_times)
    gaps = {name: gap(known[name], dimension) for name in ("plain", "noised")}
    network_gap, network_error = gap(learned, dimension)
    at = [int(np.argmin(np.abs(times - t))) for t in asked]
    # The same rows for both, so that nothing but the model differs.
    same, _ = gap(known["plain"][at][:, :, : learned.shape[-1]], dimension)
    predicted = (times / (1 - times)) ** 2 * known["distance"].mean() / (2 * dimension)
    held_out_density = learned[:, 1].mean(-1) / dimension
    beyond = held_out_density - normal.mean(-1) / dimension
    agrees = verdict(same, network_gap, network_error, bool(beyond[-1] > 0))
    passes = {limit: _plain(_passes(times, gaps["plain"][0], limit)) for limit in (0.1, 1, 10, 100)}
    sentence = (
        f"on {dataset.name} (n = {train.num_points} for training, d = {dimension}) the closed form's gap is "
        + ", ".join(f"{np.interp(t, times, gaps['plain'][0]):.3g} at t = {t}" for t in (0.5, 0.8, 0.95))
        + f" and {gaps['plain'][0][-1]:.3g} at {times[-1]:g}, in nats a dimension; the network's after "
        f"{settings.training_steps} steps is {network_gap[-1]:.3f} ± {2 * network_error[-1]:.3f} at t = {asked[-1]:g}, "
        f"where the closed form has {same[-1]:.3g}."
    )
    findings = {
        "dimension": dimension,
        "num_train": train.num_points,
        "held_out": "test rows" if own else f"{held_out_count(dataset, settings)} rows set apart",
        "field_gap": {f"{t:g}": _plain(np.interp(t, times, gaps["plain"][0])) for t in asked},
        "field_gap_noised": {f"{t:g}": _plain(np.interp(t, times, gaps["noised"][0])) for t in asked},
        "network_gap": {f"{t:g}": _plain(g) for t, g in zip(asked, network_gap, strict=True)},
        "network_gap_error": {f"{t:g}": _plain(e) for t, e in zip(asked, network_error, strict=True)},
        "network_held_out_beyond_normal": {f"{t:g}": _plain(b) for t, b in zip(asked, beyond, strict=True)},
        "field_gap_at_the_last_time": _plain(gaps["plain"][0][-1]),
        "field_gap_over_predicted_at_the_last_time": _plain(gaps["plain"][0][-1] / predicted[-1]),
        "field_gap_passes_at": {f"{limit:g} nats a dimension": t for limit, t in passes.items()},
        "mean_squared_distance_of_held_out_to_nearest": _plain(known["distance"].mean()),
    }
    curves = {}
    for name in ("plain", "noised"):
        value, error = gaps[name]
        curves[f"field gap, {name}"] = curve(times, value, low=value - 2 * error, high=value + 2 * error)
        for k, split_name in enumerate(("training", "held-out")):
            curves[f"field, {split_name}, {name}"] = curve(times, known[name][:, k].mean(-1) / dimension)
    curves["network gap"] = curve(
        asked, network_gap, low=network_gap - 2 * network_error, high=network_gap + 2 * network_error
    )
    curves["isotropic normal, held-out"] = curve(asked, normal.mean(-1) / dimension)
    curves["predicted field gap"] = curve(times, predicted)
    for k, split_name in enumerate(("training", "held-out")):
        curves[f"network, {split_name}"] = curve(asked, learned[:, k].mean(-1) / dimension)
    notes = [
        "Densities are those of the states at time t, with respect to Lebesgue measure there; the gap is the same in "
        "data space.",
        "Held-out rows are the data set's test rows."
        if own
        else f"Held out: {held_out_count(dataset, settings)} of the {dataset.num_points} rows, set apart before "
        "training.",
    ]
    if failed:
        notes.append(f"The solver gave up at t = {', '.join(f'{t:g}' for t in failed)}: no likelihood there.")
    return Finding(
        agrees=agrees,
        sentence=sentence,
        findings=findings,
        curves=curves,
        figures=_figures(
            times,
            asked,
            dimension,
            known,
            learned,
            normal,
            gaps,
            (network_gap, network_error),
            predicted,
        ),
        notes=notes,
    )


def _passes(times: np.ndarray, values: np.ndarray, limit: float) -> float:
    """When rising values last pass the limit, between the times; NaN if they never do."""
    below = np.flatnonzero(values < limit)
    if not len(below) or below[-1] == len(values) - 1:
        return np.nan
    k = below[-1]
    return float(np.interp(limit, values[k : k + 2], times[k : k + 2]))


def _plain(value: Any) -> float | None:
    return float(f"{float(value):.5g}") if np.isfinite(value) else None


def _figures(times, asked, dimension, known, learned, normal, gaps, of_network, predicted) -> list[Figure]:
    def densities(axes):
        lowest = min(np.nanmin(learned), np.inf) / dimension if np.isfinite(learned).any() else 0.0
        for name, style in (("plain", "-"), ("noised", ":")):
            what = "αx" if name == "plain" else "αx + σx0"
            for k, split_name in enumerate(("training", "held-out")):
                axes.plot(
                    times,
                    known[name][:, k].mean(-1) / dimension,
                    color=COLOURS[k],
                    linestyle=style,
                    label=f"closed form at {what}, {split_name}",
                )
        for k, split_name in enumerate(("training", "held-out")):
            axes.plot(
                asked,
                learned[:, k].mean(-1) / dimension,
                color=COLOURS[k],
                marker="ox"[k],
                markersize=5,
                linewidth=0.8,
                linestyle="--",
                label=f"network at αx, {split_name}",
            )
        axes.plot(
            asked,
            normal.mean(-1) / dimension,
            color="grey",
            linewidth=0.8,
            label="isotropic normal, held-out",
        )
        top = known["plain"][:, 0].mean(-1).max() / dimension
        axes.set(
            xlabel="t",
            ylabel="log density of the state,\nnats a dimension",
            ylim=(min(-6.0, lowest - 1), top + 0.5),
            xlim=(0, 1.01),
        )
        axes.legend(fontsize=7, loc="lower left")

    def growth(axes):
        for name, style, what in (("plain", "-", "αx"), ("noised", ":", "αx + σx0")):
            value, error = gaps[name]
            axes.plot(1 - times, value, color=COLOURS[0], linestyle=style, label=f"closed form at {what}")
            axes.fill_between(
                1 - times, value - 2 * error, value + 2 * error, color=COLOURS[0], alpha=0.15, linewidth=0
            )
        axes.plot(1 - times, predicted, color="grey", linestyle="--", linewidth=1, label="α² E D² / (2 d σ²)")
        value, error = of_network
        axes.errorbar(
            1 - asked,
            value,
            2 * error,
            color=COLOURS[1],
            marker="o",
            markersize=4,
            capsize=2,
            label="network",
        )
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set(xlabel="1 − t", ylabel="gap, nats a dimension", xlim=(1.1, (1 - times[-1]) / 1.2))
        axes.set_ylim(bottom=min(-0.15, 1.2 * float(np.nanmin([0, *(value - 2 * error)]))))
        axes.legend(fontsize=8, loc="upper left")

    return [
        Figure(
            "densities",
            "Mean log density of training rows and held-out ones along t, by the closed form and by the network.",
            densities,
        ),
        Figure(
            "gap",
            "Training less held-out: the closed form's gap grows as 1/sigma², the network's does not. Linear below "
            ".1 nats, logarithmic above; time runs to the right.",
            growth,
        ),
    ]
