"""Rows over a mesh of eight CPU devices: same numbers, one merge, a constant number of collectives."""

import re

import jax
import numpy as np
import pytest
from support import normal

import flowjax as fj
from flowjax.closed_form import moments, passes, refine

N, B, D = 104, 6, 12
T = np.float32([0, 0.2, 0.5, 0.8, 0.95, 0.999])


def place(array, kind="Auto", axis="data"):
    mesh = jax.make_mesh((8,), (axis,), axis_types=(getattr(jax.sharding.AxisType, kind),))
    return jax.device_put(array, jax.NamedSharding(mesh, jax.P(axis)))


def queries(data):
    t = T.reshape(-1, *(1,) * (data.ndim - 1))
    return (1 - t) * normal(1, B, *data.shape[1:]) + t * data[:B]


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("options", [{}, {"horizontal_flip": True}, {"labels": True, "weights": True}])
def test_sharded_equals_single_device(kind, options):
    data = normal(0, N, 2, 3, 2)
    x = queries(data)
    options = dict(options)
    labels = None
    if options.pop("labels", False):
        options["labels"], labels = np.arange(N) % 3, np.arange(B) % 3
    if options.pop("weights", False):
        options["weights"] = np.linspace(0.5, 2, N, dtype=np.float32)
    single = fj.ClosedFormField(data, **options).posterior(x, T, labels)
    sharded = fj.ClosedFormField(place(data, kind), **options).posterior(x, T, labels)
    for name, a, b in zip(single._fields, single, sharded, strict=True):
        if name == "argmax":
            np.testing.assert_array_equal(a, b)
        elif name == "error_bound":
            difference = np.linalg.norm((single.velocity - sharded.velocity).reshape(B, -1), axis=1)
            assert np.all(difference <= a + b)
        else:
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_gradients_and_jit():
    data = normal(0, N, D)
    x = queries(data)
    single, sharded = fj.ClosedFormField(data), fj.ClosedFormField(place(data))

    def total(field, x):
        return (field(x, T) ** 2).sum()

    expected = jax.grad(total, 1)(single, x)
    for gradient in (jax.grad(total, 1)(sharded, x), jax.jit(jax.grad(total, 1))(sharded, x)):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    def divergence(field, x):
        return jax.vmap(lambda x, t: jax.numpy.trace(jax.jacfwd(field)(x, t)))(x, T)

    np.testing.assert_allclose(divergence(sharded, x), divergence(single, x), rtol=1e-4)


def test_number_of_collectives_does_not_grow_with_the_rows():
    def collectives(n):
        field = fj.ClosedFormField(place(normal(0, n, D)))
        text = jax.jit(lambda f, x: f(x, 0.3)).lower(field, normal(1, B, D)).compile().as_text()
        return len(re.findall(r" (?:all-reduce|all-gather|collective-permute|all-to-all)(?:-start)?\(", text))

    few, many = collectives(8 * 600), collectives(16 * 600)
    assert few == many
    assert 1 <= few <= 4


def test_a_field_moved_after_it_was_built():
    data = normal(0, N, D)
    x = queries(data)
    field = fj.ClosedFormField(data)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.device_put(field, jax.NamedSharding(mesh, jax.P()))
    np.testing.assert_allclose(replicated(x, T), field(x, T), rtol=1e-6, atol=1e-6)


