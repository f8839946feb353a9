"""Estimators against a linear model, whose gradients NumPy forms in full, and the law of total variance."""

import dataclasses
import html
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.experiments import variance

SMALL = variance.Settings(
    num_groups=4,
    group_size=2,
    num_times=3,
    largest_batch=8,
    num_samples=8,
    training_steps=(4,),
    batch_size=16,
    channels=8,
)


def digits(count=60):
    return fj.data.Dataset("some digits", fj.data.load("digits").images[:count])


def linear(params, x, t):
    return x @ params["w"] + t[:, None] * params["b"]


def written_out(params, x, t, target):
    """[P] gradient of the mean squared error of one group, b before w as a dict's leaves come."""
    residual = 2 / target.size * (linear(params, x, t) - target)
    return np.concatenate([(t[:, None] * residual).sum(0), (x.T @ residual).ravel()])


def test_gradients_of_a_linear_model():
    rng = np.random.default_rng(0)
    x, *targets = rng.normal(size=(4, 5, 3, 2))
    t = rng.random((5, 3))
    params = {"w": rng.normal(size=(2, 2)), "b": rng.normal(size=2)}
    as_single = [jnp.asarray(a, jnp.float32) for a in (x, t, *targets)]
    parts = np.asarray(variance.gradients(linear, {k: jnp.float32(v) for k, v in params.items()}, *as_single))
    exact, conditional, empirical = (
        np.stack([written_out(params, x[k], t[k], target[k]) for k in range(5)]) for target in targets
    )
    np.testing.assert_allclose(parts[0], exact, atol=1e-5)
    np.testing.assert_allclose(parts[1], conditional - exact, atol=1e-5)
    np.testing.assert_allclose(parts[2], empirical - exact, atol=1e-5)
    flat = np.stack([exact, conditional - exact, empirical - exact])
    np.testing.assert_allclose(
        variance.gram(jnp.asarray(parts)), np.einsum("akp,blp->akbl", flat, flat), atol=1e-4
    )


def products(parts):
    return np.einsum("akp,blp->akbl", parts, parts)


def test_estimators_have_no_bias():
    """Three equally likely gradients a target: the mean over all 27 samples of three is the truth, for every number
    that is no ratio."""
    rng = np.random.default_rng(1)
    support = rng.normal(size=(3, 3, 4))
    support[1:] -= support[1:].mean(1, keepdims=True)
    samples = [
        variance._numbers(products(support[:, list(chosen)]), 1)
        for chosen in itertools.product(range(3), repeat=3)
    ]
    mean = {name: np.mean([s[name] for s in samples], 0) for name in ("square", "trace", "noise")}
    full = np.stack([support[0], support[0] + support[1], support[0] + support[2]])
    true_trace = ((full - full.mean(1, keepdims=True)) ** 2).sum(-1).mean(1)
    np.testing.assert_allclose(mean["square"], (support[0].mean(0) ** 2).sum())
    np.testing.assert_allclose(mean["trace"], true_trace)
    np.testing.assert_allclose(mean["noise"], (support[1:] ** 2).sum(-1).mean(1))


def test_known_covariance_and_bands():
    """Normal gradients of known mean and covariance, groups of 4: the estimates within their own errors."""
    rng = np.random.default_rng(2)
    count, size, dimension = 200, 4, 30
    mean = np.full(dimension, 0.3)
    deviations = np.array([1.0, 2.0, 0.5])
    parts = deviations[:, None, None] / np.sqrt(size) * rng.normal(size=(3, count, dimension))
    parts[0] += mean
    found = variance.estimates(products(parts), size)
    truth = {
        "square": dimension * 0.09,
        "trace": dimension * np.array([1, 5, 1.25]),
        "noise": dimension * np.array([4, 0.25]),
        "share": np.array([4 / 5, 0.2]),
        "ratio": 1 / 5,
        "excess": np.zeros(2),
        "scale": np.array([1, 5, 1.25]) / 0.09,
    }
    assert found.keys() == truth.keys()
    for name, expected in truth.items():
        value, error = found[name]
        assert np.all(np.abs(value - expected) < 3.5 * error), name
        if name != "excess":
            assert np.all(error < 0.15 * np.abs(expected)), name


def test_an_unresolved_mean_gives_no_scale():
    parts = np.random.default_rng(3).normal(size=(3, 10, 50))
    found = variance.estimates(products(parts), 1)
    assert np.isnan(found["scale"].value).all()
    assert np.isfinite(found["share"].value).all()


def linear_network(params, x, t):
    flat = x.reshape(len(x), -1)
    return (flat @ params["w"]).reshape(x.shape)


