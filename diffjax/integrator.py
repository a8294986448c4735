"""Walking a solve step by step."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .algorithms.base import Algorithm
from .arguments import Options
from .judge import Given, judge
from .prepare import prepare
from .problems.base import Problem
from .problems.parts import Parts, is_array
from .ready import Ready
from .stepping.outcome import make_stepper
from .stepping.stepper import Stepper


class Integrator(eqx.Module):
    """A solve that is taken step by step; an immutable pytree, so it works under `jit` and `vmap`.

    - `t`, `u`: where it stands.
    - `dt`: the next step that it will attempt.
    - `done`: whether it has reached the end of the span, or can go no further.
    """

    t: Float[Array, ""]
    u: PyTree
    dt: Float[Array, ""]
    done: Bool[Array, ""]
    _carry: PyTree
    _arguments: Parts
    _options: Options = eqx.field(static=True)


def init(prob: Problem, alg: Algorithm | None = None, **options: Any) -> Integrator:
    """Start a solve that is walked with `dj.step`.

    **Arguments:** as those of `dj.solve`; what concerns saving is not used.

    **Returns:** an `Integrator` at the start of the span.

    **Raises:** as `dj.solve`.

    !!! example
        ```python
        integrator = dj.init(prob, dj.Tsit5(), rtol=1e-6)
        while not integrator.done:
            integrator = dj.step(integrator)
            print(integrator.t, integrator.u)
        ```
    """
    for name in options:
        if name not in Given._fields:
            raise TypeError(f"{name}= is no argument of dj.init; it takes those of dj.solve.")
    arguments, settled = judge(prob, alg, Given(**options))
    if not prob.evolves:
        raise TypeError(f"a {type(prob).__name__} has no steps to walk; use dj.solve.")
    return _start(Parts(arguments, dynamic=is_array), settled)


def step(integrator: Integrator) -> Integrator:
    """Take one accepted step (rejected attempts are repeated); at the end, none.

    **Arguments:** `integrator`, from `dj.init` or an earlier `dj.step`.

    **Returns:** the integrator after the step.

    !!! example
        `integrator = dj.step(dj.init(prob, dj.Tsit5()))`
    """
    return _step(integrator)


@partial(jax.jit, static_argnums=1)
def _start(arguments: Parts, options: Options) -> Integrator:
    ready = prepare(arguments.value, options)
    stepper = make_stepper(ready.plan, ready.inputs, ready.settings)
    return _present(ready, stepper, stepper.init(), arguments, options)


@jax.jit
def _step(integrator: Integrator) -> Integrator:
    arguments, options = integrator._arguments, integrator._options
    ready = prepare(arguments.value, options)
    stepper = make_stepper(ready.plan, ready.inputs, ready.settings)

    def pending(state: Any) -> Array:
        carry, moved = state
        return stepper.active(carry) & ~moved

    def attempt(state: Any) -> Any:
        carry, record = stepper.attempt(state[0], masked=False)
        return carry, jnp.asarray(record.accepted)

    carry, _ = jax.lax.while_loop(pending, attempt, (integrator._carry, jnp.asarray(False)))
    return _present(ready, stepper, carry, arguments, options)


def _present(
    ready: Ready, stepper: Stepper[Any], carry: Any, arguments: Parts, options: Options
) -> Integrator:
    turn = ready.times.direction
    dt = carry.dt if hasattr(carry, "dt") else stepper.attempt(carry, masked=False)[1].step.dt
    return Integrator(
        t=stepper.time(carry) * turn,
        u=ready.layout.unravel(carry.u),
        dt=dt * turn,
        done=~jnp.asarray(stepper.active(carry)),
        _carry=carry,
        _arguments=arguments,
        _options=options,
    )
