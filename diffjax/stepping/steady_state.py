"""Finding a steady state: by Newton's method, or by following the solution until it rests.

All share one test. A state rests when the root mean square of `f_i / (atol + rtol |u_i|)` is at
most one, with f at t = inf.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..algorithms.base import Algorithm, Field, State
from ..algorithms.explicit_methods import Tsit5
from ..linear.coordinates import Coordinates
from ..linear.dense import is_regular
from ..varying import vary_alike
from .adaptive import AdaptiveState, AdaptiveStepper
from .controllers import PIController
from .initial_step import INITIAL_STEP_NF
from .outcome import Outcome
from .plan import Inputs, Plan, Settings, scaled_norm
from .status import ReturnCode
from .trees import where

# A step of Newton's method must reduce the residual by this share of what its linear model says
# (Dennis and Schnabel, Numerical Methods for Unconstrained Optimization, algorithm A6.3.1).
SUFFICIENT_DECREASE = 1e-4
# It is halved so often before the search is given up.
MAX_HALVINGS = 40


def residual(field: Field, coordinates: Coordinates) -> Callable[[Array], Array]:
    """f at t = inf as a function of a state's real coordinates."""

    def of_vector(x: Array) -> Array:
        forever = jnp.full((), jnp.inf, x.dtype)
        return coordinates.flatten(field.f(forever, coordinates.unflatten(x)))

    return of_vector


