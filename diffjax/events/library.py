"""Callbacks that keep a solution where it belongs, or end it where nothing happens any more."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from ..linear.dense import factorize
from ..problems.parts import UserFunction, is_array
from ..varying import mesh_axes, vary_over
from .callbacks import Callback, DiscreteCallback

# Iterations of a projection, which starts within the error of a step from its end.
_MOST_ITERATIONS = 10
# A projection ends when it moves the state by less than so many units in its last place.
_ULPS = 16.0


class PositiveDomain(DiscreteCallback):
    """Keeps the state from falling below zero.

    A step to a state of which some component lies below `-tolerance` is refused and taken again
    with about half its size; what is negative by less is set to zero. For solutions that stay
    non-negative while an error of the method would not, and whose field means something else, or
    nothing, beyond. It needs adaptive steps, and is not entered in `sol.events`.

    **Arguments:**

    - `tolerance`: a Python number, by default the default `atol` of `dj.solve`.

    **Raises:** `ValueError` for a negative tolerance; in `solve`, for fixed steps.

    Source: Shampine, Thompson, Kierzenka and Byrne, Non-negative solutions of ODEs, Appl. Math.
    Comput. 170 (2005).

    !!! example
        `dj.solve(prob, dj.BS3(), callback=dj.PositiveDomain())`
    """

    tolerance: float = eqx.field(static=True)

    logged: ClassVar[bool] = False
    refuses: ClassVar[bool] = True

    def __init__(self, tolerance: float = 1e-6) -> None:
        if not isinstance(tolerance, int | float) or not tolerance >= 0:
            raise ValueError(f"tolerance must be a number from 0, got {tolerance!r}.")
        super().__init__(_some_negative, _without_negative)
        self.tolerance = float(tolerance)

    def refused(self, u: PyTree, p: Any, t: Array) -> Bool[Array, ""]:
        return _any_below(u, -self.tolerance)


def _any_below(u: PyTree, bound: float) -> Bool[Array, ""]:
    return jnp.any(jnp.stack([jnp.any(jnp.asarray(x) < bound) for x in jtu.tree_leaves(u)]))


def _some_negative(u: PyTree, p: Any, t: Array) -> Bool[Array, ""]:
    return _any_below(u, 0.0)


def _without_negative(u: PyTree, p: Any, t: Array) -> PyTree:
    return jtu.tree_map(lambda x: jnp.where(x < 0, jnp.zeros_like(x), x), u)


class ManifoldProjection(DiscreteCallback):
    """Projects the state after every step onto the manifold on which g(u, p, t) = 0.

    The state u becomes u + J(u)^T lambda with J = dg/du, where lambda solves
    g(u + J(u)^T lambda) = 0 by Newton's iteration; one that does not converge makes the state NaN.
    Derivatives go through by the implicit function theorem. It is not entered in `sol.events`.
    Methods that remember past values begin afresh after each projection: take a one-step method.

    **Arguments:**

    - `g`: `g(u, p, t)`, an array or a pytree of arrays that are zero on the manifold, with fewer
        numbers than the state has.

    **Raises:** `TypeError` if `g` is no function or the state is complex.

    Source: Hairer, Lubich and Wanner, Geometric Numerical Integration, 2nd ed., algorithm IV.4.2.

    !!! example
        `dj.ManifoldProjection(lambda u, p, t: u[0] ** 2 + u[1] ** 2 - 1.0)`
    """

    logged: ClassVar[bool] = False

    def __init__(self, g: Callable[[Any, Any, Any], PyTree]) -> None:
        if not callable(g):
            raise TypeError(f"g must be a function g(u, p, t), got {type(g).__name__}.")
        super().__init__(_always, _Projection(UserFunction(g)))


def _always(u: PyTree, p: Any, t: Array) -> Bool[Array, ""]:
    return jnp.asarray(True)


class _Projection(eqx.Module):
    g: UserFunction

    def __call__(self, u: PyTree, p: Any, t: Array) -> PyTree:
        start, unravel = ravel_pytree(u)
        if jnp.issubdtype(start.dtype, jnp.complexfloating):
            raise TypeError("ManifoldProjection needs a real state, got a complex one.")

        def residual(x: Float[Array, " n"], p: Any, t: Array) -> Float[Array, " m"]:
            return ravel_pytree(self.g.value(unravel(x), p, t))[0]

        def newton(multipliers: Array, x: Array, p: Any, t: Array) -> Array:
            normal = jax.jacrev(residual)(x, p, t)

            def off(multipliers: Array) -> Array:
                return residual(x + normal.T @ multipliers, p, t)

            solve = factorize(jax.jacfwd(off)(multipliers))
            return multipliers - solve(off(multipliers))

        held = jax.lax.stop_gradient((start, p, t))
        normal = jax.jacrev(residual)(*held)
        smallest = _ULPS * float(jnp.finfo(start.dtype).eps) * jnp.max(jnp.abs(held[0]))

        def pending(state: tuple[Array, Array, Array]) -> Array:
            _, moved, number = state
            return (moved > smallest) & (number < _MOST_ITERATIONS)

        def closer(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            multipliers, _, number = state
            new = newton(multipliers, *held)
            return new, jnp.max(jnp.abs(normal.T @ (new - multipliers))), number + 1

        zero = jnp.zeros(normal.shape[0], start.dtype)
        first = (zero, jnp.full((), jnp.inf, start.dtype), jnp.zeros((), jnp.int32))
        first = vary_over(mesh_axes((held, normal)), first)
        multipliers, moved, _ = jax.lax.while_loop(pending, closer, first)
        # One iteration more from the solution is the implicit function theorem, and a second
        # doubles the order of the derivatives that are right, as it would the digits.
        for _ in range(2):
            multipliers = newton(multipliers, start, p, t)
        end = start + jax.jacrev(residual)(start, p, t).T @ multipliers
        return unravel(jnp.where(moved <= smallest, end, jnp.nan))


class TerminateSteadyState(DiscreteCallback):
    """Ends the solve after a step where the derivative has all but vanished.

    That is when |f| is at most `abstol` in all components, or in all at most `reltol` |u|. An
    explicit method with large steps keeps moving by as much as the tolerances of the solve allow,
    which should be the smaller ones.

    **Arguments:**

    - `abstol`, `reltol`: Python numbers.
    - `min_t`: not before this time.

    **Raises:** `ValueError` for negative tolerances; `TypeError` in `solve`, for a problem without
    a derivative f(u, p, t) that vanishes: stochastic and fully implicit ones.

    !!! example
        `dj.solve(prob, callback=dj.TerminateSteadyState(abstol=1e-8)).u_end`
    """

    abstol: float = eqx.field(static=True)
    reltol: float = eqx.field(static=True)
    min_t: float | None = eqx.field(static=True)

    def __init__(
        self, abstol: float = 1e-8, reltol: float = 1e-6, min_t: float | None = None
    ) -> None:
        for name, value in (("abstol", abstol), ("reltol", reltol)):
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{name} must be a number from 0, got {value!r}.")
        super().__init__(_always, terminate=True)
        self.abstol, self.reltol, self.min_t = float(abstol), float(reltol), min_t

    def bound(self, problem: Any) -> Callback:
        given = problem.arguments()
        if problem.stochastic or "f" not in given:
            raise TypeError(
                "TerminateSteadyState needs a problem whose derivative is f(u, p, t), such as "
                f"dj.ODEProblem, got {type(problem).__name__}."
            )
        return eqx.tree_at(
            lambda callback: callback.condition, self, UserFunction(_Steady(given["f"], self))
        )


class _Steady:
    """Whether the derivative has all but vanished."""

    def __init__(self, f: Callable[..., PyTree], limits: TerminateSteadyState) -> None:
        self.f, self.limits = f, limits

    def __call__(self, u: PyTree, p: Any, t: Array) -> Bool[Array, ""]:
        limits = self.limits
        small, relative = [], []
        for x, slope in zip(jtu.tree_leaves(u), jtu.tree_leaves(self.f(u, p, t)), strict=True):
            size = jnp.abs(slope)
            small.append(jnp.all(size <= limits.abstol))
            relative.append(jnp.all(size <= limits.reltol * jnp.abs(x)))
        steady = jnp.all(jnp.stack(small)) | jnp.all(jnp.stack(relative))
        return steady if limits.min_t is None else steady & (t >= limits.min_t)


class SavingCallback(Callback):
    """Saves something of the solution at times of its own, beside what `saveat` and `save_fn` do.

    Nothing else changes: neither the steps nor `sol.u`. What it has saved is `sol.saved`, one
    `dj.Saved` for each such callback, differentiable like all saves.

    **Arguments:**

    - `save_fn`: `save_fn(u, p, t)`, any pytree of arrays.
    - `saveat`: as that of `dj.solve`: a number (a spacing), an array of times, or a function
        `(t0, t1) -> times`.

    **Raises:** `TypeError`, `ValueError` for bad arguments; in `solve` as a `saveat` would be.

    Source: the callback of this name in DifferentialEquations.jl.

    !!! example
        ```python
        energy = dj.SavingCallback(lambda u, p, t: 0.5 * u[1] ** 2 + 9.81 * u[0], saveat=0.01)
        sol = dj.solve(prob, dj.Tsit5(), saveat=1.0, callback=energy)
        sol.saved[0].t, sol.saved[0].u
        ```
    """

    save_fn: UserFunction
    saveat: Any
    affect: UserFunction | None
    terminate: bool = eqx.field(static=True)
    changes_p: bool = eqx.field(static=True)

    logged: ClassVar[bool] = False

    def __init__(self, save_fn: Callable[[Any, Any, Any], PyTree], saveat: Any) -> None:
        if not callable(save_fn):
            raise TypeError(f"save_fn must be a function of (u, p, t), got {save_fn!r}.")
        if saveat is None or isinstance(saveat, str):
            raise ValueError(f"saveat must say when: a number, times or a function: {saveat!r}.")
        self.save_fn = UserFunction(save_fn)
        if callable(saveat) and not is_array(saveat):
            self.saveat = UserFunction(saveat)
        else:
            is_number = isinstance(saveat, int | float)
            self.saveat = float(saveat) if is_number else jnp.asarray(saveat)
        self.affect, self.terminate, self.changes_p = None, False, False

    @property
    def times(self) -> Any:
        """`saveat` as it was given."""
        return self.saveat.value if isinstance(self.saveat, UserFunction) else self.saveat
