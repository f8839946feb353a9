"""Errors against NumPy, subsets and what is held out, the verdict on curves made by hand, and one run."""

import dataclasses
import functools
import json

import numpy as np
import pytest

import flowjax as fj
from flowjax.experiments import _samples, approximation
from flowjax.models import MLPConfig, UNetConfig

SMALL = approximation.Settings(
    sizes=(2, 10),
    steps=2,
    batch_size=8,
    network="mlp",
    largest_side=4,
    num_pairs=8,
    num_times=4,
    num_samples=8,
    num_held_out=8,
)


def digits(count=60, **changes):
    return fj.data.Dataset("some digits", fj.data.load("digits").images[:count], **changes)


def pairs(rows, count=300):
    rng = np.random.default_rng(1)
    x1 = rows[rng.integers(0, len(rows), count)]
    return rng.normal(size=x1.shape).astype(np.float32), x1


def test_error_of_the_field_itself_is_zero():
    rows = digits(13).images
    field = fj.ClosedFormField(rows)
    x0, x1 = pairs(rows)
    times = np.asarray([0.0, 0.3, 0.7])
    error, size = approximation.errors(field, field, x0, x1, times)
    assert error.shape == size.shape == (3, 300)
    assert (error == 0).all()
    flat = rows.reshape(13, -1).astype(np.float64)
    for t, found in zip(times.astype(np.float32).astype(np.float64), size, strict=True):
        x = (1 - t) * x0.reshape(300, -1) + t * x1.reshape(300, -1)
        logits = -((x[:, None] - t * flat) ** 2).sum(-1) / (2 * (1 - t) ** 2)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        u = (weights / weights.sum(1, keepdims=True) @ flat - x) / (1 - t)
        np.testing.assert_allclose(found, (u**2).sum(1), rtol=1e-3)


def test_error_of_an_offset_is_its_square():
    rows = digits(13).images
    field = fj.ClosedFormField(rows)
    offset = np.random.default_rng(2).normal(size=rows.shape[1:]).astype(np.float32)
    x0, x1 = pairs(rows, 7)
    error, _ = approximation.errors(lambda x, t: field(x, t) + offset, field, x0, x1, np.asarray([0.1, 0.5]))
    np.testing.assert_allclose(error, (offset.astype(np.float64) ** 2).sum(), rtol=1e-4)


def test_error_is_against_the_field_of_the_subset():
    """One row: û is the straight line to it, and the error of another row's line is their distance over 1 − t."""
    rows = digits(2).images
    x0, x1 = pairs(rows[:1], 5)
    other = fj.ClosedFormField(rows[1:])
    error, _ = approximation.errors(other, fj.ClosedFormField(rows[:1]), x0, x1, np.asarray([0.0, 0.5]))
    apart = ((rows[0] - rows[1]) ** 2).sum()
    np.testing.assert_allclose(error, np.outer([apart, 4 * apart], np.ones(5)), rtol=1e-4)


def test_subsets_are_nested_and_held_out_rows_outside():
    dataset = digits(50)
    seen = {row.tobytes() for row in dataset.images}
    assert len(seen) == 50
    rows = _samples.rows_of(dataset, 20, 15, seed=3)
    large = {row.tobytes() for row in rows.train.images}
    small = {row.tobytes() for row in _samples.first(rows.train, 6).images}
    held_out = {row.tobytes() for row in rows.held_out}
    assert (len(small), len(large), len(held_out)) == (6, 20, 15)
    assert small < large <= seen
    assert held_out <= seen - large
    smaller = _samples.rows_of(dataset, 6, 15, seed=3).train.images
    np.testing.assert_array_equal(smaller, rows.train.images[:6])
    assert rows.train.labels is None


def test_test_rows_are_held_out():
    whole = fj.data.load("digits").images
    dataset = fj.data.Dataset("both", whole[:20], test_images=whole[100:130])
    rows = _samples.rows_of(dataset, 20, 10, seed=0)
    assert {row.tobytes() for row in rows.held_out} <= {row.tobytes() for row in whole[100:130]}
    assert len(rows.held_out) == 10
    assert rows.words == "the data set's own test rows"


def test_coarser():
    pixels = np.arange(2 * 12 * 12, dtype=np.uint8).reshape(2, 12, 12, 1)
    found = _samples.coarser(fj.data.Dataset("x", pixels, test_images=pixels[:1]), 6)
    assert found.event_shape == (6, 6, 1)
    assert found.name == "x-6x6"
    np.testing.assert_allclose(found.images[0, 0, 1, 0], pixels[0, :2, 2:4].mean() / 127.5 - 1, rtol=1e-6)
    assert found.test_images is not None
    np.testing.assert_array_equal(found.test_images, found.images[:1])
    assert _samples.coarser(found, 4).event_shape == (6, 6, 1)  # halved once more its sides would be odd


def test_networks():
    dataset = digits(3)
    common = functools.partial(
        _samples.network_config, dataset, steps=40_000, batch_size=16, channels=8, seed=1
    )
    config = common(network="unet")
    assert (config.batch_size, config.target.name, config.data.horizontal_flip) == (16, "conditional", False)
    assert isinstance(config.model, UNetConfig)
    assert config.model.channels == 8
    assert common(network="mlp").model == MLPConfig(event_shape=(8, 8, 1))
    paper = common(network="paper")
    assert isinstance(paper.model, UNetConfig)
    assert paper.model.channels == 128
    assert paper.optimizer.learning_rate == 2e-4
    assert paper.optimizer.warmup_steps == 5000
    assert _samples._paper_network((32, 32, 3)) == UNetConfig.paper()
    assert _samples._paper_network((28, 28, 1)).channel_mult == (1, 2, 2)


