"""The Jacobian and the factorisation of a step, kept for the steps that follow.

Both cost far more than an iteration with them where a system is large, and an iteration converges
with matrices that are only nearly right. Smaller matrices are not kept (`KEPT`): the iterations
that they save are worth more than what they cost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from .dense import Factors, Matrix, after, factors_of
from .sparsity import Sparsity

Shifts = tuple[float | complex, ...]
Done = TypeVar("Done")
Work = TypeVar("Work")

# Matrices with more rows than this are kept. Measured with KenCarp4 on the Brusselator in one
# dimension, on two x86-64 cores: keeping them costs 1.3 times the time at n = 100, as much as new
# ones at n = 200, and 0.6 times at n = 500.
KEPT = 200
# HW II, section IV.8, and CVODE: a factorisation serves while gamma*dt moves by less than a fifth.
SAME_SCALE = 0.2


def are_kept(n: int, sparsity: Sparsity | None) -> bool:
    """Whether matrices of so many rows are worth keeping; those of a narrow band are not."""
    band = None if sparsity is None else sparsity.band
    return n > KEPT and (band is None or band.is_wide)


def _times(shift: float | complex, matrix: Matrix) -> Matrix:
    return jtu.tree_map(lambda x: scaled(shift, x), matrix)


def scaled(shift: float | complex, x: Array) -> Array:
    """shift * x of real x."""
    if isinstance(shift, complex):
        return jax.lax.complex(shift.real * x, shift.imag * x)
    return shift * x


class Matrices(NamedTuple):
    """A Jacobian, and for each of some shifts the factors of shift*scale*M minus it.

    `scale` is zero where there are none yet. `current` says that the Jacobian belongs to the very
    state that the next attempt starts from, `outdated` that it has slowed an iteration down.
    """

    jacobian: Matrix | tuple[Matrix, Matrix]
    factors: tuple[Factors, ...]
    scale: Float[Array, ""]
    current: Bool[Array, ""]
    outdated: Bool[Array, ""]

    @staticmethod
    def none(
        n: int, dtype: jnp.dtype, shifts: Shifts, sparsity: Sparsity | None, implicit: bool = False
    ) -> "Matrices":
        """`implicit` systems have two Jacobians, by u' and by u."""
        dense = jnp.zeros((n, n), dtype)
        zeros = dense if sparsity is None else sparsity.of_dense(dense)
        no, yes = jnp.zeros((), bool), jnp.ones((), bool)

        def factors() -> tuple[Factors, ...]:
            return tuple(factors_of(_times(shift, zeros)) for shift in shifts)

        blank = jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(factors))
        jacobian = (zeros, zeros) if implicit else zeros
        return Matrices(jacobian, blank, jnp.zeros((), dtype), no, yes)

    def solve(self, which: int, scale: Array, b: Array) -> Array:
        """x with (shift*scale*M - J) x = b, nearly, for shift number `which`.

        The factors are of another scale: the factor balances slow and stiff components (CVODE user
        guide, section 2.1.3).
        """
        balance = 2 / (1 + self.scale / scale)
        return balance.astype(b.dtype) * self.factors[which].solve(b)

    def handed_on(self, slow: Bool[Array, ""]) -> "Matrices":
        """For the step after, which starts from another state; `slow` if the iteration was."""
        return self._replace(current=jnp.zeros_like(self.current), outdated=slow)


def renewed(
    old: Matrices,
    scale: Float[Array, ""],
    jacobian: Callable[[], Any],
    shifted: Callable[[Array, Any], Matrix],
    shifts: Shifts,
    want_jacobian: Bool[Array, ""],
) -> tuple[Matrices, Int[Array, ""], Int[Array, ""]]:
    """Matrices for a step; whether the Jacobian is new, as 0 or 1, and how many factors are."""
    moved = jnp.abs(old.scale / scale - 1) > SAME_SCALE
    want_factors = want_jacobian | moved
    matrix = _if_wanted(want_jacobian, jacobian, old.jacobian)

    def factors() -> tuple[Factors, ...]:
        made: list[Factors] = []
        for shift in shifts:
            system = shifted(scaled(shift, scale), matrix)
            if made:
                system = after(jtu.tree_leaves(made[-1])[0], system)
            made.append(factors_of(system))
        return tuple(made)

    new = Matrices(
        jacobian=matrix,
        factors=_if_wanted(want_factors, factors, old.factors),
        scale=jnp.where(want_factors, scale, old.scale),
        current=old.current | want_jacobian,
        outdated=old.outdated & ~want_jacobian,
    )
    count = len(shifts) * want_factors.astype(jnp.int32)
    return new, want_jacobian.astype(jnp.int32), count


def settled(
    old: Matrices,
    renew: Callable[[Matrices, Array], tuple[Matrices, Array, Array]],
    attempt: Callable[[Matrices, Array, Array], tuple[Done, Work]],
) -> tuple[Matrices, Done, Work]:
    """Attempt a step with matrices that are kept; should they not do, once more with new ones.

    **Arguments:**

    - `renew`: `renewed` of matrices, and whether the Jacobian has to be.
    - `attempt`: of new matrices and the two counts, what came of them, with a field `converged`,
        and the work that it was, which is summed.
    """

    def again(state: tuple[Array, Matrices, Any, Any]) -> tuple[Array, Matrices, Any, Any]:
        tried, old, _, before = state
        new, njac, nfactor = renew(old, old.outdated | tried)
        done, work = attempt(new, njac, nfactor)
        return jnp.ones_like(tried), new, done, jtu.tree_map(jnp.add, before, work)

    def unsettled(state: tuple[Array, Matrices, Any, Any]) -> Array:
        tried, matrices, done, _ = state
        return ~tried | (~done.converged & ~matrices.current)

    zero = jnp.zeros((), jnp.int32)
    shape = jax.eval_shape(attempt, old, zero, zero)
    blank = jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
    state = jnp.zeros((), bool), old, *blank
    return jax.lax.while_loop(unsettled, again, state)[1:]


def _if_wanted(wanted: Array, compute: Callable[[], PyTree], old: PyTree) -> PyTree:
    """What is computed where it is wanted, at no cost where no lane of a `vmap` wants it."""

    def chosen() -> PyTree:
        return jtu.tree_map(lambda x, y: jnp.where(wanted, x, y), compute(), old)

    return jax.lax.cond(eqxi.unvmap_any(wanted), chosen, lambda: old)
