"""Band matrices: all entries lie on a few diagonals, so that all work grows linearly in n.

The elimination pivots within the band: stiff matrices M/(gamma dt) - J are not always diagonally
dominant. It goes column by column, as LAPACK's `gbtf2` (Golub, Van Loan, Matrix Computations,
section 4.3.3), and carries along the rows that the column has entries in; wide bands go block by
block (`blocks`).
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import blocks
from .detection import Csr
from .jacobian import varying_like
from .native import native

Matrix = Float[Array, "n n"]
Vector = Float[Array, " n"]

# The entries that a column is eliminated in: XLA compiles arrays of so many into the loop.
LARGEST_WINDOW = 256
# Columns of the inverse that an estimate of its size looks at.
_CLIMBS = 4


class BandShape:
    """Which entries a band matrix of `n` rows may have; static, compared by value.

    **Arguments:**

    - `lower`, `upper`: the number of diagonals below and above the main one.
    - `order`: the coordinates in the order in which they are neighbours; None as they are.
    """

    def __init__(self, n: int, lower: int, upper: int, order: np.ndarray | None = None) -> None:
        self.n, self.lower, self.upper, self.order = n, lower, upper, order
        self._key = (n, lower, upper, None if order is None else order.tobytes())
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BandShape) and self._key == other._key

    @property
    def width(self) -> int:
        """How many diagonals there are."""
        return self.lower + self.upper + 1

    @property
    def is_wide(self) -> bool:
        """Whether it is eliminated block by block."""
        return (self.lower + 1) * self.width > LARGEST_WINDOW

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row and column, in the user's coordinates, of each place in `Band.rows`, and whether
        there is such an entry; where not, the column is any."""
        rows = np.arange(self.n)[:, None] + np.zeros((1, self.width), int)
        columns = rows - self.lower + np.arange(self.width)
        inside = (columns >= 0) & (columns < self.n)
        columns = np.clip(columns, 0, self.n - 1)
        if self.order is not None:
            rows, columns = self.order[rows], self.order[columns]
        return rows, columns, inside

    def mask(self) -> np.ndarray:
        """Where, in a dense matrix in the user's coordinates, there may be entries."""
        rows, columns, inside = self.entries()
        mask = np.zeros((self.n, self.n), bool)
        mask[rows[inside], columns[inside]] = True
        return mask

    def places(self, pattern: Csr) -> np.ndarray:
        """Which places in `Band.rows` a pattern in the user's coordinates has entries in."""
        rows, columns = pattern.tocoo().coords
        if self.order is not None:
            place = np.argsort(self.order)
            rows, columns = place[rows], place[columns]
        places = np.zeros((self.n, self.width), bool)
        places[rows, self.lower + columns - rows] = True
        return places

    def ordered(self, x: Array) -> Array:
        """A vector in the order of the band's rows."""
        return x if self.order is None else x[self.order]

    def restored(self, x: Array) -> Array:
        """The inverse of `ordered`."""
        return x if self.order is None else x[np.argsort(self.order)]


