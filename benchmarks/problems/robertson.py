"""Robertson's three reactions to t = 1e5, in float64; parameters are factors of the rates."""

import functools
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

RATES = (0.04, 3e7, 1e4)
P = np.ones(3)
U0 = np.array([1.0, 0.0, 0.0])
TSPAN = (0.0, 1e5)
TOL = 1e-7
ATOL_SCALE = 1e-2
"""The second component is about 1e-7 at the end."""

LANES = 1000
SPREAD = 0.2
"""Each factor of a lane lies within this of one."""

REFERENCE_TOL = 1e-12


def field(u: Any, p: Any, t: Any, xp: ModuleType = jnp) -> Any:
    """The vector field in diffjax's argument order, for any array package."""
    return xp.stack(rates(u, p, t))


def rates(u: Any, p: Any, t: Any) -> list[Any]:
    """The same as a list of numbers."""
    (y1, y2, y3), (a, b, c) = u, p
    slow, fast, middle = RATES[0] * a * y1, RATES[1] * b * y2 * y2, RATES[2] * c * y2 * y3
    return [middle - slow, slow - fast - middle, fast]


def lane_parameters(lanes: int = LANES) -> np.ndarray:
    """Parameter sets (lanes, 3), the same in every run and every process."""
    return np.random.default_rng(0).uniform(1 - SPREAD, 1 + SPREAD, (lanes, 3))


def _with_sensitivities(t: float, state: np.ndarray, p: np.ndarray) -> list[float]:
    """The field and, column by column, d(u)/d(p)."""
    (y1, y2, y3, *s), (a, b, c) = state.tolist(), p
    k1, k2, k3 = RATES[0] * a, RATES[1] * b, RATES[2] * c
    partial = ((RATES[0] * y1, 0, 0), (0, RATES[1] * y2 * y2, 0), (0, 0, RATES[2] * y2 * y3))
    out = rates((y1, y2, y3), p, t)
    for i in range(3):
        s1, s2, s3 = s[3 * i : 3 * i + 3]
        slow, fast, middle = (
            x + y
            for x, y in zip(
                partial[i], (k1 * s1, 2 * k2 * y2 * s2, k3 * (y2 * s3 + y3 * s2)), strict=True
            )
        )
        out += [middle - slow, slow - fast - middle, fast]
    return out


@functools.cache
def reference(lanes: int | None = None) -> np.ndarray:
    """The final state, (1, 3), or (lanes, 1, 3) for the lanes' parameters, by SciPy's LSODA."""
    parameters = [P] if lanes is None else lane_parameters(lanes)
    ends = [_solve(lambda t, u, p=p: rates(u.tolist(), p, t), U0)[None] for p in parameters]
    return ends[0] if lanes is None else np.stack(ends)


@functools.cache
def reference_gradient() -> np.ndarray:
    """d/dp of `loss`, (3,), by forward sensitivities."""
    end = _solve(lambda t, u: _with_sensitivities(t, u, P), np.concatenate([U0, np.zeros(9)]))
    return loss_slope() @ end[3:].reshape(3, 3).T


def _solve(right_side: Any, start: np.ndarray) -> np.ndarray:
    tolerances = {"rtol": REFERENCE_TOL, "atol": REFERENCE_TOL * 1e-6}
    return solve_ivp(right_side, TSPAN, start, method="LSODA", **tolerances).y[:, -1]


def loss(u: Any) -> Any:
    """A weighted sum of the final state."""
    return u[-1, 0] + 2 * u[-1, 2]


def loss_slope() -> np.ndarray:
    """d(loss)/d(u) at the end."""
    return np.array([1.0, 0.0, 2.0])
