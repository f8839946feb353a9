"""Every notebook runs from top to bottom, and is stored without outputs."""

import resource
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def read(file: Path):
    import nbformat

    return nbformat.read(file, as_version=4)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_stored_without_outputs(file):
    for cell in read(file).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
# the kernel's transport announces on start that it picked a default of its own
@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_runs_in_ninety_seconds(file, tmp_path, monkeypatch):
    """Of two processors: seconds on the clock would tell what else the machine does."""
    from nbclient import NotebookClient

    monkeypatch.setenv("FLOWJAX_FAST", "1")  # the kernel inherits it; notebooks that know it cut their sizes
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    NotebookClient(read(file), timeout=400, resources={"metadata": {"path": str(tmp_path)}}).execute()
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before  # by the kernel, which has ended
    assert 1 < spent < 180
