"""Singly diagonally implicit Runge-Kutta methods: one engine, the methods are tableaus.

All stages of a step share one matrix, W = M/(gamma*dt) - df/du at its start, and are solved one
after the other by simplified Newton iterations (`linear/newton`). What a step hands to the next
only saves work: the derivative that its last stage has found, and how fast its iterations were.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..linear.coordinates import Coordinates
from ..linear.dense import factorize
from ..linear.newton import NewtonResult, Stop, implicit_solution, newton, relative_size
from .base import Algorithm, Field, Norm, State, StepResult
from .implicit import VectorField, derivative
from .stages import combine, evaluate_extension
from .tableaus.esdirk import ESDIRKTableau

Vector = Float[Array, " n"]
Matrix = Float[Array, "n n"]

# The error of a step whose iteration failed although the vector field is finite.
_FAILED_ERROR = 2.0


class Memory(NamedTuple):
    """What a step hands to the next.

    - `slope`: the derivative at its end; None if the first stage is implicit.
    - `rate`: by which the updates of its last Newton iteration shrank.
    """

    slope: Vector | None
    rate: Float[Array, ""]


class _Attempt(NamedTuple):
    """A step's stages, and the work they were; `end` is the state at its end."""

    stages: list[Vector]
    end: Vector
    ok: Bool[Array, ""]
    rate: Float[Array, ""]
    iterations: Int[Array, ""]


