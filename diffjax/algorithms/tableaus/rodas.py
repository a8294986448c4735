"""Rosenbrock methods of orders 2 to 4.

Sources: Shampine, Reichelt, The MATLAB ODE suite, SIAM J. Sci. Comput. 18(1), 1997 (Rosenbrock23);
Hairer, Wanner, Solving ODEs II, section IV.7, and its code RODAS (Rodas4); Steinebach,
Order-reduction of ROW-methods for DAEs and method of lines applications, preprint 1741,
TH Darmstadt, 1995, and RODAS with METH=3 (Rodas4P); Steinebach, Rosenbrock methods within
OrdinaryDiffEq.jl, Proc. JuliaCon Conf., 2024 (Rodas3P).
"""

from fractions import Fraction
from math import sqrt

from .base import DenseTableau, from_monomials
from .rosenbrock import RosenbrockTableau, extension

# Shampine, Reichelt 1997, section 3, where W = I - dt*d*J and the stages are k_1, k_2, k_3; here
# they are dt times k_1, k_2 - k_1 and k_3 - e_32 (k_2 - k_1) - 2 k_1, times d, which needs no
# product with W. The extension is u + dt/(1 - 2d) (theta (1 - theta) k_1 + theta (theta - 2d) k_2).
_D = 1.0 / (2.0 + sqrt(2.0))
_E32 = 6.0 + sqrt(2.0)
_S = 1.0 - 2.0 * _D
ROSENBROCK23 = RosenbrockTableau(
    name="Rosenbrock23",
    order=2,
    gamma=_D,
    a=((), (0.5 / _D,), (1.0 / _D, 1.0 / _D)),
    C=((), (-1.0 / _D,), (-2.0 / _D, -_E32 / _D)),
    b=(1.0 / _D, 1.0 / _D, 0.0),
    c=(0.0, 0.5, 1.0),
    d=(_D, 0.0, -_D),
    b_error=(-1.0 / (6.0 * _D), (2.0 - _E32) / (6.0 * _D), -1.0 / (6.0 * _D)),
    error_order=2,
    dense=DenseTableau(
        order=2,
        weights=from_monomials(
            (Fraction(1.0 / _D), Fraction(0)),
            (Fraction(-2.0 / _S), Fraction(1.0 / (_D * _S))),
            (Fraction(0), Fraction(0)),
        ),
    ),
)

# Steinebach 2024, table 1 (Rodas3P).
_B3 = (2.90625, 3.375, 0.40625)
RODAS3P = RosenbrockTableau(
    name="Rodas3P",
    order=3,
    gamma=1 / 3,
    a=((), (4 / 3,), (0.0, 0.0), _B3, (*_B3, 0.0)),
    C=(
        (),
        (-4.0,),
        (8.25, 6.75),
        (1.21875, -5.0625, -1.96875),
        (4.03125, -15.1875, -4.03125, 6.0),
    ),
    b=(*_B3, 0.0, 1.0),
    c=(0.0, 4 / 9, 0.0, 1.0, 1.0),
    d=(1 / 3, -1 / 9, 1.0, 0.0, 0.0),
    b_error=(0.0, 0.0, 0.0, -1.0, 1.0),
    error_order=2,
    dense=extension(
        3,
        (*_B3, 0.0, 1.0),
        "1.78125 6.75 0.15625 -6 -1",
        "4.21875 -15.1875 -3.09375 9 0",
    ),
)

# HW II, section IV.7, table 7.3 as transformed in RODAS with METH=1.
_B4 = (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895)
RODAS4 = RosenbrockTableau(
    name="Rodas4",
    order=4,
    gamma=0.25,
    a=(
        (),
        (1.544,),
        (0.9466785280815826, 0.2557011698983284),
        (3.314825187068521, 2.896124015972201, 0.9986419139977817),
        _B4,
        (*_B4, 1.0),
    ),
    C=(
        (),
        (-5.6688,),
        (-2.430093356833875, -0.2063599157091915),
        (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
        (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.7089089320616),
        (
            8.083246795921522,
            -7.981132988064893,
            -31.52159432874371,
            16.31930543123136,
            -6.058818238834054,
        ),
    ),
    b=(*_B4, 1.0, 1.0),
    c=(0.0, 0.386, 0.21, 0.63, 1.0, 1.0),
    d=(0.25, -0.1043, 0.1035, -0.0362, 0.0, 0.0),
    b_error=(0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    error_order=3,
    dense=extension(
        3,
        (*_B4, 1.0, 1.0),
        "10.12623508344586 -7.487995877610167 -34.80091861555747 -7.992771707568823 "
        "1.025137723295662 0",
        "-0.6762803392801253 6.087714651680015 16.43084320892478 24.76722511418386 "
        "-6.594389125716872 0",
    ),
)

# Steinebach 1995, as transformed in RODAS with METH=3.
_B4P = (-7.170454962423024, -4.741636671481785, -16.31002631330971, -1.062004044111401)
RODAS4P = RosenbrockTableau(
    name="Rodas4P",
    order=4,
    gamma=0.25,
    a=(
        (),
        (3.0,),
        (1.831036793486759, 0.4955183967433795),
        (2.304376582692669, -0.05249275245743001, -1.176798761832782),
        _B4P,
        (*_B4P, 1.0),
    ),
    C=(
        (),
        (-12.0,),
        (-8.791795173947035, -2.207865586973518),
        (10.81793056857153, 6.780270611428266, 19.5348594464241),
        (34.19095006749676, 15.49671153725963, 54.7476087596413, 14.16005392148534),
        (
            34.62605830930532,
            15.30084976114473,
            56.99955578662667,
            18.40807009793095,
            -5.714285714285717,
        ),
    ),
    b=(*_B4P, 1.0, 1.0),
    c=(0.0, 0.75, 0.21, 0.63, 1.0, 1.0),
    d=(0.25, -0.5, -0.023504, -0.0362, 0.0, 0.0),
    b_error=(0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    error_order=3,
    # Not the published extension, which is made for linear problems and errs ten times as much as
    # the steps between those of HIRES, and fifty times on Robertson's reactions. This one meets too
    # sum b w alpha^2 = theta^2 and sum b w alpha^3 = theta^3, with w the inverse of beta; and for
    # fast components that are not linear in the slow ones sum b w alpha (alpha w alpha^2) = theta^3
    # (HW II, section VI.4). Of those of order 3 and degree 4 that do it has the least residuals of
    # order 4, in the mean square over the step.
    dense=extension(
        3,
        (*_B4P, 1.0, 1.0),
        "25.326126215238276 11.517786458593626 29.668203663199964 -3.4442854803063483 "
        "-0.8957738642182506 -1.3957561079075678",
        "1.793340893040181 -0.807263339876588 9.281618467317642 17.508611401726597 "
        "-2.4941665572778025 -2.131899432690067",
        "0 0 0 0 0 3.6177938709632103",
    ),
)
