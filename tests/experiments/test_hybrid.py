"""Both ends of the hybrid, the verdict on curves made by hand, when û knows its row, and one run."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image

import flowjax as fj
from flowjax.experiments import _samples, hybrid

SMALL = hybrid.Settings(
    taus=(0.0, 0.5, 1.0),
    num_rows=12,
    steps=2,
    batch_size=8,
    network="mlp",
    num_samples=8,
    num_columns=3,
    num_held_out=8,
)


def digits(count=60, **changes):
    return fj.data.Dataset("some digits", fj.data.load("digits").images[:count], **changes)


@pytest.mark.slow
def test_both_ends():
    """tau = 1 gives the samples of û, which are rows; tau = 0 those of the other field; the rest neither."""
    rows = digits(20).images
    field, other = fj.ClosedFormField(rows[:10]), fj.ClosedFormField(rows[10:])
    noise = _samples.prior(rows.shape[1:], 5, seed=0)
    before, after = _samples.draw(field, noise), _samples.draw(other, noise)
    np.testing.assert_allclose(hybrid.samples_at(field, other, 1.0, noise), before, atol=1e-4)
    np.testing.assert_allclose(hybrid.samples_at(field, other, 0.0, noise), after, atol=1e-4)
    assert (fj.metrics.nearest_distances(before, rows[:10]).nearest < 1e-3).all()
    assert (fj.metrics.nearest_distances(after, rows[10:]).nearest < 1e-3).all()
    middle = hybrid.samples_at(field, other, 0.5, noise)
    assert np.abs(middle - before).max() > 0.1


def test_noise_and_blocks():
    shape = (8, 8, 1)
    np.testing.assert_array_equal(_samples.prior(shape, 5, 3), _samples.prior(shape, 5, 3))
    noise = _samples.prior((2,), 300, 0)
    samples = _samples.draw(lambda x, t: 0 * x + 3, noise)  # two blocks, the second filled up
    np.testing.assert_allclose(samples, noise + 3, atol=1e-4)


def test_when_the_field_knows_its_row():
    """Two rows at ±m: the weight of one is 1/(1 + exp(−2 t m·x/(1 − t)²)) and passes .9 where that product is log 9."""
    m = np.asarray([[1.0, 0.0]], np.float32)
    times, known = hybrid.one_row_by_time(fj.ClosedFormField(np.concatenate([m, -m])), 4000, 0, num_times=5)
    np.testing.assert_allclose(times, [0, 0.2, 0.4, 0.6, 0.8])
    rng = np.random.default_rng(1)
    for t, share in zip(times[1:], known[1:], strict=True):
        x = t + (1 - t) * rng.normal(size=100_000)
        assert share == pytest.approx(np.mean(np.abs(2 * t * x / (1 - t) ** 2) > np.log(9)), abs=0.03)
    assert known[0] == 0


def test_verdict():
    taus = np.asarray([0.0, 0.2, 0.4, 0.6, 1.0])
    distance, same = np.asarray([2.0, 1.9, 0.2, 0.1, 0.0]), np.asarray([0.1, 0.2, 0.9, 1.0, 1.0])
    facts: dict[str, Any] = {"held_out": 2.1, "known_at": 0.3, "dimension": 3072}
    found = hybrid.verdict(taus, distance, same, **facts)
    assert found == {"new_until": 0.2, "copied_from": 0.4, "near_from": 0.4, "agrees": True}
    late = hybrid.verdict(taus, np.asarray([2.0, 1.9, 1.8, 0.1, 0.0]), same, **facts)
    assert (late["new_until"], late["near_from"], late["agrees"]) == (0.4, 0.6, False)
    # in few dimensions û itself knows late
    late = hybrid.verdict(
        taus, np.asarray([2.0, 1.9, 1.8, 0.1, 0.0]), same, **facts | {"dimension": 64, "known_at": 0.5}
    )
    assert late["agrees"]
    soon = hybrid.verdict(taus, np.asarray([2.0, 0.5, 0.1, 0.1, 0.0]), same, **facts)
    assert (soon["new_until"], soon["agrees"]) == (0.0, False)
    other_row = hybrid.verdict(taus, distance, np.asarray([0.1, 0.1, 0.1, 0.1, 1.0]), **facts)
    assert (other_row["copied_from"], other_row["agrees"]) == (1.0, False)
    noisy = hybrid.verdict(taus, distance, same, **facts | {"held_out": 1.0})
    copies = hybrid.verdict(taus, np.asarray([0.1, 0.1, 0.1, 0.1, 0.09]), same, **facts)
    off = hybrid.verdict(taus, np.asarray([2.0, 1.9, 1.8, 1.7, 0.0]), same, **facts)
    assert noisy["agrees"] is copies["agrees"] is off["agrees"] is None


def test_bad_input(tmp_path):
    def refused(dataset, words, **changes):
        settings = dataclasses.replace(SMALL, **changes)
        with pytest.raises(ValueError, match=words):
            fj.experiments.run("hybrid", dataset, settings=settings, out=tmp_path / "run")

    refused(
        digits(),
        r"needs 61 rows, 53 to train on and 8 others to hold out, .* has 60; .*--num-rows",
        num_rows=53,
    )
    refused(digits(10), r"needs 11 rows, .*--num-held-out", num_rows=None)
    refused(digits(), "3 rows at least", num_rows=2)
    for taus in ((0.0, 1.0), (0.1, 0.5, 1.0), (0.0, 0.5, 0.9), (0.0, 0.5, 0.4, 1.0)):
        refused(digits(), "three increasing taus or more, from 0 to 1", taus=taus)
    refused(digits(), "one column", num_columns=0)
    refused(fj.data.load("two-moons"), "take --network mlp", network="unet")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run(tmp_path, monkeypatch):
    """On pixels as they are stored, with test rows."""
    pixels = np.round((digits().images + 1) * 127.5).astype(np.uint8)
    dataset = fj.data.Dataset("pixels", pixels[:20], test_images=pixels[20:])
    out = tmp_path / "run"
    whole, taus = hybrid._at, []

    def interrupted(field, velocity, tau, noise, images):
        taus.append(tau)
        if len(taus) == 2:
            raise KeyboardInterrupt
        return whole(field, velocity, tau, noise, images)

    monkeypatch.setattr(hybrid, "_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fj.experiments.run("hybrid", dataset, preset="quick", settings=SMALL, out=out)
    result = fj.experiments.run("hybrid", dataset, preset="quick", settings=SMALL, out=out)
    assert taus == [0.0, 0.5, 0.5, 1.0]
    found = result["findings"]
    assert found["num_points"] == 12
    assert found["dimension"] == 64
    assert found["held_out"] == "the data set's own test rows"
    assert found["same_row_as_closed_form"]["1"] == 1
    assert found["memorised_1/3"]["1"] == 1
    assert found["cosine_with_closed_form"]["1"] == pytest.approx(1)
    assert found["nearest_distance_median"]["1"] < 1e-3 < found["nearest_distance_median"]["0"]
    # a network that has learned nothing leaves the noise as it is
    assert result["agrees"] is None
    noise = _samples.prior((8, 8, 1), 8, 0)
    with np.load(out / "parts" / "tau-0.npz") as part:
        np.testing.assert_allclose(part["samples"], noise, atol=0.2)
    page = (out / "report.html").read_text()
    for name in ("distance", "copies", "frechet"):
        assert (out / f"{name}.png").stat().st_size > 1000
    assert "from top to bottom tau = 0, 0.5, 1" in page
    sheet = np.asarray(Image.open(out / "samples.png"))
    assert sheet.shape == (4 * 66 + 2, 3 * 66 + 2, 3)  # three taus and the rows; three noises
    np.testing.assert_allclose(sheet[2 * 66 + 2 : 3 * 66], sheet[3 * 66 + 2 : 4 * 66], atol=2)