class ESDIRK(Algorithm):
    """A singly diagonally implicit Runge-Kutta method given by its tableau.

    **Arguments:**

    - `tableau`: the coefficients.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem"})
    takes_mass_matrix: ClassVar[bool] = True
    counted: ClassVar[tuple[str, ...]] = ("nf", "nsolve", "nnewton_fail")

    tableau: ESDIRKTableau = eqx.field(static=True)

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def error_order(self) -> int | None:
        return self.tableau.error_order

    @property
    def dense_order(self) -> int:
        return self.tableau.dense.order

    @property
    def name(self) -> str:
        return self.tableau.name

    @property
    def init_counts(self) -> dict[str, int]:
        return {"nf": 1} if self.tableau.explicit_first else {}

    @property
    def step_counts(self) -> dict[str, int]:
        return {"njac": 1, "nfactor": 1}

    @property
    def dense_counts(self) -> dict[str, int]:
        extra = len(self.tableau.dense.c_extra)
        return {"nf": extra} if extra else {}

    def init(self, field: Field, t: Array, u: State) -> Memory:
        coordinates, slope = Coordinates(u), None
        if self.tableau.explicit_first:
            slope = coordinates.flatten(derivative(field, t, u))
        return Memory(slope, jnp.ones((), coordinates.dtype))

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        view = VectorField(field, u)
        coordinates = view.coordinates
        start = coordinates.flatten(u)
        h = dt.astype(start.dtype)
        # Nothing of the iteration is differentiated.
        frozen = VectorField(jax.lax.stop_gradient(field), u)
        t0, u0, h0 = jax.lax.stop_gradient((t, start, h))
        _, jacobian = frozen.value_and_jacobian(t0, u0)
        scale = 1 / (self.tableau.gamma * h0)
        solve = factorize(frozen.shifted(scale, jacobian))
        stages = _StageSolver(self.tableau.gamma, field, u, frozen, solve, norm)
        done = self._stages(stages, t, h, start, memory)
        u_end = coordinates.unflatten(done.end)
        error = None
        if norm is not None:
            finite = jnp.all(jnp.isfinite(jacobian)) & jnp.all(jnp.isfinite(u0))
            error = self._error(frozen, scale, solve, done, u, norm)
            failed = jnp.where(finite, _FAILED_ERROR, jnp.nan).astype(error.dtype)
            error = jnp.where(done.ok, error, failed)
        slope = done.stages[-1] / h if self.tableau.explicit_first else None
        filtered = 0 if norm is None else 1
        counts = (done.iterations, done.iterations + filtered, ~done.ok)
        return StepResult(
            u=u_end,
            error=error,
            ok=done.ok,
            memory=Memory(slope, done.rate),
            memory_if_rejected=Memory(memory.slope, jnp.ones_like(done.rate)),
            stages=tuple(done.stages),
            counts=jnp.stack([x.astype(jnp.int32) for x in counts]),
        )

    def _stages(
        self, solver: "_StageSolver", t: Array, h: Array, start: Vector, memory: Memory
    ) -> _Attempt:
        tableau = self.tableau
        stages = [] if memory.slope is None else [h * memory.slope]
        end, ok, rate = start, jnp.ones((), bool), memory.rate
        iterations = jnp.zeros((), jnp.int32)
        first = len(stages)
        for a, c, weights in zip(
            tableau.a[first:], tableau.c[first:], tableau.predictor[first:], strict=True
        ):
            base = _plus(start, a, stages)
            guess = _plus(jnp.zeros_like(start), weights, stages)
            result = solver(t + (c * h).astype(t.dtype), h, base, guess, rate)
            stages = [*stages, result.x]
            end = base + tableau.gamma * result.x
            ok, rate = ok & result.converged, result.rate
            iterations = iterations + result.iterations
        if not tableau.explicit_first:
            end = _plus(start, tableau.b, stages)
        return _Attempt(stages, end, ok, rate, iterations)

    def _error(
        self,
        view: VectorField,
        scale: Array,
        solve: Callable[[Vector], Vector],
        done: _Attempt,
        u: State,
        norm: Norm,
    ) -> Float[Array, ""]:
        """The error estimate times W^-1 M/(gamma dt), so that stiff components do not swamp it.

        HW II, section IV.8, equation (8.19). Algebraic components get the error that those of the
        others cause in them.
        """
        assert self.tableau.b_error is not None
        unflatten = view.coordinates.unflatten
        estimate = _plus(jnp.zeros_like(done.end), self.tableau.b_error, done.stages)
        filtered = solve(scale * view.mass_times(jax.lax.stop_gradient(estimate)))
        return norm(unflatten(filtered), u, unflatten(done.end))

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        """The coefficients of a polynomial in theta, a tuple of states (see `evaluate_extension`)."""
        extension, coordinates = self.tableau.dense, Coordinates(u)
        start = coordinates.flatten(u)
        h, known = dt.astype(start.dtype), list(stages)
        for a, c in zip(extension.a_extra, extension.c_extra, strict=True):
            at = coordinates.unflatten(_plus(start, a, known))
            known.append(h * coordinates.flatten(derivative(field, t + c * dt, at)))
        columns = zip(*extension.weights, strict=True)
        sums = [_plus(jnp.zeros_like(start), column, known) for column in columns]
        return (u, *map(coordinates.unflatten, sums))

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        return evaluate_extension(coefficients, theta)


class _StageSolver:
    """Solves M z = dt f(t, base + gamma z) for one stage after another."""

    def __init__(
        self,
        gamma: float,
        field: Field,
        u: State,
        frozen: VectorField,
        solve: Callable[[Vector], Vector],
        norm: Norm | None,
    ) -> None:
        self.gamma, self.field, self.u = gamma, field, u
        self.frozen, self.solve = frozen, solve
        coordinates = frozen.coordinates

        def scaled(update: Vector) -> Float[Array, ""]:
            assert norm is not None
            return norm(coordinates.unflatten(gamma * update), u, u)

        if norm is None:
            self.stop = Stop.at_rounding(coordinates.dtype)
            self.measure = lambda update, base, z: relative_size(gamma * update, base + gamma * z)
        else:
            eps = float(jnp.finfo(coordinates.dtype).eps)
            start = coordinates.flatten(u)
            self.stop = Stop.at_tolerance(scaled(start * (eps / gamma)))
            self.measure = lambda update, base, z: scaled(update)

    def __call__(
        self, t: Array, h: Array, base: Vector, guess: Vector, rate: Array
    ) -> NewtonResult:
        gamma, frozen = self.gamma, self.frozen
        t0, h0, base0, guess, rate = jax.lax.stop_gradient((t, h, base, guess, rate))
        result = newton(
            lambda z: frozen.f(t0, base0 + gamma * z) - frozen.mass_times(z) / h0,
            lambda residual: self.solve(residual) / gamma,
            lambda update, z: self.measure(update, base0, z),
            guess,
            rate,
            self.stop,
        )
        return result._replace(x=self._with_derivative(result.x, t, h, base))

    def _with_derivative(self, z: Vector, t: Array, h: Array, base: Vector) -> Vector:
        gamma, u = self.gamma, self.u
        leaves, structure = jtu.tree_flatten(self.field)

        def view(leaves: tuple[Array, ...]) -> VectorField:
            return VectorField(jtu.tree_unflatten(structure, leaves), u)

        def residual(z: Vector, t: Array, h: Array, base: Vector, *leaves: Array) -> Vector:
            field = view(leaves)
            return field.f(t, base + gamma * z) - field.mass_times(z) / h

        def jacobian(z: Vector, t: Array, h: Array, base: Vector, *leaves: Array) -> Matrix:
            field = view(leaves)
            _, at_stage = field.value_and_jacobian(t, base + gamma * z)
            return gamma * field.shifted(1 / (gamma * h), at_stage)

        return implicit_solution(residual, jacobian, z, [t, h, base, *leaves])


def _plus(x: Vector, weights: tuple[float, ...], stages: list[Vector]) -> Vector:
    """`x` plus the weighted sum of the stages."""
    total = combine(weights, stages)
    return x if total is None else x + total
