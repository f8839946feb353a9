"""`load`: every source against an independent reading of it, and every way to get it wrong."""

import numpy as np
import pytest

from flowjax.data import SOURCES, load


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    ours = load("digits")
    assert ours.images.shape == (1797, 8, 8, 1)
    assert ours.images.dtype == np.float32
    np.testing.assert_array_equal((ours.images[..., 0] + 1) * 8, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.target)
    assert (ours.images.min(), ours.images.max()) == (-1, 1)
    assert ours.class_names == tuple("0123456789")


def test_two_moons_lie_on_two_half_circles():
    data = load("two-moons", num_points=1001, seed=3)
    assert data.images.shape == (1001, 2)
    assert data.images.dtype == np.float32
    assert sorted(np.bincount(data.labels)) == [500, 501]
    upper, lower = (data.images[data.labels == k] for k in (0, 1))
    # Half circles of radius 1 about (∓.5, ∓.25), the upper one above its centre; .25 is five deviations of the noise.
    for points, sign in ((upper, 1), (lower, -1)):
        seen = sign * points + [0.5, 0.25]
        assert np.abs(np.linalg.norm(seen, axis=1) - 1).max() < 0.25
        assert seen[:, 1].min() > -0.25
    assert np.abs(data.images.mean(0)).max() < 0.1


def test_eight_gaussians_lie_around_a_circle():
    data = load("eight-gaussians", num_points=4000)
    angle = np.pi / 4 * data.labels
    offset = data.images - 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    assert abs(offset.std() - 0.1) < 0.004
    assert np.abs(offset).max() < 0.6
    np.testing.assert_array_equal(np.bincount(data.labels), 500)


@pytest.mark.parametrize("name", ["two-moons", "eight-gaussians"])
def test_synthetic_sets_follow_their_seed(name):
    assert load(name).fingerprint == load(name, seed=0, num_points=2000).fingerprint
    assert load(name, seed=1).fingerprint != load(name, seed=2).fingerprint
    assert load(name, num_points=1).num_points == 1


def test_the_held_out_rows_alone(tmp_path):
    pixels, labels = np.arange(7 * 4, dtype=np.uint8).reshape(7, 2, 2, 1), np.array([0, 1, 2, 0, 1, 2, 0])
    arrays = {"images": pixels[:4], "labels": labels[:4], "test_images": pixels[4:]}
    np.savez(tmp_path / "a.npz", **arrays, test_labels=labels[4:], class_names=["a", "b", "c"])
    held_out = load(f"npz:{tmp_path}/a.npz", split="test")
    np.testing.assert_array_equal(held_out.images, pixels[4:])
    np.testing.assert_array_equal(held_out.labels, labels[4:])
    assert (held_out.name, held_out.class_names, held_out.test_images) == ("a", ("a", "b", "c"), None)
    assert load(f"npz:{tmp_path}/a.npz", split="train").num_points == 4

    np.savez(tmp_path / "b.npz", **arrays)
    held_out = load(f"npz:{tmp_path}/b.npz", split="test")
    assert (held_out.num_points, held_out.labels, held_out.num_classes) == (3, None, None)


def test_a_split_that_is_not_there():
    with pytest.raises(ValueError, match="'digits' has no held-out rows; hold some"):
        load("digits", split="test")
    with pytest.raises(ValueError, match="unknown split 'tets'; did you mean 'test'"):
        load("digits", split="tets")


def test_every_source_is_described():
    assert {"digits", "two-moons", "patches", "idx:DIR", "npz:FILE", "images:DIR", "tfds:NAME_OR_DIR"} <= set(
        SOURCES
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("digit", "unknown data set 'digit'; did you mean 'digits'?"),
        ("two_moons", "did you mean 'two-moons'?"),
        ("Digits", "did you mean 'digits'?"),
        ("imagenet-but-longer", "choose one of digits, two-moons"),
        ("idz:somewhere", "did you mean 'idx:somewhere'?"),
        ("tfds:", "names no place; write for example 'tfds:NAME_OR_DIR'"),
        ("some/where.npz", "write 'npz:some/where.npz'"),
        ("", "unknown data set ''"),
    ],
)
def test_unknown_sources_name_the_nearest(source, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        load(source)


def test_a_bare_folder_is_told_its_kind(tmp_path):
    with pytest.raises(ValueError, match=f"write 'images:{tmp_path}'"):
        load(str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").touch()
    with pytest.raises(ValueError, match=f"write 'idx:{tmp_path}'"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (
            "digits",
            {"image_size": 8},
            ValueError,
            "image_size=8 does not apply to 'digits', only to images and tfds",
        ),
        ("digits", {"num_points": 8}, ValueError, "only to two-moons and eight-gaussians and patches"),
        ("two-moons", {"num_points": 0}, ValueError, "num_points must be at least 1, got 0"),
        ("two-moons", {"num_points": 2.5}, TypeError, "num_points must be an integer, got 2.5"),
        ("two-moons", {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ("images:x", {"image_size": 0}, ValueError, "image_size must be at least 1"),
        (7, {}, TypeError, "source must be text"),
        ("idx:/no/such", {}, FileNotFoundError, "no folder /no/such"),
        ("npz:/no/such.npz", {}, FileNotFoundError, r"no file /no/such\.npz"),
        ("images:/no/such", {}, FileNotFoundError, "no folder /no/such"),
        ("tfds:/no/such", {}, FileNotFoundError, "neither a folder '/no/such'"),
    ],
)
def test_refuses_options_and_missing_places(source, options, error, words):
    with pytest.raises(error, match=words):
        load(source, **options)
