"""The Radau IIA method: three implicit stages that are solved for together.

The unknowns are the stages' increments z, with the equations

    f(t + c_i dt, u + z_i) - M (a^-1 z)_i / dt = 0.

Simplified Newton iterations take one Jacobian J for all stages. In the variables w = T^-1 z
(HW II, section IV.8) they then fall apart into a real system of the size of the state, with the
matrix gamma/dt M - J, and a complex one, with (alpha + i beta)/dt M - J.

Iterating and differentiating are kept apart: the stages are first solved for as if nothing had a
derivative, and then given theirs, by the implicit function theorem, which takes the Jacobian of
each stage. Its linear system is solved by iterations too, which have the factors of the step to
make them short, so that no matrix of three times the size is ever formed.

What a step hands to the next only saves work: its stages, whose polynomial goes on into the next
step as a first guess, how fast its iteration was, and for larger systems the matrices.

Of a fully implicit F(u', u, p, t) = 0 the equations are F((a^-1 z)_i / dt, u + z_i, t_i) = 0,
with dF/du' for M and -dF/du for J. Both depend on u', so that its value at the end of a step is
handed on too; as a choice, since it has a say in the iterations and none in where they end.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Complex, Float, Int, PyTree

from ..linear.coordinates import Coordinates
from ..linear.dense import after, factorize
from ..linear.krylov import GMRES, check_linear_solver
from ..linear.newton import NewtonResult, Stop, implicit_solution, newton, relative_size, trusted
from ..linear.reuse import Matrices, are_kept, renewed, scaled, settled
from . import tableaus
from .base import Field, Memory, Norm, State, StepResult, TableauMethod
from .implicit import Jacobian, VectorField, radius
from .implicit_stage import output_stages
from .iterating import SLOW, Work, error_or_failed
from .stages import evaluate_extension
from .tableaus.radau import RadauTableau

Vector = Float[Array, " n"]
Stages = Float[Array, "3 n"]

# The estimate is of order 3 and the solution of order 5, of which stiffness leaves some order
# between: the estimate is held to 0.08 rtol^(3/4), instead of rtol, where that is looser. With the
# 0.1 rtol^(2/3) of RADAU5 the errors on BEAM and HIRES fall by a digit less than the tolerance.
_TRANSFORM = 0.08
# The error that iterations may leave in the stages, in units of the tolerance. Ten times more saves
# a seventh of the evaluations, and costs Van der Pol's oscillator, which amplifies errors where it
# turns, one or two digits.
_LEFT = 1e-3
# A guess that looks ahead further than this many steps of the last size is none.
_FURTHEST = 4.0
# Over a step that grew by more than this the rate of the last one is not expected: in one of ten
# solves of Van der Pol's oscillator at 1e-4 it let the iteration stop after one update where the
# solution turns, at the price of two digits.
_ALIKE = 1.5


class _Cache(NamedTuple):
    """What a step hands to the next.

    - `stages`, `dt`: of the last accepted step; zero where there is none that would serve.
    - `rate`: by which the updates of its Newton iteration shrank.
    - `steady`: the step before was accepted.
    - `matrices`: None where they are too small to be worth it.
    """

    stages: Stages
    dt: Float[Array, ""]
    rate: Float[Array, ""]
    steady: Bool[Array, ""]
    matrices: Matrices | None


class _Systems(NamedTuple):
    """Solutions of linear systems: of the real one, of the complex one, and so of all stages'."""

    tableau: RadauTableau
    real: Callable[[Vector], Vector]
    complex: Callable[[Complex[Array, " n"]], Complex[Array, " n"]]

    def all(self, b: Stages) -> Stages:
        """x with ((a^-1 x M)/dt - J x) = b."""
        first, *pair = _mix(self.tableau.to_modes, b)
        both = self.complex(jax.lax.complex(*pair))
        modes = jnp.stack([self.real(first), jnp.real(both), jnp.imag(both)])
        return _mix(self.tableau.from_modes, modes)


