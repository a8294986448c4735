"""Backward differentiation formulas: one engine for methods of variable order and step.

A step of order k is predicted by a polynomial P through past values. It ends at P + e with

    M (lead*e + h P') = h f(t + h, P + e),

where `lead` is a constant of the order (the fixed leading coefficient). The methods differ in the
past points that P goes through, in `lead`, and in the constants of their errors.

What a step knows of the past is in `bdf_history`; how the correction e is found and differentiated,
in `bdf_corrector`; how order and step are chosen, in `bdf_order`.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..linear.coordinates import Coordinates
from ..linear.krylov import GMRES, check_linear_solver
from .base import Algorithm, Field, Memory, Norm, State, StepResult
from .bdf_corrector import Cache, Corrector, Equation, Solved, with_derivative
from .bdf_history import (
    History,
    Past,
    extension,
    on_equal_steps,
    on_past_points,
    pick,
    running,
    up_to,
)
from .bdf_order import Choice, Errors, after_acceptance, after_rejection, amplitude, risen
from .implicit import derivative
from .iterating import Work, error_or_failed
from .stages import scaled

Vector = Float[Array, " n"]
Scalar = Float[Array, ""]
Order = Int[Array, ""]

MAX_ORDER = 5
# 1 + 1/2 + ... + 1/k, the leading coefficient of the formula of order k on equal steps.
HARMONIC = (1.0, 3 / 2, 11 / 6, 25 / 12, 137 / 60)
# Shampine, Reichelt, The MATLAB ODE Suite, table 1: kappa of order k.
KAPPA = (-0.1850, -1 / 9, -0.0823, -0.0415, 0.0)
# A start from one value is of this order, which steps of fixed size cannot make up for.
FIXED_STEP_ORDER = 2
# How much smaller than tolerated the error of a step must be, since the errors of many steps add
# up: for about 1.8 times as many steps. Without, HIRES, Van der Pol's oscillator, the Brusselator
# in two dimensions and a pendulum lose two and a half digits to four against the tolerance, as in
# SciPy's BDF and in CVODE.
CAUTION = 60.0


class Formula(NamedTuple):
    """The formula of a step: the past that it is made of, its leading coefficient, and the
    constants of the errors at the order below, at its own and above."""

    past: Past
    lead: Scalar
    errors: Errors


class _Decision(NamedTuple):
    """What follows from the error of a step; `settled` as `after_acceptance` says."""

    error: Scalar | None
    if_accepted: Choice
    if_rejected: Choice
    dt_next: Scalar | None
    settled: Bool[Array, ""] | bool = True


class BDF(Algorithm):
    """Base class; a method is its `formula`.

    **Arguments:**

    - `max_order`: the highest order, from 1 to 5.
    - `linear_solver`: `dj.GMRES(...)` for large systems, without a matrix; by default matrices are
        factorised.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem"})
    sizes_steps: ClassVar[bool] = True
    takes_mass_matrix: ClassVar[bool] = True
    counted: ClassVar[tuple[str, ...]] = Work._fields

    max_order: int = eqx.field(static=True, default=MAX_ORDER)
    linear_solver: GMRES | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.max_order not in range(1, MAX_ORDER + 1):
            raise ValueError(
                f"max_order of {self.name} must be a whole number from 1 to {MAX_ORDER}, "
                f"got {self.max_order!r}."
            )
        check_linear_solver(self.linear_solver)

    @property
    def looks_back(self) -> bool:
        return True

    @property
    def order(self) -> int:
        return self.max_order

    @property
    def error_order(self) -> int:
        """That of the first step, which is of order one."""
        return 1

    @property
    def dense_order(self) -> int:
        return self.max_order

    @property
    def init_counts(self) -> dict[str, int]:
        return {"nf": 1}

    @property
    def dense_counts(self) -> dict[str, int]:
        return {}

    @property
    def steps_back(self) -> int:
        """How many step sizes of the past the formula needs."""
        raise NotImplementedError

    def formula(self, history: History, h: Scalar, order: Order) -> Formula:
        """The formula of a step of this size and order."""
        raise NotImplementedError

    def init(self, field: Field, t: Array, u: State) -> Memory:
        coordinates = Coordinates(u)
        slope = coordinates.flatten(derivative(field, t, u, self.linear_solver))
        return Memory(
            history=History.before(slope, self.max_order, self.steps_back),
            choice=Choice.first(),
            cache=Cache.none(field, coordinates.size, coordinates.dtype, self.linear_solver),
        )

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        coordinates = Coordinates(u)
        start = coordinates.flatten(u)
        h, order = dt.astype(start.dtype), memory.choice.order
        formula = self.formula(memory.history, h, order)
        increment, slope = formula.past.predicted(order)
        equation = Equation(t + dt, h, start + increment, slope, formula.lead)
        still = jax.lax.stop_gradient((field, equation, u))
        corrector = Corrector(*still, norm, self.linear_solver)
        solved = corrector.solve(jax.lax.stop_gradient(memory.cache))
        correction = with_derivative(field, equation, u, solved.done.x, self.linear_solver)
        history = formula.past.after(order, correction)
        u_end = coordinates.unflatten(equation.predicted + correction)
        if norm is None:
            higher = risen(memory.choice, min(self.max_order, FIXED_STEP_ORDER))
            decision = _Decision(None, higher, memory.choice, None)
        else:
            made = jax.lax.stop_gradient((memory, dt, formula, history, correction))
            decision = self._decide(
                *made, solved, lambda x: norm(coordinates.unflatten(x), u, u_end)
            )
        cache, cache_if_rejected = solved.handed_on()
        return StepResult(
            u=u_end,
            error=decision.error,
            ok=solved.done.converged,
            memory=Memory(history, decision.if_accepted, cache),
            memory_if_rejected=Memory(memory.history, decision.if_rejected, cache_if_rejected),
            stages=(up_to(order, history.differences), formula.past.distances),
            counts=jnp.stack(solved.work),
            dt_next=decision.dt_next,
            # Steps that are about to grow are short, but the problem is none the less stiff.
            stiffness=jnp.where(decision.settled, scaled(solved.radius, jnp.abs(dt)), jnp.nan),
        )

    def _decide(
        self,
        memory: Memory,
        dt: Array,
        formula: Formula,
        history: History,
        correction: Vector,
        solved: Solved,
        size: Callable[[Vector], Scalar],
    ) -> _Decision:
        choice: Choice = memory.choice
        # Differences of order k, k + 1 and k + 2.
        below = pick(choice.order, history.differences)
        above = correction - pick(choice.order + 1, formula.past.differences)
        sizes = [size(x) for x in (below, correction, above)]
        below, same, above = (CAUTION * c * x for c, x in zip(formula.errors, sizes, strict=True))
        error = error_or_failed(same, solved.done.converged, solved.regular)
        errors, before = (below, error, above), memory.history.steps[0]
        resolved = amplitude(choice.order, *sizes[:2])
        if_accepted, growth, settled = after_acceptance(
            choice, errors, resolved, dt.astype(before.dtype), before, self.max_order
        )
        usable = solved.done.converged & jnp.isfinite(error)
        if_rejected, cut = after_rejection(choice, errors, usable)
        factor = jnp.where(usable & (error <= 1), growth, cut)
        dt_next = dt * factor.astype(dt.dtype)
        return _Decision(error, if_accepted, if_rejected, dt_next, settled)

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        """The start and the coefficients of `extension`."""
        return (u, *map(Coordinates(u).unflatten, extension(*stages)))

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        start, first, *powers = coefficients
        curve = jtu.tree_map(jnp.zeros_like, first)
        for state in reversed(powers):
            curve = jtu.tree_map(lambda x, q: q + scaled(x, theta), curve, state)
        curve = jtu.tree_map(lambda x, d: d + scaled(x, theta - 1), curve, first)
        return jtu.tree_map(lambda u, x: u + scaled(x, theta), start, curve)


