"""The Brusselator on a line of N points to t = 10, in float64, both substances of a point together.

Hairer, Wanner, Solving ODEs II, section IV.10, equation (10.14).
"""

import functools
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

N = 500
TSPAN = (0.0, 10.0)
TOL = 1e-5
BAND = (2, 2)
"""Diagonals below and above the main one."""

P = np.array([1.0, 3.0])
"""Production of the first substance, and the rate at which it becomes the second."""

REFERENCE_TOL = 1e-10


def start(n: int = N) -> np.ndarray:
    """The initial state, (2n,)."""
    x = np.arange(1, n + 1) / (n + 1)
    return np.stack([1 + 0.5 * np.sin(2 * np.pi * x), np.full(n, 3.0)], axis=1).reshape(-1)


def field(w: Any, p: Any, t: Any, xp: ModuleType = jnp) -> Any:
    """The vector field in diffjax's argument order, for any array package."""
    u, v = w[::2], w[1::2]
    n = u.shape[0]

    def diffusion(x: Any, edge: float) -> Any:
        padded = xp.pad(x, 1, constant_values=edge)
        return (n + 1) ** 2 / 50 * (padded[2:] - 2 * x + padded[:-2])

    reaction = u * u * v
    du = p[0] + reaction - (p[1] + 1) * u + diffusion(u, 1.0)
    dv = p[1] * u - reaction + diffusion(v, 3.0)
    return xp.stack([du, dv], axis=1).reshape(-1)


def rates(w: np.ndarray) -> np.ndarray:
    """The field for SciPy, without the overhead of `numpy.pad`."""
    u, v = w[::2], w[1::2]
    n = u.size
    left, right = np.empty(n + 2), np.empty(n + 2)
    left[0] = left[-1] = 1.0
    right[0] = right[-1] = 3.0
    left[1:-1], right[1:-1] = u, v
    g, reaction, out = (n + 1) ** 2 / 50, u * u * v, np.empty_like(w)
    out[::2] = P[0] + reaction - (P[1] + 1) * u + g * (left[2:] - 2 * u + left[:-2])
    out[1::2] = P[1] * u - reaction + g * (right[2:] - 2 * v + right[:-2])
    return out


@functools.cache
def reference() -> np.ndarray:
    """The final state, (1, 2N), by SciPy's LSODA."""
    options = {"rtol": REFERENCE_TOL, "atol": REFERENCE_TOL, "lband": BAND[0], "uband": BAND[1]}
    solution = solve_ivp(lambda t, w: rates(w), TSPAN, start(), method="LSODA", **options)
    return solution.y[:, -1][None]
