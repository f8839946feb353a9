"""References kept by content, scores that say what they are of, and the same numbers from any number of processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from flowjax.metrics import (
    FeatureSet,
    FrechetStatistics,
    Reference,
    SampleScore,
    density_coverage,
    features,
    frechet_distance,
    kernel_distance,
    memorised_fraction,
    merge_processes,
    nearest_distances,
    precision_recall,
)

RNG = np.random.default_rng(0)


class Projection:
    """A feature space that counts its calls."""

    name = "projection to 6 numbers"
    preprocessing = "none"
    fingerprint: str | None = "projection 1"

    def __init__(self):
        self.calls = 0
        self.matrix = np.random.default_rng(7).normal(size=(12, 6))

    def features(self, images):
        self.calls += 1
        return (np.asarray(images).reshape(len(images), -1) @ self.matrix).astype(np.float32)


def pictures(count, scale=1.0):
    return (scale * RNG.normal(size=(count, 2, 2, 3))).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_all_measures_are_those_of_their_functions():
    network = Projection()
    images, samples = pictures(60), pictures(50, 0.7)
    samples[:5] = images[:5]
    reference = Reference.of(images, network, name="noise train")
    empty = SampleScore.against(reference)
    score = empty.update(samples[:20]).merge(empty.update(samples[20:21])).update(samples[21:])
    scores = score.compute()
    x, y = network.features(samples), network.features(images)
    nearest, second, _ = nearest_distances(x, y)
    expected = {
        "frechet_distance": frechet_distance(x, y),
        "kernel_distance": kernel_distance(x, y).value,
        "kernel_distance_standard_error": kernel_distance(x, y).standard_error,
        **precision_recall(x, y)._asdict(),
        **density_coverage(x, y)._asdict(),
        "memorised_fraction_1/3": memorised_fraction(nearest, second, 1 / 3),
        "memorised_fraction_2/3": memorised_fraction(nearest, second, 2 / 3),
    }
    assert scores.values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(scores.values[name], value, rtol=1e-5, err_msg=name)
    assert scores.values["memorised_fraction_1/3"] >= 0.1
    assert score.compute(["frechet"]).values.keys() == {"frechet_distance"}
    np.testing.assert_array_equal(score.nearest(2).index, np.argsort(cdist(x, y), axis=1)[:, :2])


def test_numbers_carry_what_they_are_of():
    reference = Reference.of(pictures(40), Projection(), name="noise train")
    scores = SampleScore.against(reference).update(pictures(5)).compute(["frechet"])
    stored = json.loads(json.dumps(scores.as_dict()))
    assert stored["network"] == "projection to 6 numbers"
    assert stored["preprocessing"] == "none"
    assert (stored["num_samples"], stored["num_reference"], stored["reference"]) == (5, 40, "noise train")
    assert stored["reference_content"] == reference.content
    assert not stored["published_network"]
    no_fid, few = stored["notes"]
    assert no_fid.startswith("no FID")
    assert few.startswith("5 samples for 6 features")
    said = str(scores)
    for part in ("5 samples against noise train", "projection to 6", "Fréchet distance", *scores.notes):
        assert part in said
    assert "inception" not in said.lower()


def test_published_features_say_when_the_number_of_samples_is_another():
    network = Projection()
    network.published = True  # pyright: ignore[reportAttributeAccessIssue]
    reference = Reference.of(pictures(40), network, name="noise train")
    scores = SampleScore.against(reference).update(pictures(30)).compute(["frechet"])
    assert scores.published_network
    assert scores.notes == ("published FIDs are of 50000 samples; with 30 they come out different",)


def test_features_are_kept_by_content_and_network(folder):
    network, images = Projection(), pictures(30)
    first = Reference.of(images, network, name="a")
    again = Reference.of(images.copy(), network, name="b")
    assert network.calls == 1
    assert (again.name, again.content) == ("b", first.content)
    np.testing.assert_array_equal(again.features.values, first.features.values)
    np.testing.assert_array_equal(again.frechet.scatter, first.frechet.scatter)
    assert again.frechet.count == 30
    for other in (images[::-1], images[:29], images.astype(np.float64)):
        assert Reference.of(other, network, name="a").content != first.content
    assert network.calls == 4
    network.fingerprint = "projection 2"
    Reference.of(images, network, name="a")
    assert network.calls == 5
    assert len(list(folder.iterdir())) == 5
    network.fingerprint = None
    Reference.of(images, network, name="a")
    assert len(list(folder.iterdir())) == 5


@pytest.mark.parametrize("damage", ["truncated", "empty", "other rows", "NaN"])
def test_a_damaged_file_is_computed_anew(folder, damage):
    network, images = Projection(), pictures(30)
    expected = Reference.of(images, network, name="a")
    (file,) = folder.iterdir()
    if damage in ("truncated", "empty"):
        file.write_bytes(file.read_bytes()[: 200 if damage == "truncated" else 0])
    else:
        with np.load(file) as stored:
            content = dict(stored)
        values = content["features"]
        np.savez(file, **(content | {"features": values[1:] if damage == "other rows" else values * np.nan}))
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        found = Reference.of(images, network, name="a")
    np.testing.assert_array_equal(found.features.values, expected.features.values)
    Reference.of(images, network, name="a")  # mended
    assert network.calls == 2


def test_a_folder_that_cannot_be_written_to_is_done_without(folder):
    folder.write_text("a file in its place")
    with pytest.warns(RuntimeWarning, match="could not be kept"):
        Reference.of(pictures(9), Projection(), name="a")
    assert folder.read_text() == "a file in its place"


def test_pixels_and_classifiers_are_not_kept(folder):
    reference = Reference.of(pictures(9), features.PixelFeatures(), name="a")
    assert not folder.exists()
    score = SampleScore.against(reference).update(pictures(9)).compute(["frechet"])
    assert score.network == "pixels"


def test_refuses():
    network = Projection()
    reference = Reference.of(pictures(9), network, name="a")
    score = SampleScore.against(reference)
    with pytest.raises(ValueError, match="two pictures at least"):
        Reference.of(pictures(1), network, name="a")
    with pytest.raises(ValueError, match="unknown measure 'fid'"):
        score.compute(["fid"])
    with pytest.raises(ValueError, match="at least 2 samples"):
        score.update(pictures(1)).compute()
    with pytest.raises(ValueError, match="at least 6 samples"):
        score.update(pictures(4)).compute(["density-coverage"])
    with pytest.raises(ValueError, match="different references"):
        score.merge(SampleScore.against(Reference.of(pictures(9), network, name="a")))


PROCESS = """
import sys
import jax, numpy as np
jax.distributed.initialize("127.0.0.1:" + sys.argv[2], num_processes=2, process_id=int(sys.argv[1]))
from flowjax.metrics import FeatureSet, FrechetStatistics, merge_processes
rows = np.random.default_rng(5).normal(size=(70, 4))
mine = rows[:20] if sys.argv[1] == "0" else rows[20:]
features = merge_processes(FeatureSet.empty(4).update(mine))
frechet = merge_processes(FrechetStatistics.empty(4).update(mine))
if sys.argv[1] == "1":
    np.savez(sys.argv[3], values=features.values, count=frechet.count, mean=frechet.mean, scatter=frechet.scatter)
jax.distributed.shutdown()
"""


def test_two_processes_know_the_whole(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = str(Path(__file__).parents[2])
    env = {
        **os.environ,
        "PYTHONPATH": root,
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    out = tmp_path / "whole.npz"
    children = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(i), port, str(out)], env=env) for i in range(2)
    ]
    try:
        assert [child.wait(300) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
            child.wait()
    rows = np.random.default_rng(5).normal(size=(70, 4))
    with np.load(out) as found:
        np.testing.assert_array_equal(found["values"], rows.astype(np.float32))
        assert int(found["count"]) == 70
        np.testing.assert_allclose(found["mean"], rows.mean(axis=0), rtol=1e-12)  # float64 all the way
        np.testing.assert_allclose(found["scatter"], 69 * np.cov(rows.T), rtol=1e-12)


def test_one_process_merges_nothing():
    for statistics in (FeatureSet.empty(3), FrechetStatistics.empty(3)):
        assert merge_processes(statistics) is statistics
