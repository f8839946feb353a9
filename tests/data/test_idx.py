"""The IDX files of the MNIST family, written here byte by byte."""

import gzip
import struct

import numpy as np
import pytest

from flowjax.data import load

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8), RNG.integers(0, 10, 7, dtype=np.uint8)
TEST = RNG.integers(0, 256, (3, 5, 4), dtype=np.uint8), RNG.integers(0, 10, 3, dtype=np.uint8)


def encode(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder, split, pair, suffix="", dot="-"):
    pack = gzip.compress if suffix == ".gz" else bytes
    for what, array in zip(("images", "labels"), pair, strict=True):
        (folder / f"{split}-{what}{dot}idx{array.ndim}-ubyte{suffix}").write_bytes(pack(encode(array)))


@pytest.mark.parametrize(("suffix", "dot"), [("", "-"), (".gz", "-"), ("", "."), (".gz", ".")])
def test_reads_both_splits(tmp_path, suffix, dot):
    write(tmp_path, "train", TRAIN, suffix, dot)
    write(tmp_path, "t10k", TEST, suffix, dot)
    data = load(f"idx:{tmp_path}")
    assert data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.images, TRAIN[0][..., None])
    np.testing.assert_array_equal(data.labels, TRAIN[1])
    np.testing.assert_array_equal(data.test_images, TEST[0][..., None])
    np.testing.assert_array_equal(data.test_labels, TEST[1])
    assert data.name == tmp_path.name


def test_the_test_split_is_optional_and_gzip_is_known_by_its_content(tmp_path):
    write(tmp_path, "train", TRAIN)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(gzip.compress(path.read_bytes()))
    data = load(f"idx:{tmp_path}")
    assert data.test_images is None
    np.testing.assert_array_equal(data.labels, TRAIN[1])


def test_installed_data_sets_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path))
    (tmp_path / "fashion-mnist").mkdir()
    write(tmp_path / "fashion-mnist", "train", TRAIN, ".gz")
    data = load("fashion-mnist")
    assert (data.name, data.class_names[9], data.num_classes) == ("fashion-mnist", "Ankle boot", 10)
    np.testing.assert_array_equal(data.images, TRAIN[0][..., None])


def test_absent_data_sets_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"mnist is in none of {tmp_path}/mnist.*'idx:DIR'"):
        load("mnist")


def change(folder, what, edit):
    path = next(folder.glob(f"train-{what}*"))
    path.write_bytes(edit(path.read_bytes()))


@pytest.mark.parametrize(
    ("what", "edit", "words"),
    [
        ("images", lambda b: b[:-1], "cut short: 7 × 5 × 4 elements need 140 bytes after the header, 139"),
        ("images", lambda b: b + b"\0", "bytes after its end: .* 141 are there"),
        ("images", lambda b: b[:9], "cut short inside its header, at byte 9 of 16"),
        ("images", lambda b: b"", "no IDX file: it starts with nothing"),
        ("images", lambda b: b"PNG!" + b[4:], "no IDX file: it starts with 50 4e 47 21"),
        ("images", lambda b: b[:2] + b"\x0d" + b[3:], "element type 13 with 3 axes"),
        ("images", lambda b: encode(TRAIN[1]), "type 8 with 1 axes where .* with 3 is wanted; .* swapped"),
        ("labels", lambda b: encode(TRAIN[0]), "swapped"),
        ("labels", lambda b: encode(TRAIN[1][:5]), "7 train images but 5 labels"),
        ("images", lambda b: gzip.compress(b)[:-20], "damaged gzip file"),
        ("images", lambda b: gzip.compress(b)[:-8] + b"\0" * 8, "damaged gzip file"),
        ("images", lambda b: b"\x1f\x8b" + b, "damaged gzip file"),
        ("images", lambda b: encode(TRAIN[0][:0]), "0 train images but 7 labels"),
        # a header that promises 2^96 bytes must not ask for them
        ("images", lambda b: b[:4] + b"\xff" * 12 + b[16:], "cut short: 4294967295 ×"),
    ],
)
def test_damaged_files_are_refused(tmp_path, what, edit, words):
    write(tmp_path, "train", TRAIN)
    change(tmp_path, what, edit)
    with pytest.raises(ValueError, match=words):
        load(f"idx:{tmp_path}")


def test_missing_halves_are_named(tmp_path):
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "t10k", TEST)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        load(f"idx:{tmp_path}")
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load(f"idx:{tmp_path}")
