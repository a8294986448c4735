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
import jax.scipy.linalg as jsl
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from .dense import Matrix
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
    """Whether matrices of so many rows are worth keeping; those of a band are not."""
    return n > KEPT and (sparsity is None or sparsity.band is None)


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

    jacobian: Matrix
    factors: tuple[tuple[Array, Int[Array, " n"]], ...]
    scale: Float[Array, ""]
    current: Bool[Array, ""]
    outdated: Bool[Array, ""]

    @staticmethod
    def none(n: int, dtype: jnp.dtype, shifts: Shifts) -> "Matrices":
        zeros = jnp.zeros((n, n), dtype)
        no, yes = jnp.zeros((), bool), jnp.ones((), bool)
        factors = tuple((scaled(shift, zeros), jnp.zeros(n, jnp.int32)) for shift in shifts)
        return Matrices(zeros, factors, jnp.zeros((), dtype), no, yes)

    def solve(self, which: int, scale: Array, b: Array) -> Array:
        """x with (shift*scale*M - J) x = b, nearly, for shift number `which`.

        The factors are of another scale: the factor balances slow and stiff components (CVODE user
        guide, section 2.1.3).
        """
        balance = 2 / (1 + self.scale / scale)
        return balance.astype(b.dtype) * jsl.lu_solve(self.factors[which], b)

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

    def factors() -> tuple[tuple[Array, Array], ...]:
        return tuple(jsl.lu_factor(shifted(scaled(shift, scale), matrix)) for shift in shifts)

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
