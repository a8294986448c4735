"""A spiral that jumps: du = A^T u^3 dt + 0.2 u dW, and at the rate 2 u1 is halved."""

from typing import Any

import numpy as np

A = np.array([[-0.1, 2.0], [-2.0, -0.1]])
U0 = np.array([2.0, 0.0])
TSPAN = (0.0, 1.5)
RATE, NOISE = 2.0, 0.2
FACTORS = np.array([0.5, 1.0])
PATHS, STEPS = 1_000, 500


def drift(u: Any) -> Any:
    return u**3 @ A


def diffusion(u: Any) -> Any:
    return NOISE * u
