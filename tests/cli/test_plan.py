"""`flowjax plan`: what needs no TPU compiler is tested always, one real compilation where there is one."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from flowjax import data, plan
from flowjax.cli import main
from flowjax.closed_form.shapes import SHAPES, DataShape, parse
from flowjax.models import MLPConfig
from flowjax.plan import planner, worker

GIB = 2**30
PROGRAM = plan.Program(
    needed=4 * GIB,
    arguments=2 * GIB,
    temporaries=2 * GIB,
    fits=True,
    cycles=3e6,
    cycles_most=4e6,
    loops=((7, 4e5),),
    loops_unknown=0,
    collectives={"all-reduce": 2},
    sent=1e6,
    compile_seconds=1.0,
)


def refused(capsys, *argv) -> str:
    assert main(["plan", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flowjax: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that answers at once: the list of (topology, step), and a room that programs fit in or not."""
    asked = []

    def answer(place, shape, batch, rows_over, step, fast, say):
        asked.append((place.name, step))
        rows = shape.num_points * shape.row_bytes
        needed = 3 * GIB + rows / rows_over
        if step:
            needed += 80 * GIB / place.num_devices
        return dataclasses.replace(
            PROGRAM, needed=needed, fits=needed <= place.device_memory, cycles=9e6 if step else 3e6
        ), 1e15 * step

    monkeypatch.setattr(planner, "_compile", answer)
    monkeypatch.setattr(planner.importlib.util, "find_spec", lambda name: object())
    return asked


# -- shapes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "d", "size"),
    [
        ("cifar10", 3072, 153_600_000),
        ("imagenet-64", 12_288, 15_742_980_096),
        ("latents", 4096, 10_495_320_064),
    ],
)
def test_shapes_of_real_data(name, d, size):
    shape = SHAPES[name]
    assert shape.dimension == d
    assert shape.num_points * shape.row_bytes == size


def test_sizes_are_a_shape():
    assert parse("60000,28,28,1") == DataShape("60000,28,28,1", 60_000, (28, 28, 1), "uint8")
    assert parse("latents") is SHAPES["latents"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cifar-10", "did you mean 'cifar10'"),
        ("7", "unknown data"),
        ("50000,32,x", "whole numbers"),
        ("0,32", "at least one row"),
        ("10,0", "no empty axis"),
    ],
)
def test_wrong_data(capsys, text, part):
    assert part in refused(capsys, "--data", text)


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--topology", "v5e:3x5"], "slices of v5e: 1x1, 2x2, 2x4, 4x4"),
        (["--topology", "v9:4x4"], "one of the chips v4, v5e, v5p, v6e, tpu7x"),
        (["--topology", "v5e"], "there is no topology 'v5e'"),
        (["--batch", "1000"], "a multiple of 16"),
        (["--batch", "0", "--no-step"], "--batch must be at least 1, got 0"),
        (["--rows-over", "3"], "does not divide the 16 devices of v5e:4x4"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--data", "1000,30,30,3"], "cannot be halved"),
        (["--json", "no/such/folder/plan.json"], "there is no folder"),
        (["--topologies", "v5e:4x4"], "--topologies"),
    ],
)
def test_mistakes_are_one_sentence(capsys, argv, part):
    assert part in refused(capsys, *argv)


def test_without_the_compiler(capsys, monkeypatch):
    monkeypatch.setattr(planner.importlib.util, "find_spec", lambda name: None)
    assert 'pip install "jax[tpu]"' in refused(capsys)


def test_what_does_not_fit_names_the_smallest_slice(capsys, compiler):
    # 3 + 15.7e9/2^30/devices + 80/devices GiB a chip of 16 GiB: 8 chips are enough.
    error = refused(capsys, "--data", "imagenet-64", "--topology", "v5e:2x2")
    assert "the training step of imagenet-64 with batch 1024 does not fit on v5e:2x2" in error
    assert "it needs 26.7 GiB a chip of 16 GiB" in error
    assert error.endswith("the smallest slice of v5e that does is v5e:2x4\n")
    # On eight chips first split over four, which a quarter of their memory would allow.
    assert compiler == [("v5e:2x2", False), ("v5e:2x2", True), *[("v5e:2x4", False), ("v5e:2x4", True)] * 2]


