"""Fisher's equation on a ring of 1,000 points to t = 10, in float64: a field of discretised space.

u' = D (u_{i-1} - 2 u_i + u_{i+1}) + r u (1 - u), from a bump; p = (D, r).
"""

import functools
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

N = 1000
TSPAN = (0.0, 10.0)
TOL = 1e-6
P = np.array([20.0, 1.0])
U0 = np.exp(-(((np.arange(N) - N / 2) / 20) ** 2))
REFERENCE_TOL = 1e-11


def _curvature(u: Any, xp: ModuleType) -> Any:
    return xp.roll(u, 1) - 2 * u + xp.roll(u, -1)


def field(u: Any, p: Any, t: Any, xp: ModuleType = jnp) -> Any:
    """The vector field in diffjax's argument order, for any array package."""
    return p[0] * _curvature(u, xp) + p[1] * u * (1 - u)


def loss(u: Any) -> Any:
    return jnp.mean(u**2)


@functools.cache
def _end() -> np.ndarray:
    """The final state and its derivatives by D and r, (3, N), by SciPy's DOP853."""

    def rates(t: float, flat: np.ndarray) -> np.ndarray:
        u, *tangents = flat.reshape(3, N)
        moved = [P[0] * _curvature(s, np) + P[1] * (1 - 2 * u) * s for s in tangents]
        return np.stack(
            [field(u, P, t, np), moved[0] + _curvature(u, np), moved[1] + u * (1 - u)]
        ).ravel()

    start = np.concatenate([U0, np.zeros(2 * N)])
    tol = REFERENCE_TOL
    solution = solve_ivp(rates, TSPAN, start, method="DOP853", rtol=tol, atol=tol)
    return solution.y[:, -1].reshape(3, N)


def reference() -> np.ndarray:
    """The final state, (1, N)."""
    return _end()[:1]


def reference_gradient() -> np.ndarray:
    """The derivatives of `loss` by D and r."""
    u, *tangents = _end()
    return np.array([np.mean(2 * u * s) for s in tangents])
