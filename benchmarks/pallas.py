"""The TPU kernel against XLA's own passes, by the TPU compiler, ahead of time. Nothing here ran on a device.

Three versions of one float32-grade pass over n = 50 176 rows: the kernel of `method="pallas_tpu"`, the dense pass with
the same results (moments and candidates), and the textbook's two products with a softmax between (the mean only, no
certificate; the logits in memory), of which XLA makes a product and a fused online softmax of its own. Every one is
compiled in a process of its own for a chip that need not be there (`pip install libtpu`, of the release that
`jax[tpu]` asks for).

What is compared are two different models. For the kernel: instruction bundles of a grid step in the compiler's final
schedule, one a cycle, times the number of steps; waits for memory are not in it. For XLA's fusions: the compiler's
own estimate of their cycles, in a loop times its trips; waits for memory are in it. So a ratio near one decides
nothing, and a ratio is an upper estimate of what the kernel gains. Work outside the loop or the kernel (preparing
queries, choosing candidates) is estimated by the compiler in all three and listed by itself.

Utilisation is the share of slots of each unit that the final schedule fills: of the kernel, and of the costliest
fusion of the dense pass's loop. About ten minutes on two cores.
"""

import concurrent.futures
import glob
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import harness

LABEL = "ahead-of-time, by the compiler, not measured on a device"
NUM_POINTS = 50_176
TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1", "tpu7x": "tpu7x:2x2x1"}
SHAPES = ((1024, 64), (1024, 16), (256, 3072))
VERSIONS = ("kernel", "dense", "two products")
_SECONDS = 300
UNITS = ("MXU", "XLU", "VALU", "EUP")


def cases() -> list[tuple[str, int, int, str]]:
    """Chip, queries, dimensions, storage type: all shapes on v5e and v6e, the first also in bfloat16 and elsewhere."""
    judged = [(chip, *shape, "float32") for shape in SHAPES for chip in ("v5e", "v6e")]
    narrow = [(chip, *SHAPES[0], "bfloat16") for chip in ("v5e", "v6e")]
    return judged + narrow + [(chip, *SHAPES[0], "float32") for chip in ("v5p", "tpu7x")]


def run() -> dict[str, Any]:
    """All cases; see the module's docstring.

    Raises:
        ValueError: no TPU compiler is installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the TPU compiler is missing; install it with `pip install 'jax[tpu]'`")
    jobs = [(version, *case) for case in cases() for version in VERSIONS]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = dict(zip(jobs, pool.map(_compile_elsewhere, jobs), strict=True))
    results = [
        {"chip": case[0], "queries": case[1], "dimension": case[2], "dtype": case[3]}
        | {version: done[version, *case] for version in VERSIONS}
        for case in cases()
    ]
    return {
        "benchmark": "pallas",
        "label": LABEL,
        "machine": harness.machine() | {"libtpu": importlib.metadata.version("libtpu")},
        "points": NUM_POINTS,
        "cases": results,
    }


def _compile_elsewhere(arguments: tuple[object, ...]) -> dict[str, Any]:
    """One compilation in a process of its own: the compiler reads its flags once, when it is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no chip for two processes to fight over
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
        }
        command = [sys.executable, "-m", "benchmarks.pallas", folder, *map(str, arguments)]
        top = Path(__file__).parent.parent
        try:
            process = subprocess.run(
                command, env=environment, cwd=top, capture_output=True, text=True, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not compiled within {_SECONDS} s"}
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:]
        return {"error": last[0][:500] if last else "no message"}
    return json.loads(process.stdout.strip().splitlines()[-1])


