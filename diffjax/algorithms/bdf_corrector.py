"""The equation of a BDF step, its solution by simplified Newton iterations, and its derivative."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float

from ..linear.dense import factorize
from ..linear.jacobian import varying_like
from ..linear.krylov import GMRES
from ..linear.newton import NewtonResult, Stop, implicit_solution, newton, relative_size, trusted
from ..linear.reuse import Matrices, are_kept, renewed, settled
from .base import Field, Norm, State
from .implicit import Jacobian, VectorField, radius
from .iterating import SLOW, Work

Vector = Float[Array, " n"]
Scalar = Float[Array, ""]

# The matrix of a step, as a multiple of M/h minus the Jacobian; the multiple is in the scale.
_SHIFTS = (1.0,)


class Equation(NamedTuple):
    """M (lead*e + slope) = h f(t, predicted + e), for the correction e; or F with that u'."""

    t: Scalar
    h: Scalar
    predicted: Vector
    slope: Vector
    lead: Scalar

    @property
    def scale(self) -> Scalar:
        """The derivative of u' by u that the formula has."""
        return self.lead / self.h

    def derivative(self, e: Vector) -> Vector:
        """u'."""
        return (self.lead * e + self.slope) / self.h

    def defect(self, view: VectorField, e: Vector) -> Vector:
        """f - M u', or -F."""
        return view.residual(self.t, self.predicted + e, self.derivative(e))

    def jacobian(self, view: VectorField, e: Vector) -> Jacobian:
        return view.jacobian(self.t, self.predicted + e, self.derivative(e))


class Cache(NamedTuple):
    """What saves the next step work.

    - `rate`: by which the updates of the last iteration shrank.
    - `matrices`: None where they are too small to be worth it.
    """

    rate: Scalar
    matrices: Matrices | None

    @staticmethod
    def none(field: Field, n: int, dtype: jnp.dtype, solver: GMRES | None) -> "Cache":
        matrices = None
        if solver is None and are_kept(n, field.sparsity):
            implicit = field.slope is not None
            matrices = Matrices.none(n, dtype, _SHIFTS, field.sparsity, implicit)
        return Cache(jnp.ones((), dtype), matrices)


class Solved(NamedTuple):
    """The last attempt at a correction, without derivative; `radius` bounds the eigenvalues of the
    Jacobian."""

    done: NewtonResult
    matrices: Matrices | None
    work: Work
    radius: Scalar

    @property
    def regular(self) -> Bool[Array, ""]:
        """Whether what the attempt came to is finite, and so is the Jacobian."""
        return jnp.all(jnp.isfinite(self.done.x)) & jnp.isfinite(self.radius)

    def handed_on(self) -> tuple[Cache, Cache]:
        """For the next step, and for another attempt at this one."""
        rate, matrices = self.done.rate, self.matrices
        # The rate of a single iteration is not measured but remembered, and grows on every step.
        slow = (rate > SLOW) & (self.done.iterations > 1)
        accepted = None if matrices is None else matrices.handed_on(slow)
        return Cache(rate, accepted), Cache(jnp.ones_like(rate), matrices)


class Corrector:
    """Solves the equation of a step from `u`. Nothing here is differentiated."""

    def __init__(
        self,
        field: Field,
        equation: Equation,
        u: State,
        norm: Norm | None,
        solver: GMRES | None,
    ) -> None:
        self.view, self.equation = VectorField(field, u, solver, exact=False), equation
        coordinates, predicted = self.view.coordinates, equation.predicted
        if norm is None:
            self.stop = Stop.at_rounding(coordinates.dtype)
            self.size = lambda update, e: relative_size(update, predicted + e)
            return

        def size(update: Vector, _: Vector) -> Scalar:
            return norm(coordinates.unflatten(update), u, u)

        eps = float(jnp.finfo(coordinates.dtype).eps)
        self.stop, self.size = Stop.at_tolerance(size(eps * predicted, predicted)), size

    def solve(self, cache: Cache) -> Solved:
        if cache.matrices is not None:
            return self._solve_with(cache, cache.matrices)
        jacobian = self.jacobian()
        done = self.attempt(cache, factorize(self.view.shifted(self.equation.scale, jacobian)))
        new = jnp.full((), 1 if self.view.solver is None else 0, jnp.int32)
        return Solved(done, None, _work(done, new, new), radius(jacobian))

    def _solve_with(self, cache: Cache, matrices: Matrices) -> Solved:
        """With matrices that are kept; should they not do, once more with new ones."""
        scale = self.equation.scale

        def renew(old: Matrices, want: Array) -> tuple[Matrices, Array, Array]:
            return renewed(old, scale, self.jacobian, self.view.shifted, _SHIFTS, want)

        def attempt(new: Matrices, njac: Array, nfactor: Array) -> tuple[NewtonResult, Work]:
            done = self.attempt(cache, lambda b: new.solve(0, scale, b))
            return done, _work(done, njac, nfactor)

        matrices, done, work = settled(matrices, renew, attempt)
        return Solved(done, matrices, work, radius(matrices.jacobian))

    def jacobian(self) -> Jacobian:
        equation = self.equation
        return equation.jacobian(self.view, jnp.zeros_like(equation.predicted))

    def attempt(self, cache: Cache, solve: Callable[[Vector], Vector]) -> NewtonResult:
        return newton(
            lambda e: self.equation.defect(self.view, e),
            solve,
            self.size,
            varying_like(self.equation.predicted, jnp.zeros_like(self.equation.predicted)),
            trusted(cache.rate),
            self.stop,
        )


def with_derivative(
    field: Field, equation: Equation, u: State, e: Vector, linear_solver: GMRES | None
) -> Vector:
    """The correction with the derivative of the solution of its equation."""
    leaves, structure = jtu.tree_flatten(field)
    count = len(Equation._fields)

    def parts(arguments: tuple[Array, ...]) -> tuple[VectorField, Equation]:
        view = VectorField(jtu.tree_unflatten(structure, arguments[count:]), u, linear_solver)
        return view, Equation(*arguments[:count])

    def residual(e: Vector, *arguments: Array) -> Vector:
        view, equation = parts(arguments)
        return equation.defect(view, e)

    def solver(e: Vector, *arguments: Array) -> Callable[[Vector], Vector]:
        view, equation = parts(arguments)
        return factorize(view.shifted(equation.scale, equation.jacobian(view, e)))

    return implicit_solution(residual, solver, e, [*equation, *leaves])


def _work(done: NewtonResult, njac: Array, nfactor: Array) -> Work:
    failed = (~done.converged).astype(jnp.int32)
    return Work(done.iterations, njac, nfactor, done.iterations, failed)