class Band(eqx.Module):
    """A square matrix whose row i has its entries in columns i - lower to i + upper.

    `rows[i, lower + j - i]` is the entry in row i and column j; places outside of the matrix are
    zero. Vectors come and go in the user's order of coordinates (`BandShape.order`).
    """

    rows: Float[Array, "n width"]
    shape: BandShape = eqx.field(static=True)

    @staticmethod
    def of_dense(matrix: Matrix, shape: BandShape) -> "Band":
        """The entries of a dense matrix that lie in the band."""
        rows, columns, inside = shape.entries()
        return Band(jnp.where(inside, matrix[rows, columns], 0), shape)

    def __rmul__(self, factor: Array | float) -> "Band":
        return Band(factor * self.rows, self.shape)

    def times(self, x: Vector) -> Vector:
        """The product with a vector."""
        shape = self.shape
        padded = jnp.pad(shape.ordered(x), (shape.lower, shape.upper))
        if shape.is_wide:
            windows = padded[np.arange(shape.n)[:, None] + np.arange(shape.width)]
            return shape.restored(jnp.sum(self.rows * windows, axis=1))
        terms = [self.rows[:, m] * padded[m : m + shape.n] for m in range(shape.width)]
        return shape.restored(sum(terms[1:], start=terms[0]))

    def shifted(self, scale: Array, mass: Array | None) -> "Band":
        """scale*M minus this matrix; M is given as `Field.mass` is."""
        shape = self.shape
        if mass is not None and mass.ndim == 2:
            return Band(scale * Band.of_dense(mass, shape).rows - self.rows, shape)
        diagonal = scale if mass is None else scale * shape.ordered(mass)[:, None]
        main = np.arange(shape.width)[None, :] == shape.lower
        return Band(jnp.where(main, diagonal - self.rows, -self.rows), shape)

    def with_columns_of(self, other: "Band", chosen: Array) -> "Band":
        """The same with the chosen columns (in the user's order) of another matrix."""
        return Band(jnp.where(self._by_column(chosen), other.rows, self.rows), self.shape)

    def with_columns_scaled(self) -> "Band":
        """The same with columns whose absolute values sum to one."""
        ones = jnp.ones_like(self.rows[:, 0])
        sums = jax.linear_transpose(Band(jnp.abs(self.rows), self.shape).times, ones)(ones)[0]
        return Band(self.rows * self._by_column(1 / sums), self.shape)

    def with_rows_scaled(self) -> "Band":
        """The same with one for the largest absolute value of each row."""
        largest = jnp.max(jnp.abs(self.rows), axis=1, keepdims=True)
        return Band(self.rows / largest, self.shape)

    def _by_column(self, x: Vector) -> Float[Array, "n width"]:
        """Of each place in `rows` what a vector has for its column."""
        shape = self.shape
        padded = jnp.pad(shape.ordered(x), (shape.lower, shape.upper))
        return padded[np.arange(shape.n)[:, None] + np.arange(shape.width)]

    def condition(self) -> Float[Array, ""]:
        """An estimate of the condition number in the 1-norm, from below, mostly close.

        Source: Hager, Condition estimates, SIAM J. Sci. Stat. Comput. 5, 1984.
        """
        rows, factors = jax.lax.stop_gradient(self.rows), self.factors()
        ones = jnp.ones_like(rows[:, 0])
        sums = jax.linear_transpose(Band(jnp.abs(rows), self.shape).times, ones)(ones)[0]

        def climb(_: Array, state: tuple[Vector, Array]) -> tuple[Vector, Array]:
            x, most = state
            y = factors.solve(x)
            steepest = jnp.argmax(jnp.abs(factors.solve_transposed(jnp.sign(y))))
            x = (jnp.arange(x.size) == steepest).astype(x.dtype)
            return x, jnp.maximum(most, jnp.sum(jnp.abs(y)))

        state = ones / ones.size, 0 * rows[0, 0]
        return jnp.max(sums) * jax.lax.fori_loop(0, _CLIMBS, climb, state)[1]

    def with_rows_of(self, other: "Band", chosen: Array) -> "Band":
        """The same with the chosen rows (in the user's order) of another matrix."""
        here = self.shape.ordered(chosen)[:, None]
        return Band(jnp.where(here, other.rows, self.rows), self.shape)

    def factors(self) -> "BandFactors | BlockFactors":
        """The factors of an LU decomposition, which nothing differentiates."""
        lower, upper = self.shape.lower, self.shape.upper
        rows = jax.lax.stop_gradient(self.rows)
        if self.shape.is_wide:
            done = blocks.eliminate(blocks.block_rows(rows, lower, upper))
            return BlockFactors(*done, shape=self.shape)
        done = native(lambda rows: _eliminate(rows, lower, upper), rows)
        return BandFactors(*done, shape=self.shape)


class _Factors(NamedTuple):
    """Column by column, what the elimination has done.

    - `pivot_inverses`: one over the pivots.
    - `upper`: what is right of the pivot in its row, over the pivot.
    - `multipliers`: of the pivot's row, for each row below.
    - `chosen`: which of the rows from the column's own on the pivot was taken from.
    """

    pivot_inverses: Vector
    upper: Float[Array, "n reach"]
    multipliers: Float[Array, "n lower"]
    chosen: Int[Array, " n"]


class BandFactors(eqx.Module):
    """The LU factors of a band matrix; see `_Factors`."""

    pivot_inverses: Vector
    upper: Float[Array, "n reach"]
    multipliers: Float[Array, "n lower"]
    chosen: Int[Array, " n"]
    shape: BandShape = eqx.field(static=True)

    def solve(self, b: Vector) -> Vector:
        """The x with A x = b."""
        return self._apply(_substitute, b)

    def solve_transposed(self, b: Vector) -> Vector:
        """The x with A^T x = b."""
        return self._apply(_substitute_transposed, b)

    def _apply(self, solve: Callable[[_Factors, Vector], Vector], b: Vector) -> Vector:
        factors = _Factors(self.pivot_inverses, self.upper, self.multipliers, self.chosen)
        factors = jax.lax.stop_gradient(factors)
        return self.shape.restored(native(solve, factors, self.shape.ordered(b)))


