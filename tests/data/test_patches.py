"""Crops of photographs: where they come from, what they are averaged to, and that no test pixel is trained on."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowjax.data import _patches, load


def photographs(monkeypatch, picture: np.ndarray) -> None:
    """Let every photograph be this picture."""
    monkeypatch.setattr(_patches, "_read", lambda package, file: picture)


def test_what_it_is():
    data = load("patches", num_points=703)
    assert (data.dtype, data.images.shape, data.test_images.shape) == (
        np.uint8,
        (703, 32, 32, 3),
        (140, 32, 32, 3),
    )
    assert data.class_names == ("astronaut", "cat", "coffee", "motorcycle", "rocket", "temple", "flower")
    assert set(data.class_counts) == {100, 101}
    assert len(np.unique(np.concatenate([data.images, data.test_images]), axis=0)) == 703 + 140
    assert np.ptp(data.images.mean((0, 1, 2))) > 5  # colours, and not grey
    assert load("patches", num_points=1).test_images.shape == (1, 32, 32, 3)


def test_the_same_numbers_give_the_same_crops():
    first, again, other = (load("patches", num_points=70, seed=s) for s in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    np.testing.assert_array_equal(first.test_images, again.test_images)
    assert load("patches", num_points=70).fingerprint == first.fingerprint


def test_crops_are_pieces_of_their_photographs():
    """Every crop that was not averaged stands in the file, read here on its own; about a third are such."""
    spec = importlib.util.find_spec("skimage")
    with Image.open(Path(spec.origin).parent / "data" / "chelsea.png") as picture:
        cat = np.asarray(picture)
    data = load("patches", num_points=350)
    windows = np.lib.stride_tricks.sliding_window_view(cat, (32, 32), (0, 1))
    found = 0
    for crop in data.images[data.labels == data.class_names.index("cat")]:
        rows, columns = np.nonzero((cat[:-31, :-31] == crop[0, 0]).all(-1))
        places = windows[rows, columns].transpose(0, 2, 3, 1)
        found += bool((places == crop).all((1, 2, 3)).any())
    assert 8 <= found <= 26  # of 50, a third expected


def test_no_pixel_is_in_both_splits(monkeypatch):
    """A photograph that is bright where the docstring's ruling puts test crops, and dark elsewhere."""
    rows, columns = np.indices((427, 640)) // 128
    held_out = np.isin(rows + 2 * columns, [0, 5, 10])
    assert 0.15 < held_out.mean() < 0.25
    noise = np.random.default_rng(0).integers(0, 128, (427, 640, 3), dtype=np.uint8)
    photographs(monkeypatch, noise + 128 * held_out[..., None].astype(np.uint8))
    data = load("patches", num_points=2000)
    assert data.images.max() < 128 <= data.test_images.min()


def test_plain_surfaces_are_left_out(monkeypatch):
    """Left half noise, right half plain: a crop must hold enough of the noise; and the real ones vary."""
    picture = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    picture[:, 128:] = 90
    photographs(monkeypatch, picture)
    data = load("patches", num_points=700)
    plain = (data.images == 90).all(-1).mean((1, 2))
    assert 0.5 < plain.max() < 1
    monkeypatch.undo()
    assert load("patches", num_points=700).images.mean(-1).std((1, 2)).min() > 7  # 10 before averaging


def test_one_size_is_as_frequent_as_the_others(monkeypatch):
    """Colours that tell row and column: the step between pixels is the reduction."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256))  # nothing plain about it
    photographs(monkeypatch, np.stack([*np.indices((256, 256)), noise], -1).astype(np.uint8))
    data = load("patches", num_points=900)
    images = data.images.astype(int)
    steps = images[:, 1, 0, 0] - images[:, 0, 0, 0]
    assert np.all(np.abs(np.bincount(steps, minlength=4)[1:] - 300) < 60)
    lines = np.arange(32) * steps[:, None]
    for channel, line in ((0, images[:, :, 5, 0]), (1, images[:, 5, :, 1])):
        np.testing.assert_array_equal(line - images[:, 0, 0, channel, None], lines)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_means_are_rounded_to_the_nearest_and_halves_upwards(size):
    picture = np.random.default_rng(0).integers(0, 256, (7, 8, 3), dtype=np.uint8)
    means = _patches._block_means(picture, size)
    assert means.shape == (8 - size, 9 - size, 3)
    for i, j in np.ndindex(means.shape[:2]):
        exact = picture[i : i + size, j : j + size].astype(float).mean((0, 1))
        np.testing.assert_array_equal(means[i, j], np.floor(exact + 0.5))


def test_a_photograph_smaller_than_the_places_asked_for_repeats_them(monkeypatch):
    photographs(monkeypatch, np.random.default_rng(0).integers(0, 256, (128, 256, 3), dtype=np.uint8))
    assert load("patches", num_points=20_000).num_points == 20_000


def test_a_missing_package_or_photograph_says_what_to_install(monkeypatch):
    monkeypatch.setitem(_patches._PHOTOGRAPHS, "cat", ("skimage", "data/no-such.png"))
    with pytest.raises(FileNotFoundError, match=r"need the photograph .*no-such\.png.* --upgrade"):
        load("patches")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        FileNotFoundError, match=r'not installed; pip install "flowjax-closedform\[patches\]"'
    ):
        load("patches")
