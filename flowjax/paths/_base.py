"""The abstract path and the one linear system behind every conversion.

With data prediction x̂, noise prediction ε̂, velocity u and score s (all conditional means given x_t):

    (1)  x_t = alpha x̂ + sigma ε̂
    (2)  u   = alpha' x̂ + sigma' ε̂
    (3)  s   = −ε̂ / sigma

Any one of the four, together with x_t, gives (x̂, ε̂) by solving the 2×2 system made of (1) and that
quantity's own row; the other three follow from (2) and (3).
"""

import abc
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flowjax._choices import hint
from flowjax.typing import Points, typed

Prediction = Literal["velocity", "data", "noise", "score"]


def append_axes(t: ArrayLike, like: jax.Array) -> jax.Array:
    """Reshape t, whose shape is a prefix of `like`'s (or broadcastable to one), so that it broadcasts.

    Raises:
        ValueError: if it is not, where plain broadcasting could pair t with the wrong axis.
    """
    t = jnp.asarray(t)
    if t.ndim > like.ndim:
        raise ValueError(
            f"t of shape {t.shape} has more axes than x of shape {like.shape}; give one time or one a sample"
        )
    if any(a != b and 1 not in (a, b) for a, b in zip(t.shape, like.shape, strict=False)):
        raise ValueError(f"t of shape {t.shape} does not fit the batch of x of shape {like.shape}")
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


class Path(abc.ABC):
    """A Gaussian path, t = 0 noise → t = 1 data. Subclasses are frozen dataclasses and static in a pytree.

    Every schedule takes t of any shape and floating dtype and returns the same shape and dtype. No method
    clamps t: at an end where a quantity is singular the result is infinite or NaN, and the caller decides.
    """

    @abc.abstractmethod
    def alpha(self, t: jax.Array) -> jax.Array:
        """Coefficient of the data."""

    @abc.abstractmethod
    def sigma(self, t: jax.Array) -> jax.Array:
        """Coefficient of the noise, computed without losing 1 − t to cancellation."""

    @abc.abstractmethod
    def alpha_dot(self, t: jax.Array) -> jax.Array:
        """d alpha / dt."""

    @abc.abstractmethod
    def sigma_dot(self, t: jax.Array) -> jax.Array:
        """d sigma / dt."""

    @typed
    def interpolate(self, x0: ArrayLike, x1: ArrayLike, t: ArrayLike) -> Points:
        """x_t = alpha(t) x1 + sigma(t) x0, for t of shape [*batch] and x0, x1 of shape [*batch, *event]."""
        x0, x1 = jnp.asarray(x0), jnp.asarray(x1)
        t = append_axes(t, x1)
        return self.alpha(t) * x1 + self.sigma(t) * x0

    @typed
    def conditional_velocity(self, x0: ArrayLike, x1: ArrayLike, t: ArrayLike) -> Points:
        """alpha'(t) x1 + sigma'(t) x0: the velocity of one pair, the target of conditional flow matching."""
        x0, x1 = jnp.asarray(x0), jnp.asarray(x1)
        t = append_axes(t, x1)
        return self.alpha_dot(t) * x1 + self.sigma_dot(t) * x0

    def sample_prior(self, key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        """Starting points of the flow: sigma(0) times standard normal noise."""
        return self.sigma(jnp.zeros((), dtype)) * jax.random.normal(key, shape, dtype)

    def convert(
        self, value: ArrayLike, x: ArrayLike, t: ArrayLike, *, source: Prediction, target: Prediction
    ) -> Points:
        """Turn one prediction at (x, t) into another by solving equations (1)–(3) of this module.

        Args:
            value: the known quantity, [*batch, *event].
            x: the point x_t it was predicted at, [*batch, *event].
            t: time, [*batch] or broadcastable to it.
            source: what `value` is: "velocity", "data", "noise" or "score".
            target: what is wanted.

        Returns:
            [*batch, *event]. Where the system is singular (a noise prediction at alpha = 0, a data
            prediction at sigma = 0) the result is infinite or NaN.

        Raises:
            ValueError: if `source` or `target` is none of the four names.
        """
        names = get_args(Prediction)
        for role, name in (("source", source), ("target", target)):
            if name not in names:
                raise ValueError(f"{role}={name!r} is not a prediction; {hint(name, names)}")
        value, x = jnp.asarray(value), jnp.asarray(x)
        if source == target:
            return value
        t = append_axes(t, x)
        alpha, sigma = self.alpha(t), self.sigma(t)
        # Equation (3) alone; the system would divide by alpha, which is 0 at t = 0.
        if (source, target) == ("noise", "score"):
            return -value / sigma
        if (source, target) == ("score", "noise"):
            return -sigma * value
        rows = {
            "velocity": (self.alpha_dot(t), self.sigma_dot(t)),
            "data": (jnp.ones_like(alpha), jnp.zeros_like(alpha)),
            "noise": (jnp.zeros_like(alpha), jnp.ones_like(alpha)),
            "score": (jnp.zeros_like(alpha), -1 / sigma),
        }
        p, q = rows[source]
        determinant = alpha * q - sigma * p
        data = (q * x - sigma * value) / determinant
        noise = (alpha * value - p * x) / determinant
        p, q = rows[target]
        # A row with a zero entry must not touch the other unknown, which may be infinite there.
        if target == "data":
            return data
        if target in ("noise", "score"):
            return q * noise
        return p * data + q * noise
