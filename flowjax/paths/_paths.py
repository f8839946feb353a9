"""The four schedules. Each computes sigma from 1 − t, which is exact in floating point for t ≥ 1/2."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.tree_util import register_static

from ._base import Path

_HALF_PI = jnp.pi / 2


@register_static
@dataclasses.dataclass(frozen=True)
class Linear(Path):
    """alpha = t, sigma = 1 − t (rectified flow, conditional optimal transport). The default.

    References: Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003.
    """

    def alpha(self, t: jax.Array) -> jax.Array:
        return t

    def sigma(self, t: jax.Array) -> jax.Array:
        return 1 - t

    def alpha_dot(self, t: jax.Array) -> jax.Array:
        return jnp.ones_like(t)

    def sigma_dot(self, t: jax.Array) -> jax.Array:
        return -jnp.ones_like(t)


@register_static
@dataclasses.dataclass(frozen=True)
class Trigonometric(Path):
    """alpha = sin(πt/2), sigma = cos(πt/2) (generalised variance preserving, TrigFlow).

    References: Albergo & Vanden-Eijnden, arXiv 2209.15571; Lu & Song, arXiv 2410.11081.
    """

    def alpha(self, t: jax.Array) -> jax.Array:
        return jnp.sin(_HALF_PI * t)

    def sigma(self, t: jax.Array) -> jax.Array:
        return jnp.sin(_HALF_PI * (1 - t))

    def alpha_dot(self, t: jax.Array) -> jax.Array:
        return _HALF_PI * self.sigma(t)

    def sigma_dot(self, t: jax.Array) -> jax.Array:
        return -_HALF_PI * self.alpha(t)


@register_static
@dataclasses.dataclass(frozen=True)
class VariancePreserving(Path):
    """alpha² + sigma² = 1 with the linear-beta diffusion run backwards: its time is s = 1 − t.

    log alpha = −(beta_max − beta_min) s²/4 − beta_min s/2. At t = 0 alpha is small but not zero (6.6e-3 at
    the default betas), and sigma' is −∞ at t = 1.

    Reference: Song et al., arXiv 2011.13456, equation (33).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"need 0 < beta_min <= beta_max < inf, got {self.beta_min=} and {self.beta_max=}"
            )

    def _log_alpha(self, t: jax.Array) -> jax.Array:
        s = 1 - t
        return -s * (s * ((self.beta_max - self.beta_min) / 4) + self.beta_min / 2)

    def _half_beta(self, t: jax.Array) -> jax.Array:
        """d log alpha / dt = beta(s)/2."""
        return (self.beta_min + (1 - t) * (self.beta_max - self.beta_min)) / 2

    def alpha(self, t: jax.Array) -> jax.Array:
        return jnp.exp(self._log_alpha(t))

    def sigma(self, t: jax.Array) -> jax.Array:
        return jnp.sqrt(-jnp.expm1(2 * self._log_alpha(t)))

    def alpha_dot(self, t: jax.Array) -> jax.Array:
        return self._half_beta(t) * self.alpha(t)

    def sigma_dot(self, t: jax.Array) -> jax.Array:
        return -self._half_beta(t) * jnp.exp(2 * self._log_alpha(t)) / self.sigma(t)


@register_static
@dataclasses.dataclass(frozen=True)
class VarianceExploding(Path):
    """alpha = 1, sigma from sigma_max down to sigma_min along the grid of Karras et al. (EDM).

    sigma(t) = (sigma_max^(1/rho) + t (sigma_min^(1/rho) − sigma_max^(1/rho)))^rho. At t = 1 there is still
    noise of scale sigma_min. Starting points are sigma_max times standard normal: see `sample_prior`.

    Reference: Karras et al., arXiv 2206.00364, equation (5).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        if not (0 < self.sigma_min < self.sigma_max < math.inf and 0 < self.rho < math.inf):
            raise ValueError(
                "need 0 < sigma_min < sigma_max < inf and 0 < rho < inf, "
                f"got {self.sigma_min=}, {self.sigma_max=}, {self.rho=}"
            )

    def _root(self, t: jax.Array) -> jax.Array:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low + (1 - t) * (high - low)

    def alpha(self, t: jax.Array) -> jax.Array:
        return jnp.ones_like(t)

    def sigma(self, t: jax.Array) -> jax.Array:
        # Not `**`: the derivative rule of a power makes float32 constants where float64 is switched on locally.
        return jnp.exp(self.rho * jnp.log(self._root(t)))

    def alpha_dot(self, t: jax.Array) -> jax.Array:
        return jnp.zeros_like(t)

    def sigma_dot(self, t: jax.Array) -> jax.Array:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return self.rho * (low - high) * jnp.exp((self.rho - 1) * jnp.log(self._root(t)))
