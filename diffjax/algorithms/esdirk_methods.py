"""The singly diagonally implicit methods by name: a tableau each.

They are for stiff problems, with a constant mass matrix too, which may be singular. On small
systems the Rosenbrock methods are faster; these need no derivative with respect to time, keep their
matrices from step to step on large systems, and do with a Jacobian that is only nearly right. With
`linear_solver=dj.GMRES(...)` they do without a matrix.
"""

from ..linear.krylov import GMRES
from . import tableaus
from .esdirk import ESDIRK


def ImplicitEuler(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """The backward Euler method: order 1, L-stable, hard to upset.

    Its error estimate is the difference to the trapezoidal rule. Its extension is a straight line.

    Source: Hairer, Wanner, Solving ODEs II, section IV.3.

    !!! example
        `dj.solve(prob, dj.ImplicitEuler(), rtol=1e-2)`
    """
    return ESDIRK(tableaus.IMPLICIT_EULER, linear_solver)


def ImplicitMidpoint(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """The implicit midpoint rule: order 2, A-stable, symplectic; in fixed steps.

    Stiff components oscillate undamped. Its extension, of order 2, costs two evaluations where
    something is saved.

    Source: Hairer, Wanner, Solving ODEs II, section IV.3.

    !!! example
        `dj.solve(prob, dj.ImplicitMidpoint(), steps=1000)`
    """
    return ESDIRK(tableaus.IMPLICIT_MIDPOINT, linear_solver)


def Trapezoid(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """The trapezoidal rule: order 2, A-stable, symmetric; in fixed steps.

    Stiff components oscillate undamped; `TRBDF2` damps them. Its extension is of order 2.

    Source: Hairer, Wanner, Solving ODEs II, section IV.3.

    !!! example
        `dj.solve(prob, dj.Trapezoid(), steps=1000)`
    """
    return ESDIRK(tableaus.TRAPEZOID, linear_solver)


def TRBDF2(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """A step of the trapezoidal rule and one of the second BDF formula: order 2, L-stable.

    For loose tolerances. Its extension is of order 2.

    Source: Hosea, Shampine, Analysis and implementation of TR-BDF2, Appl. Numer. Math. 20, 1996.

    !!! example
        `dj.solve(prob, dj.TRBDF2(), rtol=1e-2)`
    """
    return ESDIRK(tableaus.TRBDF2, linear_solver)


def Kvaerno3(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """An ESDIRK method of order 3(2) with 4 stages; L-stable and stiffly accurate.

    Its extension is of order 3.

    Source: Kværnø, Singly diagonally implicit Runge-Kutta methods with an explicit first stage,
    BIT 44, 2004.

    !!! example
        `dj.solve(prob, dj.Kvaerno3(), rtol=1e-4)`
    """
    return ESDIRK(tableaus.KVAERNO3, linear_solver)


def Kvaerno4(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """An ESDIRK method of order 4(3) with 5 stages; L-stable and stiffly accurate.

    Its extension is of order 3.

    Source: Kværnø, Singly diagonally implicit Runge-Kutta methods with an explicit first stage,
    BIT 44, 2004.

    !!! example
        `dj.solve(prob, dj.Kvaerno4(), rtol=1e-5)`
    """
    return ESDIRK(tableaus.KVAERNO4, linear_solver)


def Kvaerno5(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """An ESDIRK method of order 5(4) with 7 stages; L-stable and stiffly accurate.

    The first of these to try at tight tolerances. Its extension, of order 4, costs two implicit
    stages more where something is saved.

    Source: Kværnø, Singly diagonally implicit Runge-Kutta methods with an explicit first stage,
    BIT 44, 2004.

    !!! example
        `dj.solve(prob, dj.Kvaerno5(), rtol=1e-6)`
    """
    return ESDIRK(tableaus.KVAERNO5, linear_solver)


def KenCarp3(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """An ESDIRK method of order 3(2) with 4 stages; L-stable and stiffly accurate.

    Its extension is of order 3.

    Source: Kennedy, Carpenter, Additive Runge-Kutta schemes for convection-diffusion-reaction
    equations, Appl. Numer. Math. 44, 2003.

    !!! example
        `dj.solve(prob, dj.KenCarp3(), rtol=1e-4)`
    """
    return ESDIRK(tableaus.KENCARP3, linear_solver)


def KenCarp4(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """An ESDIRK method of order 4(3) with 6 stages; L-stable and stiffly accurate.

    The first of these to try at loose tolerances. Its extension, of order 4, costs an
    implicit stage more where something is saved.

    Source: Kennedy, Carpenter, Additive Runge-Kutta schemes for convection-diffusion-reaction
    equations, Appl. Numer. Math. 44, 2003.

    !!! example
        `dj.solve(prob, dj.KenCarp4(), rtol=1e-5)`
    """
    return ESDIRK(tableaus.KENCARP4, linear_solver)


def KenCarp47(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """An ESDIRK method of order 4(3) with 7 stages; L-stable and stiffly accurate.

    The cheapest of order 4 in most problems. Its extension, of order 4, costs an implicit stage
    more where something is saved.

    Source: Kennedy, Carpenter, Higher-order additive Runge-Kutta schemes for ordinary differential
    equations, Appl. Numer. Math. 136, 2019.

    !!! example
        `dj.solve(prob, dj.KenCarp47(), rtol=1e-5)`
    """
    return ESDIRK(tableaus.KENCARP47, linear_solver)


def KenCarp5(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """An ESDIRK method of order 5(4) with 8 stages; L-stable and stiffly accurate.

    Its extension, of order 4, costs two implicit stages more where something is saved.

    Source: Kennedy, Carpenter, Additive Runge-Kutta schemes for convection-diffusion-reaction
    equations, Appl. Numer. Math. 44, 2003.

    !!! example
        `dj.solve(prob, dj.KenCarp5(), rtol=1e-6)`
    """
    return ESDIRK(tableaus.KENCARP5, linear_solver)


def KenCarp58(*, linear_solver: GMRES | None = None) -> ESDIRK:
    """An ESDIRK method of order 5(4) with 8 stages; L-stable and stiffly accurate.

    Its extension, of order 4, costs two implicit stages more where something is saved.

    Source: Kennedy, Carpenter, Higher-order additive Runge-Kutta schemes for ordinary differential
    equations, Appl. Numer. Math. 136, 2019.

    !!! example
        `dj.solve(prob, dj.KenCarp58(), rtol=1e-6)`
    """
    return ESDIRK(tableaus.KENCARP58, linear_solver)
