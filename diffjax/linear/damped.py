"""Newton's method from a start that may be far off: a new matrix each time, damped corrections.

A correction is halved until the next one, computed with the same matrix, is smaller. That test
does not depend on how the equations are scaled (Deuflhard, Newton Methods for Nonlinear Problems,
section 3.3, the natural monotonicity test).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .dense import factorize
from .jacobian import varying_like
from .newton import LEFT

Vector = Float[Array, " n"]
Matrix = Float[Array, "n n"]

MOST = 50
MOST_HALVINGS = 30
# The share of a correction's size by which a damped one must bring the next one down.
DECREASE = 0.5
# Corrections within the tolerance that shrink by less than this are rounding.
STAGNATION = 0.5


class Root(NamedTuple):
    """Where the iteration has come to; `corrections` and `evaluations` are what it took."""

    x: Vector
    converged: Bool[Array, ""]
    corrections: Int[Array, ""]
    evaluations: Int[Array, ""]


class _Carry(NamedTuple):
    x: Vector
    size: Float[Array, ""]
    converged: Bool[Array, ""]
    failed: Bool[Array, ""]
    corrections: Int[Array, ""]
    evaluations: Int[Array, ""]


def damped_newton(
    residual: Callable[[Vector], Vector],
    matrix: Callable[[Vector], Matrix],
    size: Callable[[Vector, Vector], Float[Array, ""]],
    start: Vector,
) -> Root:
    """Solve `residual(x) = 0`.

    A start that the first correction finds good enough is given back as it is.

    **Arguments:**

    - `matrix`: minus the residual's Jacobian.
    - `size`: `size(correction, x)`, in units of the tolerance.
    """

    def constant(x: float | bool, dtype: Any) -> Array:
        return varying_like(start[0], jnp.asarray(x, dtype))

    def iterate(c: _Carry) -> _Carry:
        solve = factorize(matrix(c.x))
        correction = solve(residual(c.x))
        whole = size(correction, c.x)

        def next_size(share: Array) -> Array:
            return size(solve(residual(c.x + share * correction)), c.x)

        def too_long(state: tuple[Array, Array, Array]) -> Array:
            share, after, tries = state
            shrinks = after <= jnp.maximum((1 - DECREASE * share) * whole, LEFT)
            return ~shrinks & (tries < MOST_HALVINGS)

        def halve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            share, _, tries = state
            return share / 2, next_size(share / 2), tries + 1

        one = constant(1, start.dtype)
        share, _, tries = jax.lax.while_loop(
            too_long, halve, (one, next_size(one), constant(0, jnp.int32))
        )
        later = c.corrections > 0
        stagnates = later & (whole <= 1) & (whole > STAGNATION * c.size)
        converged = (whole <= LEFT) | stagnates
        corrections = c.corrections + 1
        failed = ~jnp.isfinite(whole) | (tries >= MOST_HALVINGS) | (corrections >= MOST)
        return _Carry(
            x=jnp.where(converged & ~later, c.x, c.x + share * correction),
            size=whole,
            converged=converged,
            failed=failed & ~converged,
            corrections=corrections,
            evaluations=c.evaluations + 2 + tries,
        )

    no, zero = constant(False, bool), constant(0, jnp.int32)
    carry = _Carry(start, constant(jnp.inf, start.dtype), no, no, zero, zero)
    carry = jax.lax.while_loop(lambda c: ~(c.converged | c.failed), iterate, carry)
    return Root(carry.x, carry.converged, carry.corrections, carry.evaluations)
