"""Errors against a reference, and the first step all contenders start with."""

from collections.abc import Callable
from typing import Any

import numpy as np


def relative_error(reference: Callable[[], np.ndarray]) -> Callable[[Any], float]:
    """`error(x) = |x - reference| / |reference|`, Euclidean; a tuple counts as one vector.

    The reference is computed when first asked for: a process that only times needs none.
    """

    def error(x: Any) -> float:
        exact = reference().ravel()
        leaves = x if isinstance(x, tuple) else (x,)
        value = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
        if value.size != exact.size:
            raise ValueError(f"a contender returned {value.size} numbers, not {exact.size}")
        return float(np.linalg.norm(value - exact) / np.linalg.norm(exact))

    return error


def first_step(
    field: Callable[[np.ndarray], np.ndarray], u0: np.ndarray, tol: float, order: int
) -> float:
    """Hairer, Norsett & Wanner, Solving ODEs I, II.4: what a library's own choice comes to.

    For a peer that must be told: given by hand, it saves the peer the two evaluations.
    """

    def norm(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean((x / (tol + tol * np.abs(u0))) ** 2)))

    slope = field(u0)
    d0, d1 = norm(u0), norm(slope)
    h0 = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
    d2 = norm(field(u0 + h0 * slope) - slope) / h0
    h1 = (0.01 / max(d1, d2, 1e-15)) ** (1.0 / order)
    return min(100 * h0, h1)
