"""The TPU kernel, interpreted, against the oracle (the pieces of the dense suite) and against the dense pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import PATHS, flat, normal, oracle_posterior
from test_dense import check as check_method

import flowjax as fj
from flowjax.closed_form import dense, pallas_tpu
from flowjax.closed_form.construct import as_rows, make_rows

check = functools.partial(check_method, method="pallas_tpu")


def fields(data, **options):
    return fj.ClosedFormField(data, method="pallas_tpu", **options), fj.ClosedFormField(data, **options)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("dimension", [1, 12])
def test_every_path_and_time(path, dimension):
    data, noise = normal(0, 211, dimension), normal(1, 9, dimension)
    times = np.float32([0, 0.001, 0.05, 0.2, 0.5, 0.9, 0.99, 0.999, 0.9999])
    x = np.concatenate([path.interpolate(noise[k : k + 1], data[k : k + 1], t) for k, t in enumerate(times)])
    check(data, x, times, path=path)


@pytest.mark.parametrize("dimension", [8, 9, 16, 17, 64, 200, 512])
def test_dimensions(dimension):
    data, t = normal(0, 307, dimension), np.float32([0.0, 0.2, 0.6, 0.95, 0.999])
    check(data, (1 - t)[:, None] * normal(1, 5, dimension) + t[:, None] * data[:5], t)


@pytest.mark.parametrize("block_size", [None, 1, 128, 256, 1000])
def test_block_size_does_not_matter(block_size):
    data, x = normal(0, 521, 3, 2, 2), normal(1, 5, 3, 2, 2)
    check(data, x, 0.4, block_size=block_size)


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129])
def test_tails(n):
    data = normal(0, n, 12)
    check(data, normal(1, 4, 12), 0.3)


@pytest.mark.parametrize("b", [1, 513])
def test_numbers_of_queries(b):
    data, t = normal(0, 211, 12), np.linspace(0, 0.9, b, dtype=np.float32)
    check(data, normal(1, b, 12), t, tolerance=1e-5)


def test_duplicates_between_blocks_and_within():
    data = normal(0, 100, 12)
    data = np.concatenate([data, data, data[:7]])
    t = np.float32([0.1, 0.5, 0.9, 0.999])
    check(data, t[:, None] * data[:4] + (1 - t)[:, None] * normal(1, 4, 12), t)


@pytest.mark.parametrize("options", [{}, {"horizontal_flip": True}])
@pytest.mark.parametrize("labelled", [False, True])
def test_weights_labels_and_flips(labelled, options):
    data, x = normal(0, 301, 4, 3, 2), normal(1, 7, 4, 3, 2)
    weights = np.random.default_rng(2).random(301).astype(np.float32)
    weights[3:200] = 0
    if labelled:
        options = options | {"labels": np.arange(301) // 101, "query_labels": np.arange(7) % 3}
    for t in (0.0, 0.9):
        check(data, x, t, weights=weights, **options)


@pytest.mark.parametrize("kind", ["uint8", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [2, 4])
def test_storage_types(kind, size):
    if kind == "uint8":
        data = np.random.default_rng(0).integers(0, 256, (301, size, size, 1)).astype(np.uint8)
    else:
        data = jnp.asarray(normal(0, 301, size, size, 1), kind)
    points = np.asarray(fj.closed_form.to_float(data))
    check(data, 0.5 * normal(1, 5, size, size, 1) + 0.5 * points[:5], 0.5)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_centred(kind):
    data = jnp.asarray(normal(0, 211, 12) + 1000, kind)
    field, _ = fields(data)
    assert field._rows.centre is not None
    points = np.asarray(data, np.float32)
    for t in (0.001, 0.9):
        check(data, (1 - np.float32(t)) * normal(1, 5, 12) + np.float32(t) * points[:5], t)


def test_no_bound_is_broken():
    base = normal(0, 40, 24)
    data = np.concatenate([base + 1e-3 * normal(seed, 40, 24) for seed in range(1, 6)])
    field, _ = fields(data)
    for t in np.float32([0.1, 0.5, 0.9, 0.99, 0.999, 1 - 1e-6]):
        x = np.concatenate([(1 - t) * normal(9, 10, 24) + t * data[:10], t * (data[:10] + data[10:20]) / 2])
        posterior = field.posterior(x, t)
        error = np.linalg.norm(flat(posterior.velocity) - oracle_posterior(data, x, t).velocity, axis=1)
        assert np.all(error <= np.asarray(posterior.error_bound, np.float64)), t


def test_products_of_pieces_are_float32_grade():
    """Equation (1) of the module, on what the kernel's products get; plain bfloat16 products are far outside."""
    x, y = normal(0, 16, 256) * np.float32(3), normal(1, 256, 128)
    left, rest = pallas_tpu._left(jnp.asarray(x), False)
    refs = {"leading": left, "rest": rest}
    refs = {name: np.asarray(value) for name, value in refs.items()}
    value = pallas_tpu._logits(refs, pallas_tpu._split(jnp.asarray(y)))
    bound = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=0) * 2.0**-24
    error = np.abs(np.asarray(value, np.float64) - x.astype(np.float64) @ y.astype(np.float64))
    assert (error / bound).max() < 1.05 * 256 + 4
    plain = pallas_tpu._dot(left, jnp.asarray(y).astype(jnp.bfloat16), 0)
    assert (np.abs(plain - x @ y) / bound).max() > 10 * (error / bound).max()


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_pieces_sum_to_the_value_exactly(scale):
    x = np.concatenate([normal(0, 1000), np.float32([0, 1, 255 / 256, 1 + 2.0**-23, 2 - 2.0**-23])])
    x = jnp.asarray(x * np.float32(scale))
    pieces = jax.jit(pallas_tpu._split)(x)
    total = sum(np.asarray(piece, np.float64) for piece in pieces)
    np.testing.assert_array_equal(total, np.asarray(x, np.float64))


