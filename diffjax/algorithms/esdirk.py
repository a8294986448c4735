"""Singly diagonally implicit Runge-Kutta methods: one engine, the methods are tableaus.

All stages of a step share one matrix, W = M/(gamma*dt) - df/du, and are solved one after the other
by simplified Newton iterations (`linear/newton`). Iterating and differentiating are kept apart:
the stages are first solved as if nothing had a derivative, and then given theirs, by the implicit
function theorem at each stage.

What a step hands to the next only saves work: the derivative that its last stage has found, how
fast its iterations were, and for larger systems the matrices (`linear/reuse`).
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..linear.coordinates import Coordinates
from ..linear.dense import Matrix, factorize, row_sum_norm
from ..linear.krylov import GMRES, check_linear_solver
from ..linear.newton import NewtonResult, newton, newton_to_rounding, trusted
from ..linear.reuse import Matrices, are_kept, renewed, settled
from .base import Field, Memory, Norm, State, StepResult, TableauMethod
from .implicit import VectorField, derivative
from .implicit_stage import (
    Row,
    Stages,
    in_turn,
    is_looped,
    output_stages,
    stage_residual,
    stage_with_derivative,
    stopping,
)
from .iterating import SLOW, Work, error_or_failed
from .stages import combine, evaluate_extension, scaled
from .tableaus.esdirk import ESDIRKTableau

Vector = Float[Array, " n"]

# One matrix, which is `linear/reuse`'s with this shift.
_SHIFTS = (1.0,)


class _Cache(NamedTuple):
    """What a step hands to the next.

    - `slope`: the derivative at its end; None if the first stage is implicit.
    - `rate`: by which the updates of its slowest Newton iteration shrank.
    - `matrices`: None where they are too small to be worth it.
    """

    slope: Vector | None
    rate: Float[Array, ""]
    matrices: Matrices | None


class _Attempt(NamedTuple):
    """The implicit stages of a step, without derivative, and what led to them.

    `rate` is the slowest of those of their iterations that were measured, `iterations` how many.
    """

    stages: list[Vector]
    converged: Bool[Array, ""]
    rate: Float[Array, ""]
    iterations: Int[Array, ""]


class _Solved(NamedTuple):
    """The last attempt at a step's stages, with the matrices that it had.

    `filtered(x)` is W^-1 M/(gamma dt) x, `radius` bounds the eigenvalues of the Jacobian.
    """

    attempt: _Attempt
    matrices: Matrices | None
    work: Work
    filtered: Callable[[Vector], Vector]
    radius: Float[Array, ""]

    @property
    def regular(self) -> Bool[Array, ""]:
        """Whether the Jacobian is finite."""
        return jnp.isfinite(self.radius)


class ESDIRK(TableauMethod):
    """A singly diagonally implicit Runge-Kutta method given by its tableau.

    **Arguments:**

    - `tableau`: the coefficients.
    - `linear_solver`: `dj.GMRES(...)` for large systems, without a matrix; by default matrices are
        factorised.

    **Raises:** `TypeError` if `linear_solver` is anything else.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem"})
    takes_mass_matrix: ClassVar[bool] = True
    counted: ClassVar[tuple[str, ...]] = Work._fields

    tableau: ESDIRKTableau = eqx.field(static=True)
    linear_solver: GMRES | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_linear_solver(self.linear_solver)

    @property
    def init_counts(self) -> dict[str, int]:
        return {"nf": 1} if self.tableau.explicit_first else {}

    def init(self, field: Field, t: Array, u: State) -> Memory:
        coordinates = Coordinates(u)
        n, dtype = coordinates.size, coordinates.dtype
        slope = None
        if self.tableau.explicit_first:
            slope = coordinates.flatten(derivative(field, t, u, self.linear_solver))
        matrices = None
        if self.linear_solver is None and are_kept(n, field.sparsity):
            matrices = Matrices.none(n, dtype, _SHIFTS, field.sparsity)
        return Memory(cache=_Cache(slope, jnp.ones((), dtype), matrices))

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        coordinates = Coordinates(u)
        start = coordinates.flatten(u)
        h = dt.astype(start.dtype)
        solver = _StageSolver(self, *jax.lax.stop_gradient((field, t, h, u)), norm)
        cache: _Cache = memory.cache
        solved = solver.solve(jax.lax.stop_gradient(cache))
        done = solved.attempt
        looped = norm is None and is_looped(start.size)
        stages, end = self._with_derivatives(field, t, h, u, cache.slope, done.stages, looped)
        u_end = coordinates.unflatten(end)
        error, work = None, solved.work
        if norm is not None:
            error = self._error(solved, coordinates, stages, u, u_end, norm)
            work = work._replace(nsolve=work.nsolve + 1)
        accepted, rejected = _handed_on(solved)
        slope = stages[-1] / h if self.tableau.explicit_first else None
        return StepResult(
            u=u_end,
            error=error,
            ok=done.converged,
            memory=Memory(cache=_Cache(slope, done.rate, accepted)),
            memory_if_rejected=Memory(
                cache=_Cache(cache.slope, jnp.ones_like(done.rate), rejected)
            ),
            stages=tuple(stages),
            counts=jnp.stack(work),
            stiffness=scaled(solved.radius, jnp.abs(dt)),
        )

    def _with_derivatives(
        self,
        field: Field,
        t: Array,
        h: Array,
        u: State,
        slope: Vector | None,
        solved: list[Vector],
        looped: bool,
    ) -> tuple[list[Vector], Vector]:
        """The stages and the end of the step."""
        tableau = self.tableau
        gamma, start = tableau.gamma, Coordinates(u).flatten(u)

        def one(stages: Stages, row: Row, z: Vector) -> tuple[Vector, Vector]:
            base, at = row.after(start, stages), t + (row.node * h).astype(t.dtype)
            z = stage_with_derivative(field, u, z, at, h, base, gamma, self.linear_solver)
            # Of the same base: its cotangents from here and from z nearly cancel in stiff systems.
            return z, base + gamma * z

        known = [] if slope is None else [h * slope]
        rows = list(zip(_implicit_rows(tableau), solved, strict=True))
        stages, ends = in_turn(one, known, start, rows, looped)
        return stages, ends[-1] if tableau.explicit_first else _plus(start, tableau.b, stages)

    def _error(
        self,
        solved: _Solved,
        coordinates: Coordinates,
        stages: list[Vector],
        u: State,
        u_end: State,
        norm: Norm,
    ) -> Float[Array, ""]:
        """The geometric mean of the error estimate and of W^-1 M/(gamma dt) times it.

        The plain estimate overrates stiff components, which that filter damps (HW II, section
        IV.8, equation (8.19)). The filtered one underrates components that are moderately stiff:
        alone it loses two digits on HIRES, as the plain one takes twice the steps on Robertson's
        problem. Under the filter algebraic components get the error that others cause in them.
        """
        assert self.tableau.b_error is not None
        estimate = _plus(jnp.zeros_like(stages[0]), self.tableau.b_error, stages)
        estimate = jax.lax.stop_gradient(estimate)
        plain, filtered = (
            norm(coordinates.unflatten(x), u, u_end) for x in (estimate, solved.filtered(estimate))
        )
        error = self.tableau.caution * jnp.sqrt(plain * filtered)
        return error_or_failed(error, solved.attempt.converged, solved.regular)

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        """The coefficients of a polynomial in theta; see `evaluate_extension`."""
        extension, coordinates = self.tableau.dense, Coordinates(u)
        start = coordinates.flatten(u)
        h, known = dt.astype(start.dtype), list(stages)
        if extension.gamma_extra:
            end, solver = _plus(start, self.tableau.b, known), self.linear_solver
            known += output_stages(field, t, h, u, end, known, extension, solver)
        else:
            for a, c in zip(extension.a_extra, extension.c_extra, strict=True):
                at = coordinates.unflatten(_plus(start, a, known))
                slope = derivative(field, t + c * dt, at, self.linear_solver)
                known.append(h * coordinates.flatten(slope))
        columns = zip(*extension.weights, strict=True)
        sums = [_plus(jnp.zeros_like(start), column, known) for column in columns]
        return (u, *map(coordinates.unflatten, sums))

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        return evaluate_extension(coefficients, theta)


