"""The dense backend against the oracle: the suite that every backend has to pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import PATHS, flat, natural_patches, nearest_neighbour, normal, oracle_posterior, schedules

import flowjax as fj
from flowjax.closed_form import dense, passes

SCALARS = ("log_density", "entropy", "effective_sample_size", "max_weight", "variance")


def check(
    data,
    x,
    t,
    *,
    path=None,
    query_labels=None,
    tolerance=2e-6,
    scalar_tolerance=1e-4,
    both_programs=True,
    **options,
):
    """Velocity, mean and every scalar against the oracle; no bound broken. Returns the posterior.

    The velocity is another program if it is asked for alone: with `both_programs` it is checked too.
    """
    engine = {k: options.pop(k) for k in ("block_size", "precision", "method") if k in options}
    field = fj.ClosedFormField(data, path, **options, **engine)
    posterior = field.posterior(x, t, query_labels)
    expected = oracle_posterior(data, x, t, path, query_labels=query_labels, **options)
    error = np.linalg.norm(flat(posterior.velocity) - expected.velocity, axis=1)
    assert np.all(error <= np.asarray(posterior.error_bound, np.float64))
    # In one or two dimensions û may vanish by cancellation: measured against the terms it is made of.
    alpha, sigma, alpha_dot, sigma_dot = schedules(path or fj.paths.Linear(), t, len(x))
    mean_scale = np.abs(alpha_dot - sigma_dot * alpha / sigma) * np.linalg.norm(flat(data), axis=1).max()
    size = np.linalg.norm(expected.velocity, axis=1) + mean_scale
    assert (error / size).max() < tolerance
    if both_programs:
        error = np.linalg.norm(flat(field(x, t, query_labels)) - expected.velocity, axis=1)
        assert (error / size).max() < tolerance
    np.testing.assert_allclose(
        flat(posterior.mean), expected.mean, atol=1e-5 * max(1, np.abs(flat(data)).max())
    )
    scale = np.abs(flat(data)).max() ** 2
    for name in SCALARS:
        atol = {"variance": 3e-6 * scale * flat(data).shape[1], "log_density": 1e-5}.get(name, 1e-5)
        np.testing.assert_allclose(
            getattr(posterior, name), getattr(expected, name), rtol=scalar_tolerance, atol=atol
        )
    # Rows may tie (a row and its mirror image at t = 0).
    taken = np.take_along_axis(expected.weights, np.asarray(posterior.argmax)[:, None], 1)[:, 0]
    np.testing.assert_allclose(taken, expected.max_weight, rtol=1e-5)
    return posterior


@pytest.mark.parametrize(
    ("path", "dimension"),
    [*((path, 12) for path in PATHS), (PATHS[0], 1), (PATHS[3], 1), (PATHS[1], 2), (PATHS[2], 2)],
    ids=lambda value: value if isinstance(value, int) else type(value).__name__,
)
def test_every_path_and_time(path, dimension):
    data, noise = normal(0, 211, dimension), normal(1, 9, dimension)
    for t in (0.0, 0.001, 0.05, 0.2, 0.5, 0.9, 0.99, 0.999):
        x = np.asarray(path.interpolate(noise, data[:9], np.float32(t)))
        check(data, x, t, path=path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16x6", "float16x3"])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9, 0.999])
def test_products_of_pieces(t, precision):
    """Their bound is that of a GPU's tensor cores, 2.61 times as large; on a CPU bfloat16x6 is a float32 product."""
    data, noise = normal(0, 211, 40), normal(1, 9, 40)
    x = (1 - np.float32(t)) * noise + np.float32(t) * data[:9]
    posterior = check(data, x, t, precision=precision)
    plain = fj.ClosedFormField(data, method="dense").posterior(x, t)
    np.testing.assert_allclose(posterior.velocity, plain.velocity, rtol=1e-5, atol=1e-5)
    assert np.all(posterior.error_bound >= plain.error_bound)
    if t == 0.05:  # where the rounding of the pass is nearly all of the bound
        np.testing.assert_allclose(posterior.error_bound / plain.error_bound, 2.61, rtol=0.01)

    def total(field):
        return jax.grad(lambda x: (field(x, t) ** 2).sum())(x)

    pieces = total(fj.ClosedFormField(data, method="dense", precision=precision))
    np.testing.assert_allclose(pieces, total(fj.ClosedFormField(data, method="dense")), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["float32", "uint8", "bfloat16", "float16"])
