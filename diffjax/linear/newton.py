"""Simplified Newton iteration: the matrix stays, so an iteration is one evaluation and one solve.

It stops by an estimate of the error that is left, from the rate at which the updates shrink (HW II,
section IV.8, equations (8.10) and (8.11)). Asked for no tolerance, it goes on to rounding.

Nothing differentiates the iteration. Its result satisfies an equation, and the derivative of that
is one linear solve (`implicit_solution`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from .jacobian import varying_like

# One vector, or several side by side.
Vector = Float[Array, "... n"]

# HW II, section IV.8: the error that may be left, in units of the tolerance, the most iterations,
# and the power to which the rate of one step is trusted in the next.
LEFT = 0.01
MOST = 10
TRUST = 0.8
# So small an update is the last one, whatever the rate.
NEGLIGIBLE = 1e-5
# A rate that falls at once is not believed at once (CVODE's crdown).
RATE_DECAY = 0.3
# Updates that shrink by less than this, and are that many units of rounding, are rounding.
STAGNATION = 0.5
ROUNDING = 4.0
STAGNANT_ROUNDING = 1e3
# Iterations to rounding: at the slowest rate that an accepted step has, there are twice as many.
MOST_TO_ROUNDING = 60
# An update that shrinks by less than this wants another matrix. With 0.3 gradients of Kvaerno5 take
# twice the time.
SLOWEST_TO_ROUNDING = 0.9
MOST_MATRICES = 12


class Stop(NamedTuple):
    """When to stop, in the units of the norm of the updates.

    - `left`: the error that may be left.
    - `rounding`: what rounding alone makes of an update.
    - `stagnant`: under this an update that does not shrink is taken for rounding.
    - `slowest`: updates that shrink by less than this end the iteration.
    """

    left: float | Array
    negligible: float | Array
    rounding: Array
    stagnant: Array
    most: int
    gives_up: bool
    slowest: float | None = None

    @staticmethod
    def at_tolerance(rounding: Array, left: float = LEFT) -> "Stop":
        """For updates measured in units of the tolerance, in which rounding has this size."""
        stagnant = jnp.minimum(STAGNANT_ROUNDING * rounding, 1.0)
        return Stop(left, NEGLIGIBLE, ROUNDING * rounding, stagnant, MOST, gives_up=True)

    @staticmethod
    def at_rounding(dtype: Any) -> "Stop":
        """For updates relative to what is updated (`relative_size`)."""
        eps = jnp.asarray(jnp.finfo(dtype).eps, dtype)
        return Stop(eps, 0.0, eps, jnp.sqrt(eps), MOST_TO_ROUNDING, gives_up=False)


class NewtonResult(NamedTuple):
    """What an iteration has come to.

    - `rate`: by which the updates shrank, for the next solve with the same matrix.
    - `iterations`: how many; each is one evaluation and one solve.
    """

    x: Vector
    converged: Bool[Array, ""]
    rate: Float[Array, ""]
    iterations: Int[Array, ""]


class _Carry(NamedTuple):
    x: Vector
    size: Float[Array, ""]
    rate: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    failed: Bool[Array, ""]


def trusted(rate: Float[Array, ""]) -> Float[Array, ""]:
    """The rate to start with in another step, which has another matrix."""
    return jnp.maximum(rate, float(jnp.finfo(rate.dtype).eps)) ** TRUST


def relative_size(update: Vector, x: Vector) -> Float[Array, ""]:
    """The largest update relative to its component, or to rounding of the largest component."""
    size = jnp.abs(x)
    floor = float(jnp.finfo(x.dtype).eps) * jnp.max(size) + float(jnp.finfo(x.dtype).tiny)
    return jnp.max(jnp.abs(update) / (size + floor))


def newton(
    residual: Callable[[Vector], Vector],
    solve: Callable[[Vector], Vector],
    measure: Callable[[Vector, Vector], Float[Array, ""]],
    start: Vector,
    rate: Float[Array, ""],
    stop: Stop,
) -> NewtonResult:
    """Solve `residual(x) = 0` by x <- x + solve(residual(x)).

    **Arguments:**

    - `solve`: minus the inverse of the residual's Jacobian, or of one near it.
    - `measure`: the size of an update, `measure(update, x)`, in the units of `stop`.
    - `rate`: that of the solve before, 1 if there is none. It lets a solve stop at its first
        iteration, which a linear residual needs no more than.
    """
    one = jnp.ones((), rate.dtype)

    def iterate(c: _Carry) -> _Carry:
        update = solve(residual(c.x))
        x = c.x + update
        size = measure(update, x).astype(one.dtype)
        later = c.iterations > 0
        ratio = size / jnp.where(later, c.size, one)
        slowed = jnp.where(c.iterations > 1, jnp.maximum(RATE_DECAY * c.rate, ratio), ratio)
        rate = jnp.where(later, slowed, c.rate)
        shrinks = rate < 1
        left = size * rate / jnp.where(shrinks, 1 - rate, one)
        converged = (shrinks & (left <= stop.left)) | (size <= stop.negligible)
        converged |= size <= stop.rounding
        converged |= later & (ratio > STAGNATION) & (size <= stop.stagnant)
        iterations = c.iterations + 1
        failed = ~jnp.isfinite(size) | (iterations >= stop.most)
        if stop.gives_up:
            # The iterations that are allowed will not do (HW II, equation IV.8.11).
            remaining = (stop.most - iterations).astype(one.dtype)
            failed |= later & (~shrinks | (left * rate**remaining > stop.left))
        if stop.slowest is not None:
            failed |= later & (ratio > stop.slowest)
        return _Carry(x, size, rate, iterations, converged, failed & ~converged)

    def like(constant: Array) -> Array:
        return varying_like(jnp.sum(start), constant)

    no, none = like(jnp.zeros((), bool)), like(jnp.zeros((), jnp.int32))
    carry = _Carry(start, like(one), like(rate), none, no, no)
    carry = jax.lax.while_loop(lambda c: ~(c.converged | c.failed), iterate, carry)
    return NewtonResult(carry.x, carry.converged, carry.rate, carry.iterations)


def newton_to_rounding(
    residual: Callable[[Vector], Vector],
    solver: Callable[[Vector], Callable[[Vector], Vector]],
    start: Vector,
    at_hand: Callable[[Vector], Vector] | None = None,
) -> NewtonResult:
    """Solve `residual(x) = 0` to rounding, with a new matrix wherever one is too slow.

    An iteration to a tolerance may be over before it tells that it does not converge.

    **Arguments:**

    - `solver`: of x, what `solve` is to `newton`, with the Jacobian at x.
    - `at_hand`: if given, the same with a Jacobian from elsewhere, for the first iterations.
    """
    one = jnp.ones((), start.dtype)
    stop = Stop.at_rounding(start.dtype)._replace(slowest=SLOWEST_TO_ROUNDING)

    def attempt(solve: Callable[[Vector], Vector], x: Vector) -> NewtonResult:
        return newton(residual, solve, relative_size, x, one, stop)

    def again(state: tuple[NewtonResult, Array]) -> tuple[NewtonResult, Array]:
        before, matrices = state
        done = attempt(solver(before.x), before.x)
        iterations = before.iterations + done.iterations
        return done._replace(iterations=iterations), matrices + 1

    def unsolved(state: tuple[NewtonResult, Array]) -> Array:
        done, matrices = state
        return ~done.converged & (matrices < MOST_MATRICES)

    none = varying_like(jnp.sum(start), jnp.zeros((), jnp.int32))
    if at_hand is not None:
        first = attempt(at_hand, start)
    else:
        no = varying_like(jnp.sum(start), jnp.zeros((), bool))
        first = NewtonResult(start, no, varying_like(jnp.sum(start), one), none)
    return jax.lax.while_loop(unsolved, again, (first, none))[0]


def implicit_solution(
    residual: Callable[..., Vector],
    solver: Callable[..., Callable[[Vector], Vector]],
    x: Vector,
    arguments: Sequence[Array],
) -> Vector:
    """`x`, with the derivative of the solution of `residual(x, *arguments) = 0`.

    By the implicit function theorem that is one linear solve with minus the residual's Jacobian at
    the solution: `solver(x, *arguments)` of a right-hand side. Both functions close over nothing
    that is differentiated.
    """

    @jax.custom_jvp
    def solution(x: Vector, arguments: list[Array]) -> Vector:
        return x

    def tangent(primals: Any, tangents: Any) -> tuple[Vector, Vector]:
        # A solution with a derivative again, for derivatives of higher order.
        x, arguments = solution(*primals), primals[1]
        moving = [i for i, t in enumerate(tangents[1]) if not isinstance(t, SymbolicZero)]

        def of_moving(*values: Array) -> Vector:
            full = list(arguments)
            for i, value in zip(moving, values, strict=True):
                full[i] = value
            return residual(x, *full)

        primal = tuple(arguments[i] for i in moving)
        change = jax.jvp(of_moving, primal, tuple(tangents[1][i] for i in moving))[1]
        return x, solver(x, *arguments)(change)

    solution.defjvp(tangent, symbolic_zeros=True)
    return solution(jax.lax.stop_gradient(x), list(arguments))
