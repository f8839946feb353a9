"""Test-wide settings: eight CPU devices, shapes and dtypes checked at every call, memory freed after every file.

`--one-of-each` runs the first case of every test, for a second interpreter, on which the numbers are the same ones.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["FLOWJAX_CACHE"] = "off"  # tests leave nothing in the user's folders
os.environ.setdefault("FLOWJAX_CHECK_SHAPES", "1")  # before flowjax is imported

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


def pytest_addoption(parser):
    parser.addoption(
        "--one-of-each", action="store_true", help="only the first case of every parametrized test"
    )


@pytest.hookimpl(trylast=True)  # of those that -m leaves
def pytest_collection_modifyitems(config, items):
    if config.getoption("--one-of-each"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        chosen = set(map(id, first.values()))
        config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
        items[:] = [item for item in items if id(item) in chosen]


@pytest.fixture(autouse=True, scope="module")
def _free_executables():
    """Every compiled function maps memory of its own, and a process has 65 530 mappings: the suite needs more."""
    yield
    jax.clear_caches()
