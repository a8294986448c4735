"""Every tableau against the theory it claims: order conditions, extension, stability interval.

The conditions are those of Butcher, one a rooted tree (Hairer, Norsett, Wanner, Solving Ordinary
Differential Equations I, theorem II.2.13): sum_i b_i Phi_i(t) = 1 / gamma(t).
"""

from collections import Counter
from functools import cache
from itertools import combinations_with_replacement
from math import factorial

import numpy as np
import pytest
from numpy.polynomial.chebyshev import chebvander

from diffjax.algorithms.tableaus.base import ButcherTableau
from diffjax.algorithms.tableaus.bogacki_shampine import BS3, BS5
from diffjax.algorithms.tableaus.dop853 import DP8
from diffjax.algorithms.tableaus.dormand_prince import DP5
from diffjax.algorithms.tableaus.low_order import EULER, HEUN, MIDPOINT, RALSTON, RK4
from diffjax.algorithms.tableaus.ssp import SSPRK33, SSPRK43
from diffjax.algorithms.tableaus.tsitouras import TSIT5
from diffjax.algorithms.tableaus.verner6 import VERN6
from diffjax.algorithms.tableaus.verner7 import VERN7
from diffjax.algorithms.tableaus.verner8 import VERN8
from diffjax.algorithms.tableaus.verner9 import VERN9

# Columns: tableau, name, order, error_order, order of b_error_low, dense.order, stages, extra
# stages, fsal, stability. The lengths of stability intervals come from the literature where it
# states them, with the digits it gives, else from the real roots of R(z) = 1 and R(z) = -1.
TABLE = [
    (EULER, "Euler", 1, None, None, 1, 1, 0, False, 2.0),
    (HEUN, "Heun", 2, 1, None, 2, 2, 1, False, 2.0),
    (MIDPOINT, "Midpoint", 2, 1, None, 2, 2, 1, False, 2.0),
    (RALSTON, "Ralston", 2, 1, None, 2, 2, 1, False, 2.0),
    (RK4, "RK4", 4, None, None, 3, 4, 1, False, 2.7853),
    (SSPRK33, "SSPRK33", 3, None, None, 3, 3, 1, False, 2.5127),
    (SSPRK43, "SSPRK43", 3, 2, None, 3, 4, 1, False, 5.1495),
    (BS3, "BS3", 3, 2, None, 3, 4, 0, True, 2.5127),
    (BS5, "BS5", 5, 4, None, 5, 8, 3, True, 3.9879),
    (DP5, "DP5", 5, 4, None, 4, 7, 0, True, 3.3066),
    (TSIT5, "Tsit5", 5, 4, None, 4, 7, 0, True, 3.5068),
    (VERN6, "Vern6", 6, 5, None, 6, 9, 3, True, 4.8553),
    (VERN7, "Vern7", 7, 6, None, 6, 10, 6, False, 4.64),
    (VERN8, "Vern8", 8, 7, None, 8, 13, 11, False, 5.8641),
    (VERN9, "Vern9", 9, 8, None, 9, 16, 10, False, 4.4762),
    (DP8, "DP8", 8, 5, 3, 7, 13, 3, True, 6.3937),
]
TABLEAUS = pytest.mark.parametrize("tableau", [pytest.param(r[0], id=r[1]) for r in TABLE])

EPS = np.finfo(float).eps
# Conditions that do not hold are violated by far more than this in every tableau: the smallest
# violation that decides a test is 2e-7 (extension of Vern7). Conditions that hold do so within
# 1e-10 (Vern6, where large entries of the stage matrix cancel) and otherwise within 1e-12.
VIOLATED = 1e-9

# A rooted tree is the tuple of the trees that hang from its root.
Tree = tuple


@cache
def trees(order: int) -> tuple[Tree, ...]:
    return forests(order - 1, order - 1)


