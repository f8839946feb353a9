"""What a trained network is worth: Fréchet distance, memorisation, and what its exact target is."""

import json
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj
from flowjax.closed_form import ClosedFormField

from .assembly import make_field, make_mesh, time_target
from .run_dir import RunDirectory, versions, write_whole
from .samples import draw_samples, load_network, save_grid, spread_labels

GRID = 64
"""Samples on a contact sheet."""

_LARGEST_FLOOR = 1024
_BLOCK = 4096
_LEAST_SCORED = 6  # five neighbours of a picture, in density and coverage


class FrechetScore:
    """Fréchet distance of samples to the data set, in the features that suit the data set."""

    def __init__(self, dataset: fj.data.Dataset):
        self.features = fj.metrics.features.default_features(dataset)
        self.name: str = self.features.name
        self._rows = self._extract(dataset.images[:1])[:0]
        statistics = fj.metrics.FrechetStatistics.empty(self._rows.shape[1])
        blocks = []
        for start in range(0, dataset.num_points, _BLOCK):
            block = self._extract(dataset.images[start : start + _BLOCK])
            statistics = statistics.update(block)
            if block.shape[1] <= _LARGEST_FLOOR:
                blocks.append(block)
        self._reference = statistics
        self._rows = np.concatenate(blocks) if blocks else None

    def _extract(self, images) -> np.ndarray:
        return np.asarray(self.features.features(images))

    def __call__(self, samples: np.ndarray) -> float:
        return float(fj.metrics.frechet_distance(self._extract(samples), self._reference))

    def of_real_rows(self, num: int, *, draws: int = 16) -> dict[str, float] | None:
        """What a perfect sampler of the data set would score with `num` samples: mean and standard deviation.

        The distance of finitely many samples is biased upwards and moves with their noise, for small `num` by as much
        as two networks differ: 512 digits drawn from the data itself are at 3.6 ± 1.1 and not at 0. The rows are drawn
        with replacement. None for more than 1024 features, where so many distances would take minutes.
        """
        if self._rows is None:
            return None
        generator = np.random.default_rng(0)
        scores = [
            fj.metrics.frechet_distance(
                self._rows[generator.integers(0, len(self._rows), num)], self._reference
            )
            for _ in range(draws)
        ]
        return {"mean": float(np.mean(scores)), "std": float(np.std(scores, ddof=1))}


def target_curve(
    field: ClosedFormField, *, num_points: int | None = None, num_queries: int = 128, seed: int = 0
) -> dict[str, list[float]]:
    """Where the stochastic target and the exact one coincide on this data set.

    For queries on the path at 25 times: the variance of the data point given the query (and its class, where the
    field has classes), as a share of the data's total variance (mean over queries; 0 where all points are equal), and
    the median effective sample size. Queries are of the first `num_points` rows, all by default.
    """
    key = jax.random.key(seed)
    index_key, noise_key = jax.random.split(key)
    rows = jax.random.choice(index_key, num_points or field.num_points, (num_queries,))
    x1 = field.rows(rows)
    x0 = jax.random.normal(noise_key, x1.shape)
    labels = None if field.labels is None else field.labels[rows]
    times = np.linspace(0, 0.96, 25, dtype=np.float32)
    variance, effective = [], []
    for t in times:
        posterior = field.posterior(field.path.interpolate(x0, x1, t), t, labels)
        variance.append(float(posterior.variance.mean()))
        effective.append(float(jnp.median(posterior.effective_sample_size)))
    total = variance[0] or 1.0  # at t = 0 every point weighs the same
    return {
        "t": [round(float(t), 4) for t in times],
        "relative_variance": [v / total for v in variance],
        "effective_sample_size": effective,
    }