@pytest.mark.parametrize("shift", [0, 100])
def test_float16_pieces_of_every_type_of_row(kind, shift):
    """In blocks of several parts; shifted, rows of float types are centred, and pixels are far from their mean."""
    if kind == "uint8":
        data = np.random.default_rng(0).integers(shift, 256, (2600, 12)).astype(np.uint8)
    else:
        data = jnp.asarray(normal(0, 2600, 12) + shift, kind)
    points = fj.closed_form.to_float(np.asarray(data))
    t = np.linspace(0, 0.99, 7, dtype=np.float32)
    x = (1 - t)[:, None] * normal(1, 7, 12) + t[:, None] * points[:7]
    check(data, x, t, precision="float16x3", block_size=2600)


@pytest.mark.parametrize("nats", [70, 80, 84, 100])
def test_float16_pieces_of_weights_that_vanish(nats):
    """A block whose best row lies that far below the best of the block before it."""
    rng = np.random.default_rng(0)
    near = rng.standard_normal((64, 12)) * 0.05
    far = near + np.sqrt(2 * nats / 12)  # t = .5: the logit is half the square distance
    data = np.concatenate([near, far]).astype(np.float32)
    x = np.float32(0.5) * data[:9]
    check(data, x, 0.5, precision="float16x3", block_size=64)


def test_float16_pieces_of_tiny_factors():
    data, x = normal(0, 300, 12), normal(1, 9, 12)
    check(data, x, np.float32(1e-36), precision="float16x3")


@pytest.mark.parametrize("scale", [1e-12, 1e11])
def test_float16_pieces_of_any_scale(scale):
    data, noise = normal(0, 300, 12) * np.float32(scale), normal(1, 9, 12) * np.float32(scale)
    path = fj.paths.Linear()
    pieces, plain = (
        fj.ClosedFormField(data, path, precision=precision, tolerance=1e-5)
        for precision in ("float16x3", "float32")
    )
    x = 0.3 * noise + 0.7 * data[:9]
    error = np.linalg.norm(pieces(x, 0.7) - plain(x, 0.7), axis=1)
    assert np.all(error <= 1e-5 * np.linalg.norm(plain(x, 0.7), axis=1))


@pytest.mark.parametrize("block_size", [None, 1, 7, 64, 211])
def test_block_size_does_not_matter(block_size):
    data, x = normal(0, 211, 3, 2, 2), normal(1, 5, 3, 2, 2)
    check(data, x, 0.4, block_size=block_size)


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [3, 12])
def test_large_blocks_are_summed_in_parts(dimension, monkeypatch):
    """As on a GPU; a sum in parts has the smaller bound, and the same derivatives."""
    data, noise = normal(0, 5000, dimension), normal(1, 5, dimension)
    x, t = 0.8 * noise + 0.2 * data[:5], 0.2
    assert [dense.parts_of(size) for size in (1, 1024, 1031, 2048, 2500, 16384)] == [1, 1, 1, 2, 4, 16]
    parts = check(data, x, t, block_size=2500)

    def slope():
        return jax.grad(lambda x: (fj.ClosedFormField(data, block_size=2500)(x, t) ** 2).sum())(x)

    along = slope()
    monkeypatch.setattr(dense, "parts_of", lambda size: 1)
    jax.clear_caches()
    whole = check(data, x, t, block_size=2500)
    assert np.all(parts.error_bound < whole.error_bound)
    np.testing.assert_allclose(along, slope(), rtol=1e-4, atol=1e-5)
    jax.clear_caches()  # or others meet these programs


def test_roundings_of_a_sum_over_all_rows():
    """1024 rows a part and 4 parts; the TPU's kernel sums a block as a whole, the GPU's has its own blocks."""
    shared = {"block_size": 4096, "scalars": False, "num_candidates": 16, "precision": "float32"}
    assert passes.Settings(**shared).roundings(8192) == 1024 + 4 + 8
    assert passes.Settings(**shared, backend="pallas_tpu").roundings(8192) == 4096 + 1 + 8
    assert passes.Settings(**shared, backend="pallas_gpu").roundings(8192) == 32 + 4 * 32 + 4 * 8


