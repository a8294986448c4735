"""Kværnø's ESDIRK pairs.

Source: Kværnø, Singly diagonally implicit Runge-Kutta methods with an explicit first stage, BIT
Numerical Mathematics 44 (2004), 489-502, sections 3 and 4. Both solutions of a pair are stiffly
accurate: the embedded one is the stage before the last. The solution carried forward is the last
stage, of the higher order, and gamma is the value of the paper that makes that one L-stable.
"""

from typing import Any

from .esdirk import ESDIRKTableau, esdirk


def _pair(
    name: str,
    order: int,
    gamma: float,
    rows: list[list[float]],
    dense_order: int,
    **options: Any,
) -> ESDIRKTableau:
    embedded = [*rows[-2], gamma, 0.0]
    return esdirk(name, order, gamma, rows, embedded, order - 1, dense_order, **options)


def _kvaerno3() -> ESDIRKTableau:
    g = 0.4358665215084589994160194511935568425  # the root of g^3 - 3g^2 + 3g/2 - 1/6 in (1/6, 1/2)
    rows = [
        [g],
        [(-4 * g**2 + 6 * g - 1) / (4 * g), (1 - 2 * g) / (4 * g)],
        [
            (6 * g - 1) / (12 * g),
            -1 / (12 * g * (2 * g - 1)),
            (-6 * g**2 + 6 * g - 1) / (3 * (2 * g - 1)),
        ],
    ]
    return _pair("Kvaerno3", 3, g, rows, 3)


def _kvaerno4() -> ESDIRKTableau:
    g = 0.572816062482134855408001384976768340931514124329888967  # of g^4-4g^3+3g^2-2g/3+1/24
    p = 12 * g**2 - 6 * g + 1
    q = 12 * g**2 - 9 * g + 2
    rows = [
        [g],
        [
            (144 * g**4 - 180 * g**3 + 81 * g**2 - 15 * g + 1) * g / p**2,
            (-36 * g**3 + 39 * g**2 - 15 * g + 2) * g / p**2,
        ],
        [
            (-144 * g**5 + 396 * g**4 - 330 * g**3 + 117 * g**2 - 18 * g + 1) / (12 * g**2 * q),
            (72 * g**4 - 126 * g**3 + 69 * g**2 - 15 * g + 1) / (12 * g**2 * (3 * g - 1)),
            (-6 * g**2 + 6 * g - 1) * p**2 / (12 * g**2 * q * (3 * g - 1)),
        ],
        [
            (288 * g**4 - 312 * g**3 + 120 * g**2 - 18 * g + 1) / (48 * g**2 * q),
            (24 * g**2 - 12 * g + 1) / (48 * g**2 * (3 * g - 1)),
            -(p**3) / (48 * g**2 * (3 * g - 1) * q * (6 * g**2 - 6 * g + 1)),
            (-24 * g**3 + 36 * g**2 - 12 * g + 1) / (24 * g**2 - 24 * g + 4),
        ],
    ]
    return _pair("Kvaerno4", 4, g, rows, 3)


def _kvaerno5() -> ESDIRKTableau:
    g = 0.26
    rows = [
        [g],
        [0.13, 0.84033320996790809],
        [0.22371961478320505, 0.47675532319799699, -0.06470895363112615],
        [0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998],
        [
            0.13855640231268224,
            0.0,
            -0.04245337201752043,
            0.02446657898003141,
            0.61943039072480676,
        ],
        [
            0.13659751177640291,
            0.0,
            -0.05496908796538376,
            -0.04118626728321046,
            0.62993304899016403,
            0.06962479448202728,
        ],
    ]
    # For a fifth more evaluations: without, HIRES, an elastic beam, Van der Pol's oscillator and
    # the Brusselator in two dimensions lose half a digit to one more against the tolerance.
    caution = 4.0
    # Two of its stages lie at the end of the step, and one beyond: between the steps of HIRES and
    # Robertson's reactions errors were 20 to 100 times those at the steps.
    nodes = (0.3, 0.7)
    return _pair("Kvaerno5", 5, g, rows, 4, caution=caution, stiff_cubics=True, nodes=nodes)


KVAERNO3 = _kvaerno3()
KVAERNO4 = _kvaerno4()
KVAERNO5 = _kvaerno5()
