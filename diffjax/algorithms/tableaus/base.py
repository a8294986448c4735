"""What a Runge-Kutta method is, as numbers.

A tableau is data: adding a method means writing one down, exporting it and adding a row to the
test table. Every continuous extension is kept in one form, weights `b_i(theta)` that are
polynomials without constant term, so that one engine evaluates, differentiates and transposes
all of them: it is linear in the stages.

The polynomials are `theta` times a sum of Chebyshev polynomials. Authors publish coefficients of
powers of theta, and these reach 1e6 for methods of high order, where the sums they cancel to are
of order one: rounded to doubles they lose up to nine digits. Chebyshev coefficients of a polynomial
are no larger than twice its values on the step, so they lose none. The factor `theta` makes the
start of the step come out exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb


@dataclass(frozen=True, eq=False)
class DenseTableau:
    """A continuous extension `u(t + theta*dt) = u + dt * sum_i b_i(theta) k_i`.

    **Arguments:**

    - `order`: order q of the extension; its values are accurate to O(dt^(q+1)) locally.
    - `weights`: one tuple a stage (the method's own stages, then the extra ones);
        `b_i(theta) = theta * sum_m weights[i][m] * T_m(2*theta - 1)`, with T_m the Chebyshev
        polynomials. `from_monomials` finds them from coefficients of powers.
    - `a_extra`, `c_extra`: stages that only the extension needs, computed only where output asks
        for them. Row j of `a_extra` has `stages + j` entries.
    - `gamma_extra`: the diagonal of these stages; where it is not zero they are implicit.
    - `C_extra`: of stages of a Rosenbrock method the rows of C (`RosenbrockTableau`); d is zero.
    """

    order: int
    weights: tuple[tuple[float, ...], ...]
    a_extra: tuple[tuple[float, ...], ...] = ()
    c_extra: tuple[float, ...] = ()
    gamma_extra: float = 0.0
    C_extra: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class ButcherTableau:
    """An explicit Runge-Kutta method.

    **Arguments:**

    - `order`: order of the solution carried forward (`b`).
    - `a`: strictly lower triangular; row i has i entries, the first row is empty.
    - `b`, `c`: weights and nodes.
    - `b_error`: weights of the error estimate, `b - b_hat`; None for a method without one.
    - `error_order`: order of the embedded solution `b_hat`.
    - `fsal`: the last stage is the derivative at the end of the step (first same as last).
    - `stability`: length of the stability interval on the negative real axis.
    - `b_error_low`: a second, lower-order estimate, for the combined norm of DOP853
        (Hairer, Norsett, Wanner, Solving ODEs I, section II.10, p. 254).
    - `dense`: the continuous extension.
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    dense: DenseTableau
    b_error: tuple[float, ...] | None = None
    error_order: int | None = None
    fsal: bool = False
    stability: float | None = None
    b_error_low: tuple[float, ...] | None = None

    @property
    def stages(self) -> int:
        return len(self.b)


def from_monomials(*rows: str | Sequence[Fraction]) -> tuple[tuple[float, ...], ...]:
    """The `weights` of an extension from coefficients of theta, theta^2, ... for every stage.

    A row is a string of numbers and fractions, as they are published, or a sequence of fractions:
    the conversion is exact, and rounds once at the end.
    """
    converted = []
    for row in rows:
        monomials = [Fraction(w) for w in (row.split() if isinstance(row, str) else row)]
        weights = [Fraction(0)] * len(monomials)
        # With theta = cos(phi)^2, T_k(2 theta - 1) = cos(2 k phi), and the powers of a cosine are
        # theta^m = 4^-m [binom(2m, m) + 2 sum_{k>0} binom(2m, m-k) cos(2 k phi)].
        for m, w in enumerate(monomials):
            for k in range(m + 1):
                weights[k] += w * Fraction((2 if k else 1) * comb(2 * m, m - k), 4**m)
        converted.append(tuple(float(w) for w in weights))
    return tuple(converted)


def hermite(b: tuple[float, ...], *, fsal: bool, order: int = 3) -> DenseTableau:
    """The cubic Hermite extension of a method with weights `b` (HNW I, equation II.6.7).

    It needs the derivative at both ends: the last stage of an FSAL method, else one extra stage.
    At theta = 1 it is the solution itself, so its `order` is 2 for a method of order 2.
    """
    # u(theta) = u0 + dt*[(theta - 2theta^2 + theta^3) f0 + (theta^3 - theta^2) f1
    #                     + (3theta^2 - 2theta^3) sum_i b_i k_i]
    weights = [[Fraction(0), 3 * w, -2 * w] for w in map(Fraction, (*b, *(() if fsal else (0,))))]
    for stage, polynomial in ((0, (1, -2, 1)), (-1, (0, -1, 1))):
        weights[stage] = [w + q for w, q in zip(weights[stage], polynomial, strict=True)]
    return DenseTableau(
        order=order,
        weights=from_monomials(*weights),
        a_extra=() if fsal else (tuple(b),),
        c_extra=() if fsal else (1.0,),
    )