def test_rest_bounds_every_row_that_is_no_candidate():
    data, x = normal(0, 500, 12), normal(1, 6, 12)
    rows = make_rows(as_rows(data), None, None, False)
    half = jnp.full(6, 0.5)
    query = dense.Query(jnp.asarray(x), half, half, None)
    settings = dense.Settings(256, False, 16, "float32", backend="pallas_tpu")
    _, candidates = dense.stream(settings, query, rows)
    logits = x.astype(np.float64) @ data.T.astype(np.float64) * 2 - 0.5 * (data.astype(np.float64) ** 2).sum(1)
    taken = np.asarray(candidates.index)
    np.testing.assert_allclose(candidates.logit, np.take_along_axis(logits, taken, 1), atol=1e-4)
    np.put_along_axis(logits, taken, -np.inf, 1)
    assert np.all(logits.max(1) <= np.asarray(candidates.rest) + 1e-4)
    assert all(len(set(row)) == 16 for row in taken.tolist())


def test_derivatives_are_those_of_the_dense_pass():
    data = normal(0, 211, 12)
    kernel, reference = fields(data)
    x, direction = normal(1, 5, 12), normal(2, 5, 12)
    t = np.float32([0.05, 0.3, 0.5, 0.7, 0.8])

    def along(field):
        return jax.jvp(field, (x, t), (direction, jnp.ones_like(t)))[1]

    def pulled(field):
        return jax.vjp(field, x, t)[1](direction)

    for derivative in (along, pulled):
        ours, theirs = derivative(kernel), derivative(reference)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_transformations():
    data = normal(0, 211, 12)
    kernel, _ = fields(data)
    x, t = normal(1, 6, 12), np.linspace(0, 0.9, 6, dtype=np.float32)
    expected = kernel(x, t)
    np.testing.assert_allclose(jax.jit(lambda f, x, t: f(x, t))(kernel, x, t), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(kernel)(x, t), expected, rtol=1e-5, atol=1e-6)
    gradients = jax.vmap(jax.grad(lambda x, t: (kernel(x, t) ** 2).sum()))(x, t)
    together = jax.grad(lambda x: (kernel(x, t) ** 2).sum())(x)
    np.testing.assert_allclose(gradients, together, rtol=1e-4, atol=1e-5 * np.abs(together).max())


@pytest.mark.parametrize("dimension", [3, 12])
def test_sharded(dimension):
    data = normal(0, 1040, dimension)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.device_put(data, jax.NamedSharding(mesh, jax.P("data")))
    x, t = normal(1, 4, dimension), np.float32([0, 0.3, 0.8, 0.99])
    single, sharded = (fj.ClosedFormField(rows, method="pallas_tpu").posterior(x, t) for rows in (data, placed))
    for name in ("velocity", "log_density", "variance"):
        np.testing.assert_allclose(getattr(sharded, name), getattr(single, name), rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(sharded.argmax, single.argmax)


def test_refused_and_left_to_xla():
    with pytest.raises(ValueError, match="use method='dense'"):
        fj.ClosedFormField(normal(0, 5, 3), method="pallas_tpu", precision="float64")
    wide, reference = fields(normal(0, 20, pallas_tpu.MAX_DIMENSION + 1))
    x = normal(1, 3, pallas_tpu.MAX_DIMENSION + 1)
    np.testing.assert_array_equal(wide(x, 0.5), reference(x, 0.5))


def test_the_kernel_is_in_what_a_tpu_gets():
    """Lowered for a TPU, from a process that has none, it is the kernel itself and not its interpretation."""
    field, _ = fields(normal(0, 300, 12))
    traced = jax.jit(lambda f, x: f(x, 0.5)).trace(field, normal(1, 4, 12))
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert dataclasses.replace(dense.Settings(1, True, 1, "float32")).backend == "dense"
