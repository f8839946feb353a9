"""The comparison of targets end to end on a small scale, the rule behind its verdict, and what it refuses."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

import flowjax as fj
from flowjax import models
from flowjax.cli import main
from flowjax.experiments import targets
from flowjax.training import RunDirectory, loop

TINY = dataclasses.replace(
    targets.PRESETS["quick"],
    empirical=(7,),
    coupled=True,
    steps=4,
    num_samples=16,
    batch_size=8,
    timed_rounds=3,
)


def digits(count=60):
    whole = fj.data.load("digits")
    return fj.data.Dataset("some digits", whole.images[:count])


@pytest.fixture
def small_network(monkeypatch):
    """An MLP in the U-Net's place: the same experiment, compiled in seconds."""
    build = targets.configured

    def configured(dataset, **options):
        model = models.MLPConfig(event_shape=dataset.event_shape, width=16)
        return dataclasses.replace(build(dataset, **options), model=model)

    monkeypatch.setattr(targets, "configured", configured)


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_end_to_end_and_going_on(tmp_path, monkeypatch):
    """Interrupted before the exact target, then finished: numbers in every place, and nothing done twice."""
    out, train = tmp_path / "run", targets.train_to_the_end

    def interrupted(work, name, *args, **options):
        if name == "exact-0":
            raise KeyboardInterrupt
        return train(work, name, *args, **options)

    monkeypatch.setattr(targets, "train_to_the_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fj.experiments.run("targets", digits(), preset="quick", settings=TINY, out=out)
    before = {name: (out / "runs" / name / "metrics.jsonl").read_bytes() for name in ("CFM-0", "EFM-7-0")}
    times = (out / "parts" / "step-times.npz").read_bytes()
    monkeypatch.setattr(targets, "train_to_the_end", train)
    result = fj.experiments.run("targets", digits(), preset="quick", settings=TINY, out=out)
    assert (out / "parts" / "step-times.npz").read_bytes() == times
    for name, content in before.items():
        assert (out / "runs" / name / "metrics.jsonl").read_bytes() == content

    names = ["CFM", "EFM-7", "exact", "OT-CFM"]
    found, curves = result["findings"], result["curves"]
    assert result["agrees"] is None
    assert found["features"] == "pixels"
    for name in names:
        lines = RunDirectory(out / "runs" / f"{name}-0").metrics()
        distances = [line["frechet_distance"] for line in lines if "frechet_distance" in line]
        steps = curves[f"frechet_distance, {name}"]
        assert steps["t"] == [2, 4]
        assert steps["value"] == pytest.approx(distances, rel=1e-5)
        assert found["frechet_distance_at_the_last_step"][name] == pytest.approx(distances[-1], rel=1e-4)
        seconds = curves[f"frechet_distance against seconds, {name}"]
        assert seconds["value"] == steps["value"]
        assert seconds["t"][-1] == pytest.approx(4 * found["seconds_per_step"][name], rel=1e-3)
        assert 0 <= found["memorised_fraction_1/3"][name] <= found["memorised_fraction_2/3"][name] <= 1
    assert set(found["step_overhead"]) == {"EFM-7", "exact", "OT-CFM"}
    page = (out / "report.html").read_text()
    assert "at equal steps" in page
    assert "<th>EFM-7</th>" in page
    for name in ("frechet-steps", "frechet-beside-CFM", "frechet-seconds", "memorised", "step-time"):
        assert (out / f"{name}.png").stat().st_size > 1000
    assert json.loads((out / "result.json").read_text())["findings"] == found


def test_runs_differ_in_their_target_alone():
    configs = targets.configurations(digits(), dataclasses.replace(TINY, empirical=(9, 7)))
    assert list(configs) == ["CFM", "EFM-7", "EFM-9", "exact", "OT-CFM"]
    plain = [config.to_dict() for config in configs.values()]
    kinds = [values.pop("target") for values in plain]
    assert all(values == plain[0] for values in plain)
    assert len({json.dumps(kind) for kind in kinds}) == len(kinds)


def test_presets_are_configurations():
    """The paper's network on what it is meant for, and the small one on what two cores can train."""
    rng = np.random.default_rng(0)
    fashion = fj.data.Dataset("fashion", rng.integers(0, 256, (1200, 28, 28, 1), dtype=np.uint8))
    shapes = {"quick": (14, 14, 1), "cpu": (14, 14, 1), "gpu": (28, 28, 1), "paper": (28, 28, 1)}
    for preset, shape in shapes.items():
        settings = targets.PRESETS[preset]
        targets.check(fashion, settings)
        config = targets.configurations(targets.shrunk(fashion, settings.largest_side), settings)["exact"]
        assert config.model.event_shape == shape
        assert config.steps == settings.steps
    assert config.optimizer.learning_rate == 2e-4
    assert config.model.channels == 128


def test_shrinking():
    images = np.arange(2 * 32 * 32 * 3, dtype=np.float32).reshape(2, 32, 32, 3) / 3000 - 1
    dataset = fj.data.Dataset("squares", images, np.array([0, 1]))
    small = targets.shrunk(dataset, 8)
    np.testing.assert_allclose(small.images[1, 2, 3], images[1, 8:12, 12:16].mean((0, 1)), rtol=1e-5)
    assert small.labels is not None
    assert small.images.shape == (2, 8, 8, 3)
    assert targets.shrunk(dataset, 32) is dataset
    assert targets.shrunk(dataset, 20).event_shape == (16, 16, 3)
    odd = fj.data.Dataset("odd", np.zeros((2, 9, 9, 1), np.float32))
    assert targets.shrunk(odd, 4) is odd


def test_mean_and_error():
    values = np.random.default_rng(0).normal(size=(5, 3))
    mean, error = targets.mean_and_error(values)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(error**2, values.var(0, ddof=1) / 5)
    assert np.isnan(targets.mean_and_error(values[:1])[1]).all()


def test_overheads_cancel_what_falls_on_all():
    """A machine that doubles its times half-way through changes no ratio inside a round."""
    load = np.where(np.arange(40) < 20, 1.0, 2.0)[:, None]
    jitter = 1 + 0.01 * np.random.default_rng(0).normal(size=(40, 3))
    overhead, error = targets.overheads(load * jitter * np.array([0.05, 0.0515, 0.0585]))
    np.testing.assert_allclose(overhead, [0, 0.03, 0.17], atol=0.01)
    assert overhead[0] == error[0] == 0
    assert np.all(error[1:] < 0.01)


def test_targets_are_compared_seed_by_seed():
    """What a seed does to all targets alike is no error of their difference."""
    seeds = np.array([[9.0, 3.0], [12.0, 5.0], [16.0, 4.0]])
    better = np.array([[-1.0, -0.5], [-1.2, -0.7], [-0.8, -0.6]])
    beside = targets.beside_cfm({"CFM": seeds, "exact": seeds + better})
    assert list(beside) == ["exact"]
    mean, error = beside["exact"]
    np.testing.assert_allclose(mean, [-1, -0.6])
    np.testing.assert_allclose(error, np.array([0.2, 0.1]) / np.sqrt(3))
    assert np.isnan(targets.beside_cfm({"CFM": seeds[:1], "exact": seeds[:1]})["exact"][1]).all()


def test_the_rule():
    def judge(beside, overhead=0.04, seeds=3, steps=1000):
        return targets.verdict(beside, overhead, seeds, steps)[0]

    assert judge({"EFM-128": (-0.1, 0.3), "exact": (0.5, 0.4)}) is True  # 1.25 standard errors above
    assert judge({"EFM-128": (-0.1, 0.3), "exact": (1.1, 0.5)}) is False  # 2.2 of them
    assert judge({"EFM-128": (1.1, 0.5), "exact": (-1, 0.4)}) is False
    assert judge({"exact": (-1, 0.4)}, overhead=0.12) is False
    assert judge({"exact": (-1, 0.4), "OT-CFM": (5, 0.1)}) is True  # not of the claim
    assert judge({"exact": (-1, 0.4)}, seeds=2) is None
    assert judge({"exact": (-1, 0.4)}, steps=100) is None
    assert judge({"exact": (np.nan, np.nan)}) is None
    assert targets.verdict({"exact": (0.5, 0.4), "OT-CFM": (5, 0.1)}, 0, 3, 1000)[1] == {
        "exact": pytest.approx(1.25)
    }


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"empirical": (61,)}, "empirical=61 exceeds the 60 rows"),
        ({"empirical": (7, 7)}, "different positive numbers"),
        ({"empirical": (0,)}, "different positive numbers"),
        ({"seeds": 0}, "seeds=0"),
        ({"evaluations": 5}, "evaluations=5, steps=4"),
        ({"timed_rounds": 0}, "timed_rounds=0"),
        ({"num_samples": 1}, "num_samples must be at least 2"),
        ({"channels": 7}, "channels=7 must be even"),
    ],
)
def test_bad_settings(changes, match, tmp_path):
    settings = dataclasses.replace(TINY, **changes)
    with pytest.raises(ValueError, match=match):
        fj.experiments.run("targets", digits(), preset="quick", settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_data(tmp_path, monkeypatch):
    moons = fj.data.load("two-moons")
    with pytest.raises(ValueError, match=r"needs pictures .* rows of shape \(2,\)"):
        fj.experiments.run("targets", moons, preset="quick", out=tmp_path / "run")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ott" else find(name))
    with pytest.raises(RuntimeError, match="needs ott-jax"):
        fj.experiments.run("targets", digits(), preset="quick", settings=TINY, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_signal_on_the_command_line(tmp_path, monkeypatch, capsys):
    def stopped(*_args, **_options):
        raise loop.Stopped("stopped by SIGTERM after step 3; continue with --resume")

    monkeypatch.setattr(fj.experiments, "run", stopped)
    assert main(["experiment", "targets", "--preset", "quick", "--out", str(tmp_path / "run")]) == 0
    assert "the same command goes on" in capsys.readouterr().err
