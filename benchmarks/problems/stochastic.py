"""Stochastic problems with closed forms, for all peers."""

from typing import Any

TSPAN = (0.0, 1.0)
LANES = 1_000
U0 = 0.5
A, B = 1.0, 1.0


def ito_drift(u: Any) -> Any:
    """du = -(a + b**2 u)(1 - u**2) dt + b (1 - u**2) dW, Ito."""
    return -(A + B**2 * u) * (1 - u**2)


def stratonovich_drift(u: Any) -> Any:
    """The same equation in Stratonovich's sense."""
    return -A * (1 - u**2)


def diffusion(u: Any) -> Any:
    return B * (1 - u**2)


def exact(t: Any, w: Any, xp: Any) -> Any:
    """The solution on a path (Kloeden and Platen, section 4.4, equation 4.46)."""
    e = xp.exp(-2 * A * t + 2 * B * w)
    return ((1 + U0) * e + U0 - 1) / ((1 + U0) * e - U0 + 1)
