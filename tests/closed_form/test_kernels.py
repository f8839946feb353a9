"""The TPU's and the GPU's kernel, against the oracle (the pieces of the dense suite) and against the dense pass.

On a device of its own kind a kernel is compiled, anywhere else interpreted.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import PATHS, flat, normal, oracle_posterior
from test_dense import check as check_method

import flowjax as fj
from flowjax.closed_form import dense, halves, pallas_gpu, pallas_tpu, passes
from flowjax.closed_form.construct import as_rows, make_rows
from flowjax.closed_form.field import _plan


@pytest.fixture(params=["pallas_gpu", "pallas_tpu"])
def method(request):
    return request.param


def fields(method, data, **options):
    return fj.ClosedFormField(data, method=method, **options), fj.ClosedFormField(
        data, method="dense", **options
    )


def check_pass(method, data, b, *, block_size=None, weights=None, labels=None, scalars=True, tolerance=3e-5):
    """One pass of the kernel against sums in float64 NumPy; queries from near-uniform to one-hot in one batch."""
    rows = make_rows(as_rows(data)[0], weights, labels, None)
    n, d = rows.count, rows.dimension
    points = flat(fj.closed_form.to_float(np.asarray(data)))
    points = points - (0 if rows.centre is None else np.asarray(rows.centre, np.float64))
    t = np.linspace(0.01, 0.97, b, dtype=np.float32)
    x = (1 - t)[:, None] * normal(1, b, d) + t[:, None] * points[np.arange(b) % n].astype(np.float32)
    query_labels = None if labels is None else np.arange(b, dtype=np.int32) % (labels.max() + 1)
    alpha, sigma = jnp.asarray(t), jnp.asarray(1 - t)
    query = passes.Query(
        jnp.asarray(x), alpha, sigma, None if query_labels is None else jnp.asarray(query_labels)
    )
    size = pallas_tpu.block_size(n, d, block_size) if method == "pallas_tpu" else min(n, 1024)
    settings = passes.Settings(size, scalars, min(16, size), "float32", backend=method)
    found = jax.jit(dense.stream, static_argnums=0)(settings, query, rows)
    moments, candidates = jax.tree.map(np.asarray, found)  # the GPU's are float64

    a, s = (np.asarray(v, np.float64)[:, None] for v in (alpha, sigma))
    squares = (points**2).sum(1)
    logits = a / s**2 * (x.astype(np.float64) @ points.T) - a**2 / (2 * s**2) * squares
    if d <= passes.DIRECT_DIMENSIONS:
        logits = logits - (x.astype(np.float64) ** 2).sum(1)[:, None] / (2 * s**2)
    if weights is not None:
        with np.errstate(divide="ignore"):
            logits = logits + np.log(weights / weights.max())
    if labels is not None:
        logits[query_labels[:, None] != labels] = -np.inf
    scale = 1 + np.abs(np.where(np.isfinite(logits), logits, 0)).max(1)
    allowed = tolerance * scale
    np.testing.assert_array_less(np.abs(moments.max - logits.max(1)), allowed)
    relative = logits - np.asarray(moments.max, np.float64)[:, None]
    w = np.exp(relative)
    total = w.sum(1)
    np.testing.assert_array_less(np.abs(moments.normaliser / total - 1), allowed)
    mean_error = np.abs(moments.weighted_sum / total[:, None] - w @ points / total[:, None]).max(1)
    size_of_points = np.abs(points).max() + 1e-30  # one row is its own centre
    np.testing.assert_array_less(mean_error, 2 * allowed * size_of_points)
    if scalars:
        finite = np.where(w > 0, relative, 0)
        expected = {"logit": (w * finite).sum(1), "square": w @ squares, "squared": (w * w).sum(1)}
        for name, value in expected.items():
            size_of_term = 1 + np.abs(finite).max() if name == "logit" else max(squares.max(), 1)
            error = np.abs(getattr(moments.scalars, name) - value) / total
            np.testing.assert_array_less(error, 2 * allowed * size_of_term, err_msg=name)
    else:
        assert moments.scalars is None
    # Candidates: distinct rows with their logits; nothing else is above the bound of the rest.
    taken = np.asarray(candidates.index)
    used = np.asarray(candidates.logit) > -np.inf
    assert taken[used].max() < n
    gap = np.abs(candidates.logit - np.take_along_axis(logits, np.minimum(taken, n - 1), 1))
    assert np.all(gap[used] <= np.broadcast_to(allowed[:, None], gap.shape)[used])
    for query_row, mask in zip(taken, used, strict=True):
        assert len(set(query_row[mask])) == mask.sum()
    for k in range(b):
        logits[k, taken[k, used[k]]] = -np.inf
    assert np.all(logits.max(1) <= np.asarray(candidates.rest) + allowed)


@pytest.mark.parametrize("dimension", [1, 8, 9, 17, 128])
def test_dimensions(method, dimension):
    check_pass(method, normal(0, 307, dimension), 9)


@pytest.mark.parametrize("block_size", [None, 1, 128, 256, 1000])
def test_block_size_does_not_matter(method, block_size):
    check_pass(method, normal(0, 521, 3, 2, 2), 9, block_size=block_size)


@pytest.mark.parametrize("n", [1, 127, 129])
@pytest.mark.parametrize("dimension", [3, 12])
def test_tails(method, n, dimension):
    check_pass(method, normal(0, n, dimension), 4, scalars=False)


@pytest.mark.parametrize("b", [1, 513])
def test_numbers_of_queries(method, b):
    check_pass(method, normal(0, 211, 12), b)


def test_duplicates_between_blocks_and_within(method):
    data = normal(0, 100, 12)
    check_pass(method, np.concatenate([data, data, data[:7]]), 9, block_size=128)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("dimension", [3, 12])
def test_weights_and_labels(method, labelled, dimension):
    weights = np.random.default_rng(2).random(301).astype(np.float32)
    weights[3:200:2] = 0
    labels = (
        (np.arange(301) // 101).astype(np.int32) if labelled else None
    )  # whole blocks without a query's class
    check_pass(method, normal(0, 301, dimension), 7, block_size=128, weights=weights, labels=labels)


@pytest.mark.parametrize("kind", ["uint8", "bfloat16", "float16"])
@pytest.mark.parametrize("dimension", [4, 16])
def test_storage_types(method, kind, dimension):
    if kind == "uint8":
        data = np.random.default_rng(0).integers(0, 256, (301, dimension)).astype(np.uint8)
    else:
        data = jnp.asarray(normal(0, 301, dimension), kind)
    check_pass(method, data, 7)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_centred(method, kind):
    data = jnp.asarray(normal(0, 211, 12) + 100, kind)
    assert make_rows(as_rows(data)[0], None, None, None).centre is not None
    check_pass(method, data, 7)


@pytest.mark.parametrize("dimension", [1, 12])
def test_every_time_in_one_batch(method, dimension):
    times = np.float32([0, 0.001, 0.05, 0.2, 0.5, 0.9, 0.99, 0.999, 0.9999])
    data, noise = normal(0, 211, dimension), normal(1, 9, dimension)
    check_method(data, (1 - times)[:, None] * noise + times[:, None] * data[:9], times, method=method)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS[1:2] + PATHS[3:], ids=lambda p: type(p).__name__)
def test_other_paths(method, path):
    data, t = normal(0, 211, 12), np.float32(0.6)
    check_method(
        data, np.asarray(path.interpolate(normal(1, 9, 12), data[:9], t)), t, path=path, method=method
    )


@pytest.mark.slow
def test_weights_labels_flips_and_pixels_together(method):
    data = np.random.default_rng(0).integers(0, 256, (131, 4, 3, 1)).astype(np.uint8)
    weights = np.random.default_rng(2).random(131).astype(np.float32)
    check_method(
        data, normal(1, 7, 4, 3, 1), np.linspace(0, 0.9, 7, dtype=np.float32), weights=weights,
        labels=np.arange(131) % 3, query_labels=np.arange(7) % 3, horizontal_flip=True, method=method,
    )  # fmt: skip


def test_no_bound_is_broken(method):
    base = normal(0, 40, 24)
    data = np.concatenate([base + 1e-3 * normal(seed, 40, 24) for seed in range(1, 6)])
    field, _ = fields(method, data)
    evaluate = jax.jit(lambda field, x, t: field.posterior(x, t))
    for t in np.float32([0.1, 0.5, 0.9, 0.99, 0.999, 1 - 1e-6]):
        x = np.concatenate([(1 - t) * normal(9, 10, 24) + t * data[:10], t * (data[:10] + data[10:20]) / 2])
        posterior = evaluate(field, x, t)
        error = np.linalg.norm(flat(posterior.velocity) - oracle_posterior(data, x, t).velocity, axis=1)
        assert np.all(error <= np.asarray(posterior.error_bound, np.float64)), t


def pieces_and_product(method, x, y):
    """x [b, d] times y [d, m] as the kernel forms it, and from plain pieces of half the width alone."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    if method == "pallas_tpu":
        left, rest = pallas_tpu._left(x, False)
        whole = pallas_tpu._logits({"leading": left, "rest": rest}, pallas_tpu._split(y))
        return whole, pallas_tpu._dot(left, y.astype(jnp.bfloat16), 0)
    scales = [halves.scale_of(jnp.max(jnp.abs(v))) for v in (x, y)]
    left, right = (halves.split(v * scale) for v, scale in zip((x, y), scales, strict=True))
    nothing = jnp.zeros_like(left[1]), jnp.zeros_like(right[1])
    first = (left[0], nothing[0]), (right[0], nothing[1])
    undo = 1 / (scales[0] * scales[1])
    return pallas_gpu._product(left, right, 0) * undo, pallas_gpu._product(*first, 0) * undo


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])
def test_products_of_pieces_are_float32_grade(method, scale):
    """Equation (1) of both modules, on what the kernel's products get; plain products of halves are far outside."""
    x, y = normal(0, 16, 256) * np.float32(3 * scale), normal(1, 256, 128)
    y[:128] *= np.float32(1e-5)  # small beside the largest entry
    value, plain = pieces_and_product(method, x, y)
    bound = np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * np.linalg.norm(y, axis=0) * 2.0**-24
    true = x.astype(np.float64) @ y.astype(np.float64)
    error = np.abs(np.asarray(value, np.float64) - true)
    assert (error / bound).max() < 1.05 * 256 + 4
    assert (np.abs(plain - true) / bound).max() > 10 * (error / bound).max()


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_pieces_sum_to_the_value(method, scale):
    """Three of bfloat16 exactly, two of float16 as the module says."""
    x = np.concatenate([normal(0, 1000), np.float32([0, 1, 255 / 256, 1 + 2.0**-23, 2 - 2.0**-23, 1e-6])])
    x = jnp.asarray(x * np.float32(scale))
    allowed = np.zeros(len(x))
    if method == "pallas_gpu":
        x = x * halves.scale_of(jnp.max(jnp.abs(x)))
        assert 2**14 <= float(jnp.max(jnp.abs(x))) <= 2**15
        allowed = 2.0**-22 * np.abs(x) + 2.0**-25
    split = {"pallas_tpu": pallas_tpu._split, "pallas_gpu": halves.split}[method]
    pieces = jax.jit(split)(x)
    total = sum(np.asarray(piece, np.float64) for piece in pieces)
    assert np.all(np.abs(total - np.asarray(x, np.float64)) <= allowed)


