"""Steps, loop, checkpoints and resuming, on small networks and small data."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flowjax as fj
from flowjax import models, training
from flowjax.training import assembly, loop, samples, state, step
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


@pytest.mark.slow
def test_a_run_leaves_what_it_should(finished):
    recorded = lines(finished)
    assert [line["step"] for line in recorded] == list(range(1, 13))
    assert all(np.isfinite(line["loss"]) for line in recorded)
    assert {line["step"] for line in recorded if "frechet_distance" in line} == {6, 12}
    assert sorted(f.name for f in finished.samples.iterdir()) == ["step-000006.png", "step-000012.png"]
    with Checkpoints(finished.checkpoints) as checkpoints:
        assert checkpoints.steps() == [8, 12]
    assert recorded[0]["learning_rate"] == pytest.approx(1e-3 / 5)


@pytest.mark.slow
def test_training_lowers_the_loss_quietly_if_asked(tmp_path, capsys):
    config = tiny(steps=200, sample_every=200, checkpoint_every=200)
    run = training.train(config, tmp_path / "run", quiet=True)
    assert capsys.readouterr().out == ""
    losses = [line["loss"] for line in lines(run)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_stopped_and_resumed_is_bit_for_bit_the_same(finished, tmp_path, monkeypatch):
    """Interrupt after step 6, between two checkpoints, as a signal would; resume; compare bytes."""
    real = loop._log
    seen = []

    def interrupt(run, config, progress, number, *rest, **options):
        real(run, config, progress, number, *rest, **options)
        seen.append(number)
        if number == 6 and seen.count(6) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_log", interrupt)
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


def test_what_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    optimizer = training.OptimizerConfig(learning_rate=1e38, warmup_steps=0, clip=1e30)
    with pytest.raises(
        RuntimeError, match=r"(step \d+ is (nan|inf)|step \d+ left parameters that are not finite)"
    ):
        training.train(tiny(optimizer=optimizer, checkpoint_every=1), tmp_path / "run")
    velocity, config, _ = training.load_network(tmp_path / "run")
    assert config.optimizer == optimizer
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(nnx.state(velocity)))


def test_without_a_checkpoint_the_error_says_so(tmp_path):
    np.savez(tmp_path / "big.npz", images=np.full((8, 2), 1e30, np.float32))
    config = tiny(data=training.DataConfig(source=f"npz:{tmp_path / 'big.npz'}"))
    config = dataclasses.replace(config, target=training.TargetConfig(name="conditional"))
    with pytest.raises(RuntimeError, match=r"step 1 .*there is no checkpoint yet"):
        training.train(config, tmp_path / "run")


@pytest.mark.slow
def test_data_too_poor_to_learn_from(tmp_path):
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 2), np.float32))
    np.savez(tmp_path / "same.npz", images=np.ones((10, 2), np.float32))
    with pytest.raises(ValueError, match="single row"):
        training.train(tiny(data=training.DataConfig(source=f"npz:{tmp_path / 'one.npz'}")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    same = tiny(data=training.DataConfig(source=f"npz:{tmp_path / 'same.npz'}"))
    result = training.evaluate(training.train(same, tmp_path / "run").path)
    assert set(result["target_curve"]["relative_variance"]) == {0.0}


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """In a process of its own, whose files cannot grow past 100 bytes."""
    program = f"""
