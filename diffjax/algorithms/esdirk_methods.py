"""The singly diagonally implicit methods by name: a tableau each."""

from . import tableaus
from .esdirk import ESDIRK


def ImplicitEuler() -> ESDIRK:
    return ESDIRK(tableaus.IMPLICIT_EULER)


def ImplicitMidpoint() -> ESDIRK:
    return ESDIRK(tableaus.IMPLICIT_MIDPOINT)


def Trapezoid() -> ESDIRK:
    return ESDIRK(tableaus.TRAPEZOID)


def TRBDF2() -> ESDIRK:
    return ESDIRK(tableaus.TRBDF2)


def Kvaerno3() -> ESDIRK:
    return ESDIRK(tableaus.KVAERNO3)


def Kvaerno4() -> ESDIRK:
    return ESDIRK(tableaus.KVAERNO4)


def Kvaerno5() -> ESDIRK:
    return ESDIRK(tableaus.KVAERNO5)


def KenCarp3() -> ESDIRK:
    return ESDIRK(tableaus.KENCARP3)


def KenCarp4() -> ESDIRK:
    return ESDIRK(tableaus.KENCARP4)


def KenCarp47() -> ESDIRK:
    return ESDIRK(tableaus.KENCARP47)


def KenCarp5() -> ESDIRK:
    return ESDIRK(tableaus.KENCARP5)


def KenCarp58() -> ESDIRK:
    return ESDIRK(tableaus.KENCARP58)
