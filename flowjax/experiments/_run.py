"""From a name to a finished experiment."""

import importlib
import os
from pathlib import Path
from typing import Any

from flowjax._choices import check_choice
from flowjax.data import Dataset, load
from flowjax.training.run_dir import versions

from . import _finding
from ._workspace import Workspace, settings_of

EXPERIMENTS = {
    "collapse": "when the stochastic target becomes the exact one",
    "approximation": "where a network fails to learn the exact field",
    "hybrid": "at which time of the trajectory new samples come about",
    "targets": "what better estimates of the closed form are worth as a target, up to the exact one",
    "variance": "how much of the gradient's noise the exact target takes away, and which batch is useful",
    "likelihood": "how far training rows are likelier than held-out ones, for the closed form and a network",
}
"""Every experiment and what it asks."""

PRESETS = {
    "quick": "seconds: does it run",
    "cpu": "at most an hour on two cores",
    "gpu": "at most 25 minutes on one H100",
    "paper": "the full setting",
}


def module(name: str) -> Any:
    """The experiment's module. Raises ValueError, with the nearest name, for an unknown one."""
    check_choice("experiment", name, EXPERIMENTS)
    return importlib.import_module(f"{__package__}.{name}")


def run(
    name: str,
    data: str | Dataset,
    *,
    preset: str = "cpu",
    settings: Any = None,
    out: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Run an experiment to its end, or go on where it was interrupted.

    Args:
        name: of `EXPERIMENTS`.
        data: what `flowjax.data.load` takes, or a data set.
        preset: of `PRESETS`: how large.
        settings: the experiment's own `Settings` instead of the preset's.
        out: folder for parts, figures, report.html and result.json; default runs/NAME-DATA-PRESET.

    Returns:
        What result.json holds: experiment, data, preset, settings, claim, agrees, sentence, findings, curves, versions,
        seconds, notes; and the folder.

    Raises:
        ValueError: an unknown name, data that the experiment cannot use, a folder that holds something else, or another
            process at work there. Nothing was written.
    """
    experiment = module(name)
    check_choice("preset", preset, PRESETS)
    dataset = load(data) if isinstance(data, str) else data
    settings = experiment.PRESETS[preset] if settings is None else settings
    experiment.check(dataset, settings)
    folder = Path("runs") / f"{name}-{dataset.name.replace('/', '-')}-{preset}" if out is None else Path(out)
    facts = {
        "experiment": name,
        "data": data if isinstance(data, str) else dataset.name,
        "fingerprint": dataset.fingerprint,
        "preset": preset,
        "settings": settings_of(settings),
    }
    with Workspace(folder, facts) as work:
        finding = experiment.run(work, dataset, settings)
        facts_of_run = {**facts, "versions": versions(), "seconds": round(work.seconds, 1)}
        result = _finding.write(work.out, facts_of_run, experiment.CLAIM, finding)
        return {**result, "folder": str(work.out)}