class FBDF(BDF):
    """Backward differentiation formulas of order 1 to 5 on the past as it is, with a fixed leading
    coefficient: for large stiff systems, and for tight tolerances.

    A step costs one or two evaluations, where a one-step method takes four to eight; but it takes
    more steps, and starts anew at order one. The formulas of orders 1 and 2 are A-stable, those
    above A(alpha)-stable: where oscillations below the tolerance keep the steps short, the order
    is bounded by 2 for a while. Fixed steps are of order 2 at most, as good as a start from one
    value is.

    Between steps the solution is the polynomial, of the order of the step, through its end and the
    values before; it is continuous.

    **Arguments:**

    - `max_order`: the highest order, from 1 to 5.
    - `linear_solver`: `dj.GMRES(...)` for large systems, without a matrix; by default matrices are
        factorised.

    **Raises:** `ValueError` if `max_order` is not one of these; `TypeError` if `linear_solver` is
    nothing of the kind.

    Source: Jackson, Sacks-Davis, An alternative implementation of variable step-size multistep
    formulas for stiff ODEs, ACM TOMS 6, 1980; errors as in Brenan, Campbell, Petzold, Numerical
    Solution of Initial-Value Problems in Differential-Algebraic Equations, section 5.2.

    !!! example
        `dj.solve(prob, dj.FBDF(), rtol=1e-6, atol=1e-9)`
    """

    @property
    def steps_back(self) -> int:
        return self.max_order

    def formula(self, history: History, h: Scalar, order: Order) -> Formula:
        past = on_past_points(history, h)
        lead = _of_order(order, HARMONIC[: self.max_order], h)
        inverses = 1 / past.distances
        # (j - 1)!/(r_1 ... r_j): of the difference D_j the part that the error is.
        parts = running(jnp.multiply, [max(j, 1) * inverses[j] for j in range(self.max_order + 1)])
        # What the formula leaves out, and what it has in place of the past's own coefficient.
        out = pick(order + 1, inverses)
        same = jnp.maximum(out, jnp.abs(out + pick(order, past.weights) - lead))
        return Formula(past, lead, (pick(order, parts), same, pick(order + 2, parts)))