@pytest.mark.parametrize(("b", "dimension", "most"), [(128, 64, 1024), (2048, 64, 512), (128, 3072, 512)])
def test_small_shapes_have_larger_blocks(b, dimension, most):
    assert most // 2 < dense.block_rows(50_000, b, dimension, "cpu") <= most


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("n", [1, 63, 1025, 1031, 12_347, 50_000, 1_281_167])
@pytest.mark.parametrize("b", [0, 1, 128, 32_768])
def test_chosen_blocks_waste_little(platform, n, b):
    size = dense.block_rows(n, b, 3072, platform)
    assert 1 <= size <= (16_384 if platform == "gpu" else 512)
    assert size == n or size % 64 == 0
    assert -(-n // size) * size <= 1.1 * n + 64
    if platform == "gpu":
        assert size == n or size >= 512
        assert size <= 1024 * dense.parts_of(size)  # so the bound of a sum is no larger than elsewhere


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_small_data_sets(n):
    data = normal(0, n, 12)
    check(data, normal(1, 4, 12), 0.3)


def test_one_point_gives_a_straight_line():
    data, x = normal(0, 1, 5), normal(1, 6, 5)
    t = np.float32([0, 0.1, 0.5, 0.9, 0.99, 0.999])
    np.testing.assert_allclose(fj.ClosedFormField(data)(x, t), (data - x) / (1 - t)[:, None], rtol=2e-6)


def test_two_points_give_a_hyperbolic_tangent():
    point, x = normal(0, 12), normal(1, 7, 12)
    field = fj.ClosedFormField(np.stack([point, -point]))
    t = np.float64(np.float32(0.3))
    expected = point * np.tanh(t * (x.astype(np.float64) @ point) / (1 - t) ** 2)[:, None]
    np.testing.assert_allclose(field.posterior(x, 0.3).mean, expected, atol=3e-6)


def test_at_time_zero_only_the_mean_counts():
    data, x = normal(0, 301, 10), normal(1, 4, 10)
    posterior = fj.ClosedFormField(data).posterior(x, 0.0)
    np.testing.assert_allclose(posterior.velocity, data.astype(np.float64).mean(0) - x, atol=2e-6)
    np.testing.assert_allclose(posterior.effective_sample_size, 301, rtol=1e-5)


def test_uniform_and_one_hot_weights_in_one_batch():
    data = normal(0, 211, 20)
    t = np.float32([0.0, 0.2, 0.6, 0.95, 0.999])
    x = (1 - t)[:, None] * normal(1, 5, 20) + t[:, None] * data[:5]
    check(data, x, t)


def test_duplicated_rows_are_doubled_weights():
    data, x = normal(0, 50, 12), normal(1, 6, 12)
    twice = fj.ClosedFormField(np.concatenate([data, data[:10]])).posterior(x, 0.4)
    weights = np.ones(50, np.float32)
    weights[:10] = 2
    weighted = fj.ClosedFormField(data, weights=weights).posterior(x, 0.4)
    for name in ("velocity", "log_density", "variance"):
        pair = [np.asarray(getattr(p, name)) for p in (twice, weighted)]
        if name == "log_density":
            # Both priors sum to one: 60 equal rows, or weights 2 and 1 that sum to 60.
            np.testing.assert_allclose(*pair, atol=1e-5)
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=2e-6)


def test_order_of_rows_does_not_matter():
    data, x = normal(0, 211, 12), normal(1, 6, 12)
    shuffled = np.random.default_rng(2).permutation(data)
    first, second = fj.ClosedFormField(data)(x, 0.5), fj.ClosedFormField(shuffled)(x, 0.5)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_weights_labels_and_flips_together():
    data, x = normal(0, 101, 4, 3, 2), normal(1, 7, 4, 3, 2)
    weights = np.random.default_rng(2).random(101).astype(np.float32)
    weights[3:20] = 0
    labels = np.random.default_rng(3).integers(0, 3, 101)
    for t in (0.0, 0.3, 0.9):
        check(data, x, t, weights=weights)
        check(data, x, t, horizontal_flip=True)
        check(data, x, t, labels=labels, query_labels=np.arange(7) % 3)
        check(data, x, t, labels=labels, query_labels=np.arange(7) % 3, weights=weights, horizontal_flip=True)


