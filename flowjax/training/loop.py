"""The loop: next batch → place → step → read the metrics of the step before → log → sample → save.

Step k is dispatched before the metrics of step k − 1 are read, so the device never waits for the host. Whatever is
written for step k depends on the configuration and k alone, so an interrupted and resumed run writes the same bytes.
"""

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

import flowjax as fj

from .assembly import assemble, make_mesh
from .checkpoint import Checkpoints
from .config import TrainConfig
from .evaluation import GRID, FrechetScore
from .progress import Progress
from .run_dir import RunDirectory
from .samples import draw_samples, save_grid, spread_labels
from .state import TrainState


class Stopped(Exception):
    """A signal asked the run to stop; it was saved and can be resumed."""


def train(
    config: TrainConfig,
    run_dir: str | os.PathLike,
    *,
    resume: bool = False,
    dataset: fj.data.Dataset | None = None,
    measure: Callable[[np.ndarray], dict[str, float]] | None = None,
    rows_over: int | None = None,
    quiet: bool = False,
) -> RunDirectory:
    """Train, or continue training, into a run directory.

    Args:
        config: the run.
        run_dir: a new or empty directory; with `resume`, one that holds this run.
        resume: go on from the newest readable checkpoint, or from the start if there is none yet.
        dataset: the data itself; None loads what the configuration names.
        measure: further numbers of samples [num_samples, *event], for metrics.jsonl beside their Fréchet distance.
        rows_over: devices that the rows behind an exact target are split over, see `assembly.make_mesh`. Where rows lie
            is no part of a run: it may be resumed on other devices.
        quiet: no progress; what goes wrong is still said.

    Returns:
        The run directory, with `metrics.jsonl`, checkpoints and sample grids.

    Raises:
        ValueError, FileNotFoundError: bad configuration, data or directory; nothing was written.
        RuntimeError: a loss that is not finite (with step and value), or a checkpoint that could not be written.
        Stopped: SIGTERM or SIGINT; the run was saved.
    """
    run = RunDirectory(run_dir)
    if resume:
        run.read()
    else:
        run.check_free()
    dataset = config.data.load() if dataset is None else dataset
    mesh = make_mesh(config, dataset, rows_over=rows_over)
    _check(config, dataset, mesh)
    if resume:
        run.check_resumable(config, dataset.fingerprint)

    # Whatever can still be refused is built before the directory is claimed.
    parts = assemble(config, dataset, mesh)
    state, iterator = parts.state, parts.iterator
    score = FrechetScore(dataset)
    counts = dataset.class_counts if config.data.class_conditional else None
    labels = spread_labels(counts, config.num_samples)
    if not resume:
        run.start(config, dataset.fingerprint, counts)
    run.samples.mkdir(exist_ok=True)

    with Checkpoints(run.checkpoints, exclusive=True) as checkpoints, _Signals() as signals:
        if resume:
            restored = checkpoints.restore(state, iterator)
            if restored is None and not quiet:
                print("no checkpoint yet: starting from the first step")
            state = state if restored is None else restored
        start = int(state.step)
        run.truncate_metrics(start)
        with Progress(config.steps, start, max(1, config.steps // 20), quiet=quiet) as progress:
            pending: tuple[int, Any] | None = None
            for step in range(start + 1, config.steps + 1):
                batch = fj.data.place(next(iterator), mesh)
                with jax.transfer_guard("disallow"):
                    state, metrics = parts.step(state, batch, parts.target, parts.rows)
                if pending is not None:
                    values = _read(*pending, checkpoints)
                    _log(run, config, progress, pending[0], values)
                pending = step, metrics
                last = step == config.steps
                sampling = last or step % config.sample_every == 0
                saving = last or step % config.checkpoint_every == 0
                if sampling:
                    # Read first: nothing is drawn from, or saved of, a state that is not finite.
                    values = _read(step, metrics, checkpoints)
                    values |= _sample(
                        run, config, parts.graphdef, state, score, labels, step, progress.say, measure
                    )
                    _log(run, config, progress, step, values, always=True)
                    pending = None
                received = signals.received  # once: what is saved and what is said must agree
                if saving or received:
                    if pending is not None:
                        _log(run, config, progress, step, _read(step, metrics, checkpoints))
                        pending = None
                    checkpoints.save(step, state, iterator)
                if received and not last:
                    raise Stopped(f"stopped by {received} after step {step}; continue with --resume")
    return run


def _check(config: TrainConfig, dataset, mesh) -> None:
    """What only data and devices can tell, before anything is written."""
    if dataset.num_points < 2:
        raise ValueError(
            f"{config.data.source!r} has a single row, which leaves nothing to learn; give at least 2 rows"
        )
    if tuple(dataset.event_shape) != tuple(config.model.event_shape):
        raise ValueError(
            f"the model takes events of shape {config.model.event_shape}, but {config.data.source!r} has "
            f"{dataset.event_shape}; set --model.event-shape"
        )
    if config.batch_size % (mesh.size * config.optimizer.accumulate):
        raise ValueError(
            f"batch_size={config.batch_size} cannot be split over {mesh.size} devices × "
            f"accumulate={config.optimizer.accumulate}; choose a multiple of {mesh.size * config.optimizer.accumulate}"
        )
    if config.target.coupling == "optimal-transport":
        fj.targets.couplings.check_available()
    num_points = dataset.num_points * (2 if config.data.horizontal_flip else 1)
    if config.target.name == "empirical" and config.target.num_samples > num_points:
        raise ValueError(
            f"target.num_samples={config.target.num_samples} exceeds the {num_points} points of the data; "
            f"set --target.num-samples {num_points} or less, or take --target closed-form for all of them"
        )
    if config.data.class_conditional:
        if dataset.labels is None:
            raise ValueError(f"class_conditional training needs labels, and {config.data.source!r} has none")
        if config.model.num_classes != dataset.num_classes:
            raise ValueError(
                f"the model has num_classes={config.model.num_classes}, the data {dataset.num_classes} classes; "
                f"set --model.num-classes {dataset.num_classes}"
            )


def _read(step: int, metrics: dict[str, jax.Array], checkpoints: Checkpoints) -> dict[str, Any]:
    """The metrics of a step, waited for.

    Raises:
        RuntimeError: the loss, the gradient or the parameters after the step are not finite.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if values.pop("finite"):
        return values
    what = f"the loss of step {step} is {values['loss']}"
    if math.isfinite(values["loss"]):
        what = (
            f"step {step} left parameters that are not finite (loss {values['loss']:.4g}, gradient norm "
            f"{values['grad_norm']:.4g})"
        )
    raise RuntimeError(
        f"{what}; {checkpoints.newest()}. A smaller --optimizer.learning-rate or --optimizer.clip usually helps"
    )


def _log(run, config, progress, step: int, values: dict[str, Any], *, always: bool = False) -> None:
    if always or step % config.log_every == 0:
        run.append_metrics({"step": step, **values})
    progress.update(step, values)


def _sample(
    run, config, graphdef, state: TrainState, score: FrechetScore, labels, step: int, say, measure
) -> dict[str, float | None]:
    """Samples of the averaged network: a grid of the first ones and their Fréchet distance.

    The distance is None where the solver gives up, as it may on a network that is hardly trained: a picture less is
    no reason to lose the run.
    """
    try:
        velocity = nnx.merge(graphdef, state.ema)
        samples = draw_samples(config, velocity, config.num_samples, seed=config.seed, labels=labels).samples
    except RuntimeError as error:
        say(f"no samples of step {step}: {error}")
        return {"frechet_distance": None}
    save_grid(samples[:GRID], run.samples / f"step-{step:06d}.png")
    return {"frechet_distance": score(samples), **({} if measure is None else measure(samples))}


class _Signals(contextlib.AbstractContextManager):
    """Remembers SIGTERM and SIGINT instead of dying of them; a second SIGINT interrupts at once."""

    def __init__(self):
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number, _frame) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
