"""Strict JAX for every test: float64, no implicit rank or dtype promotion, four host devices.

The environment is set before JAX is imported, since XLA reads its flags once. Nearly all of the
suite's time goes into tracing and compiling, so what makes these slower and tells a test nothing is
turned off.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_DEVICES = "--xla_force_host_platform_device_count=4"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# LLVM's optimisations: a quarter of the suite's time for programs that then run for milliseconds.
# What XLA makes of a program, its fusions, loops and memory, is the same without them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Programs without the places their operations come from: they are smaller to lower and to compile.
jax.config.update("jax_traceback_in_locations_limit", 0)
# Traces allocate millions of small objects, which are nearly all kept.
gc.set_threshold(100_000, 20, 50)


@pytest.fixture
def optimised() -> Iterator[None]:
    """Programs compiled as a user's are: for tests that run for longer than they compile, or that
    are held to the last digits."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True, scope="module")
def _programs_are_let_go() -> Iterator[None]:
    """A compiled program holds dozens of memory maps, of which Linux gives a process 65,530: too
    few for the whole suite in one process, which XLA then ends."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
