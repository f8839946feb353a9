"""`flowjax data`: what it prints, writes and refuses."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowjax.cli import main
from flowjax.data import load


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_digits(capsys):
    assert main(["data", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines[:5])
    assert facts["points"] == "1 797"
    assert facts["shape"] == "8 × 8 × 1"
    assert facts["type"] == "float32, 449 KiB"
    images = load("digits").images.astype(np.float64)
    assert facts["range"] == f"-1 … 1, mean {images.mean():.4g}, deviation {images.std():.4g}"
    counts = [line.split() for line in lines if line[:1].isdigit()]
    assert counts == [[str(k), str(k), str(c)] for k, c in enumerate(np.bincount(load("digits").labels))]
    assert os.listdir() == ["digits-contact-sheet.png"]
    # 100 digits, ten lines of ten, classes taking turns: the first line is 0 to 9.
    with Image.open("digits-contact-sheet.png") as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (662, 662, 3)
    first = load("digits")
    for k in range(10):
        row = np.flatnonzero(first.labels == k)[0]
        pixels = np.round((first.images[row, ..., 0].astype(float) + 1) * 127.5)
        np.testing.assert_array_equal(sheet[2 + 4 : 66 : 8, 66 * k + 2 + 4 : 66 * k + 66 : 8, 0], pixels)


def test_a_terminal_gets_tables(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["data", "two-moons", "--num-points", "30", "--out", "moons.png"]) == 0
    out = capsys.readouterr().out
    assert "│" in out
    assert "upper" in out
    assert os.listdir() == ["moons.png"]


def test_prepare_then_read(capsys):
    assert main(["data", "two-moons", "--num-points", "50", "--seed", "4", "--prepare", "deep/moons"]) == 0
    assert "read it with tfds:deep/moons" in capsys.readouterr().out
    assert os.listdir() == ["deep"]
    assert load("tfds:deep/moons").fingerprint == load("two-moons", num_points=50, seed=4).fingerprint
    assert main(["data", "tfds:deep/moons"]) == 0
    assert sorted(os.listdir()) == ["deep", "moons-contact-sheet.png"]


def test_pictures_are_resized(capsys):
    os.mkdir("my photos")
    for k, size in enumerate([(20, 30), (40, 25)]):
        Image.new("RGB", size, "red").save(f"my photos/{k}.png")
    assert main(["data", "images:my photos", "--image-size", "16"]) == 0
    assert "16 × 16 × 3" in capsys.readouterr().out
    with Image.open("my-photos-contact-sheet.png") as picture:
        assert picture.getpixel((10, 10)) == (255, 0, 0)


def test_rows_that_cannot_be_drawn_are_still_described(capsys):
    np.savez("vectors.npz", images=np.ones((4, 7)))
    assert main(["data", "npz:vectors.npz"]) == 0
    out = capsys.readouterr().out
    assert "no picture: rows of shape (7,)" in out
    assert main(["data", "npz:vectors.npz", "--out", "a.png"]) == 2
    assert os.listdir() == ["vectors.npz"]


def test_many_classes_are_summed_up(capsys):
    np.savez("many.npz", images=np.zeros((300, 2)), labels=np.arange(300) % 100)
    assert main(["data", "npz:many.npz"]) == 0
    assert "60 more; in all" in capsys.readouterr().out


def test_overwrites_only_when_asked(capsys):
    sheet = Path("digits-contact-sheet.png")
    sheet.write_text("precious")
    assert main(["data", "digits"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flowjax: digits-contact-sheet.png exists already")
    assert error.count("\n") == 1
    assert sheet.read_text() == "precious"
    assert main(["data", "digits", "--overwrite"]) == 0
    assert sheet.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["digit"], "did you mean 'digits'?"),
        (["digits", "--num", "0"], "--num must be at least 1, got 0"),
        (["digits", "--image-size", "4"], "image_size=4 does not apply to 'digits'"),
        (["digits", "--out", "a.txt"], "must end in .png"),
        (["digits", "--out", "no/a.png"], "there is no folder no"),
        (["digits", "--prepare", "."], "is not empty"),
        (["npz:no.npz"], "there is no file no.npz"),
        (["npz:here.npz"], "is no NumPy archive"),
    ],
)
def test_refuses_in_one_sentence(argv, words, capsys):
    Path("here.npz").touch()
    assert main(["data", *argv]) == 2
    out, error = capsys.readouterr()
    assert words in error
    assert error.count("\n") == 1
    assert out == ""
    assert os.listdir() == ["here.npz"]


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as left:
        main(["data", "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "flowjax data two-moons" in out
    assert "images:DIR" in out
    assert main(["data", "digits", "--no-such-flag"]) == 2
    assert "Unrecognized options: --no-such-flag" in capsys.readouterr().err
    assert os.listdir() == []