class BlockFactors(eqx.Module):
    """The LU factors of a wide band matrix; see `blocks.eliminate`."""

    panels: Float[Array, "b 2m m"]
    orders: Int[Array, "b 2m"]
    upper: Float[Array, "b m 2m"]
    shape: BandShape = eqx.field(static=True)

    def solve(self, b: Vector) -> Vector:
        """The x with A x = b."""
        x = blocks.substitute(self.panels, self.orders, self.upper, self.shape.ordered(b))
        return self.shape.restored(x)

    def solve_transposed(self, b: Vector) -> Vector:
        """The x with A^T x = b."""
        return jax.linear_transpose(self.solve, b)(b)[0]


def _eliminate(rows: Float[Array, "n width"], lower: int, upper: int) -> _Factors:
    """Gaussian elimination; of each row what is left of the current column is gone."""
    width, place = lower + upper + 1, jnp.arange(lower + 1, dtype=jnp.int32)

    def column(above: Array, row: Array) -> tuple[Array, _Factors]:
        window = jnp.concatenate([above, row[None]])
        chosen = jnp.argmax(jnp.abs(window[:, 0])).astype(jnp.int32)
        here = (place == chosen)[:, None]
        pivot = jnp.sum(jnp.where(here, window, 0), axis=0)
        others = jnp.where(here, window[:1], window)[1:]
        inverse = 1 / pivot[0]
        multipliers = others[:, 0] * inverse
        reduced = others[:, 1:] - multipliers[:, None] * pivot[None, 1:]
        done = _Factors(inverse, pivot[1:] * inverse, multipliers, chosen)
        return jnp.pad(reduced, ((0, 0), (0, 1))), done

    first = [jnp.pad(rows[i, lower - i :], (0, lower - i)) for i in range(lower)]
    start = jnp.stack(first) if first else jnp.zeros_like(rows[:0])
    following = jnp.pad(rows[lower:], ((0, lower), (0, 0)))
    assert start.shape[1] == width
    return jax.lax.scan(column, start, following)[1]


def _substitute(factors: _Factors, b: Vector) -> Vector:
    """Both triangular solves, number by number."""
    lower, reach = factors.multipliers.shape[1], factors.upper.shape[1]
    following = jnp.pad(b[lower:], (0, lower))

    def forwards(window: tuple[Array, ...], xs: tuple) -> tuple[tuple[Array, ...], Array]:
        multipliers, chosen, new = xs
        window = (*window, new)
        pivot = window[0]
        for i in range(1, lower + 1):
            pivot = jnp.where(chosen == i, window[i], pivot)
        others = [jnp.where(chosen == i, window[0], window[i]) for i in range(1, lower + 1)]
        return tuple(x - multipliers[i] * pivot for i, x in enumerate(others)), pivot

    start = tuple(b[i] for i in range(lower))
    _, y = jax.lax.scan(forwards, start, (factors.multipliers, factors.chosen, following))

    def backwards(window: tuple[Array, ...], xs: tuple) -> tuple[tuple[Array, ...], Array]:
        row, x = xs
        # The nearest comes last, so that it is the only one to be waited for.
        for m in reversed(range(reach)):
            x = x - row[m] * window[m]
        return (x, *window[:-1])[:reach], x

    zero = varying_like(b[0], jnp.zeros_like(b[0]))
    over_pivots = y * factors.pivot_inverses
    return jax.lax.scan(backwards, (zero,) * reach, (factors.upper, over_pivots), reverse=True)[1]


def _substitute_transposed(factors: _Factors, b: Vector) -> Vector:
    """The transposed operations of `_substitute`, in reverse."""
    lower, reach = factors.multipliers.shape[1], factors.upper.shape[1]
    zero = varying_like(b[0], jnp.zeros_like(b[0]))

    def forwards(window: tuple[Array, ...], xs: tuple) -> tuple[tuple[Array, ...], Array]:
        row, new = xs
        x = new - window[0] if reach else new
        window = (*window[1:], zero)[:reach]
        return tuple(w + row[m] * x for m, w in enumerate(window)), x

    _, y = jax.lax.scan(forwards, (zero,) * reach, (factors.upper, b))

    def backwards(window: tuple[Array, ...], xs: tuple) -> tuple[tuple[Array, ...], Array]:
        multipliers, chosen, first = xs
        for i, w in enumerate(window):
            first = first - multipliers[i] * w
        swapped = [jnp.where(chosen == i + 1, first, w) for i, w in enumerate(window)]
        for i, w in enumerate(window):
            first = jnp.where(chosen == i + 1, w, first)
        full = (first, *swapped)
        return full[:-1], full[-1]

    xs = (factors.multipliers, factors.chosen, y * factors.pivot_inverses)
    window, last = jax.lax.scan(backwards, (zero,) * lower, xs, reverse=True)
    # The scan gives the entry `lower` rows further on.
    return jnp.concatenate([jnp.stack(window), last[: b.shape[0] - lower]]) if lower else last
