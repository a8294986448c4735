"""The table of methods. A new method is one row here; every test over methods then takes it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

import diffjax as dj


@dataclass(frozen=True)
class Method:
    """A method and what its papers say of it.

    - `order`: of convergence; `dense_order`: of the continuous extension (its local error is one
        order higher).
    - `evaluations`: of the field, a step; `fsal`: the last stage is the next step's first.
    - `extra`: evaluations that the extension adds to a step in which something is saved.
    - `adaptive`: it has an error estimate; `explicit`: no more is known of `f` than its values.
    - `steps`: numbers of steps over [0, 3] of `clock` at which the order is observed: errors that
        are well above rounding and already of the leading order.
    - `widths`: lengths of the single steps that the extension's order is observed on.
    """

    make: Callable[..., dj.Algorithm]
    order: int
    dense_order: int
    evaluations: int
    fsal: bool
    extra: int
    adaptive: bool
    steps: tuple[int, ...]
    widths: tuple[float, ...]
    explicit: bool = True

    @property
    def name(self) -> str:
        return self.make.__name__


_SECOND = (32, 64, 128)
_THIRD = (32, 48, 64)
_FIFTH = (24, 32, 48)
_SIXTH = (12, 16, 24)
_EIGHTH = (6, 8, 12)
_SHORT = (0.25, 0.125, 0.0625)
_MIDDLE = (0.5, 0.375, 0.25)
_LONG = (1.0, 0.75, 0.5)

METHODS = [
    #      make       order dense nf fsal  extra adaptive steps  widths
    Method(dj.Euler, 1, 1, 1, False, 0, False, (64, 128, 256), _SHORT),
    Method(dj.Heun, 2, 2, 2, False, 1, True, _SECOND, _SHORT),
    Method(dj.Midpoint, 2, 2, 2, False, 1, True, _SECOND, _SHORT),
    Method(dj.Ralston, 2, 2, 2, False, 1, True, _SECOND, _SHORT),
    Method(dj.RK4, 4, 3, 4, False, 1, False, _THIRD, _SHORT),
    Method(dj.SSPRK33, 3, 3, 3, False, 1, False, _THIRD, _SHORT),
    Method(dj.SSPRK43, 3, 3, 4, False, 1, True, _THIRD, _SHORT),
    Method(dj.BS3, 3, 3, 3, True, 0, True, _THIRD, _SHORT),
    Method(dj.DP5, 5, 4, 6, True, 0, True, _FIFTH, _MIDDLE),
    Method(dj.Tsit5, 5, 4, 6, True, 0, True, _FIFTH, _MIDDLE),
    Method(dj.BS5, 5, 5, 7, True, 3, True, _SIXTH, _MIDDLE),
    Method(dj.Vern6, 6, 6, 8, True, 3, True, _SIXTH, _MIDDLE),
    # Its 7th-order conditions of the extension are met but for 3e-7.
    Method(dj.Vern7, 7, 6, 10, False, 6, True, _SIXTH, _MIDDLE),
    Method(dj.Vern8, 8, 8, 13, False, 11, True, _EIGHTH, _LONG),
    Method(dj.Vern9, 9, 9, 16, False, 10, True, _EIGHTH, _LONG),
    Method(dj.DP8, 8, 7, 12, True, 3, True, _EIGHTH, _LONG),
    Method(dj.Rosenbrock23, 2, 2, 3, False, 0, True, _SECOND, _SHORT, False),
    Method(dj.Rodas3P, 3, 3, 5, False, 0, True, _THIRD, _SHORT, False),
    Method(dj.Rodas4, 4, 3, 6, False, 1, True, _THIRD, _SHORT, False),
    Method(dj.Rodas4P, 4, 3, 6, False, 2, True, _THIRD, _SHORT, False),
    Method(dj.Rodas5, 5, 4, 8, False, 0, True, _FIFTH, _MIDDLE, False),
    Method(dj.Rodas5P, 5, 4, 8, False, 1, True, _FIFTH, _MIDDLE, False),
]

# Methods that iterate: how many evaluations a step takes is not known beforehand, so that tests of
# work over METHODS do not take them; `evaluations` counts the stages that are solved for. Their
# tests are in `test_esdirk.py`, with one program a method.
ESDIRK_METHODS = [
    Method(dj.ImplicitEuler, 1, 1, 1, True, 0, True, (64, 128, 256), _SHORT, False),
    Method(dj.ImplicitMidpoint, 2, 2, 1, False, 2, False, _SECOND, _SHORT, False),
    Method(dj.Trapezoid, 2, 2, 1, True, 0, False, _SECOND, _SHORT, False),
    Method(dj.TRBDF2, 2, 2, 2, True, 0, True, _SECOND, _SHORT, False),
    Method(dj.Kvaerno3, 3, 3, 3, True, 0, True, _THIRD, _SHORT, False),
    Method(dj.KenCarp3, 3, 3, 3, True, 0, True, _THIRD, _SHORT, False),
    Method(dj.Kvaerno4, 4, 3, 4, True, 0, True, _THIRD, _SHORT, False),
    Method(dj.KenCarp4, 4, 4, 5, True, 1, True, _THIRD, _SHORT, False),
    Method(dj.KenCarp47, 4, 4, 6, True, 1, True, _THIRD, _SHORT, False),
    Method(dj.Kvaerno5, 5, 4, 6, True, 2, True, _FIFTH, _MIDDLE, False),
    Method(dj.KenCarp5, 5, 4, 7, True, 2, True, _FIFTH, _MIDDLE, False),
    Method(dj.KenCarp58, 5, 4, 7, True, 2, True, _FIFTH, _MIDDLE, False),
]

# Multistep methods: `order` and `dense_order` are the highest. What one step or fixed steps come to
# depends on the past, so that there are no `steps` and `widths`. Their tests are in `test_bdf.py`.
BDF_METHODS = [
    Method(dj.FBDF, 5, 5, 1, False, 0, True, (), (), False),
    Method(dj.QNDF, 5, 5, 1, False, 0, True, (), (), False),
]

# Its tests are in `test_radau.py`.
RADAU = Method(dj.RadauIIA5, 5, 4, 3, False, 2, True, (12, 16, 24), _LONG, False)

BY_NAME = {method.name: method for method in [*METHODS, *ESDIRK_METHODS, *BDF_METHODS, RADAU]}

EVERY_METHOD = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
EVERY_ROSENBROCK_METHOD = pytest.mark.parametrize(
    "method", [m for m in METHODS if not m.explicit], ids=lambda m: m.name
)
EVERY_ESDIRK_METHOD = pytest.mark.parametrize("method", ESDIRK_METHODS, ids=lambda m: m.name)
EVERY_BDF_METHOD = pytest.mark.parametrize("method", BDF_METHODS, ids=lambda m: m.name)
EVERY_ADAPTIVE_METHOD = pytest.mark.parametrize(
    "method", [m for m in METHODS if m.adaptive], ids=lambda m: m.name
)
