"""NumPy archives under the names people give their arrays."""

import io
import zipfile

import numpy as np
import pytest

from flowjax.data import load

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    "keys",
    [
        ("images", "labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_every_spelling(tmp_path, keys, save):
    file = tmp_path / "toy.npz"
    save(file, **dict(zip(keys, (PIXELS, LABELS, PIXELS[:2], LABELS[:2]), strict=True)))
    data = load(f"npz:{file}")
    assert data.name == "toy"
    np.testing.assert_array_equal(data.images, PIXELS)
    np.testing.assert_array_equal(data.labels, LABELS)
    np.testing.assert_array_equal(data.test_images, PIXELS[:2])
    np.testing.assert_array_equal(data.test_labels, LABELS[:2])


def test_grey_pictures_get_a_channel_and_column_labels_lose_an_axis(tmp_path):
    names = np.array(["cat", "dog", "cow"])
    np.savez(tmp_path / "a.npz", images=PIXELS[..., 0], labels=LABELS[:, None], class_names=names)
    data = load(f"npz:{tmp_path}/a.npz")
    assert data.event_shape == (4, 4, 1)
    assert data.class_names == ("cat", "dog", "cow")
    np.testing.assert_array_equal(data.labels, LABELS)


def test_points_and_their_precision_are_kept(tmp_path):
    points = np.random.default_rng(1).standard_normal((5, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=points)
    data = load(f"npz:{tmp_path}/a.npz")
    np.testing.assert_array_equal(data.images, points)
    assert data.labels is None


def refused(path, error, words):
    with pytest.raises(error, match=words):
        load(f"npz:{path}")


def test_an_archive_without_images_lists_its_keys(tmp_path):
    np.savez(tmp_path / "a.npz", weights=LABELS, bias=LABELS)
    refused(tmp_path / "a.npz", ValueError, "no key 'images' .* its keys are weights, bias")
    np.savez(tmp_path / "b.npz")
    refused(tmp_path / "b.npz", ValueError, "its keys are none at all")


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    refused(tmp_path / "a.npy", ValueError, "no NumPy archive")
    (tmp_path / "b.npz").write_bytes(b"")
    refused(tmp_path / "b.npz", ValueError, "no NumPy archive")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("images", b"not an array")
    refused(tmp_path / "c.npz", ValueError, "'images' is no NumPy array")


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([{"a": 1}, print], object))
    refused(tmp_path / "a.npz", ValueError, "'images' holds pickled objects")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_inside_is_noticed(tmp_path, save):
    buffer = io.BytesIO()
    save(buffer, images=PIXELS)
    content = bytearray(buffer.getvalue())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(255 - byte for byte in content[middle : middle + 40])
    (tmp_path / "a.npz").write_bytes(content)
    refused(tmp_path / "a.npz", ValueError, r"a\.npz.* is damaged")
    (tmp_path / "b.npz").write_bytes(buffer.getvalue()[:middle])
    refused(tmp_path / "b.npz", ValueError, "no NumPy archive")


def test_bad_contents_name_the_file(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS[:4])
    refused(tmp_path / "a.npz", ValueError, r"a\.npz: labels must have one entry a row")
    np.savez(tmp_path / "a.npz", images=PIXELS.astype(np.int64))
    refused(tmp_path / "a.npz", TypeError, r"a\.npz: images are int64")
