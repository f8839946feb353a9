"""The peers, each written here from its formula: a function that prepares a problem and returns what is timed.

What depends on the data alone (norms, indices, the tensor that shares NumPy's memory) is prepared; what depends on
the queries is timed. A package is imported by the peer that needs it.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import flowjax as fj

from ..dense import TIME, two_step
from .problems import Problem

Prepared = Callable[[], Any]

NEIGHBOURS = 64
_BROADCAST_ENTRIES = 2**24  # of one block of differences: 64 MiB
_STREAM_ROWS = 1000


@dataclasses.dataclass(frozen=True)
class Peer:
    """One way to get the velocity, or the log-density.

    Attributes:
        name: in tables.
        prepare: makes the timed function of a problem, which returns [b, d] velocities or [b] log-densities.
        package: what pip would install for it; None comes with flowjax.
        few: give it `Problem.few` queries only, and scale the time to all of them.
        answer: what it computes.
        dimensions: the least and the largest d where it is asked.
    """

    name: str
    prepare: Callable[[Problem], Prepared]
    package: str | None = None
    few: bool = False
    answer: Literal["velocity", "log density"] = "velocity"
    dimensions: tuple[int, int] = (1, 2**31)


def threads() -> int:
    """As many as JAX uses: the processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch(*arrays: np.ndarray) -> tuple[Any, ...]:
    """torch itself and tensors that share the arrays' memory."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads())
    return torch, *map(torch.from_numpy, arrays)


def _velocity(mean: Any, x: Any) -> Any:
    return (mean - x) / (1 - TIME)


@jax.jit
def _field(field: fj.ClosedFormField, x: jax.Array) -> jax.Array:
    return field(x, TIME)


@jax.jit
def _log_density(field: fj.ClosedFormField, x: jax.Array) -> jax.Array:
    return field.posterior(x, TIME).log_density


def flowjax(problem: Problem, **options: Any) -> Prepared:
    """`ClosedFormField` with these options."""
    return functools.partial(
        _field, fj.ClosedFormField(problem.data, **{"method": "dense", **options}), jnp.asarray(problem.x)
    )


def flowjax_log_density(problem: Problem) -> Prepared:
    """The log-density out of `posterior`, whose other moments the compiler leaves out."""
    return functools.partial(
        _log_density, fj.ClosedFormField(problem.data, method="dense"), jnp.asarray(problem.x)
    )


def jnp_two_products(problem: Problem) -> Prepared:
    """Product, softmax, product with all [b, n] weights in memory: what one would write in jnp."""
    data = jnp.asarray(problem.data)
    return functools.partial(two_step, data, jnp.sum(data**2, 1), jnp.asarray(problem.x))


def torch_two_products(problem: Problem) -> Prepared:
    """The same in torch, ‖x − αy‖² expanded: softmax(α⟨x, y⟩/σ² − α²‖y‖²/2σ²) Y."""
    torch, data, x = _torch(problem.data, problem.x)
    factor = problem.alpha / problem.sigma**2
    offset = (data**2).sum(1) * (-factor * problem.alpha / 2)

    def run():
        logits = torch.addmm(offset, x, data.T, alpha=factor)
        return _velocity(torch.softmax(logits, 1) @ data, x)

    return run


def torch_attention(problem: Problem) -> Prepared:
    """`torch.nn.functional.scaled_dot_product_attention`: keys and values are the data, −α²‖y‖²/2σ² is the mask."""
    torch, data, x = _torch(problem.data, problem.x)
    factor = problem.alpha / problem.sigma**2
    mask = ((data**2).sum(1) * (-factor * problem.alpha / 2)).expand(1, 1, len(x), -1)
    keys, queries = data[None, None], x[None, None]
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda: _velocity(attention(queries, keys, keys, attn_mask=mask, scale=factor)[0, 0], x)


def broadcast(problem: Problem) -> Prepared:
    """Differences [b, chunk, d] themselves, logits [b, n] first and the average in a second pass.

    So the public code of "On the Closed-Form of Flow Matching" (arXiv 2506.03719; generativemodels/closedformfm) and
    most research code that needs û.
    """
    torch, data, x = _torch(problem.data, problem.x)
    size = max(1, _BROADCAST_ENTRIES // x.numel())

    def run():
        chunks = data.split(size)
        squares = [((x[:, None] - problem.alpha * chunk) ** 2).sum(-1) for chunk in chunks]
        weights = torch.softmax(torch.cat(squares, 1) / (-2 * problem.sigma**2), 1)
        parts = zip(weights.split(size, 1), chunks, strict=True)
        return _velocity(sum((w[:, :, None] * chunk).sum(1) for w, chunk in parts), x)

    return run


def keops(problem: Problem) -> Prepared:
    """KeOps (Charlier, Feydy, Glaunès, Collin, Durif, JMLR 2021): a symbolic [b, n] matrix, reduced by compiled C++.

    Its `sumsoftmaxweight` is the posterior mean. Queries are divided by α, so that the data stays as it is.
    """
    from pykeops.numpy import LazyTensor  # pyright: ignore[reportMissingImports]

    data = LazyTensor(problem.data[None])
    factor = -((problem.alpha / problem.sigma) ** 2) / 2

    def run():
        difference = LazyTensor((problem.x / np.float32(problem.alpha))[:, None]) - data
        logits = factor * (difference**2).sum(-1)
        return _velocity(logits.sumsoftmaxweight(data, axis=1), problem.x)  # type: ignore[attr-defined]

    return run


def deepinv(problem: Problem, *, streaming: bool) -> Prepared:
    """`deepinv.models.MMSE`, the package's exact denoiser of x/α with noise σ/α; rows in memory or block by block."""
    torch, data, x = _torch(problem.data, problem.x)
    from deepinv.models import MMSE  # pyright: ignore[reportMissingImports]

    # Whole blocks, without the loader's own collating of single rows.
    loader = torch.utils.data.DataLoader(data.split(_STREAM_ROWS), batch_size=None) if streaming else data
    denoiser = MMSE(loader, device=torch.device("cpu"))
    return lambda: _velocity(denoiser(x / problem.alpha, sigma=problem.sigma / problem.alpha), x)


