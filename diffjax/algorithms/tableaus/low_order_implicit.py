"""Implicit methods of order one and two.

Sources: Hairer, Wanner, Solving Ordinary Differential Equations II, 2nd edition, 1996 (HW II),
section IV.3; Hosea, Shampine, Analysis and implementation of TR-BDF2, Applied Numerical Mathematics
20 (1996), 21-37.
"""

from math import sqrt

from .base import DenseTableau, from_monomials
from .esdirk import ESDIRKTableau, esdirk

# HW II, equation IV.3.5 with theta = 1. The derivative at the start only estimates the error, as
# the difference to the trapezoidal rule; the iteration starts from the state itself, since that
# derivative may lead far astray. The straight line between the two ends is the extension.
IMPLICIT_EULER = ESDIRKTableau(
    name="ImplicitEuler",
    order=1,
    gamma=1.0,
    a=((), (0.0,)),
    b=(0.0, 1.0),
    c=(0.0, 1.0),
    predictor=((), (0.0,)),
    dense=DenseTableau(order=1, weights=((0.0,), (1.0,))),
    b_error=(-1 / 2, 1 / 2),
    error_order=1,
)

# HW II, equation IV.3.7: the Gauss method of one stage. Its extension is the cubic of Hermite,
# with the derivatives at both ends computed where it is needed.
IMPLICIT_MIDPOINT = ESDIRKTableau(
    name="ImplicitMidpoint",
    order=2,
    gamma=1 / 2,
    a=((),),
    b=(1.0,),
    c=(1 / 2,),
    predictor=((),),
    explicit_first=False,
    dense=DenseTableau(
        order=2,
        weights=from_monomials("0 3 -2", "1 -2 1", "0 -1 1"),
        a_extra=((), (1.0,)),
        c_extra=(0.0, 1.0),
    ),
)

# HW II, equation IV.3.8: Lobatto IIIA with two stages; its extension is the collocation polynomial.
TRAPEZOID = ESDIRKTableau(
    name="Trapezoid",
    order=2,
    gamma=1 / 2,
    a=((), (1 / 2,)),
    b=(1 / 2, 1 / 2),
    c=(0.0, 1.0),
    predictor=((), (1.0,)),
    dense=DenseTableau(order=2, weights=from_monomials("1 -1/2", "0 1/2")),
)

# Hosea and Shampine 1996, table 1: gamma = 2 - sqrt(2), d = gamma/2, w = sqrt(2)/4.
_D, _W = 1 - sqrt(2) / 2, sqrt(2) / 4
TRBDF2 = esdirk(
    "TRBDF2",
    2,
    _D,
    [[_D], [_W, _W]],
    [(1 - _W) / 3, (3 * _W + 1) / 3, _D / 3],
    # The estimate compares with a solution of order 3, so it is the error of order 2 itself.
    error_order=2,
    dense_order=2,
)
