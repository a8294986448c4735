"""The explicit Runge-Kutta methods by name: a tableau each.

Every constructor takes `unroll` (see `ExplicitRungeKutta`) and returns an algorithm for
`dj.solve`. The order of each one's continuous extension is in its tableau.
"""

from . import tableaus
from .explicit_rk import ExplicitRungeKutta


def Euler(*, unroll: bool = True) -> ExplicitRungeKutta:
    """The explicit Euler method, order 1; fixed steps.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Euler 1768; Hairer, Norsett, Wanner, Solving ODEs I, section I.7.

    !!! example
        `dj.solve(prob, dj.Euler(), dt=0.01)`
    """
    return ExplicitRungeKutta(tableaus.EULER, unroll)


def Heun(*, unroll: bool = True) -> ExplicitRungeKutta:
    """Heun's method (the explicit trapezoidal rule), order 2, with an Euler error estimate.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Heun 1900; Hairer, Norsett, Wanner, Solving ODEs I, section II.1.

    !!! example
        `dj.solve(prob, dj.Heun())`
    """
    return ExplicitRungeKutta(tableaus.HEUN, unroll)


def Midpoint(*, unroll: bool = True) -> ExplicitRungeKutta:
    """The explicit midpoint rule, order 2, with an Euler error estimate.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Runge 1895; Hairer, Norsett, Wanner, Solving ODEs I, section II.1.

    !!! example
        `dj.solve(prob, dj.Midpoint())`
    """
    return ExplicitRungeKutta(tableaus.MIDPOINT, unroll)


def Ralston(*, unroll: bool = True) -> ExplicitRungeKutta:
    """Ralston's second-order method of least error, with an Euler error estimate.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Ralston, Math. Comp. 16, 1962.

    !!! example
        `dj.solve(prob, dj.Ralston())`
    """
    return ExplicitRungeKutta(tableaus.RALSTON, unroll)


def RK4(*, unroll: bool = True) -> ExplicitRungeKutta:
    """The classical Runge-Kutta method, order 4; fixed steps.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Kutta 1901; Hairer, Norsett, Wanner, Solving ODEs I, table II.1.2.

    !!! example
        `dj.solve(prob, dj.RK4(), dt=0.01)`
    """
    return ExplicitRungeKutta(tableaus.RK4, unroll)


def BS3(*, unroll: bool = True) -> ExplicitRungeKutta:
    """The pair of Bogacki and Shampine, order 3(2); good at loose tolerances.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Bogacki and Shampine, Appl. Math. Lett. 2, 1989.

    !!! example
        `dj.solve(prob, dj.BS3())`
    """
    return ExplicitRungeKutta(tableaus.BS3, unroll)


def SSPRK33(*, unroll: bool = True) -> ExplicitRungeKutta:
    """Strong-stability-preserving Runge-Kutta, 3 stages, order 3; fixed steps.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Shu and Osher, J. Comput. Phys. 77, 1988.

    !!! example
        `dj.solve(prob, dj.SSPRK33(), dt=0.01)`
    """
    return ExplicitRungeKutta(tableaus.SSPRK33, unroll)


def SSPRK43(*, unroll: bool = True) -> ExplicitRungeKutta:
    """Strong-stability-preserving Runge-Kutta, 4 stages, order 3(2).

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Conde, Fekete, Shadid, arXiv 1806.08693, 2018.

    !!! example
        `dj.solve(prob, dj.SSPRK43())`
    """
    return ExplicitRungeKutta(tableaus.SSPRK43, unroll)


def DP5(*, unroll: bool = True) -> ExplicitRungeKutta:
    """The pair of Dormand and Prince, order 5(4): RK45, ode45, DOPRI5.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Dormand and Prince, J. Comput. Appl. Math. 6, 1980.

    !!! example
        `dj.solve(prob, dj.DP5())`
    """
    return ExplicitRungeKutta(tableaus.DP5, unroll)


def Tsit5(*, unroll: bool = True) -> ExplicitRungeKutta:
    """The pair of Tsitouras, order 5(4): the first choice for non-stiff problems.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Tsitouras, Comput. Math. Appl. 62, 2011.

    !!! example
        `dj.solve(prob, dj.Tsit5())`
    """
    return ExplicitRungeKutta(tableaus.TSIT5, unroll)


def BS5(*, unroll: bool = True) -> ExplicitRungeKutta:
    """The pair of Bogacki and Shampine, order 5(4), 8 stages.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Bogacki and Shampine, Comput. Math. Appl. 32, 1996.

    !!! example
        `dj.solve(prob, dj.BS5())`
    """
    return ExplicitRungeKutta(tableaus.BS5, unroll)


def Vern6(*, unroll: bool = True) -> ExplicitRungeKutta:
    """Verner's most efficient pair, order 6(5).

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Verner, Numer. Algorithms 53, 2010.

    !!! example
        `dj.solve(prob, dj.Vern6())`
    """
    return ExplicitRungeKutta(tableaus.VERN6, unroll)


def Vern7(*, unroll: bool = True) -> ExplicitRungeKutta:
    """Verner's most efficient pair, order 7(6): for tight tolerances.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Verner, Numer. Algorithms 53, 2010.

    !!! example
        `dj.solve(prob, dj.Vern7())`
    """
    return ExplicitRungeKutta(tableaus.VERN7, unroll)


def Vern8(*, unroll: bool = True) -> ExplicitRungeKutta:
    """Verner's most efficient pair, order 8(7).

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Verner, Numer. Algorithms 53, 2010.

    !!! example
        `dj.solve(prob, dj.Vern8())`
    """
    return ExplicitRungeKutta(tableaus.VERN8, unroll)


def Vern9(*, unroll: bool = True) -> ExplicitRungeKutta:
    """Verner's most efficient pair, order 9(8): for the tightest tolerances.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Verner, Numer. Algorithms 53, 2010.

    !!! example
        `dj.solve(prob, dj.Vern9())`
    """
    return ExplicitRungeKutta(tableaus.VERN9, unroll)


def DP8(*, unroll: bool = True) -> ExplicitRungeKutta:
    """DOP853: order 8 with a combined error estimate of orders 5 and 3, 7th-order output.

    **Arguments:** `unroll=False` keeps one call site of the vector field, for a very large one.

    Source: Hairer, Norsett, Wanner, Solving ODEs I, section II.5 and II.10.

    !!! example
        `dj.solve(prob, dj.DP8())`
    """
    return ExplicitRungeKutta(tableaus.DP8, unroll)