def faiss(problem: Problem) -> Prepared:
    """FAISS (Douze et al., arXiv 2401.08281): exact search for the nearest rows, and the average over those alone.

    Nothing bounds what the other rows would have added.
    """
    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(threads())
    index = faiss.IndexFlatL2(problem.data.shape[1])
    index.add(problem.data)  # type: ignore[call-arg]
    factor = -((problem.alpha / problem.sigma) ** 2) / 2

    def run():
        x = problem.x
        squares, rows = index.search(x / np.float32(problem.alpha), min(NEIGHBOURS, len(problem.data)))  # type: ignore[call-arg]
        logits = factor * squares
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        return _velocity(np.stack([w @ problem.data[i] for w, i in zip(weights, rows, strict=True)]), x)

    return run


def kernel_density(problem: Problem) -> Prepared:
    """scikit-learn's `KernelDensity` of the rows α y with bandwidth σ: log p̂, exact (its tolerances are 0)."""
    from sklearn.neighbors import KernelDensity

    estimate = KernelDensity(bandwidth=problem.sigma).fit(problem.alpha * problem.data)
    return lambda: estimate.score_samples(problem.x)


DENSE = Peer("flowjax dense", flowjax)
PEERS = (
    DENSE,
    Peer("flowjax screened", functools.partial(flowjax, method="screened"), dimensions=(1024, 2**31)),
    Peer("flowjax float64", functools.partial(flowjax, precision="float64")),
    Peer("jnp, two products", jnp_two_products),
    Peer("torch, two products", torch_two_products, "torch"),
    Peer("torch, attention", torch_attention, "torch"),
    Peer("torch, broadcast", broadcast, "torch", few=True),
    Peer("KeOps", keops, "pykeops", few=True),
    Peer("deepinv, rows in memory", functools.partial(deepinv, streaming=False), "deepinv"),
    Peer("deepinv, streaming", functools.partial(deepinv, streaming=True), "deepinv"),
    Peer(f"FAISS, nearest {NEIGHBOURS}", faiss, "faiss-cpu"),
    Peer("flowjax log-density", flowjax_log_density, answer="log density", dimensions=(1, 64)),
    Peer("scikit-learn log-density", kernel_density, few=True, answer="log density", dimensions=(1, 64)),
)
"""What is compared; the first one is what the others' times are divided by."""
