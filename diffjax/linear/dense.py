"""Dense matrices of stiff steps: factorised once a step, solved with once a stage.

The matrices are small, and XLA pays for each small operation and for each call of LAPACK, which
also stops it from compiling the loop around as one function. So a small matrix is inverted, with
partial pivoting, and a solve is one product. On stiff systems that is as accurate as substitution
(Du Croz, Higham, Stability of methods for matrix inversion, IMA J. Numer. Anal. 12, 1992). An
elimination that is written out takes seconds to compile from six rows on; as a loop it does not.

Nothing differentiates the elimination: a solve with A has one more solve for its tangent, and for
its cotangent.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.custom_batching
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from .band import Band, BandFactors, BlockFactors
from .krylov import ComplexMatrixFree, MatrixFree

# A `Dense` matrix, a `Band` or a `MatrixFree`: who only factorises it need not know which.
Matrix = Any
Dense = Float[Array, "n n"]
Vector = Float[Array, " n"]

# The largest sizes that are inverted number by number, and inverted at all. Measured in Rodas5P on
# two x86-64 cores: at n = 10 a step takes 4.5 us by the loop below and 11 us with LAPACK; at n = 20
# it is 26 us and 29 us.
BY_NUMBERS = 4
INVERTED = 24


def factorize(matrix: Matrix) -> Callable[[Vector], Vector]:
    """Factorise a square matrix A: the function that gives the x with A x = b, for any b.

    x is not finite if the matrix is singular. But for a `MatrixFree` the function is a pytree.
    """
    if isinstance(matrix, MatrixFree | ComplexMatrixFree):
        return matrix.factorize()
    if isinstance(matrix, Band) or matrix.shape[0] > INVERTED:
        return Solver(matrix, factors_of(matrix))
    return Solver(matrix, Inverse(_inverse(jax.lax.stop_gradient(matrix))))


class Inverse(eqx.Module):
    """The inverse of a small dense matrix."""

    matrix: Dense

    def solve(self, b: Vector) -> Vector:
        """The x with A x = b."""
        return times(self.matrix, b)

    def solve_transposed(self, b: Vector) -> Vector:
        """The x with A^T x = b."""
        return times(self.matrix.T, b)


class DenseFactors(eqx.Module):
    """The LU factors of a dense matrix, as LAPACK has them."""

    lu: Dense
    pivots: Int[Array, " n"]

    def solve(self, b: Vector) -> Vector:
        """The x with A x = b."""
        return jsl.lu_solve((self.lu, self.pivots), b)

    def solve_transposed(self, b: Vector) -> Vector:
        """The x with A^T x = b."""
        return jsl.lu_solve((self.lu, self.pivots), b, trans=1)


Factors = DenseFactors | BandFactors | BlockFactors


class Solver(eqx.Module):
    """The x with A x = b as a function of b, which has a derivative by A and by b."""

    matrix: Matrix
    factors: Inverse | Factors

    def __call__(self, b: Vector) -> Vector:
        return jax.lax.custom_linear_solve(
            self._times,
            b,
            solve=lambda _, b: self.factors.solve(b),
            transpose_solve=lambda _, b: self.factors.solve_transposed(b),
        )

    def _times(self, x: Vector) -> Vector:
        large = isinstance(self.factors, DenseFactors)
        return self.matrix @ x if large else times(self.matrix, x)


def factors_of(matrix: Matrix) -> Factors:
    """The factors of a dense or band matrix, which nothing differentiates."""
    if isinstance(matrix, Band):
        return matrix.factors()
    return DenseFactors(*jsl.lu_factor(jax.lax.stop_gradient(matrix)))


def after(done: Array, matrix: Matrix) -> Matrix:
    """A matrix that is known only when something else is: another one's factors.

    Of two factorisations that do not depend on each other XLA's CPU backend may begin both. Those
    of many lanes by LAPACK are each shared out among the threads of one pool, and wait there for
    their shares; two of them on two cores then may wait for ever (jaxlib 0.10).
    """
    if isinstance(matrix, MatrixFree | ComplexMatrixFree):
        return matrix
    first = jnp.real(jax.lax.stop_gradient(done).ravel()[0])
    # Zero, unless all is lost; but for the compiler it depends on what is done.
    held = jnp.where(jnp.isnan(first), first, 0)
    return jtu.tree_map(lambda x: x + held.astype(x.dtype), matrix)


def shifted(scale: Array, mass: Array | None, matrix: Matrix) -> Matrix:
    """scale*M minus a matrix; M is given by its diagonal, or all of it, None for the identity."""
    if isinstance(matrix, MatrixFree):
        return matrix.shifted(scale, lambda x: mass_times(mass, x))
    if isinstance(matrix, Band):
        return matrix.shifted(scale, mass)
    if mass is not None and mass.ndim == 2:
        return scale * mass - matrix
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    diagonal = scale if mass is None else (scale * mass)[:, None]
    return diagonal * identity - matrix


def rows_of(chosen: Bool[Array, " n"], matrix: Matrix, other: Matrix) -> Matrix:
    """The chosen rows of a matrix, and the rest of another of the same form."""
    if isinstance(matrix, Band):
        assert isinstance(other, Band)
        return other.with_rows_of(matrix, chosen)
    if isinstance(matrix, MatrixFree):
        assert isinstance(other, MatrixFree)
        return other.with_rows_of(matrix, chosen)
    assert not isinstance(other, Band | MatrixFree)
    return jnp.where(chosen[:, None], matrix, other)


def columns_of(chosen: Bool[Array, " n"], matrix: Matrix, other: Matrix) -> Matrix:
    """The chosen columns of a matrix, and the rest of another of the same form."""
    if isinstance(matrix, Band):
        return other.with_columns_of(matrix, chosen)
    return jnp.where(chosen[None, :], matrix, other)


def with_columns_scaled(matrix: Matrix) -> Matrix:
    """The matrix with columns of similar size."""
    if isinstance(matrix, Band):
        return matrix.with_columns_scaled()
    return matrix / jnp.max(jnp.abs(matrix), axis=0, keepdims=True)


def mass_times(mass: Array | None, x: Vector) -> Vector:
    """M x; M is given as in `shifted`."""
    if mass is None:
        return x
    return mass * x if mass.ndim == 1 else times(mass, x)


def times(matrix: Matrix, x: Vector) -> Vector:
    """`matrix @ x`, which XLA compiles in place where it hands a product to a library."""
    if isinstance(matrix, Band | MatrixFree):
        return matrix.times(x)
    if matrix.shape[0] > BY_NUMBERS:
        return jnp.sum(matrix * x[None, :], axis=1)
    # Number by number, so that of many lanes each number is one vector.
    n = matrix.shape[0]
    terms = [[matrix[i, j] * x[j] for j in range(n)] for i in range(n)]
    return jnp.stack([sum(row[1:], start=row[0]) for row in terms])


def is_regular(matrix: Matrix) -> Bool[Array, ""]:
    """Whether a matrix is not singular to rounding, in the 1-norm and with its rows scaled.

    A singular Jacobian belongs to a root that is not isolated, such as an equilibrium with a
    conserved quantity: rounding would decide which of its neighbours is found, and what its
    derivative is.
    """
    if isinstance(matrix, Band):
        rounding = 10 * matrix.shape.n * float(jnp.finfo(matrix.rows.dtype).eps)
        return matrix.with_rows_scaled().condition() * rounding < 1
    largest = jnp.max(jnp.abs(matrix), axis=1, keepdims=True)
    scaled = matrix / largest
    rounding = 10 * matrix.shape[0] * float(jnp.finfo(matrix.dtype).eps)
    inverse = _inverse(scaled) if matrix.shape[0] <= INVERTED else jnp.linalg.inv(scaled)
    sizes = [jnp.max(jnp.sum(jnp.abs(x), axis=0)) for x in (scaled, inverse)]
    return sizes[0] * sizes[1] * rounding < 1


def row_sum_norm(matrix: Matrix) -> Float[Array, ""]:
    """The largest sum of absolute values of a row: a bound of the eigenvalues."""
    if isinstance(matrix, MatrixFree):
        return matrix.row_sum_norm()
    rows = matrix.rows if isinstance(matrix, Band) else matrix
    return jnp.max(jnp.sum(jnp.abs(jax.lax.stop_gradient(rows)), axis=1))


def _size(x: Array) -> Array:
    """What pivots are compared by; of complex numbers not the modulus, as in LAPACK's izamax."""
    return jnp.abs(jnp.real(x)) + jnp.abs(jnp.imag(x)) if jnp.iscomplexobj(x) else jnp.abs(x)