@cache
def forests(order: int, largest: int) -> tuple[tuple[Tree, ...], ...]:
    """All multisets of trees with `order` vertices in all, none of more than `largest`."""
    if order == 0:
        return ((),)
    return tuple(
        some + rest
        for size in range(min(order, largest), 0, -1)
        for number in range(1, order // size + 1)
        for some in combinations_with_replacement(trees(size), number)
        for rest in forests(order - size * number, size - 1)
    )


def vertices(tree: Tree) -> int:
    return 1 + sum(map(vertices, tree))


def density(tree: Tree) -> int:
    """gamma(t)."""
    value = vertices(tree)
    for child in tree:
        value *= density(child)
    return value


def symmetry(tree: Tree) -> int:
    """sigma(t)."""
    value = 1
    for child, times in Counter(tree).items():
        value *= symmetry(child) ** times * factorial(times)
    return value


class Conditions:
    """Order conditions of a stage matrix, each with a bound on what round-off may do to it.

    Coefficients are numbers rounded to doubles, so a condition holds only up to the effect of
    these roundings. How large that is varies by seven digits among the methods, hence a bound that
    follows the elementary weights instead of one tolerance: a relative change of EPS in every
    coefficient, to first order, and without hope for cancellation between changes. Rounding to
    nearest is half of EPS; the other half is for the arithmetic of the test.
    """

    def __init__(self, tableau: ButcherTableau) -> None:
        stages = tableau.stages + len(tableau.dense.c_extra)
        self.matrix = np.zeros((stages, stages))
        for i, row in enumerate((*tableau.a, *tableau.dense.a_extra)):
            self.matrix[i, :i] = row  # raises if a row has not i entries
        self._weights: dict[Tree, tuple[np.ndarray, np.ndarray]] = {}

    def pad(self, weights: tuple[float, ...]) -> np.ndarray:
        return np.pad(np.array(weights), (0, len(self.matrix) - len(weights)))

    def elementary(self, tree: Tree) -> tuple[np.ndarray, np.ndarray]:
        """Phi_i(t) and the bound on its error."""
        if tree not in self._weights:
            value, error = np.ones(len(self.matrix)), np.zeros(len(self.matrix))
            for child in tree:
                phi, phi_error = self.elementary(child)
                factor = self.matrix @ phi
                factor_error = np.abs(self.matrix) @ (phi_error + EPS * np.abs(phi))
                error = np.abs(value) * factor_error + error * np.abs(factor)
                value = value * factor
            self._weights[tree] = value, error
        return self._weights[tree]

    def residuals(
        self, weights: np.ndarray, order: int, theta: float = 1.0, size: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Residuals of all conditions of one order, and the bounds on what is round-off in them.

        `size` bounds the numbers that `weights` is a sum of, where it is one.
        """
        size = np.abs(weights) if size is None else size
        residuals, bounds = [], []
        for tree in trees(order):
            phi, error = self.elementary(tree)
            exact = theta**order / density(tree)
            residuals.append(abs(weights @ phi - exact))
            # The right-hand side itself is rounded too: EPS * exact.
            bounds.append(np.abs(weights) @ error + EPS * (size @ np.abs(phi) + exact))
        return np.array(residuals), np.array(bounds)

    def check_order(
        self, weights: np.ndarray, order: int, theta: float = 1.0, size: np.ndarray | None = None
    ) -> None:
        for p in range(1, order + 1):
            residuals, bounds = self.residuals(weights, p, theta, size)
            assert np.all(residuals <= bounds), (p, theta, np.max(residuals / bounds))
            assert np.max(bounds) < VIOLATED  # else the comparison above proves nothing

    def check_exact_order(self, weights: np.ndarray, order: int) -> None:
        self.check_order(weights, order)
        assert np.max(self.residuals(weights, order + 1)[0]) > VIOLATED


def extension(tableau: ButcherTableau, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """b_i(theta), and bounds on the sums of the sizes of their terms."""
    weights = np.array(tableau.dense.weights)
    basis = theta * chebvander(2 * theta - 1, weights.shape[1] - 1)[0]
    return weights @ basis, theta * np.abs(weights).sum(axis=1)


def slopes(tableau: ButcherTableau) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """b_i'(0), b_i'(1), and bounds on the sums of the sizes of the terms of the latter."""
    weights = np.array(tableau.dense.weights)
    m = np.arange(weights.shape[1])
    # From T_m(+-1) = (+-1)^m and T_m'(1) = m^2.
    return weights @ (-1.0) ** m, weights @ (1 + 2 * m**2), np.abs(weights) @ (1 + 2 * m**2)


def test_tree_counts() -> None:
    # The numbers of rooted trees, HNW I, table II.2.3: were trees missing, so were conditions.
    assert [len(trees(n)) for n in range(1, 11)] == [1, 1, 2, 4, 9, 20, 48, 115, 286, 719]
    assert len(set(trees(9))) == 286
    assert all(vertices(t) == 9 for t in trees(9))


@pytest.mark.parametrize("row", TABLE, ids=[r[1] for r in TABLE])
def test_claims(row: tuple) -> None:
    tableau, name, order, error_order, low_order, dense_order, stages, extra, fsal, stability = row
    assert (tableau.name, tableau.order, tableau.stages) == (name, order, stages)
    assert tableau.error_order == error_order
    assert (tableau.b_error is None) == (error_order is None)
    assert (tableau.b_error_low is None) == (low_order is None)
    assert (tableau.dense.order, len(tableau.dense.c_extra)) == (dense_order, extra)
    assert tableau.fsal is fsal
    assert tableau.stability == stability


@TABLEAUS
def test_shapes(tableau: ButcherTableau) -> None:
    stages, dense = tableau.stages, tableau.dense
    assert [len(row) for row in tableau.a] == list(range(stages))
    assert len(tableau.c) == stages
    assert tableau.c[0] == 0.0
    assert [len(r) for r in dense.a_extra] == [stages + j for j in range(len(dense.c_extra))]
    assert len(dense.weights) == stages + len(dense.c_extra)
    assert len({len(w) for w in dense.weights}) == 1
    assert np.all(np.any(np.array(dense.weights) != 0, axis=0))  # the engine relies on it
    for estimate in (tableau.b_error, tableau.b_error_low):
        assert estimate is None or len(estimate) == stages
    numbers = [*tableau.b, *tableau.c, *dense.c_extra, *(tableau.b_error or ())]
    for row in (*tableau.a, *dense.a_extra, *dense.weights):
        numbers.extend(row)
    assert all(type(x) is float for x in numbers)  # an int would change types when traced


@TABLEAUS
def test_row_sums(tableau: ButcherTableau) -> None:
    nodes = np.array(tableau.c + tableau.dense.c_extra)
    matrix = Conditions(tableau).matrix
    # Every entry, the node and the sum are rounded.
    bounds = EPS * (np.abs(matrix).sum(axis=1) + nodes)
    assert np.all(np.abs(matrix.sum(axis=1) - nodes) <= bounds)


@TABLEAUS
def test_order(tableau: ButcherTableau) -> None:
    conditions = Conditions(tableau)
    conditions.check_exact_order(conditions.pad(tableau.b), tableau.order)


@pytest.mark.parametrize(
    ("tableau", "estimate", "order"),
    [pytest.param(r[0], r[0].b_error, r[3], id=r[1]) for r in TABLE if r[3] is not None]
    + [pytest.param(r[0], r[0].b_error_low, r[4], id=r[1] + "-low") for r in TABLE if r[4]],
)
def test_error_order(tableau: ButcherTableau, estimate: tuple[float, ...], order: int) -> None:
    conditions = Conditions(tableau)
    b, error = conditions.pad(tableau.b), conditions.pad(estimate)
    conditions.check_order(b - error, order, size=np.abs(b) + np.abs(error))
    assert np.max(conditions.residuals(b - error, order + 1)[0]) > VIOLATED


@TABLEAUS
def test_dense_ends(tableau: ButcherTableau) -> None:
    conditions = Conditions(tableau)
    # A factor theta by construction: b_i(0) = 0. At the other end it is the solution itself.
    value, size = extension(tableau, 1.0)
    b = conditions.pad(tableau.b)
    assert np.all(np.abs(value - b) <= EPS * (size + np.abs(b)))
    # That bound is loose where large coefficients cancel, as they do in the powers of theta that
    # authors publish (1e6): these weights are not to be much larger than those of the solution.
    assert np.max(np.abs(value - b)) <= 1e-15 * max(1.0, np.max(np.abs(b)))
    # The slope is the solution's at both ends: continuously differentiable across steps. Only the
    # straight line of Euler's method, which has no derivative at the end, is not.
    at_start, at_end, end_size = slopes(tableau)
    unit = np.eye(len(b))
    assert np.all(np.abs(at_start - unit[0]) <= EPS * (size + 1))
    if tableau.name != "Euler":
        end = [i for i in range(len(b)) if np.array_equal(conditions.matrix[i], b)]
        assert len(end) == 1
        assert np.all(np.abs(at_end - unit[end[0]]) <= EPS * (end_size + 1))


@TABLEAUS
def test_dense_order(tableau: ButcherTableau) -> None:
    conditions = Conditions(tableau)
    order = tableau.dense.order
    thetas = (0.1, 0.25, 0.5, 0.7, 0.9, 1.0)
    for theta in thetas:
        weights, size = extension(tableau, theta)
        conditions.check_order(weights, order, theta, size)
    # Between the ends one condition of the next order fails.
    weights, _ = extension(tableau, 0.7)
    assert np.max(conditions.residuals(weights, order + 1, 0.7)[0]) > VIOLATED


def test_extension_as_accurate_as_the_method() -> None:
    """The extension of Vern8 by its next order, for all problems and for linear ones (A^8 b)."""
    conditions = Conditions(VERN8)
    linear = next(i for i, tree in enumerate(trees(9)) if density(tree) == factorial(9))

    def errors(theta: float) -> tuple[float, float]:
        residuals, _ = conditions.residuals(extension(VERN8, theta)[0], 9, theta)
        return float(np.linalg.norm(residuals / [symmetry(t) for t in trees(9)])), residuals[linear]

    # Without its last three stages 14 and 31 times.
    everywhere = np.max([errors(theta) for theta in np.linspace(0.05, 1.0, 20)], axis=0)
    assert np.all(everywhere <= np.multiply((1.8, 1.5), errors(1.0)))


@TABLEAUS
def test_fsal(tableau: ButcherTableau) -> None:
    is_last_row = tableau.a[-1] == tableau.b[:-1] and tableau.b[-1] == 0.0
    assert tableau.fsal == (is_last_row and tableau.c[-1] == 1.0)


@TABLEAUS
def test_stability_interval(tableau: ButcherTableau) -> None:
    matrix = Conditions(tableau).matrix[: tableau.stages, : tableau.stages]
    # R(z) = 1 + z sum_k z^k b A^k 1, Hairer, Wanner, Solving Ordinary Differential Equations II,
    # section IV.2.
    coefficients, power = [1.0], np.ones(tableau.stages)
    for _ in range(tableau.stages):
        coefficients.append(float(np.array(tableau.b) @ power))
        power = matrix @ power
    amplification = np.polynomial.Polynomial(coefficients)
    assert tableau.stability is not None
    inside = np.linspace(0.0, tableau.stability, 2001)
    assert np.all(np.abs(amplification(-inside)) <= 1 + 1e-3)
    assert np.all(np.abs(amplification(-inside[:-5])) <= 1 + 1e-9)
    # Four digits are stated: past the next unit of the fourth decimal it grows.
    assert abs(amplification(-tableau.stability - 2e-4)) > 1.0
