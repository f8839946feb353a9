"""`flowjax bench` as a person meets it: the page of what is recorded, the check against it, and what it refuses."""

import json
import re

import pytest

from benchmarks import check, harness
from flowjax.cli import main

MACHINE = {
    "device": "cpu", "processor": "<some> processor", "cores": 2, "jax": "0", "commit": "0", "date": "today",
}  # fmt: skip

SCREENED = {
    "benchmark": "screened",
    "machine": MACHINE,
    "rounds": 5,
    "cases": [
        {
            "name": name,
            "seconds": {"dense": 0.5, "screened": 0.5 - t / 2, "limit": 0.01},
            "speed": 1.0,
            "largest_relative_difference": 1e-7,
            "certified": 1.0,
            "survivors": survivors,
        }
        for name, t, survivors in (("t = 0.2", 0.2, 40), ("t = 0.8", 0.8, [1, 2, 3]), ("t uniform", 0, None))
    ],
}

PEERS = {
    "benchmark": "peers",
    "machine": MACHINE,
    "rounds": 5,
    "shapes": [
        {
            "name": "points-2",
            "points": 100,
            "dimension": 2,
            "queries": 8,
            "effective_sample_size_median": 3.0,
            "limits": {
                "both_products_gigaflop_per_second": 10.0,
                "square_product_gigaflop_per_second": 100.0,
                "exponentials_per_second": 1e9,
                "copy_gigabyte_per_second": 5.0,
            },
            "peers": [
                {
                    "name": name,
                    "answer": "velocity",
                    "seconds": 1e-3 * ratio,
                    "time_against_dense": ratio,
                    "share_of_product_rate": 0.5 / ratio,
                    "largest_relative_error": 1e-7,
                }
                for name, ratio in (("flowjax dense", 1.0), ("quicker", 0.5), ("slower", 4.0))
            ]
            + [{"name": "absent", "answer": "velocity", "missing": "not installed: pip install absent"}],
        }
    ],
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of recorded results that is the test's own."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setattr(harness, "RESULTS", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def refused(capsys, *argv) -> str:
    assert main(["bench", *map(str, argv)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flowjax: ")
    assert error.count("\n") == 1
    return error


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as left:
        main(["bench", "--help"])
    assert not left.value.code
    shown = capsys.readouterr().out
    for words in (
        "flowjax bench --report --out",
        "flowjax bench --check --record",
        "peers      time and true error",
    ):
        assert words in shown


def test_the_page_shows_every_record_and_needs_nothing_else(results, capsys):
    for result in (SCREENED, PEERS):
        (results / f"{result['benchmark']}.json").write_text(json.dumps(result))
    assert main(["bench", "--report", "--out", "page.html"]) == 0
    assert "page.html" in capsys.readouterr().out
    page = (results.parent / "page.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["peers", "screened"]
    assert "0.5, 1e-07" in page  # a peer that wins is shown to win
    assert "4, 1e-07" in page
    assert "not installed: pip install absent" in page
    assert "&lt;some&gt; processor" in page
    for drawn in ("Roofline", "True velocity error", "Cost against time", "Survivors against time"):
        assert f'alt="{drawn}' in page
    assert all(
        reference.startswith("data:") for reference in re.findall(r'(?:src|href|srcset)="([^"]*)"', page)
    )


def test_records_without_the_newest_fields_are_shown_as_far_as_they_go(results):
    cases = [{key: case[key] for key in case if key != "survivors"} for case in SCREENED["cases"]]
    (results / "screened.json").write_text(json.dumps(SCREENED | {"cases": cases}))
    (results / "dense.json").write_text(json.dumps({"benchmark": "dense", "machine": MACHINE}))
    (results / "gone.json").write_text("{}")
    assert main(["bench", "--report", "--out", "page.html"]) == 0
    page = (results.parent / "page.html").read_text()
    assert "Cost against time" in page
    assert "Survivors against time" not in page
    assert page.count("Recorded by another version") == 2


def test_the_repository_s_own_records_make_a_page(tmp_path):
    out = tmp_path / "page.html"
    assert main(["bench", "--report", "--out", str(out)]) == 0
    page = out.read_text()
    assert "Recorded by another version" not in page
    assert {file.stem for file in harness.RESULTS.glob("*.json")} == set(re.findall("<h2>(.*?)</h2>", page))


def test_nothing_recorded_or_broken_is_one_sentence(results, capsys):
    assert "nothing is recorded" in refused(capsys, "--report", "--out", "page.html")
    (results / "dense.json").write_text("{")
    assert "dense.json is no JSON" in refused(capsys, "--report", "--out", "page.html")
    (results / "dense.json").write_text("{}")
    assert "there is no folder" in refused(capsys, "--report", "--out", "none/page.html")
    assert "there are no recorded ratios" in refused(capsys, "--check")
    assert [file.name for file in results.parent.iterdir()] == ["results"]


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["dense", "--report"], "--report takes no benchmark's name; leave out 'dense'"),
        (["--report", "--check"], "give one of them"),
        (["--record"], "--record goes with --check"),
        (["--out", "a.html"], "--out goes with --report"),
        (["--report", "--rounds", "3"], "--rounds does not apply to --report"),
        (["--check", "--dry-run"], "--dry-run does not apply to --check"),
        (["--check", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["imports", "--data", "digits"], "--data does not apply to imports"),
        (["peer"], "peers"),
    ],
)
def test_flags_that_do_not_go_together_are_one_sentence(argv, match, capsys):
    assert match in refused(capsys, *argv)


def test_a_check_passes_at_half_and_fails_below(results, capsys, monkeypatch):
    (results / "check.json").write_text(json.dumps({"ratios": {"a": 2.0, "b": 1.0}}))
    monkeypatch.setattr(check, "_cases", lambda: {"a": None, "b": None})
    monkeypatch.setattr(harness, "machine", lambda: MACHINE)
    for found, status in ({"a": 1.0, "b": 9.0}, 0), ({"a": 0.99, "b": 9.0}, 1):
        monkeypatch.setattr(check, "_measure", lambda cases, rounds, found=found: found)
        assert main(["bench", "--check"]) == status
        shown = capsys.readouterr()
        assert ("slower than recorded, in every try: a\n" in shown.err) == bool(status)
    (results / "check.json").write_text(json.dumps({"ratios": {"a": 2.0}}))
    assert "holds other ratios" in refused(capsys, "--check")


def test_a_check_is_tried_again_only_while_something_is_too_slow():
    runs = iter([{"a": 0.1, "b": 1.0}, {"a": 0.6, "b": 0.1}, {"a": 0.0, "b": 0.0}])
    assert check.best_of_tries(lambda: next(runs), {"a": 1.0, "b": 1.0}) == ({"a": 0.6, "b": 1.0}, [])
    assert next(runs) == {"a": 0.0, "b": 0.0}
    tried = []
    best, failed = check.best_of_tries(lambda: tried.append(1) or {"a": 0.4}, {"a": 1.0})
    assert (best, failed, len(tried)) == ({"a": 0.4}, ["a"], 3)