class SteadyStateAlgorithm(Algorithm):
    """Base class: how a steady state is found. It takes no steps for the loops over steps."""

    takes: ClassVar[frozenset[str]] = frozenset({"SteadyStateProblem"})

    @property
    def error_order(self) -> int:
        """One: it chooses its steps by itself."""
        return 1

    @property
    def dense_counts(self) -> dict[str, int]:
        return {}

    def find(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        """Where the search ended, and how; `work` of the outcome counts all that was done."""
        raise NotImplementedError


class _Newton(NamedTuple):
    """`residual` and `correction` are scaled norms, of f at `x` and of the last change of x."""

    x: Float[Array, " n"]
    fx: Float[Array, " n"]
    residual: Float[Array, ""]
    correction: Float[Array, ""]
    stalled: Bool[Array, ""]
    iterations: Int[Array, ""]
    nf: Int[Array, ""]


class SSRootfind(SteadyStateAlgorithm):
    """Newton's method with a dense Jacobian, globalised by backtracking.

    It ends when both the residual f and the last correction are within the tolerances, so that the
    error of the root is of the size of the next correction, the square of the last. A correction
    is halved until the scaled residual decreases; where it does not, or the Jacobian is singular,
    the return code is `newton_failed`, after `max_steps` iterations `max_steps`, where `f(u0)` is
    not finite `unstable`.

    !!! example
        `dj.solve(dj.SteadyStateProblem(f, u0, p), dj.SSRootfind(), rtol=1e-8, atol=1e-10)`

    Source: Dennis and Schnabel, Numerical Methods for Unconstrained Optimization and Nonlinear
    Equations, sections 6.1 to 6.3.
    """

    def find(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        coordinates = Coordinates(inputs.u0)
        x, back = coordinates.flatten(inputs.u0), coordinates.unflatten
        f = residual(plan.field(inputs), coordinates)

        def norm(v: Array, x: Array) -> Array:
            u = back(x)
            return scaled_norm(settings.rtol, settings.atol, back(v), u, u)

        def pending(c: _Newton) -> Array:
            done = (c.residual <= 1) & (c.correction <= 1)
            return ~done & ~c.stalled & jnp.isfinite(c.residual) & (c.iterations < plan.max_steps)

        fx, zero = f(x), jnp.zeros((), jnp.int32)
        size = norm(fx, x)
        never = jnp.zeros((), bool)
        c = _Newton(x, fx, size, jnp.full_like(size, jnp.inf), never, zero, zero + 1)
        c = vary_alike((c, inputs, settings))[0]
        c = jax.lax.while_loop(pending, lambda c: _iterate(c, f, norm), c)
        found = (c.residual <= 1) & (c.correction <= 1) & is_regular(jax.jacfwd(f)(c.x))
        code = jnp.where(
            c.iterations < plan.max_steps, ReturnCode.newton_failed, ReturnCode.max_steps
        )
        code = jnp.where(jnp.isfinite(c.residual), code, ReturnCode.unstable)
        code = jnp.where(found, ReturnCode.success, code)
        return Outcome(
            rows=None,
            u_end=back(c.x),
            t_end=jnp.full_like(inputs.t1, jnp.inf),
            tape=None,
            final=None,
            status=code.astype(jnp.int32),
            naccept=zero,
            nreject=zero,
            ndense=zero,
            saved=None,
            work={
                "nf": c.nf,
                "njac": c.iterations + 1,
                "nfactor": c.iterations,
                "nsolve": c.iterations,
            },
        )


def _iterate(
    c: _Newton, f: Callable[[Array], Array], norm: Callable[[Array, Array], Array]
) -> _Newton:
    """One correction, halved until it brings the residual down or leaves it within tolerance."""
    delta = jnp.linalg.solve(jax.jacfwd(f)(c.x), -c.fx)

    def tried(share: Array) -> tuple[Array, Array, Array]:
        x = c.x + share * delta
        fx = f(x)
        # Norms are scaled at one point, or they could not be compared.
        return share, fx, norm(fx, c.x)

    def fails(trial: tuple[Array, Array, Array]) -> Array:
        share, _, size = trial
        return ~(size <= jnp.maximum(1, (1 - SUFFICIENT_DECREASE * share) * c.residual))

    def halve(state: tuple[Array, tuple[Array, Array, Array]]) -> Any:
        halvings, trial = state
        return halvings + 1, tried(trial[0] / 2)

    zero = jnp.zeros_like(c.nf)
    halvings, trial = jax.lax.while_loop(
        lambda state: fails(state[1]) & (state[0] < MAX_HALVINGS),
        halve,
        (zero, tried(jnp.ones_like(c.residual))),
    )
    share, fx, _ = trial
    stalled = fails(trial)
    x, fx = where(stalled, (c.x, c.fx), (c.x + share * delta, fx))
    return _Newton(
        x=x,
        fx=fx,
        residual=norm(fx, x),
        correction=norm(delta, x),
        stalled=stalled,
        iterations=c.iterations + 1,
        nf=c.nf + halvings + 1,
    )


class DynamicSS(SteadyStateAlgorithm):
    """Follows the solution of u' = f(u, p, t) from t = 0 until it rests.

    Only a stable steady state is found, the one that u0 leads to. A state that has come to rest is
    polished by Newton's method; a search that has reached `t_max` or used up `max_steps` is too,
    and fails with the return code `max_steps` only if that fails.

    **Arguments:**

    - `alg`: an explicit method with an error estimate.
    - `t_max`: how far it is followed.
    - `polish`: False never computes a Jacobian.

    **Raises:** `ValueError` for a method without an error estimate.

    !!! example
        `dj.solve(dj.SteadyStateProblem(f, u0, p), dj.DynamicSS(dj.Tsit5()))`
    """

    alg: Algorithm = Tsit5()
    t_max: float = eqx.field(static=True, default=float("inf"))
    polish: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        if self.alg.error_order is None:
            raise ValueError(
                f"DynamicSS needs a method with an error estimate, got {self.alg.name}; "
                "try dj.Tsit5()."
            )
        if not self.t_max > 0:
            raise ValueError(f"t_max must be positive, got {self.t_max!r}.")

    def find(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        rest = self._follow(plan, inputs, settings)
        if not self.polish:
            return rest
        root = SSRootfind().find(plan, inputs._replace(u0=rest.u_end), settings)
        better = (root.status == ReturnCode.success) & (rest.status != ReturnCode.unstable)
        return rest._replace(
            u_end=where(better, root.u_end, rest.u_end),
            status=jnp.where(better, root.status, rest.status),
            work=_sum(rest.work, root.work),
        )

    def _follow(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        """The solution at the first step at whose end it rests."""
        plan = replace(plan, alg=self.alg, controller=PIController(), progress=None)
        inputs = inputs._replace(t1=jnp.full_like(inputs.t1, self.t_max))
        stepper = AdaptiveStepper(plan, inputs, settings)
        f, forever = plan.field(inputs).f, jnp.full_like(inputs.t1, jnp.inf)

        def rests(u: State) -> Array:
            return scaled_norm(settings.rtol, settings.atol, f(forever, u), u, u) <= 1

        def pending(state: tuple[AdaptiveState, Array]) -> Array:
            return stepper.active(state[0]) & ~state[1]

        def advance(state: tuple[AdaptiveState, Array]) -> tuple[AdaptiveState, Array]:
            carry, _ = stepper.attempt(state[0], masked=False)
            return carry, rests(carry.u)

        start = stepper.init(), rests(inputs.u0)
        start = vary_alike((start, inputs, settings))[0]
        carry, resting = jax.lax.while_loop(pending, advance, start)
        code = stepper.status(carry)
        # The end of the time is no rest.
        code = jnp.where(code == ReturnCode.success, ReturnCode.max_steps, code)
        attempts = carry.naccept + carry.nreject
        init, each = self.alg.init_counts.get("nf", 0), self.alg.step_counts.get("nf", 0)
        return Outcome(
            rows=None,
            u_end=carry.u,
            t_end=carry.t,
            tape=None,
            final=None,
            status=jnp.where(resting, ReturnCode.success, code).astype(jnp.int32),
            naccept=carry.naccept,
            nreject=carry.nreject,
            ndense=jnp.zeros((), jnp.int32),
            saved=None,
            work={"nf": init + INITIAL_STEP_NF + 1 + attempts * (each + 1)},
        )


class RootfindOrDynamicSS(SteadyStateAlgorithm):
    """Newton's method, and where it fails `DynamicSS` from the same start: the default."""

    def find(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        root = SSRootfind().find(plan, inputs, settings)
        found = root.status == ReturnCode.success

        # Where it is found already the second search ends where it starts.
        start = where(found, root.u_end, inputs.u0)
        rest = DynamicSS().find(plan, inputs._replace(u0=start), settings)
        return where(found, root, rest._replace(work=root.work))._replace(
            work=_sum(root.work, rest.work)
        )


def _sum(*works: dict[str, Array] | None) -> dict[str, Array]:
    names = {name for work in works for name in work or {}}
    zero = jnp.zeros((), jnp.int32)
    return {name: sum(((work or {}).get(name, zero) for work in works), zero) for name in names}
