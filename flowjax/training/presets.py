"""Named configurations. Each docstring says what it costs, what number to expect and the command."""

from collections.abc import Callable

from flowjax._choices import check_choice
from flowjax.models import MLPConfig, UNetConfig

from .config import DataConfig, OptimizerConfig, TargetConfig, TrainConfig


def digits() -> TrainConfig:
    """scikit-learn's digits, 1 797 pictures of 8×8, on the exact target: README's main job.

    Cost: 2 min 35 s on two CPU cores, sampling and report included; the exact target is 5 % of a step. Expect samples
    that read as digits, 0 % memorised at ratio 1/3 (.4 % at 2/3), and a Fréchet distance of 4.4 ± .8 with 512 samples
    (one network, eight seeds of noise), where as many real rows score 3.6 ± 1.1: compare networks with more samples.

    Command: flowjax train digits
    """
    return TrainConfig(
        model=UNetConfig.digits(),
        data=DataConfig(source="digits"),
        target=TargetConfig(name="closed-form"),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=100, ema_decay=0.999),
        steps=2000,
        batch_size=64,
        sample_every=500,
        checkpoint_every=500,
    )


def two_moons() -> TrainConfig:
    """Two moons, points in the plane, by an MLP on the exact target.

    Cost: under two minutes on two CPU cores. Expect two clean crescents.

    Command: flowjax train two-moons
    """
    return TrainConfig(
        model=MLPConfig(event_shape=(2,)),
        data=DataConfig(source="two-moons"),
        target=TargetConfig(name="closed-form"),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=100, ema_decay=0.999),
        steps=3000,
        batch_size=256,
        sample_every=1000,
        checkpoint_every=1000,
    )


def fashion_mnist() -> TrainConfig:
    """Fashion-MNIST, 60 000 pictures of 28×28, on the exact target, with the paper's optimizer.

    Cost: made for one GPU; not run to the end here, so no number is promised. The paper (arXiv 2506.03719, table 1)
    has Fréchet distance 21.4 at epoch 100 for CFM, in the features of its own classifier.

    Command: flowjax train fashion-mnist --data.source idx:DIR
    """
    return TrainConfig(
        model=UNetConfig(
            event_shape=(28, 28, 1), channels=64, channel_mult=(1, 2, 2), attention_resolutions=(14,)
        ),
        data=DataConfig(source="fashion-mnist"),
        target=TargetConfig(name="closed-form"),
        steps=46_900,
        sample_every=2345,
        checkpoint_every=2345,
    )


def cifar10() -> TrainConfig:
    """CIFAR-10 with the paper's network (35.7 M parameters) and hyper-parameters, on the exact target.

    Cost: made for one large GPU; not run to the end here, so no number is promised. arXiv 2506.03719, appendix.

    Command: flowjax train cifar10 --data.source npz:FILE
    """
    return TrainConfig(
        model=UNetConfig.paper(),
        data=DataConfig(source="tfds:cifar10", horizontal_flip=True),
        target=TargetConfig(name="closed-form"),
        steps=400_000,
        sample_every=10_000,
        checkpoint_every=5_000,
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "digits": digits,
    "two-moons": two_moons,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
}


def preset(name: str) -> TrainConfig:
    """The configuration of a preset. Raises ValueError with the nearest name for an unknown one."""
    check_choice("preset", name, PRESETS)
    return PRESETS[name]()
