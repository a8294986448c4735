"""The equation of a BDF step, its solution by simplified Newton iterations, and its derivative."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from ..linear.dense import factorize, row_sum_norm
from ..linear.newton import NewtonResult, Stop, implicit_solution, newton, relative_size, trusted
from ..linear.reuse import KEPT, Matrices, renewed
from .base import Field, Norm, State
from .implicit import VectorField

Vector = Float[Array, " n"]
Matrix = Float[Array, "n n"]
Scalar = Float[Array, ""]

# Iterations whose updates shrink by less than this are slow enough to want a new Jacobian.
_SLOW = 0.05


class Equation(NamedTuple):
    """M (lead*e + slope) = h f(t, predicted + e), for the correction e.

    A fully implicit F(u', u, p, t) = 0 needs another `defect` and another `matrix`, and nothing
    else here or in `bdf`.
    """

    t: Scalar
    h: Scalar
    predicted: Vector
    slope: Vector
    lead: Scalar

    @property
    def scale(self) -> Scalar:
        """The derivative of u' by u that the formula has."""
        return self.lead / self.h

    def defect(self, view: VectorField, e: Vector) -> Vector:
        """f - M u'."""
        slope = (self.lead * e + self.slope) / self.h
        return view.f(self.t, self.predicted + e) - view.mass_times(slope)

    def jacobian(self, view: VectorField, e: Vector) -> Matrix:
        """df/du."""
        return view.value_and_jacobian(self.t, self.predicted + e)[1]


class Cache(NamedTuple):
    """What saves the next step work.

    - `rate`: by which the updates of the last iteration shrank.
    - `matrices`: None where they are too small to be worth it.
    """

    rate: Scalar
    matrices: Matrices | None

    @staticmethod
    def none(n: int, dtype: jnp.dtype) -> "Cache":
        return Cache(jnp.ones((), dtype), Matrices.none(n, dtype) if n > KEPT else None)


class Work(NamedTuple):
    """What a step counts."""

    nf: Int[Array, ""]
    njac: Int[Array, ""]
    nfactor: Int[Array, ""]
    nsolve: Int[Array, ""]
    nnewton_fail: Int[Array, ""]

    @staticmethod
    def of(done: NewtonResult, njac: Array, nfactor: Array) -> "Work":
        failed = (~done.converged).astype(jnp.int32)
        return Work(done.iterations, njac, nfactor, done.iterations, failed)


class Solved(NamedTuple):
    """The last attempt at a correction, without derivative, and the matrices that it had; `radius`
    bounds the eigenvalues of the Jacobian."""

    done: NewtonResult
    matrices: Matrices | None
    work: Work
    radius: Scalar

    @property
    def regular(self) -> Bool[Array, ""]:
        """Whether what it came to is finite, and so is the Jacobian."""
        return jnp.isfinite(self.radius) & jnp.all(jnp.isfinite(self.done.x))

    def handed_on(self) -> tuple[Cache, Cache]:
        """For the next step, and for another attempt at this one."""
        rate, matrices = self.done.rate, self.matrices
        if matrices is not None:
            no = jnp.zeros_like(matrices.current)
            matrices = matrices._replace(current=no, outdated=rate > _SLOW)
        return Cache(rate, matrices), Cache(jnp.ones_like(rate), matrices)


class Corrector:
    """Solves the equation of a step from `u`. Nothing here is differentiated."""

    def __init__(self, field: Field, equation: Equation, u: State, norm: Norm | None) -> None:
        self.view, self.equation = VectorField(field, u), equation
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
        one = jnp.ones((), jnp.int32)
        return Solved(done, None, Work.of(done, one, one), row_sum_norm(jacobian))

    def _solve_with(self, cache: Cache, matrices: Matrices) -> Solved:
        """With matrices that are kept; should they not do, once more with new ones."""
        scale = self.equation.scale

        def attempt(
            state: tuple[Matrices, NewtonResult, Work],
        ) -> tuple[Matrices, NewtonResult, Work]:
            old, _, before = state
            again = before.nf > 0
            new, njac, nfactor = renewed(
                old, scale, self.jacobian, self.view.shifted, old.outdated | again
            )
            done = self.attempt(cache, lambda b: new.solve(scale, b))
            work = Work.of(done, njac, nfactor)
            return new, done, Work(*(x + y for x, y in zip(before, work, strict=True)))

        def unsettled(state: tuple[Matrices, NewtonResult, Work]) -> Array:
            matrices, done, work = state
            return (work.nf == 0) | (~done.converged & ~matrices.current)

        zero = jnp.zeros((), jnp.int32)
        nothing = jnp.zeros_like(self.equation.predicted)
        blank = NewtonResult(nothing, jnp.zeros((), bool), cache.rate, zero)
        state = matrices, blank, Work(*[zero] * len(Work._fields))
        matrices, done, work = jax.lax.while_loop(unsettled, attempt, state)
        return Solved(done, matrices, work, row_sum_norm(matrices.jacobian))

    def jacobian(self) -> Matrix:
        equation = self.equation
        return equation.jacobian(self.view, jnp.zeros_like(equation.predicted))

    def attempt(self, cache: Cache, solve: Callable[[Vector], Vector]) -> NewtonResult:
        return newton(
            lambda e: self.equation.defect(self.view, e),
            solve,
            self.size,
            jnp.zeros_like(self.equation.predicted),
            trusted(cache.rate),
            self.stop,
        )


def with_derivative(field: Field, equation: Equation, u: State, e: Vector) -> Vector:
    """The correction with the derivative of the solution of its equation."""
    leaves, structure = jtu.tree_flatten(field)
    count = len(Equation._fields)

    def parts(arguments: tuple[Array, ...]) -> tuple[VectorField, Equation]:
        view = VectorField(jtu.tree_unflatten(structure, arguments[count:]), u)
        return view, Equation(*arguments[:count])

    def residual(e: Vector, *arguments: Array) -> Vector:
        view, equation = parts(arguments)
        return equation.defect(view, e)

    def jacobian(e: Vector, *arguments: Array) -> Matrix:
        view, equation = parts(arguments)
        return view.shifted(equation.scale, equation.jacobian(view, e))

    return implicit_solution(residual, jacobian, e, [*equation, *leaves])