def test_rows_are_split_as_told(tmp_path, compiler):
    out = tmp_path / "plan.json"
    argv = ["--topology", "v5e:4x4", "--rows-over", "8", "--no-step", "--json", str(out)]
    assert main(["plan", *argv]) == 0
    (entry,) = json.loads(out.read_text())
    assert entry["rows_over"] == 8
    assert compiler == [("v5e:4x4", False)]


def test_slices_that_the_rows_alone_would_fill_are_not_compiled(capsys, compiler):
    huge = "20000000,64,64,3"  # 229 GiB: 13 GiB beside 3 GiB of everything else need 18 chips of v5e
    error = refused(capsys, "--data", huge, "--topology", "v5e:1x1", "--no-step")
    assert error.endswith("is v5e:4x8\n")
    assert compiler == [("v5e:1x1", False), ("v5e:4x8", False)]


@pytest.mark.usefixtures("compiler")
def test_no_slice_is_large_enough(capsys):
    error = refused(capsys, "--data", "400000000,64,64,3", "--topology", "v5e:4x4", "--no-step")
    assert "no larger slice of this chip does; take a smaller --batch or a chip with more memory" in error


def test_slices_that_the_batch_does_not_divide_over_are_named(capsys, compiler):
    # 23 GiB of the step would fit on 32 chips, but 48 examples go over 16 at most.
    error = refused(capsys, "--data", "100000000,64,64,3", "--topology", "v5e:4x4", "--batch", "48")
    assert "no larger slice that a batch of 48 can be split over does (v5e:4x8, v5e:8x8," in error
    assert "take another --batch" in error
    assert {topology for topology, _ in compiler} == {"v5e:4x4"}


# -- the table ---------------------------------------------------------------------------------------


