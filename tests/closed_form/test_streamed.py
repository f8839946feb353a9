"""The streamed backend: the shared suite, every kind of source, transforms, files that change, memory."""

import json
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_dense as shared
from support import flat, normal, oracle_posterior

import flowjax as fj
from flowjax.closed_form import field as field_module
from flowjax.closed_form import sources, streamed
from flowjax.training.evaluation import target_curve

BLOCK = 64


def build(data, *args, block_size=BLOCK, **options) -> fj.ClosedFormField:
    return fj.closed_form.ClosedFormField(data, *args, method="streamed", block_size=block_size, **options)


def pixels(n: int = 211, *event: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *(event or (4, 4, 1))), np.uint8)


def queries(data: np.ndarray, count: int = 9, t: float = 0.6) -> np.ndarray:
    points = np.asarray(fj.closed_form.to_float(data[:count]))
    return (np.float32(t) * points + np.float32(1 - t) * normal(1, *points.shape)).astype(np.float32)


def check_against_oracle(field, data, x, t=0.6, **options):
    posterior = field.posterior(x, t)
    expected = oracle_posterior(data, x, t, **options)
    error = np.linalg.norm(flat(posterior.velocity) - expected.velocity, axis=1)
    assert np.all(error <= np.asarray(posterior.error_bound, np.float64))
    assert np.max(error / np.linalg.norm(expected.velocity, axis=1)) < 2e-6
    np.testing.assert_array_equal(posterior.argmax, expected.argmax)
    return posterior


SHARED = [
    ("test_every_path_and_time", (fj.paths.Linear(), 12)),
    ("test_very_small_data_sets", (1,)),
    ("test_uniform_and_one_hot_weights_in_one_batch", ()),
    ("test_no_bound_is_broken_on_near_duplicates", ()),
    ("test_data_far_from_the_origin_is_centred", ()),
]
SHARED_SLOW = [
    ("test_every_path_and_time", (fj.paths.VariancePreserving(), 2)),
    ("test_block_size_does_not_matter", (1,)),
    ("test_at_time_zero_only_the_mean_counts", ()),
    ("test_duplicated_rows_are_doubled_weights", ()),
    ("test_weights_labels_and_flips_together", ()),
    ("test_float64_precision_certifies_every_time", ()),
    ("test_float64_bounds_hold_on_spheres", (200.0, 0.35)),
    ("test_last_times_between_rows_and_off_the_path", (1.0, 12, 1 - 1e-6)),
    ("test_weights_outside_float32", ("huge", 0.5)),
    ("test_a_class_whose_weights_are_tiny_beside_the_others", ()),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"), [*SHARED, *(pytest.param(*case, marks=pytest.mark.slow) for case in SHARED_SLOW)]
)
def test_shared(name, arguments, monkeypatch):
    """What every backend has to pass, in blocks of 64 rows where the test does not say otherwise."""
    monkeypatch.setattr(fj, "ClosedFormField", build)
    getattr(shared, name)(*arguments)


def test_more_near_duplicates_than_candidates_spread_over_blocks():
    centre = normal(0, 1, 48)
    data = np.concatenate([centre + normal(1, 40, 48) * np.float32(3e-3), normal(2, 171, 48)])
    data = np.random.default_rng(3).permutation(data)
    for t in (0.3, 0.7, 0.99):
        x = (1 - np.float32(t)) * normal(3, 6, 48) + np.float32(t) * centre
        posterior = build(data, block_size=32).posterior(x, t)
        error = np.linalg.norm(flat(posterior.velocity) - oracle_posterior(data, x, t).velocity, axis=1)
        assert np.all(error <= np.asarray(posterior.error_bound, np.float64))


