"""What BDF methods remember of the past, and what of it a step of a certain size sees.

The past is held in differences. Let u(0) be the state at the start of a step, u(1), u(2), ... past
values, and r_m the distance from the end of the step back to u(m-1), in units of the step h. Then

    D_j = r_1 ... r_j h^j [u(0), ..., u(j)]

with a divided difference; on equal steps these are the backward differences. The polynomial P of
degree k through u(0), ..., u(k) has, at the end of the step,

    P = u(0) + D_1 + ... + D_k,    h P' = w_1 D_1 + ... + w_k D_k,    w_j = 1/r_1 + ... + 1/r_j.

Arrays have a row for each order up to the largest, and rows that are not used are masked: XLA
compiles masks and sums in place, and gathers not.

Source: Brenan, Campbell, Petzold, Numerical Solution of Initial-Value Problems in
Differential-Algebraic Equations, section 5.2.
"""

from collections.abc import Callable, Sequence
from math import comb
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Scalar = Float[Array, ""]
Vector = Float[Array, " n"]
Rows = Float[Array, "k n"]
Order = Int[Array, ""]

# (-1)^j binomial(i, j) for i and j from 1 to 5.
_BINOMIALS = np.array([[(-1) ** j * comb(i, j) for j in range(1, 6)] for i in range(1, 6)])


class History(NamedTuple):
    """The past of a state.

    - `differences`: D_1, D_2, ... as seen from the end of the last step. Before the first step D_1
        is the derivative.
    - `steps`: the sizes of the last steps, the newest first; zero before the first step.
    """

    differences: Rows
    steps: Float[Array, " m"]

    @staticmethod
    def before(slope: Vector, max_order: int, steps: int) -> "History":
        """The past of a state of which nothing but the derivative is known."""
        others = jnp.zeros((max_order - 1, *slope.shape), slope.dtype)
        differences = jnp.concatenate([slope[None], others])
        return History(differences, jnp.zeros(steps, slope.dtype))


class Past(NamedTuple):
    """The past as a step sees it.

    - `differences`: D_1, D_2, ...
    - `distances`: r_1, r_2, ..., one more than there are differences.
    - `steps`: the sizes of the steps, with this one.
    """

    differences: Rows
    distances: Float[Array, " k+1"]
    steps: Float[Array, " m"]

    @property
    def weights(self) -> Float[Array, " k+1"]:
        """w_1, w_2, ..."""
        return running(jnp.add, list(1 / self.distances))

    def predicted(self, order: Order) -> tuple[Vector, Vector]:
        """P - u(0) and h P' at the end of the step."""
        used = up_to(order, self.differences)
        return jnp.sum(used, axis=0), jnp.sum(self.weights[:-1, None] * used, axis=0)

    def after(self, order: Order, correction: Vector) -> History:
        """The past of the next step, if this one ends at P plus a correction."""
        rows = [correction]
        for row in list(up_to(order, self.differences))[::-1]:
            rows.append(rows[-1] + row)
        # Row k + 1 is the correction. Those above it are filled, not used before they are right.
        return History(jnp.stack(rows[:0:-1]), self.steps)


def on_past_points(history: History, h: Scalar) -> Past:
    """With the past values where they were computed."""
    fresh = history.steps[0] == 0
    # Before the first step the past values lie on a straight line, so at any distance.
    steps = jnp.where(fresh, h, history.steps)
    before = running(jnp.add, list(steps))
    after = jnp.concatenate([h[None], h + before])
    ratios = after[:-1] / jnp.where(fresh, 1, before)
    differences = running(jnp.multiply, list(ratios))[:, None] * history.differences
    return Past(differences, after / h, jnp.concatenate([h[None], steps[:-1]]))


def on_equal_steps(history: History, h: Scalar, order: Order) -> Past:
    """With past values a step apart, on the polynomial through those that there were.

    Source: Shampine, Reichelt, The MATLAB ODE Suite, SIAM J. Sci. Comput. 18, 1997, section 2.1.
    """
    count = history.differences.shape[0]
    number = jnp.arange(1, count + 1, dtype=order.dtype)
    ratio = h / jnp.where(history.steps[0] == 0, 1, history.steps[0])
    # P at the new points is u(0) plus (-1)^i binomial(ratio*j, i) D_i, j steps back.
    s = ratio * number.astype(h.dtype)
    values = running(jnp.multiply, [(m - s) / (m + 1) for m in range(count)])
    binomials = jnp.asarray(_BINOMIALS[:count, None, :count], h.dtype)
    matrix = jnp.sum(binomials * values[None], axis=2)
    # Above the order no more is known than that D_j goes as the step to the power j.
    of, to = number[None, :], number[:, None]
    matrix = jnp.where((of >= to) & ((of <= order) | (of == to)), matrix, 0)
    differences = jnp.sum(matrix[:, :, None] * history.differences[None], axis=1)
    return Past(differences, jnp.arange(1, count + 2).astype(h.dtype), h[None])


def up_to(order: Order, rows: Array) -> Array:
    """Rows 1 to `order`, the others zero."""
    return jnp.where(_numbers(rows) <= order, rows, 0)


def pick(order: Order, rows: Array) -> Array:
    """Row `order` of rows 1, 2, ...; zero if there is none."""
    return jnp.sum(jnp.where(_numbers(rows) == order, rows, 0), axis=0)


def _numbers(rows: Array) -> Int[Array, " k *ones"]:
    numbers = jnp.arange(1, rows.shape[0] + 1, dtype=jnp.int32)
    return numbers.reshape((-1,) + (1,) * (rows.ndim - 1))


def running(combine: Callable[[Array, Array], Array], terms: Sequence[Array]) -> Array:
    """Sums or products of the first terms, a row each."""
    rows = [terms[0]]
    for term in terms[1:]:
        rows.append(combine(rows[-1], term))
    return jnp.stack(rows)


def extension(rows: Rows, distances: Float[Array, " k+1"]) -> list[Vector]:
    """The polynomial through the end of a step and the past values, which D_1, D_2, ... belong to.

    Of u(0) + theta*(D_1 + (theta - 1)*Q(theta)) the vector D_1 and the coefficients of Q.
    """
    # In Newton's form Q is the sum of (theta - 1 + r_2) ... (theta - 1 + r_(j-1)) D_j/(r_2 ... r_j)
    # over j from 2 on; `basis` has the coefficients of these products.
    powers: list[Vector] = []
    basis = [jnp.ones_like(distances[0])]
    for j in range(2, rows.shape[0] + 1):
        if j > 2:
            shift, zero = distances[j - 2] - 1, jnp.zeros_like(basis[0])
            pairs = zip([zero, *basis], [*basis, zero], strict=True)
            basis = [low + shift * high for low, high in pairs]
        basis = [x / distances[j - 1] for x in basis]
        powers = [*powers, jnp.zeros_like(rows[0])]
        powers = [q + x * rows[j - 1] for q, x in zip(powers, basis, strict=True)]
    return [rows[0], *powers]