def references(
    dataset: fj.data.Dataset, num_samples: int, weights: str | os.PathLike | None = None
) -> list[fj.metrics.Reference]:
    """What samples are scored against in full: the training rows, and the held-out ones where there are any.

    Args:
        dataset: of the run.
        num_samples: to be scored.
        weights: the torch file of FID-Inception; None takes the best network at hand, see `features.for_dataset`.

    Raises:
        FileNotFoundError, ValueError: no such file, a file of another network, pictures that it does not take, or too
            few samples or rows.
        RuntimeError: the package of the network for colour pictures is missing.
    """
    splits = {"train": dataset.images, "test": dataset.test_images}
    counts = {"samples": num_samples} | {f"{k} rows": len(v) for k, v in splits.items() if v is not None}
    for what, count in counts.items():
        if count < _LEAST_SCORED:
            raise ValueError(
                f"all measures need at least {_LEAST_SCORED} {what}, got {count}; leave out --full"
            )
    network = fj.metrics.features.for_dataset(dataset, weights=weights)
    return [
        fj.metrics.Reference.of(images, network, name=f"{dataset.name} {split}")
        for split, images in splits.items()
        if images is not None
    ]


def evaluate(
    run_dir: str | os.PathLike,
    *,
    num_samples: int | None = None,
    seed: int = 1,
    full: bool = False,
    weights: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Evaluate the newest checkpoint: writes evaluation.json, samples/final.png and samples/nearest.png.

    Args:
        run_dir: a run.
        num_samples: samples to draw; None takes the run's own number.
        seed: of their noise.
        full: all measures of `flowjax.metrics.SampleScore` too, against every one of `references`: kernel distance,
            precision and recall, density and coverage. Squares of the number of rows: minutes at 50 000.
        weights: the torch file of FID-Inception, for its features in these; implies `full`.

    Returns:
        What evaluation.json holds; in full with the list "scores", one for each reference.

    Raises:
        FileNotFoundError: no run, no checkpoint yet, or no file of weights.
        ValueError: fewer than 2 samples, a source that holds other data than the run was trained on, or weights of
            another network.
        RuntimeError: no checkpoint can be read, the solver gives up on the network, or a package is missing.
    """
    run = RunDirectory(run_dir)
    config = run.config()
    num_samples = config.num_samples if num_samples is None else num_samples
    if num_samples < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 samples, got {num_samples}")
    dataset = config.data.load()
    run.check_data(config, dataset.fingerprint)
    velocity, config, step = load_network(run)
    compared = references(dataset, num_samples, weights) if full or weights is not None else []
    labels = spread_labels(run.class_counts(), num_samples)
    begin = time.perf_counter()
    samples, num_evaluations = draw_samples(config, velocity, num_samples, seed=seed, labels=labels)
    sampling_seconds = time.perf_counter() - begin
    score = FrechetScore(dataset)
    nearest, second, index = fj.metrics.nearest_distances(samples, dataset.images)
    result = {
        "step": step,
        "num_samples": num_samples,
        "num_evaluations": num_evaluations,
        "features": score.name,
        "frechet_distance": score(samples),
        "frechet_distance_of_real_rows": score.of_real_rows(num_samples),
        "nearest_distance_median": float(np.median(nearest)),
        "second_nearest_distance_median": float(np.median(second)),
        "memorised_fraction": {
            "1/3": float(fj.metrics.memorised_fraction(nearest, second, ratio=1 / 3)),
            "2/3": float(fj.metrics.memorised_fraction(nearest, second, ratio=2 / 3)),
        },
        "pixel_moments": {
            "samples": fj.metrics.pixel_moments(samples),
            "data": fj.metrics.pixel_moments(dataset.images),
        },
        "target_curve": target_curve(
            make_field(config, dataset, make_mesh(config, dataset)), num_points=dataset.num_points
        ),
        "timings": {**time_target(config, dataset), "seconds_for_samples": sampling_seconds},
        "versions": versions(),
    }
    if compared:
        scores = (fj.metrics.SampleScore.against(reference).update(samples) for reference in compared)
        result["scores"] = [score.compute().as_dict() for score in scores]
    run.samples.mkdir(exist_ok=True)
    save_grid(samples[:GRID], run.samples / "final.png")
    save_grid(np.asarray(dataset.images)[index[:GRID]], run.samples / "nearest.png")
    write_whole(run.evaluation_file, json.dumps(result, indent=2) + "\n")
    return result
