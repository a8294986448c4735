"""Strong stability preserving methods of order three.

Sources: Shu, Osher, Efficient implementation of essentially non-oscillatory shock-capturing
schemes, J. Comput. Phys. 77(2), 1988; Kraaijevanger, Contractivity of Runge-Kutta methods, BIT 31,
1991; Conde, Fekete, Shadid, Embedded error estimation and adaptive step-size control for optimal
explicit strong stability preserving Runge-Kutta methods, arXiv:1806.08693, 2018.

The step itself preserves strong stability; its cubic Hermite extension need not.
"""

from .base import ButcherTableau, hermite

# Shu, Osher 1988: three stages, SSP coefficient 1.
_SSPRK33_B = (1 / 6, 1 / 6, 2 / 3)
SSPRK33 = ButcherTableau(
    name="SSPRK33",
    order=3,
    a=((), (1.0,), (1 / 4, 1 / 4)),
    b=_SSPRK33_B,
    c=(0.0, 1.0, 1 / 2),
    dense=hermite(_SSPRK33_B, fsal=False),
    stability=2.5127,
)

# Kraaijevanger 1991: four stages, SSP coefficient 2. The embedded solution of order two, with all
# weights 1/4, is that of Conde, Fekete, Shadid 2018.
_SSPRK43_B = (1 / 6, 1 / 6, 1 / 6, 1 / 2)
SSPRK43 = ButcherTableau(
    name="SSPRK43",
    order=3,
    a=((), (1 / 2,), (1 / 2, 1 / 2), (1 / 6, 1 / 6, 1 / 6)),
    b=_SSPRK43_B,
    c=(0.0, 1 / 2, 1.0, 1 / 2),
    dense=hermite(_SSPRK43_B, fsal=False),
    b_error=(-1 / 12, -1 / 12, -1 / 12, 1 / 4),
    error_order=2,
    stability=5.1495,
)
