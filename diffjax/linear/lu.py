"""LU factorisation of small dense matrices, with partial pivoting.

The matrices of a stiff step are small, and one is factorised in every step. A call of LAPACK costs
more than the arithmetic, and stops XLA from compiling the loop around it as one function. So up to
a size the elimination is written out: by numbers for the smallest, since `vmap` makes vectors of
them, by rows above, which keeps compilation short.

A solve has a derivative rule of its own: the tangent is one more solve with the same factors, and
so is, transposed, the cotangent. Nothing differentiates the elimination.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, PyTree

Matrix = Float[Array, "n n"]
Vector = Float[Array, " n"]

# The largest sizes that are written out by numbers, and by rows.
BY_NUMBERS = 4


class Factorized(NamedTuple):
    """A matrix, and the factors that it is solved with."""

    matrix: Matrix
    factors: PyTree

    def solve(self, b: Vector) -> Vector:
        """The vector x with matrix @ x = b; not finite if the matrix is singular."""
        return _solve(self.matrix, self.factors, b)


def factorize(matrix: Matrix) -> Factorized:
    """Factorise a square matrix."""
    fixed = jax.lax.stop_gradient(matrix)
    by_numbers = matrix.shape[0] <= BY_NUMBERS
    return Factorized(matrix, _eliminate(fixed) if by_numbers else jsl.lu_factor(fixed))


@jax.custom_jvp
def _solve(matrix: Matrix, factors: PyTree, b: Vector) -> Vector:
    if matrix.shape[0] <= BY_NUMBERS:
        return _substitute(factors, b)
    return jsl.lu_solve(factors, b)


@_solve.defjvp
def _(primals: Any, tangents: Any) -> tuple[Vector, Vector]:
    matrix, factors, b = primals
    matrix_dot, _, b_dot = tangents
    x = _solve(matrix, factors, b)
    return x, _solve(matrix, factors, b_dot - times(matrix_dot, x))


def times(matrix: Matrix, x: Vector) -> Vector:
    """`matrix @ x` as a sum, which XLA compiles in place where it hands a product to a library."""
    return jnp.sum(matrix * x[None, :], axis=1)


class _ByNumbers(NamedTuple):
    """Factors as numbers: `lower` and `upper` by rows, reciprocal pivots, exchanges in order."""

    lower: list[list[Array]]
    upper: list[list[Array]]
    pivots: list[Array]
    exchanges: list[Array]


def _eliminate(matrix: Matrix) -> _ByNumbers:
    n = matrix.shape[0]
    rows = [[matrix[i, j] for j in range(n)] for i in range(n)]
    pivots, exchanges = [], []
    for k in range(n):
        for i in range(k + 1, n):
            larger = jnp.abs(rows[i][k]) > jnp.abs(rows[k][k])
            exchanges.append(larger)
            rows[k], rows[i] = _exchanged(larger, rows[k], rows[i])
        pivots.append(1 / rows[k][k])
        for i in range(k + 1, n):
            factor = rows[i][k] * pivots[k]
            rest = [x - factor * y for x, y in zip(rows[i][k + 1 :], rows[k][k + 1 :], strict=True)]
            rows[i] = [*rows[i][:k], factor, *rest]
    lower = [row[:i] for i, row in enumerate(rows)]
    upper = [row[i + 1 :] for i, row in enumerate(rows)]
    return _ByNumbers(lower, upper, pivots, exchanges)


def _exchanged(
    condition: Array, x: list[Array], y: list[Array]
) -> tuple[list[Array], list[Array]]:
    pairs = list(zip(x, y, strict=True))
    return (
        [jnp.where(condition, b, a) for a, b in pairs],
        [jnp.where(condition, a, b) for a, b in pairs],
    )


def _substitute(factors: _ByNumbers, b: Vector) -> Vector:
    n = b.shape[0]
    x = [b[i] for i in range(n)]
    exchanges = iter(factors.exchanges)
    for k in range(n):
        for i in range(k + 1, n):
            [x[k]], [x[i]] = _exchanged(next(exchanges), [x[k]], [x[i]])
    for i in range(n):
        for j, factor in enumerate(factors.lower[i]):
            x[i] = x[i] - factor * x[j]
    for i in reversed(range(n)):
        for j, factor in enumerate(factors.upper[i]):
            x[i] = x[i] - factor * x[i + 1 + j]
        x[i] = x[i] * factors.pivots[i]
    return jnp.stack(x)
