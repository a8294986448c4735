"""What a singly diagonally implicit Runge-Kutta method is, as numbers.

Only the coefficients below the diagonal are written down: the diagonal is one number, but for a
first stage that may be explicit. Where authors give no continuous extension of the method's order,
or one that costs stages, there is one here: cubic Hermite interpolation, for methods of order four
and five with a bump that makes it of order four.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .base import DenseTableau, from_monomials

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class ESDIRKTableau:
    """An SDIRK method for M u' = f(t, u), with the stages

        M z_i = dt f(t + c_i dt, u + sum_j a_ij z_j + gamma z_i).

    **Arguments:**

    - `order`: order of the solution carried forward, `u + sum_i b_i z_i`.
    - `gamma`: the diagonal of a.
    - `a`: strictly lower triangular; row i has i entries, the first row is empty.
    - `explicit_first`: the first stage is the derivative at the start of the step.
    - `predictor`: weights of the stages before that a stage's iteration starts from, like `a`.
    - `dense`: the continuous extension, `u + sum_i b_i(theta) z_i`.
    - `b_error`: weights of the error estimate, `b - b_hat`; None for a method without one.
    - `error_order`: order of the embedded solution.
    """

    name: str
    order: int
    gamma: float
    a: Rows
    b: tuple[float, ...]
    c: tuple[float, ...]
    predictor: Rows
    dense: DenseTableau
    explicit_first: bool = True
    b_error: tuple[float, ...] | None = None
    error_order: int | None = None

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def stiffly_accurate(self) -> bool:
        """The last stage ends the step, so its derivative is the next step's first stage."""
        return self.explicit_first


def esdirk(
    name: str,
    order: int,
    gamma: Fraction | float,
    rows: Sequence[str | Sequence[float]],
    b_hat: str | Sequence[float],
    error_order: int,
    dense_order: int,
) -> ESDIRKTableau:
    """A stiffly accurate method with an explicit first stage.

    `rows` are those of a from the second on, without the diagonal; the last one is b.
    """
    a = ((), *(numbers(row) for row in rows))
    gamma = float(gamma)
    b = (*a[-1], gamma)
    c = (0.0, *(float(sum(map(Fraction, row)) + Fraction(gamma)) for row in a[1:]))
    return ESDIRKTableau(
        name=name,
        order=order,
        gamma=gamma,
        a=a,
        b=b,
        c=c,
        predictor=extrapolation(c),
        dense=hermite_extension(a, b, c, gamma, dense_order),
        b_error=tuple(x - y for x, y in zip(b, numbers(b_hat), strict=True)),
        error_order=error_order,
    )


def numbers(row: str | Sequence[float]) -> tuple[float, ...]:
    """Numbers and fractions, as they are published."""
    return tuple(float(Fraction(x)) for x in (row.split() if isinstance(row, str) else row))


def extrapolation(c: Sequence[float]) -> Rows:
    """For each stage the derivative extrapolated from the stages before it, of degree one.

    Of all weights that are exact for linear functions of time those with the least sum of squares:
    they pass on the least of the error that stiff components leave in the stages.
    """
    rows: list[tuple[float, ...]] = [()]
    for i in range(1, len(c)):
        powers = np.vander(c[:i], 2, increasing=True).T
        weights = np.linalg.lstsq(powers, np.array([1.0, c[i]]), rcond=1e-9)[0]
        if i == 1:
            weights = np.ones(1)
        rows.append(tuple(float(w) for w in weights))
    return tuple(rows)


def hermite_extension(
    a: Rows, b: Sequence[float], c: Sequence[float], gamma: float, order: int
) -> DenseTableau:
    """Cubic Hermite interpolation plus theta^2 (1 - theta)^2 sum_i d_i z_i.

    The first stage is the derivative at the start, the last one that at the end. Hermite's error
    begins with theta^2 (1 - theta)^2 dt^4 u''''/24, which for order four the d_i have to give. For
    methods of stage order two that means, besides the sums with 1, c and c^2 being zero,

        sum d c^3 = 1/4,    sum d a c^2 = 1/12.

    In the stiff limit z = a^-1 (Y - u), with stages Y on the solution; an extension that is exact
    there for cubics has sum d a^-1 c^3 = 0 (over the implicit stages). It is met as well as the
    number of stages allows, and of all solutions the smallest is taken.
    """
    zero = Fraction(0)
    weights = [[zero, 3 * Fraction(w), -2 * Fraction(w)] for w in b]
    for stage, polynomial in ((0, (1, -2, 1)), (-1, (0, -1, 1))):
        weights[stage] = [w + q for w, q in zip(weights[stage], polynomial, strict=True)]
    if order == 4:
        bump = [Fraction(d) for d in _bump(a, np.array(c), gamma)]
        weights = [[w[0], w[1] + d, w[2] - 2 * d, d] for w, d in zip(weights, bump, strict=True)]
    return DenseTableau(order, from_monomials(*weights))


def _bump(a: Rows, c: np.ndarray, gamma: float) -> np.ndarray:
    s = len(c)
    full = np.diag([0.0] + [gamma] * (s - 1))
    for i, row in enumerate(a):
        full[i, :i] = row
    stiff = np.concatenate([[0.0], np.linalg.solve(full[1:, 1:], c[1:] ** 3)])
    conditions = np.array([np.ones(s), c, c**2, c**3, full @ c**2])
    targets = np.array([0.0, 0.0, 0.0, 1 / 4, 1 / 12])
    both = np.vstack([conditions, stiff])
    if np.linalg.matrix_rank(both, 1e-6) > np.linalg.matrix_rank(conditions, 1e-6):
        conditions, targets = both, np.append(targets, 0.0)
    return np.linalg.lstsq(conditions, targets, rcond=1e-9)[0]
