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
    """A photograph that is white where the docstring's ruling puts test crops, and black elsewhere."""
    rows, columns = np.indices((427, 640)) // 128
    held_out = np.isin(rows + 2 * columns, [0, 5, 10])
    assert 0.15 < held_out.mean() < 0.25
    photographs(monkeypatch, np.where(held_out[..., None], np.uint8(255), np.uint8(0)).repeat(3, -1))
    data = load("patches", num_points=2000)
    assert data.images.max() == 0
    assert data.test_images.min() == 255


def test_larger_crops_are_averaged_to_the_nearest(monkeypatch):
    """Colours that tell row and column: the step between pixels is the reduction, the first one shows the rounding."""
    ramp = np.stack([*np.indices((256, 256)), np.zeros((256, 256), int)], -1).astype(np.uint8)
    photographs(monkeypatch, ramp)
    data = load("patches", num_points=900)
    images = data.images.astype(int)
    steps = images[:, 1, 0, 0] - images[:, 0, 0, 0]
    assert np.all(np.abs(np.bincount(steps, minlength=4)[1:] - 300) < 60)
    lines = np.arange(32) * steps[:, None]
    for channel, line in ((0, images[:, :, 5, 0]), (1, images[:, 5, :, 1])):
        np.testing.assert_array_equal(line - images[:, 0, 0, channel, None], lines)
    # Blocks of 2 start at even or odd rows alike, and their mean, ½ above the first row, is rounded upwards.
    assert images[..., 0].max() <= 255
    assert images[steps == 2, 0, 0, 0].min() >= 1
    noisy = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for reduction in (2, 3):
        crops = _patches._crops(noisy, reduction, False, 5, np.random.default_rng(0))
        means = (
            noisy[: 256 // reduction * reduction, : 256 // reduction * reduction].astype(float).mean((0, 1))
        )
        np.testing.assert_allclose(crops.mean((0, 1, 2)), means, atol=3)


def test_a_photograph_smaller_than_the_places_asked_for_repeats_them(monkeypatch):
    photographs(monkeypatch, np.zeros((128, 256, 3), np.uint8))
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
