"""The peers compute what they are said to compute, and one that cannot run keeps its row with the reason."""

import importlib

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peers.methods import DENSE, NEIGHBOURS, PEERS, Peer
from benchmarks.peers.problems import named, on_path, truth
from flowjax.closed_form import oracle

MODULES = {"faiss-cpu": "faiss"}


@pytest.fixture(scope="module")
def problem():
    # No more rows than the nearest neighbours that are looked at: every peer is exact.
    data = np.random.default_rng(0).standard_normal((NEIGHBOURS - 5, 6), np.float32)
    return on_path("tiny", data, 8, 3)


def expected(problem):
    schedules = (np.full(len(problem.x), value) for value in (problem.alpha, problem.sigma, 1.0, -1.0))
    return oracle.posterior(problem.data, problem.x, tuple(schedules))


def test_errors_are_measured_against_the_oracle_s_values(problem):
    found = truth(problem)
    np.testing.assert_allclose(found.velocity, expected(problem).velocity, rtol=1e-12, atol=1e-13)
    # The field keeps log n in float32, whatever its precision.
    np.testing.assert_allclose(found.log_density, expected(problem).log_density, atol=2e-7)


@pytest.mark.slow  # KeOps compiles, deepinv imports for seconds
@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_right_where_it_can_be(peer, problem):
    if peer.package is not None:
        pytest.importorskip(MODULES.get(peer.package, peer.package))
    found = np.asarray(peer.prepare(problem)())
    answer = getattr(expected(problem), peer.answer.replace(" ", "_"))
    np.testing.assert_allclose(found, answer, rtol=2e-5, atol=2e-5)


def test_one_that_cannot_run_keeps_its_row(problem):
    def absent(problem):
        return importlib.import_module("no_such_package")

    def broken(problem):
        raise RuntimeError("no compiler\nfound")

    few = Peer("few", DENSE.prepare, few=True)
    others = (Peer("absent", absent, "no-such"), Peer("broken", broken, "broken"))
    elsewhere = Peer("elsewhere", broken, dimensions=(7, 9))
    shape = peers.compare(problem, rounds=1, peers=(DENSE, few, *others, elsewhere))
    rows = {row["name"]: row for row in shape["peers"]}
    assert list(rows) == [DENSE.name, "few", "absent", "broken"]
    assert rows["absent"]["missing"] == "not installed: pip install no-such"
    assert rows["broken"]["missing"] == "not available: no compiler found"
    assert (rows["few"]["queries"], rows["few"]["scaled_by"]) == (3, 8 / 3)
    assert rows[DENSE.name]["time_against_dense"] == 1
    assert rows[DENSE.name]["largest_relative_error"] < 1e-5
    assert all(value > 0 for value in shape["limits"].values())
    header, cells = peers.table({"shapes": [shape]})
    assert len(header) == 2
    assert ["absent", "not installed: pip install no-such"] in cells


def test_named_shapes_are_on_the_path():
    problem = named("points-2")
    assert problem.data.shape == (50_000, 2)
    assert problem.x.shape == (1024, 2)
    assert problem.x.dtype == problem.data.dtype == np.float32