def _implicit_stages(
    tableau: ESDIRKTableau,
) -> Iterator[tuple[tuple[float, ...], float, tuple[float, ...]]]:
    """Of each implicit stage its row of a, its node and its predictor."""
    first = 1 if tableau.explicit_first else 0
    return zip(tableau.a[first:], tableau.c[first:], tableau.predictor[first:], strict=True)


def _implicit_rows(tableau: ESDIRKTableau) -> list[Row]:
    return [Row(a, c) for a, c, _ in _implicit_stages(tableau)]


def _nearest_rows(tableau: ESDIRKTableau) -> list[Row]:
    """For each implicit stage that of the state before it, of those at the start and at the end of
    stages, whose node is nearest to its own."""
    states, rows = [Row((), 0.0)], []
    for a, c in _implicit_rows(tableau):
        rows.append(min(reversed(states), key=lambda state, c=c: abs(state.node - c)))
        states.append(Row((*a, tableau.gamma), c))
    return rows


class _StageSolver:
    """Solves M z_i = dt f(t + c_i dt, u + sum_j a_ij z_j + gamma z_i), stage after stage.

    Nothing here is differentiated.
    """

    def __init__(
        self, alg: ESDIRK, field: Field, t: Array, h: Array, u: State, norm: Norm | None
    ) -> None:
        self.tableau, self.t, self.h = alg.tableau, t, h
        self.view = VectorField(field, u, alg.linear_solver, exact=False)
        coordinates = self.view.coordinates
        self.start = coordinates.flatten(u)
        self.scale = 1 / (self.tableau.gamma * h)
        self.to_rounding = norm is None
        self.stop, self.size = stopping(self.view, u, self.start, norm)

    def solve(self, cache: _Cache) -> _Solved:
        if cache.matrices is not None:
            return self._solve_with(cache, cache.matrices)
        jacobian = self.jacobian()
        inverse = factorize(self.view.shifted(self.scale, jacobian))
        done = self.attempt(cache, inverse)
        new = jnp.full((), 1 if self.view.solver is None else 0, jnp.int32)
        return _Solved(
            attempt=done,
            matrices=None,
            work=_work(done, new, new),
            filtered=lambda x: inverse(self.scale * self.view.mass_times(x)),
            radius=row_sum_norm(jacobian),
        )

    def _solve_with(self, cache: _Cache, matrices: Matrices) -> _Solved:
        """With matrices that are kept; should they not do, once more with new ones."""

        def renew(old: Matrices, want: Array) -> tuple[Matrices, Array, Array]:
            return renewed(old, self.scale, self.jacobian, self.view.shifted, _SHIFTS, want)

        def attempt(new: Matrices, njac: Array, nfactor: Array) -> tuple[_Attempt, Work]:
            done = self.attempt(cache, lambda b: new.solve(0, self.scale, b))
            return done, _work(done, njac, nfactor)

        matrices, done, work = settled(matrices, renew, attempt)
        return _Solved(
            attempt=done,
            matrices=matrices,
            work=work,
            filtered=lambda x: matrices.solve(
                0, matrices.scale, matrices.scale * self.view.mass_times(x)
            ),
            radius=row_sum_norm(matrices.jacobian),
        )

    def jacobian(self) -> Matrix:
        return self.view.value_and_jacobian(self.t, self.start)[1]

    def attempt(self, cache: _Cache, solve: Callable[[Vector], Vector]) -> _Attempt:
        tableau, gamma, view, h = self.tableau, self.tableau.gamma, self.view, self.h
        known = [] if cache.slope is None else [h * cache.slope]
        first = len(known)
        if self.to_rounding:
            return self._attempt_to_rounding(known, solve)
        converged, measured = jnp.ones((), bool), jnp.zeros((), bool)
        rate, iterations = trusted(cache.rate), jnp.zeros((), jnp.int32)
        for a, c, predictor in _implicit_stages(tableau):
            at, base = self.t + (c * h).astype(self.t.dtype), _plus(self.start, a, known)
            result = newton(
                stage_residual(view, gamma, at, h, base),
                lambda r: solve(r) / gamma,
                lambda update, z, base=base: self.size(gamma * update, base + gamma * z),
                _plus(jnp.zeros_like(base), predictor, known),
                rate,
                self.stop,
            )
            known = [*known, result.x]
            converged = converged & result.converged
            rate = jnp.where(measured, jnp.maximum(rate, result.rate), result.rate)
            measured = measured | (result.iterations > 1)
            iterations = iterations + result.iterations
        return _Attempt(known[first:], converged, rate, iterations)

    def _attempt_to_rounding(
        self, known: list[Vector], solve: Callable[[Vector], Vector]
    ) -> _Attempt:
        def one(stages: Stages, row: Row, near: Row) -> tuple[Vector, NewtonResult]:
            at = self.t + (row.node * self.h).astype(self.t.dtype)
            base, guess = (x.after(self.start, stages) for x in (row, near))
            result = self._to_rounding(at, base, guess, solve)
            return result.x, result

        rows = zip(_implicit_rows(self.tableau), _nearest_rows(self.tableau), strict=True)
        stages, done = in_turn(one, known, self.start, list(rows), is_looped(self.start.size))
        return _Attempt(
            stages[len(known) :],
            jnp.all(done.converged),
            jnp.max(done.rate),
            jnp.sum(done.iterations, dtype=jnp.int32),
        )

    def _to_rounding(
        self, t: Array, base: Vector, near: Vector, solve: Callable[[Vector], Vector]
    ) -> NewtonResult:
        """A stage to rounding, from a state that is near its own.

        A predictor would not do: what is handed on of derivatives is lost when a step is taken
        again, and that of a rounded state has large stiff components.
        """
        gamma, view = self.tableau.gamma, self.view

        def at(z: Vector) -> Callable[[Vector], Vector]:
            _, jacobian = view.value_and_jacobian(t, base + gamma * z)
            solve = factorize(view.shifted(self.scale, jacobian))
            return lambda r: solve(r) / gamma

        residual = stage_residual(view, gamma, t, self.h, base)
        return newton_to_rounding(residual, at, (near - base) / gamma, lambda r: solve(r) / gamma)


def _work(done: _Attempt, njac: Array, nfactor: Array) -> Work:
    failed = (~done.converged).astype(jnp.int32)
    return Work(done.iterations, njac, nfactor, done.iterations, failed)


def _handed_on(solved: _Solved) -> tuple[Matrices | None, Matrices | None]:
    """The matrices for the next step, and for another attempt at this one."""
    matrices = solved.matrices
    if matrices is None:
        return None, None
    return matrices.handed_on(solved.attempt.rate > SLOW), matrices


def _plus(x: Vector, weights: tuple[float, ...], stages: list[Vector]) -> Vector:
    """`x` plus the weighted sum of the stages."""
    total = combine(weights, stages)
    return x if total is None else x + total
