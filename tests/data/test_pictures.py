"""Contact sheets: every pixel where it belongs."""

import os

import numpy as np
import pytest
from PIL import Image

from flowjax.data import contact_sheet, save_picture


def tile(sheet, line, column, size):
    """A picture of the sheet by its place; two pixels lie between neighbours and around."""
    top, left = 2 + line * (size + 2), 2 + column * (size + 2)
    return sheet[top : top + size, left : left + size]


def test_pixels_are_kept_and_enlarged_in_blocks():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    sheet = contact_sheet(images, columns=3)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    for k in range(5):
        expected = np.kron(images[k], np.ones((8, 8, 1), np.uint8))
        np.testing.assert_array_equal(tile(sheet, k // 3, k % 3, 64), expected)
    assert len(np.unique(tile(sheet, 1, 2, 64))) == 1  # the empty place


def test_pictures_need_not_be_square():
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 160, 1), dtype=np.uint8)
    sheet = contact_sheet(images, columns=2)
    assert sheet.shape == (3 * 66 + 2, 2 * 162 + 2, 3)
    for k in range(6):
        top, left = 2 + 66 * (k // 2), 2 + 162 * (k % 2)
        np.testing.assert_array_equal(sheet[top : top + 64, left : left + 160, 1], images[k, ..., 0])


def test_floats_span_black_to_white():
    values = np.array([-1, 0, 1, 5, -5, np.nan, np.inf, -np.inf], np.float32)
    sheet = contact_sheet(np.tile(values[:, None, None, None], (1, 64, 64, 1)), columns=8)
    seen = [tile(sheet, 0, k, 64)[0, 0, 0] for k in range(8)]
    assert seen == [0, 128, 255, 255, 0, 0, 255, 0]


def test_grey_needs_no_channel_axis_and_large_pictures_are_not_enlarged():
    images = np.random.default_rng(0).integers(0, 256, (4, 100, 100), dtype=np.uint8)
    sheet = contact_sheet(images)
    assert sheet.shape == (206, 206, 3)
    np.testing.assert_array_equal(tile(sheet, 1, 0, 100), np.repeat(images[2][..., None], 3, axis=2))
    assert contact_sheet(images[:1], columns=10).shape == (104, 104, 3)


def test_points_are_drawn_where_they_lie():
    points = np.array([[-1.0, -1.0], [1.0, 1.0], [np.nan, 0]])
    sheet = contact_sheet(points, labels=[3, 3, 3])
    assert sheet.ndim == 3
    # Class 3 is the fourth of matplotlib's ten colours, a red: only the two finite points have it.
    red = (sheet[..., 0] > 1.5 * sheet[..., 1].astype(int)) & (sheet[..., 0] > 180)
    rows, columns = np.nonzero(red)
    middle = columns.mean()
    assert red.sum() > 10
    assert rows[columns < middle].min() > rows[columns > middle].max()  # lower left, upper right
    assert contact_sheet(np.full((2, 2), np.nan)).shape[2] == 3
    assert not np.array_equal(contact_sheet(points[:2], labels=[0, 1]), contact_sheet(points[:2]))


def test_saved_pictures_are_the_array(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    sheet = contact_sheet(images, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), sheet)
    save_picture(sheet, tmp_path / "sheet.JPG")
    with Image.open(tmp_path / "sheet.JPG") as saved:
        assert saved.format == "JPEG"
    assert sorted(os.listdir(tmp_path)) == ["sheet.JPG", "sheet.png"]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert (tmp_path / "sheet.png").stat().st_mode == ordinary.stat().st_mode


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_picture(np.zeros((2, 2, 3), np.uint8), path)
    before = path.read_bytes()

    def full_disk(self, file, **options):
        file.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_picture(np.ones((2, 2, 3), np.uint8), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    ("images", "options", "error", "words"),
    [
        (np.zeros((0, 8, 8, 1)), {}, ValueError, r"nothing to draw in an array of shape \(0, 8, 8, 1\)"),
        (np.zeros((3, 7)), {}, ValueError, r"rows of shape \(7,\) are neither pictures"),
        (np.zeros((3, 4, 4, 2)), {}, ValueError, "neither pictures"),
        (np.zeros((3, 4, 4, 1), int), {}, TypeError, "uint8 or floating point, got int64"),
        (np.zeros((3, 4, 4, 1)), {"columns": 0}, ValueError, "columns must be at least 1, got 0"),
        (np.zeros((3, 2)), {"labels": [0, 1]}, ValueError, r"labels must have shape \(3,\)"),
        (np.zeros((3, 2)), {"path": "a.txt"}, ValueError, r"a\.txt must end in \.png"),
        (np.zeros((3, 2)), {"path": "no/such/a.png"}, FileNotFoundError, "no folder no/such"),
    ],
)
def test_refuses(images, options, error, words):
    with pytest.raises(error, match=words):
        contact_sheet(images, **options)