def test_law_of_total_variance():
    """A linear network on real rows. The noise is also E_x Σ_i w_i ‖(2/d) J^T (û − v_i)‖² over the posterior of every
    x_t, here in float64 by all rows; and the variances of the targets differ by it."""
    dataset = digits(40)
    field = fj.ClosedFormField(dataset.images)
    setting = variance._Setting(field, fj.targets.empirical(40), jnp.asarray(dataset.images))
    settings = variance.Settings(num_groups=100, group_size=4)
    params = {"w": np.random.default_rng(4).normal(size=(64, 64)).astype(np.float32) / 8}
    t = 0.3
    part = variance._fixed(setting, linear_network, params, t, settings, 7)
    found = variance.estimates(part["gram"], 4)

    rng = np.random.default_rng((0, 7))
    index = rng.integers(0, 40, 400)
    x0 = rng.normal(size=(400, 8, 8, 1)).astype(np.float32).reshape(400, 64).astype(np.float64)
    rows = dataset.images.reshape(40, 64).astype(np.float64)
    x = (1 - t) * x0 + t * rows[index]
    logits = -((x[:, None] - t * rows) ** 2).sum(-1) / (2 * (1 - t) ** 2)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    # The gradient of w is the outer product of x and 2/d times the residual; v_i − û = (y_i − x̂)/(1 − t).
    spread = (weights * ((rows - (weights @ rows)[:, None]) ** 2).sum(-1)).sum(1)
    each = (2 / 64) ** 2 * (x**2).sum(1) * spread / (1 - t) ** 2
    noise = found["noise"]
    allowed = 3.5 * np.hypot(noise.error[0], each.std() / 20)
    assert abs(noise.value[0] - each.mean()) < allowed < 0.3 * each.mean()
    excess = found["excess"]
    assert abs(excess.value[0]) < 3.5 * excess.error[0] < 0.5 * found["trace"].value[1]
    # With as many samples as there are rows the empirical target is the exact one.
    assert noise.value[1] < 1e-8 * noise.value[0]
    np.testing.assert_allclose(part["effective"], 1 / (weights**2).sum(1), rtol=1e-3)
    np.testing.assert_allclose(part["variance"], spread, rtol=1e-3, atol=1e-3)


def test_batches_are_nested_and_fall_as_their_size():
    dataset = digits(40)
    setting = variance._Setting(
        fj.ClosedFormField(dataset.images), fj.targets.empirical(30), jnp.asarray(dataset.images)
    )
    settings = variance.Settings(num_groups=60, group_size=4, largest_batch=65)
    sizes = variance.batch_sizes(settings)
    assert sizes == [4, 16, 64]
    params = {"w": np.eye(64, dtype=np.float32)}
    grams = variance._batches(setting, linear_network, params, sizes, settings)["gram"]
    found = [variance.estimates(g, b) for g, b in zip(grams, sizes, strict=True)]
    for target in (0, 1):
        # An example's variance, whatever the batch.
        values = [f["trace"].value[target] for f in found]
        errors = [f["trace"].error[target] for f in found]
        assert abs(values[0] - values[2]) < 3.5 * np.hypot(errors[0], errors[2])
    # One draw of rows for the batch: the examples' noise is correlated, and does not average out like that.
    first, last = found[0]["noise"], found[2]["noise"]
    assert last.value[1] - first.value[1] > 2 * np.hypot(first.error[1], last.error[1])


def test_verdict():
    assert variance.verdict(0.6, 0.001, 0.7, 0.05) is True
    assert variance.verdict(0.2, 0.001, 0.7, 0.05) is False
    assert variance.verdict(0.6, 0.2, 0.7, 0.05) is False
    assert variance.verdict(0.6, 0.001, 0.95, 0.05) is None
    assert variance.verdict(np.nan, 0.001, 0.7, 0.05) is None
    effective = np.array([[9, 8], [1, 1], [5, 4], [1.5, 1.2], [1, 1]])
    assert variance.collapse_time(np.arange(5) / 5, effective) == pytest.approx(0.6)
    assert np.isnan(variance.collapse_time(np.arange(2) / 2, effective[:1].repeat(2, 0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_groups": 2}, "at least three groups"),
        ({"largest_batch": 1}, "largest_batch=1 must be at least group_size=2"),
        ({"training_steps": (5, 3)}, "training_steps must be positive and rising"),
        ({"training_steps": ()}, "training_steps must be positive and rising"),
        ({"channels": 7}, "channels=7 must be even"),
    ],
)
def test_bad_settings(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        fj.experiments.run(
            "variance", digits(), settings=dataclasses.replace(SMALL, **change), out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_bad_data(tmp_path):
    with pytest.raises(ValueError, match="at least 2 rows"):
        fj.experiments.run("variance", digits(1), settings=SMALL, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"rows of shape \(2,\)"):
        fj.experiments.run("variance", "two-moons", settings=SMALL, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_network(monkeypatch):
    """A network that compiles in a second in the U-Net's place."""
    configured = variance._networks.configured

    def smaller(*args, **options):
        config = configured(*args, **options)
        model = fj.models.MLPConfig(event_shape=config.model.event_shape, width=16, num_layers=1)
        return dataclasses.replace(config, model=model)

    monkeypatch.setattr(variance._networks, "configured", smaller)


@pytest.mark.slow
@pytest.mark.usefixtures("small_network")
def test_end_to_end(tmp_path):
    out = tmp_path / "run"
    result = fj.experiments.run("variance", digits(), preset="quick", settings=SMALL, out=out)
    assert result["agrees"] in (True, False, None)
    assert result["findings"]["law_of_total_variance_largest_deviation_in_errors"] < 6
    share = result["curves"]["noise share, conditional, 4 steps"]["value"]
    assert len(share) == 3
    assert share[0] > share[-1] >= 0
    for name in ("share", "variance", "batch"):
        assert (out / f"{name}.png").stat().st_size > 1000
    assert html.escape(result["sentence"]) in (out / "report.html").read_text()
