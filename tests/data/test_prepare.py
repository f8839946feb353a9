"""Written as array_record and read back: bit for bit, or not at all."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from flowjax.data import Dataset, batches, load, prepare, stream

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (23, 4, 5, 3), dtype=np.uint8)
POINTS = RNG.standard_normal((23, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, 23)
NAMES = ("T-shirt/top", "chien noir", "z")


def same(left: Dataset, right: Dataset):
    for field in ("images", "labels", "test_images", "test_labels"):
        a, b = getattr(left, field), getattr(right, field)
        assert (a is None) == (b is None), field
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, err_msg=field)
    assert left.class_names == right.class_names
    assert left.num_classes == right.num_classes
    assert left.fingerprint == right.fingerprint


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset("pixels", PIXELS, LABELS, NAMES, PIXELS[:5], LABELS[:5]),
        Dataset("Points of 2!", POINTS, LABELS),
        Dataset("9 unlabelled", PIXELS[:1], test_images=PIXELS[:3]),
        Dataset("extremes", np.array([[np.finfo(np.float32).max], [-0.0], [1e-45]], np.float32)),
    ],
    ids=lambda dataset: dataset.name,
)
def test_round_trip(tmp_path, dataset):
    prepare(dataset, tmp_path / "set")
    back = load(f"tfds:{tmp_path / 'set'}")
    same(dataset, back)
    np.testing.assert_array_equal(np.signbit(back.images), np.signbit(dataset.images))


def test_tfds_itself_reads_what_was_written(tmp_path):
    import tensorflow_datasets as tfds

    prepare(Dataset("pixels", PIXELS, LABELS, NAMES), tmp_path / "set")
    source = tfds.builder_from_directory(tmp_path / "set").as_data_source("train")
    assert len(source) == 23
    np.testing.assert_array_equal(source[17]["image"], PIXELS[17])
    assert source[17]["label"] == LABELS[17]


def test_leaves_the_files_and_nothing_else(tmp_path, capfd):
    (tmp_path / "set").mkdir()
    prepare(Dataset("pixels", PIXELS), tmp_path / "set")
    prepare(Dataset("pixels", PIXELS), tmp_path / "new" / "parents" / "set")
    assert sorted(os.listdir(tmp_path)) == ["new", "set"]
    assert os.listdir(tmp_path / "new" / "parents") == ["set"]
    expected = ["dataset_info.json", "features.json", "pixels-train.array_record-00000-of-00001"]
    assert sorted(os.listdir(tmp_path / "set")) == expected
    assert capfd.readouterr() == ("", "")


def test_refuses_what_is_occupied(tmp_path):
    dataset = Dataset("pixels", PIXELS)
    prepare(dataset, tmp_path / "set")
    with pytest.raises(ValueError, match="already holds a prepared data set; read it with 'tfds:"):
        prepare(Dataset("points", POINTS), tmp_path / "set")
    same(load(f"tfds:{tmp_path}/set"), dataset)
    with pytest.raises(ValueError, match="is not empty"):
        prepare(dataset, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        prepare(dataset, tmp_path / "file")
    half = Dataset("half", PIXELS, LABELS, test_images=PIXELS)
    with pytest.raises(ValueError, match="not for its test rows"):
        prepare(half, tmp_path / "half")
    assert sorted(os.listdir(tmp_path)) == ["file", "set"]


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    encode = tfds.features.FeaturesDict.encode_example
    seen = []

    def full_disk(self, example):
        seen.append(1)
        if len(seen) > 10:
            raise OSError(28, "No space left on device")
        return encode(self, example)

    monkeypatch.setattr(tfds.features.FeaturesDict, "encode_example", full_disk)
    with pytest.raises(OSError, match="No space left"):
        prepare(Dataset("pixels", PIXELS), tmp_path / "a" / "b" / "set")
    assert len(seen) == 11
    assert os.listdir(tmp_path) == []


def test_batches_from_disk_are_batches_from_memory(tmp_path):
    dataset = Dataset("pixels", PIXELS, LABELS, NAMES)
    prepare(dataset, tmp_path / "set")
    records = stream(f"tfds:{tmp_path / 'set'}")
    assert (records.num_points, records.event_shape, records.num_classes) == (23, (4, 5, 3), 3)
    assert records.class_names == NAMES
    for one, two, _ in zip(batches(records, 7, seed=1), batches(dataset, 7, seed=1), range(9), strict=False):
        assert one.keys() == two.keys()
        for key in one:
            assert one[key].dtype == two[key].dtype
            np.testing.assert_array_equal(one[key], two[key])


def test_fingerprints_on_disk_tell_rows_apart(tmp_path):
    prints = set()
    for k in range(3):
        # Same shapes and names; the third repeats the first.
        prepare(Dataset("pixels", np.roll(PIXELS, k % 2, axis=0)), tmp_path / f"set{k}")
        prints.add(stream(f"tfds:{tmp_path}/set{k}").fingerprint)
    assert len(prints) == 2


def write_foreign(folder, features, rows, file_format="array_record", splits=("train",)):
    """A data set as somebody else would have prepared it."""
    import contextlib

    import tensorflow_datasets as tfds

    class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "foreign"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=features(tfds.features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            yield from enumerate(rows)

    with contextlib.redirect_stdout(io.StringIO()):
        builder = Foreign(data_dir=folder, file_format=file_format)
        builder.download_and_prepare()
    shutil.rmtree(folder / "downloads", ignore_errors=True)
    return builder.data_path


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    file.seek(0)
    return file


def test_reads_encoded_pictures_by_name_and_resizes(tmp_path, monkeypatch):
    def features(f):
        return f.FeaturesDict(
            {"image": f.Image(shape=(None, None, 3)), "label": f.ClassLabel(names=["a", "b"])}
        )

    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    write_foreign(
        tmp_path, features, [{"image": png(a), "label": 1} for a in (wide, wide.transpose(1, 0, 2))]
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"several sizes \(None, None, 3\); load it with image_size"):
        load("tfds:foreign")
    data = load("tfds:foreign/1.0.0", image_size=8)
    assert load("tfds:foreign", image_size=8).fingerprint == data.fingerprint
    np.testing.assert_array_equal(data.images, np.full((2, 8, 8, 3), 200))
    np.testing.assert_array_equal(data.labels, [1, 1])
    with pytest.raises(FileNotFoundError, match="did you mean 'tfds:foreign'"):
        load("tfds:foreing")
    with pytest.raises(
        FileNotFoundError, match=r"prepare it once with tensorflow_datasets\.builder\('cifar10'"
    ):
        load("tfds:cifar10")


def test_secret_test_labels_are_left_out(tmp_path):
    def features(f):
        return f.FeaturesDict(
            {"image": f.Tensor(shape=(2,), dtype=np.float32), "label": f.ClassLabel(num_classes=3)}
        )

    rows = [{"image": np.float32([1, 2]), "label": -1}]
    data = load(f"tfds:{write_foreign(tmp_path, features, rows, splits=('train', 'test'))}")
    assert (data.labels, data.test_labels) == (None, None)
    assert data.test_images.shape == (1, 2)


def test_refuses_unreadable_sets(tmp_path):
    def features(f):
        return f.FeaturesDict({"text": f.Text()})

    place = write_foreign(tmp_path / "text", features, [{"text": "hello"}])
    with pytest.raises(ValueError, match="no feature 'image'; its features are text"):
        load(f"tfds:{place}")

    def tensors(f):
        return f.FeaturesDict({"image": f.Tensor(shape=(2,), dtype=np.float32)})

    place = write_foreign(tmp_path / "val", tensors, [{"image": np.float32([1, 2])}], splits=("validation",))
    with pytest.raises(ValueError, match="no split 'train'; its splits are: validation"):
        load(f"tfds:{place}")
    with pytest.raises(FileNotFoundError, match=f"did you mean 'tfds:{place}'"):
        load(f"tfds:{tmp_path / 'val'}")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="write one with `flowjax data SOURCE --prepare DIR`"):
        load(f"tfds:{tmp_path / 'nothing'}")
    with pytest.raises(ValueError, match="only 'tfds:NAME_OR_DIR' can be read row by row"):
        stream("digits")


def test_image_size_needs_pixels(tmp_path):
    prepare(Dataset("points", POINTS), tmp_path / "set")
    with pytest.raises(ValueError, match=r"image_size=8 needs uint8 pictures"):
        load(f"tfds:{tmp_path}/set", image_size=8)


@pytest.mark.parametrize("damage", ["tfrecord", "json", "short", "flipped", "lost"])
def test_damaged_sets_are_refused(tmp_path, damage):
    folder = prepare(Dataset("pixels", PIXELS, LABELS), tmp_path / "set")
    info, record = folder / "dataset_info.json", next(folder.glob("*array_record*"))
    if damage == "tfrecord":
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        words = "stored as tfrecord, which needs TensorFlow"
    elif damage == "json":
        info.write_text(info.read_text()[:100])
        words = "metadata .* damaged"
    else:
        content, words = record.read_bytes(), "set is damaged"
        middle = len(content) // 2
        if damage == "short":
            record.write_bytes(content[:middle])
        elif damage == "flipped":
            record.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        else:
            record.unlink()
    with pytest.raises(ValueError, match=words):
        load(f"tfds:{folder}")
