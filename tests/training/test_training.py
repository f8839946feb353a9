"""Steps, loop, checkpoints and resuming, on small networks and small data."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import models, training
from flowjax.training import loop, objective, state, step
from flowjax.training.checkpoint import Checkpoints


def tiny(**changes) -> training.TrainConfig:
    """An MLP on two moons: compiles in seconds, steps in milliseconds."""
    config = training.TrainConfig(
        model=models.MLPConfig(event_shape=(2,), width=32),
        data=training.DataConfig(source="two-moons"),
        optimizer=training.OptimizerConfig(learning_rate=1e-3, warmup_steps=5, ema_decay=0.9),
        steps=12,
        batch_size=16,
        log_every=1,
        sample_every=6,
        checkpoint_every=4,
        num_samples=16,
    )
    return dataclasses.replace(config, **changes)


def lines(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def test_json_round_trip():
    for build in training.PRESETS.values():
        config = build()
        assert training.TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="no configuration"):
        training.TrainConfig.from_dict({"model": {"kind": "transformer"}})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": -1}, "batch_size"),
        ({"optimizer": training.OptimizerConfig(accumulate=5)}, "equal parts"),
        ({"optimizer": training.OptimizerConfig(ema_decay=1.0)}, "ema_decay"),
        ({"data": training.DataConfig(class_conditional=True)}, "num_classes"),
        ({"num_samples": 1}, "at least 2"),
    ],
)
def test_bad_configurations(changes, match):
    with pytest.raises(ValueError, match=match):
        tiny(**changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return training.train(tiny(), tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_leaves_what_it_should(finished):
    recorded = lines(finished)
    assert [line["step"] for line in recorded] == list(range(1, 13))
    assert all(np.isfinite(line["loss"]) for line in recorded)
    assert {line["step"] for line in recorded if "frechet_distance" in line} == {6, 12}
    assert sorted(f.name for f in finished.samples.iterdir()) == ["step-000006.png", "step-000012.png"]
    with Checkpoints(finished.checkpoints) as checkpoints:
        assert checkpoints.steps() == [8, 12]
    assert recorded[0]["learning_rate"] == pytest.approx(1e-3 / 5)


def test_training_lowers_the_loss(tmp_path):
    run = training.train(tiny(steps=200, sample_every=200, checkpoint_every=200), tmp_path / "run")
    losses = [line["loss"] for line in lines(run)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_stopped_and_resumed_is_bit_for_bit_the_same(finished, tmp_path, monkeypatch):
    """Interrupt after step 6, between two checkpoints, as a signal would; resume; compare bytes."""
    real = loop._finish
    seen = []

    def interrupt(run, config, progress, number, *rest):
        real(run, config, progress, number, *rest)
        seen.append(number)
        if number == 6 and seen.count(6) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        training.train(tiny(), tmp_path / "cut")
    run = training.train(tiny(), tmp_path / "cut", resume=True)
    assert 5 in seen[seen.index(6) + 1 :]  # it went back to the checkpoint of step 4
    assert run.metrics_file.read_bytes() == finished.metrics_file.read_bytes()


def test_resuming_before_the_first_checkpoint_starts_over(finished, tmp_path, capsys):
    run = training.RunDirectory(tmp_path / "early")
    run.start(tiny(), json.loads(finished.config_file.read_text())["data_fingerprint"])
    run.append_metrics({"step": 1, "loss": 123.0})
    training.train(tiny(), run.path, resume=True)
    assert "starting from the first step" in capsys.readouterr().out
    assert run.metrics_file.read_bytes() == finished.metrics_file.read_bytes()


# orbax leaves a coroutine of its own unawaited when a checkpoint cannot be read
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_newest_checkpoint_is_named_and_passed_over(finished, tmp_path, capsys):
    run = training.train(tiny(), tmp_path / "run")
    newest = max(run.checkpoints.iterdir(), key=lambda p: int(p.name))
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    training.train(tiny(), run.path, resume=True)
    assert "checkpoint of step 12 is damaged" in capsys.readouterr().out
    assert run.metrics_file.read_bytes() == finished.metrics_file.read_bytes()


def test_refusals_leave_the_directory_as_it_was(finished, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in finished.path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="--resume"):
        training.train(tiny(), finished.path)
    with pytest.raises(ValueError, match=r"batch_size was 16 and is now 32"):
        training.train(tiny(batch_size=32), finished.path, resume=True)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        training.train(tiny(), tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("do not overwrite")
    with pytest.raises(ValueError, match="something else"):
        training.train(tiny(), other)
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="event-shape"):
        training.train(tiny(model=models.MLPConfig(event_shape=(3,))), tmp_path / "shape")
    assert not (tmp_path / "shape").exists()
    assert {p: p.stat().st_mtime_ns for p in finished.path.rglob("*") if p.is_file()} == before


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = tiny(optimizer=training.OptimizerConfig(learning_rate=1e30, warmup_steps=0, clip=1e30))
    with pytest.raises(RuntimeError, match=r"loss of step \d+ is (nan|inf)"):
        training.train(config, tmp_path / "run")


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    run = training.train(tiny(steps=4), tmp_path / "run")
    with Checkpoints(run.checkpoints) as checkpoints:

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints._checkpointer, "save_checkpointables", full)
        _, fresh = state.create(tiny())
        with pytest.raises(RuntimeError, match="checkpoint of step 4 is intact"):
            checkpoints.save(5, fresh, None)
        assert checkpoints.steps() == [4]


def gradient_step(config, batch, target, devices=1):
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    graphdef, start = state.create(config)
    function = step.make_step(config, graphdef)
    start, target = jax.device_put((start, target), jax.NamedSharding(mesh, jax.P()))
    batch = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    after, metrics = function(start, batch, target, None)
    return jax.device_get(after.params), {k: float(v) for k, v in metrics.items()}


@pytest.fixture
def batch_and_target():
    dataset = __import__("flowjax").data.load("two-moons")
    target, _ = objective.make_target(tiny(), dataset)
    index = np.arange(16, dtype=np.int32)
    return {"index": index, "image": np.asarray(dataset.images)[index]}, target


def assert_trees_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def test_eight_devices_take_the_same_step_as_one(batch_and_target):
    config = tiny(optimizer=training.OptimizerConfig(learning_rate=1e-3, warmup_steps=0))
    params, metrics = gradient_step(config, *batch_and_target)
    sharded, sharded_metrics = gradient_step(config, *batch_and_target, devices=8)
    assert metrics["loss"] == pytest.approx(sharded_metrics["loss"], rel=1e-5)
    # Adam's first update is the gradient's sign: compare the norm, which is smooth.
    assert metrics["grad_norm"] == pytest.approx(sharded_metrics["grad_norm"], rel=1e-4)
    assert jax.tree.structure(params) == jax.tree.structure(sharded)


def test_accumulated_gradients_are_the_whole_batch_s(batch_and_target):
    whole = gradient_step(tiny(), *batch_and_target)[1]
    config = tiny(optimizer=dataclasses.replace(tiny().optimizer, accumulate=4))
    parts = gradient_step(config, *batch_and_target)[1]
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_the_three_targets_agree_in_the_mean(batch_and_target):
    """Same parameters, many draws: expected gradients of the three targets point the same way."""
    batch, exact = batch_and_target
    dataset = __import__("flowjax").data.load("two-moons")
    rows = jnp.asarray(dataset.images)
    config = tiny()
    example = step.draw(config, jax.random.key(0), {k: jnp.asarray(v) for k, v in batch.items()})
    arguments = example["x0"], example["x1"], example["t"]
    for name in ("conditional", "empirical"):
        changed = tiny(target=training.TargetConfig(name=name, num_samples=64))
        target, extra = objective.make_target(changed, dataset)
        value = target(jax.random.key(1), *arguments, index=jnp.asarray(batch["index"]), rows=rows)
        assert value.shape == example["x1"].shape
        assert (extra is None) == (name == "conditional")
    assert exact(jax.random.key(1), *arguments).shape == example["x1"].shape


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_a_killed_process_resumes_to_the_same_metrics(number, tmp_path):
    arguments = [
        "two-moons", "--steps", "400", "--checkpoint-every", "50", "--sample-every", "400", "--log-every", "1",
        "--num-samples", "16", "--batch-size", "32",
    ]  # fmt: skip

    def start(run_dir, *extra):
        command = [sys.executable, "-m", "flowjax", "train", *arguments, "--run-dir", str(run_dir), *extra]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    whole = tmp_path / "whole"
    process = start(whole)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    cut = tmp_path / "cut"
    interruptions = 0
    for wanted in (70, 180):
        process = start(cut, *(["--resume"] if cut.exists() else []))
        metrics = cut / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.is_file() and metrics.read_bytes().count(b"\n") >= wanted:
                process.send_signal(number)
                interruptions += 1
                break
            time.sleep(0.01)
        output, _ = process.communicate(timeout=200)
        assert process.returncode in (0, -number), output
    process = start(cut, "--resume")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert interruptions == 2
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