def test_inside_shard_map_the_local_rows_are_the_data_set():
    data = normal(0, N, D)
    placed = place(data)
    field = fj.ClosedFormField(placed)
    mesh = placed.sharding.mesh
    x = normal(1, B, D)

    def local(rows, x):
        return fj.ClosedFormField(rows)(x, 0.3)[None]

    result = jax.shard_map(
        local, mesh=mesh, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data"), check_vma=False
    )(field.data, x)
    for shard in range(8):
        rows = data[shard * N // 8 : (shard + 1) * N // 8]
        np.testing.assert_allclose(result[shard], fj.ClosedFormField(rows)(x, 0.3), rtol=1e-5, atol=1e-5)


# -- queries over a second axis ----------------------------------------------------------------------


def two_axes(kind="Auto"):
    kinds = (getattr(jax.sharding.AxisType, kind),) * 2
    mesh = jax.make_mesh((4, 2), ("rows", "queries"), axis_types=kinds)
    return jax.NamedSharding(mesh, jax.P("rows")), jax.NamedSharding(mesh, jax.P("queries"))


def collectives_of(function, *arguments) -> list[tuple[str, str]]:
    """(shape, kind) of each in the compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    kinds = "all-reduce|all-gather|collective-permute|all-to-all"
    return re.findall(rf" = (.*?) ({kinds})(?:-start)?\(", text)


@pytest.mark.slow
def test_queries_over_a_second_axis(monkeypatch):
    monkeypatch.setattr(fj.closed_form.field, "_TILE", 4)  # six queries are two tiles, the second one padded
    by_row, by_query = two_axes()
    data = normal(0, N, 2, 3, 2)
    options = {"horizontal_flip": True, "weights": np.linspace(0.5, 2, N, dtype=np.float32)}
    single = fj.ClosedFormField(data, **options)
    sharded = fj.ClosedFormField(jax.device_put(data, by_row), **options)
    x = queries(data)
    expected = single.posterior(x, T)
    found = sharded.posterior(*jax.device_put((x, T), by_query))
    for name, a, b in zip(expected._fields, expected, found, strict=True):
        if name != "error_bound":
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_queries_over_a_second_axis_stay_where_they_are():
    by_row, by_query = two_axes()
    b = 2048  # two tiles
    x = jax.device_put(normal(1, b, 2, 3, 2), by_query)

    def asked(n):
        field = fj.ClosedFormField(jax.device_put(normal(0, n, 2, 3, 2), by_row), horizontal_flip=True)
        return collectives_of(lambda field, x: field(x, 0.3), field, x)

    few, many = asked(4 * 600), asked(8 * 600)
    assert few == many
    # Once a tile, the merge over the rows' axis.
    assert 1 <= len(few) <= 4, few
    field = fj.ClosedFormField(jax.device_put(normal(0, N, 2, 3, 2), by_row))
    assert field(x, 0.3).sharding.is_equivalent_to(by_query, 4)


def test_queries_over_an_explicit_axis_are_refused():
    by_row, by_query = two_axes("Explicit")
    field = fj.ClosedFormField(jax.device_put(normal(0, N, D), by_row))
    x = normal(1, B, D)
    np.testing.assert_allclose(field(x, T), fj.ClosedFormField(normal(0, N, D))(x, T), rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match=r"explicit type .*queries.*Auto"):
        field(jax.device_put(x, by_query), 0.3)


def test_rows_over_two_axes_are_refused():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    data = jax.device_put(normal(0, N, D), jax.NamedSharding(mesh, jax.P(("a", "b"))))
    with pytest.raises(ValueError, match="several mesh axes"):
        fj.ClosedFormField(data)


# -- which candidates a device re-scores -------------------------------------------------------------


def test_the_best_of_all_devices_are_kept():
    b, k = 11, 3
    logits = -np.sort(-normal(3, 8, b, k), -1)
    logits[5:, 2] = -np.inf  # a query that only five devices have rows for
    logits[1:, 4] = -np.inf  # and one that has fewer rows than candidates
    rest = np.full((8, b), -9, np.float32)

    def local(logit, rest):
        candidates = passes.Candidates(jax.numpy.zeros((b, k)), logit[0], rest[0])
        kept = refine.best_of_all(candidates, "data")
        return kept.logit[None], kept.rest[None]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
    kept, lost = jax.jit(mapped)(logits, rest)
    limit = np.sort(logits.swapaxes(0, 1).reshape(b, -1))[:, -k]
    keep = logits >= limit[:, None]
    np.testing.assert_array_equal(kept, np.where(keep, logits, -np.inf))
    np.testing.assert_array_equal(lost, np.maximum(np.where(keep, -np.inf, logits).max(-1), rest))


def assert_alike(single, sharded, x, t, *, gradient):
    """Posterior and gradient of two fields; returns the second one's posterior."""
    expected, found = single.posterior(x, t), sharded.posterior(x, t)
    for name, a, b in zip(expected._fields, expected, found, strict=True):
        if name != "error_bound":
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=name)

    def total(field, x):
        return (field(x, t) ** 2).sum()

    a, b = (jax.grad(total, 1)(field, x) for field in (single, sharded))
    np.testing.assert_allclose(b, a, rtol=gradient, atol=gradient * np.abs(a).max())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("flips", [False, True])
