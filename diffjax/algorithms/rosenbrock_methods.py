"""The Rosenbrock methods by name: a tableau each."""

from . import tableaus
from .rosenbrock import Rosenbrock


def Rosenbrock23() -> Rosenbrock:
    return Rosenbrock(tableaus.ROSENBROCK23)


def Rodas3P() -> Rosenbrock:
    return Rosenbrock(tableaus.RODAS3P)


def Rodas4() -> Rosenbrock:
    return Rosenbrock(tableaus.RODAS4)


def Rodas4P() -> Rosenbrock:
    return Rosenbrock(tableaus.RODAS4P)


def Rodas5() -> Rosenbrock:
    return Rosenbrock(tableaus.RODAS5)


def Rodas5P() -> Rosenbrock:
    return Rosenbrock(tableaus.RODAS5P)
