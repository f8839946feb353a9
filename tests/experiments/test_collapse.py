"""The collapse against the oracle, the predicted times against their closed form, and a folder to go on in."""

import json

import numpy as np
import pytest

import flowjax as fj
from flowjax.cli import main
from flowjax.experiments import collapse

SMALL = collapse.Settings(num_pairs=12, num_times=5)


def digits(count=60):
    whole = fj.data.load("digits")
    return fj.data.Dataset("some digits", whole.images[:count])


def test_against_the_oracle(tmp_path):
    dataset = digits()
    result = fj.experiments.run("collapse", dataset, preset="quick", settings=SMALL, out=tmp_path / "run")
    rng = np.random.default_rng(0)
    index = rng.integers(0, 60, 12)
    x1 = dataset.images[index].reshape(12, -1).astype(np.float64)
    x0 = rng.normal(size=(12, 8, 8, 1)).astype(np.float32).reshape(12, -1)
    rows = dataset.images.reshape(60, -1).astype(np.float64)
    for t, fraction, effective in zip(
        np.arange(5) / 5,
        result["curves"]["fraction_cosine_above_0.9"]["value"],
        result["curves"]["effective_sample_size_median"]["value"],
        strict=True,
    ):
        x = (1 - t) * x0 + t * x1
        logits = -((x[:, None] - t * rows) ** 2).sum(-1) / (2 * (1 - t) ** 2)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        u = (weights @ rows - x) / (1 - t)
        v = x1 - x0
        cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        assert fraction == pytest.approx(np.mean(cosine > 0.9))
        assert effective == pytest.approx(np.median(1 / (weights**2).sum(1)), rel=1e-4)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["findings"] == result["findings"]


def test_predicted_times_of_a_gaussian():
    """Of variance s² in every direction: speciation where s t = 1 − t, collapse where n^(2/d) = 1 + s² t²/(1 − t)²."""
    rng = np.random.default_rng(0)
    rows = 2 * rng.normal(size=(20_000, 6)).astype(np.float32)
    speciation, collapsed = collapse.predicted_times(rows, most=20_000)
    ratio = np.sqrt(20_000 ** (2 / 6) - 1) / 2
    assert speciation == pytest.approx(1 / 3, abs=0.01)
    assert collapsed == pytest.approx(ratio / (1 + ratio), abs=0.01)


def test_resolutions():
    images = np.arange(2 * 8 * 8).reshape(2, 8, 8, 1).astype(np.float32)
    found = collapse.resolutions(images, 2)
    assert list(found) == [8, 4, 2]
    np.testing.assert_allclose(found[2][0, 0, 0, 0], images[0, :4, :4].mean())
    assert list(collapse.resolutions(np.zeros((3, 2), np.float32), 2)) == [2]


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    out, measure = tmp_path / "run", collapse._measure
    sides = []

    def interrupted(work, rows, times, settings, side):
        sides.append(side)
        if len(sides) == 2:
            raise KeyboardInterrupt
        return measure(work, rows, times, settings, side)

    monkeypatch.setattr(collapse, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fj.experiments.run("collapse", digits(), preset="quick", settings=SMALL, out=out)
    assert not (out / "result.json").exists()
    fj.experiments.run("collapse", digits(), preset="quick", settings=SMALL, out=out)
    assert sides == [8, 4, 4]


def test_a_folder_is_one_runs(tmp_path):
    out = tmp_path / "run"
    fj.experiments.run("collapse", digits(), preset="quick", settings=SMALL, out=out)
    before = (out / "result.json").read_bytes()
    with pytest.raises(ValueError, match="finished"):
        fj.experiments.run("collapse", digits(), preset="quick", settings=SMALL, out=out)
    other = collapse.Settings(num_pairs=13, num_times=5)
    with pytest.raises(ValueError, match=r"holds another run \(settings\.num_pairs was 12 and is now 13"):
        fj.experiments.run("collapse", digits(), preset="quick", settings=other, out=out)
    assert (out / "result.json").read_bytes() == before
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"not empty \(thesis\.tex\)"):
        fj.experiments.run("collapse", digits(), preset="quick", settings=SMALL, out=strange)


def test_two_at_once_are_refused(tmp_path):
    from flowjax.experiments._workspace import Workspace

    facts = {"experiment": "collapse"}
    with (
        Workspace(tmp_path / "run", facts),
        pytest.raises(ValueError, match="another process"),
        Workspace(tmp_path / "run", facts),
    ):
        pass


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="at least 2 rows"):
        fj.experiments.run("collapse", digits(1), out=tmp_path / "run")
    with pytest.raises(ValueError, match="did you mean 'collapse'"):
        fj.experiments.run("colapse", digits(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_command_line(tmp_path, capsys):
    out = tmp_path / "run"
    asked = ["experiment", "collapse", "--preset", "quick", "--out", str(out)]
    assert main([*asked, "--num-pairs", "8", "--num-times", "4"]) == 0
    assert "the time from which on nine in ten are" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["settings"]["num_pairs"] == 8
    assert result["preset"] == "quick"
    assert {"experiment", "data", "claim", "agrees", "curves", "versions", "seconds"} <= result.keys()
    page = (out / "report.html").read_text()
    assert result["sentence"] in page
    shares = [f"{share:.4g}" for share in result["findings"]["fraction_above_0.9"].values()]
    assert f"<th>fraction above 0.9</th><td>{'</td><td>'.join(shares)}</td>" in page  # a row of a table
    for name in ("fraction", "cosine", "collapse"):
        assert (out / f"{name}.png").stat().st_size > 1000
        assert (out / f"{name}.svg").stat().st_size > 1000
    assert main(asked) == 2
    assert main(["experiment", "collapse", "--preset", "huge"]) == 2
    assert main(["experiment"]) == 0