@pytest.mark.slow
def test_derivatives_are_those_of_the_dense_pass(method):
    data = normal(0, 211, 12)
    kernel, reference = fields(method, data)
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


@pytest.mark.slow
def test_transformations(method):
    data = normal(0, 211, 12)
    kernel, _ = fields(method, data)
    x, t = normal(1, 6, 12), np.linspace(0, 0.9, 6, dtype=np.float32)
    expected = kernel(x, t)
    np.testing.assert_allclose(jax.jit(lambda f, x, t: f(x, t))(kernel, x, t), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(kernel)(x, t), expected, rtol=1e-5, atol=1e-6)
    gradients = jax.vmap(jax.grad(lambda x, t: (kernel(x, t) ** 2).sum()))(x, t)
    together = jax.grad(lambda x: (kernel(x, t) ** 2).sum())(x)
    np.testing.assert_allclose(gradients, together, rtol=1e-4, atol=1e-5 * np.abs(together).max())


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("dimension", [12])
def test_sharded(method, dimension):
    data = normal(0, 1040, dimension)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.device_put(data, jax.NamedSharding(mesh, jax.P("data")))
    x, t = normal(1, 4, dimension), np.float32([0, 0.3, 0.8, 0.99])
    single, sharded = (fj.ClosedFormField(rows, method=method).posterior(x, t) for rows in (data, placed))
    for name in ("velocity", "log_density", "variance"):
        np.testing.assert_allclose(getattr(sharded, name), getattr(single, name), rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(sharded.argmax, single.argmax)


def test_refused_and_left_to_xla(method):
    with pytest.raises(ValueError, match="use method='dense'"):
        fj.ClosedFormField(normal(0, 5, 3), method=method, precision="float64")
    wide, reference = fields(method, normal(0, 20, pallas_tpu.MAX_DIMENSION + 1))
    x = normal(1, 3, pallas_tpu.MAX_DIMENSION + 1)
    np.testing.assert_array_equal(wide(x, 0.5), reference(x, 0.5))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # jax 0.12
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_the_kernel_is_in_what_its_device_gets(method, kind):
    """Lowered for that device, from a process that has none, it is the kernel itself and not its interpretation."""
    data = normal(0, 300, 12) if kind == "float32" else np.zeros((300, 12), np.uint8)
    platform, call = {
        "pallas_tpu": ("tpu", "tpu_custom_call"),
        "pallas_gpu": ("cuda", "__gpu$xla.gpu.triton"),
    }[method]
    field, x = fields(method, data)[0], normal(1, 4, 12)

    def lowered(platform):
        traced = jax.jit(lambda f, x: f(x, 0.5)).trace(field, x)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    # From jax 0.12 on Triton's kernels are lowered for a GPU by name.
    gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        assert call in lowered(platform)
    assert call not in lowered("cpu")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="on a GPU alone")
