"""The field's log density along t against float64 NumPy, its growth against the nearest neighbours, and the split."""

import dataclasses
import html
import json

import numpy as np
import pytest

import flowjax as fj
from flowjax.experiments import likelihood

SMALL = likelihood.Settings(
    num_rows=12,
    num_network_rows=4,
    num_noises=2,
    num_times=4,
    network_times=(0.3, 0.9),
    training_steps=4,
    batch_size=16,
    channels=8,
    num_probes=1,
)


def digits(count=80, test=None):
    images = fj.data.load("digits").images
    test_images = None if test is None else images[count : count + test]
    return fj.data.Dataset("some digits", images[:count], test_images=test_images)


def log_sum_exp(rows, x, t):
    """log p̂_t by all rows, float64, of the float32 t that the field sees."""
    t = float(np.float32(t))
    rows, x = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (rows, x))
    sigma = 1 - t
    logits = -((x[:, None] - t * rows) ** 2).sum(-1) / (2 * sigma**2)
    largest = logits.max(1)
    total = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
    return total - np.log(len(rows)) - rows.shape[1] * (np.log(sigma) + np.log(2 * np.pi) / 2)


def test_the_field_against_float64():
    """At all of the experiment's times, training rows and held-out ones, without noise and with it."""
    rng = np.random.default_rng(0)
    train, held = likelihood.split(digits(), SMALL)
    field = fj.ClosedFormField(train.images)
    for t in likelihood.field_times(SMALL):
        for rows in (train.images[:12], held[:12]):
            for noise in (0.0, rng.normal(size=rows.shape)):
                x = (np.float32(t) * rows + (1 - np.float32(t)) * noise).astype(np.float32)
                found = likelihood.field_density(field, x, t)
                expected = log_sum_exp(train.images, x, t)
                # States are float32: what their rounding does to the nearest row's distance is shared with float64.
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3, err_msg=f"t = {t}")


def test_blocks(monkeypatch):
    train, held = likelihood.split(digits(), SMALL)
    field = fj.ClosedFormField(train.images)
    whole = likelihood.field_density(field, held, 0.5)
    monkeypatch.setattr(likelihood, "AT_ONCE", 5)
    np.testing.assert_allclose(likelihood.field_density(field, held, 0.5), whole, rtol=1e-5)


def test_split_sets_rows_apart():
    dataset = digits(81)
    train, held = likelihood.split(dataset, SMALL)
    assert (train.num_points, len(held)) == (65, 16)
    together = np.concatenate([train.images, held]).reshape(81, -1)
    whole = dataset.images.reshape(81, -1)
    np.testing.assert_array_equal(np.sort(together, 0), np.sort(whole, 0))
    assert len(likelihood.split(dataset, dataclasses.replace(SMALL, held_out=30))[1]) == 30
    assert likelihood.split(dataset, dataclasses.replace(SMALL, num_train=20))[0].num_points == 20


def test_split_takes_test_rows():
    dataset = digits(40, test=20)
    train, held = likelihood.split(dataset, SMALL)
    assert train.num_points == 40
    np.testing.assert_array_equal(
        np.sort(held.reshape(20, -1), 0), np.sort(dataset.test_images.reshape(20, -1), 0)
    )


def test_gap_and_its_error():
    rng = np.random.default_rng(0)
    density = rng.normal(size=(3, 2, 5000)) * 4 + np.array([10.0, 6.0])[:, None]
    value, error = likelihood.gap(density, 2)
    np.testing.assert_allclose(value, 2, atol=0.15)
    np.testing.assert_allclose(error, np.sqrt(2 * 4 / 5000), rtol=0.05)


def test_normal_density():
    """Against scipy's, at t = .4: mean t mu, variance t² s² + (1 − t)² in every direction."""
    from scipy.stats import multivariate_normal

    rng = np.random.default_rng(0)
    train, rows = rng.normal(2, 3, size=(50, 2, 2, 1)), rng.normal(size=(4, 2, 2, 1))
    flat = train.reshape(50, -1)
    variance = 0.16 * flat.var(0).mean() + 0.36
    expected = multivariate_normal(0.4 * flat.mean(0), variance * np.eye(4)).logpdf(0.4 * rows.reshape(4, -1))
    np.testing.assert_allclose(likelihood.normal_density(train, rows, 0.4), expected)


def test_passes():
    times, values = np.array([0.0, 0.2, 0.4, 0.6]), np.array([0.0, 1.0, 0.5, 2.5])
    assert likelihood._passes(times, values, 1.5) == pytest.approx(0.5)
    assert likelihood._passes(times, values, 0.75) == pytest.approx(0.425)
    assert np.isnan(likelihood._passes(times, values, 3))


