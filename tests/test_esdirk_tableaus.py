"""Every SDIRK tableau against the theory: order conditions, extension, stability.

Conditions as in HW II, section IV.6; stability functions as in section IV.3.
"""

import numpy as np
import pytest
from numpy.polynomial.chebyshev import chebvander

from diffjax.algorithms import tableaus
from diffjax.algorithms.tableaus.esdirk import ESDIRKTableau
from tests.test_tableaus import Tree, density, trees

PAIRS = [
    tableaus.IMPLICIT_EULER,
    tableaus.TRBDF2,
    tableaus.KVAERNO3,
    tableaus.KVAERNO4,
    tableaus.KVAERNO5,
    tableaus.KENCARP3,
    tableaus.KENCARP4,
    tableaus.KENCARP47,
    tableaus.KENCARP5,
    tableaus.KENCARP58,
]
ALL = [tableaus.IMPLICIT_MIDPOINT, tableaus.TRAPEZOID, *PAIRS]
TABLEAUS = pytest.mark.parametrize("tableau", ALL, ids=lambda t: t.name)
EMBEDDED = pytest.mark.parametrize("tableau", PAIRS, ids=lambda t: t.name)

# Coefficients of order one to ten, published with 16 digits or as fractions that are rounded there.
MET = 1e-13
VIOLATED = 1e-6


def matrix(tableau: ESDIRKTableau) -> np.ndarray:
    s = tableau.stages
    a = np.diag([tableau.gamma] * s)
    if tableau.explicit_first:
        a[0, 0] = 0.0
    for i, row in enumerate(tableau.a):
        a[i, :i] = row
    return a


def extended(tableau: ESDIRKTableau) -> np.ndarray:
    """With the extra stages of the extension."""
    s, extra = tableau.stages, tableau.dense.a_extra
    full = np.diag([0.0] * s + [tableau.dense.gamma_extra] * len(extra))
    full[:s, :s] = matrix(tableau)
    for i, row in enumerate(extra):
        full[s + i, : len(row)] = row
    return full


def elementary(a: np.ndarray, tree: Tree) -> np.ndarray:
    value = np.ones(len(a))
    for child in tree:
        value = value * (a @ elementary(a, child))
    return value


def residual(a: np.ndarray, b: np.ndarray, order: int, theta: float = 1.0) -> float:
    """The largest residual of the conditions of one order."""
    return max(abs(b @ elementary(a, t) - theta**order / density(t)) for t in trees(order))


@TABLEAUS
def test_shapes(tableau: ESDIRKTableau) -> None:
    s = tableau.stages
    for rows in (tableau.a, tableau.predictor):
        assert [len(row) for row in rows] == list(range(s))
    numbers = [*tableau.b, *tableau.c, *(tableau.b_error or ()), tableau.gamma]
    for row in (*tableau.a, *tableau.predictor, *tableau.dense.weights):
        numbers.extend(row)
    assert all(type(x) is float for x in numbers)  # an int would change types when traced


@TABLEAUS
def test_row_sums(tableau: ESDIRKTableau) -> None:
    np.testing.assert_allclose(matrix(tableau).sum(axis=1), tableau.c, rtol=0, atol=MET)


@TABLEAUS
def test_order(tableau: ESDIRKTableau) -> None:
    """Exactly the order it says."""
    a, b = matrix(tableau), np.array(tableau.b)
    for p in range(1, tableau.order + 1):
        assert residual(a, b, p) < MET, p
    assert residual(a, b, tableau.order + 1) > VIOLATED


@EMBEDDED
def test_error_order(tableau: ESDIRKTableau) -> None:
    """The estimate of ImplicitEuler and TRBDF2 compares with a solution an order higher."""
    a, b_error = matrix(tableau), np.array(tableau.b_error)
    assert tableau.error_order is not None
    higher = tableau.name in ("ImplicitEuler", "TRBDF2")
    embedded = np.array(tableau.b) - b_error
    for p in range(1, tableau.error_order + (2 if higher else 1)):
        assert residual(a, embedded, p) < MET, p
    # The estimate scales as dt to the power of `error_order` + 1.
    for p in range(1, tableau.error_order + 1):
        assert max(abs(b_error @ elementary(a, t)) for t in trees(p)) < MET
    next_order = trees(tableau.error_order + 1)
    assert max(abs(b_error @ elementary(a, t)) for t in next_order) > VIOLATED


@TABLEAUS
def test_dense_order(tableau: ESDIRKTableau) -> None:
    weights = np.array(tableau.dense.weights)
    order, s = tableau.dense.order, tableau.stages
    full = extended(tableau)
    for theta in (0.1, 0.25, 0.5, 0.7, 0.9):
        basis = theta * chebvander(2 * theta - 1, weights.shape[1] - 1)[0]
        for p in range(1, order + 1):
            assert residual(full, weights @ basis, p, theta) < 10 * MET, (p, theta)
    assert residual(full, weights @ basis, order + 1, 0.9) > VIOLATED
    # At the end it is the solution itself.
    np.testing.assert_allclose(weights.sum(axis=1)[:s], tableau.b, rtol=0, atol=MET)
    np.testing.assert_allclose(weights.sum(axis=1)[s:], 0, rtol=0, atol=MET)


@EMBEDDED
def test_dense_is_bounded_for_stiff_components(tableau: ESDIRKTableau) -> None:
    """At every theta R(z) goes on to a limit: Hermite interpolation would grow with z."""
    a, weights = extended(tableau), np.array(tableau.dense.weights)
    ones = np.ones(len(a))
    for theta in (0.1, 0.5, 0.9):
        b = weights @ (theta * chebvander(2 * theta - 1, weights.shape[1] - 1)[0])
        for z in (-1e4, -1e8):
            value = 1 + z * b @ np.linalg.solve(np.eye(len(b)) - z * a, ones)
            assert abs(value) < 3


@TABLEAUS
def test_dense_is_tame(tableau: ESDIRKTableau) -> None:
    """Its weights stay as small as the method's own, or rounding would be seen between steps."""
    weights = np.array(tableau.dense.weights)
    theta = np.linspace(0, 1, 101)
    values = (theta[:, None] * chebvander(2 * theta - 1, weights.shape[1] - 1)) @ weights.T
    largest = max(1.0, np.abs(tableau.b).max(), np.abs(tableau.a[-1]).max() if tableau.a[-1] else 0)
    assert np.abs(values).max() < 2 * largest


@TABLEAUS
def test_stability(tableau: ESDIRKTableau) -> None:
    """A-stable, and L-stable but for the two symmetric methods, which conserve what oscillates."""
    a, b, ones = matrix(tableau), np.array(tableau.b), np.ones(tableau.stages)

    def amplification(z: complex) -> complex:
        return 1 + z * b @ np.linalg.solve(np.eye(tableau.stages) - z * a, ones)

    axis = [abs(amplification(1j * y)) for y in np.geomspace(1e-3, 1e4, 400)]
    assert max(axis) <= 1 + 1e-9
    at_infinity = 1.0 if tableau.name in ("ImplicitMidpoint", "Trapezoid") else 0.0
    assert abs(amplification(-1e9)) == pytest.approx(at_infinity, abs=1e-6)


@EMBEDDED
def test_stiff_stages(tableau: ESDIRKTableau) -> None:
    """Stage order two (one for ImplicitEuler): A c = c^2/2, what the extensions rest on."""
    a, c = matrix(tableau), np.array(tableau.c)
    order_two = np.abs(a @ c - c**2 / 2).max() < MET
    assert order_two == (tableau.name != "ImplicitEuler")
