"""Stiff problems of the field in three guises: for us and Diffrax, for SciPy, for SUNDIALS.

The fields in JAX are those of the tests. A solver that calls Python back gets the fastest that
Python has, numbers in lists for few states and NumPy for many, and the exact Jacobian, compiled, or
the bandwidth of a banded one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.problems import CHEMAKZO, HIRES, ROBER, VDPOL_STIFF, Case
from tests.stiff_problems import ATOL, BRUSS1D


@dataclass(frozen=True)
class StiffProblem:
    """`rates(u, p, t)` is the field for Python; `band` the lower and upper bandwidth."""

    case: Case
    rates: Callable[[Any, Any, Any], Any]
    band: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def atol_scale(self) -> float:
        """The absolute tolerance over the relative one."""
        return ATOL.get(self.case.name, 1.0)


def _robertson(u: Sequence[float], p: Sequence[float], t: float) -> list[float]:
    (y1, y2, y3), (k1, k2, k3) = u, p
    slow, fast, middle = k1 * y1, k2 * y2 * y2, k3 * y2 * y3
    return [middle - slow, slow - fast - middle, fast]


def _vanderpol(u: Sequence[float], p: float, t: float) -> list[float]:
    x, y = u
    return [y, p * (1 - x * x) * y - x]


def _hires(u: Sequence[float], p: Any, t: float) -> list[float]:
    a, b, c, d, e, f, g, h = u
    joined = 280.0 * f * h - 1.81 * g
    return [
        -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
        1.71 * a - 8.75 * b,
        -10.03 * c + 0.43 * d + 0.035 * e,
        8.32 * b + 1.71 * c - 1.12 * d,
        -1.745 * e + 0.43 * f + 0.43 * g,
        -280.0 * f * h + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
        joined,
        -joined,
    ]


def _chemakzo(u: Sequence[float], p: Sequence[float], t: float) -> list[float]:
    y1, y2, y3, y4, y5, y6 = u
    k1, k2, k3, k4, equilibrium, transfer, pressure, henry = p
    root = abs(y2) ** 0.5
    r1, r2, r3 = k1 * y1**4 * root, k2 * y3 * y4, k2 / equilibrium * y1 * y5
    r4, r5 = k3 * y1 * y4 * y4, k4 * y6 * y6 * root
    return [
        -2 * r1 + r2 - r3 - r4,
        -r1 / 2 - r4 - r5 / 2 + transfer * (pressure / henry - y2),
        r1 - r2 + r3,
        -r2 + r3 - 2 * r4,
        r2 - r3 + r5,
        -r5,
    ]


def _brusselator(w: np.ndarray, p: float, t: float) -> np.ndarray:
    u, v = w[::2], w[1::2]
    out = np.empty_like(w)
    product = u * u * v
    out[::2] = 1.0 + product - 4.0 * u - 2.0 * p * u
    out[1::2] = 3.0 * u - product - 2.0 * p * v
    out[2:] += p * w[:-2]
    out[:-2] += p * w[2:]
    out[[0, -2]] += p
    out[[1, -1]] += 3.0 * p
    return out


PROBLEMS = [
    StiffProblem(ROBER, _robertson),
    StiffProblem(VDPOL_STIFF, _vanderpol),
    StiffProblem(HIRES, _hires),
    StiffProblem(CHEMAKZO, _chemakzo),
    StiffProblem(BRUSS1D, _brusselator, band=(2, 2)),
]