import resource, signal
from flowjax.training import RunDirectory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = RunDirectory({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    for step in range(10):
        run.append_metrics({{"step": step, "loss": 0.123456789}})
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "no space left" in done.stdout, done.stderr
    run = training.RunDirectory(tmp_path)
    assert run.metrics_file.read_text().endswith("}\n")
    assert [line["step"] for line in run.metrics()] == [0, 1, 2]


def test_a_run_without_its_pictures_resumes(tmp_path):
    run = training.train(tiny(steps=4), tmp_path / "run")
    for file in run.samples.iterdir():
        file.unlink()
    run.samples.rmdir()
    (run.checkpoints / "4").rename(tmp_path / "moved")
    training.train(tiny(steps=4), run.path, resume=True)
    assert (run.samples / "step-000004.png").is_file()


def test_classes_are_drawn_in_the_data_s_proportions():
    labels = samples.spread_labels([57, 0, 3], 200)
    np.testing.assert_array_equal(np.bincount(labels), [190, 0, 10])
    assert samples.spread_labels(None, 5) is None


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
    dataset = fj.data.load("two-moons")
    target, _ = assembly.make_target(tiny(), dataset)
    index = np.arange(16, dtype=np.int32)
    return {"index": index, "image": np.asarray(dataset.images)[index]}, target


@pytest.mark.slow
def test_eight_devices_take_the_same_step_as_one(batch_and_target):
    # A warm-up keeps Adam's first update, the gradient's sign, below what rounding of the gradient may turn.
    config = tiny(optimizer=training.OptimizerConfig(learning_rate=1e-3, warmup_steps=1000))
    params, metrics = gradient_step(config, *batch_and_target)
    sharded, sharded_metrics = gradient_step(config, *batch_and_target, devices=8)
    assert metrics["loss"] == pytest.approx(sharded_metrics["loss"], rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(sharded_metrics["grad_norm"], rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6), params, sharded)


def test_seeds_share_a_compiled_step():
    functions = {
        seed: step.make_step(config, state.create(config)[0])
        for seed, config in {
            0: tiny(),
            1: tiny(seed=1, sample_every=3, num_samples=8),
            2: tiny(batch_size=8, optimizer=training.OptimizerConfig(learning_rate=1e-2)),
        }.items()
    }
    assert functions[0] is functions[1]
    assert functions[0] is not functions[2]


def compiled_step(config, batch, target, devices=8):
    mesh = fj.data.mesh(jax.devices()[:devices])
    graphdef, start = state.create(config)
    everywhere = jax.NamedSharding(mesh, jax.P())
    start, target = jax.device_put((start, target), everywhere)
    function = step.make_step(config, graphdef)
    return function.lower(start, fj.data.place(batch, mesh), target, None).compile()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_device_differentiates_its_own_rows(accumulate, batch_and_target):
    """Gradients meet in an all-reduce, and no device computes the whole micro-batch of activations."""
    width = 48  # found in no other shape of this network
    config = tiny(
        model=models.MLPConfig(event_shape=(2,), width=width),
        optimizer=dataclasses.replace(tiny().optimizer, accumulate=accumulate),
    )
    text = compiled_step(config, *batch_and_target).as_text()
    assert "all-reduce" in text
    rows = 16 // accumulate
    assert f"f32[{rows // 8},{width}]" in text
    assert f"f32[{rows},{width}]" not in text


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [False, True])
def test_rows_split_over_devices_train_alike(tmp_path, labelled):
    """Rows over four of eight devices, filled up with one that has no weight, against all of them on each."""
    moons = fj.data.load("two-moons", num_points=203)
    changes: dict[str, Any] = {}
    if labelled:
        changes["data"] = training.DataConfig(source="two-moons", class_conditional=True)
        changes["model"] = models.MLPConfig(event_shape=(2,), width=32, num_classes=2)
    losses = {}
    for over in (1, 4):
        config = tiny(**changes)
        parts = assembly.assemble(config, moons, assembly.make_mesh(config, moons, rows_over=over))
        if over == 4:
            assert parts.target.field.num_points == 204
            assert parts.target.field.data.sharding.spec[0] == "rows"
        run = training.train(config, tmp_path / str(over), dataset=moons, rows_over=over)
        losses[over] = [line["loss"] for line in lines(run)]
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-4)


def test_the_state_s_buffers_are_donated(batch_and_target):
    compiled = compiled_step(tiny(), *batch_and_target)
    _, start = state.create(tiny())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(start))
    assert compiled.memory_analysis().alias_size_in_bytes >= size


def test_transfers_in_the_middle_of_a_step_are_an_error(tmp_path, monkeypatch):
    real = loop.assemble

    def on_the_host(*arguments):
        parts = real(*arguments)
        return parts._replace(step=lambda s, b, *rest: parts.step(s, jax.tree.map(np.asarray, b), *rest))

    monkeypatch.setattr(loop, "assemble", on_the_host)
    with pytest.raises(Exception, match=r"Disallowed .* transfer"):
        training.train(tiny(), tmp_path / "run")