class QNDF(BDF):
    """Numerical differentiation formulas of order 1 to 5 in backward differences: for large stiff
    systems.

    As `FBDF`, but when the step changes the past is interpolated to the new spacing, and orders 1
    to 4 are given a smaller error constant for a little of their stability.

    **Arguments:**

    - `max_order`: the highest order, from 1 to 5.
    - `linear_solver`: `dj.GMRES(...)` for large systems, without a matrix; by default matrices are
        factorised.

    **Raises:** `ValueError` if `max_order` is not one of these; `TypeError` if `linear_solver` is
    nothing of the kind.

    Source: Shampine, Reichelt, The MATLAB ODE Suite, SIAM J. Sci. Comput. 18, 1997, section 2.

    !!! example
        `dj.solve(prob, dj.QNDF(), rtol=1e-6, atol=1e-9)`
    """

    @property
    def steps_back(self) -> int:
        return 1

    def formula(self, history: History, h: Scalar, order: Order) -> Formula:
        pairs = list(zip(KAPPA, HARMONIC, strict=True))
        leads = [(1 - kappa) * sum_ for kappa, sum_ in pairs]
        errors = [abs(kappa * sum_ + 1 / (k + 2)) for k, (kappa, sum_) in enumerate(pairs)]
        return Formula(
            on_equal_steps(history, h, order),
            _of_order(order, leads, h),
            (
                _of_order(order - 1, errors, h),
                _of_order(order, errors, h),
                _of_order(order + 1, errors, h),
            ),
        )


def _of_order(order: Order, values: Sequence[float], like: Scalar) -> Scalar:
    """The value of an order, of those of orders 1, 2, ..."""
    return pick(order, jnp.asarray(values, like.dtype))