def test_candidates_of_all_queries_on_one_device(flips, monkeypatch):
    """More pairs than there is room for packed ones: nothing may get lost."""
    monkeypatch.setattr(refine, "_SPARE", 2)
    data = normal(0, N, 2, 3, 2)
    data[: N // 8] = (
        data[0] + 1e-3 * data[: N // 8]
    )  # all of them as near, in turns, and 13 candidates a query
    t = np.full(B, 0.99, np.float32)
    x = (1 - t).reshape(-1, 1, 1, 1) * normal(1, B, 2, 3, 2) + 0.99 * data[:B]
    single = fj.ClosedFormField(data, horizontal_flip=flips)
    sharded = fj.ClosedFormField(place(data), horizontal_flip=flips)
    found = assert_alike(single, sharded, x, t, gradient=1e-3)
    assert (np.asarray(found.effective_sample_size) > 3).all()
    assert (
        np.asarray(found.error_bound) < 1e-4 * np.linalg.norm(found.velocity.reshape(B, -1), axis=1)
    ).all()


@pytest.mark.slow
@pytest.mark.parametrize("flips", [False, True])
def test_packed_candidates_of_split_queries(flips, monkeypatch):
    """Rows over four devices, queries over two, and the derivative; seven queries do not divide."""
    monkeypatch.setattr(refine, "_SPARE", 1)
    branches = []
    real = jax.lax.cond
    monkeypatch.setattr(jax.lax, "cond", lambda *arguments: branches.append(0) or real(*arguments))
    by_row, _ = two_axes()
    data = normal(0, N, 2, 3, 2)
    t = np.append(T, np.float32(0.9))
    x = (1 - t).reshape(-1, 1, 1, 1) * normal(1, B + 1, 2, 3, 2) + t.reshape(-1, 1, 1, 1) * data[: B + 1]
    single = fj.ClosedFormField(data, horizontal_flip=flips)
    sharded = fj.ClosedFormField(jax.device_put(data, by_row), horizontal_flip=flips)
    assert_alike(single, sharded, x, t, gradient=1e-4)
    assert branches


def test_the_data_is_a_constant_and_no_query_is_fine():
    field = fj.ClosedFormField(place(normal(0, N, D) + 10))  # far away: with a centre
    assert field(np.zeros((0, D), np.float32), 0.3).shape == (0, D)
    x = normal(1, B, D)
    gradient = jax.grad(lambda field: (field(x, T) ** 2).sum())(field)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


# -- how float64 is merged on a TPU, run on the CPU --------------------------------------------------


def over_devices(function, *values):
    """`function` of each device's slice [*] of values [8, *], the same on every device."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(
        lambda *v: function(*(a[0] for a in v)), mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P()
    )
    return jax.jit(mapped)(*values)


def test_maximum_of_float32_parts():
    with jax.enable_x64(True):
        values = np.random.default_rng(0).normal(size=(8, 5)) * 1e9
        values[:, 1] = -np.inf
        values[:3, 2] = -np.inf
        values[:, 3] = 1 + np.arange(8) * 2.0**-40  # equal as float32
        found = over_devices(lambda v: moments.max_of_parts(v, "data"), jax.numpy.asarray(values))
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, values.max(0))


@pytest.mark.parametrize("shape", [(), (5,), (16, 3)])
def test_sum_by_parts(shape):
    with jax.enable_x64(True):
        values = np.random.default_rng(1).normal(size=(8, *shape))

        def total(v):
            return moments.sum_by_parts({"a": v}, "data")["a"]

        found = over_devices(total, jax.numpy.asarray(values))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, values.sum(0), rtol=0, atol=1e-13)


@pytest.mark.slow
def test_field_merged_as_on_a_tpu(monkeypatch):
    def here(*operands, tpu, default):
        return tpu(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", here)
    data = normal(2, N, D + 1)  # another shape than elsewhere: nothing compiled is there already
    x = queries(data)
    assert_alike(fj.ClosedFormField(data), fj.ClosedFormField(place(data)), x, T, gradient=1e-4)
