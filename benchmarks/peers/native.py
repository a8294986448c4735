"""Loops in C, compiled when first used: the bound for a single core."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.case import Maker
from benchmarks.timing import Call

COMPILER = shutil.which("gcc") or shutil.which("cc")
INSTALLED = COMPILER is not None
# The host's own instructions, as XLA's CPU backend uses them; no relaxed arithmetic on either side.
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")


@functools.cache
def _library(name: str) -> ctypes.CDLL:
    if COMPILER is None:
        raise RuntimeError("no C compiler on the path; install gcc for the native peer")
    source = Path(__file__).with_name(f"{name}.c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{name}.so"
        subprocess.run([COMPILER, *FLAGS, str(source), "-o", str(target), "-lm"], check=True)
        return ctypes.CDLL(str(target))  # stays mapped when the file goes


def _tsit5() -> ctypes.CDLL:
    library = _library("tsit5")
    double, integer, pointer = ctypes.c_double, ctypes.c_int, ctypes.c_void_p
    library.solve.argtypes = [pointer, integer, pointer, pointer, integer, double, pointer]
    library.solve.restype = integer
    return library


def sir_call(p: np.ndarray, u0: np.ndarray, times: np.ndarray, paths: int) -> Call:
    """Exact simulation of an epidemic, S + I -> 2 I and I -> R; gives (paths, times, 3)."""
    library = _library("jumps")
    library.seed.argtypes = [ctypes.c_uint64]
    library.sir.argtypes = [ctypes.c_int, *3 * [ctypes.c_void_p], ctypes.c_int, ctypes.c_void_p]
    library.sir.restype = ctypes.c_long
    library.seed(1)
    arrays = [np.ascontiguousarray(x, np.float64) for x in (p, u0, times)]
    out = np.empty((paths, len(times), 3))

    def call() -> np.ndarray:
        library.sir(paths, *(x.ctypes.data for x in arrays), len(times), out.ctypes.data)
        return out

    return call


def jump_diffusion_call(
    a: np.ndarray, u0: np.ndarray, end: float, steps: int, rate: float, noise: float, paths: int
) -> Call:
    """du = A^T u^3 dt + noise u dW with u1 halved at a rate; gives the ends (paths, 2)."""
    library, double, pointer = _library("jumps"), ctypes.c_double, ctypes.c_void_p
    library.seed.argtypes = [ctypes.c_uint64]
    library.jump_diffusion.argtypes = [ctypes.c_int, pointer, pointer, double, ctypes.c_int]
    library.jump_diffusion.argtypes += [double, double, pointer]
    library.jump_diffusion.restype = None
    library.seed(1)
    matrix, start = (np.ascontiguousarray(x, np.float64) for x in (a, u0))
    out = np.empty((paths, 2))

    def call() -> np.ndarray:
        library.jump_diffusion(
            paths, matrix.ctypes.data, start.ctypes.data, end, steps, rate, noise, out.ctypes.data
        )
        return out

    return call


def solve_maker(p: np.ndarray, u0: np.ndarray, saves: np.ndarray) -> Maker:
    """Lotka-Volterra for parameters (4,) or (lanes, 4); gives (saves, 2) or (lanes, saves, 2)."""

    def make() -> Callable[[float], Call]:
        library = _tsit5()
        # The arrays live in this closure; addresses are taken once, to keep ctypes out of the time.
        arrays = [np.ascontiguousarray(x, np.float64) for x in (p, u0, saves)]
        parameters, start, times = (x.ctypes.data for x in arrays)
        lanes = 1 if p.ndim == 1 else p.shape[0]
        out = np.empty((*p.shape[:-1], len(saves), 2))
        target = out.ctypes.data

        def at(tol: float) -> Call:
            def call() -> np.ndarray:
                library.solve(parameters, lanes, start, times, len(saves), tol, target)
                assert arrays  # keeps the inputs alive as long as their addresses
                return out

            return call

        return at

    return make
