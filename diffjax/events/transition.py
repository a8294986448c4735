"""What an event makes of the state, as a function that can be differentiated.

The time of an event is where its condition c has a root on the step itself: c(step(dt), t + dt) = 0
defines dt as a function of all that the step depends on, and its derivative is that of the implicit
function theorem. The state after the affect is then an ordinary function of dt.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..algorithms.base import Algorithm, Field, Memory, State, StepResult
from .events import EventArgs, Events


class Crossing(NamedTuple):
    """A step that ends with events.

    - `t`, `u`, `past`, `dt`: the step, `past` its lasting memory.
    - `end`: when it ends, where that is not by an event that was located.
    - `step`: its number; `number`: how many events there were before.
    - `fired`: by callback.
    - `located`: whether it was cut to end on a root of a condition.
    """

    t: Float[Array, ""]
    u: State
    past: Memory
    dt: Float[Array, ""]
    end: Float[Array, ""]
    step: Int[Array, ""]
    number: Int[Array, ""]
    fired: Bool[Array, " callbacks"]
    located: Bool[Array, ""]


class Arrival(NamedTuple):
    """The end of a step before its events: the time, the state and what the step gave beside."""

    t: Float[Array, ""]
    dt: Float[Array, ""]
    result: StepResult


def first_located(events: Events, fired: Bool[Array, " callbacks"]) -> Bool[Array, " continuous"]:
    """Of the continuous callbacks the first listed one that fired."""
    flags = jnp.stack([fired[i] for i in events.continuous])
    return flags & (jnp.cumsum(flags.astype(jnp.int32)) == 1)


def arrive(
    alg: Algorithm, events: Events, field: Field, args: EventArgs, at: Crossing, smooth: bool
) -> Arrival:
    """Take the step of a crossing, with the derivative of its size if that is `smooth`."""

    def step(at: Crossing, field: Field, dt: Array) -> StepResult:
        memory = alg.recall(field, at.t, at.u, at.past)
        return alg.step(field.during(at.step), at.t, dt, at.u, memory, None)

    if not (smooth and events.continuous):
        return Arrival(at.end, at.dt, step(at, field, at.dt))

    def condition(dt: Array, given: tuple[Crossing, Field, EventArgs]) -> Array:
        at, field, args = given
        result = step(at, field, dt)
        parameters = alg.parameters(result.memory)
        values = events.conditions(args, at.t + dt, result.u, parameters)
        return jnp.sum(jnp.where(first_located(events, at.fired), values, 0))

    root = _root(condition, at.dt, at.located, (at, field, args))
    dt = jnp.where(at.located, root, at.dt)
    return Arrival(jnp.where(at.located, at.t + dt, at.end), dt, step(at, field, dt))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _root(
    condition: Callable[[Array, PyTree], Array], dt: Array, located: Array, given: PyTree
) -> Array:
    """`dt`, which is a root of the condition if `located`, with its derivative."""
    return dt


@_root.defjvp
def _(condition: Callable[[Array, PyTree], Array], primals: Any, tangents: Any) -> Any:
    (dt, located, given), (_, _, given_dot) = primals, tangents
    dt = _root(condition, dt, located, given)
    slope = jax.jvp(lambda dt: condition(dt, given), (dt,), (jnp.ones_like(dt),))[1]
    moved = jax.jvp(lambda given: condition(dt, given), (given,), (given_dot,))[1]
    # A step that ends for another reason has no root, and its slope may be zero.
    return dt, jnp.where(located, -moved / jnp.where(located, slope, 1), 0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def attached(recompute: Callable[[PyTree], PyTree], value: PyTree, given: PyTree) -> PyTree:
    """`value`, with the derivative of `recompute(given)`, which is the same again."""
    return value


@attached.defjvp
def _(recompute: Callable[[PyTree], PyTree], primals: Any, tangents: Any) -> Any:
    (value, given), (_, given_dot) = primals, tangents
    value = attached(recompute, value, given)
    return value, jax.jvp(recompute, (given,), (given_dot,))[1]


def depart(
    alg: Algorithm,
    events: Events,
    field: Field,
    args: EventArgs,
    at: Crossing,
    t: Array,
    u: State,
    memory: Memory,
) -> tuple[State, Memory]:
    """The state and the memory after the affects, from those before them; without an affect both
    stay."""
    after, changed = events.affect(args, at.fired, at.number, t, u, alg.parameters(memory))
    if not any(events.acts):
        return u, memory
    fresh = alg.restart(field, t, after, memory, changed)
    if all(events.acts):
        return after, fresh
    acts = events.any_of(events.acts, at.fired)
    return after, jtu.tree_map(lambda x, y: jnp.where(acts, x, y), fresh, memory)
