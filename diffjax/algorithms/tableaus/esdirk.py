"""What a singly diagonally implicit Runge-Kutta method is, as numbers.

Only the coefficients below the diagonal are written down: the diagonal is one number, but for a
first stage that may be explicit. The continuous extensions are derived here, from conditions that
those of the literature do not all meet (`stiff_extension`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .base import DenseTableau, from_monomials
from .fitting import Condition, Equations, fitted, least

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
    - `caution`: how much smaller than tolerated the error of a step must be, since the errors of
        many steps add up.
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
    caution: float = 1.0

    @property
    def stages(self) -> int:
        return len(self.b)


def esdirk(
    name: str,
    order: int,
    gamma: Fraction | float,
    rows: Sequence[str | Sequence[float]],
    b_hat: str | Sequence[float],
    error_order: int,
    dense_order: int,
    *,
    stiff_cubics: bool = False,
    nodes: Sequence[float] = (),
    caution: float = 1.0,
) -> ESDIRKTableau:
    """A stiffly accurate method with an explicit first stage.

    `rows` are those of a from the second on, without the diagonal; the last one is b. For
    `dense_order`, `stiff_cubics` and `nodes` see `stiff_extension`.
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
        dense=stiff_extension(a, b, c, gamma, dense_order, stiff_cubics=stiff_cubics, nodes=nodes),
        b_error=tuple(x - y for x, y in zip(b, numbers(b_hat), strict=True)),
        error_order=error_order,
        caution=caution,
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


def stiff_extension(
    a: Rows,
    b: Sequence[float],
    c: Sequence[float],
    gamma: float,
    order: int,
    *,
    stiff_cubics: bool,
    nodes: Sequence[float] = (),
) -> DenseTableau:
    """An extension of order 2 to 4 that stays bounded for stiff components, and ends on `b`.

    Weights `b_i(theta)` that are polynomials of degree `order` have to meet, for methods of stage
    order two, the conditions sum b c^k = theta^(k+1)/(k+1), and sum b a c^2 = theta^4/12.

    In the stiff limit the implicit stages are z = a^-1 (Y - u - a_1 z_1), with a over the implicit
    stages and a_1 its first column, and z_1 = dt lambda u is unbounded: its weight in all has to
    vanish, b_1 = sum b a^-1 a_1, which Hermite interpolation does not meet. An extension that is
    exact there for cubics meets sum b a^-1 c^3 = theta^3 as well (`stiff_cubics`, for methods
    with stages enough). Of all solutions the smallest is taken.

    Stages at further `nodes` leave freedom to meet the conditions of order 5 nearly, by polynomials
    of degree `order` + 1; in the stiff limit those for quartics.
    """
    s = len(c)
    full = np.diag([0.0] + [gamma] * (s - 1))
    for i, row in enumerate(a):
        full[i, :i] = row
    extra = []
    for node in nodes:
        extra.append(_extra_row(full, gamma, node))
        full = np.block([[full, np.zeros((len(full), 1))], [extra[-1], gamma]])
    weights = fitted(
        _conditions(full, order, stiff_cubics),
        np.concatenate([b, np.zeros(len(nodes))]),
        order + (1 if nodes else 0),
        _wanted(full) if nodes else (),
    )
    return DenseTableau(
        order,
        from_monomials(*([Fraction(w) for w in row] for row in weights)),
        a_extra=tuple(tuple(float(x) for x in row) for row in extra),
        c_extra=tuple(nodes),
        gamma_extra=gamma if nodes else 0.0,
    )


def _conditions(full: np.ndarray, order: int, stiff_cubics: bool) -> list[Condition]:
    """What the weights of an extension have to meet."""
    c, inverse = full.sum(axis=1), np.linalg.inv(full[1:, 1:])
    conditions = [(c ** (k - 1), k, 1 / k) for k in range(1, order + 1)]
    conditions.append((np.concatenate([[-1.0], inverse @ full[1:, 0]]), 0, 0.0))
    if order == 4:
        conditions.append((full @ c**2, 4, 1 / 12))
    if stiff_cubics:
        conditions.append((np.concatenate([[0.0], inverse @ c[1:] ** 3]), 3, 1.0))
    return conditions


def _fifth(full: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """The conditions of order 5 that are left to methods of stage order two."""
    c = full.sum(axis=1)
    squares = full @ c**2
    return [(c**4, 1 / 5), (full @ c**3, 1 / 20), (full @ squares, 1 / 60), (c * squares, 1 / 15)]


def _wanted(full: np.ndarray) -> list[Condition]:
    """What the weights of an extension of order 4 are to meet nearly: those of order 5 and, a tenth
    as much, in the stiff limit those of quartics, also of states that are off by squares."""
    c, inverse = full.sum(axis=1), np.linalg.inv(full[1:, 1:])
    quartics = [(c**4, 1.0), (c * (full @ c**2), 1 / 3)]
    stiff = [(np.concatenate([[0.0], inverse @ x[1:]]), value) for x, value in quartics]
    return [(x, 5, value) for x, value in _fifth(full)] + [(x / 10, 4, v / 10) for x, v in stiff]


def _extra_row(full: np.ndarray, gamma: float, node: float) -> np.ndarray:
    """The row of an implicit stage of order 4 that meets the conditions of order 5 nearly."""
    c = full.sum(axis=1)
    exact = [(c ** (k - 1), k, 1 / k) for k in range(1, 5)] + [(full @ c**2, 4, 1 / 12)]
    nearly = [(functional, 5, value) for functional, value in _fifth(full)]

    def equations(conditions: list[Condition]) -> Equations:
        # The stage is one of those that it consists of: of order k it has the value there that the
        # condition multiplied by k gives.
        values = [v * (node**k - gamma * k * node ** (k - 1)) for _, k, v in conditions]
        return np.array([x for x, _, _ in conditions]), np.array(values)

    return least(*equations(exact), equations(nearly))