@pytest.mark.parametrize("kind", ["uint8", "bfloat16", "float16"])
def test_storage_types(kind):
    if kind == "uint8":
        data = np.random.default_rng(0).integers(0, 256, (101, 4, 4, 1)).astype(np.uint8)
    else:
        data = jax.numpy.asarray(normal(0, 101, 4, 4, 1), kind)
    points = np.asarray(fj.closed_form.to_float(data))
    x = 0.5 * normal(1, 5, 4, 4, 1) + 0.5 * points[:5]
    stored = check(data, x, 0.5)
    converted = fj.ClosedFormField(points).posterior(x, 0.5)
    np.testing.assert_array_equal(stored.velocity, converted.velocity)


def test_data_far_from_the_origin_is_centred():
    data, noise = normal(0, 211, 12) + 1000, normal(1, 5, 12)
    for t in (0.001, 0.3, 0.9):
        check(data, (1 - np.float32(t)) * noise + np.float32(t) * data[:5], t)


@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_scales(scale):
    data = normal(0, 211, 12) * np.float32(scale)
    for t in (0.01, 0.5, 0.97):
        check(data, (1 - np.float32(t)) * normal(1, 5, 12) + np.float32(t) * data[:5], t, tolerance=1e-5)


def test_float64_precision_certifies_every_time():
    data, noise = normal(0, 307, 48), normal(1, 16, 48)
    for t in (0.0, 0.1, 0.3, 0.5, 0.8, 0.99):
        x = (1 - np.float32(t)) * noise + np.float32(t) * data[:16]
        posterior = check(data, x, t, precision="float64", tolerance=3e-7)
        speed = np.linalg.norm(flat(posterior.velocity), axis=1)
        assert np.all(np.asarray(posterior.error_bound) < 1e-6 * speed)


def test_queries_far_from_everything():
    data = normal(0, 211, 12)
    check(data, 50 * normal(1, 5, 12), 0.5)


@pytest.mark.slow
def test_natural_pictures_on_path_and_between_neighbours():
    """The table of the README: ≤ 1e-5 on the path at every t and between neighbours up to .9; bounds hold."""
    data = natural_patches(3000)
    noise = normal(1, 16, *data.shape[1:])
    partner = nearest_neighbour(data, 16)
    for t in np.float32([0, 0.001, 0.05, 0.2, 0.5, 0.9, 0.99, 0.999]):
        on_path = (1 - t) * noise + t * data[:16]
        between = t * (data[:16] + data[partner]) / 2
        for x, limit in ((on_path, 1e-5), (between, 1e-5 if t <= 0.9 else np.inf)):
            posterior = fj.ClosedFormField(data).posterior(x, t)
            expected = oracle_posterior(data, x, t).velocity
            error = np.linalg.norm(flat(posterior.velocity) - expected, axis=1)
            assert np.all(error <= np.asarray(posterior.error_bound, np.float64))
            assert (error / np.linalg.norm(expected, axis=1)).max() <= limit


def test_no_bound_is_broken_on_near_duplicates():
    base = normal(0, 40, 24)
    data = np.concatenate([base + 1e-3 * normal(seed, 40, 24) for seed in range(1, 6)])
    for t in np.float32([0.1, 0.5, 0.9, 0.99, 0.999]):
        x = (1 - t) * normal(9, 20, 24) + t * data[:20]
        posterior = fj.ClosedFormField(data).posterior(x, t)
        expected = oracle_posterior(data, x, t).velocity
        error = np.linalg.norm(flat(posterior.velocity) - expected, axis=1)
        assert np.all(error <= np.asarray(posterior.error_bound, np.float64))
        assert (error / np.linalg.norm(expected, axis=1)).max() < 1e-4


def test_many_queries_are_tiled():
    data, x = normal(0, 53, 3), normal(1, 2500, 3)
    t = np.random.default_rng(2).random(2500).astype(np.float32) * np.float32(0.9)
    check(data, x, t, tolerance=1e-4)


