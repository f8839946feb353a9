"""Float32-grade products on a GPU's tensor cores, of float16 pieces.

Tensor cores multiply float16 numbers exactly and add in float32 (their rounding: `UNIT`), fifteen times
as fast as an H100 multiplies float32, by its data sheet. A factor is scaled by a power of two, so that its largest
entry lies near 2¹⁵, and split in two, x = x₁ + x₂, each the rounding of what is left to 11 bits:
|x − x₁ − x₂| ≤ 2⁻²²|x| + 2⁻²⁵, the second term where x₂ is subnormal, 2⁻³⁹ of the largest entry. Three of the four
products are formed (x₁y₁, x₁y₂, x₂y₁). In up to 2¹⁴
dimensions pieces and the product left out, |x₂y₂| ≤ 2⁻²²|xy|, lose

    (1)  12.1 u ‖x‖‖y‖,    u = 2⁻²⁴

with ‖y‖ the largest norm of all rows, after Ootomo, Yokota, Recovering single precision accuracy from Tensor Cores
while surpassing the FP32 theoretical peak performance, IJHPCA 36(4), 2022, who scale the second pieces instead. That is
half the products of bfloat16's six, and tfloat32's three run at half the rate. Rows stored as pixels, bfloat16 or
float16 that are not centred are one piece, and two products are all there are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .rows import PIXEL_SCALE, to_float

UNIT = 2.61 * 2.0**-24
"""Unit roundoff of such sums. A tensor core aligns a block of products and the sum so far to the largest of them and
cuts off below float32's last digit, 2u for each, and again when it normalises the sum (Fasi, Higham, Mikaitis, Pranesh,
Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330, 2021). In blocks of 8, the smallest, without
guard digits: (9/8 + 1/8) 2u a product, 4 % more for the smaller products of pieces. Equation (1) leaves 11 of the 16
units beside d in equation (1) of `certificate`."""

LARGEST = 15
"""Binary exponent of the largest entry of what is split; float16 ends at 2¹⁶."""


class Halves(NamedTuple):
    """Rows (first + second)·unit: pieces [m, d] float16, unit [] float32; second is None where first is exact."""

    first: jax.Array
    second: jax.Array | None
    unit: jax.Array

    def reshape(self, *shape: int) -> "Halves":
        return Halves(
            self.first.reshape(shape), None if self.second is None else self.second.reshape(shape), self.unit
        )


def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two float16 pieces of float32 x, |x| < 2¹⁶.

    By `reduce_precision`: XLA takes a conversion and its reverse for nothing. It makes zero of what is subnormal in
    float16, which the conversion does not, and on a GPU XLA leaves it out before a conversion: so that is done here.
    """
    first = jnp.where(jnp.abs(x) < 2.0**-14, 0.0, lax.reduce_precision(x, 5, 10))
    return first.astype(jnp.float16), (x - first).astype(jnp.float16)


def scale_of(largest: jax.Array) -> jax.Array:
    """The power of two that brings `largest` (≥ 0) to 2¹⁴ … 2¹⁵, at most 2¹²⁶; 1 for zero."""
    _, exponent = jnp.frexp(jnp.where(largest > 0, largest, 1))
    return jnp.ldexp(jnp.float32(1), jnp.clip(LARGEST - exponent, -126, 126))


def of_rows(block: jax.Array, centre: jax.Array | None, max_norm: jax.Array) -> Halves:
    """Stored rows [m, d] of any type, about the centre [d], with norms up to `max_norm` [].

    Not exact, where it has one piece: entries of bfloat16 rows below 2⁻²⁹ of `max_norm`.
    """
    if centre is None and block.dtype == jnp.uint8:
        odd = 2 * block.astype(jnp.int16) - PIXEL_SCALE
        return Halves(odd.astype(jnp.float16), None, jnp.float32(1 / PIXEL_SCALE))
    if centre is None and block.dtype == jnp.float16:
        return Halves(block, None, jnp.float32(1))
    points = to_float(block)
    points = points if centre is None else points - centre
    scale = scale_of(max_norm)
    if centre is None and block.dtype == jnp.bfloat16:
        return Halves((points * scale).astype(jnp.float16), None, 1 / scale)
    return Halves(*split(points * scale), 1 / scale)


def product(a: jax.Array, rows: Halves, axes: tuple[int, int], *, batched: bool = False) -> jax.Array:
    """Contract axis axes[0] of float32 a [b, ...] with axes[1] of the rows; with `batched` a product for every entry of
    axis 1 of a and axis 0 of the rows. float32."""
    scale = scale_of(jnp.max(jnp.abs(a), tuple(range(1, a.ndim)), keepdims=True))
    first, second = split(a * scale)
    batch = ((1,), (0,)) if batched else ((), ())

    def dot(left, right):
        dimensions = ((axes[0],), (axes[1],)), batch
        return lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)

    # Side by side, so that the rows are read once for both pieces of a.
    both = dot(jnp.concatenate([first, second]), rows.first)
    high, low = jnp.split(both, 2, axis=1 if batched else 0)
    small = low if rows.second is None else low + dot(first, rows.second)
    scale = scale[:, :, 0] if a.ndim == 3 else scale
    return (high + small) * (rows.unit / scale)
