"""What a run is made of: frozen, nested, checked when built, and equal to its JSON."""

import dataclasses
import json
import math
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from flowjax import paths
from flowjax._choices import hint
from flowjax.data import Dataset, load
from flowjax.models import NETWORKS, MLPConfig, UNetConfig

TargetName = Literal["conditional", "empirical", "closed-form"]
_PATHS: dict[str, Any] = {
    "linear": paths.Linear,
    "trigonometric": paths.Trigonometric,
    "variance-preserving": paths.VariancePreserving,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which rows to train on.

    Attributes:
        source: what `flowjax.data.load` takes: digits, two-moons, idx:DIR, npz:FILE, images:DIR, tfds:NAME_OR_DIR …
        image_size: side that pictures of an images: folder are resized and cropped to.
        horizontal_flip: mirror images count as data, in the batches and in the exact target.
        class_conditional: the network and the target are told the label.
    """

    source: str = "digits"
    image_size: int | None = None
    horizontal_flip: bool = False
    class_conditional: bool = False

    def load(self) -> Dataset:
        """The data set. Errors as for `flowjax.data.load`."""
        return load(self.source, image_size=self.image_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What the network regresses on.

    Attributes:
        name: conditional (CFM), empirical (EFM), or closed-form (exact).
        num_samples: points of the empirical target.
        path: linear, trigonometric or variance-preserving.
        method: of the field behind closed-form: auto, dense or screened (see ClosedFormField).
        coupling: which noise goes with which row of a batch: independent, or optimal-transport (OT-CFM, for the
            conditional target only; needs ott-jax).
    """

    name: Annotated[TargetName, tyro.conf.arg(aliases=("--target",))] = "closed-form"
    num_samples: int = 1000
    path: Literal["linear", "trigonometric", "variance-preserving"] = "linear"
    method: Literal["auto", "dense", "screened"] = "auto"
    coupling: Literal["independent", "optimal-transport"] = "independent"

    def build_path(self) -> paths.Path:
        return _PATHS[self.path]()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optax chain: clip by global norm, then Adam and its kin under a warm-up.

    Attributes:
        name: adam, adamw or radam.
        learning_rate: after the warm-up.
        schedule: constant, or cosine down to zero at the last step.
        warmup_steps: linear from zero.
        clip: largest global gradient norm.
        weight_decay: of adamw.
        ema_decay: of the averaged parameters that samples are drawn with.
        accumulate: micro-batches that a batch is cut into.
    """

    name: Literal["adam", "adamw", "radam"] = "adam"
    learning_rate: float = 2e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 5000
    clip: float = 1.0
    weight_decay: float = 0.0
    ema_decay: float = 0.9999
    accumulate: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run. Presets are in `flowjax.training.presets`.

    Attributes:
        data, model, target, optimizer: the parts.
        steps: optimizer steps.
        batch_size: examples per step, over all devices together.
        time: distribution of t, uniform or logit-normal.
        seed: of parameters, batches, noise and times.
        log_every: steps between lines of metrics.jsonl.
        sample_every: steps between sample grids with their Fréchet distance; the last step has one always.
        checkpoint_every: steps between checkpoints; the last step has one always.
        num_samples: samples behind a Fréchet distance.
    """

    model: MLPConfig | UNetConfig
    data: DataConfig = DataConfig()
    target: TargetConfig = TargetConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = 10_000
    batch_size: int = 128
    time: Literal["uniform", "logit-normal"] = "uniform"
    seed: int = 0
    log_every: int = 10
    sample_every: int = 1000
    checkpoint_every: int = 1000
    num_samples: int = 512

    def __post_init__(self):
        for part in (self, self.data, self.target, self.optimizer):
            _check_fields(part)
        check_seed(self.seed)
        positive = ("steps", "batch_size", "log_every", "sample_every", "checkpoint_every")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2 for a Fréchet distance, got {self.num_samples}")
        optimizer = self.optimizer
        if not 0 < optimizer.learning_rate < math.inf or not optimizer.clip > 0:
            raise ValueError(
                "learning_rate must be positive and finite and clip positive, "
                f"got {optimizer.learning_rate} and {optimizer.clip}"
            )
        if not 0 <= optimizer.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {optimizer.ema_decay}")
        if optimizer.accumulate < 1 or self.batch_size % optimizer.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be cut into accumulate={optimizer.accumulate} equal parts"
            )
        if optimizer.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {optimizer.warmup_steps}")
        if not 0 <= optimizer.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, got {optimizer.weight_decay}")
        if optimizer.weight_decay and optimizer.name != "adamw":
            raise ValueError(
                f"weight_decay={optimizer.weight_decay} has no effect on {optimizer.name}; "
                "set --optimizer.name adamw, or leave weight_decay at 0"
            )
        if self.data.horizontal_flip and len(self.model.event_shape) != 3:
            raise ValueError(
                f"horizontal_flip needs pictures [height, width, channels], and the model takes events of shape "
                f"{self.model.event_shape}"
            )
        if self.target.num_samples < 1:
            raise ValueError(f"target.num_samples must be at least 1, got {self.target.num_samples}")
        if self.target.coupling != "independent" and self.target.name != "conditional":
            raise ValueError(
                f"the {self.target.name} target is the closed form for independent pairs; with "
                f"--target.coupling {self.target.coupling} take --target conditional"
            )
        if self.data.class_conditional and self.model.num_classes is None:
            raise ValueError("class_conditional needs a model with num_classes; set --model.num-classes")
        if not self.data.class_conditional and self.model.num_classes is not None:
            raise ValueError(
                f"model.num_classes={self.model.num_classes} has no effect unless the run is class-conditional; "
                "set --data.class-conditional, or leave num_classes out"
            )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain types; `from_dict` is the inverse."""
        result = dataclasses.asdict(self)
        kind = next(name for name, (cls, _) in NETWORKS.items() if type(self.model) is cls)
        result["model"] = {"kind": kind, **result["model"]}
        return json.loads(json.dumps(result))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Raises ValueError for what is not a configuration of this version."""
        values = dict(values)
        try:
            model = dict(values.pop("model"))
            model_class, _ = NETWORKS[model.pop("kind")]
            model = model_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in model.items()})
            return cls(
                model=model,
                data=DataConfig(**values.pop("data")),
                target=TargetConfig(**values.pop("target")),
                optimizer=OptimizerConfig(**values.pop("optimizer")),
                **values,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no configuration that this version understands: {error}") from None


def check_seed(seed: int) -> None:
    """Raises ValueError unless 0 ≤ seed < 2^32, which every random generator here takes."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0..{2**32 - 1}, got {seed}")


def _check_fields(part: Any) -> None:
    """Whole numbers where an int is declared, a known name where there is a choice of names.

    Annotations promise it and the command line keeps the promise; from Python a wrong name would otherwise be taken
    for whatever the last branch that tells names apart happens to be.
    """
    for name, kind in get_type_hints(type(part)).items():
        value = getattr(part, name)
        if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        choices = get_args(kind)
        if choices and all(isinstance(choice, str) for choice in choices) and value not in choices:
            raise ValueError(f"unknown {name} {value!r} in {type(part).__name__}; {hint(value, choices)}")


def first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """Name and values of the first field in which two configurations differ, or None."""
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = first_difference(a, b, f"{prefix}{key}.")
            if inner is not None:
                return inner
        elif a != b:
            return f"{prefix}{key} was {a!r} and is now {b!r}"
    return None
