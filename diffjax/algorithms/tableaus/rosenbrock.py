"""What a Rosenbrock method is, as numbers.

The form is the transformed one of HW II, section IV.7, equations (7.25) and (7.26): its stages
need one matrix for all of them and no product with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from .base import DenseTableau, from_monomials


@dataclass(frozen=True, eq=False)
class RosenbrockTableau:
    """A Rosenbrock method for M u' = f(t, u), with W = M/(gamma*dt) - df/du and stages

        W k_i = f(t + c_i dt, u + sum_j a_ij k_j) + M sum_j (C_ij/dt) k_j + d_i dt df/dt.

    **Arguments:**

    - `order`: order of the solution carried forward, `u + sum_i b_i k_i`.
    - `gamma`: the one coefficient on the diagonal.
    - `a`, `C`: strictly lower triangular; row i has i entries, the first row is empty.
    - `c`, `d`: nodes, and the sums of the gamma_ij.
    - `b_error`: weights of the error estimate, `b - b_hat`.
    - `error_order`: order of the embedded solution.
    - `dense`: the continuous extension, `u + sum_i b_i(theta) k_i`.
    - `caution`: how much smaller than tolerated the error of a step must be, since the errors of
        many steps add up.
    """

    name: str
    order: int
    gamma: float
    a: tuple[tuple[float, ...], ...]
    C: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    d: tuple[float, ...]
    b_error: tuple[float, ...]
    error_order: int
    dense: DenseTableau
    caution: float = 1.0

    @property
    def stages(self) -> int:
        return len(self.b)


def extension(
    order: int, b: Sequence[float], *rows: str, extra: Sequence[tuple[float, str, str]] = ()
) -> DenseTableau:
    """A continuous extension as Rosenbrock codes give it: with h_m the sums of `rows` over stages,

    u(theta) = (1 - theta) u0 + theta (u1 + (1 - theta) (h_1 + theta h_2 + theta^2 h_3)).

    Further stages have a node, a row of a and a row of C each.
    """
    h = [[Fraction(x) for x in row.split()] for row in rows]
    b = [*b, *(0.0 for _ in extra)]
    zeros = [Fraction(0)] * len(b)
    # The powers of theta in theta b + theta (1 - theta) (h_1 + theta h_2 + theta^2 h_3).
    first = [Fraction(x) + y for x, y in zip(b, h[0], strict=True)]
    others = [
        [x - y for x, y in zip(after, before, strict=True)]
        for before, after in zip(h, [*h[1:], zeros], strict=True)
    ]
    return DenseTableau(
        order,
        from_monomials(*zip(first, *others, strict=True)),
        a_extra=tuple(tuple(map(float, row.split())) for _, row, _ in extra),
        c_extra=tuple(node for node, _, _ in extra),
        C_extra=tuple(tuple(map(float, row.split())) for _, _, row in extra),
    )
