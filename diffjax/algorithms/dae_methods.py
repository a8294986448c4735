"""Methods for fully implicit equations F(u', u, p, t) = 0: the engine is that of `bdf`."""

from typing import ClassVar

import equinox as eqx

from ..linear.krylov import GMRES
from .bdf import FBDF


class DFBDF(FBDF):
    """`dj.FBDF` for a `dj.DAEProblem`; the default for one.

    Each step solves F(u', u, p, t) = 0 with the derivative that the formula makes of u and the
    past. For index one; algebraic variables are in the error like all others.

    **Arguments:**

    - `max_order`: the highest order, from 1 to 5.

    Source: as `dj.FBDF`; Brenan, Campbell, Petzold, Numerical Solution of Initial-Value Problems in
    Differential-Algebraic Equations, section 5.2, on the use of such formulas in DASSL.

    !!! example
        `dj.solve(dj.DAEProblem(F, du0, u0, (0.0, 1.0), p), dj.DFBDF(), rtol=1e-6)`
    """

    takes: ClassVar[frozenset[str]] = frozenset({"DAEProblem"})

    linear_solver: GMRES | None = eqx.field(static=True, init=False, default=None)


class DImplicitEuler(FBDF):
    """The implicit Euler method for a `dj.DAEProblem`: F((u - u_old)/dt, u, p, t) = 0.

    L-stable, of order 1: for very stiff problems at loose tolerances. The error is estimated from
    the second divided difference of the states.

    Source: Brenan, Campbell, Petzold, section 3.1 and, on the estimate, section 5.2.

    !!! example
        `dj.solve(dj.DAEProblem(F, du0, u0, (0.0, 1.0), p), dj.DImplicitEuler(), rtol=1e-3)`
    """

    takes: ClassVar[frozenset[str]] = frozenset({"DAEProblem"})

    max_order: int = eqx.field(static=True, init=False, default=1)
    linear_solver: GMRES | None = eqx.field(static=True, init=False, default=None)
