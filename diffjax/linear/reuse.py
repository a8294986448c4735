"""The Jacobian and the factorisation of a step, kept for the steps that follow.

Both cost far more than an iteration with them where a system is large, and an iteration converges
with matrices that are only nearly right. Smaller matrices are not kept (`KEPT`): the iterations
that they save are worth more than what they cost.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from .band import Band
from .dense import Factors, Matrix, factors_of, solve_with
from .krylov import MatrixFree
from .sparsity import Sparsity

Vector = Float[Array, " n"]

# Matrices with more rows than this are kept. Measured with KenCarp4 on the Brusselator in one
# dimension, on two x86-64 cores: keeping them costs 1.3 times the time at n = 100, as much as new
# ones at n = 200, and 0.6 times at n = 500.
KEPT = 200
# HW II, section IV.8, and CVODE: a factorisation serves while gamma*dt moves by less than a fifth.
SAME_SCALE = 0.2


def are_kept(n: int, sparsity: Sparsity | None) -> bool:
    """Whether matrices of so many rows are worth keeping; those of a band are not."""
    return n > KEPT and (sparsity is None or sparsity.band is None)


class Matrices(NamedTuple):
    """A Jacobian, and the factors of scale*M minus it; `scale` is zero where there are none yet.

    `current` says that the Jacobian belongs to the very state that the next attempt starts from,
    `outdated` that it has slowed an iteration down.
    """

    jacobian: Matrix
    factors: Factors
    scale: Float[Array, ""]
    current: Bool[Array, ""]
    outdated: Bool[Array, ""]

    @staticmethod
    def none(n: int, dtype: jnp.dtype, sparsity: Sparsity | None = None) -> "Matrices":
        jacobian: Matrix = jnp.zeros((n, n), dtype)
        if sparsity is not None and sparsity.band is not None:
            jacobian = Band(jnp.zeros((n, sparsity.band.width), dtype), sparsity.band)
        like = jax.eval_shape(factors_of, jacobian)
        factors = jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        no, yes = jnp.zeros((), bool), jnp.ones((), bool)
        return Matrices(jacobian, factors, jnp.zeros((), dtype), no, yes)

    def solve(self, scale: Array, b: Vector) -> Vector:
        """x with (scale*M - J) x = b, nearly.

        The factors are of another scale: the factor balances slow and stiff components (CVODE user
        guide, section 2.1.3).
        """
        balance = 2 / (1 + self.scale / scale)
        return balance * solve_with(self.factors, b)


def renewed(
    old: Matrices,
    scale: Float[Array, ""],
    jacobian: Callable[[], Matrix],
    shifted: Callable[[Array, Matrix], Matrix],
    want_jacobian: Bool[Array, ""],
) -> tuple[Matrices, Int[Array, ""], Int[Array, ""]]:
    """Matrices for a step, and whether the Jacobian and the factors are new, as 0 or 1."""
    moved = jnp.abs(old.scale / scale - 1) > SAME_SCALE
    want_factors = want_jacobian | moved
    matrix = _if_wanted(want_jacobian, jacobian, old.jacobian)

    def factors() -> Factors:
        new = shifted(scale, matrix)
        assert not isinstance(new, MatrixFree)
        return factors_of(new)

    new = Matrices(
        jacobian=matrix,
        factors=_if_wanted(want_factors, factors, old.factors),
        scale=jnp.where(want_factors, scale, old.scale),
        current=old.current | want_jacobian,
        outdated=old.outdated & ~want_jacobian,
    )
    return new, want_jacobian.astype(jnp.int32), want_factors.astype(jnp.int32)


def _if_wanted(wanted: Array, compute: Callable[[], PyTree], old: PyTree) -> PyTree:
    """What is computed where it is wanted, at no cost where no lane of a `vmap` wants it."""

    def chosen() -> PyTree:
        return jax.tree_util.tree_map(lambda x, y: jnp.where(wanted, x, y), compute(), old)

    return jax.lax.cond(eqxi.unvmap_any(wanted), chosen, lambda: old)
