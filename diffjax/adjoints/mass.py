"""The adjoint equation of M u' = f with a singular M: its algebraic variables are eliminated.

With M^T lambda' = -(df/du)^T lambda part of lambda is algebraic too. Let d be the rows of M with a
derivative and a those of zeros, and N the matrix of the rows M_d and (df/du)_a, which is regular
for an index of one. Then

    N^T (lambda_d', lambda_a) = -(df/du)_d^T lambda_d

is an ordinary differential equation for lambda_d, with lambda_a beside it. A cotangent c of the
state at some time is met in the same way: with N^T (nu_d, nu_a) = c a change of the state that
obeys the equations has c du = nu_d M du - nu_a (df/dp)_a dp, so that lambda_d jumps by nu_d, and
what is left over goes to the parameters at once.

Source: Cao, Li, Petzold, Serban, Adjoint sensitivity analysis for differential-algebraic equations,
SIAM J. Sci. Comput. 24 (2003), sections 2.2 and 3.1, of which this is the case of index one.
"""

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ..algorithms.base import Field, State
from ..algorithms.implicit import VectorField
from ..linear.dense import factorize, times

Vector = Float[Array, " n"]


class Eliminated:
    """The adjoint equation of a field with a mass matrix, at one time and state.

    Cotangents are those of JAX, whose pairing with a complex tangent is Re(sum(ct * v)).
    """

    def __init__(self, field: Field, t: Array, u: State) -> None:
        view = VectorField(field.with_dense_jacobian(), u)
        self.coordinates = view.coordinates
        algebraic = view.algebraic()
        assert algebraic is not None
        _, self.jacobian = view.value_and_jacobian(t, self.coordinates.flatten(u))
        one = jnp.ones((), self.jacobian.dtype)
        self.mass = view.shifted(one, jnp.zeros_like(self.jacobian))
        self.algebraic = algebraic
        rows = jnp.where(algebraic[:, None], self.jacobian, self.mass)
        self.solve = factorize(rows.T)

    def flatten(self, cotangent: State) -> Vector:
        return self.coordinates.flatten(jtu.tree_map(jnp.conj, cotangent))

    def unflatten(self, vector: Vector) -> State:
        return jtu.tree_map(jnp.conj, self.coordinates.unflatten(vector))

    def whole(self, adjoint: State) -> tuple[State, State]:
        """lambda, and the derivative of lambda_d by -t, from lambda_d."""
        given = jnp.where(self.algebraic, 0, self.flatten(adjoint))
        found = self.solve(times(self.jacobian.T, given))
        slope = jnp.where(self.algebraic, 0, found)
        return self.unflatten(jnp.where(self.algebraic, -found, given)), self.unflatten(slope)

    def parted(self, cotangent: State) -> tuple[State, State]:
        """nu_d, and -nu_a, by which (df/dp)_a is multiplied, of a cotangent of the state."""
        found = self.solve(self.flatten(cotangent))
        differential = jnp.where(self.algebraic, 0, found)
        return self.unflatten(differential), self.unflatten(jnp.where(self.algebraic, -found, 0))

    def of_state(self, adjoint: State) -> State:
        """M^T lambda, the cotangent of the state."""
        return self.unflatten(times(self.mass.T, self.flatten(adjoint)))
