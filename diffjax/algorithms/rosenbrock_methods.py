"""The Rosenbrock methods by name: a tableau each.

They are for stiff problems of up to some hundred unknowns, and for M u' = f with a constant mass
matrix M that may be singular. Each returns an algorithm for `dj.solve`; the continuous extension
costs an evaluation or two in steps inside which something is saved, or none.
"""

from . import tableaus
from .rosenbrock import Rosenbrock


def Rosenbrock23() -> Rosenbrock:
    """The method of MATLAB's `ode23s`, order 2 with an estimate of order 3; L-stable.

    For loose tolerances. Its extension is of order 2.

    Source: Shampine, Reichelt, The MATLAB ODE suite, SIAM J. Sci. Comput. 18(1), 1997, section 3.

    !!! example
        `dj.solve(prob, dj.Rosenbrock23(), rtol=1e-2)`
    """
    return Rosenbrock(tableaus.ROSENBROCK23)


def Rodas3P() -> Rosenbrock:
    """A method of order 3(2) that keeps its order on stiff problems; L-stable.

    For loose tolerances. Its extension is of order 3.

    Source: Steinebach, Rosenbrock methods within OrdinaryDiffEq.jl, Proc. JuliaCon Conf., 2024.

    !!! example
        `dj.solve(prob, dj.Rodas3P(), rtol=1e-3)`
    """
    return Rosenbrock(tableaus.RODAS3P)


def Rodas4() -> Rosenbrock:
    """The method of order 4(3) of the code RODAS; L-stable and stiffly accurate.

    Its extension, of order 3, has a stage of its own.

    Source: Hairer, Wanner, Solving ODEs II, section IV.7 and the code RODAS; the extension is
    derived in `tableaus/rodas.py`.

    !!! example
        `dj.solve(prob, dj.Rodas4(), rtol=1e-5)`
    """
    return Rosenbrock(tableaus.RODAS4)


def Rodas4P() -> Rosenbrock:
    """A method of order 4(3) that keeps its order on parabolic and stiff problems; L-stable.

    Its extension, of order 3, has two stages of its own.

    Source: Steinebach, Order-reduction of ROW-methods for DAEs and method of lines applications,
    preprint 1741, TH Darmstadt, 1995; the extension is derived in `tableaus/rodas.py`.

    !!! example
        `dj.solve(prob, dj.Rodas4P(), rtol=1e-5)`
    """
    return Rosenbrock(tableaus.RODAS4P)


def Rodas5() -> Rosenbrock:
    """A method of order 5(4), stiffly accurate and L-stable.

    Its extension is of order 4. On stiff problems with a moving forcing it loses order, which
    `Rodas5P` does not.

    Source: Di Marzo, RODAS5(4), Université de Genève, 1993.

    !!! example
        `dj.solve(prob, dj.Rodas5(), rtol=1e-7)`
    """
    return Rosenbrock(tableaus.RODAS5)


def Rodas5P() -> Rosenbrock:
    """A method of order 5(4) that keeps its order on stiff problems; the first to try on them.

    L-stable and stiffly accurate; its extension, of order 4, has a stage of its own.

    Source: Steinebach, Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks
    within the Julia Differential Equations package, BIT Numer. Math. 63:27, 2023.

    !!! example
        `dj.solve(prob, dj.Rodas5P(), rtol=1e-7)`
    """
    return Rosenbrock(tableaus.RODAS5P)