def test_table_and_json(capsys, tmp_path, compiler):
    out = tmp_path / "plan.json"
    assert main(["plan", "--data", "imagenet-64", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert {topology for topology, _ in compiler} == set(plan.TOPOLOGIES)
    assert all(topology in text for topology in plan.TOPOLOGIES)
    entries = {entry["topology"]: entry for entry in json.loads(out.read_text())}
    entry = entries["v5e:16x16"]
    assert entry["rows_over"] == 16  # 64 queries for each of 256 chips; a gigabyte of rows
    assert entry["num_points_padded"] == 1_281_168
    assert "80073, over 16 (1 padded)" in text
    assert entry["field"]["seconds"] == pytest.approx(3e6 / 1.5e9)
    assert entry["fits"]
    # Six bfloat16 products for each of two float32 ones.
    assert entry["field"]["roofline_seconds"] == pytest.approx(6 * 4 * 80_073 * 64 * 12_288 / 197e12)
    assert entry["step"]["roofline_seconds"] == pytest.approx(
        entry["field"]["roofline_seconds"] + 1e15 / (256 * 197e12)
    )
    transfer = 1e6 / 200e9
    assert entry["target_share_of_step"] == pytest.approx((2e-3 + transfer) / (6e-3 + transfer))


@pytest.mark.usefixtures("compiler")
def test_a_table_says_what_does_not_fit(capsys):
    assert main(["plan", "--data", "imagenet-64", "--topology", "v5e:2x2,v5e:4x4"]) == 0
    text = capsys.readouterr().out
    assert "does not fit on v5e:2x2" in text
    assert "does not fit on v5e:4x4" not in text


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as left:
        main(["plan", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "imagenet-64" in text
    assert "nothing measured" in text


# -- reading the compiler ----------------------------------------------------------------------------

HLO = """HloModule jit_f, is_scheduled=true

%region_1 (a: f32[]) -> f32[] {
  ROOT %x = f32[] add(%a, %a)
}

%cond.1 (p: (s32[], f32[8,128])) -> pred[] {
  %bound = s32[]{:T(128)} constant(7), metadata={op_name="jit(f)/while"}
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body.1 (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %f = f32[8,128] fusion(%p), kind=kLoop, calls=%region_1, backend_config={"estimated_cycles":"100"}
  %w = (s32[], f32[8,128]) while(%t), condition=%cond.2, body=%body.2
  %r = f32[8,128]{1,0} all-reduce(%f), channel_id=1, to_apply=%region_1
}

%cond.2 (p: s32[]) -> pred[] {
  %bound = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%body.2 (p: s32[]) -> s32[] {
  %f = f32[8,128] fusion(%p), kind=kLoop, calls=%region_1, backend_config={"estimated_cycles":"10"}
}

%cond.3 (p: s32[]) -> pred[] {
  ROOT %converged = pred[] custom-call(%p)
}

%branch.1 (p: f32[8,128]) -> f32[8,128] {
  %f = f32[8,128] fusion(%p), kind=kLoop, calls=%region_1, backend_config={"estimated_cycles":"50"}
  %w = (s32[], f32[8,128]) while(%t), condition=%cond.2, body=%body.2
}

%branch.2 (p: f32[8,128]) -> f32[8,128] {
  %f = f32[8,128] fusion(%p), kind=kLoop, calls=%region_1, backend_config={"estimated_cycles":"20"}
  %r = f32[4,128]{1,0} all-to-all(%f), channel_id=2, replica_groups=[2,2]<=[4]
}

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %f = f32[8,128] fusion(%p), kind=kLoop, calls=%region_1, backend_config={"estimated_cycles":"1000"}
  %w = (s32[], f32[8,128]) while(%t), condition=%cond.1, body=%body.1
  %g = (bf16[4,2], bf16[16,2]{1,0}) all-gather-start(%f), dimensions={0}
  %d = bf16[16,2] all-gather-done(%g)
  %open = s32[] while(%t), condition=%cond.3, body=%body.2
  %some = f32[8,128] conditional(%p, %f, %f), branch_computations={%branch.1, %branch.2}
}
"""


def test_loops_count_as_often_as_they_turn():
    read = plan.read_hlo(HLO, 4)
    assert read["cycles"] == 1000 + 7 * (100 + 3 * 10) + 10 + 20
    assert read["cycles_most"] == 1000 + 7 * (100 + 3 * 10) + 10 + 50 + 3 * 10
    assert read["loops"] == ((7, 130.0), (3, 10.0), (1, 10.0))
    assert read["loops_unknown"] == 1
    assert read["collectives"] == {"all-reduce": 7, "all-gather": 1, "all-to-all": 1}
    # An all-reduce of 4096 bytes over 4 devices sends 3/4 of them twice; of a gather's 64 bytes 3/4 come of others.
    # The branch's exchange is among two devices.
    assert read["sent"] == 7 * 2 * 0.75 * 4096 + 0.75 * 64 + 0.5 * 2048


def test_running_out_of_memory_is_read():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.32G of 15.75G hbm. Exceeded by 9.57G."
    assert plan.out_of_memory(message) == pytest.approx(25.32 * GIB)
    assert plan.out_of_memory("UNIMPLEMENTED: something else") is None


def test_programs_lower_from_shapes_alone():
    mesh = data.mesh(jax.devices()[:1])
    shape = DataShape("rows", 1001, (3,), "bfloat16")
    text = plan.lower_field(shape, 8, mesh).as_text()
    assert "tensor<1001x3xbf16>" in text
    assert "tensor<1001x3xbf16>" in plan.lower_step(shape, 8, mesh).as_text()


def test_operations_of_the_network_are_counted():
    shape = DataShape("rows", 1001, (64,), "float32")
    one, two = (worker.network_operations(shape, batch) for batch in (64, 128))
    width = MLPConfig(event_shape=(64,)).width
    assert one > 6 * 64 * width**2  # forward and backward through one hidden layer at least
    assert 1.5 < two / one < 2


@pytest.mark.slow
def test_a_real_compilation(capsys, tmp_path):
    pytest.importorskip("libtpu")
    out = tmp_path / "plan.json"
    argv = [
        "plan",
        "--data",
        "50001,2",
        "--topology",
        "v5e:2x2",
        "--batch",
        "128",
        "--fast",
        "--json",
        str(out),
    ]
    assert main(argv) == 0
    assert "v5e:2x2: compiling the field" in capsys.readouterr().out
    (entry,) = json.loads(Path(out).read_text())
    assert entry["num_devices"] == 4
    assert entry["num_points_padded"] == 50_002
    assert entry["fits"]
    assert entry["rows_over"] == 2
    # The pass goes over 25 001 rows a chip in blocks of 512, the candidates are 16: loops that the text must hold.
    assert {49, 16} <= {trips for trips, _ in entry["field"]["loops"]}
    assert entry["field"]["loops_unknown"] == 0
    assert entry["field"]["arguments"] >= 25_001 * 2
    assert sum(entry["field"]["collectives"].values()) > 0
    assert entry["field"]["cycles"] > 0
    assert entry["network_operations"] > 0
    assert 0 < entry["target_share_of_step"] <= 1
