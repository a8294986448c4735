"""What implicit methods see of a vector field: real coordinates, Jacobian, mass matrix."""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float

from ..linear.coordinates import Coordinates
from ..linear.dense import Matrix, factorize, rows_of, shifted, times
from ..linear.jacobian import value_and_jacobian, varying_like
from .base import Field, State

Vector = Float[Array, " n"]


class VectorField:
    """M v' = f(t, v) in the real coordinates of states like `u`."""

    def __init__(self, field: Field, u: State) -> None:
        self.field, self.coordinates = field, Coordinates(u)

    def f(self, t: Array, v: Vector) -> Vector:
        return self.coordinates.flatten(self.field.f(t, self.coordinates.unflatten(v)))

    def value_and_jacobian(self, t: Array, v: Vector) -> tuple[Vector, Matrix]:
        """f and df/dv."""
        sparsity = self.field.sparsity
        if self.field.jac_args is not None:
            given = self.field.jac(t, self.coordinates.unflatten(v))
            return self.f(t, v), given if sparsity is None else sparsity.of_dense(given)
        find = value_and_jacobian if sparsity is None else sparsity.value_and_jacobian
        return find(lambda v: self.f(t, v), v)

    def time_derivative(self, t: Array, v: Vector) -> Vector | None:
        """df/dt; None where it is zero for certain."""
        if self.field.autonomous:
            return None
        one = varying_like(t, jnp.ones_like(t))
        return jax.jvp(lambda t: self.f(t, v), (t,), (one,))[1]

    def mass_times(self, v: Vector) -> Vector:
        """M v."""
        mass = self.field.mass
        if mass is None:
            return v
        return mass * v if mass.ndim == 1 else times(mass, v)

    def shifted(self, scale: Array, jacobian: Matrix) -> Matrix:
        """scale*M - df/dv."""
        return shifted(scale, self.field.mass, jacobian)

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
        nothing = jtu.tree_map(jnp.zeros_like, jacobian)
        mass = self.shifted(jnp.ones((), v.dtype), nothing)
        implied = jnp.zeros_like(value) if in_time is None else -in_time
        matrix = rows_of(algebraic, jacobian, mass)
        return factorize(matrix)(jnp.where(algebraic, implied, value))


def derivative(field: Field, t: Array, u: State) -> State:
    """u', which with a mass matrix is not f."""
    if field.mass is None:
        return field.f(t, u)
    view = VectorField(field, u)
    return view.coordinates.unflatten(view.derivative(t, view.coordinates.flatten(u)))
