"""The U-Net of diffusion and flow models, NHWC.

References:
    Dhariwal and Nichol, arXiv 2105.05233 (the architecture, "ADM"); Tong et al., torchcfm (its use for
    flows); Bertrand et al., arXiv 2506.03719 (the configuration `UNetConfig.paper()`).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from flowjax._choices import check_choice

from ._config import check_event_shape, check_positive, check_rate
from ._layers import DTYPES, Conditioning, conv3x3, group_norm
from ._network import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Every choice of a `UNet`; the defaults are the paper's network at 32×32×3.

    Attributes:
        event_shape: (height, width, channels); both sides divisible by 2 to the number of levels less one.
        channels: width of the first level.
        channel_mult: width of every level as a multiple of `channels`; its length is the number of levels,
            and each halves the picture of the one before.
        num_res_blocks: residual blocks a level on the way down.
        attention_resolutions: heights of the levels whose blocks are each followed by self-attention.
        num_heads: attention heads.
        dropout: rate inside the residual blocks, active in training mode only.
        scale_shift: conditioning scales and shifts the normalised channels (FiLM) instead of being added.
        resample_skips: the input convolution and every halving feed a skip connection too, so that the way
            up has one block a level more than the way down.
        resample_convolution: learned 3×3 convolutions halve and double; otherwise 2×2 means and copies.
        middle_attention: attention after the first middle block.
        num_groups: largest number of normalisation groups.
        time_scale: largest angular frequency of the time embedding.
        num_classes: None for an unconditional network; otherwise label `num_classes` is the null label.
        middle_blocks: residual blocks at the lowest resolution between the two ways.
        project_skips: a skip connection is joined by a 1×1 projection back to the level's width, so that no
            convolution sees the concatenation.
        dtype: of the computation; parameters are float32 always.

    Raises:
        ValueError: for sizes that do not fit, in one sentence.
    """

    event_shape: tuple[int, int, int] = (32, 32, 3)
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 4
    dropout: float = 0.1
    scale_shift: bool = False
    resample_skips: bool = True
    resample_convolution: bool = True
    project_skips: bool = False
    middle_blocks: int = 2
    middle_attention: bool = True
    num_groups: int = 32
    time_scale: float = 1.0
    num_classes: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        check_event_shape(self.event_shape, rank=3)
        check_positive(
            channels=self.channels,
            num_res_blocks=self.num_res_blocks,
            middle_blocks=self.middle_blocks,
            num_heads=self.num_heads,
            num_groups=self.num_groups,
            time_scale=self.time_scale,
            num_classes=self.num_classes,
        )
        check_rate(dropout=self.dropout)
        check_choice("dtype", self.dtype, DTYPES)
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult={self.channel_mult} must be positive, one number a level")
        if self.channels % 2:
            raise ValueError(f"channels={self.channels} must be even, for the cosines and sines of time")
        height, width, _ = self.event_shape
        factor = 2 ** (len(self.channel_mult) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"a {height}×{width} picture cannot be halved {len(self.channel_mult) - 1} times; "
                f"pad it to multiples of {factor} or give channel_mult fewer than "
                f"{len(self.channel_mult)} levels"
            )
        heights = [height >> level for level in range(len(self.channel_mult))]
        for resolution in self.attention_resolutions:
            if resolution not in heights:
                raise ValueError(
                    f"attention_resolutions has {resolution}, but the levels have the heights {heights}"
                )
        for level, mult in enumerate(self.channel_mult):
            attends = heights[level] in self.attention_resolutions
            attends |= self.middle_attention and level == len(self.channel_mult) - 1
            if attends and (self.channels * mult) % self.num_heads:
                raise ValueError(
                    f"{self.channels * mult} channels at height {heights[level]} "
                    f"cannot be split over num_heads={self.num_heads}"
                )

    @classmethod
    def paper(cls, **changes) -> "UNetConfig":
        """The network of arXiv 2506.03719 for CIFAR-10: 35 746 307 parameters, which are torchcfm's too."""
        return cls(**changes)

    @classmethod
    def digits(cls, **changes) -> "UNetConfig":
        """A network for 8×8×1 digits, 8→4→2 with 32/64/64 channels: 40 ms a step of 64 on one CPU core."""
        return cls(
            **{
                "event_shape": (8, 8, 1),
                "channels": 32,
                "channel_mult": (1, 2, 2),
                "num_res_blocks": 1,
                "attention_resolutions": (),
                "dropout": 0.0,
                "scale_shift": True,
                "resample_skips": False,
                "resample_convolution": False,
                "middle_attention": False,
                "time_scale": 100.0,
                "project_skips": True,
                "middle_blocks": 1,
                **changes,
            }
        )


