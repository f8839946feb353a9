"""Velocity fields with known flow maps, and counters that see every call: the oracles of the sampling tests."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import paths


def per_query(t, x):
    """A scalar as it is; one time per query with axes for the event."""
    return jnp.reshape(t, np.shape(t) + (1,) * (x.ndim - np.ndim(t))) if np.ndim(t) else jnp.asarray(t)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The exact field of data N(mean, scale²) in each coordinate: everything is linear.

    x_t ~ N(alpha mean, v), v = alpha² scale² + sigma², so the flow keeps (x − alpha mean)/sqrt(v) constant.
    """

    mean: Any = 0.7
    scale: Any = 0.4
    path: paths.Path = dataclasses.field(default=paths.Linear(), metadata={"static": True})

    def variance(self, t):
        return self.path.alpha(t) ** 2 * self.scale**2 + self.path.sigma(t) ** 2

    def __call__(self, x, t):
        t = per_query(t, x)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        alpha_dot, sigma_dot = self.path.alpha_dot(t), self.path.sigma_dot(t)
        half_rate = (alpha * alpha_dot * self.scale**2 + sigma * sigma_dot) / self.variance(t)
        return alpha_dot * self.mean + half_rate * (x - alpha * self.mean)

    def flow(self, x, start, stop):
        """Where the flow takes x between two times; works wherever `path` works."""
        start, stop = jnp.asarray(start, x.dtype), jnp.asarray(stop, x.dtype)
        stretch = jnp.sqrt(self.variance(stop) / self.variance(start))
        return self.path.alpha(stop) * self.mean + stretch * (x - self.path.alpha(start) * self.mean)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoPeaks:
    """The exact field of ½ N(−mean, scale²) + ½ N(mean, scale²) in each coordinate: not linear in x.

    Its flow carries quantiles along: F_t(x_t) = F_0(x_0) with F_t the distribution function of x_t.
    """

    mean: Any = 0.8
    scale: Any = 0.5
    path: paths.Path = dataclasses.field(default=paths.Linear(), metadata={"static": True})

    def __call__(self, x, t):
        t = per_query(t, x)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        variance = alpha**2 * self.scale**2 + sigma**2
        sign = jnp.tanh(alpha * self.mean * x / variance)
        data = sign * self.mean + alpha * self.scale**2 / variance * (x - alpha * sign * self.mean)
        return self.path.alpha_dot(t) * data + self.path.sigma_dot(t) * (x - alpha * data) / sigma

    def flow(self, x, start, stop):
        """By bracketing the quantile at `stop`, element by element, in float64."""
        from scipy.optimize import brentq
        from scipy.special import ndtr

        def distribution(x, t):
            alpha, sigma = float(self.path.alpha(jnp.asarray(t))), float(self.path.sigma(jnp.asarray(t)))
            root = np.sqrt(alpha**2 * self.scale**2 + sigma**2)
            return (ndtr((x - alpha * self.mean) / root) + ndtr((x + alpha * self.mean) / root)) / 2

        def one(value):
            return brentq(
                lambda y: distribution(y, stop) - distribution(value, start), -9, 9, xtol=1e-14, rtol=1e-14
            )

        return np.vectorize(one)(np.asarray(x, np.float64))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix:
    """dx/dt = A x: x_t = expm(A t) x_0 and the divergence is tr A, whatever A."""

    matrix: Any

    def __call__(self, x, t):
        return (x.reshape(len(x), -1) @ self.matrix.T).reshape(x.shape)

    def log_density(self, x, final):
        from scipy.linalg import expm

        matrix = np.asarray(self.matrix, np.float64)
        start = np.asarray(x, np.float64).reshape(len(x), -1) @ expm(-final * matrix).T
        return normal_log_density(start, 0, 1) - final * np.trace(matrix)


class Recorder:
    """A velocity function that notes every call that the compiled program really makes: batch size and time."""

    def __init__(self, velocity):
        self.velocity = velocity
        self.calls: list[float] = []

    def __call__(self, x, t, **condition):
        jax.debug.callback(lambda t: self.calls.append(float(t)), t)
        return self.velocity(x, t, **condition)

    def count(self) -> int:
        """Calls since the last time this was asked."""
        jax.effects_barrier()
        number = len(self.calls)
        self.calls.clear()
        return number


def noise(*shape: int, seed: int = 0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def normal_log_density(x, mean, variance) -> np.ndarray:
    """Sum over the last axes of log N(x; mean, variance), in float64."""
    from scipy.stats import norm

    terms = norm.logpdf(np.asarray(x, np.float64), mean, np.sqrt(variance))
    return terms.reshape(len(terms), -1).sum(1)


def order(steps, errors) -> float:
    """Slope of log error on log step length."""
    return float(np.polyfit(np.log(1 / np.asarray(steps, float)), np.log(errors), 1)[0])


def nearest(samples, data) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every sample to its nearest data point and that point's number, in float64."""
    a = np.asarray(samples, np.float64).reshape(len(samples), 1, -1)
    b = np.asarray(data, np.float64).reshape(1, len(data), -1)
    distances = np.sqrt(((a - b) ** 2).sum(-1))
    return distances.min(1), distances.argmin(1)
