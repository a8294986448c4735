"""Lotka-Volterra: two states, four parameters, 101 saves on [0, 10], in float64."""

import functools
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

P = np.array([1.5, 1.0, 3.0, 1.0])
U0 = np.array([1.0, 1.0])
TSPAN = (0.0, 10.0)
SPACING = 0.1
SAVES = np.linspace(0.0, 10.0, 101)
TOL = 1e-6
LANES = 1000
SPREAD = 0.2
"""Each parameter of a lane lies within this fraction of the nominal one."""

REFERENCE_TOL = 1e-13


def field(u: Any, p: Any, t: Any, xp: ModuleType = jnp) -> Any:
    """The vector field in diffjax's argument order, for any array package."""
    x, y = u
    a, b, d, g = p
    return xp.stack([a * x - b * x * y, -d * y + g * x * y])


def lane_parameters(lanes: int = LANES) -> np.ndarray:
    """Parameter sets (lanes, 4), the same in every run and every process."""
    factors = np.random.default_rng(0).uniform(1 - SPREAD, 1 + SPREAD, (lanes, 4))
    return P * factors


def _with_sensitivities(t: float, flat: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The field for all lanes together with d(u)/d(p): state (2 + 8, lanes), p (4, lanes)."""
    state = flat.reshape(10, -1)
    x, y = state[:2]
    a, b, d, g = p
    sx, sy = state[2:].reshape(2, 4, -1)
    zero = np.zeros_like(x)
    dsx = (a - b * y) * sx - b * x * sy + np.stack([x, -x * y, zero, zero])
    dsy = g * y * sx + (g * x - d) * sy + np.stack([zero, zero, -y, x * y])
    du = np.stack([a * x - b * x * y, -d * y + g * x * y])
    return np.concatenate([du, dsx, dsy]).ravel()


@functools.cache
def _reference(lanes: int | None) -> tuple[np.ndarray, np.ndarray]:
    """States (lanes, saves, 2) and sensitivities (lanes, saves, 2, 4) by SciPy's DOP853."""
    p = (P[None] if lanes is None else lane_parameters(lanes)).T
    start = np.zeros((10, p.shape[1]))
    start[:2] = U0[:, None]
    solution = solve_ivp(
        _with_sensitivities,
        TSPAN,
        start.ravel(),
        method="DOP853",
        rtol=REFERENCE_TOL,
        atol=REFERENCE_TOL,
        t_eval=SAVES,
        args=(p,),
    )
    state = solution.y.reshape(10, p.shape[1], -1)
    u = np.moveaxis(state[:2], 0, -1)
    sensitivities = np.moveaxis(state[2:].reshape(2, 4, *state.shape[1:]), (0, 1), (-2, -1))
    return u, sensitivities


def reference(lanes: int | None = None) -> np.ndarray:
    """The states at the saves, (saves, 2), or (lanes, saves, 2) for the lanes' parameters."""
    u, _ = _reference(lanes)
    return u[0] if lanes is None else u


def reference_gradient(lanes: int | None = None) -> np.ndarray:
    """d/dp of `loss`, (4,) or (lanes, 4), by the chain rule through forward sensitivities."""
    u, sensitivities = _reference(lanes)
    gradient = np.einsum("lsi,lsij->lj", loss_slope(u), sensitivities)
    return gradient[0] if lanes is None else gradient


def loss(u: Any) -> Any:
    """The sum of squared distances of the prey from one, over the saves."""
    return ((u[:, 0] - 1) ** 2).sum()


def loss_slope(u: np.ndarray) -> np.ndarray:
    """d(loss)/d(u) of every lane."""
    slope = np.zeros_like(u)
    slope[..., 0] = 2 * (u[..., 0] - 1)
    return slope
