"""SciPy's `solve_ivp`: what a user without a compiler waits for."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.case import Maker
from benchmarks.timing import Call


def solve_maker(
    field: Callable[..., Any],
    u0: np.ndarray,
    saves: np.ndarray,
    p: np.ndarray,
    method: str,
    tspan: tuple[float, float] | None = None,
    atol_scale: float = 1.0,
) -> Maker:
    """The states at the saves, (saves, states); `field(u, p, t)` may return a list.

    The span is that of the saves unless it is given.
    """

    def make() -> Callable[[float], Call]:
        from scipy.integrate import solve_ivp

        # Python's floats are faster than NumPy's scalars in a field of two lines.
        parameters = p.tolist()

        def at(tol: float) -> Call:
            def call() -> np.ndarray:
                return solve_ivp(
                    lambda t, u: field(u.tolist(), parameters, t),
                    (saves[0], saves[-1]) if tspan is None else tspan,
                    u0,
                    method=method,
                    t_eval=saves,
                    rtol=tol,
                    atol=atol_scale * tol,
                ).y.T

            return call

        return at

    return make
