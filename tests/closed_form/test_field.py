"""Construction and bad input: one sentence with the values, before any work."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support import normal

import flowjax as fj
from flowjax.closed_form.field import have_tensor_cores

GOOD = normal(0, 20, 4)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (np.zeros((0, 4), np.float32), ValueError, "at least one row"),
        (np.zeros(4, np.float32), ValueError, "shape"),
        (np.where(np.arange(80).reshape(20, 4) == 7, np.nan, GOOD), ValueError, "NaN"),
        (np.where(np.arange(80).reshape(20, 4) == 7, np.inf, GOOD), ValueError, "inf"),
        (GOOD * np.float32(1e18), ValueError, "norm above 1e\\+12"),
        (GOOD.astype(np.complex64), TypeError, "complex64"),
        (np.array([["a", "b"]]), TypeError, "dtype"),
        (np.zeros((3, 4), np.int64), TypeError, "int64"),
    ],
)
def test_data(data, error, match):
    with pytest.raises(error, match=match):
        fj.ClosedFormField(data)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (np.full(20, -1.0), "non-negative"),
        (np.zeros(20), "all zero"),
        (np.full(20, np.nan), "finite"),
        (np.ones(19), "20 rows"),
        (np.full(20, np.inf), "from inf to inf"),
    ],
)
def test_weights(weights, match):
    with pytest.raises(ValueError, match=match):
        fj.ClosedFormField(GOOD, weights=weights)


def test_labels():
    with pytest.raises(TypeError, match="integers"):
        fj.ClosedFormField(GOOD, labels=np.zeros(20))
    with pytest.raises(ValueError, match="20 rows"):
        fj.ClosedFormField(GOOD, labels=np.zeros(19, int))
    with pytest.raises(ValueError, match="negative"):
        fj.ClosedFormField(GOOD, labels=np.full(20, -1))
    field = fj.ClosedFormField(GOOD, labels=np.arange(20) % 2)
    assert field.num_classes == 2
    with pytest.raises(ValueError, match=r"0\.\.1"):
        field(GOOD, 0.5, labels=2)
    with pytest.raises(TypeError, match="integers"):
        field(GOOD, 0.5, labels=0.5)
    with pytest.raises(ValueError, match="has none"):
        fj.ClosedFormField(GOOD)(GOOD, 0.5, labels=0)


@pytest.mark.parametrize("t", [1.0, -0.1, np.nan, np.linspace(0, 1, 20), 1 - 1e-9])
def test_time(t):
    """1 − 1e-9 is 1 in the queries' float32: evaluating it elsewhere would certify another time."""
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        fj.ClosedFormField(GOOD)(GOOD, t)


@pytest.mark.parametrize("t", ["late", 0.5 + 0j, None, True])
def test_times_that_are_no_numbers(t):
    with pytest.raises(TypeError, match="t must be real numbers"):
        fj.ClosedFormField(GOOD)(GOOD, t)


def test_times_that_could_go_with_either_batch_axis():
    field = fj.ClosedFormField(GOOD)
    x, t = normal(1, 3, 3, 4), np.float32([0.1, 0.5, 0.8])
    with pytest.raises(ValueError, match="first or the last axes"):
        field(x, t)
    rows = field(x, t[:, None])
    mean = field.posterior(x, t[:, None]).mean
    converted = field.path.convert(rows, x, t[:, None], source="velocity", target="data")
    np.testing.assert_allclose(converted, mean, rtol=1e-4, atol=1e-4)


def test_classes_without_points_or_weight():
    labels = np.where(np.arange(20) % 2, 3, 0)
    field = fj.ClosedFormField(GOOD, labels=labels, weights=np.where(labels == 3, 0, 1.0))
    for label in (1, 3, np.array([0, 2])):
        with pytest.raises(ValueError, match=r"class \d has no points of positive weight"):
            field(GOOD[:2], 0.5, labels=label)
    with pytest.raises(ValueError, match="labels must lie in"):
        field(GOOD[:2], 0.5, labels=2**32)
    assert np.all(np.isfinite(field(GOOD, 0.5, labels=0)))


def test_queries():
    field = fj.ClosedFormField(GOOD)
    with pytest.raises(ValueError, match="event shape"):
        field(normal(1, 3, 5), 0.5)
    with pytest.raises(TypeError, match="floating point"):
        field(np.zeros((3, 4), np.int32), 0.5)
    with pytest.raises(ValueError, match="broadcast"):
        field(GOOD, np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "dens"}, ValueError, "did you mean 'dense'"),
        ({"precision": "half"}, ValueError, "float64"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"block_size": 0}, ValueError, "block_size"),
        ({"block_size": 2.5}, ValueError, "whole number"),
        ({"block_size": True}, ValueError, "whole number"),
        ({"tolerance": "tight"}, ValueError, "tolerance"),
        ({"path": "linear"}, TypeError, "Linear"),
        ({"horizontal_flip": True}, ValueError, "height, width"),
    ],
)
def test_options(options, error, match):
    with pytest.raises(error, match=match):
        fj.ClosedFormField(GOOD, **options)


def test_float64_input_is_rounded_and_repr_says_what_it_is():
    field = fj.ClosedFormField(GOOD.astype(np.float64))
    assert field.data.dtype == np.float32
    assert "20 points of shape (4,)" in repr(field)
    assert field.num_points == 20
    assert field.event_shape == (4,)


def test_rows_by_number():
    data = np.random.default_rng(0).integers(0, 256, (20, 3, 2, 1), np.uint8)
    expected = fj.closed_form.to_float(data)
    field = fj.ClosedFormField(data)
    index = np.array([[1, 19], [0, 1]], np.uint8)
    np.testing.assert_array_equal(field.rows(index), expected[index])
    found = jax.jit(lambda field, index: field.rows(index))(field, np.array([5, -1, 20]))
    np.testing.assert_array_equal(found[0], expected[5])
    assert np.all(np.isnan(found[1:]))  # no points, and no error that a trace could raise
    flipped = fj.ClosedFormField(data, horizontal_flip=True)
    nearest = flipped.posterior(expected[:4, :, ::-1], 0.999).argmax
    np.testing.assert_array_equal(flipped.rows(nearest), expected[:4, :, ::-1])
    for wrong in (20, -1):
        with pytest.raises(ValueError, match=rf"must lie in 0\.\.19, got values from {wrong} to {wrong}"):
            field.rows(wrong)
    with pytest.raises(TypeError, match="integers, got float"):
        field.rows(0.0)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_rows_by_number_of_sharded_data(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    data = normal(0, 20, 3)
    field = fj.ClosedFormField(jax.device_put(data, jax.NamedSharding(mesh, jax.P("data"))))
    np.testing.assert_array_equal(field.rows([3, 19, 0]), data[[3, 19, 0]])


def test_tensor_cores_are_those_of_nvidia_from_ampere_on():
    """A T4 of Colab is not among them, nor another maker's GPU, whose devices say "gpu" too."""

    def device(platform, kind, capability=None):
        return SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)

    h200, t4 = device("gpu", "NVIDIA H200", "9.0"), device("gpu", "NVIDIA Tesla T4", "7.5")
    others = device("gpu", "AMD Instinct MI300X", "gfx942"), device("cpu", "cpu"), device("tpu", "TPU v5e")
    assert have_tensor_cores([h200, device("gpu", "NVIDIA A100-SXM4-40GB", "8.0")])
    assert not any(have_tensor_cores([each]) for each in (t4, *others))
    assert not have_tensor_cores([h200, t4])