def test_auto_on_a_gpu_is_the_kernel():
    for dimension, queries, backend in ((12, 64, "pallas_gpu"), (12, 63, "dense"), (129, 64, "dense")):
        field = fj.ClosedFormField(normal(0, 300, dimension))
        assert _plan(field, queries, False).settings.backend == backend
        check_method(normal(0, 300, dimension), normal(1, queries, dimension), 0.5, method="auto")


def test_auto_off_a_gpu_is_not_the_kernel():
    """Nor when the field is made on one and moved."""
    field = fj.ClosedFormField(normal(0, 300, 12))
    field._static = dataclasses.replace(field._static, kernel=True)
    assert _plan(field, 64, False).settings.backend == "pallas_gpu"
    moved = jax.device_put(field, jax.devices("cpu")[0])
    moved = jax.tree.unflatten(*reversed(jax.tree.flatten(moved)))
    assert _plan(moved, 64, False).settings.backend == "dense"


@pytest.mark.parametrize("method", ["pallas_gpu", "float16x3"])
def test_late_gradients_are_finite(method):
    """The maximum that they are relative to is that of their own logits, which here are a hundred million."""
    options = {"method": method} if method == "pallas_gpu" else {"method": "dense", "precision": method}
    data = normal(0, 64, 12)
    x = np.concatenate([data[:8] + 1e-4 * normal(1, 8, 12), (data[:8] + data[8:16]) / 2])
    field, reference = fj.ClosedFormField(data, **options), fj.ClosedFormField(data, method="dense")
    for t in np.float32([0.9, 0.9999, 1 - 1e-6]):
        slopes = [jax.grad(lambda x, f=f, t=t: (f(x, t) ** 2).sum())(x) for f in (field, reference)]
        assert np.all(np.isfinite(slopes[0])), t
        np.testing.assert_allclose(*slopes, rtol=1e-3, atol=1e-3 * np.abs(slopes[1]).max())