def _divided(row: list[Array], pivot: Array) -> list[Array]:
    """A row over its pivot; one complex division costs many products, with XLA."""
    if not jnp.iscomplexobj(pivot):
        return [x / pivot for x in row]
    inverse = 1 / pivot
    return [x * inverse for x in row]


def _inverse(matrix: Dense) -> Dense:
    by_numbers = matrix.shape[0] <= BY_NUMBERS
    return _inverse_by_numbers(matrix) if by_numbers else _inverse_by_columns(matrix)


def _inverse_by_numbers(matrix: Dense) -> Dense:
    """Gauss-Jordan elimination written out; under `vmap` every number becomes a vector."""
    n = matrix.shape[0]
    one, zero = jnp.ones((), matrix.dtype), jnp.zeros((), matrix.dtype)
    rows = [
        [*(matrix[i, j] for j in range(n)), *(one if i == j else zero for j in range(n))]
        for i in range(n)
    ]
    for k in range(n):
        for i in range(k + 1, n):
            larger = _size(rows[i][k]) > _size(rows[k][k])
            pairs = list(zip(rows[k], rows[i], strict=True))
            rows[k] = [jnp.where(larger, y, x) for x, y in pairs]
            rows[i] = [jnp.where(larger, x, y) for x, y in pairs]
        rows[k] = _divided(rows[k], rows[k][k])
        for i in range(n):
            if i != k:
                factor = rows[i][k]
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[k], strict=True)]
    return jnp.stack([jnp.stack(row[n:]) for row in rows])


