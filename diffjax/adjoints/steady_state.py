"""The derivative of a steady state, by the implicit function theorem.

With f(u, p) = 0 and the Jacobian J = df/du, a change dp of the parameters moves the root by
du = -J^{-1} (df/dp) dp. Only this rule is given to JAX, in terms that it can differentiate and
transpose by itself: so all modes of differentiation follow, nested at will.
"""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..algorithms.base import Field, State
from ..linear.coordinates import Coordinates
from ..linear.dense import is_regular
from ..stepping.outcome import Outcome
from ..stepping.plan import Inputs, Plan, Settings
from ..stepping.status import ReturnCode
from ..stepping.steady_state import residual
from .base import Adjoint


class SteadyStateAdjoint(Adjoint):
    """The implicit function theorem at the root; the default for a `SteadyStateProblem`.

    The derivative does not depend on how the root was found, and costs one dense linear solve. All
    of `grad`, `jvp`, `jacfwd`, `jacrev`, `hessian`, `vmap` and `jit` work, nested at will. It is as
    accurate as the root, so solve to tight tolerances. The derivative by `u0` is zero. Where the
    search failed or the Jacobian is singular (a conserved quantity, a turning point) it is NaN.

    !!! example
        `jax.grad(lambda p: dj.solve(prob, p=p, adjoint=dj.SteadyStateAdjoint()).u[-1].sum())(p)`

    Source: Krantz and Parks, The Implicit Function Theorem, section 1.1; Johnson, "Notes on Adjoint
    Methods for 18.335", section 3.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"SteadyStateProblem"})

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        alg: Any = plan.alg
        frozen, settings = jax.lax.stop_gradient((inputs, settings))
        outcome = alg.find(plan, frozen, settings)
        found = outcome.status == ReturnCode.success
        u = _root(plan, outcome.u_end, found, inputs.args)
        return outcome._replace(u_end=u)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _root(plan: Plan, u: State, found: Array, args: tuple[Array, ...]) -> State:
    """The root `u` that belongs to the arguments of the field."""
    return u


@_root.defjvp
def _(plan: Plan, primals: Any, tangents: Any) -> tuple[State, State]:
    u, found, args = primals
    # The root itself, so that it moves when this rule is differentiated.
    u = _root(plan, u, found, args)
    coordinates = Coordinates(u)
    x = coordinates.flatten(u)

    def f(x: Array, args: tuple[Array, ...]) -> Array:
        return residual(Field(plan.field_jaxpr, args), coordinates)(x)

    jacobian = jax.jacfwd(f)(x, args)
    moved = jax.jvp(lambda args: f(x, args), (args,), (tangents[2],))[1]
    good = found & jax.lax.stop_gradient(is_regular(jacobian))
    factor = jnp.where(good, -1, jnp.nan).astype(x.dtype)
    return u, coordinates.unflatten(factor * jnp.linalg.solve(jacobian, moved))
