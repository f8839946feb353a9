"""What a better estimate of the closed form is worth as a target (figure 4, tables 1 and 2 of arXiv 2506.03719).

One network is trained on each target, from the same parameters and on the same batches, noise and times:

    CFM       the conditional velocity of one pair
    EFM-M     the closed form over M rows, M = 128, 256 and 1000
    exact     the closed form over all rows, M = n, which the paper calls prohibitive and does not run
    OT-CFM    the conditional velocity of pairs that a mini-batch optimal transport couples (for comparison: its
              expectation is another field, and the claim is not about it)

Every target has the same seeds. Fréchet distance (to the training rows, in the features that suit the data set, named
in the report) and memorised fraction are measured along the training and shown against steps and against training
time. The time of a step is measured once, before the training, with the steps of all targets in turn, so that whatever
else the machine does falls on all of them alike; time along a curve is steps times the median of those.

Seeds differ by more than targets do, so targets are compared seed by seed. It agrees if neither the exact nor an
empirical target ends more than two standard errors above CFM (of these differences, over seeds), and a step on the
exact target takes less than 10 % longer. Fewer than three seeds or 500 steps cannot tell.

Cost: `quick` (without OT-CFM) a minute or two on two cores, nearly all of it compilation; `cpu` on digits 89 minutes
beside other jobs (18 trainings of 1000 steps). The others are estimated from single steps and samplings, and were not
run: Fashion-MNIST, at 14×14, three times that, so take fewer --steps; `gpu` 20 to 25 minutes on an H100 at 60 TFLOP/s
(five epochs of Fashion-MNIST by 6.5 M parameters, .9 TFLOP a step); `paper` (25.8 M parameters, 3.4 TFLOP a step, 200
epochs) a day and a half there. The exact target of Fashion-MNIST is .02 TFLOP a step. `flowjax plan --data
60000,32,32,1 --batch 128` has a TPU's compiler estimate the paper's step on pictures padded to 32×32.
Expect: digits, `cpu`: after 250 steps 12.8 on CFM, 10.5 on EFM-128, 9.8 on the exact target, after 1000 3.9, 3.3, 3.2,
where seed by seed the exact one is .74 ± .23 below CFM; no memorised samples at ratio 1/3. A step on digits takes
between -1.3 % and +.6 % longer than CFM's on every target, which two compiled programs differ by anyway. Fashion-MNIST
at 14×14, 320 ms a step in batches of 64 (two cores, 60 rounds): EFM between -2.2 % and -.4 %, OT-CFM +1.8 ± .5 %, exact
+12.0 ± .7 %: for so small a network on 60 000 rows that is more than this experiment allows. Better targets need
not stay ahead: an MLP too weak for digits (distance 28, real rows at 7) was after 500 steps three standard errors worse
on EFM and the exact target than on CFM. In the paper, Fashion-MNIST at epochs 5, 10, 50, 100, 200: CFM 253.6, 48.7,
25.4, 21.4, 19.7; EFM-128 206.3, 44.1, 23.4, 19.6, 17.7 in the features of its own classifier, and steps of EFM-128 and
EFM-1000 that take 3 % and 17 % longer.

Command: flowjax experiment targets
         flowjax experiment targets --data idx:DIR --preset gpu            (Fashion-MNIST)
"""

import dataclasses
import math
import shutil
import time
from typing import Any, Literal

import jax
import numpy as np

import flowjax as fj
from flowjax.data import Dataset
from flowjax.models import UNetConfig
from flowjax.report import COLOURS
from flowjax.training.assembly import assemble
from flowjax.training.config import OptimizerConfig, TargetConfig, TrainConfig
from flowjax.training.evaluation import FrechetScore

from ._finding import Figure, Finding, Picture, Table, curve
from ._networks import configured, train_to_the_end
from ._workspace import Workspace
from .collapse import resolutions

