"""The Radau IIA method of order 5, and the transformation that makes its stages cheap.

Source: Hairer, Wanner, Solving ODEs II, section IV.8: table IV.5.6 (nodes and matrix), equations
(8.4) and (8.7) (the transformation, whose digits are those of the authors' subroutine RADAU5), and
(8.16) (the error estimate).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .base import DenseTableau, from_monomials
from .fitting import fitted, least

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class RadauTableau:
    """A collocation method of three stages for M u' = f(t, u), with nodes c and c_3 = 1.

    The unknowns are z_i, the polynomial of degree 3 through (0, 0) and all (c_i, z_i) being the
    solution minus u. Its derivatives are `slopes` times z over dt at the nodes, where `slopes` is
    the inverse of a, and `initial_slope` times z over dt at the start.

    **Arguments:**

    - `extrapolation`: coefficients of theta, theta^2 and theta^3 in that polynomial.
    - `from_modes`, `to_modes`: T and its inverse, with T^-1 a^-1 T of the form
        [[gamma, 0, 0], [0, alpha, -beta], [0, beta, alpha]].
    - `shift`, `complex_shift`: gamma and alpha + i beta.
    - `dense`: the extension by z_1, z_2, z_3, the error estimate, and stages for output alone.
    """

    name: str
    order: int
    error_order: int
    c: tuple[float, ...]
    slopes: Rows
    initial_slope: tuple[float, ...]
    extrapolation: Rows
    from_modes: Rows
    to_modes: Rows
    shift: float
    complex_shift: complex
    dense: DenseTableau


def _rows(matrix: np.ndarray) -> Rows:
    return tuple(tuple(float(x) for x in row) for row in matrix)


def _collocation(c: Sequence[float]) -> np.ndarray:
    """Row k has the coefficients of theta^(k + 1) in the polynomial, by the stages."""
    nodes = np.array([0.0, *c])
    return np.linalg.inv(np.vander(nodes, increasing=True))[1:, 1:]


def _extension(
    a: np.ndarray, c: np.ndarray, initial_slope: np.ndarray, shift: float
) -> DenseTableau:
    """An extension of order 4 by the stages, the error estimate and two stages for output alone.

    The estimate is dt/gamma times the defect of the stages' polynomial at the start of the step,
    damped in stiff components. With it a stage of order 4 can be had at any node. A second one
    meets the conditions of order 5 nearly, and so do polynomials of degree 5 by all of them, which
    are exact for quartics in the stiff limit: there the stages are, and the estimate vanishes.

    For stage order 3, conditions are those of u' = k t^(k-1), with k up to 5, and that of a u' that
    is itself such a solution with k = 4. The nodes are those that err least on HIRES and
    Robertson's reactions, of some twenty pairs; the diagonal is that of the real matrix.
    """
    gamma, nodes = 1 / shift, (0.3, 0.75)

    def known(slopes: np.ndarray, at_start: float) -> np.ndarray:
        """Stages and estimate for derivatives as given at the nodes and the start."""
        z = a @ slopes
        return np.append(z, (at_start - initial_slope @ z) / shift)

    powers = {k: known(k * c ** (k - 1), float(k == 1)) for k in range(1, 6)}
    chain, stiff = known(powers[4][:3], powers[4][3]), np.append(c**4, 0.0)
    extra = []
    for node in nodes:
        # Where the solution is t^k, the stage has its value but for gamma times its derivative.
        values = {k: node**k - gamma * k * node ** (k - 1) for k in powers}
        row = least(
            np.array([powers[k] for k in range(1, 5)]),
            np.array([values[k] for k in range(1, 5)]),
            (
                np.array([powers[5] / 5, chain / 4]),
                np.array([values[5] / 5, (node**5 / 5 - gamma * node**4) / 4]),
            ),
        )
        extra.append(tuple(float(x) for x in row))
        powers = {k: np.append(x, k * node ** (k - 1)) for k, x in powers.items()}
        chain = np.append(chain, node**4)
        stiff = np.append(stiff, (node**4 - row @ stiff) / gamma)
    weights = fitted(
        [*((powers[k], k, 1.0) for k in range(1, 5)), (stiff, 4, 1.0)],
        np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
        5,
        [(powers[5] / 5, 5, 1 / 5), (chain / 4, 5, 1 / 20)],
    )
    rows = from_monomials(*([Fraction(x) for x in row] for row in weights))
    return DenseTableau(4, rows, tuple(extra), nodes, gamma)


_ROOT = 6.0**0.5
_NODES = ((4 - _ROOT) / 10, (4 + _ROOT) / 10, 1.0)
_A = np.array(
    [
        [(88 - 7 * _ROOT) / 360, (296 - 169 * _ROOT) / 1800, (-2 + 3 * _ROOT) / 225],
        [(296 + 169 * _ROOT) / 1800, (88 + 7 * _ROOT) / 360, (-2 - 3 * _ROOT) / 225],
        [(16 - _ROOT) / 36, (16 + _ROOT) / 36, 1 / 9],
    ]
)
_SHIFT = 3 + 3 ** (2 / 3) - 3 ** (1 / 3)

RADAU_IIA_5 = RadauTableau(
    name="RadauIIA5",
    order=5,
    error_order=3,
    c=_NODES,
    slopes=_rows(np.linalg.inv(_A)),
    initial_slope=tuple(float(x) for x in _collocation(_NODES)[0]),
    extrapolation=_rows(_collocation(_NODES)),
    from_modes=(
        (9.1232394870892942792e-02, -0.14125529502095420843, -3.0029194105147424492e-02),
        (0.24171793270710701896, 0.20412935229379993199, 0.38294211275726193779),
        (0.96604818261509293619, 1.0, 0.0),
    ),
    to_modes=(
        (4.3255798900631553510, 0.33919925181580986954, 0.54177053993587487119),
        (-4.1787185915519047273, -0.32768282076106238708, 0.47662355450055045196),
        (-0.50287263494578687595, 2.5719269498556054292, -0.59603920482822492497),
    ),
    shift=_SHIFT,
    complex_shift=complex(3 + (3 ** (1 / 3) - 3 ** (2 / 3)) / 2, (3 ** (5 / 6) + 3 ** (7 / 6)) / 2),
    dense=_extension(_A, np.array(_NODES), _collocation(_NODES)[0], _SHIFT),
)