TIMES = np.asarray([0.1, 0.3, 0.5, 0.7, 0.9])
FOLLOWS = np.asarray([0.01, 0.02, 0.01, 0.02, 0.1])
FAILS = np.asarray([0.02, 0.2, 0.1, 0.05, 0.3])


def test_failures():
    found = approximation.failures(TIMES, FAILS)
    assert found == {"start": 0.02, "early": 0.2, "early_at": 0.3, "between": 0.05, "late": 0.3}
    late = approximation.failures(TIMES, np.asarray([0.1, 0.2, 0.3, 0.9, 0.5]))
    assert (late["early"], late["early_at"], late["between"]) == (0.3, 0.5, 0.3)


def judged(curves, memorised, dimension=64):
    by_size = (dict(zip((10, 100), values, strict=True)) for values in (curves, memorised))
    return approximation.verdict(TIMES, *by_size, dimension)


def test_verdict():
    found = judged((FOLLOWS, FAILS), (1.0, 0.1))
    assert all(found.values())
    assert (found["early_growth"], found["late_growth"]) == (pytest.approx(10), pytest.approx(3))
    wrong = judged((FAILS, FOLLOWS), (0.6, 0.5))
    assert wrong["agrees"] is False
    assert wrong["fails_early"]
    assert not wrong["failure_grows"]
    assert not wrong["only_small_are_memorised"]
    assert judged((FOLLOWS, FAILS), (0.4, 0.1))["agrees"] is None
    assert judged((FOLLOWS + 0.3, FAILS), (0.9, 0.1))["agrees"] is None


def test_verdict_where_the_failures_run_into_each_other():
    """Told apart by how much they grow with the rows, and that in few dimensions only."""
    merged = np.asarray([0.02, 0.1, 0.2, 0.3, 0.4])
    found = judged((FOLLOWS, merged), (1.0, 0.1))
    assert found["agrees"]
    assert not found["early_is_a_peak"]
    assert judged((FOLLOWS, merged), (1.0, 0.1), dimension=3072)["agrees"] is False
    assert judged((FOLLOWS, FAILS), (1.0, 0.1), dimension=3072)["agrees"]
    assert not judged((FOLLOWS, 3 * FOLLOWS + 0.1 * TIMES), (1.0, 0.1))["fails_early"]


def test_bad_input(tmp_path):
    def refused(dataset, words, **changes):
        settings = dataclasses.replace(SMALL, **changes)
        with pytest.raises(ValueError, match=words):
            fj.experiments.run("approximation", dataset, settings=settings, out=tmp_path / "run")

    refused(
        digits(),
        r"needs 108 rows, 100 to train on and 8 others to hold out, and .* has 60; .*--sizes",
        sizes=(10, 100),
    )
    refused(digits(60, test_images=digits(3).images), "needs 8 held-out rows, and .* has 3")
    refused(digits(60, test_images=digits(9).images), "needs 100 rows, 100 to train on, and", sizes=(10, 100))
    refused(digits(), "two increasing sizes", sizes=(10, 10))
    refused(digits(), "two increasing sizes", sizes=(10,))
    refused(digits(), "four times", num_times=3)
    refused(digits(), "2 samples", num_samples=1)
    refused(fj.data.load("two-moons"), "with even sides, .*; for those take --network mlp", network="unet")
    refused(digits(), "unknown network 'unit'; did you mean 'unet'", network="unit")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["approximation", "hybrid"])
def test_a_missing_feature_network_is_told_before_training(tmp_path, monkeypatch, name):
    def missing():
        raise RuntimeError("not installed")

    monkeypatch.setattr(fj.metrics.features, "EfficientNetLite0", missing)
    dataset = fj.data.Dataset("colours", np.zeros((20, 16, 16, 3), np.uint8))
    module = fj.experiments.module(name)
    changes = {"num_held_out": 5, "pretrained_features": True}
    changes |= {"sizes": (2, 10)} if name == "approximation" else {"num_rows": 10}
    settings = dataclasses.replace(module.PRESETS["quick"], **changes)
    with pytest.raises(RuntimeError, match="not installed"):
        fj.experiments.run(name, dataset, settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run(tmp_path, monkeypatch):
    """On points in the plane; the hybrid's run is on pictures."""
    out, points = tmp_path / "run", fj.data.load("two-moons", num_points=40)
    of_samples, calls = approximation._of_samples, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return of_samples(*arguments)

    monkeypatch.setattr(approximation, "_of_samples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fj.experiments.run("approximation", points, preset="quick", settings=SMALL, out=out)
    kept = sorted((out / "runs").glob("*/metrics.jsonl"))
    before = [file.stat().st_mtime_ns for file in kept]
    assert len(kept) == 2
    result = fj.experiments.run("approximation", points, preset="quick", settings=SMALL, out=out)
    assert [file.stat().st_mtime_ns for file in kept] == before
    assert len(calls) == 3
    assert result["agrees"] is None
    assert any("Trained too little" in note for note in result["notes"])
    assert "Held out: 8 of the rows that no network was trained on." in result["notes"]
    found = result["findings"]
    assert found["memorised_1/3"].keys() == {"2", "10"}
    assert found["held_out"] == "the rows that no network was trained on"
    for size in ("2", "10"):
        # a network is zero before training, and two steps of a warm-up leave it near that
        assert found["relative_error_mean"][size] == pytest.approx(1, abs=0.1)
        assert len(result["curves"][f"relative error, {size} rows"]["value"]) == 4
    assert json.loads((out / "result.json").read_text())["findings"] == found
    for name in ("error", "distance", "frechet", "memorised"):
        assert (out / f"{name}.png").stat().st_size > 1000
