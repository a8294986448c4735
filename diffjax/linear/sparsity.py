"""Sparse Jacobians: few directional derivatives, and a band where the coordinates allow one.

Columns of a Jacobian that share no row can be told apart in one directional derivative along their
sum (Curtis, Powell, Reid, On the estimation of sparse Jacobian matrices, IMA J. Appl. Math. 13,
1974). Coordinates are reordered where that brings the entries nearer to the diagonal (Cuthill and
McKee's ordering, reversed: George, Liu, Computer Solution of Large Sparse Positive Definite
Systems, section 4.4).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import sparse

from .band import Band, BandShape
from .detection import Csr
from .jacobian import varying_like

Vector = Float[Array, " n"]

# A band matrix is worth its ordering where its elimination has this many times fewer operations
# than that of the dense matrix: LAPACK does those on a dense one so much faster.
WORTH = 8
# A wide band is worth it where there are so many blocks.
WORTH_IN_BLOCKS = 8


class Sparsity:
    """The pattern of a Jacobian, what it is stored as, and how its columns are put together.

    Static, and compared by identity: a solve makes one.

    **Arguments:**

    - `pattern`: where entries may differ from zero, shape (n, n).
    - `band`: store it as this band matrix; None for a dense one.
    """

    def __init__(self, pattern: Csr, band: BandShape | None) -> None:
        self.pattern, self.band = pattern, band
        if band is None or band.is_wide:
            # Of a wide band most places are empty.
            self.colours = colouring(pattern)
        else:
            self.colours = _band_colours(band)
        self.groups = int(self.colours.max()) + 1

    @staticmethod
    def of_pattern(pattern: Csr, dense_mass: bool = False) -> "Sparsity":
        """A band if the pattern has one that is narrow enough, else dense.

        With a mass matrix that has entries elsewhere it is dense.
        """
        return Sparsity(pattern, None if dense_mass else narrow_band(pattern))

    @staticmethod
    def of_band(n: int, lower: int, upper: int) -> "Sparsity":
        """A band matrix in the coordinates as they are, if the band is narrow enough."""
        shape = BandShape(n, min(lower, n - 1), min(upper, n - 1))
        return Sparsity(full_band(n, lower, upper), shape if _is_narrow(shape) else None)

    def value_and_jacobian(
        self, f: Callable[[Vector], Vector], u: Vector
    ) -> tuple[Vector, Array | Band]:
        """`f(u)` and its Jacobian, by as many directional derivatives as there are groups."""
        value, push = jax.linearize(f, u)
        seeds = np.arange(self.groups)[:, None] == self.colours[None, :]

        def together(seed: Vector) -> Vector:
            return push(varying_like(u, seed))

        merged = jax.vmap(together)(jnp.asarray(seeds, u.dtype))
        return value, self.parted(merged)

    def parted(self, merged: Float[Array, "groups n"]) -> Array | Band:
        """The Jacobian from the sums of the columns of each group."""
        if self.band is not None:
            rows, columns, _ = self.band.entries()
            entries = merged[self.colours[columns], rows]
            return Band(jnp.where(self.band.places(self.pattern), entries, 0), self.band)
        entries = merged[self.colours]
        return jnp.where(self.pattern.toarray().T, entries, 0).T

    def of_dense(self, matrix: Float[Array, "n n"]) -> Array | Band:
        """A dense Jacobian in the form it is stored in."""
        return matrix if self.band is None else Band.of_dense(matrix, self.band)


def full_band(n: int, lower: int, upper: int) -> Csr:
    """The pattern of a band matrix."""
    offsets: Any = list(range(-min(lower, n - 1), min(upper, n - 1) + 1))
    diagonals = [np.ones(n - abs(k), bool) for k in offsets]
    return sparse.csr_array(sparse.diags_array(diagonals, offsets=offsets, dtype=bool))


def _band_colours(shape: BandShape) -> np.ndarray:
    """Groups of columns of a band that is full: every so many, none overlaps the next."""
    places = np.arange(shape.n)
    if shape.order is not None:
        places = np.argsort(shape.order)
    return places % min(shape.width, shape.n)


def colouring(pattern: Csr) -> np.ndarray:
    """A group for each column, so that no two columns of a group have a row in common.

    Greedily, in the order of the columns: a column gets the first group that none of its
    neighbours has.
    """
    counts = pattern.astype(np.int32)
    neighbours = (counts.T @ counts).tocsr()
    colours = np.full(pattern.shape[1], -1)
    for j in range(pattern.shape[1]):
        near = neighbours.indices[neighbours.indptr[j] : neighbours.indptr[j + 1]]
        taken = set(colours[near].tolist())
        colour = 0
        while colour in taken:
            colour += 1
        colours[j] = colour
    return colours


def narrow_band(pattern: Csr) -> BandShape | None:
    """The narrowest band found for a pattern, if it is worth storing as one."""
    order = np.asarray(
        sparse.csgraph.reverse_cuthill_mckee(sparse.csr_matrix(pattern + pattern.T), True)
    ).astype(int)
    shapes = [_bounds(pattern, None), _bounds(pattern, order)]
    best = min(shapes, key=_work)
    return best if _is_narrow(best) else None


def _bounds(pattern: Csr, order: np.ndarray | None) -> BandShape:
    """The smallest band around a pattern in an order of its coordinates."""
    entries = pattern.tocoo()
    rows, columns = entries.coords
    if order is not None:
        place = np.argsort(order)
        rows, columns = place[rows], place[columns]
    lower = int(np.max(rows - columns, initial=0))
    upper = int(np.max(columns - rows, initial=0))
    return BandShape(pattern.shape[0], lower, upper, order)


def _work(shape: BandShape) -> int:
    """Operations of the elimination of a column, and of a solve with it."""
    reach = shape.lower + shape.upper
    return shape.lower * (reach + 1) + reach


def _is_narrow(shape: BandShape) -> bool:
    """Whether it is, against the size of the matrix."""
    if shape.is_wide:
        return shape.n >= WORTH_IN_BLOCKS * max(shape.lower, shape.upper)
    return WORTH * _work(shape) < shape.n**2
