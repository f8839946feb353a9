"""What a configuration refuses: every wrong value would otherwise train something else without a word."""

import dataclasses

import pytest

from flowjax import models
from flowjax.training import DataConfig, OptimizerConfig, TargetConfig, TrainConfig
from flowjax.training.config import first_difference


def config(**changes) -> TrainConfig:
    return TrainConfig(model=models.MLPConfig(event_shape=(2,)), **changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"target": TargetConfig(name="closedform")},
            "unknown name 'closedform' in TargetConfig.*'closed-form'",
        ),
        ({"target": TargetConfig(path="liner")}, "unknown path 'liner'.*'linear'"),
        ({"time": "logitnormal"}, "unknown time 'logitnormal'.*'logit-normal'"),
        ({"optimizer": OptimizerConfig(schedule="cosin")}, "unknown schedule 'cosin'.*'cosine'"),
        ({"optimizer": OptimizerConfig(name="sgd")}, "unknown name 'sgd'.*adam, adamw, radam"),
    ],
)
def test_unknown_names_come_with_the_nearest(changes, match):
    with pytest.raises(ValueError, match=match):
        config(**changes)


@pytest.mark.parametrize("changes", [{"steps": 2.5}, {"batch_size": True}, {"seed": "1"}])
def test_numbers_that_are_not_whole(changes):
    with pytest.raises(TypeError, match="must be a whole number"):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seed": -1}, "seed must lie in 0..4294967295, got -1"),
        ({"optimizer": OptimizerConfig(weight_decay=0.1)}, "no effect on adam; set --optimizer.name adamw"),
        ({"optimizer": OptimizerConfig(name="adamw", weight_decay=-0.1)}, "finite and not negative"),
        ({"optimizer": OptimizerConfig(learning_rate=float("nan"))}, "must be positive"),
        ({"data": DataConfig(horizontal_flip=True)}, r"needs pictures .* shape \(2,\)"),
    ],
)
def test_settings_that_would_be_ignored_or_misread(changes, match):
    with pytest.raises(ValueError, match=match):
        config(**changes)


def test_weight_decay_is_accepted_where_it_works():
    decayed = config(optimizer=OptimizerConfig(name="adamw", weight_decay=0.1))
    assert decayed.optimizer.weight_decay == 0.1


def test_the_first_difference_is_named_with_both_values():
    old = config()
    new = dataclasses.replace(old, optimizer=dataclasses.replace(old.optimizer, clip=2.0), seed=3)
    assert first_difference(old.to_dict(), old.to_dict()) is None
    assert first_difference(old.to_dict(), new.to_dict()) == "optimizer.clip was 1.0 and is now 2.0"