def compile_one(folder: str, version: str, chip: str, b: int, d: int, dtype: str) -> dict[str, Any]:
    """Compile one version and read the compiler's figures; runs with the dump flags set."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from flowjax.closed_form import dense, pallas_tpu
    from flowjax.closed_form.passes import Query, Settings
    from flowjax.closed_form.rows import Rows

    topology = topologies.get_topology_desc(topology_name=TOPOLOGIES[chip], platform="tpu")
    device = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def array(*shape, dtype="float32") -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=device)

    n = NUM_POINTS
    data = array(n, d, dtype=dtype)
    if version == "two products":
        text = jax.jit(_two_products).lower(array(b, d), array(b), data, array(n)).compile().as_text() or ""
        fused = re.search(r'custom-call\(.*custom_call_target="tpu_custom_call".*tiling="(\d+),(\d+)"', text)
        cycles, result = sum(_cycles(text).values()), {}
        if fused:  # for which the compiler states no cycles
            bundles, use = _schedule(folder, "online-softmax")
            steps = math.prod(
                -(-size // int(tile)) for size, tile in zip((b, n), fused.groups(), strict=True)
            )
            result = {"fused_bundles": bundles, "fused_steps": steps, "utilisation": use}
            cycles += bundles * steps
        return {"loop_cycles": cycles, "outside_cycles": 0} | result
    rows = Rows(data, array(n), None, None, None, array(), array(), array(1))
    query = Query(array(b, d), array(b), array(b), None)
    backend = "pallas_tpu" if version == "kernel" else "dense"
    size = pallas_tpu.block_size(n, d, None) if version == "kernel" else dense.block_rows(n, b, d, "tpu")
    settings = Settings(size, False, 16, "float32", backend=backend)
    text = jax.jit(dense.stream, static_argnums=0).lower(settings, query, rows).compile().as_text() or ""
    by_computation = _cycles(text)
    if version == "kernel":
        tile, size = pallas_tpu.tiles(b, d, settings.block_size)
        steps = -(-b // tile) * -(-n // size)
        bundles, use = _schedule(folder, "flowjax_stream")
        return {
            "loop_cycles": bundles * steps,
            "outside_cycles": sum(by_computation.values()),
            "bundles": bundles,
            "steps": steps,
            "tile": [tile, size],
            "utilisation": use,
        }
    bodies = {name: by_computation.get(name, 0) for name in re.findall(r"body=%?([\w.\-]+)", text)}
    body = max(bodies, key=lambda name: bodies[name])
    trips = -(-n // size)
    return {
        "loop_cycles": bodies[body] * trips,
        "outside_cycles": sum(by_computation.values()) - bodies[body],
        "trips": trips,
        "utilisation": _schedule(folder, _costliest(text, body))[1],
    }


def _two_products(theta, c, data, squares):
    """The textbook version: all weights at once, both products in float32 grade."""
    import jax
    import jax.numpy as jnp

    points = data.astype(jnp.float32)
    logits = jnp.matmul(theta, points.T, precision="highest") - c[:, None] * squares
    return jnp.matmul(jax.nn.softmax(logits, axis=1), points, precision="highest")


def _computations(text: str) -> dict[str, list[str]]:
    """Lines of every computation of a compiled module's text."""
    found: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head.group(1)
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return found


def _estimate(line: str) -> int:
    found = re.search(r'"estimated_cycles":"(\d+)"', line)
    return int(found.group(1)) if found else 0


def _cycles(text: str) -> dict[str, int]:
    """The compiler's estimated cycles, summed over each computation."""
    return {name: sum(map(_estimate, lines)) for name, lines in _computations(text).items()}


def _costliest(text: str, computation: str) -> str:
    line = max(_computations(text)[computation], key=_estimate)
    found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) =", line)
    assert found is not None, line
    return found.group(1)


def _schedule(folder: str, name: str) -> tuple[int, dict[str, float]]:
    """Bundles of one instruction's final schedule and the share of each unit's slots they fill."""
    files = [
        file
        for file in glob.glob(f"{folder}/*final_hlo-static-per-bundle-utilization.txt")
        if re.search(rf"\d+-{re.escape(name)}(\.\d+)?-\d+-final_hlo", file)
    ]
    if not files:
        return 0, {}
    lines = Path(max(files, key=lambda file: Path(file).stat().st_size)).read_text().splitlines()
    units = [unit.strip() for unit in lines[1].split(",")]
    capacity = [int(value) for value in lines[2].split()]
    table = [[int(value) for value in line.split()] for line in lines[3:] if re.fullmatch(r"[\d ]+", line)]
    used = {unit: sum(row[k] for row in table) / (len(table) * capacity[k]) for k, unit in enumerate(units)}
    return len(table), {unit: round(used[unit], 3) for unit in UNITS}


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: million cycles, and how full the units are."""

    def million(case, version):
        part = case[version]
        if "error" in part:
            return "does not compile"
        return f"{part['loop_cycles'] / 1e6:.2f} + {part['outside_cycles'] / 1e6:.2f}"

    def use(part):
        return (
            " / ".join(f"{part['utilisation'][unit]:.2f}" for unit in UNITS)
            if part.get("utilisation")
            else ""
        )

    def ratio(case):
        totals = [
            sum(case[v][key] for key in ("loop_cycles", "outside_cycles")) if "error" not in case[v] else None
            for v in VERSIONS
        ]
        if totals[0] is None:
            return ""
        return " / ".join("" if total is None else f"{total / totals[0]:.2f}" for total in totals[1:])

    header = [
        "chip, b × d, rows",
        *(f"{v}, M cycles" for v in VERSIONS),
        "dense, two products / kernel",
        f"kernel {'/'.join(UNITS)}",
        "dense",
    ]
    return header, [
        [
            f"{case['chip']}, {case['queries']} × {case['dimension']}, {case['dtype']}",
            *(million(case, version) for version in VERSIONS),
            ratio(case),
            use(case["kernel"]),
            use(case["dense"]),
        ]
        for case in result["cases"]
    ]


if __name__ == "__main__":
    _folder, _version, _chip, _b, _d, _dtype = sys.argv[1:]
    print(json.dumps(compile_one(_folder, _version, _chip, int(_b), int(_d), _dtype)))
