"""The classifier that stands in for a feature network, and pixels as features."""

import dataclasses

import numpy as np
import pytest

from flowjax import data
from flowjax.metrics import features, frechet_distance

RNG = np.random.default_rng(0)


def bars(count, seed=0):
    """Pictures of a horizontal (0) or vertical (1) bar in noise: linearly almost inseparable, easy to see."""
    generator = np.random.default_rng(seed)
    images = 0.1 * generator.normal(size=(count, 8, 8, 1)).astype(np.float32)
    labels = generator.integers(0, 2, count)
    for image, label, place in zip(images, labels, generator.integers(0, 8, count), strict=True):
        (image if label == 0 else image.swapaxes(0, 1))[place] += 1
    return images, labels


def train(**options):
    return features.train_classifier(*bars(200), num_steps=60, batch_size=32, dim=16, **options)


def test_learns_and_says_what_it_is():
    classifier = train(name="bars", seed=3)
    assert classifier.held_out_accuracy > 0.9
    assert classifier.name == (
        "classifier trained on bars, seed 3, 16-d penultimate layer, "
        f"held-out accuracy {classifier.held_out_accuracy:.2f}"
    )
    images, labels = bars(1100, seed=9)  # more than one block
    probabilities = classifier.probabilities(images)
    assert probabilities.shape == (1100, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert np.mean(probabilities.argmax(1) == labels) > 0.9
    values = classifier.features(images)
    assert (values.shape, values.dtype) == ((1100, 16), np.float32)
    np.testing.assert_allclose(
        classifier.features(images[1050:1051]), values[1050:1051], rtol=1e-4, atol=1e-5
    )
    assert classifier.features(images[:0]).shape == (0, 16)
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 1\)"):
        classifier.features(np.zeros((2, 4, 4, 1)))


def test_is_deterministic_in_its_seed():
    images, _ = bars(5, seed=1)
    first = train(seed=0).features(images)
    np.testing.assert_array_equal(first, train(seed=0).features(images))
    assert np.abs(first - train(seed=1).features(images)).max() > 1e-3


def test_held_out_images_are_not_trained_on():
    images, _ = bars(300)
    chance = features.train_classifier(images, RNG.integers(0, 2, 300), num_steps=200, batch_size=60)
    assert chance.held_out_accuracy < 0.75  # random labels: only memory could do better than one half


def test_every_epoch_shows_every_image_once():
    batches = list(features._batches(np.arange(10, 22), 4, 6, seed=0))
    assert sorted(np.concatenate(batches[:3])) == sorted(np.concatenate(batches[3:])) == list(range(10, 22))
    assert np.concatenate(batches[:3]).tolist() != np.concatenate(batches[3:]).tolist()


@pytest.mark.slow
def test_digits():
    classifier = features.digits_classifier()
    assert classifier is features.digits_classifier()
    assert classifier.held_out_accuracy > 0.96
    assert classifier.name.startswith(
        "classifier trained on digits, seed 0, 64-d penultimate layer, held-out"
    )
    images = data.load("digits").images
    values = classifier.features(images)
    assert values.shape == (1797, 64)
    near = frechet_distance(values[::2], values[1::2])
    far = frechet_distance(values, classifier.features(RNG.normal(size=images.shape)))
    assert near < 0.05 * far


def test_pixels():
    images = RNG.integers(0, 256, (3, 2, 2, 1), dtype=np.uint8)
    values = features.PixelFeatures().features(images)
    np.testing.assert_allclose(values, images.reshape(3, 4) / 127.5 - 1, rtol=1e-6)
    assert features.PixelFeatures().name == "pixels"


@dataclasses.dataclass(frozen=True)
class Stored:
    """The part of a data set that features look at."""

    fingerprint: str
    images: np.ndarray
    labels: np.ndarray | None
    name: str = "stored"


def test_default_features_are_a_classifier_where_there_are_labels(monkeypatch):
    monkeypatch.setattr(features, "train_classifier", lambda *args, **options: options)
    images, labels = bars(20)
    first = features.default_features(Stored("a", images, labels), seed=5)
    assert first == {"seed": 5, "name": "stored"}
    assert features.default_features(Stored("a", images, labels), seed=5) is first
    for other in (
        Stored("b", images, None),
        Stored("c", images.reshape(20, -1), labels),
        Stored("d", images, 0 * labels),
    ):
        assert isinstance(features.default_features(other), features.PixelFeatures)


def test_features_for_a_dataset(monkeypatch):
    monkeypatch.setattr(features, "train_classifier", lambda *args, **options: "classifier")
    monkeypatch.setattr(features, "EfficientNetLite0", lambda: "EfficientNet")
    monkeypatch.setattr(features, "FIDInception", lambda weights: ("Inception", weights))
    labels = np.arange(20) % 2

    def chosen(*event, **options):
        return features.for_dataset(Stored(f"{event}", np.zeros((20, *event)), labels), **options)

    assert chosen(32, 32, 3) == "EfficientNet"
    assert chosen(28, 28, 1) == "classifier"
    assert chosen(8, 8, 3) == "classifier"
    assert chosen(32, 24, 3) == "classifier"
    assert isinstance(chosen(2), features.PixelFeatures)
    assert chosen(28, 28, 1, weights="w.pth") == ("Inception", "w.pth")
    for event in ((8, 8, 3), (32, 24, 3), (2,)):
        with pytest.raises(ValueError, match="FID-Inception"):
            chosen(*event, weights="w.pth")


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (np.ones((20, 2)), np.arange(20), ValueError, "PixelFeatures"),
        (np.ones((20, 2, 2, 1)), np.arange(19), ValueError, "there are 20 images"),
        (np.ones((20, 2, 2, 1)), np.ones(20), TypeError, "float64"),
        (np.ones((4, 2, 2, 1)), np.arange(4), ValueError, "too few"),
        (np.ones((20, 2, 2, 1)), np.ones(20, int), ValueError, "two classes"),
        (np.ones((20, 2, 2, 1)), np.arange(20) - 1, ValueError, "from -1"),
    ],
)
def test_train_classifier_refuses(images, labels, error, message):
    with pytest.raises(error, match=message):
        features.train_classifier(images, labels)
