"""Classical methods of order one to four.

Sources: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 2nd edition, 1993
(HNW I); Ralston, Runge-Kutta methods with minimum error bounds, Math. Comp. 16, 1962.

The second-order methods carry Euler's method as their error estimate: their first stage is all
it needs.
"""

from .base import ButcherTableau, DenseTableau, hermite

# HNW I, equation I.7.3, with the straight line between the two ends.
EULER = ButcherTableau(
    name="Euler",
    order=1,
    a=((),),
    b=(1.0,),
    c=(0.0,),
    dense=DenseTableau(order=1, weights=((1.0,),)),
    stability=2.0,
)

# HNW I, section II.1: the trapezoidal rule with an Euler predictor (improved Euler).
_HEUN_B = (1 / 2, 1 / 2)
HEUN = ButcherTableau(
    name="Heun",
    order=2,
    a=((), (1.0,)),
    b=_HEUN_B,
    c=(0.0, 1.0),
    dense=hermite(_HEUN_B, fsal=False, order=2),
    b_error=(-1 / 2, 1 / 2),
    error_order=1,
    stability=2.0,
)

# HNW I, equation II.1.4: Runge's midpoint rule.
_MIDPOINT_B = (0.0, 1.0)
MIDPOINT = ButcherTableau(
    name="Midpoint",
    order=2,
    a=((), (1 / 2,)),
    b=_MIDPOINT_B,
    c=(0.0, 1 / 2),
    dense=hermite(_MIDPOINT_B, fsal=False, order=2),
    b_error=(-1.0, 1.0),
    error_order=1,
    stability=2.0,
)

# Ralston 1962: the two-stage method with the least bound on its local error.
_RALSTON_B = (1 / 4, 3 / 4)
RALSTON = ButcherTableau(
    name="Ralston",
    order=2,
    a=((), (2 / 3,)),
    b=_RALSTON_B,
    c=(0.0, 2 / 3),
    dense=hermite(_RALSTON_B, fsal=False, order=2),
    b_error=(-3 / 4, 3 / 4),
    error_order=1,
    stability=2.0,
)

# HNW I, table II.1.2, left: "the" Runge-Kutta method.
_RK4_B = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
RK4 = ButcherTableau(
    name="RK4",
    order=4,
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=_RK4_B,
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    dense=hermite(_RK4_B, fsal=False),
    stability=2.7853,
)
