"""The directions of screening: kept by content, and never trusted."""

import warnings

import numpy as np
import pytest
from support import holds, normal, on_path

import flowjax as fj
from flowjax.closed_form import basis


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(basis, "_KEEP_ENTRIES", 1)
    return tmp_path / "kept"


@pytest.fixture
def computed(monkeypatch):
    """How often directions were computed."""
    calls = []
    compute = basis._principal_directions
    monkeypatch.setattr(basis, "_principal_directions", lambda *given: calls.append(1) or compute(*given))
    return calls


def build(data):
    return fj.ClosedFormField(data, method="screened")


def test_directions_are_kept_by_content(folder, computed):
    data = normal(0, 97, 20)
    first, again = build(data), build(data.copy())
    assert len(computed) == 1
    assert len(list(folder.iterdir())) == 1
    np.testing.assert_array_equal(first._screen.basis, again._screen.basis)
    build(normal(1, 97, 20))
    assert len(computed) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "other data", "zeros"])
def test_a_damaged_file_is_computed_anew(folder, computed, damage):
    data = normal(0, 97, 20)
    expected = build(data)
    (file,) = folder.iterdir()
    if damage in ("truncated", "empty"):
        file.write_bytes(file.read_bytes()[: 200 if damage == "truncated" else 0])
    else:
        with np.load(file) as stored:
            content = dict(stored)
        content |= {"digest": np.asarray("0")} if damage == "other data" else {"basis": 0 * content["basis"]}
        np.savez(file, **content)
    with pytest.warns(RuntimeWarning, match="cannot be used") as said:
        field = build(data)
    assert len(said) == 1
    assert len(computed) == 2
    np.testing.assert_array_equal(field._screen.basis, expected._screen.basis)
    build(data)  # mended
    assert len(computed) == 2


def test_a_folder_that_cannot_be_written_to_is_done_without(folder, computed):
    folder.write_text("a file in its place")
    with pytest.warns(RuntimeWarning, match="could not be kept"):
        build(normal(0, 97, 20))
    assert folder.read_text() == "a file in its place"


def test_off(folder, monkeypatch):
    monkeypatch.setenv("FLOWJAX_CACHE", "off")
    build(normal(0, 97, 20))
    assert not folder.exists()


def test_directions_decide_nothing_but_speed(monkeypatch):
    """Directions of no use, not even orthonormal, leave every bound true."""
    data = normal(0, 97, 20)
    skewed = np.random.default_rng(3).normal(size=(20, 20)).astype(np.float32) / 4
    monkeypatch.setattr("flowjax.closed_form.screen.basis_of", lambda rows, placement: skewed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in (0.2, 0.9, 0.99):
            holds(data, on_path(data, normal(1, 5, 20), t), t)
