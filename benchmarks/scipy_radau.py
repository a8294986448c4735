"""SciPy's Radau on the stiff problems, with the exact Jacobian.

It takes no mass matrix: of a differential-algebraic problem it solves the equivalent equations of
the differential variables.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from scipy.sparse import csc_matrix

from tests.problems import AFFINE, Case
from tests.stiff_problems import ATOL, JUMPS, SPARSITY, error


def _robertson(u: Any, p: Any) -> Any:
    return jnp.append(u, 1.0 - u[0] - u[1])


def _akzo(u: Any, p: Any) -> Any:
    return jnp.append(u, p[-1] * u[0] * u[3])


def _pendulum(u: Any, p: Any) -> Any:
    x, y, vx, vy = u
    return jnp.append(u, (p * y - vx**2 - vy**2) / (x**2 + y**2))


# All variables from the differential ones, where there are others.
COMPLETED: dict[str, Callable[[Any, Any], Any]] = {
    "ROBER_DAE": _robertson,
    "CHEMAKZO_DAE": _akzo,
    "pendulum_index1": _pendulum,
}


def radau(case: Case, rtol: float) -> tuple[float, dict[str, int]]:
    """The error at the end, and the work; it does not say how many steps it refused."""
    completed = COMPLETED.get(case.name, lambda u, p: u)
    u = np.asarray(case.u0).ravel()[: case.u0.size - (case.name in COMPLETED)]

    @jax.jit
    def field(t: Any, u: Any, p: Any) -> Any:
        value = case.field(completed(u, p).reshape(case.u0.shape), p, t).ravel()[: u.size]
        return jnp.linalg.solve(p, value) if case is AFFINE else value

    jacobian = jax.jit(jax.jacfwd(field, argnums=1))
    store = csc_matrix if case.name in SPARSITY else np.asarray
    p = None if case.p is None else jnp.asarray(case.p)
    work = dict.fromkeys(("steps", "nf", "njac", "nfactor"), 0)
    start, end = case.tspan
    for stop, after in (*JUMPS.get(case.name, ()), (end, p)):
        sol = solve_ivp(
            lambda t, u, p=p: np.asarray(field(t, u, p)),
            (start, stop),
            u,
            method="Radau",
            jac=lambda t, u, p=p: store(np.asarray(jacobian(t, u, p))),
            rtol=rtol,
            atol=rtol * ATOL.get(case.name, 1.0),
        )
        done = {"steps": len(sol.t) - 1, "nf": sol.nfev, "njac": sol.njev, "nfactor": sol.nlu}
        work = {name: work[name] + done[name] for name in work}
        start, u, p = stop, sol.y[:, -1], after
    return error(case, completed(jnp.asarray(u), p)), work
