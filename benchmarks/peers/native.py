"""Tsit5 in C, compiled when first used: the bound for a single core."""

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
SOURCE = Path(__file__).with_name("tsit5.c")
# The host's own instructions, as XLA's CPU backend uses them; no relaxed arithmetic on either side.
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")


@functools.cache
def _library() -> ctypes.CDLL:
    if COMPILER is None:
        raise RuntimeError("no C compiler on the path; install gcc for the native peer")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "tsit5.so"
        subprocess.run([COMPILER, *FLAGS, str(SOURCE), "-o", str(target), "-lm"], check=True)
        library = ctypes.CDLL(str(target))  # stays mapped when the file goes
    double, integer, pointer = ctypes.c_double, ctypes.c_int, ctypes.c_void_p
    library.solve.argtypes = [pointer, integer, pointer, pointer, integer, double, pointer]
    library.solve.restype = integer
    return library


def solve_maker(p: np.ndarray, u0: np.ndarray, saves: np.ndarray) -> Maker:
    """Lotka-Volterra for parameters (4,) or (lanes, 4); gives (saves, 2) or (lanes, saves, 2)."""

    def make() -> Callable[[float], Call]:
        library = _library()
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