class ResBlock(nnx.Module):
    """h + conv(dropout(silu(norm(conv(silu(norm(h))) ⊕ conditioning)))); the last conv is zero at first."""

    def __init__(self, config: UNetConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        dtype = DTYPES[config.dtype]
        self.scale_shift = config.scale_shift
        self.input_norm = group_norm(inputs, config.num_groups, dtype, rngs=rngs)
        self.input = conv3x3(inputs, outputs, dtype=dtype, rngs=rngs)
        self.condition = nnx.Linear(
            4 * config.channels, outputs * (1 + config.scale_shift), dtype=dtype, rngs=rngs
        )
        self.output_norm = group_norm(outputs, config.num_groups, dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, deterministic=True)
        self.output = conv3x3(outputs, outputs, zero=True, dtype=dtype, rngs=rngs)
        self.skip = None if inputs == outputs else nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, h: jax.Array, condition: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """[b, h, w, inputs] and [b, 4·channels] → [b, h, w, outputs]."""
        branch = self.input(jax.nn.silu(self.input_norm(h)))
        condition = self.condition(condition)[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(condition, 2, axis=-1)
            branch = self.output_norm(branch) * (1 + scale) + shift
        else:
            branch = self.output_norm(branch + condition)
        branch = self.output(self.dropout(jax.nn.silu(branch), rngs=rngs, deterministic=rngs is None))
        return branch + (h if self.skip is None else self.skip(h))


class Attention(nnx.Module):
    """Self-attention over pixels with a residual connection, zero at first."""

    def __init__(self, config: UNetConfig, channels: int, *, rngs: nnx.Rngs):
        dtype = DTYPES[config.dtype]
        self.num_heads = config.num_heads
        self.norm = group_norm(channels, config.num_groups, dtype, rngs=rngs)
        self.input = nnx.Linear(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(
            channels, channels, dtype=dtype, kernel_init=nnx.initializers.zeros_init(), rngs=rngs
        )

    def __call__(self, h: jax.Array) -> jax.Array:
        """[b, h, w, c] → [b, h, w, c]."""
        b, height, width, channels = h.shape
        heads = self.input(self.norm(h)).reshape(
            b, height * width, 3, self.num_heads, channels // self.num_heads
        )
        mixed = jax.nn.dot_product_attention(heads[:, :, 0], heads[:, :, 1], heads[:, :, 2])
        return h + self.output(mixed.reshape(b, height, width, channels))


class Stage(nnx.Module):
    """A residual block and, at the resolutions that want it, attention."""

    def __init__(self, config: UNetConfig, inputs: int, outputs: int, attend: bool, *, rngs: nnx.Rngs):
        self.block = ResBlock(config, inputs, outputs, rngs=rngs)
        self.attention = Attention(config, outputs, rngs=rngs) if attend else None

    def __call__(self, h: jax.Array, condition: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """[b, h, w, inputs] and [b, 4·channels] → [b, h, w, outputs]."""
        h = self.block(h, condition, rngs)
        return h if self.attention is None else self.attention(h)


class Join(nnx.Module):
    """A stage of the way up, which also reads what the way down left at its resolution."""

    def __init__(self, config: UNetConfig, inputs: int, outputs: int, attend: bool, *, rngs: nnx.Rngs):
        dtype = DTYPES[config.dtype]
        self.project = nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs) if config.project_skips else None
        self.stage = Stage(config, outputs if config.project_skips else inputs, outputs, attend, rngs=rngs)

    def __call__(
        self, h: jax.Array, skip: jax.Array, condition: jax.Array, rngs: nnx.Rngs | None
    ) -> jax.Array:
        """[b, h, w, ·] twice, `inputs` channels together → [b, h, w, outputs]."""
        h = jnp.concatenate([h, skip], axis=-1)
        return self.stage(h if self.project is None else self.project(h), condition, rngs)


class Resample(nnx.Module):
    """Halves (2×2 means, or a convolution of stride 2) or doubles (copies, and a convolution after them)."""

    def __init__(self, config: UNetConfig, channels: int, *, halve: bool, rngs: nnx.Rngs):
        self.halve = halve
        self.convolution = (
            conv3x3(channels, channels, strides=2 if halve else 1, dtype=DTYPES[config.dtype], rngs=rngs)
            if config.resample_convolution
            else None
        )

    def __call__(self, h: jax.Array) -> jax.Array:
        b, height, width, channels = h.shape
        if not self.halve:
            h = jnp.broadcast_to(h[:, :, None, :, None], (b, height, 2, width, 2, channels))
            h = h.reshape(b, 2 * height, 2 * width, channels)
        elif self.convolution is None:
            return h.reshape(b, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        return h if self.convolution is None else self.convolution(h)


class Level(nnx.Module):
    """The stages at one resolution and the change to the next."""

    def __init__(self, stages: list[Stage] | list[Join], resample: Resample | None):
        self.stages = nnx.List(stages)
        self.resample = resample


class UNet(Network):
    """A velocity function of pictures: `model(x, t, labels=None)`; its value is zero before training."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        """Initialises the parameters from the stream `params` of rngs."""
        self.config = config
        self.event_shape, self.num_classes = config.event_shape, config.num_classes
        self.dropout_rate = config.dropout
        self.deterministic = True
        height, _, event_channels = config.event_shape
        dtype = DTYPES[config.dtype]
        last = len(config.channel_mult) - 1

        self.conditioning = Conditioning(
            config.channels, 4 * config.channels, config.time_scale, config.num_classes, dtype, rngs=rngs
        )
        width = config.channels
        self.input = conv3x3(event_channels, width, dtype=dtype, rngs=rngs)
        skips = [width] if config.resample_skips else []
        encoder, decoder = [], []
        for level, mult in enumerate(config.channel_mult):
            attend = height >> level in config.attention_resolutions
            stages = []
            for _ in range(config.num_res_blocks):
                stages.append(Stage(config, width, mult * config.channels, attend, rngs=rngs))
                width = mult * config.channels
                skips.append(width)
            resample = None
            if level < last:
                resample = Resample(config, width, halve=True, rngs=rngs)
                if config.resample_skips:
                    skips.append(width)
            encoder.append(Level(stages, resample))
        self.encoder = nnx.List(encoder)

        self.middle = nnx.List(
            [
                Stage(config, width, width, config.middle_attention and index == 0, rngs=rngs)
                for index in range(config.middle_blocks)
            ]
        )

        for level in reversed(range(last + 1)):
            attend = height >> level in config.attention_resolutions
            stages = []
            for _ in range(config.num_res_blocks + config.resample_skips):
                outputs = config.channel_mult[level] * config.channels
                stages.append(Join(config, width + skips.pop(), outputs, attend, rngs=rngs))
                width = outputs
            resample = Resample(config, width, halve=False, rngs=rngs) if level else None
            decoder.append(Level(stages, resample))
        self.decoder = nnx.List(decoder)
        self.output_norm = group_norm(width, config.num_groups, dtype, rngs=rngs)
        self.output = conv3x3(width, event_channels, zero=True, dtype=dtype, rngs=rngs)

    def evaluate(self, x, t, labels, rngs):
        condition = self.conditioning(t, labels)
        h = self.input(x.astype(DTYPES[self.config.dtype]))
        skips = [h] if self.config.resample_skips else []
        for level in self.encoder:
            for stage in level.stages:
                h = stage(h, condition, rngs)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                if self.config.resample_skips:
                    skips.append(h)
        for stage in self.middle:
            h = stage(h, condition, rngs)
        for level in self.decoder:
            for stage in level.stages:
                h = stage(h, skips.pop(), condition, rngs)
            if level.resample is not None:
                h = level.resample(h)
        return self.output(jax.nn.silu(self.output_norm(h)))
