"""The optimal-transport coupling against scipy's assignment, what it must leave alone, and what it refuses."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import flowjax as fj
from flowjax import models, training
from flowjax.targets import couplings
from flowjax.training import step


def pairs(b, event=(5,), seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(b, *event)).astype(np.float32),
        (2 * rng.normal(size=(b, *event)) + 1).astype(np.float32),
    )


def cost_of(x0, x1):
    return (np.square(np.asarray(x0, np.float64) - x1).reshape(len(x1), -1)).sum()


def least_cost(x0, x1, forbidden=None):
    squares = np.square(x0[None].astype(np.float64) - x1[:, None]).reshape(len(x1), len(x0), -1).sum(2)
    if forbidden is not None:
        squares = np.where(forbidden, np.inf, squares)
    return squares[linear_sum_assignment(squares)].sum()


def sorted_rows(x):
    flat = np.asarray(x).reshape(len(x), -1)
    return flat[np.lexsort(flat.T)]


@pytest.mark.parametrize(("b", "event"), [(1, (3,)), (2, (1,)), (7, (4, 3, 2)), (33, (5,)), (64, (2,))])
def test_against_scipy(b, event):
    x0, x1 = pairs(b, event)
    coupled = jax.jit(couplings.optimal_transport)(x0, x1)
    assert cost_of(coupled, x1) == pytest.approx(least_cost(x0, x1), rel=1e-6)
    np.testing.assert_array_equal(sorted_rows(coupled), sorted_rows(x0))  # a permutation, bit for bit
    np.testing.assert_array_equal(coupled, couplings.optimal_transport(x0, x1))
    if b >= 7:
        assert cost_of(coupled, x1) < 0.9 * cost_of(x0, x1)


def test_in_one_dimension_it_is_the_order():
    x0, x1 = pairs(20, (1,))
    coupled = np.asarray(couplings.optimal_transport(x0, x1))
    np.testing.assert_array_equal(np.argsort(coupled[:, 0]), np.argsort(x1[:, 0]))


def test_inside_classes():
    """Classes of very different size and place: no noise leaves its class, and inside the cost is smallest."""
    x0, x1 = pairs(40, (3,))
    labels = np.random.default_rng(1).choice(4, 40, p=[0.6, 0.3, 0.05, 0.05]).astype(np.int32)
    x1 = x1 + 100 * labels[:, None].astype(np.float32)
    coupled = np.asarray(couplings.optimal_transport(x0, x1, labels))
    for label in range(4):
        np.testing.assert_array_equal(sorted_rows(coupled[labels == label]), sorted_rows(x0[labels == label]))
    least = least_cost(x0, x1, labels[:, None] != labels)
    assert cost_of(coupled, x1) == pytest.approx(least, rel=1e-6)
    # The same without labels takes noise across.
    assert cost_of(couplings.optimal_transport(x0, x1), x1) < cost_of(coupled, x1)


def test_equal_rows_and_equal_noise():
    x0, x1 = pairs(6)
    same = np.repeat(x1[:1], 6, 0)
    np.testing.assert_array_equal(sorted_rows(couplings.optimal_transport(x0, same)), sorted_rows(x0))
    np.testing.assert_array_equal(couplings.optimal_transport(x1, x1), x1)


def test_split_over_devices():
    x0, x1 = pairs(32)
    mesh = fj.data.mesh()
    spread = [jax.device_put(a, jax.NamedSharding(mesh, jax.P("data"))) for a in (x0, x1)]
    coupled = jax.jit(couplings.optimal_transport)(*spread)
    assert cost_of(coupled, x1) == pytest.approx(least_cost(x0, x1), rel=1e-6)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_training_batch(conditional):
    """Rows, numbers, labels and times are those of the independent batch; its noise is the same in another order."""

    def config(coupling):
        return training.TrainConfig(
            model=models.MLPConfig(event_shape=(5,), num_classes=3 if conditional else None),
            data=training.DataConfig(class_conditional=conditional),
            target=training.TargetConfig(name="conditional", coupling=coupling),
        )

    _, x1 = pairs(16)
    labels = np.arange(16, dtype=np.int32) % 3
    batch = {"image": jnp.asarray(x1), "index": jnp.arange(16, dtype=jnp.int32), "label": jnp.asarray(labels)}
    independent, coupled = (
        step.draw(config(name), jax.random.key(0), batch, None)
        for name in ("independent", "optimal-transport")
    )
    assert independent.keys() == coupled.keys()
    assert ("labels" in coupled) == conditional
    x0, moved = np.asarray(independent.pop("x0")), np.asarray(coupled.pop("x0"))
    for name, value in independent.items():
        np.testing.assert_array_equal(coupled[name], value)
    np.testing.assert_array_equal(sorted_rows(moved), sorted_rows(x0))
    forbidden = labels[:, None] != labels if conditional else None
    assert cost_of(moved, x1) == pytest.approx(least_cost(x0, x1, forbidden), rel=1e-6)


def test_only_the_conditional_target_takes_it():
    for name in ("closed-form", "empirical"):
        with pytest.raises(ValueError, match=f"the {name} target is the closed form for independent pairs"):
            training.TrainConfig(
                model=models.MLPConfig(event_shape=(5,)),
                target=training.TargetConfig(name=name, coupling="optimal-transport"),
            )
    with pytest.raises(ValueError, match="did you mean 'optimal-transport'"):
        training.TrainConfig(
            model=models.MLPConfig(event_shape=(5,)),
            target=training.TargetConfig(name="conditional", coupling="optimal-trnsport"),  # type: ignore[arg-type]
        )


def test_bad_input():
    x0, x1 = pairs(4)
    with pytest.raises(ValueError, match=r"one shape \[b, \*event\], got \[4, 5\] and \[3, 5\]"):
        couplings.optimal_transport(x0, x1[:3])
    with pytest.raises(ValueError, match="one shape"):
        couplings.optimal_transport(x0[0], x1[0])
    with pytest.raises(ValueError, match="data must be floating point, got uint8"):
        couplings.optimal_transport(x0, np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match=r"labels must have shape \[4\], got \[3\]"):
        couplings.optimal_transport(x0, x1, np.zeros(3, np.int32))


def test_without_ott_nothing_is_written(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ott" else find(name))
    config = training.TrainConfig(
        model=models.MLPConfig(event_shape=(2,)),
        data=training.DataConfig(source="two-moons"),
        target=training.TargetConfig(name="conditional", coupling="optimal-transport"),
    )
    with pytest.raises(RuntimeError, match=r"flowjax-closedform\[ott\]"):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
