"""What implicit methods see of a vector field: real coordinates, Jacobian, mass matrix."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float

from ..linear.coordinates import Coordinates
from ..linear.dense import Matrix, factorize, mass_times, row_sum_norm, rows_of, shifted
from ..linear.jacobian import value_and_jacobian, varying_like
from ..linear.krylov import GMRES, MatrixFree
from .base import Field, State

Vector = Float[Array, " n"]
# df/dv; of F(v', v, t) = 0 the pair of dF/dv' and dF/dv.
Jacobian = Matrix | tuple[Matrix, Matrix]


class VectorField:
    """M v' = f(t, v), or F(v', v, t) = 0, in the real coordinates of states like `u`.

    With a `solver` its Jacobian is known by products alone; `exact` solves are to rounding.
    """

    def __init__(
        self, field: Field, u: State, solver: GMRES | None = None, exact: bool = True
    ) -> None:
        self.field, self.coordinates = field, Coordinates(u)
        self.solver, self.exact = solver, exact

    def f(self, t: Array, v: Vector) -> Vector:
        return self.coordinates.flatten(self.field.f(t, self.coordinates.unflatten(v)))

    def value_and_jacobian(self, t: Array, v: Vector) -> tuple[Vector, Matrix]:
        """f and df/dv."""
        sparsity = self.field.sparsity
        if self.solver is not None:
            return self._value_and_products(self.solver, t, v)
        if self.field.jac_args is not None:
            given = self.field.jac(t, self.coordinates.unflatten(v))
            return self.f(t, v), given if sparsity is None else sparsity.of_dense(given)
        find = value_and_jacobian if sparsity is None else sparsity.value_and_jacobian
        return find(lambda v: self.f(t, v), v)

    def _value_and_products(self, solver: GMRES, t: Array, v: Vector) -> tuple[Vector, MatrixFree]:
        value, push = jax.linearize(lambda v: self.f(t, v), v)
        back = self.coordinates.unflatten

        def near_inverse(gamma_dt: Array) -> Callable[[Vector], Vector]:
            assert solver.preconditioner is not None
            apply = solver.preconditioner(back(v), gamma_dt)
            return lambda r: self.coordinates.flatten(apply(back(r)))

        given = None if solver.preconditioner is None else near_inverse
        return value, MatrixFree(push, v, solver, given, self.exact)

    def time_derivative(self, t: Array, v: Vector) -> Vector | None:
        """df/dt; None where it is zero for certain."""
        if self.field.autonomous:
            return None
        one = varying_like(t, jnp.ones_like(t))
        return jax.jvp(lambda t: self.f(t, v), (t,), (one,))[1]

    def mass_times(self, v: Vector) -> Vector:
        """M v."""
        return mass_times(self.field.mass, v)

    def residual(self, t: Array, v: Vector, slope: Vector) -> Vector:
        """f - M v' with another derivative v', or -F: what the equation wants to be zero."""
        if self.field.slope is None:
            return self.f(t, v) - self.mass_times(slope)
        back = self.coordinates.unflatten
        return -self.coordinates.flatten(self.field.residual(t, back(slope), back(v)))

    def jacobian(self, t: Array, v: Vector, slope: Vector) -> Jacobian:
        """What `shifted` makes the residual's derivatives of."""
        if self.field.slope is None:
            return self.value_and_jacobian(t, v)[1]
        if self.solver is not None:
            raise ValueError(
                "linear_solver=dj.GMRES() needs an equation M u' = f(u, p, t), got a DAEProblem "
                "F(u', u, p, t) = 0: leave linear_solver out, or write it with a mass_matrix."
            )
        sparsity, back = self.field.sparsity, self.coordinates.unflatten
        if self.field.jac_args is not None:
            given = self.field.jacobians(t, back(slope), back(v))
            of_slope, of_state = (x if sparsity is None else sparsity.of_dense(x) for x in given)
            return of_slope, of_state
        find = value_and_jacobian if sparsity is None else sparsity.value_and_jacobian
        _, of_slope = find(lambda slope: -self.residual(t, v, slope), slope)
        _, of_state = find(lambda v: -self.residual(t, v, slope), v)
        return of_slope, of_state

    def shifted(self, scale: Array, jacobian: Jacobian) -> Matrix:
        """scale*M - df/dv, or scale*dF/dv' + dF/dv; complex if the scale is."""
        if isinstance(jacobian, MatrixFree):
            return shifted(scale, self.field.mass, jacobian)
        mass, dtype = self.field.mass, scale.dtype
        jacobian = jtu.tree_map(lambda x: x.astype(dtype), jacobian)
        if isinstance(jacobian, tuple):
            of_slope, of_state = jacobian
            return jtu.tree_map(lambda x, y: scale * x + y, of_slope, of_state)
        return shifted(scale, None if mass is None else mass.astype(dtype), jacobian)

    def algebraic(self) -> Bool[Array, " n"] | None:
        """Which rows of M are zero; None without a mass matrix."""
        mass = self.field.mass
        if mass is None:
            return None
        return mass == 0 if mass.ndim == 1 else jnp.all(mass == 0, axis=1)

    def derivative(self, t: Array, v: Vector) -> Vector:
        """v'. Algebraic components follow from the derivative of their equations.

        It is not finite if that leaves them open (the index is higher than one).
        """
        algebraic = self.algebraic()
        if algebraic is None:
            return self.f(t, v)
        value, jacobian = self.value_and_jacobian(t, v)
        in_time = self.time_derivative(t, v)
        mass = self.shifted(jnp.ones((), v.dtype), 0.0 * jacobian)
        implied = jnp.zeros_like(value) if in_time is None else -in_time
        matrix = rows_of(algebraic, jacobian, mass)
        return factorize(matrix)(jnp.where(algebraic, implied, value))


def radius(jacobian: Jacobian) -> Float[Array, ""]:
    """A bound of the eigenvalues of df/dv; not finite if the Jacobian is not."""
    parts = jacobian if isinstance(jacobian, tuple) else (jacobian,)
    return jnp.max(jnp.stack([row_sum_norm(part) for part in parts]))


def derivative(field: Field, t: Array, u: State, solver: GMRES | None = None) -> State:
    """u', which with a mass matrix is not f.

    An equation F(u', u, p, t) = 0 has no formula for it: then it is what it is at the start, which
    is where a solve asks for it.
    """
    if field.slope is not None:
        return field.slope
    if field.mass is None:
        return field.f(t, u)
    view = VectorField(field, u, solver)
    return view.coordinates.unflatten(view.derivative(t, view.coordinates.flatten(u)))
