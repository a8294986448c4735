"""Every Rosenbrock tableau against the theory: order conditions, extension, stability.

The conditions are those of HW II, section IV.7, theorem 7.4, on the coefficients before the
transformation: with G the inverse of diag(1/gamma) - C they are alpha = a G, gamma_ij = G_ij and
b = m G. A vertex with one child takes beta = alpha + gamma, one with several alpha.
"""

import numpy as np
import pytest
from numpy.polynomial.chebyshev import chebvander

from diffjax.algorithms import tableaus
from diffjax.algorithms.tableaus.rosenbrock import RosenbrockTableau
from tests.test_tableaus import Tree, density, trees

ALL = [
    tableaus.ROSENBROCK23,
    tableaus.RODAS3P,
    tableaus.RODAS4,
    tableaus.RODAS4P,
    tableaus.RODAS5,
    tableaus.RODAS5P,
]
TABLEAUS = pytest.mark.parametrize("tableau", ALL, ids=lambda t: t.name)

# Coefficients of up to 3e2 with 16 digits, summed up to eight times over, meet the conditions to
# 1e-12 or better; those that fail do so by 1e-6 or more.
MET = 2e-11
VIOLATED = 1e-6


class Conditions:
    """A tableau in the coefficients of the theory, and its order conditions; `extra` stages are
    those of the extension."""

    def __init__(self, tableau: RosenbrockTableau, extra: bool = False) -> None:
        dense = tableau.dense
        rows = [*tableau.a, *(dense.a_extra if extra else ())]
        couplings = [*tableau.C, *(dense.C_extra if extra else ())]
        s = len(rows)
        a, coupling = np.zeros((s, s)), np.zeros((s, s))
        for i in range(s):
            a[i, :i], coupling[i, :i] = rows[i], couplings[i]
        self.gamma = np.linalg.inv(np.eye(s) / tableau.gamma - coupling)
        self.alpha = a @ self.gamma
        self.beta = self.alpha + self.gamma

    def elementary(self, tree: Tree) -> np.ndarray:
        matrix = self.beta if len(tree) == 1 else self.alpha
        value = np.ones(len(matrix))
        for child in tree:
            value = value * (matrix @ self.elementary(child))
        return value

    def residual(self, m: np.ndarray, order: int, theta: float = 1.0) -> float:
        """The largest residual of the conditions of one order."""
        b = m @ self.gamma
        exact = [theta**order / density(tree) for tree in trees(order)]
        return max(
            abs(b @ self.elementary(tree) - x) for tree, x in zip(trees(order), exact, strict=True)
        )

    def check(self, m: np.ndarray, order: int, theta: float = 1.0) -> None:
        """Exactly this order."""
        for p in range(1, order + 1):
            assert self.residual(m, p, theta) < MET, (p, theta)
        assert self.residual(m, order + 1, theta) > VIOLATED


@TABLEAUS
def test_shapes(tableau: RosenbrockTableau) -> None:
    s = tableau.stages
    for rows in (tableau.a, tableau.C):
        assert [len(row) for row in rows] == list(range(s))
    for row in (tableau.b, tableau.c, tableau.d, tableau.b_error):
        assert len(row) == s
    dense = tableau.dense
    for rows in (dense.a_extra, dense.C_extra):
        assert [len(row) for row in rows] == list(range(s, len(dense.weights)))
    numbers = [*tableau.b, *tableau.c, *tableau.d, *tableau.b_error]
    for row in (*tableau.a, *tableau.C, *dense.weights, *dense.a_extra, *dense.C_extra):
        numbers.extend(row)
    assert all(type(x) is float for x in numbers)  # an int would change types when traced
    assert np.all(np.any(np.array(tableau.dense.weights) != 0, axis=0))  # the engine relies on it