@pytest.mark.slow
def test_accumulated_gradients_are_the_whole_batch_s(batch_and_target):
    whole = gradient_step(tiny(), *batch_and_target)[1]
    config = tiny(optimizer=dataclasses.replace(tiny().optimizer, accumulate=4))
    parts = gradient_step(config, *batch_and_target)[1]
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conditional", "empirical"])
def test_a_noisy_target_averages_to_the_exact_one(name):
    """E[g(x_t) · target] = E[g(x_t) · û] over pairs drawn from the whole data set, for any g: five standard errors."""
    dataset = fj.data.load("two-moons", num_points=100)
    rows = jnp.asarray(dataset.images)
    batch = {"image": jnp.tile(rows, (400, 1)), "index": jnp.tile(jnp.arange(100, dtype=jnp.int32), 400)}
    example = step.draw(tiny(), jax.random.key(0), batch, None)
    x0, x1, t = example["x0"], example["x1"], 0.6 * example["t"]
    noisy, _ = assembly.make_target(tiny(target=training.TargetConfig(name=name, num_samples=10)), dataset)
    exact, _ = assembly.make_target(tiny(), dataset)
    weight = jnp.sin(3 * exact.path.interpolate(x0, x1, t))
    keys = jax.random.split(jax.random.key(2), 40)
    parts = [slice(k * 1000, (k + 1) * 1000) for k in range(40)]  # one draw of other rows a thousand pairs
    values = jnp.concatenate(
        [
            noisy(key, x0[s], x1[s], t[s], index=batch["index"][s], rows=rows)
            for key, s in zip(keys, parts, strict=True)
        ]
    )
    difference = jnp.sum(weight * (values - exact(keys[0], x0, x1, t)), 1)
    groups = np.array([float(difference[s].mean()) for s in parts])
    assert abs(groups.mean()) < 5 * groups.std(ddof=1) / np.sqrt(len(groups))
    assert groups.std() > 0


def test_a_signal_while_samples_are_drawn_saves_too(tmp_path, monkeypatch):
    real = loop.draw_samples

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "draw_samples", interrupted)
    with pytest.raises(loop.Stopped, match="SIGTERM after step 5"):
        training.train(tiny(sample_every=5, checkpoint_every=8), tmp_path / "run")
    with Checkpoints(training.RunDirectory(tmp_path / "run").checkpoints) as checkpoints:
        assert checkpoints.steps() == [5]


def test_a_run_is_timed_on_devices_that_its_batch_divides_over():
    config = tiny(batch_size=12)  # eight devices are visible
    assert assembly.time_target(config, config.data.load(), rounds=1)["seconds_per_step"] > 0


KILLED = [
    "two-moons", "--steps", "400", "--checkpoint-every", "50", "--sample-every", "400", "--log-every", "1",
    "--num-samples", "16", "--batch-size", "32",
]  # fmt: skip


def start_process(run_dir, *extra):
    command = [sys.executable, "-m", "flowjax", "train", *KILLED, "--run-dir", str(run_dir), *extra]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("killed") / "whole"
    process = start_process(run_dir)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_a_killed_process_resumes_to_the_same_metrics(number, never_killed, tmp_path):
    cut = tmp_path / "cut"
    interruptions = 0
    for wanted in (70, 180):
        process = start_process(cut, *(["--resume"] if cut.exists() else []))
        metrics = cut / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.is_file() and metrics.read_bytes().count(b"\n") >= wanted:
                process.send_signal(number)
                interruptions += 1
                break
            time.sleep(0.01)
        output, _ = process.communicate(timeout=200)
        if number == signal.SIGTERM:  # it saved where it stood, and left in peace
            assert process.returncode == 0, output
            found = re.search(r"stopped by SIGTERM after step (\d+); continue with --resume", output)
            assert found, output
            assert (cut / "checkpoints" / found[1]).is_dir()
        else:
            assert process.returncode == -number, output
    process = start_process(cut, "--resume")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert interruptions == 2
    assert (cut / "metrics.jsonl").read_bytes() == (never_killed / "metrics.jsonl").read_bytes()
