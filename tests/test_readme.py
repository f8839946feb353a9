"""The README's example is a doctest, and its first two fenced blocks are the two commands."""

import doctest
import re
from pathlib import Path

import pytest

from benchmarks import readme

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_two_commands_come_first():
    fences = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (first, train), (second, tests) = fences[:2]
    assert first == second == "bash"
    assert len(train.strip().splitlines()) == len(tests.strip().splitlines()) == 1
    assert "flowjax train digits" in train
    assert "pytest" in tests


def test_the_tables_are_the_recorded_results():
    assert readme.fill(README) == README


def test_its_pictures_are_there():
    pictures = re.findall(r'src="([^"]+)"', README)
    assert pictures
    assert all((Path(__file__).parents[1] / picture).is_file() for picture in pictures)


@pytest.mark.slow
def test_the_example_runs():
    (example,) = blocks("python")
    test = doctest.DocTestParser().get_doctest(example, {}, "README", "README.md", 0)
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert results.attempted > 5
    assert results.failed == 0
