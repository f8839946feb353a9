"""What a Dataset accepts, keeps and refuses."""

import dataclasses
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.data import Dataset

ROWS = np.arange(24, dtype=np.uint8).reshape(4, 2, 3, 1)
LABELS = np.array([0, 2, 1, 0])


def make(**changes) -> Dataset:
    return Dataset(**({"name": "toy", "images": ROWS, "labels": LABELS} | changes))


def test_keeps_pixels_and_counts_classes():
    data = make()
    assert data.images.dtype == np.uint8
    assert data.labels.dtype == np.int32
    assert (data.num_points, data.event_shape, data.num_classes) == (4, (2, 3, 1), 3)
    np.testing.assert_array_equal(data.images, ROWS)
    assert repr(data) == "Dataset('toy': uint8[4, 2, 3, 1], 3 classes)"


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16, np.float32])
def test_real_numbers_become_float32_without_change(dtype):
    values = np.array([[0.5, -1.0], [2.0, 0.0]])  # exact in every one of them
    data = make(images=values.astype(dtype), labels=None)
    assert data.images.dtype == np.float32
    np.testing.assert_array_equal(data.images, values)
    assert data.num_classes is None


def test_transposed_input_is_stored_in_row_order():
    values = np.arange(12.0).reshape(3, 4).T
    data = make(images=values, labels=None)
    assert data.images.flags.c_contiguous
    np.testing.assert_array_equal(data.images, values)


def test_names_and_test_labels_decide_the_number_of_classes():
    assert make(class_names=["a", "b", "c", "d"]).num_classes == 4
    assert make(test_images=ROWS[:1], test_labels=[6]).num_classes == 7


def test_cannot_be_changed():
    data = make()
    with pytest.raises(ValueError, match="read-only"):
        data.images[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"
    ROWS[0, 0, 0, 0] += 0  # the caller's array stays writeable


def test_fingerprint_follows_the_training_rows_and_nothing_else():
    base = make()
    assert re.fullmatch("[0-9a-f]{32}", base.fingerprint)
    assert make(name="other", test_images=ROWS[:1], test_labels=[0]).fingerprint == base.fingerprint
    changed = ROWS.copy()
    changed[3, 1, 2, 0] += 1
    others = [
        make(images=changed),
        make(images=ROWS.reshape(4, 3, 2, 1)),
        make(images=ROWS.astype(np.float32)),
        make(labels=[0, 2, 1, 1]),
        make(labels=None),
        make(class_names=("a", "b", "c", "d")),
        make(images=ROWS[:3], labels=LABELS[:3]),
    ]
    prints = [base.fingerprint, *(other.fingerprint for other in others)]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"images": np.zeros((0, 2))}, ValueError, r"at least one row, got shape \(0, 2\)"),
        ({"images": np.zeros(4)}, ValueError, r"shape \[n, \*event\]"),
        ({"images": [[1.0], [np.nan], [np.nan]]}, ValueError, "2 of 3 rows, the first is row 1"),
        ({"images": [[1.0], [-np.inf]]}, ValueError, "the first is row 1"),
        ({"images": [[np.inf], [-np.inf]]}, ValueError, "2 of 2 rows"),
        ({"images": [[1e300], [1.0]]}, ValueError, "too large for float32 in 1 of 2 rows"),
        ({"images": np.ones((3, 2), complex)}, TypeError, "complex"),
        ({"images": np.array([["a"], ["b"]])}, TypeError, "not numbers"),
        ({"images": np.array([[None], [1]], object)}, TypeError, "not numbers"),
        ({"images": [[1.0], [1.0, 2.0]]}, ValueError, "ragged"),
        ({"images": np.ones((3, 2), np.int64)}, TypeError, "int64; store pixels 0..255 as uint8"),
        ({"images": np.ones((3, 2), bool)}, TypeError, "bool"),
        ({"labels": [0.0, 1.0, 2.0, 1.0]}, TypeError, "labels must be integers, got dtype float64"),
        ({"labels": ["a", "b", "c", "d"]}, TypeError, "labels must be integers"),
        ({"labels": [True] * 4}, TypeError, "labels must be integers"),
        ({"labels": [0, 1]}, ValueError, r"shape \(4,\), got shape \(2,\)"),
        ({"labels": [[0, 1, 2, 1]]}, ValueError, r"got shape \(1, 4\)"),
        ({"labels": [0, -1, 2, 1]}, ValueError, "from -1 to 2"),
        ({"labels": [0, 2**31, 2, 1]}, ValueError, "from 0 to 2147483648"),
        ({"class_names": ("a", "b")}, ValueError, "labels reach 2 but there are only 2 class_names"),
        ({"class_names": "abc"}, TypeError, "single text"),
        ({"class_names": ()}, ValueError, "empty"),
        ({"class_names": ("a", "b", "a")}, ValueError, "'a' twice"),
        ({"class_names": ("a", "b ", "c")}, ValueError, "'b '"),
        (
            {"class_names": ("a", "b", "c"), "labels": None},
            ValueError,
            "names 3 classes but there are no labels",
        ),
        ({"test_images": ROWS[:, :1]}, ValueError, r"test_images are uint8 of shape \(1, 3, 1\)"),
        ({"test_images": ROWS.astype(float)}, ValueError, "test_images are float32"),
        ({"test_labels": [0]}, ValueError, "without test_images"),
        ({"test_images": ROWS[:1], "test_labels": [0], "labels": None}, ValueError, "without labels"),
        ({"test_images": ROWS[:1], "test_labels": [0, 1]}, ValueError, r"test_labels .* \(1,\)"),
    ],
)
def test_refuses(changes, error, words):
    with pytest.raises(error, match=words) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_large_finite_values_are_not_mistaken_for_infinity():
    values = np.full((4, 8), 3e38)
    np.testing.assert_array_equal(make(images=values).images, values.astype(np.float32))


def test_rows_by_number():
    picked = make().rows(np.array([3, 1, 3]))
    np.testing.assert_array_equal(picked["image"], ROWS[[3, 1, 3]])
    np.testing.assert_array_equal(picked["label"], [0, 2, 0])
    assert set(make(labels=None).rows(np.array([0]))) == {"image"}


def test_importing_the_package_is_cheap():
    heavy = "sklearn PIL grain tensorflow_datasets matplotlib rich tyro"
    code = f"import sys, flowjax.data; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
