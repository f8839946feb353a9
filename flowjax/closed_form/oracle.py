"""The reference every backend is tested against: float64 NumPy, direct differences, nothing clever.

Formulas: Bertrand, Gagneux, Massias, Emonet, arXiv 2506.03719, for a general Gaussian path. Slow and meant to
be read: O(b n d) differences, one query at a time.
"""

from typing import NamedTuple

import numpy as np

from .rows import to_float


class OraclePosterior(NamedTuple):
    """What `ClosedFormField.posterior` returns, in float64, flattened to [b, d] and [b]."""

    mean: np.ndarray
    velocity: np.ndarray
    log_density: np.ndarray
    entropy: np.ndarray
    effective_sample_size: np.ndarray
    max_weight: np.ndarray
    argmax: np.ndarray
    variance: np.ndarray
    weights: np.ndarray


def posterior(
    data: np.ndarray,
    x: np.ndarray,
    schedules: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    *,
    weights: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    query_labels: np.ndarray | None = None,
    horizontal_flip: bool = False,
) -> OraclePosterior:
    """Posterior moments of `data` seen from the queries `x`.

    Args:
        data: [n, *event], any storage type of `to_float`.
        x: [b, *event], taken to float64 as it is.
        schedules: alpha, sigma, alpha', sigma' at each query's time, [b] float64 each.
        weights: [n] non-negative prior weights, or None for equal ones.
        labels, query_labels: [n] and [b] integers; each query sees the rows of its own label only.
        horizontal_flip: let every row of [height, width, channels] count beside its mirror image.

    Returns:
        OraclePosterior; `weights` is [b, n] or [b, 2n] with the flipped copies after the rows.
    """
    points = np.asarray(to_float(np.asarray(data)), np.float64)
    if horizontal_flip:
        points = np.concatenate([points, points[:, :, ::-1]])
        weights = None if weights is None else np.concatenate([weights, weights])
        labels = None if labels is None else np.concatenate([labels, labels])
    points = points.reshape(len(points), -1)
    queries = np.asarray(x, np.float64).reshape(len(x), -1)
    prior = np.ones(len(points)) if weights is None else np.asarray(weights, np.float64)
    results = []
    for b, query in enumerate(queries):
        alpha, sigma, alpha_dot, sigma_dot = (float(s[b]) for s in schedules)
        allowed = prior if query_labels is None else prior * (np.asarray(labels) == query_labels[b])
        with np.errstate(divide="ignore"):
            log_prior = np.log(allowed) - np.log(allowed.sum())  # the quotient could underflow
        logits = -((query - alpha * points) ** 2).sum(1) / (2 * sigma**2) + log_prior
        best = logits.max()
        log_normaliser = best + np.log(np.exp(logits - best).sum())
        w = np.exp(logits - best)
        w /= w.sum()  # not exp(logits − log_normaliser): far away that is rounded to more than the sum of w
        mean = w @ points
        velocity = alpha_dot * mean + sigma_dot * (query - alpha * mean) / sigma
        if alpha_dot == 1 and sigma_dot == -1:
            velocity = w @ (points - query) / sigma
        d = len(query)
        results.append(
            (
                mean,
                velocity,
                log_normaliser - d * np.log(sigma) - d / 2 * np.log(2 * np.pi),
                -(w[w > 0] * np.log(w[w > 0])).sum(),
                1 / (w**2).sum(),
                w.max(),
                w.argmax(),
                w @ ((points - mean) ** 2).sum(1),
                w,
            )
        )
    return OraclePosterior(*(np.stack(column) for column in zip(*results, strict=True)))
