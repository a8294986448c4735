"""What implicit methods see of a vector field: real coordinates, Jacobian, mass matrix."""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float

from ..linear.coordinates import Coordinates
from ..linear.dense import factorize, times
from ..linear.jacobian import value_and_jacobian, varying_like
from .base import Field, State

Vector = Float[Array, " n"]
Matrix = Float[Array, "n n"]
# df/dv; of F(v', v, t) = 0 the pair of dF/dv' and dF/dv.
Jacobian = Matrix | tuple[Matrix, Matrix]


class VectorField:
    """M v' = f(t, v), or F(v', v, t) = 0, in the real coordinates of states like `u`."""

    def __init__(self, field: Field, u: State) -> None:
        self.field, self.coordinates = field, Coordinates(u)

    def f(self, t: Array, v: Vector) -> Vector:
        return self.coordinates.flatten(self.field.f(t, self.coordinates.unflatten(v)))

    def value_and_jacobian(self, t: Array, v: Vector) -> tuple[Vector, Matrix]:
        """f and df/dv."""
        if self.field.jac_args is not None:
            return self.f(t, v), self.field.jac(t, self.coordinates.unflatten(v))
        return value_and_jacobian(lambda v: self.f(t, v), v)

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
        _, of_slope = value_and_jacobian(lambda slope: -self.residual(t, v, slope), slope)
        _, of_state = value_and_jacobian(lambda v: -self.residual(t, v, slope), v)
        return of_slope, of_state

    def shifted(self, scale: Array, jacobian: Jacobian) -> Matrix:
        """scale*M - df/dv, or scale*dF/dv' + dF/dv; complex if the scale is."""
        mass, dtype = self.field.mass, scale.dtype
        jacobian = jtu.tree_map(lambda x: x.astype(dtype), jacobian)
        if isinstance(jacobian, tuple):
            of_slope, of_state = jacobian
            return scale * of_slope + of_state
        mass = None if mass is None else mass.astype(dtype)
        if mass is not None and mass.ndim == 2:
            return scale * mass - jacobian
        identity = jnp.eye(jacobian.shape[0], dtype=jacobian.dtype)
        diagonal = scale if mass is None else (scale * mass)[:, None]
        return diagonal * identity - jacobian

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
        mass = self.shifted(jnp.ones((), v.dtype), jnp.zeros_like(jacobian))
        implied = jnp.zeros_like(value) if in_time is None else -in_time
        matrix = jnp.where(algebraic[:, None], jacobian, mass)
        return factorize(matrix)(jnp.where(algebraic, implied, value))


def derivative(field: Field, t: Array, u: State) -> State:
    """u', which with a mass matrix is not f.

    An equation F(u', u, p, t) = 0 has no formula for it: then it is what it is at the start, which
    is where a solve asks for it.
    """
    if field.slope is not None:
        return field.slope
    if field.mass is None:
        return field.f(t, u)
    view = VectorField(field, u)
    return view.coordinates.unflatten(view.derivative(t, view.coordinates.flatten(u)))
