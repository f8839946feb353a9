"""Evaluation against float64 oracles, and runs that are conditional, mirrored, interrupted in part, or moved."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import nnx

import flowjax as fj
from flowjax import models, training
from flowjax.closed_form import oracle
from flowjax.training import assembly, evaluation, loop, samples, state, step

CONFIG = training.TrainConfig(
    model=models.MLPConfig(event_shape=(2,), width=16),
    data=training.DataConfig(source="two-moons"),
    optimizer=training.OptimizerConfig(learning_rate=1e-3, warmup_steps=0, ema_decay=0.9),
    steps=4,
    batch_size=16,
    log_every=1,
    sample_every=2,
    checkpoint_every=2,
    num_samples=16,
)


def lines(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def write_npz(file, *, classes=None, seed=0, n=24):
    """Random pictures [n, 4, 4, 1] as uint8."""
    generator = np.random.default_rng(seed)
    arrays = {"images": generator.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)}
    if classes is not None:
        arrays["labels"] = np.arange(n) % classes
    np.savez(file, **arrays)
    return f"npz:{file}"


def pictures(source, **data) -> training.TrainConfig:
    return dataclasses.replace(
        CONFIG,
        model=models.MLPConfig(event_shape=(4, 4, 1), width=16, num_classes=data.pop("num_classes", None)),
        data=training.DataConfig(source=source, **data),
    )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    run = training.train(CONFIG, tmp_path_factory.mktemp("runs") / "run")
    return run, training.evaluate(run.path)


@pytest.mark.slow
def test_in_full_samples_are_scored_against_training_and_held_out_rows(tmp_path):
    generator = np.random.default_rng(5)
    names = {"images": 40, "test_images": 30}
    arrays = {name: generator.integers(0, 256, (n, 4, 4, 1), np.uint8) for name, n in names.items()}
    np.savez(tmp_path / "pictures.npz", **arrays)
    run = training.train(pictures(f"npz:{tmp_path / 'pictures.npz'}"), tmp_path / "run")
    result = training.evaluate(run.path, full=True)
    train, test = result["scores"]
    assert (train["reference"], train["num_reference"]) == ("pictures train", 40)
    assert (test["reference"], test["num_reference"]) == ("pictures test", 30)
    assert train["num_samples"] == 16
    for scores in (train, test):
        assert {"kernel_distance", "precision", "recall", "density", "coverage"} <= scores["values"].keys()
        assert not scores["published_network"]
    # The same network and rows as the distance that every evaluation gives.
    assert train["values"]["frechet_distance"] == pytest.approx(result["frechet_distance"], rel=1e-4)
    assert json.loads(run.evaluation_file.read_text())["scores"] == result["scores"]
    page = fj.report.write_report(run.path).read_text()
    assert "16 samples against pictures test (30 rows)" in page
    with pytest.raises(ValueError, match="at least 6 samples, got 5"):
        training.evaluate(run.path, full=True, num_samples=5)
    with pytest.raises(ValueError, match="4x4 are too small for FID-Inception"):
        training.evaluate(run.path, weights=tmp_path / "none.pth")


def test_the_target_curve_is_the_oracle_s():
    images = fj.data.load("two-moons", num_points=60).images
    field = fj.ClosedFormField(images)
    curve = evaluation.target_curve(field, num_queries=9, seed=3)
    index_key, noise_key = jax.random.split(jax.random.key(3))
    x1 = np.asarray(images, np.float64)[np.asarray(jax.random.choice(index_key, 60, (9,)))]
    x0 = np.asarray(jax.random.normal(noise_key, x1.shape), np.float64)
    variance, effective = [], []
    for t in np.linspace(0, 0.96, 25):
        ones = np.ones(9)
        queries = (1 - t) * x0 + t * x1
        posterior = oracle.posterior(images, queries, (t * ones, (1 - t) * ones, ones, -ones))
        variance.append(posterior.variance.mean())
        effective.append(np.median(posterior.effective_sample_size))
    np.testing.assert_allclose(curve["t"], np.linspace(0, 0.96, 25), atol=1e-6)
    np.testing.assert_allclose(
        curve["relative_variance"], np.array(variance) / variance[0], rtol=2e-3, atol=1e-6
    )
    np.testing.assert_allclose(curve["effective_sample_size"], effective, rtol=2e-3)


@pytest.mark.slow
def test_distances_and_memorised_fractions_are_those_of_the_samples(evaluated):
    run, result = evaluated
    velocity, config, reached = training.load_network(run)
    assert reached == result["step"] == CONFIG.steps
    drawn = np.asarray(samples.draw_samples(config, velocity, 16, seed=1).samples, np.float64)
    rows = np.asarray(fj.data.load("two-moons").images, np.float64)
    distances = np.sort(np.linalg.norm(drawn[:, None] - rows[None], axis=2), axis=1)
    assert result["nearest_distance_median"] == pytest.approx(np.median(distances[:, 0]), rel=1e-4)
    assert result["second_nearest_distance_median"] == pytest.approx(np.median(distances[:, 1]), rel=1e-4)
    for name, ratio in (("1/3", 1 / 3), ("2/3", 2 / 3)):
        expected = np.mean(distances[:, 0] < ratio * distances[:, 1])
        assert result["memorised_fraction"][name] == pytest.approx(expected)
    assert result["pixel_moments"]["samples"]["mean"] == pytest.approx(drawn.mean(), rel=1e-4)
    assert result["timings"]["target_share_of_step"] > 0
    assert result["features"] == "pixels"
    assert json.loads(run.evaluation_file.read_text()) == result


def test_samples_come_from_the_averaged_parameters(evaluated):
    run, _ = evaluated
    averaged = nnx.state(training.load_network(run).velocity)
    _, fresh = state.create(CONFIG)
    with training.checkpoint.Checkpoints(run.checkpoints) as checkpoints:
        restored = checkpoints.restore(fresh, None)
    jax.tree.map(np.testing.assert_array_equal, averaged, restored.ema)
    difference = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), restored.ema, restored.params)
    assert max(jax.tree.leaves(difference)) > 0


def test_the_average_follows_its_recurrence():
    """Three steps by hand in float64: e ← d e + (1 − d) p with d = min(decay, k/(k + 10))."""
    dataset = fj.data.load("two-moons")
    target, rows = assembly.make_target(CONFIG, dataset)
    graphdef, current = state.create(CONFIG)
    function = step.make_step(CONFIG, graphdef)
    iterator = fj.data.batches(dataset, 16, seed=0)
    expected = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(current.params)]
    for k in range(1, 4):
        current, _ = function(current, jax.device_put(next(iterator)), target, rows)
        decay = min(0.9, k / (k + 10))
        parameters = jax.tree.leaves(jax.device_get(current.params))
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, parameters, strict=True)]
    for e, leaf in zip(expected, jax.tree.leaves(current.ema), strict=True):
        np.testing.assert_allclose(leaf, e, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_eight_devices_reach_the_parameters_of_one():
    """Four whole steps, clipped and averaged. The noise must not depend on how the batch is split."""
    # An update that is smooth in the gradient: Adam's first is its sign, which rounding may turn.
    config = dataclasses.replace(
        CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, warmup_steps=50, learning_rate=1e-3)
    )
    dataset = fj.data.load("two-moons")
    reached, losses = [], []
    for devices in (1, 8):
        mesh = fj.data.mesh(jax.devices()[:devices])
        everywhere = jax.NamedSharding(mesh, jax.P())
        target = jax.device_put(assembly.make_target(config, dataset)[0], everywhere)
        graphdef, current = state.create(config)
        current = jax.device_put(current, everywhere)
        function = step.make_step(config, graphdef)
        iterator = fj.data.batches(dataset, 16, seed=0)
        losses.append([])
        for _ in range(4):
            current, metrics = function(current, fj.data.place(next(iterator), mesh), target, None)
            losses[-1].append(float(metrics["loss"]))
        reached.append(jax.device_get((current.params, current.ema)))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), *reached)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["closed-form", "empirical"])
def test_a_class_conditional_run(name, tmp_path):
    source = write_npz(tmp_path / "rows.npz", classes=3)
    config = dataclasses.replace(
        pictures(source, class_conditional=True, num_classes=3),
        target=training.TargetConfig(name=name, num_samples=8),
    )
    run = training.train(config, tmp_path / "run")
    assert len(lines(run)) == 4
    result = training.evaluate(run.path)
    assert np.isfinite(result["frechet_distance"])
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=4))
    with pytest.raises(ValueError, match="num_classes=4, the data 3"):
        training.train(wrong, tmp_path / "wrong")
    unlabelled = write_npz(tmp_path / "unlabelled.npz")
    with pytest.raises(ValueError, match="needs labels"):
        training.train(pictures(unlabelled, class_conditional=True, num_classes=3), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_mirror_images_are_drawn_and_mirrored_along_the_width():
    images = np.arange(64 * 16, dtype=np.float32).reshape(64, 4, 4, 1)
    batch = {"image": jnp.asarray(images), "index": jnp.arange(64)}
    config = pictures("npz:unused", horizontal_flip=True)
    drawn = np.asarray(step.draw(config, jax.random.key(0), batch, None)["x1"])
    mirrored = np.array([np.array_equal(d, i[:, ::-1]) for d, i in zip(drawn, images, strict=True)])
    kept = np.array([np.array_equal(d, i) for d, i in zip(drawn, images, strict=True)])
    assert (mirrored ^ kept).all()
    assert 16 <= mirrored.sum() <= 48
    plain = step.draw(pictures("npz:unused"), jax.random.key(0), batch, None)["x1"]
    np.testing.assert_array_equal(plain, images)


def test_logit_normal_times_stay_below_one_and_centre_on_a_half():
    config = dataclasses.replace(CONFIG, time="logit-normal")
    batch = {"image": jnp.zeros((20_000, 2)), "index": jnp.zeros(20_000, jnp.int32)}
    t = np.asarray(step.draw(config, jax.random.key(0), batch, None)["t"], np.float64)
    assert t.min() > 0
    assert t.max() < 1
    normal = np.log(t / (1 - t))
    assert abs(normal.mean()) < 5 / np.sqrt(20_000)
    assert normal.std() == pytest.approx(1, abs=0.03)


def test_a_solver_that_gives_up_costs_a_picture_and_not_the_run(tmp_path, monkeypatch, capsys):
    real = samples.draw_samples

    def gives_up_once(config, velocity, num, **options):
        if not (tmp_path / "run" / "samples" / "tried").exists():
            (tmp_path / "run" / "samples" / "tried").touch()
            raise RuntimeError("max_steps=4096 reached")
        return real(config, velocity, num, **options)

    monkeypatch.setattr(loop, "draw_samples", gives_up_once)
    run = training.train(CONFIG, tmp_path / "run")
    distances = {line["step"]: line.get("frechet_distance", "absent") for line in lines(run)}
    assert distances[2] is None
    assert distances[4] > 0
    assert "no samples of step 2: max_steps=4096 reached" in capsys.readouterr().out
    assert fj.report.write_report(run.path).is_file()


def test_data_that_changed_are_not_evaluated_or_resumed(tmp_path):
    source = write_npz(tmp_path / "rows.npz")
    run = training.train(pictures(source), tmp_path / "run")
    before = run.metrics_file.read_bytes()
    write_npz(tmp_path / "rows.npz", seed=1)
    with pytest.raises(ValueError, match="trained on other data"):
        training.evaluate(run.path)
    with pytest.raises(ValueError, match="trained on other data"):
        training.train(pictures(source), run.path, resume=True)
    assert not run.evaluation_file.exists()
    assert run.metrics_file.read_bytes() == before


@pytest.mark.slow
def test_samples_can_be_drawn_where_the_data_is_not(tmp_path):
    source = write_npz(tmp_path / "rows.npz")
    run = training.train(pictures(source), tmp_path / "run")
    (tmp_path / "rows.npz").unlink()
    velocity, config, _ = training.load_network(run.path)
    assert samples.draw_samples(config, velocity, 3, seed=0).samples.shape == (3, 4, 4, 1)
    with pytest.raises(FileNotFoundError):
        training.evaluate(run.path)


def test_nothing_is_claimed_when_what_comes_after_the_checks_fails(tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("data holds NaN")

    monkeypatch.setattr(assembly, "make_target", fails)
    with pytest.raises(ValueError, match="NaN"):
        training.train(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_metrics_are_cut_to_whole_lines_up_to_the_checkpoint(tmp_path):
    run = training.RunDirectory(tmp_path)
    whole = ['{"step": 1, "loss": 2.0}', '{"step": 2, "loss": 1.0}', '{"step": 3, "loss": 0.5}']
    run.metrics_file.write_text("\n".join(whole) + '\n{"step": 4, "lo')
    run.truncate_metrics(2)
    assert run.metrics_file.read_text() == "\n".join(whole[:2]) + "\n"


def test_a_kill_while_the_directory_is_claimed_does_not_block_it(tmp_path):
    (tmp_path / ".config.json.17-0a0b0c0d.part").write_text('{"conf')
    run = training.RunDirectory(tmp_path)
    run.start(CONFIG, "0")
    assert run.config() == CONFIG


def test_real_rows_score_what_finite_samples_must():
    """Against fresh draws scored by scipy's matrix square root; it falls with their number like 1/num."""
    dataset = fj.data.load("two-moons")
    score = evaluation.FrechetScore(dataset)
    rows = np.asarray(dataset.images, np.float64)

    def distance(sample):
        first, second = np.cov(sample.T), np.cov(rows.T)
        root = scipy.linalg.sqrtm(first @ second).real
        return np.sum((sample.mean(0) - rows.mean(0)) ** 2) + np.trace(first + second - 2 * root)

    generator = np.random.default_rng(7)
    fresh = [distance(rows[generator.integers(0, len(rows), 50)]) for _ in range(400)]
    floor = score.of_real_rows(50, draws=400)
    assert floor["mean"] == pytest.approx(np.mean(fresh), abs=5 * np.std(fresh) * np.sqrt(2 / 400))
    assert floor["std"] == pytest.approx(np.std(fresh), rel=0.3)
    assert score.of_real_rows(500, draws=400)["mean"] == pytest.approx(floor["mean"] / 10, rel=0.3)
