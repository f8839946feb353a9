"""The command line as a person meets it: exit status, one sentence, and nothing left behind by a mistake."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flowjax.cli import main
from flowjax.training import PRESETS, TrainConfig, loop

TINY = [
    "two-moons", "--steps", "8", "--batch-size", "16", "--model.width", "16", "--log-every", "1",
    "--sample-every", "4", "--checkpoint-every", "4", "--num-samples", "16",
]  # fmt: skip


def refused(capsys, *argv) -> str:
    """The one sentence on standard error of a command that must fail with status 2."""
    assert main([str(a) for a in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flowjax: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test runs in a folder of its own: the default run directory is relative."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", *TINY, "--run-dir", str(path)]) == 0
    return path


def test_help_needs_no_jax():
    program = (
        "import sys; from flowjax.cli import main; status = main(['--help']); "
        "heavy = {'jax', 'flax', 'numpy', 'tyro', 'rich'} & set(sys.modules); sys.exit(f'{status} {heavy}')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stderr.strip() == "0 set()"
    for command in ("train", "sample", "evaluate", "data", "config", "bench", "plan"):
        assert f"\n  {command} " in result.stdout


def test_the_module_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "flowjax", "trian"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr == "flowjax: unknown command 'trian'; did you mean 'train'?\n"


@pytest.mark.parametrize("command", ["train", "config"])
def test_help_of_a_command_lists_the_presets(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in PRESETS)
    assert f"flowjax {command} digits" in shown


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["train", "digit"], "unknown preset 'digit'; did you mean 'digits'?"),
        (["train", "--steps", "3"], "needs a preset first"),
        (["train", "digits", "--steps", "0"], "steps must be at least 1, got 0"),
        (["train", "digits", "--seed", "-1"], "seed must lie in 0..4294967295, got -1"),
        (["train", "digits", "--resume"], "holds no run"),
        (["train", "digits", "--data.source", "digts"], "did you mean 'digits'?"),
        (["train", "two-moons", "--model.event-shape", "3"], "events of shape (3,)"),
        (["config", "cifar"], "did you mean 'cifar10'?"),
        (["sample", "runs/none", "--out", "a.png"], "holds no run"),
        (["sample", "runs/none", "--out", "a.gif"], "must end in .npz, or in .png"),
        (["sample", "runs/none", "--out", "a.png", "--num", "0"], "at least 1, got 0"),
        (["sample", "runs/none", "--out", "none/a.png"], "there is no folder"),
        (["evaluate", "runs/none"], "holds no run"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(argv, match, capsys, tmp_path):
    assert match in refused(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--steps", "many"], "Error parsing --steps"),
        (["--target", "closed"], "Expected one of ('conditional', 'empirical', 'closed-form')"),
        (["--optimizer.nam", "adam"], "Perhaps you meant: --optimizer.name"),
        (["--model.num-heads", "0"], "num_heads=0 must be positive"),
        (["--seed", str(2**64)], "seed must lie in"),
        (["--optimizer.learning-rate", "inf"], "learning_rate must be positive and finite"),
        (["--model.num-classes", "10"], "has no effect unless the run is class-conditional"),
    ],
)
def test_options_that_cannot_be_used_are_one_sentence(argv, match, capsys, tmp_path):
    sentence = refused(capsys, "train", "digits", *argv)
    assert match in sentence
    assert not set("╭╮╰╯│─") & set(sentence)
    assert list(tmp_path.iterdir()) == []


def test_config_prints_what_a_run_would_have(capsys):
    argv = ["config", "digits", "--steps", "7", "--optimizer.learning-rate", "0.5", "--model.channels", "16"]
    assert main(argv) == 0
    config = TrainConfig.from_dict(json.loads(capsys.readouterr().out))
    assert (config.steps, config.optimizer.learning_rate, config.model.channels) == (7, 0.5, 16)
    assert config.target == PRESETS["digits"]().target


def test_train_says_where_the_answer_is(run_dir, capsys):
    for name in ("config.json", "metrics.jsonl", "evaluation.json", "report.html", "samples/final.png"):
        assert (run_dir / name).stat().st_size > 0
    # Complete already: nothing is trained, the evaluation is done again.
    assert main(["train", *TINY, "--run-dir", str(run_dir), "--resume"]) == 0
    shown = capsys.readouterr().out
    result = json.loads((run_dir / "evaluation.json").read_text())
    assert f"Fréchet distance {result['frechet_distance']:.3g}" in shown
    assert f"{result['memorised_fraction']['1/3']:.1%} at ratio 1/3" in shown
    assert str(run_dir / "report.html") in shown
    assert str(run_dir / "samples" / "final.png") in shown


def test_the_default_run_directory_is_named_after_the_preset(capsys, tmp_path, monkeypatch):
    called = []

    def train(config, run_dir, *, resume, rows_over):
        assert rows_over is None
        called.append((config, run_dir, resume))
        raise loop.Stopped("stopped by SIGTERM")

    monkeypatch.setattr(loop, "train", train)
    assert main(["train", "digits", "--target", "empirical"]) == 0
    assert main(["train", "digits", "--target=conditional", "--resume"]) == 0
    assert [(c.target.name, str(d), r) for c, d, r in called] == [
        ("empirical", "runs/digits", False),
        ("conditional", "runs/digits", True),
    ]
    captured = capsys.readouterr()
    assert "runs/digits" in captured.out
    assert "stopped by SIGTERM" in captured.err


def contents(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ([], "continue it with --resume"),
        (["--resume", "--seed", "5"], "seed was 0 and is now 5"),
        (["--resume", "--target", "conditional"], "target.name was 'closed-form' and is now 'conditional'"),
    ],
)
def test_a_run_is_not_trained_over(run_dir, extra, match, capsys):
    before = contents(run_dir)
    assert match in refused(capsys, "train", *TINY, "--run-dir", run_dir, *extra)
    assert contents(run_dir) == before


def test_a_folder_or_a_file_of_somebody_else_s(capsys, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "main.tex").write_text("years of work")
    before = contents(tmp_path)
    assert "holds something else" in refused(capsys, "train", *TINY, "--run-dir", "thesis")
    assert "is a file" in refused(capsys, "train", *TINY, "--run-dir", "thesis/main.tex")
    assert "is a file" in refused(capsys, "train", *TINY, "--run-dir", "thesis/main.tex/run")
    assert "holds no run" in refused(capsys, "train", *TINY, "--run-dir", "thesis", "--resume")
    assert contents(tmp_path) == before


def test_samples_as_an_array(run_dir, tmp_path, capsys):
    def draw(name, *extra):
        assert main(["sample", str(run_dir), "--num", "5", "--out", name, *extra]) == 0
        with np.load(tmp_path / name) as archive:
            return archive["samples"]

    first = draw("a.npz")
    assert first.shape == (5, 2)
    assert "5 samples of step 8" in capsys.readouterr().out
    np.testing.assert_array_equal(first, draw("b.npz"))
    assert not np.array_equal(first, draw("c.npz", "--seed", "1"))
    fixed = draw("d.npz", "--solver", "rk4", "--num-steps", "40")
    np.testing.assert_allclose(fixed, first, atol=0.05)  # another solver, the same flow


def test_samples_of_a_killed_or_full_write_leave_nothing(run_dir, tmp_path, monkeypatch, capsys):
    def full(file, **_):
        file.write(b"half an arch")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert "No space left" in refused(capsys, "sample", run_dir, "--num", "3", "--out", "a.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_rows_without_a_picture_train_and_are_sampled_as_arrays(tmp_path, capsys):
    np.savez(tmp_path / "rows.npz", images=np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32))
    argv = [*TINY, "--data.source", "npz:rows.npz", "--model.event-shape", "5", "--run-dir", "run"]
    assert main(["train", *argv]) == 0
    assert list((tmp_path / "run" / "samples").iterdir()) == []
    assert (tmp_path / "run" / "report.html").is_file()
    assert main(["sample", "run", "--num", "3", "--out", "a.npz"]) == 0
    assert "no way to draw" in refused(capsys, "sample", "run", "--out", "a.png")


def test_samples_as_a_picture_are_never_written_over(run_dir, tmp_path, capsys):
    out = tmp_path / "a.png"
    assert main(["sample", str(run_dir), "--num", "4", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    before = out.read_bytes()
    assert "exists already" in refused(capsys, "sample", run_dir, "--out", out)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (["--label", "1"], "needs a class-conditional run"),
        (["--solver", "euler"], "num_steps"),
        (["--num-steps", "5"], "num_steps"),
    ],
)
def test_sampling_options_that_do_not_fit(run_dir, tmp_path, extra, match, capsys):
    assert match in refused(capsys, "sample", run_dir, "--out", "a.npz", *extra)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_repeats_what_train_found(run_dir, capsys):
    first = json.loads((run_dir / "evaluation.json").read_text())
    assert main(["evaluate", str(run_dir)]) == 0
    second = json.loads((run_dir / "evaluation.json").read_text())
    assert str(run_dir / "report.html") in capsys.readouterr().out
    varying = {"timings"}
    assert {k: v for k, v in first.items() if k not in varying} == {
        k: v for k, v in second.items() if k not in varying
    }
    assert "at least 2 samples, got 1" in refused(capsys, "evaluate", run_dir, "--num", "1")


def test_a_bug_is_not_taken_for_a_mistake(monkeypatch):
    """Only what describes a user's mistake becomes a sentence; anything else keeps its traceback."""

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(loop, "train", broken)
    with pytest.raises(ZeroDivisionError):
        main(["train", "digits"])
