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

# The extensions of Rodas4, Rodas4P and Rodas5P have stages of their own, since those published err
# up to 18 times as much between the steps of stiff problems as at them. Such a stage has the row of
# alpha of a simpler extension at its node. Its row of beta meets the conditions there, of order 3
# (of Rodas5P 4) exactly, of one order more nearly; those for fast components it meets as far as
# alpha does, since sum_j beta_ij (w x)_j = x_i, with w the inverse of beta. The weights meet the
# conditions of order 3 (of Rodas5P 4) for equations of index one (HW II, section VI.4; for fast
# components those of order 3), and of all that do they miss the next ones least, in the mean square
# over the step. The nodes, multiples of 0.05, are those that err least on HIRES, Robertson's
# reactions and Van der Pol's oscillator.

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
        "1.025137723295662 -11.210798758258887 -20.83333333333175",
        "-0.6762803392801253 6.087714651680015 16.43084320892478 24.76722511418386 "
        "-6.594389125716872 18.651669452693632 41.666666666661904",
        extra=[
            (
                0.6,
                "3.065646756706655 2.6909925879886587 1.5360709519438989 1.2354835849624204 "
                "-0.10355898051227061 0.6",
                "0.8625306565839084 -8.334694548842796 -21.564609336892207 -4.060656375084669 "
                "0.07580665022208055 -2.534580122466392",
            ),
        ],
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
    # Derived as that of Rodas4, from one that meets the conditions of order 3 without a further
    # stage: the published one is made for linear problems.
    dense=extension(
        3,
        (*_B4P, 1.0, 1.0),
        "25.288949102009802 11.53452154822856 29.475789726709227 -3.8072502858675756 "
        "-0.7492995206381976 -1.1130713876319647 -3.798790509301342 -7.591469646381643",
        "1.8769355516020845 -0.8448930529591987 9.714271137916743 18.324756507031964 "
        "-2.823521681339547 -1.1162722911988294 18.584266708315077 17.069811450141344",
        extra=[
            (
                0.45,
                "3.2412448471434607 0.6270066918563637 1.0371088224501248 0.6196591186413475 "
                "-0.04949183171083225 0.048429370547358304",
                "4.026989231295995 3.8648304658013948 10.18167345480488 -4.557402706034161 "
                "0.1591385599050547 -0.20970579786199106",
            ),
            (
                0.75,
                "-0.37210677123615665 -1.5123684095920826 -5.339157879133113 1.0676541098935985 "
                "0.2120056318535965 0.37812352823683343 2.034818657064801",
                "20.11439792207701 10.374093254886235 32.59785043042806 2.082126424291799 "
                "-1.6973843807725668 -1.2168153073474068 1.2406326801634626",
            ),
        ],
    ),
)
