"""Data, queries and the float64 oracle, shared by the engine's tests."""

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj
from flowjax import paths
from flowjax.closed_form import oracle

PATHS = [
    paths.Linear(),
    paths.Trigonometric(),
    paths.VariancePreserving(),
    paths.VarianceExploding(sigma_min=0.01, sigma_max=10.0),
]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def natural_patches(n: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """Natural-looking pictures [n, size, size, 3] in [-1, 1]: crops of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photographs = load_sample_images().images
    crops = []
    for _ in range(n):
        picture = photographs[rng.integers(2)]
        scale = int(rng.choice([2, 4, 8]))
        top = rng.integers(picture.shape[0] - scale * size)
        left = rng.integers(picture.shape[1] - scale * size)
        crop = picture[top : top + scale * size, left : left + scale * size].astype(np.float32)
        crops.append(crop.reshape(size, scale, size, scale, 3).mean((1, 3)))
    return (np.stack(crops) / 127.5 - 1).astype(np.float32)


def schedules(path: paths.Path, t, b: int):
    """alpha, sigma and their derivatives in float64 at the float32 times that the engine sees, [b] each."""
    times = np.broadcast_to(np.asarray(t, np.float32), (b,))
    with jax.enable_x64(True):
        exact = jnp.asarray(times, jnp.float64)
        return tuple(np.asarray(f(exact)) for f in (path.alpha, path.sigma, path.alpha_dot, path.sigma_dot))


def oracle_posterior(data, x, t, path: paths.Path | None = None, **kwargs) -> oracle.OraclePosterior:
    path = paths.Linear() if path is None else path
    return oracle.posterior(np.asarray(data), np.asarray(x), schedules(path, t, len(x)), **kwargs)


def flat(array) -> np.ndarray:
    array = np.asarray(array, np.float64)
    return array.reshape(len(array), -1)


def nearest_neighbour(data: np.ndarray, count: int) -> np.ndarray:
    """Index of the nearest other row of each of the first `count` rows."""
    points = flat(data)
    distances = (points[:count] ** 2).sum(1)[:, None] + (points**2).sum(1) - 2 * points[:count] @ points.T
    distances[np.arange(count), np.arange(count)] = np.inf
    return distances.argmin(1)


def on_path(data, noise, t):
    """(1 − t) noise + t data for the first rows of the data, t [] or [b]."""
    t = np.broadcast_to(np.asarray(t, np.float32), len(noise)).reshape(-1, *[1] * (data.ndim - 1))
    return (1 - t) * noise + t * data[: len(noise)]


def holds(data, x, t, **options):
    """The posterior by screening, its bound checked against the oracle."""
    posterior = fj.ClosedFormField(data, method="screened", **options).posterior(x, t)
    expected = oracle_posterior(data, x, t).velocity
    error = np.linalg.norm(flat(posterior.velocity) - expected, axis=1)
    assert np.all(error <= np.asarray(posterior.error_bound, np.float64))
    return posterior