CLAIM = (
    "Regressing on a better estimate of the closed form, up to the exact one, helps a little and never hurts; and the "
    "exact target, far from prohibitive, costs a few percent of a step."
)
ENOUGH_SEEDS = 3
ENOUGH_STEPS = 500
STANDARD_ERRORS = 2.0
DEAR = 0.1
RATIOS = {"1/3": 1 / 3, "2/3": 2 / 3}
_COLOURS = dict(zip(("CFM", "exact", "OT-CFM"), COLOURS, strict=False))
_EMPIRICAL = (COLOURS[3], "#c43d5a", "#6f7782", "#8a6d1f", "#1f8a8a")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes.

    Attributes:
        empirical: rows M of the empirical targets.
        coupled: train on optimal-transport pairs too (OT-CFM; needs ott-jax).
        seeds: trainings a target, with the seeds 0, 1, …
        steps: of every training.
        evaluations: distances along a training.
        num_samples: samples behind each of them.
        batch_size: of every step.
        largest_side: pictures with a larger side are averaged over 2×2 pixels until it is no larger.
        network: small (two levels, Adam at 1e-3 under a cosine) or paper (its U-Net and its optimizer).
        channels: of the network's first level.
        timed_rounds: rounds of one step a target.
    """

    empirical: tuple[int, ...] = (128, 256, 1000)
    coupled: bool = True
    seeds: int = 3
    steps: int = 1000
    evaluations: int = 4
    num_samples: int = 1024
    batch_size: int = 64
    largest_side: int = 16
    network: Literal["small", "paper"] = "small"
    channels: int = 32
    timed_rounds: int = 60


_FASHION: dict[str, Any] = {"batch_size": 128, "largest_side": 32, "network": "paper", "timed_rounds": 100}
PRESETS = {
    "quick": Settings(
        empirical=(128,),
        coupled=False,
        seeds=1,
        steps=20,
        evaluations=2,
        num_samples=64,
        channels=8,
        timed_rounds=5,
    ),
    "cpu": Settings(),
    "gpu": Settings(steps=2345, evaluations=5, channels=64, **_FASHION),
    "paper": Settings(steps=93_800, evaluations=20, num_samples=10_000, channels=128, **_FASHION),
}


def check(dataset: Dataset, settings: Settings) -> None:
    """Raises ValueError for data or sizes that show nothing, RuntimeError without ott-jax where it is needed."""
    if len(dataset.event_shape) != 3:
        raise ValueError(
            f"targets needs pictures [n, height, width, channels], {dataset.name!r} has rows of shape "
            f"{dataset.event_shape}"
        )
    counts = settings.empirical
    if any(m < 1 for m in counts) or len(set(counts)) < len(counts):
        raise ValueError(f"empirical must be different positive numbers of rows, got {counts}")
    if max(counts, default=0) > dataset.num_points:
        raise ValueError(
            f"empirical={max(counts)} exceeds the {dataset.num_points} rows of {dataset.name!r}; "
            "give smaller numbers with --empirical"
        )
    if settings.seeds < 1 or not 1 <= settings.evaluations <= settings.steps or settings.timed_rounds < 1:
        raise ValueError(
            "targets needs at least one seed, one evaluation, no more of them than steps, and one timed round, got "
            f"seeds={settings.seeds}, evaluations={settings.evaluations}, steps={settings.steps}, "
            f"timed_rounds={settings.timed_rounds}"
        )
    if settings.coupled:
        fj.targets.couplings.check_available()
    configurations(shrunk(dataset, settings.largest_side), settings)


def run(work: Workspace, dataset: Dataset, settings: Settings) -> Finding:
    """The times of a step first, then every target and seed a run directory of its own."""
    dataset = shrunk(dataset, settings.largest_side)
    configs = configurations(dataset, settings)
    names = list(configs)
    timed = work.once("step-times", lambda: {"seconds": _time_steps(work, dataset, configs, settings)})
    score = FrechetScore(dataset)
    floor = work.once("floor", lambda: score.of_real_rows(settings.num_samples) or {})

    def memorised(samples: np.ndarray) -> dict[str, float]:
        nearest, second, _ = fj.metrics.nearest_distances(samples, dataset.images)
        return {
            f"memorised_{name}": float(fj.metrics.memorised_fraction(nearest, second, ratio=ratio))
            for name, ratio in RATIOS.items()
        }

    runs = {}
    for seed in range(settings.seeds):
        for name, config in configs.items():
            config = dataclasses.replace(config, seed=seed)
            runs[name, seed] = train_to_the_end(work, f"{name}-{seed}", config, dataset, measure=memorised)
    lines = {
        key: [line for line in directory.metrics() if "frechet_distance" in line]
        for key, directory in runs.items()
    }
    steps = np.array([line["step"] for line in lines["CFM", 0]])

    def along(number: str) -> dict[str, np.ndarray]:
        """By target, [seeds, evaluations]; NaN where the solver gave up."""
        return {
            name: np.array(
                [[line.get(number) for line in lines[name, s]] for s in range(settings.seeds)], np.float64
            )
            for name in names
        }

    pictures = []
    for name in ("CFM", "exact"):
        source = runs[name, 0].samples / f"step-{settings.steps:06d}.png"
        if source.is_file():
            shutil.copyfile(source, work.out / f"samples-{name}.png")
            pictures.append(Picture(f"samples-{name}", f"Samples of the network trained on {name}, seed 0."))
    return _found(
        dataset,
        settings,
        steps,
        timed["seconds"],
        {key: float(value) for key, value in floor.items()},
        score.name,
        along("frechet_distance"),
        {ratio: along(f"memorised_{ratio}") for ratio in RATIOS},
        pictures,
    )


def shrunk(dataset: Dataset, largest: int) -> Dataset:
    """Pictures averaged over 2×2 pixels until no side is larger, or as long as their sides are even."""
    versions = resolutions(dataset.images, largest // 2 + 1)
    side = min(versions)
    if len(versions) == 1:
        return dataset
    return Dataset(f"{dataset.name}-{side}", versions[side], dataset.labels, dataset.class_names)


def configurations(dataset: Dataset, settings: Settings) -> dict[str, TrainConfig]:
    """One run a target, by the target's name; they differ in nothing else."""
    targets = {"CFM": TargetConfig(name="conditional")}
    targets |= {f"EFM-{m}": TargetConfig(name="empirical", num_samples=m) for m in sorted(settings.empirical)}
    targets["exact"] = TargetConfig(name="closed-form")
    if settings.coupled:
        targets["OT-CFM"] = TargetConfig(name="conditional", coupling="optimal-transport")
    base = configured(
        dataset,
        steps=settings.steps,
        batch_size=settings.batch_size,
        channels=settings.channels,
        sample_every=-(-settings.steps // settings.evaluations),
        num_samples=settings.num_samples,
    )
    if settings.network == "paper":
        height = dataset.event_shape[0]
        model = UNetConfig.paper(
            event_shape=dataset.event_shape,
            channels=settings.channels,
            channel_mult=(1, 2, 2, 2) if height % 8 == 0 else (1, 2, 2),
            attention_resolutions=(height // 2,),
        )
        base = dataclasses.replace(base, model=model, optimizer=OptimizerConfig())
    return {name: dataclasses.replace(base, target=target) for name, target in targets.items()}


def _time_steps(
    work: Workspace, dataset: Dataset, configs: dict[str, TrainConfig], settings: Settings
) -> np.ndarray:
    """Seconds of a step, [rounds, targets]: in every round one step of each target, in an order of its own."""
    parts = [assemble(config, dataset, fj.data.mesh()) for config in configs.values()]
    states = [part.state for part in parts]
    rng = np.random.default_rng(0)
    seconds = np.zeros((settings.timed_rounds, len(parts)))
    iterator = parts[0].iterator

    def step(k: int, batch: Any) -> float:
        begin = time.perf_counter()
        states[k], metrics = parts[k].step(states[k], batch, parts[k].target, parts[k].rows)
        jax.block_until_ready((states[k], metrics))
        return time.perf_counter() - begin

    for k in work.track(range(len(parts)), "compiling a step of every target"):
        for _ in range(2):
            step(k, fj.data.place(next(iterator), parts[k].mesh))
    for row in work.track(seconds, "timing steps"):
        batch = fj.data.place(next(iterator), parts[0].mesh)
        for k in rng.permutation(len(parts)):
            row[k] = step(k, batch)
    return seconds


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over seeds, the first axis: mean and standard error; the error of a single seed is NaN."""
    count = len(values)
    error = values.std(0, ddof=1) / math.sqrt(count) if count > 1 else np.full(values.shape[1:], np.nan)
    return values.mean(0), error


def overheads(seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of seconds [rounds, targets], how much longer a step of each takes than one of the first, as a share of it:
    the median over rounds of ratios inside a round, and its standard error (of a normal sample's median)."""
    ratios = seconds / seconds[:, :1] - 1
    low, high = np.percentile(ratios, (25, 75), axis=0)
    return np.median(ratios, 0), 1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios))


