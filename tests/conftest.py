"""Test-wide settings: eight CPU devices, strict dtype promotion where asked for, runtime-checked shapes."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax

jax.config.update("jax_num_cpu_devices", 8)
