"""What a Runge-Kutta method is, as numbers.

A tableau is data: adding a method means writing one down, exporting it and adding a row to the
test table. Every continuous extension is kept in one form, weights `b_i(theta)` that are
polynomials without constant term, so that one engine evaluates, differentiates and transposes
all of them: it is linear in the stages.
"""

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class DenseTableau:
    """A continuous extension `u(t + theta*dt) = u + dt * sum_i b_i(theta) k_i`.

    **Arguments:**

    - `order`: order q of the extension; its values are accurate to O(dt^(q+1)) locally.
    - `weights`: one tuple a stage (the method's own stages, then the extra ones);
        `weights[i][m]` is the coefficient of `theta**(m + 1)` in `b_i`.
    - `a_extra`, `c_extra`: stages that only the extension needs, computed only where output asks
        for them. Row j of `a_extra` has `stages + j` entries.
    """

    order: int
    weights: tuple[tuple[float, ...], ...]
    a_extra: tuple[tuple[float, ...], ...] = ()
    c_extra: tuple[float, ...] = ()


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


def hermite(b: tuple[float, ...], *, fsal: bool, order: int = 3) -> DenseTableau:
    """The cubic Hermite extension of a method with weights `b` (HNW I, equation II.6.7).

    It needs the derivative at both ends: the last stage of an FSAL method, else one extra stage.
    At theta = 1 it is the solution itself, so its `order` is 2 for a method of order 2.
    """
    # u(theta) = u0 + dt*[(theta - 2theta^2 + theta^3) f0 + (theta^3 - theta^2) f1
    #                     + (3theta^2 - 2theta^3) sum_i b_i k_i]
    weights = [[0.0, 3 * w, -2 * w] for w in b] + ([] if fsal else [[0.0, 0.0, 0.0]])
    for stage, polynomial in ((0, (1.0, -2.0, 1.0)), (-1, (0.0, -1.0, 1.0))):
        weights[stage] = [w + q for w, q in zip(weights[stage], polynomial, strict=True)]
    return DenseTableau(
        order=order,
        weights=tuple(tuple(w) for w in weights),
        a_extra=() if fsal else (tuple(b),),
        c_extra=() if fsal else (1.0,),
    )
