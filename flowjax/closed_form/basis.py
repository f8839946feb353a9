"""The directions that screening looks along: computed once per data set, and kept on disk.

What is kept decides nothing but speed: `make_screen` measures how far from orthonormal the directions at hand are, and
bounds what they leave out.
"""

import dataclasses
import functools
import hashlib
import os
import warnings
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from flowjax._files import replacing
from flowjax.typing import Array, Flat, Float

from . import streamed
from .construct import Placement
from .dense import read_block
from .parts import row_specs
from .rows import Rows

MAX_DIRECTIONS = 1024
CACHE_VARIABLE = "FLOWJAX_CACHE"

_SAMPLE = 8192
_SAMPLE_ENTRIES = 2**28
"""Rows looked at, and of wide ones as many as have so many entries: a gigabyte."""

_EIGH_DIMENSIONS = 4096
_KEEP_ENTRIES = 10_000_000
"""Data of fewer entries has its directions in less time than files take to look after."""


def basis_of(rows: Rows, placement: Placement | None, most: int = MAX_DIRECTIONS) -> Float[Array, "d K"]:
    """At most so many principal directions of the rows, the leading ones, float32, orthonormal up to rounding; whole on
    every device.

    Concrete data of some size is looked up by its content in `cache_folder()`, and what is computed is kept there. A
    damaged file is computed anew and a folder that cannot be written to is done without; both with a warning.
    """
    concrete = isinstance(rows.data, jax.Array) and not isinstance(rows.data, Tracer)
    # No process has the rows of all.
    here = concrete and rows.data.is_fully_addressable
    folder = cache_folder() if here and rows.data.size >= _KEEP_ENTRIES else None
    if folder is None:
        basis = _principal_directions(_sample(rows, placement), most)
        return basis if placement is None else _same_everywhere(basis, placement[0])
    shape = rows.dimension, min(rows.dimension, most)
    digest = _digest(np.asarray(rows.data))
    file = folder / f"basis-{digest[:32]}.npz"
    try:
        return jnp.asarray(_read(file, digest, shape))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        _warn(f"{file} cannot be used ({error}); the directions that screening uses are computed anew")
    basis = _principal_directions(_sample(rows, placement), most)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part, part.open("wb") as stream:
            np.savez(stream, basis=np.asarray(basis), digest=np.asarray(digest))
    except OSError as error:
        _warn(
            f"the directions that screening uses could not be kept in {folder} ({error}); the next field of this data "
            f"computes them anew. The environment variable {CACHE_VARIABLE} names another folder, or is off"
        )
    return basis


def sample_stride(count: int, dimension: int) -> int:
    """Every how many rows one is looked at for the directions; they leave out less of these than of the others."""
    return -(-count // min(_SAMPLE, max(_SAMPLE // 8, _SAMPLE_ENTRIES // dimension)))


def cache_folder() -> Path | None:
    """Where directions are kept: what FLOWJAX_CACHE names ("off": nowhere), else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return None if named.lower() == "off" else Path(named).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowjax"
    except RuntimeError:  # a user without a home
        return None


def _digest(data: np.ndarray) -> str:
    hashed = hashlib.blake2b(f"{data.dtype} {data.shape} {MAX_DIRECTIONS} {_SAMPLE}".encode(), digest_size=32)
    hashed.update(np.ascontiguousarray(data).view(np.uint8).data)
    return hashed.hexdigest()


def _read(file: Path, digest: str, shape: tuple[int, int]) -> np.ndarray:
    with file.open("rb") as stream, np.load(stream) as stored:
        if str(stored["digest"]) != digest:
            raise ValueError("it belongs to other data")
        basis = stored["basis"]
    if basis.shape != shape or basis.dtype != np.float32:
        raise ValueError(f"{basis.dtype} of shape {basis.shape} instead of float32 of shape {shape}")
    if not np.allclose(np.sum(basis**2, 0), 1, atol=1e-3):
        raise ValueError("its columns are not of length 1")
    return basis


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _sample(rows: Rows, placement: Placement | None) -> Flat:
    """Every so many of the rows, [m, d] float32."""
    stride = sample_stride(rows.count, rows.dimension)
    if streamed.is_streamed(rows):
        points = streamed.take(rows, np.arange(0, rows.count, stride)).reshape(-1, rows.dimension)
        return points if rows.centre is None else points - rows.centre

    def some(rows: Rows) -> Flat:
        chosen = dataclasses.replace(rows, data=rows.data[::stride], square_norms=rows.square_norms[::stride])
        return read_block(chosen, jnp.zeros((), jnp.int32), chosen.count, jnp.float32)[0]

    if placement is None:
        return jax.jit(some)(rows)
    mesh, axis = placement
    everywhere = jax.shard_map(
        lambda rows: lax.all_gather(some(rows), axis, tiled=True),
        mesh=mesh,
        in_specs=(row_specs(rows, axis),),
        out_specs=jax.P(),
        axis_names={axis},
        check_vma=False,
    )
    return jax.jit(everywhere)(rows)


def _same_everywhere(basis: jax.Array, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> jax.Array:
    """As the mesh's first device has it; machines of two kinds may differ in the last bit."""
    names = mesh.axis_names

    def first(basis):
        mine = jnp.array([lax.axis_index(name) == 0 for name in names]).all()
        return lax.psum(jnp.where(mine, basis, 0), names)

    return jax.jit(jax.shard_map(first, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False))(
        basis
    )


@functools.partial(jax.jit, static_argnums=1)
def _principal_directions(points: Flat, most: int) -> Float[Array, "d K"]:
    """Of points [m, d]: eigenvectors of their covariance, or by randomised subspace iteration in many dimensions
    (Halko, Martinsson, Tropp, arXiv 0909.4061, algorithm 4.4)."""
    d, directions = points.shape[1], min(points.shape[1], most)
    points = points - jnp.mean(points, 0)
    if d <= _EIGH_DIMENSIONS:
        covariance = jnp.einsum("nd,ne->de", points, points, precision=lax.Precision.HIGHEST)
        _, vectors = jnp.linalg.eigh(covariance)
        return vectors[:, ::-1][:, :directions].astype(jnp.float32)
    vectors = jax.random.normal(jax.random.key(0), (d, directions), jnp.float32)
    for _ in range(3):
        vectors = jnp.einsum("nd,dk->nk", points, vectors)
        vectors = jnp.linalg.qr(jnp.einsum("nd,nk->dk", points, vectors))[0]
    # Ordered by variance, so that the first coordinates are the best.
    projected = jnp.einsum("nd,dk->nk", points, vectors)
    _, rotation = jnp.linalg.eigh(jnp.einsum("nk,nl->kl", projected, projected))
    return jnp.einsum("dk,kl->dl", vectors, rotation[:, ::-1], precision=lax.Precision.HIGHEST)