def beside_cfm(distance: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of distances [seeds, evaluations] by target, mean and standard error over seeds of what each is above CFM's:
    what a seed does to all targets alike (parameters, batches, noise) is no error of the difference."""
    return {
        name: mean_and_error(values - distance["CFM"]) for name, values in distance.items() if name != "CFM"
    }


def verdict(
    beside: dict[str, tuple[float, float]], overhead: float, seeds: int, steps: int
) -> tuple[bool | None, dict[str, float]]:
    """The rule of the module's text.

    Args:
        beside: mean and standard error of how far each target ends above CFM.
        overhead: of the exact target's step.
        seeds, steps: of every target.

    Returns:
        Whether the claim is borne out, and by target of the claim the excess over CFM in standard errors.
    """
    excess = {
        name: mean / max(error, 1e-30)
        for name, (mean, error) in beside.items()
        if name == "exact" or name.startswith("EFM")
    }
    if seeds < ENOUGH_SEEDS or steps < ENOUGH_STEPS or not all(map(math.isfinite, excess.values())):
        return None, excess
    return max(excess.values()) <= STANDARD_ERRORS and overhead < DEAR, excess


def _found(dataset, settings, steps, seconds, floor, features, distance, memorised, pictures) -> Finding:
    """Numbers to words: seconds [rounds, targets], distance and memorised by target [seeds, evaluations]."""
    names = list(distance)
    step_seconds = dict(zip(names, np.median(seconds, 0).tolist(), strict=True))
    overhead, overhead_error = (dict(zip(names, a.tolist(), strict=True)) for a in overheads(seconds))
    # All have got so far at this time, the slowest at its last step.
    equal = settings.steps * min(step_seconds.values())
    statistics = over_seeds(distance)
    at_equal_time = over_seeds(
        {
            name: np.array([[np.interp(equal / step_seconds[name], steps, row)] for row in distance[name]])
            for name in names
        }
    )
    final = {name: (float(mean[-1]), float(error[-1])) for name, (mean, error) in statistics.items()}
    timely = {name: (float(mean[0]), float(error[0])) for name, (mean, error) in at_equal_time.items()}
    beside = beside_cfm(distance)
    last = {name: (float(mean[-1]), float(error[-1])) for name, (mean, error) in beside.items()}
    agrees, excess = verdict(last, overhead["exact"], settings.seeds, settings.steps)
    own = [name for name in names if name != "CFM"]
    sentence = (
        f"on {dataset.name} (n = {dataset.num_points}, d = {math.prod(dataset.event_shape)}) the Fréchet distance "
        f"after {settings.steps} steps is {_plus_minus(*final['CFM'])} on CFM and "
        + ", ".join(f"{_plus_minus(*final[name])} on {name}" for name in own)
        + f" ({settings.seeds} seed{'s' if settings.seeds > 1 else ''}); above CFM, seed by seed, that is "
        + ", ".join(_plus_minus(*last[name], sign="+") for name in own)
        + "; a step takes "
        + ", ".join(f"{overhead[name]:+.1%} on {name}" for name in own)
        + f" against {1000 * step_seconds['CFM']:.3g} ms on CFM."
    )
    findings = {
        "features": features,
        "frechet_distance_at_the_last_step": {name: _round(final[name][0]) for name in names},
        "frechet_distance_at_the_last_step_standard_error": {name: _round(final[name][1]) for name in names},
        "frechet_distance_at_equal_time": {name: _round(timely[name][0]) for name in names},
        "frechet_distance_at_equal_time_standard_error": {name: _round(timely[name][1]) for name in names},
        "equal_time_seconds": _round(equal),
        "frechet_distance_of_real_rows": {key: _round(value) for key, value in floor.items()},
        "above_CFM_seed_by_seed": {name: _round(last[name][0]) for name in own},
        "above_CFM_seed_by_seed_standard_error": {name: _round(last[name][1]) for name in own},
        "above_CFM_in_standard_errors": {name: _round(value) for name, value in excess.items()},
        "seconds_per_step": {name: _round(step_seconds[name]) for name in names},
        "step_overhead": {name: _round(overhead[name]) for name in own},
        "step_overhead_standard_error": {name: _round(overhead_error[name]) for name in own},
    }
    for ratio, values in memorised.items():
        findings[f"memorised_fraction_{ratio}"] = {name: _round(values[name][:, -1].mean()) for name in names}
    curves = {}
    for number, all_values in (("frechet_distance", distance), ("memorised_fraction", memorised["1/3"])):
        for name in names:
            mean, error = mean_and_error(all_values[name])
            bands = {"low": mean - error, "high": mean + error}
            curves[f"{number}, {name}"] = curve(steps, mean, **bands)
            curves[f"{number} against seconds, {name}"] = curve(steps * step_seconds[name], mean, **bands)
    notes = [
        f"Distances are to the training rows, in the features of: {features}. They are not comparable with published "
        "ones in other features."
    ]
    if floor:
        notes.append(
            f"{settings.num_samples} rows of the data itself score {floor['mean']:.3g} ± {floor['std']:.2g}: no "
            "sampler does better."
        )
    if settings.seeds < ENOUGH_SEEDS or settings.steps < ENOUGH_STEPS:
        notes.append(f"{settings.seeds} seed(s) of {settings.steps} steps cannot tell targets apart.")
    table = _table(settings, steps, statistics, last, timely, equal, overhead, overhead_error, memorised)
    figures = _figures(steps, step_seconds, distance, beside, memorised, floor, seconds)
    return Finding(
        agrees=agrees,
        sentence=sentence,
        findings=findings,
        curves=curves,
        figures=[table, *figures, *pictures],
        notes=notes,
    )


def _table(settings, steps, statistics, last, timely, equal, overhead, overhead_error, memorised) -> Table:
    shown = sorted({0, len(steps) // 2, len(steps) - 1})
    header = [
        "target",
        *(f"step {steps[k]}" for k in shown),
        "above CFM",
        f"at {equal:.3g} s",
        "step takes",
        *(f"memorised ({ratio})" for ratio in memorised),
    ]
    rows = [
        [
            name,
            *(_plus_minus(mean[k], error[k]) for k in shown),
            "" if name == "CFM" else _plus_minus(*last[name], sign="+"),
            _plus_minus(*timely[name]),
            "" if name == "CFM" else f"{overhead[name]:+.1%} ± {overhead_error[name]:.1%}",
            *(f"{values[name][:, -1].mean():.2%}" for values in memorised.values()),
        ]
        for name, (mean, error) in statistics.items()
    ]
    return Table(
        "Fréchet distance at equal steps, how far that is above CFM's at the last one seed by seed, and Fréchet "
        f"distance after equal training time, mean ± standard error of {settings.seeds} seed(s); how much longer a "
        "step takes than on CFM; memorised share of the samples after the last step.",
        header,
        rows,
    )


def _figures(steps, step_seconds, distance, beside, memorised, floor, seconds) -> list[Figure]:
    names = list(distance)
    empirical = [name for name in names if name.startswith("EFM")]
    once = dict.fromkeys(names, 1)
    colours = _COLOURS | {name: _EMPIRICAL[k % len(_EMPIRICAL)] for k, name in enumerate(empirical)}

    def lines(axes, statistics, scale, *, style="-", label=True):
        for name, (mean, error) in statistics.items():
            x = steps * scale[name]
            axes.plot(x, mean, style, color=colours[name], marker=".", label=name if label else None)
            if np.isfinite(error).any():
                axes.fill_between(x, mean - error, mean + error, color=colours[name], alpha=0.15, linewidth=0)

    def distances(scale, label):
        def draw(axes):
            lines(axes, over_seeds(distance), scale)
            if floor:
                axes.axhline(floor["mean"], color="grey", linestyle=":", linewidth=1, label="real rows")
            axes.set(xlabel=label, ylabel="Fréchet distance", yscale="log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.legend(fontsize=8)

        return draw

    def differences(axes):
        lines(axes, beside, once)
        axes.axhline(0, color=colours["CFM"], linewidth=1)
        axes.set(xlabel="steps", ylabel="Fréchet distance above CFM's")
        axes.legend(fontsize=8)

    def copies(axes):
        lines(axes, over_seeds(memorised["1/3"]), once)
        lines(axes, over_seeds(memorised["2/3"]), once, style=":", label=False)
        axes.set(xlabel="steps", ylabel="memorised share of samples", ylim=(-0.002, None))
        axes.legend(fontsize=8)

    def costs(axes):
        ratios = 100 * (seconds[:, 1:] / seconds[:, :1] - 1)
        boxes = axes.boxplot(ratios, whis=(5, 95), showfliers=False, patch_artist=True)
        for name, box, median in zip(names[1:], boxes["boxes"], boxes["medians"], strict=True):
            box.set(facecolor=colours[name], alpha=0.5)
            median.set(color="black")
        axes.set_xticks(range(1, len(names)), names[1:])
        axes.axhline(0, color="grey", linewidth=1)
        axes.set(ylabel="% longer than a step on CFM")

    return [
        Figure(
            "frechet-steps",
            "Fréchet distance along the training, mean and standard error over seeds; dotted: as many real rows.",
            distances(once, "steps"),
        ),
        Figure(
            "frechet-beside-CFM",
            "How far the distance is above that of CFM with the same seed, mean and standard error over seeds: below "
            "the line the target is better.",
            differences,
        ),
        Figure(
            "frechet-seconds",
            "The same against training time: steps times the median time of one, sampling left out.",
            distances(step_seconds, "seconds of training"),
        ),
        Figure(
            "memorised",
            "Share of samples whose nearest training row is nearer than a third of the distance to the second "
            "nearest; dotted: two thirds of it.",
            copies,
        ),
        Figure(
            "step-time",
            "How much longer a step takes than one on CFM in the same round: median, quartiles, 5 and 95 %.",
            costs,
        ),
    ]


def over_seeds(values: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: mean_and_error(array) for name, array in values.items()}


def _plus_minus(mean: float, error: float, sign: str = "") -> str:
    return f"{mean:{sign}.3g}" + (f" ± {error:.2g}" if math.isfinite(error) else "")


def _round(value: Any) -> float | None:
    return float(f"{float(value):.5g}") if math.isfinite(value) else None
