"""`prepare`: any data set as a TFDS data set in array_record files, the form that large training reads."""

import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ._dataset import Dataset


def prepare(dataset: Dataset, directory: str | Path) -> Path:
    """Write a data set to `directory`, to be read by `load("tfds:DIR")`, `stream("tfds:DIR")` or tfds itself.

    Rows are stored as the bytes they are, so uint8 and float32 come back bit for bit; labels, class names and the
    test split go along. Needs no TensorFlow. Either the whole data set appears at `directory` or nothing does.

    Args:
        dataset: what to write.
        directory: a new or empty folder; missing parents are made.

    Returns:
        The folder.

    Raises:
        ValueError: `directory` holds something already, or is a file. TFDS itself would silently keep old rows.
    """
    target = check_vacant(directory)
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, so that the last step is one rename.
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        written = _write(dataset, partial)
        if target.exists():
            target.rmdir()
        os.rename(written, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not target.exists():
            for parent in made:
                parent.rmdir()
    return target


def check_vacant(directory: str | Path) -> Path:
    """The folder as an absolute path; ValueError if something is there already."""
    target = Path(directory).expanduser().absolute()
    if (target / "dataset_info.json").exists():
        raise ValueError(
            f"{directory} already holds a prepared data set; read it with 'tfds:{directory}' or delete it"
        )
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{directory} is not empty; choose a new folder")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{directory} is a file; choose a new folder")
    return target


def _write(dataset: Dataset, scratch: Path) -> Path:
    import tensorflow_datasets as tfds

    splits = {"train": (dataset.images, dataset.labels)}
    if dataset.test_images is not None:
        splits["test"] = (dataset.test_images, dataset.test_labels)
    if dataset.labels is not None and dataset.test_images is not None and dataset.test_labels is None:
        raise ValueError(
            f"{dataset.name!r} has labels for its training rows but not for its test rows, which one TFDS data set "
            "cannot say; give test_labels or leave test_images out"
        )
    # BYTES stores the row's buffer; the default would store one variable-length integer a pixel.
    features: dict[str, tfds.features.FeatureConnector] = {
        "image": tfds.features.Tensor(
            shape=dataset.event_shape, dtype=dataset.dtype, encoding=tfds.features.Encoding.BYTES
        )
    }
    if dataset.labels is not None:
        names = None if dataset.class_names is None else list(dataset.class_names)
        count = dataset.num_classes if names is None else None
        features["label"] = tfds.features.ClassLabel(num_classes=count, names=names)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
        name = _identifier(dataset.name)
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{dataset.name}, written by flowjax; fingerprint {dataset.fingerprint}",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,  # row numbers stay what they were
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

        def _generate_examples(
            self, images: np.ndarray, labels: np.ndarray | None
        ) -> Iterator[tuple[int, dict[str, np.ndarray | int]]]:
            for k in range(len(images)):
                yield k, {"image": images[k]} | ({} if labels is None else {"label": int(labels[k])})

    # TFDS reports its progress on both standard streams, which belong to the caller.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder = Builder(data_dir=scratch, file_format="array_record")
        builder.download_and_prepare()
    return Path(builder.data_path)


def _identifier(name: str) -> str:
    """A name as TFDS wants it: lower case, digits and underscores, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"data_{plain}".rstrip("_")