@jax.custom_batching.custom_vmap
def _inverse_by_columns(matrix: Dense) -> Dense:
    """Gauss-Jordan elimination, a loop over columns."""
    n = matrix.shape[0]
    row, column = jnp.arange(n), jnp.arange(2 * n)

    # Picked by masks and sums, since XLA compiles no gather or scatter in place.
    def eliminate(k: Array, both: Array) -> Array:
        here = row == k
        values = jnp.sum(jnp.where(column[None, :] == k, both, 0), axis=1)
        largest = jnp.argmax(jnp.where(row >= k, _size(values), -1))
        chosen = row == largest
        pivot_row = jnp.sum(jnp.where(chosen[:, None], both, 0), axis=0)
        displaced = jnp.sum(jnp.where(here[:, None], both, 0), axis=0)
        [pivot_row] = _divided([pivot_row], jnp.sum(jnp.where(chosen, values, 0)))
        both = jnp.where(chosen[:, None], displaced[None, :], both)
        values = jnp.where(chosen, jnp.sum(jnp.where(here, values, 0)), values)
        reduced = both - values[:, None] * pivot_row[None, :]
        return jnp.where(here[:, None], pivot_row[None, :], reduced)

    both = jnp.concatenate([matrix, jnp.eye(n, dtype=matrix.dtype)], axis=1)
    return jax.lax.fori_loop(0, n, eliminate, both)[:, n:]


@_inverse_by_columns.def_vmap
def _(size: int, batched: Any, matrix: Float[Array, "batch n n"]) -> tuple[Array, bool]:
    # The loop would pass over the matrices of all lanes for each column.
    return jnp.linalg.inv(matrix), True