def test_verdict():
    field, error = np.array([0.1, 3.0, 40.0]), np.array([0.02, 0.02, 0.02])
    near, far = np.array([0.0, 0.02, 0.01]), np.array([0.1, 2.0, 0.3])
    assert likelihood.verdict(field, near, error, True) is True
    assert likelihood.verdict(field, near, error, False) is None  # it has learned nothing
    assert likelihood.verdict(field, far, error, True) is False
    assert likelihood.verdict(field / 100, near, error, True) is None
    assert likelihood.verdict(field, near, 10 * error, True) is None
    assert likelihood.verdict(field, near * np.nan, error, True) is None


def test_a_solver_that_gives_up_is_said(monkeypatch):
    def gives_up(*_, **__):
        raise RuntimeError("step size underflow")

    monkeypatch.setattr(fj.sampling, "log_density", gives_up)
    part = likelihood._network(None, np.zeros((3, 8, 8, 1), np.float32), 0.5, SMALL, 0)
    assert part["failed"]
    assert np.isnan(part["log_density"]).all()


@pytest.mark.parametrize(
    ("count", "test", "change", "message"),
    [
        (
            80,
            None,
            {"num_rows": 20},
            "num_rows=20 held-out rows, and 'some digits' has 16 rows set apart of 80",
        ),
        (80, 10, {}, "num_rows=12 held-out rows, and 'some digits' has 10 test rows"),
        (
            20,
            None,
            {"held_out": 12},
            "needs 12 training rows, and 'some digits' has 8 beside the 12 set apart",
        ),
        (80, None, {"num_train": 70}, "needs 70 training rows, and 'some digits' has 64"),
        (80, None, {"num_train": 5}, "num_train=5 is less than num_rows=12"),
        (80, None, {"num_network_rows": 13}, r"num_network_rows=13 must lie in 2\.\.num_rows=12"),
        (80, None, {"network_times": (0.9, 0.3)}, "network_times must rise"),
        (80, None, {"network_times": (0.9, 1.0)}, "network_times must rise"),
        (80, None, {"last_time": 1.0}, "last_time must lie in"),
        (80, None, {"num_noises": 0}, "num_noises must be at least 1"),
    ],
)
def test_bad_input(tmp_path, count, test, change, message):
    settings = dataclasses.replace(SMALL, **change)
    with pytest.raises(ValueError, match=message):
        fj.experiments.run("likelihood", digits(count, test), settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_points_in_the_plane_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rows of shape \(2,\)"):
        fj.experiments.run("likelihood", "two-moons", settings=SMALL, out=tmp_path / "run")


@pytest.fixture
def small_network(monkeypatch):
    """A network that compiles in a second in the U-Net's place."""
    configured = likelihood._networks.configured

    def smaller(*args, **options):
        config = configured(*args, **options)
        model = fj.models.MLPConfig(event_shape=config.model.event_shape, width=16, num_layers=1)
        return dataclasses.replace(config, model=model)

    monkeypatch.setattr(likelihood._networks, "configured", smaller)


@pytest.mark.usefixtures("small_network")
def test_end_to_end(tmp_path, monkeypatch):
    """Interrupted at the network's second time, and gone on with from there."""
    out, network = tmp_path / "run", likelihood._network
    calls = []

    def interrupted(velocity, rows, t, settings, k):
        calls.append(k)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return network(velocity, rows, t, settings, k)

    monkeypatch.setattr(likelihood, "_network", interrupted)
    dataset = digits()
    with pytest.raises(KeyboardInterrupt):
        fj.experiments.run("likelihood", dataset, preset="quick", settings=SMALL, out=out)
    result = fj.experiments.run("likelihood", dataset, preset="quick", settings=SMALL, out=out)
    assert calls == [0, 1, 1]

    train, held = likelihood.split(dataset, SMALL)
    curves, findings = result["curves"], result["findings"]
    for k, t in enumerate(curves["field gap, plain"]["t"]):
        means = [
            log_sum_exp(train.images, np.float32(t) * rows[:12], t).mean() / 64
            for rows in (train.images, held)
        ]
        assert curves["field, training, plain"]["value"][k] == pytest.approx(means[0], rel=1e-3, abs=1e-3)
        assert curves["field gap, plain"]["value"][k] == pytest.approx(
            means[0] - means[1], rel=1e-3, abs=1e-3
        )
    # Late it is the distance of the nearest training row, for any t.
    assert findings["field_gap_over_predicted_at_the_last_time"] == pytest.approx(1, abs=1e-3)
    # An untrained network is none that memorises, and none that says anything.
    assert abs(findings["network_gap"]["0.9"]) < 1
    assert result["agrees"] in (True, None)
    for name in ("densities", "gap"):
        assert (out / f"{name}.png").stat().st_size > 1000
    assert html.escape(result["sentence"]) in (out / "report.html").read_text()
    assert json.loads((out / "result.json").read_text())["findings"] == findings
