"""Test-wide settings: eight CPU devices, shapes and dtypes checked at every call, memory freed after every file."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["FLOWJAX_CACHE"] = "off"  # tests leave nothing in the user's folders
os.environ.setdefault("FLOWJAX_CHECK_SHAPES", "1")  # before flowjax is imported

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True, scope="module")
def _free_executables():
    """Every compiled function maps memory of its own, and a process has 65 530 mappings: the suite needs more."""
    yield
    jax.clear_caches()
