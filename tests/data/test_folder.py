"""Folders of pictures: classes, splits, forms, sizes, damage."""

import numpy as np
import pytest
from PIL import Image

from flowjax.data import load


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def picture(value, height=4, width=4, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.full(shape, value, np.uint8)


def test_subfolders_are_classes_in_alphabetical_order(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
    save(tmp_path / "dog" / "1.png", pixels[0])
    save(tmp_path / "cat" / "deeper" / "2.PNG", pixels[1])
    save(tmp_path / "cat" / "3.bmp", pixels[2])
    (tmp_path / "readme.txt").write_text("not a picture")
    (tmp_path / "cat" / "._3.png").write_bytes(b"what some systems leave beside a file")
    data = load(f"images:{tmp_path}")
    assert data.class_names == ("cat", "dog")
    np.testing.assert_array_equal(data.labels, [0, 0, 1])
    np.testing.assert_array_equal(data.images, pixels[[2, 1, 0]])
    assert data.images.dtype == np.uint8


def test_one_picture_outside_means_no_classes(tmp_path):
    save(tmp_path / "cat" / "1.png", picture(1))
    save(tmp_path / "2.png", picture(2))
    data = load(f"images:{tmp_path}")
    assert data.labels is None
    np.testing.assert_array_equal(data.images[:, 0, 0, 0], [2, 1])


def test_train_and_test_folders_are_splits(tmp_path):
    for split, name, value in (("train", "a", 1), ("train", "b", 2), ("test", "b", 3)):
        save(tmp_path / split / name / "x.png", picture(value))
    data = load(f"images:{tmp_path}")
    assert data.class_names == ("a", "b")
    np.testing.assert_array_equal(data.images[:, 0, 0, 0], [1, 2])
    np.testing.assert_array_equal(data.test_images[:, 0, 0, 0], [3])
    np.testing.assert_array_equal(data.test_labels, [1])


def test_grey_stays_grey_unless_one_has_colour(tmp_path):
    save(tmp_path / "1.png", picture(10, channels=1))
    save(tmp_path / "2.png", np.full((4, 4), 20 * 257, np.uint16))  # sixteen bits
    data = load(f"images:{tmp_path}")
    np.testing.assert_array_equal(data.images[:, 1, 1, :], [[10], [20]])
    save(tmp_path / "3.png", picture((1, 2, 3)))
    data = load(f"images:{tmp_path}")
    np.testing.assert_array_equal(data.images[:, 1, 1, :], [[10] * 3, [20] * 3, [1, 2, 3]])


def test_transparent_parts_are_white(tmp_path):
    pixels = picture((100, 0, 200, 255), channels=4)
    pixels[0, 0, 3] = 0
    save(tmp_path / "1.png", pixels)
    data = load(f"images:{tmp_path}")
    np.testing.assert_array_equal(data.images[0, 0, :2], [[255, 255, 255], [100, 0, 200]])


def test_turned_photographs_are_turned_back(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter clockwise: left becomes top
    save(tmp_path / "1.png", pixels, exif=exif)
    data = load(f"images:{tmp_path}")
    assert data.event_shape == (32, 16, 3)
    assert data.images[0, :16].min() == 255
    assert data.images[0, 16:].max() == 0


def test_resize_cuts_the_middle_out(tmp_path):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200  # the middle square
    save(tmp_path / "wide.png", pixels)
    save(tmp_path / "tall.png", pixels.transpose(1, 0, 2))
    data = load(f"images:{tmp_path}", image_size=8)
    assert data.images.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(data.images, 200)
    assert load(f"images:{tmp_path}", image_size=3).images.shape == (2, 3, 3, 3)


def test_several_sizes_need_image_size(tmp_path):
    save(tmp_path / "1.png", picture(1))
    save(tmp_path / "2.png", picture(1, height=7))
    with pytest.raises(ValueError, match=r"1\.png is 4×4, .*2\.png is 4×7\); give image_size"):
        load(f"images:{tmp_path}")


def test_links_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path / "elsewhere" / "1.png", picture(1))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "set")
    data = load(f"images:{tmp_path}/set")
    assert (data.num_points, data.class_names) == (1, ("a",))


def test_no_pictures(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(FileNotFoundError, match=r"holds no pictures \(\.bmp, "):
        load(f"images:{tmp_path}")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif"])
def test_undecodable_pictures_are_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    good, bad = tmp_path / f"good.{suffix}", tmp_path / f"bad.{suffix}"
    save(good, noise)
    content = good.read_bytes()
    for damage in (b"", b"no picture at all", content[: len(content) // 2], content[:20]):
        bad.write_bytes(damage)
        with pytest.raises(ValueError, match=rf"bad\.{suffix} cannot be decoded"):
            load(f"images:{tmp_path}")
    bad.write_bytes(content)
    assert load(f"images:{tmp_path}").num_points == 2