@TABLEAUS
def test_row_sums(tableau: RosenbrockTableau) -> None:
    """Nodes and coefficients of the time derivative are the row sums of alpha and gamma."""
    conditions, extra = Conditions(tableau, extra=True), tableau.dense.c_extra
    nodes, derivatives = (*tableau.c, *extra), (*tableau.d, *(0.0 for _ in extra))
    np.testing.assert_allclose(conditions.alpha.sum(axis=1), nodes, rtol=0, atol=1e-12)
    np.testing.assert_allclose(conditions.gamma.sum(axis=1), derivatives, rtol=0, atol=1e-12)


@TABLEAUS
def test_order(tableau: RosenbrockTableau) -> None:
    Conditions(tableau).check(np.array(tableau.b), tableau.order)


@TABLEAUS
def test_error_order(tableau: RosenbrockTableau) -> None:
    """Rosenbrock23's estimate compares with order 3: then it is the embedded solution's."""
    conditions = Conditions(tableau)
    embedded = np.array(tableau.b) - np.array(tableau.b_error)
    order = 3 if tableau.name == "Rosenbrock23" else tableau.error_order
    for p in range(1, order + 1):
        assert conditions.residual(embedded, p) < MET
    # The estimate scales as dt to the power of `error_order` + 1.
    difference = np.array(tableau.b_error) @ conditions.gamma
    for p in range(1, tableau.error_order + 1):
        assert max(abs(difference @ conditions.elementary(t)) for t in trees(p)) < MET
    next_order = trees(tableau.error_order + 1)
    assert max(abs(difference @ conditions.elementary(t)) for t in next_order) > VIOLATED


@TABLEAUS
def test_dense_order(tableau: RosenbrockTableau) -> None:
    conditions, weights = Conditions(tableau, extra=True), np.array(tableau.dense.weights)
    for theta in (0.1, 0.25, 0.5, 0.7, 0.9):
        basis = theta * chebvander(2 * theta - 1, weights.shape[1] - 1)[0]
        for p in range(1, tableau.dense.order + 1):
            assert conditions.residual(weights @ basis, p, theta) < MET, (p, theta)
    assert conditions.residual(weights @ basis, tableau.dense.order + 1, 0.9) > VIOLATED
    # At the end it is the solution itself.
    end = (*tableau.b, *(0.0 for _ in tableau.dense.c_extra))
    np.testing.assert_allclose(weights.sum(axis=1), end, rtol=0, atol=1e-13)


@pytest.mark.parametrize("tableau", ALL[2:], ids=lambda t: t.name)
def test_dense_in_the_stiff_limit(tableau: RosenbrockTableau) -> None:
    """Fast components are those of a cubic of time where it is what drives them, linearly or
    through slow components (HW II, section VI.4)."""
    conditions, weights = Conditions(tableau, extra=True), np.array(tableau.dense.weights)
    alpha, limit = conditions.alpha, np.linalg.inv(conditions.beta)
    nodes = alpha.sum(axis=1)
    squares, cubes = limit @ nodes**2, limit @ nodes**3
    for theta in (0.1, 0.5, 0.9):
        basis = theta * chebvander(2 * theta - 1, weights.shape[1] - 1)[0]
        b = weights @ basis @ conditions.gamma
        assert abs(b @ squares - theta**2) < MET
        assert abs(b @ cubes - theta**3) < MET
        assert abs(b @ limit @ (nodes * (alpha @ squares)) - theta**3) < MET


@TABLEAUS
def test_stability(tableau: RosenbrockTableau) -> None:
    """A-stable, and R(infinity) = 0: R(z) = 1 + z b (I - z beta)^-1 1 (HW II, section IV.7)."""
    conditions = Conditions(tableau)
    b, ones = np.array(tableau.b) @ conditions.gamma, np.ones(tableau.stages)

    def amplification(z: complex) -> complex:
        return 1 + z * b @ np.linalg.solve(np.eye(tableau.stages) - z * conditions.beta, ones)

    axis = [abs(amplification(1j * y)) for y in np.geomspace(1e-3, 1e4, 400)]
    assert max(axis) <= 1 + 1e-9
    assert abs(amplification(-1e12)) < 1e-6
