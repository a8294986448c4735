"""The pair of Dormand and Prince, of order 5(4).

Sources: Dormand, Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 6(1),
1980; Shampine, Some practical Runge-Kutta formulas, Math. Comp. 46(173), 1986.
"""

from .base import ButcherTableau, DenseTableau, from_monomials

# Dormand, Prince 1980, table 2 (RK5(4)7M); HNW I, table II.5.2.
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)

# Shampine 1986: the extension of order four that he finds best among those without an extra stage;
# HNW I, section II.6 and the function CONTD5 of DOPRI5 give the same polynomials.
_DENSE = DenseTableau(
    order=4,
    weights=from_monomials(
        "1 -8048581381/2820520608 8663915743/2820520608 -12715105075/11282082432",
        "0 0 0 0",
        "0 131558114200/32700410799 -68118460800/10900136933 87487479700/32700410799",
        "0 -1754552775/470086768 14199869525/1410260304 -10690763975/1880347072",
        "0 127303824393/49829197408 -318862633887/49829197408 701980252875/199316789632",
        "0 -282668133/205662961 2019193451/616988883 -1453857185/822651844",
        "0 40617522/29380423 -110615467/29380423 69997945/29380423",
    ),
)

DP5 = ButcherTableau(
    name="DP5",
    order=5,
    a=_A,
    b=(*_A[-1], 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    dense=_DENSE,
    b_error=(
        71 / 57600,
        0.0,
        -71 / 16695,
        71 / 1920,
        -17253 / 339200,
        22 / 525,
        -1 / 40,
    ),
    error_order=4,
    fsal=True,
    stability=3.3066,
)
