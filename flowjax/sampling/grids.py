"""Time grids for the fixed-step solvers: increasing maps of [0, 1] onto itself, applied to equal spacing.

A grid of N steps is start + (final − start) warp(i/N), i = 0..N. Any callable with warp(0) = 0, warp(1) = 1 will
do; `sample` also takes an explicit array of times.
"""

from collections.abc import Callable

import numpy as np

from flowjax._choices import check_choice

Warp = Callable[[np.ndarray], np.ndarray]


def uniform(u: np.ndarray) -> np.ndarray:
    """Equal steps."""
    return u


def cosine(u: np.ndarray) -> np.ndarray:
    """(1 − cos πu)/2: short steps at both ends."""
    return np.sin(np.pi / 2 * u) ** 2


def power(exponent: float) -> Warp:
    """1 − (1 − u)^exponent: short steps near the data for exponent > 1, near the noise for exponent < 1.

    Raises:
        ValueError: exponent not positive and finite.
    """
    if not 0 < exponent < np.inf:
        raise ValueError(f"exponent must be positive and finite, got {exponent}")

    def warp(u: np.ndarray) -> np.ndarray:
        return 1 - (1 - u) ** exponent

    return warp


def karras(rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Warp:
    """Noise-to-data ratios of Karras et al. on the linear path, where the ratio is (1 − t)/t.

    sigma^(1/rho) is equally spaced from sigma_max to sigma_min, t = 1/(1 + sigma), and the range is stretched to
    [0, 1]: short steps at both ends. (`paths.VarianceExploding` has this grid built into its time: use `uniform`.)

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max < ∞ and 0 < rho < ∞.

    Reference: Karras et al., arXiv 2206.00364, equation (5).
    """
    if not (0 < sigma_min < sigma_max < np.inf and 0 < rho < np.inf):
        raise ValueError(
            f"need 0 < sigma_min < sigma_max and rho > 0, got {sigma_min=}, {sigma_max=}, {rho=}"
        )

    def time(u: np.ndarray) -> np.ndarray:
        high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
        return 1 / (1 + (high + u * (low - high)) ** rho)

    def warp(u: np.ndarray) -> np.ndarray:
        ends = time(np.array([0.0, 1.0]))
        return (time(u) - ends[0]) / (ends[1] - ends[0])

    return warp


NAMED: dict[str, Warp] = {"uniform": uniform, "cosine": cosine, "karras": karras()}
"""Grids by name, for configurations."""


def find(name: str) -> Warp:
    """The grid of that name.

    Raises:
        ValueError: if there is none, with the nearest match.
    """
    check_choice("grid", name, NAMED)
    return NAMED[name]


def times(warp: Warp, num_steps: int, start: float, final: float) -> np.ndarray:
    """[num_steps + 1] float64 times from start to final.

    Raises:
        ValueError: if the warp does not run from 0 to 1 without turning back.
    """
    fractions = np.asarray(warp(np.linspace(0.0, 1.0, num_steps + 1)), np.float64)
    if fractions.shape != (num_steps + 1,):
        raise ValueError(
            f"the grid returned shape {fractions.shape} for {num_steps + 1} points; it must map elementwise"
        )
    ends = fractions[[0, -1]]
    if not (np.all(np.diff(fractions) > 0) and np.allclose(ends, [0, 1], atol=1e-6)):
        raise ValueError(
            f"a grid must increase from 0 to 1, but it runs from {ends[0]:g} to {ends[1]:g}"
            f"{'' if np.all(np.diff(fractions) > 0) else ' and does not increase'}"
        )
    result = start + (final - start) * fractions
    result[[0, -1]] = start, final
    return result
