"""Which noise belongs to which row: pairs inside a batch.

Independent pairs are the batch as it was drawn. The optimal-transport coupling gives the noise of a batch out anew, so
that the squared distances between noise and rows are smallest in sum (Tong et al., arXiv 2302.00482; Pooladian et al.,
arXiv 2304.14772). Both leave the distributions of noise and of data as they are. For coupled pairs, however, the
conditional target's expectation is another field than the closed form: only the conditional target goes with them.
"""

import functools
import importlib.util
import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flowjax.typing import Batch, Indices, typed


def optimal_transport(x0: ArrayLike, x1: ArrayLike, labels: ArrayLike | None = None) -> Batch:
    """The noise, one for every row of the batch, such that Σ ‖x0 − x1‖² is smallest. Exact; works under `jit`.

    Rows, their numbers and their labels stay where they are; only the noise is permuted.

    Args:
        x0: noise, [b, *event] floating point.
        x1: data, [b, *event] floating point.
        labels: [b] int32 classes for class-conditional training. Noise then changes places inside a class alone:
            otherwise that of one class would no longer be the normal distribution that its samples start from
            (Cheng and Schwing, arXiv 2503.10636).

    Returns:
        [b, *event], the rows of x0 in another order.

    Raises:
        ValueError: other shapes.
        RuntimeError: ott-jax is not installed.
    """
    x0, x1 = jnp.asarray(x0), jnp.asarray(x1)
    if x0.shape != x1.shape or x0.ndim < 2:
        raise ValueError(
            f"noise and data must have one shape [b, *event], got {list(x0.shape)} and {list(x1.shape)}"
        )
    for name, value in (("noise", x0), ("data", x1)):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {value.dtype}")
    if labels is not None:
        labels = jnp.asarray(labels)
        if labels.shape != x1.shape[:1]:
            raise ValueError(f"labels must have shape [{x1.shape[0]}], got {list(labels.shape)}")
    return _permuted(x0, x1, labels)


@typed
def _permuted(x0: Batch, x1: Batch, labels: Indices | None) -> Batch:
    geometry, unreg = _ott()
    b = x0.shape[0]
    noise, data = x0.reshape(b, -1), x1.reshape(b, -1)
    # Of the squared distance the two norms are the same for every order, and so is the product with the data's mean.
    cost = -jnp.matmul(data - jnp.mean(data, 0), noise.T, precision=jax.lax.Precision.HIGHEST)
    if labels is not None:
        # A pair across classes costs more than any exchange could gain: each can be mended by one pair inside them.
        span = jnp.max(cost) - jnp.min(cost)
        cost += (1 + 2 * span) * (labels[:, None] != labels)
    _, matched = unreg.hungarian(geometry.Geometry(cost_matrix=cost))
    row, partner = matched.paired_indices
    return x0[jnp.zeros_like(partner).at[row].set(partner)]


def check_available() -> None:
    """Raises RuntimeError unless ott-jax is installed."""
    if importlib.util.find_spec("ott") is None:
        raise RuntimeError(
            "the optimal-transport coupling needs ott-jax, which is not installed; "
            'pip install "flowjax-closedform[ott]", or pip install ott-jax'
        )


@functools.cache
def _ott():
    """The two modules of ott-jax in use."""
    check_available()
    with warnings.catch_warnings():
        # It imports jaxopt, which says of itself that it is no longer maintained.
        warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
        from ott.geometry import geometry
        from ott.tools import unreg
    return geometry, unreg