class _Solved(NamedTuple):
    """The last attempt at a step's stages, without derivative, with the systems that it had.

    `radius` bounds the eigenvalues of the Jacobian.
    """

    newton: NewtonResult
    systems: _Systems
    matrices: Matrices | None
    work: Work
    radius: Float[Array, ""]


class RadauIIA(TableauMethod):
    """A Radau IIA method of three stages given by its tableau.

    **Arguments:**

    - `tableau`: the coefficients.
    - `linear_solver`: `dj.GMRES(...)` for large systems, without a matrix; by default matrices are
        factorised.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem", "DAEProblem"})
    takes_mass_matrix: ClassVar[bool] = True
    counted: ClassVar[tuple[str, ...]] = Work._fields

    tableau: RadauTableau = eqx.field(static=True)
    linear_solver: GMRES | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_linear_solver(self.linear_solver)

    def init(self, field: Field, t: Array, u: State) -> Memory:
        coordinates = Coordinates(u)
        n, dtype = coordinates.size, coordinates.dtype
        zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
        implicit = field.slope is not None
        matrices = None
        if self.linear_solver is None and are_kept(n, field.sparsity):
            shifts = _shifts(self.tableau)
            matrices = Matrices.none(n, dtype, shifts, field.sparsity, implicit)
        stages = jnp.zeros((3, n), dtype)
        choice = jax.lax.stop_gradient(coordinates.flatten(field.slope)) if implicit else None
        return Memory(choice=choice, cache=_Cache(stages, zero, one, jnp.zeros((), bool), matrices))

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        h = dt.astype(Coordinates(u).dtype)
        equations = _Equations(self.tableau, field, t, h, u, memory.choice)
        coordinates, start = equations.view.coordinates, equations.start
        cache: _Cache = memory.cache
        still = equations.of(jax.lax.stop_gradient(equations.arguments))
        solver = _StageSolver(still, jax.lax.stop_gradient(u), norm, self.linear_solver)
        solved = solver.solve(jax.lax.stop_gradient(cache))
        done, error, work = solved.newton, None, solved.work
        estimate = solver.estimate(solved, still.start)
        stages, smooth = equations.with_derivatives(done.x, estimate, solved.systems)
        u_end = coordinates.unflatten(start + stages[-1])
        if norm is not None:
            error, tries = solver.error(solved, estimate, cache.steady, u_end)
            error = error_or_failed(error, done.converged, jnp.isfinite(solved.radius))
            work = work._replace(nf=work.nf + tries, nsolve=work.nsolve + tries)
        accepted, rejected = None, None
        if solved.matrices is not None:
            accepted, rejected = solved.matrices.handed_on(done.rate > SLOW), solved.matrices
        choice = None if memory.choice is None else still.slopes(done.x)[-1]
        # A guess that the iteration failed from is not made again.
        known = jnp.where(done.converged, cache.dt, 0)
        return StepResult(
            u=u_end,
            error=error,
            ok=done.converged,
            memory=Memory(
                choice=choice, cache=_Cache(done.x, still.h, done.rate, done.converged, accepted)
            ),
            memory_if_rejected=Memory(
                choice=memory.choice,
                cache=cache._replace(
                    dt=known,
                    rate=jnp.ones_like(done.rate),
                    steady=jnp.zeros_like(cache.steady),
                    matrices=rejected,
                ),
            ),
            stages=(stages, smooth),
            counts=jnp.stack(work),
            stiffness=solved.radius * jnp.abs(still.h),
        )

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        """The coefficients of a polynomial in theta; see `evaluate_extension`."""
        extension, coordinates = self.tableau.dense, Coordinates(u)
        increments, estimate = stages
        known, h = [*increments, estimate], dt.astype(coordinates.dtype)
        end = coordinates.flatten(u) + increments[-1]
        known += output_stages(field, t, h, u, end, known, extension, self.linear_solver)
        columns = list(zip(*extension.weights, strict=True))
        return (u, *map(coordinates.unflatten, _mix(columns, jnp.stack(known))))

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        return evaluate_extension(coefficients, theta)


def _shifts(tableau: RadauTableau) -> tuple[float, complex]:
    """Of the real and the complex matrix, times M/dt."""
    return tableau.shift, tableau.complex_shift


class _Equations:
    """The equations of a step from (t, u); `slope` is u' there, where the matrices need it."""

    def __init__(
        self,
        tableau: RadauTableau,
        field: Field,
        t: Array,
        h: Array,
        u: State,
        slope: Vector | None,
    ) -> None:
        self.tableau, self.field, self.t, self.h, self.slope = tableau, field, t, h, slope
        self.view = VectorField(field, u)
        self.start = self.view.coordinates.flatten(u)

    @property
    def arguments(self) -> list[Array]:
        return [self.t, self.h, self.start, *jtu.tree_leaves(self.field)]

    def of(self, arguments: Sequence[Array]) -> "_Equations":
        """The same with other `arguments`."""
        t, h, start, *leaves = arguments
        field = jtu.tree_unflatten(jtu.tree_structure(self.field), leaves)
        u = self.view.coordinates.unflatten(start)
        return _Equations(self.tableau, field, t, h, u, self.slope)

    def slopes(self, stages: Stages) -> Stages:
        """The derivative of the solution at each stage."""
        return _mix(self.tableau.slopes, stages) / self.h

    def residual(self, stages: Stages) -> Stages:
        """What the equations of the stages want to be zero."""
        nodes = jnp.asarray(self.tableau.c, self.h.dtype)
        times = self.t + (nodes * self.h).astype(self.t.dtype)
        slopes = self.slopes(stages)
        one = jax.vmap(lambda t, z, slope: self.view.residual(t, self.start + z, slope))
        return one(times, stages, slopes)

    def defect(self, stages: Stages, start: Vector) -> Vector:
        """By how much the polynomial of the stages misses the equation at the start of the step."""
        return self.view.residual(self.t, start, self.initial_slope(stages))

    def initial_slope(self, stages: Stages) -> Vector:
        """The derivative of the polynomial of the stages at the start."""
        return _mix((self.tableau.initial_slope,), stages)[0] / self.h

    def filter_residual(self, x: Vector, stages: Stages) -> Vector:
        """What the equation of the error estimate (`_StageSolver.estimate`) wants to be zero."""
        at = self.start, self.initial_slope(stages)
        along = x, self.tableau.shift / self.h * x
        value, moved = jax.jvp(lambda v, slope: self.view.residual(self.t, v, slope), at, along)
        return value + moved

    def with_derivatives(
        self, stages: Stages, estimate: Vector, systems: _Systems
    ) -> tuple[Stages, Vector]:
        """The stages and the estimate, with the derivatives of the solutions of their equations."""

        def residual(stages: Stages, *arguments: Array) -> Stages:
            return self.of(arguments).residual(stages)

        def of_estimate(x: Vector, stages: Stages, *arguments: Array) -> Vector:
            return self.of(arguments).filter_residual(x, stages)

        stages = _solution(residual, systems.all, stages, self.arguments)
        arguments = [stages, *self.arguments]
        return stages, _solution(of_estimate, systems.real, estimate, arguments)


