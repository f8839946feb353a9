"""Pieces that every velocity network shares: batch axes, the conditioning vector, convolutions, norms."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import ArrayLike

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
LARGEST_PERIOD_RATIO = 10_000.0


def flatten_batch(
    x: jax.Array,
    t: ArrayLike,
    labels: ArrayLike | None,
    event_shape: tuple[int, ...],
    num_classes: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None, tuple[int, ...]]:
    """One batch axis out of any number of them, with a wrong shape, type or label refused.

    Args:
        x: [*batch, *event], floating point.
        t: broadcastable to [*batch].
        labels: integers broadcastable to [*batch], in [0, num_classes]; None means num_classes, the null
            label, when the network is conditional.

    Returns:
        x [b, *event], t [b] float32, labels [b] int32 (None for an unconditional network), and [*batch].

    Raises:
        ValueError, TypeError: in one sentence; labels out of range only when they are concrete (traced ones
            give NaN velocities, or those of class −k counted from the end when negative).
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x has dtype {x.dtype}, but a network takes floating-point points; convert it first")
    rank = len(event_shape)
    if x.ndim < rank or x.shape[x.ndim - rank :] != tuple(event_shape):
        raise ValueError(
            f"x has shape {x.shape}, whose last axes are not the network's event_shape {tuple(event_shape)}"
        )
    batch = x.shape[: x.ndim - rank]
    t = _broadcast_to_batch("t", jnp.asarray(t, jnp.float32), batch)
    if labels is None:
        labels = None if num_classes is None else jnp.full(batch, num_classes, jnp.int32)
    else:
        labels = _broadcast_to_batch("labels", check_labels(labels, num_classes), batch)
    if len(batch) != 1:  # an untouched batch axis keeps whatever sharding it has
        b = math.prod(batch)
        x, t = x.reshape((b, *event_shape)), t.reshape(b)
        labels = None if labels is None else labels.reshape(b)
    return x, t, labels, batch


def check_labels(labels: ArrayLike, num_classes: int | None) -> jax.Array:
    """Labels as int32; raises for a network without classes, and for labels that are not classes."""
    if num_classes is None:
        raise ValueError(
            "labels were given to an unconditional network; set num_classes in its configuration"
        )
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels have dtype {labels.dtype}, but they are class numbers; use int32")
    if not isinstance(labels, Tracer) and labels.size:
        values = np.asarray(labels)  # on the host: under a trace a jnp operation on constants is traced too
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > num_classes:
            raise ValueError(
                f"labels reach from {low} to {high}, outside [0, {num_classes}], "
                f"where {num_classes} is the null label"
            )
    return labels.astype(jnp.int32)


def _broadcast_to_batch(name: str, value: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    if value.shape == batch:
        return value
    try:
        return jnp.broadcast_to(value, batch)
    except ValueError:
        raise ValueError(
            f"{name} has shape {value.shape}, which does not broadcast to the batch shape {batch} of x"
        ) from None


def sinusoidal(t: jax.Array, features: int, scale: float) -> jax.Array:
    """cos and sin of scale·t at `features`/2 geometric frequencies from scale down to scale/10 000.

    Args:
        t: [b] float32.
        features: an even number.
        scale: the largest angular frequency, in radians per unit of time.

    Returns:
        [b, features] float32.

    References: Vaswani et al., arXiv 1706.03762, §3.5; with scale = 1 as torchcfm uses it for flows.
    """
    half = features // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / half
    angles = t[:, None] * (scale * jnp.exp(-math.log(LARGEST_PERIOD_RATIO) * exponents))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Conditioning(nnx.Module):
    """Time, and class where there is one, as one vector: silu(W₂ silu(W₁ sinusoidal(t)) + table[label])."""

    def __init__(
        self, features: int, width: int, scale: float, num_classes: int | None, dtype, *, rngs: nnx.Rngs
    ):
        self.features, self.scale = features, scale
        self.input = nnx.Linear(features, width, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        # one row more than there are classes: the null label, what "no class" means to guidance
        self.classes = (
            None if num_classes is None else nnx.Embed(num_classes + 1, width, dtype=dtype, rngs=rngs)
        )

    def __call__(self, t: jax.Array, labels: jax.Array | None) -> jax.Array:
        """[b] and [b] or None → [b, width], already through the activation that its readers want."""
        vector = self.output(jax.nn.silu(self.input(sinusoidal(t, self.features, self.scale))))
        if self.classes is not None and labels is not None:
            vector = vector + self.classes(labels)
        return jax.nn.silu(vector)


def group_norm(channels: int, largest: int, dtype, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalisation with at most `largest` groups, at least four channels each, dividing evenly.

    At 128 channels and more this is the usual 32 groups; at 32 channels 32 groups would be one channel
    each, which erases every channel's mean, so there are 8.
    """
    limit = max(1, min(largest, channels // 4))
    groups = next(count for count in range(limit, 0, -1) if channels % count == 0)
    return nnx.GroupNorm(channels, num_groups=groups, epsilon=1e-5, dtype=dtype, rngs=rngs)


def convolution(inputs: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """`lax.conv_general_dilated` for NHWC, except that pictures smaller than the kernel go through `unfold`.

    The CPU compiler has fast convolutions only for pictures at least as large as the kernel: at 2×2 and
    3×3 its plain loops cost 2.5 ms where the product takes .2 ms, which was 40 % of a training step.
    """
    if min(inputs.shape[1:3]) >= max(kernel.shape[:2]) or options["feature_group_count"] != 1:
        return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, **options)
    patches = unfold(inputs, kernel.shape[:2], strides, padding)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def unfold(inputs: jax.Array, window: Sequence[int], strides, padding) -> jax.Array:
    """Every window of a padded picture as one vector: [b, h, w, c] → [b, h', w', kh·kw·c].

    Args:
        inputs: [b, h, w, c].
        window: (kh, kw).
        strides: (int, int).
        padding: ((low, high), (low, high)).
    """
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    height, width = (
        (size - length) // stride + 1
        for size, length, stride in zip(padded.shape[1:3], window, strides, strict=True)
    )
    return jnp.concatenate(
        [
            padded[:, i : i + strides[0] * height : strides[0], j : j + strides[1] * width : strides[1]]
            for i in range(window[0])
            for j in range(window[1])
        ],
        axis=-1,
    )


def conv3x3(
    inputs: int, outputs: int, *, strides: int = 1, zero: bool = False, dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """A 3×3 convolution with padding 1, zero at first where asked."""
    initial = nnx.initializers.zeros_init() if zero else nnx.initializers.lecun_normal()
    return nnx.Conv(
        inputs,
        outputs,
        (3, 3),
        strides,
        padding=1,
        dtype=dtype,
        kernel_init=initial,
        conv_general_dilated=convolution,
        rngs=rngs,
    )
