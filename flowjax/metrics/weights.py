"""Pretrained layers: taken out of a state dict one by one, so that another network's file is refused by name."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

EPSILON = 1e-3  # of every batch norm in Inception and EfficientNet, in TensorFlow and in torch alike


class Weights:
    """A state dict that is handed out layer by layer, each in the shape that the network expects.

        weights = Weights(read_state_dict(file), network="FID-Inception", source=file)
        kernel = weights.take("fc.weight", (1008, 2048))
        ...
        weights.finish()

    Args:
        tensors: arrays by name, in torch's layout.
        network: what the weights should be of, for messages.
        source: where they come from, for messages.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], *, network: str, source: Any):
        self._rest = dict(tensors)
        self._network = network
        self._source = source

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor as float32, once.

        Raises:
            ValueError: it is not there, has another shape, or holds NaN or infinite entries.
        """
        found = self._rest.pop(name, None)
        if found is None:
            raise ValueError(
                f"{self._source} has no {name}, so these are not the weights of {self._network}; "
                f"it wants {name} of shape {shape}"
            )
        if found.shape != shape:
            raise ValueError(
                f"{self._source} has {name} of shape {found.shape}, but {self._network} takes {shape}: "
                "these are the weights of another network"
            )
        found = found.astype(np.float32)
        if not np.isfinite(found).all():
            raise ValueError(f"{self._source} has NaN or infinite entries in {name}; download it again")
        return found

    def convolution(
        self, name: str, norm: str, kernel_shape: tuple[int, int, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A convolution without bias and the batch norm after it, as one kernel [h, w, in, out] and bias [out].

        Args:
            name: of the kernel.
            norm: of the batch norm, without `.weight`, `.bias`, `.running_mean`, `.running_var`.
            kernel_shape: torch's (out, in / groups, height, width).

        Raises:
            ValueError: as `take`, and variances that are negative.
        """
        kernel = self.take(name, kernel_shape).astype(np.float64)
        channels = kernel_shape[:1]
        scale, shift, mean, variance = (
            self.take(f"{norm}.{part}", channels).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if variance.min() < 0:
            raise ValueError(f"{self._source} has negative entries in {norm}.running_var; download it again")
        # counts the training steps; files of old versions have none
        self._rest.pop(f"{norm}.num_batches_tracked", None)
        scale = scale / np.sqrt(variance + EPSILON)
        kernel = (kernel * scale[:, None, None, None]).transpose(2, 3, 1, 0)
        return kernel.astype(np.float32), (shift - mean * scale).astype(np.float32)

    def finish(self) -> None:
        """Raises ValueError if tensors are left that no layer asked for."""
        if self._rest:
            first = next(iter(self._rest))
            raise ValueError(
                f"{self._source} has {len(self._rest)} tensors that {self._network} has not, {first} first: "
                "these are the weights of another network"
            )


class Convolution(nnx.Module):
    """x [b, h, w, c] ↦ convolution + bias, with the batch norm of the file folded in, in float32 on every device.

    Args:
        weights: where the layer is taken from.
        name, norm: of kernel and batch norm there.
        size: (in, out) channels; equal and with `depthwise` one filter a channel.
        window: (height, width) of the kernel.
        stride: of the convolution in both directions.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
    """

    def __init__(
        self,
        weights: Weights,
        name: str,
        norm: str,
        size: tuple[int, int],
        window: tuple[int, int] = (1, 1),
        *,
        stride: int = 1,
        padding: Any = "SAME",
        depthwise: bool = False,
    ):
        kernel, bias = weights.convolution(name, norm, (size[1], 1 if depthwise else size[0], *window))
        self.kernel = nnx.Param(jnp.asarray(kernel))
        self.bias = nnx.Param(jnp.asarray(bias))
        self.stride = stride
        self.padding = padding
        self.depthwise = depthwise

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, in] → [b, h', w', out]."""
        apply = _depthwise if self.depthwise else _convolve
        return apply(x, self.kernel[...], self.stride, self.padding) + self.bias[...]


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Any) -> jax.Array:
    # float32 products on every device: distances between features are small differences
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )


def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Any) -> jax.Array:
    """One filter a channel as a sum of shifted pictures: XLA's grouped convolution is 2 to 15 times slower on CPU."""
    height, width = kernel.shape[:2]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (height, width), (stride, stride), padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    shifted = (
        x[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0]
        for i in range(height)
        for j in range(width)
    )
    return sum(shifted, start=jnp.zeros((), x.dtype))