@pytest.mark.parametrize("weights", ["tiny", "close", "huge"])
@pytest.mark.parametrize("t", [0.5, 0.999])
def test_weights_outside_float32(weights, t):
    """Weights that underflow, that differ in the last bit, that overflow: float64 as they were given."""
    data = normal(0, 30, 12)
    values = {
        "tiny": np.where(np.arange(30) == 0, 1e-50, 1.0),
        "close": 1 + 5.9e-8 * np.arange(30),
        "huge": np.geomspace(1e-200, 1e200, 30),
    }[weights]
    x = np.concatenate([data[:3] * np.float32(t), np.float32(t) * (data[:3] + data[3:6]) / 2])
    check(data, x, t, weights=values, tolerance=1e-5)


@pytest.mark.parametrize("radius", [1.0, 200.0, 400.0])
@pytest.mark.parametrize("t", [0.2, 0.35, 0.5, 0.9])
def test_float64_bounds_hold_on_spheres(radius, t):
    """Seen from the centre all rows weigh nearly the same: what decides are the last digits of their norms."""
    directions = normal(0, 300, 12).astype(np.float64)
    data = (radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    x = np.concatenate([np.zeros((1, 12), np.float32), normal(1, 3, 12)])
    for precision in ("float32", "float64"):
        posterior = fj.ClosedFormField(data, precision=precision).posterior(x, t)
        error = np.linalg.norm(flat(posterior.velocity) - oracle_posterior(data, x, t).velocity, axis=1)
        assert np.all(error <= np.asarray(posterior.error_bound, np.float64)), precision


@pytest.mark.parametrize("t", [0.3, 0.5, 0.7])
def test_more_near_duplicates_than_candidates(t):
    """Forty rows share the weight and sixteen are re-scored: the rest must not be dropped for a smaller bound.

    So all scalars come of the float32 pass. One rounding of the inner product in a logit, 2^-24 α/σ² |x||y|, changes a
    weight by that share and 1/Σw² by up to four times as much: no order of summation promises less.
    """
    centre = normal(0, 1, 3072) * np.float32(0.5)
    data = np.concatenate([centre + normal(1, 40, 3072) * np.float32(3e-3), normal(2, 300, 3072)])
    x = (1 - np.float32(t)) * normal(3, 6, 3072) + np.float32(t) * data[:6]
    rounding = 2.0**-24 * t / (1 - t) ** 2 * np.linalg.norm(x, axis=1).max() * np.linalg.norm(data[0])
    check(data, x, t, tolerance=1e-5, scalar_tolerance=max(1e-4, 4 * rounding))


@pytest.mark.parametrize("t", [0.99999, 1 - 1e-6, 1 - 2.0**-24])
@pytest.mark.parametrize("dimension", [2, 12])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_last_times_between_rows_and_off_the_path(scale, dimension, t):
    """float32 logits err by thousands of nats: the bound may be large, but it holds, and nothing is NaN."""
    data = np.float32(scale) * normal(0, 200, dimension)
    t = np.float32(t)
    x = np.concatenate([t * (data[:20] + data[20:40]) / 2, normal(1, 20, dimension), t * data[:20]])
    for precision in ("float32", "float64"):
        posterior = fj.ClosedFormField(data, precision=precision).posterior(x, t)
        error = np.linalg.norm(flat(posterior.velocity) - oracle_posterior(data, x, t).velocity, axis=1)
        assert np.all(error <= np.asarray(posterior.error_bound, np.float64)), precision


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("offset", [1e2, 1e5])
def test_bounds_far_from_the_origin(path, offset):
    data = normal(0, 50, 12) + np.float32(offset)
    for t in (0.5, 0.999, 1 - 1e-6):
        x = np.asarray(path.interpolate(np.zeros((5, 12), np.float32), data[:5], np.float32(t)))
        posterior = fj.ClosedFormField(data, path).posterior(x, np.float32(t))
        error = np.linalg.norm(flat(posterior.velocity) - oracle_posterior(data, x, t, path).velocity, axis=1)
        assert np.all(error <= np.asarray(posterior.error_bound, np.float64)), t


def test_a_class_whose_weights_are_tiny_beside_the_others():
    data, labels = normal(0, 30, 12), np.arange(30) % 2
    check(
        data, normal(1, 4, 12), 0.4, weights=np.where(labels, 1e-200, 1e200), labels=labels,
        query_labels=np.array([1, 0, 1, 1]),
    )  # fmt: skip
