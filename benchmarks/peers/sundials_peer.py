"""SUNDIALS' CVODE (variable-order BDF, compiled) by scikit-sundae, which calls Python for f."""

from collections.abc import Callable
from typing import Any

import numpy as np

PACKAGES = ("sksundae",)
MOST_STEPS = 100_000

Function = Callable[[float, np.ndarray], Any]


def solver(
    f: Function, jac: Function, u0: np.ndarray, tspan: tuple[float, float], band: Any
) -> Callable[[float, float], np.ndarray]:
    """`solve(rtol, atol)`: the state at the end; a band takes the place of the Jacobian."""
    from sksundae.cvode import CVODE

    def right_side(t: float, u: np.ndarray, du: np.ndarray) -> None:
        du[:] = f(t, u)

    def jacobian(t: float, u: np.ndarray, du: np.ndarray, out: np.ndarray) -> None:
        out[:] = jac(t, u)

    options: dict[str, Any] = {"jacfn": jacobian}
    if band is not None:
        options = {"linsolver": "band", "lband": band[0], "uband": band[1]}

    def solve(rtol: float, atol: float) -> np.ndarray:
        integrator = CVODE(right_side, rtol=rtol, atol=atol, max_num_steps=MOST_STEPS, **options)
        return integrator.solve(np.array(tspan), u0).y[-1]

    return solve