def test_labels_weights_and_flips_with_blocks_that_hold_no_row_of_a_class():
    data, labels = normal(0, 101, 2, 3, 2), np.arange(101) // 51
    weights = np.random.default_rng(2).random(101)
    field = build(data, labels=labels, weights=weights, horizontal_flip=True, block_size=25)
    asked = np.arange(5) % 2
    expected = oracle_posterior(
        data, data[:5, :, ::-1], 0.3, labels=labels, query_labels=asked, weights=weights, horizontal_flip=True
    )
    posterior = field.posterior(data[:5, :, ::-1], 0.3, asked)
    np.testing.assert_allclose(flat(posterior.velocity), expected.velocity, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(posterior.argmax, expected.argmax)
    np.testing.assert_array_equal(field.labels, labels)
    assert field.num_classes == 2


@pytest.mark.parametrize("size", [None, 1, 100, 2048])
def test_blocks_cover_all_rows_once(size):
    data = normal(0, 1777, 3)
    rows = build(data, block_size=size)._rows
    blocks = rows.data.held
    seen = np.zeros(1777, int)
    for step in range(blocks.count):
        block, squares, log_weights, _ = blocks.read(step)
        start = min(step * blocks.size, 1777 - blocks.size)
        np.testing.assert_array_equal(block, data[start : start + blocks.size])
        np.testing.assert_allclose(squares, (block**2).sum(1), rtol=1e-5)
        seen[start : start + blocks.size] += 1 if log_weights is None else log_weights == 0
    assert np.all(seen == 1)


def test_default_blocks_are_bounded_and_even():
    rows = build(pixels(1000, 64), block_size=None)._rows
    assert streamed.block_rows(rows, None) == 1000
    stands_for = lambda n, d: sources.OnHost(sources.of_array(np.zeros(1)), (n, d), np.uint8)  # noqa: E731
    for n, d in ((50_000, 3072), (6_510_416, 3072), (1_000_003, 2), (1_000, 10_000_000)):
        many = streamed.Rows(stands_for(n, d), stands_for(n, 1), *(None,) * 6)
        size = streamed.block_rows(many, None)
        assert size * (d + 1) <= streamed.BLOCK_BYTES + 512 * (d + 1)
        repeated = -n % size
        assert size <= 512 or size == n or (size % 512 == 0 and repeated < 512 * -(-n // size))


# -- sources ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["array", "path", "text", "memmap", "slice", "jax"])
def source(request, tmp_path):
    data = pixels()
    file = tmp_path / "rows.npy"
    np.save(file, data)
    if request.param == "slice":
        np.save(file, np.concatenate([data[:5], data, data[:2]]))
    return data, {
        "array": lambda: data,
        "path": lambda: file,
        "text": lambda: str(file),
        "memmap": lambda: np.load(file, mmap_mode="r"),
        "slice": lambda: np.load(file, mmap_mode="r")[5:-2],
        "jax": lambda: jnp.asarray(data),
    }[request.param]()


def test_sources(source):
    data, given = source
    field = build(given)
    np.testing.assert_array_equal(field.data, data)
    assert field.event_shape == (4, 4, 1)
    assert "211 points of shape (4, 4, 1), uint8" in repr(field)
    check_against_oracle(field, data, queries(data))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_stored_types_of_a_file(dtype, tmp_path):
    data = normal(0, 101, 12).astype(jnp.bfloat16 if dtype == "bfloat16" else dtype)
    np.save(tmp_path / "rows.npy", data)
    field = fj.ClosedFormField(tmp_path / "rows.npy", block_size=40)
    x = queries(np.asarray(data, np.float32))
    check_against_oracle(field, np.asarray(data, np.float32), x)


@pytest.mark.slow
def test_records(tmp_path):
    data = pixels()
    place = fj.data.prepare(fj.data.Dataset("pixels", data, np.arange(211) % 2), tmp_path / "prepared")
    records = fj.data.stream(f"tfds:{place}")
    field = fj.ClosedFormField(records, block_size=BLOCK)
    assert field.data is records
    check_against_oracle(field, data, queries(data))
    np.testing.assert_array_equal(
        field.rows([[3, 210], [3, 4]]), fj.closed_form.to_float(data[[[3, 210], [3, 4]]])
    )
    (place / "notes.txt").write_text("not a file that rows are in")
    field(queries(data), 0.6)
    curve, expected = (target_curve(one, num_queries=8) for one in (field, fj.ClosedFormField(data)))
    np.testing.assert_allclose(curve["relative_variance"], expected["relative_variance"], atol=1e-5)
    changed = next(path for path in place.iterdir() if "array_record" in path.name)
    os.utime(changed, ns=(0, 0))
    with pytest.raises(RuntimeError, match=f"modification time of {changed.name}"):
        field(queries(data), 0.6)


def test_sources_that_make_no_sense(tmp_path):
    with pytest.raises(FileNotFoundError):
        fj.ClosedFormField(tmp_path / "missing.npy")
    (tmp_path / "text.npy").write_text("no rows")
    with pytest.raises(ValueError, match=r"is not a \.npy file"):
        fj.ClosedFormField(tmp_path / "text.npy")
    np.savez(tmp_path / "archive.npz", pixels())
    with pytest.raises(ValueError, match=r"is not a \.npy file"):
        fj.ClosedFormField(tmp_path / "archive.npz")
    np.save(tmp_path / "columns.npy", np.asfortranarray(normal(0, 20, 4)))
    with pytest.raises(ValueError, match="one after the other"):
        fj.ClosedFormField(tmp_path / "columns.npy")
    np.save(tmp_path / "nan.npy", np.where(np.arange(80).reshape(20, 4) == 70, np.nan, normal(0, 20, 4)))
    with pytest.raises(ValueError, match="NaN"):
        fj.ClosedFormField(tmp_path / "nan.npy", block_size=7)
    np.save(tmp_path / "whole.npy", np.zeros((20, 4), int))
    with pytest.raises(TypeError, match="int64"):
        fj.ClosedFormField(tmp_path / "whole.npy")
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda data: fj.ClosedFormField(data, method="streamed")(data, 0.5))(normal(0, 20, 4))


# -- transforms ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_transforms():
    data = pixels()
    x = queries(data)
    field, dense = build(data), fj.ClosedFormField(data)
    functions = [
        jax.jit(lambda field, x: field(x, 0.6)),
        lambda field, x: jax.vmap(lambda x: field(x, 0.6))(x),
        lambda field, x: jax.jvp(lambda x: field(x, 0.6), (x,), (x,))[1],
        jax.jit(lambda field, x: jax.grad(lambda x: jnp.sum(field(x, 0.6) ** 2))(x)),
        lambda field, x: jax.grad(lambda t: jnp.sum(field(x, t) ** 2))(0.6),
        lambda field, x: jax.jacfwd(jax.grad(lambda t: jnp.sum(field(x, t) ** 2)))(0.3),
    ]
    for function in functions:
        expected = np.asarray(function(dense, x))
        np.testing.assert_allclose(
            function(field, x), expected, rtol=2e-5, atol=1e-5 * np.abs(expected).max()
        )


def test_another_field_of_the_same_shape_compiles_nothing():
    x = queries(pixels())
    first = build(pixels())
    first(x, 0.6)
    compiled = field_module._evaluate_jit._cache_size()
    second = build(255 - pixels())
    check_against_oracle(second, 255 - pixels(), x)
    second(x, 0.3)
    assert field_module._evaluate_jit._cache_size() <= compiled + 1  # the posterior's


def test_a_field_comes_out_of_jit_whole():
    data = pixels()
    field = jax.jit(lambda field: field)(build(data))
    assert field.data is data
    check_against_oracle(field, data, queries(data))


def test_samplers_take_it():
    data = pixels()
    noise = normal(3, 4, 4, 4, 1)
    expected = fj.sampling.sample(fj.ClosedFormField(data), noise, solver="heun", num_steps=4).samples
    samples = fj.sampling.sample(build(data), noise, solver="heun", num_steps=4).samples
    np.testing.assert_allclose(samples, expected, atol=1e-4)


# -- files that change --------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, pixels())
    return path


def overwrite(path):
    with open(path, "r+b") as handle:
        handle.seek(-10, os.SEEK_END)
        handle.write(b"0123456789")
    os.utime(path, ns=(1, 1))  # clocks are coarse


def replace(path):
    stat = path.stat()
    np.save(path.with_suffix(".other.npy"), 255 - pixels())
    os.replace(path.with_suffix(".other.npy"), path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES = {
    "modification time": overwrite,
    "size": lambda path: os.truncate(path, 1000),
    "inode": replace,
    "can no longer be read": os.remove,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_changed_before_a_pass(what, file):
    field, x = build(file), queries(pixels())
    field(x, 0.6)
    CHANGES[what](file)
    with pytest.raises(RuntimeError, match=f"rows.npy .*{what}") as caught:
        field(x, 0.6)
    assert "\n" not in str(caught.value)
    with pytest.raises(Exception, match=f"rows.npy .*{what}"):  # of a type that is jax's choice
        jax.block_until_ready(jax.jit(lambda field, x: field(x, 0.6))(field, x))


@pytest.mark.parametrize("what", ["modification time", "size", "can no longer be read"])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_changes_during_a_pass(what, mapped, file, monkeypatch):
    field, x = build(np.load(file, mmap_mode="r") if mapped else file), queries(pixels())
    reads = []
    read = sources._read_into

    def then_change(path, buffer, offset):
        read(path, buffer, offset)
        reads.append(offset)
        if len(reads) == 3:
            CHANGES[what](file)

    monkeypatch.setattr(sources, "_read_into", then_change)
    with pytest.raises(RuntimeError, match=f"rows.npy .*{what}"):
        field(x, 0.6)
    assert len(reads) == 3


@pytest.mark.parametrize("mapped", [False, True])
def test_volatile_data_is_summed_once_a_pass(mapped, file, monkeypatch):
    summed = []
    sum_of = streamed._sum
    monkeypatch.setattr(streamed, "_sum", lambda block: summed.append(len(block)) or sum_of(block))
    field = build(np.load(file, mmap_mode="r+") if mapped else pixels(), labels=np.arange(211) % 2)
    assert summed == [BLOCK] * 4
    field(queries(pixels()), 0.6)
    assert summed == [BLOCK] * 8


@pytest.mark.parametrize("mapped", [False, True])
def test_rows_written_in_place_are_noticed(mapped, file):
    """No file's state tells of it; even the multiset of norms is the same."""
    data = np.load(file, mmap_mode="r+") if mapped else pixels()
    field, x = build(data), queries(pixels())
    field(x, 0.6)
    data[:] = data[::-1].copy()
    with pytest.raises(RuntimeError, match="changed after the field was built"):
        field(x, 0.6)


@pytest.mark.parametrize("shorter", [False, True])
def test_a_map_whose_file_was_replaced_before(shorter, file):
    mapped = np.load(file, mmap_mode="r")
    np.save(file.with_suffix(".other.npy"), pixels()[: 100 if shorter else None] ^ 1)
    os.replace(file.with_suffix(".other.npy"), file)
    with pytest.raises(
        RuntimeError, match=r"rows.npy is not the file that was mapped any more.*map it again"
    ):
        build(mapped)
    check_against_oracle(build(np.load(file, mmap_mode="r+")), np.load(file), queries(np.load(file)))


# -- evaluations that overlap -------------------------------------------------------------------------------


def test_evaluations_overlap_and_one_of_them_fails(file, monkeypatch, caplog):
    """In threads, of one field: each has its own blocks read ahead, and its own failure."""
    field, x = build(file), queries(pixels())
    expected = np.asarray(field(x, 0.6))
    together, passes, read = threading.Barrier(2), [], streamed._Pass.read

    class Broken:
        data, count = field._rows.data.held.data, field._rows.data.held.count

        def load(self, step):
            raise OSError("input/output error")

    def read_together(one, step):
        if step == 0:
            passes.append(one)
            together.wait(60)
        if step == 2 and one is passes[0]:
            one._next, one._blocks = None, Broken()
        return read(one, step)

    monkeypatch.setattr(streamed._Pass, "read", read_together)
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(lambda: np.asarray(field(x, 0.6))) for _ in range(2)]
    failed = [one for one in both if one.exception() is not None]
    assert [str(one.exception()) for one in failed] == ["input/output error"]
    (other,) = set(both) - set(failed)
    np.testing.assert_array_equal(other.result(), expected)
    assert caplog.records == []  # JAX would have logged a traceback


def test_what_others_do_wrong_in_callbacks_is_still_logged(file, caplog):
    field, x = build(file), queries(pixels())

    def wrong(_):
        raise ValueError("not ours")

    def other(x):
        return jax.pure_callback(wrong, jax.ShapeDtypeStruct((), np.float32), x)

    field(x, 0.6)
    with pytest.raises(Exception, match="not ours"):
        jax.block_until_ready(jax.jit(other)(np.float32(0)))
    assert "not ours" in caplog.text
    assert not logging.getLogger("jax._src.callback").disabled


def test_queries_that_a_compiled_function_holds(file):
    field, x = build(file), queries(pixels())
    held = jax.jit(lambda: field(x, 0.6))
    for _ in range(2):
        np.testing.assert_allclose(held(), field(x, 0.6), rtol=1e-6, atol=1e-6)


# -- rows by number -----------------------------------------------------------------------------------------


def test_rows_by_number(file):
    data = fj.closed_form.to_float(pixels())
    field = build(file, horizontal_flip=True)
    dense = fj.ClosedFormField(pixels(), horizontal_flip=True)
    index = np.array([[3, 210, 4], [4, 0, 5]])
    for one in (field, dense):
        rows = one.rows(index)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, data[index])
        np.testing.assert_array_equal(one.rows(7), data[7])
        np.testing.assert_array_equal(one.rows([211 + 7, 7]), np.stack([data[7][:, ::-1], data[7]]))
        assert one.rows(np.zeros(0, int)).shape == (0, 4, 4, 1)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(field.rows)(index)
    CHANGES["size"](file)
    with pytest.raises(RuntimeError, match="size was"):
        field.rows(0)


def test_a_failed_pass_leaves_nothing_behind(file, monkeypatch):
    field, x = build(file), queries(pixels())
    expected = np.asarray(field(x, 0.6))

    def fail(*_):
        raise OSError("input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "_read_into", fail)
        with pytest.raises(RuntimeError, match="input/output error"):
            field(x, 0.6)
    np.testing.assert_array_equal(field(x, 0.6), expected)


# -- progress and memory ------------------------------------------------------------------------------------


def test_a_long_pass_shows_a_bar_on_a_terminal_only(monkeypatch, capsys):
    monkeypatch.setattr(streamed, "_PATIENCE", 0.0)
    bars, stop = set(), streamed._Progress._stop
    monkeypatch.setattr(streamed._Progress, "_stop", lambda bar: bars.add(bar) or stop(bar))
    data = pixels()
    field = build(data, block_size=20)
    field(queries(data), 0.6)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    field(queries(data), 0.6)
    assert bars
    assert all(bar._bar is None for bar in bars)  # put away at the end
    assert "streaming" in capsys.readouterr().err


_MEMORY = """
import json, sys
from pathlib import Path
import numpy as np
import flowjax as fj

def peak():  # not ru_maxrss, which a new process inherits from the one that started it
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

x = np.zeros((2, 3072), np.float32)
fj.ClosedFormField(np.zeros((3, 3072), np.uint8), method="streamed")(x, 0.5).block_until_ready()
before = peak()
velocity = np.asarray(fj.ClosedFormField(sys.argv[1], method="streamed")(x, 0.5))
print(json.dumps({"growth": peak() - before, "velocity": float(velocity.mean())}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_stays_bounded(tmp_path):
    """1.2 GB of rows, all of them holes in the file: fewer than .6 GB come into memory."""
    path = tmp_path / "large.npy"
    n = 1_200_000_000 // 3072
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, 3072)).flush()
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(path)], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert 5e7 < result["growth"] < 6e8  # a block at least has been there
    assert result["velocity"] == pytest.approx(-2.0)  # every row is −1: (−1 − 0)/(1 − .5)
