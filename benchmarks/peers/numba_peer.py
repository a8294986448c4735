"""Gillespie's direct method for an epidemic, compiled by numba."""

import numpy as np

from benchmarks.timing import Call

PACKAGES = ("numba",)


def sir_call(p: np.ndarray, u0: np.ndarray, times: np.ndarray, paths: int) -> Call:
    """Exact simulation of S + I -> 2 I and I -> R; gives (paths, times, 3)."""
    import numba

    @numba.njit
    def run(p, u0, times, paths):
        out = np.empty((paths, len(times), 3))
        for k in range(paths):
            s, i, r = u0
            t, saved = 0.0, 0
            while saved < len(times):
                infection = p[0] * s * i
                total = infection + p[1] * i
                t += np.random.exponential() / total if total > 0 else np.inf  # noqa: NPY002
                while saved < len(times) and times[saved] < t:
                    out[k, saved] = s, i, r
                    saved += 1
                if np.random.random() * total < infection:  # noqa: NPY002
                    s, i = s - 1, i + 1
                else:
                    i, r = i - 1, r + 1
        return out

    given = [np.asarray(x, np.float64) for x in (p, u0, times)]
    return lambda: run(*given, paths)
