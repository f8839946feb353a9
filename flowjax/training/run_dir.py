"""The folder of one run: who may use it, what it holds, and files that are never half written.

config.json     configuration, fingerprint of the data, versions
metrics.jsonl   one JSON object a line, at least step and loss
checkpoints/    state and data iterator (Orbax)
samples/        grids of samples
evaluation.json, report.html
"""

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

import jax

from flowjax._files import is_leftover, replacing

from .config import TrainConfig, first_difference


class RunDirectory:
    """Paths and small files of a run. Building one touches nothing."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.evaluation_file = self.path / "evaluation.json"

    def start(self, config: TrainConfig, fingerprint: str, class_counts: list[int] | None = None) -> None:
        """Claim the directory for a new run.

        Args:
            config: the run.
            fingerprint: of its data.
            class_counts: rows of each class, for class-conditional runs: the proportions of samples.

        Raises:
            ValueError: it exists and holds something.
        """
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        # First of all, so that a run killed right after can be told from a folder of somebody else's.
        values = {
            "config": config.to_dict(),
            "data_fingerprint": fingerprint,
            "class_counts": class_counts,
            "versions": versions(),
        }
        write_whole(self.config_file, json.dumps(values, indent=2) + "\n")

    def check_free(self) -> None:
        """Raises ValueError unless the path is free for a new run: not there, or an empty directory."""
        if self.config_file.is_file():
            raise ValueError(
                f"{self.path} already holds a run; continue it with --resume, or choose another --run-dir"
            )
        existing = next((p for p in (self.path, *self.path.parents) if p.exists()), None)
        if existing is not None and not existing.is_dir():
            raise ValueError(f"{existing} is a file; choose another --run-dir")
        if existing is not None and not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(f"{existing} cannot be written to; choose another --run-dir")
        if existing == self.path and any(not is_leftover(file) for file in self.path.iterdir()):
            raise ValueError(f"{self.path} already holds something else than a run; choose another --run-dir")

    def check_resumable(self, config: TrainConfig, fingerprint: str) -> None:
        """Refuse to continue what is not there, or what was made with another configuration or other data."""
        values = self.read()
        difference = first_difference(values["config"], config.to_dict())
        if difference is not None:
            raise ValueError(
                f"{self.path} was made with another configuration: {difference}; "
                "resume with the same settings, or start a new --run-dir"
            )
        self.check_data(config, fingerprint)

    def check_data(self, config: TrainConfig, fingerprint: str) -> None:
        """Raises ValueError if the source no longer holds the rows that the run was started with."""
        if self.read()["data_fingerprint"] != fingerprint:
            raise ValueError(
                f"{self.path} was trained on other data than {config.data.source!r} holds now; "
                "bring the old data back, or start a new --run-dir"
            )

    def read(self) -> dict[str, Any]:
        """config.json. Raises FileNotFoundError or ValueError where there is none or it is damaged."""
        if not self.config_file.is_file():
            raise FileNotFoundError(f"{self.path} holds no run: it has no config.json")
        try:
            values = json.loads(self.config_file.read_text())
            return {key: values[key] for key in ("config", "data_fingerprint", "class_counts", "versions")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.config_file} is damaged: {error}") from None

    def config(self) -> TrainConfig:
        return TrainConfig.from_dict(self.read()["config"])

    def class_counts(self) -> list[int] | None:
        """Rows of each class in the data of a class-conditional run, else None."""
        return self.read()["class_counts"]

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Append one whole line: a single write of an already open file, so that a kill leaves no half line.

        Raises:
            OSError: the disk is full; the file is as it was.
        """
        data = (json.dumps(line) + "\n").encode()
        descriptor = os.open(self.metrics_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            written = os.write(descriptor, data)
            if written < len(data):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(
                    errno.ENOSPC,
                    "no space left; free some and continue with --resume",
                    str(self.metrics_file),
                )
        finally:
            os.close(descriptor)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first; a line that is not whole is left out."""
        if not self.metrics_file.is_file():
            return []
        lines = []
        for line in self.metrics_file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def truncate_metrics(self, step: int) -> None:
        """Keep the whole lines up to a step: those after it will be written again."""
        if self.metrics_file.is_file():
            kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
            write_whole(self.metrics_file, "".join(kept))


def write_whole(file: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions that decide the numbers."""
    import platform
    from importlib.metadata import version

    import flowjax

    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "diffrax", "numpy")
    return {
        "flowjax": flowjax.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    }