class _StageSolver:
    """Solves the equations of a step. Nothing here is differentiated."""

    def __init__(
        self, equations: _Equations, u: State, norm: Norm | None, solver: GMRES | None
    ) -> None:
        self.equations, self.tableau = equations, equations.tableau
        self.view = VectorField(equations.field, u, solver, exact=False)
        self.start, self.h, self.u, self.norm = equations.start, equations.h, u, norm
        coordinates = self.view.coordinates
        if norm is None:
            self.stop, self.size = Stop.at_rounding(coordinates.dtype), relative_size
            return

        def size(update: Stages, _: Stages) -> Float[Array, ""]:
            sizes = jax.vmap(lambda x: norm(coordinates.unflatten(x), u, u))(update)
            return jnp.sqrt(jnp.mean(sizes * sizes))

        eps = float(jnp.finfo(coordinates.dtype).eps)
        rounding = norm(coordinates.unflatten(eps * self.start), u, u)
        self.stop, self.size = Stop.at_tolerance(rounding, _LEFT), size

    def solve(self, cache: _Cache) -> _Solved:
        if cache.matrices is not None:
            return self._solve_with(cache, cache.matrices)
        jacobian = self.jacobian()
        first, second = (
            self.view.shifted(scaled(shift, 1 / self.h), jacobian)
            for shift in _shifts(self.tableau)
        )
        real = factorize(first)
        complex = factorize(after(real(self.start), second))
        systems = _Systems(self.tableau, real, complex)
        done = self.attempt(cache, systems)
        new = jnp.full((), 1 if self.view.solver is None else 0, jnp.int32)
        return _Solved(done, systems, None, _work(done, new, 2 * new), radius(jacobian))

    def _solve_with(self, cache: _Cache, matrices: Matrices) -> _Solved:
        """With matrices that are kept; should they not do, once more with new ones."""
        scale, shifts = 1 / self.h, _shifts(self.tableau)

        def systems(matrices: Matrices) -> _Systems:
            real, complex = (partial(matrices.solve, which, scale) for which in range(2))
            return _Systems(self.tableau, real, complex)

        def renew(old: Matrices, want: Array) -> tuple[Matrices, Array, Array]:
            return renewed(old, scale, self.jacobian, self.view.shifted, shifts, want)

        def attempt(new: Matrices, njac: Array, nfactor: Array) -> tuple[NewtonResult, Work]:
            done = self.attempt(cache, systems(new))
            return done, _work(done, njac, nfactor)

        matrices, done, work = settled(matrices, renew, attempt)
        return _Solved(done, systems(matrices), matrices, work, radius(matrices.jacobian))

    def jacobian(self) -> Jacobian:
        slope = self.equations.slope
        # Without a say where the equation is not fully implicit.
        slope = jnp.zeros_like(self.start) if slope is None else slope
        return self.view.jacobian(self.equations.t, self.start, slope)

    def attempt(self, cache: _Cache, systems: _Systems) -> NewtonResult:
        return newton(
            self.equations.residual,
            systems.all,
            lambda update, stages: self.size(update, self.start[None, :] + stages),
            *self.guess(cache),
            self.stop,
        )

    def guess(self, cache: _Cache) -> tuple[Stages, Float[Array, ""]]:
        """The stages as the polynomial of the last step has them beyond its end, and the rate to
        expect."""
        serves = self.h < _FURTHEST * cache.dt
        ratio = self.h / jnp.where(serves, cache.dt, self.h)
        theta = 1 + ratio * jnp.asarray(self.tableau.c, self.h.dtype)
        powers = jnp.stack([theta - 1, theta**2 - 1, theta**3 - 1], axis=1)
        ahead = _mix(powers, _mix(self.tableau.extrapolation, cache.stages))
        rate = jnp.where(self.h < _ALIKE * cache.dt, trusted(cache.rate), 1)
        slope = self.equations.slope
        if slope is None:
            return jnp.where(serves, ahead, 0), rate
        straight = self.h * jnp.asarray(self.tableau.c, self.h.dtype)[:, None] * slope[None, :]
        return jnp.where(serves, ahead, straight), rate

    def estimate(self, solved: _Solved, start: Vector) -> Vector:
        """The error of the step, by the defect under the real matrix (HW II, equation IV.8.19).

        In algebraic components it is the error that those of others cause there.
        """
        return solved.systems.real(self.equations.defect(solved.newton.x, start))

    def error(
        self, solved: _Solved, estimate: Vector, steady: Bool[Array, ""], u_end: State
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """The scaled error of the step, and how many estimates were made for it.

        On stiff components the estimate does not vanish with the step, and a step that came out of
        the blue is refused in vain: before it is, the estimate is made once more from where the
        first one points (HW II, equation IV.8.20).
        """
        assert self.norm is not None
        u, norm, unflatten = self.u, self.norm, self.view.coordinates.unflatten
        largest = norm(u_end, u, u_end)
        scale = jnp.minimum(1, jnp.sqrt(jnp.sqrt(1 / largest)) / _TRANSFORM)

        def size(estimate: Vector) -> Float[Array, ""]:
            return scale * norm(unflatten(estimate), u, u_end)

        def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
            tries, _ = state
            return tries + 1, size(self.estimate(solved, self.start + estimate))

        def refused(state: tuple[Array, Array]) -> Array:
            tries, error = state
            return (tries < 2) & (error >= 1) & ~steady

        state = jnp.ones((), jnp.int32), size(estimate)
        tries, error = jax.lax.while_loop(refused, again, state)
        return error, tries


def _work(done: NewtonResult, njac: Array, nfactor: Array) -> Work:
    its = done.iterations
    return Work(3 * its, njac, nfactor, 2 * its, (~done.converged).astype(jnp.int32))


def _solution(
    residual: Callable[..., Array],
    near: Callable[[Array], Array],
    x: Array,
    arguments: Sequence[Array],
) -> Array:
    """`implicit_solution`, whose linear system is solved by iterations with `near`: a function that
    is linear, and nearly the inverse of minus the residual's Jacobian."""
    # A derivative may be taken when the trace that `near` belongs to has ended: what it closes over
    # goes along as arguments.
    arrays, rest = eqx.partition(eqx.filter_closure_convert(near, x), eqx.is_array)
    factors, structure = jtu.tree_flatten(arrays)
    count = len(arguments)

    def equation(x: Array, *arguments: Array) -> Array:
        return residual(x, *arguments[:count])

    def solver(x: Array, *arguments: Array) -> Callable[[Array], Array]:
        _, push = jax.linearize(lambda x: equation(x, *arguments), x)
        near = eqx.combine(jtu.tree_unflatten(structure, arguments[count:]), rest)
        return lambda b: jax.lax.custom_linear_solve(
            lambda x: -push(x),
            b,
            solve=lambda matvec, b: _refined(matvec, near, b),
            transpose_solve=lambda matvec, b: _refined(
                matvec, lambda r: jax.linear_transpose(near, b)(r)[0], b
            ),
        )

    return implicit_solution(equation, solver, x, [*arguments, *factors])


def _refined(matvec: Callable[[Array], Array], near: Callable[[Array], Array], b: Array) -> Array:
    """x with matvec(x) = b, to rounding."""
    one = jnp.ones((), b.dtype)
    stop = Stop.at_rounding(b.dtype)
    return newton(lambda x: b - matvec(x), near, relative_size, near(b), one, stop).x


def _mix(weights: Sequence[Sequence[float]] | Array, stages: Array) -> Array:
    """Sums of the rows of `stages`, written out: for many lanes at once twice as fast."""
    sums = [[w * row for w, row in zip(ws, stages, strict=True)] for ws in weights]
    return jnp.stack([sum(terms[1:], start=terms[0]) for terms in sums])


def RadauIIA5(*, linear_solver: GMRES | None = None) -> RadauIIA:
    """The Radau IIA method of order 5 with 3 stages; L-stable, stiffly accurate, of stage order 3.

    For stiff problems of any difficulty and for differential-algebraic equations. Its three stages
    are coupled, so that each step costs more than one of `Rodas5P`, which is faster on small
    systems. On stiff problems whose forcing moves, order 3 is left of the order 5, of very small
    errors. Its extension, of order 4, takes two implicit stages more in steps inside which
    something is saved.

    Source: Hairer, Wanner, Solving ODEs II, section IV.8, with the error estimate of the authors'
    subroutine RADAU5; the extension is derived in `tableaus/radau.py`.

    !!! example
        `dj.solve(prob, dj.RadauIIA5(), rtol=1e-6)`
    """
    return RadauIIA(tableaus.RADAU_IIA_5, linear_solver)
