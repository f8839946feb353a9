"""Two real processes of two CPU devices each, their collectives over Gloo, against one process and the oracle."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from process_cases import CASES, LAYOUTS, queries
from support import flat, oracle_posterior

import flowjax as fj

HERE = Path(__file__).parent
PATIENCE = 400
"""Seconds for both processes together; a few are enough on a machine that is not shared."""


def run_both(out: Path, names: list[str]) -> None:
    """Run both to the end; whatever happens, neither outlives this."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # nearly all of their time is compilation
    }
    logs = [out.with_suffix(f".{process}.log") for process in range(2)]
    children = []
    try:
        for process, log in enumerate(logs):
            command = [
                sys.executable,
                str(HERE / "one_of_two_processes.py"),
                str(process),
                str(port),
                str(out),
            ]
            with log.open("w") as file:
                children.append(subprocess.Popen([*command, *names], env=env, stdout=file, stderr=file))
        for child in children:
            child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        pass  # said below, with what they wrote
    finally:
        for child in children:
            child.kill()  # they catch SIGTERM, and one waits for the other
            child.wait()
    failed = [
        f"process {process} ended with {child.returncode}: {log.read_text()[-2000:]}"
        for process, (child, log) in enumerate(zip(children, logs, strict=True))
        if child.returncode != 0
    ]
    assert not failed, "\n".join(failed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ["rows over all devices"],
        pytest.param([name for name in LAYOUTS if name != "rows over all devices"], marks=pytest.mark.slow),
    ],
    ids=["rows", "other meshes"],
)
def test_two_processes_equal_one(names, tmp_path):
    run_both(tmp_path / "found.npz", names)
    found = np.load(tmp_path / "found.npz")
    checked = 0
    for case_name, case in CASES.items():
        x, t, labels = queries(case)
        expected = fj.ClosedFormField(case.data, **case.options).posterior(x, t, labels)
        options = {name: value for name, value in case.options.items() if name != "method"}
        if labels is not None:
            options["query_labels"] = labels
        truth = oracle_posterior(fj.closed_form.to_float(case.data), x, t, **options)
        for name in names:
            if case_name not in LAYOUTS[name].cases:
                continue
            leaves = {leaf: found[f"{name}/{case_name}/{leaf}"] for leaf in expected._fields}
            scale = np.linalg.norm(flat(expected.velocity), axis=1)
            difference = np.linalg.norm(flat(leaves["velocity"]) - flat(expected.velocity), axis=1)
            assert np.all(difference <= 2e-5 * scale)
            for leaf in ("log_density", "entropy", "effective_sample_size", "max_weight", "variance"):
                np.testing.assert_allclose(
                    leaves[leaf], getattr(expected, leaf), rtol=2e-5, atol=2e-5, err_msg=leaf
                )
            np.testing.assert_array_equal(leaves["argmax"], expected.argmax)
            error = np.linalg.norm(flat(leaves["velocity"]) - truth.velocity, axis=1)
            assert np.all(error <= leaves["error_bound"])
            assert np.all(leaves["error_bound"] < 0.1 * scale)
            checked += 1
    assert checked == sum(len(LAYOUTS[name].cases) for name in names)
