"""What an event makes of the state, as a function that can be differentiated.

The time of an event is where its condition c has a root on the step itself: c(step(dt), t + dt) = 0
defines dt as a function of all that the step depends on, and its derivative is that of the implicit
function theorem. The state after the affect is then an ordinary function of dt.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..algorithms.base import Algorithm, Field, Memory, State, StepResult
from .events import EventArgs, Events


class StepEvents(NamedTuple):
    """What a tape keeps of the events at the end of a step: which callbacks `fired`, the `number`
    of events before, and how far `beyond` a root the step was carried."""

    fired: Bool[Array, " callbacks"]
    number: Int[Array, ""]
    beyond: Float[Array, ""]


class Crossing(NamedTuple):
    """A step that ends with events.

    - `t`, `u`, `past`, `dt`: the step, `past` its lasting memory.
    - `end`: when it ends, where that is not by an event that was located.
    - `step`: its number.
    - `pinned`: whether its end is a given time, whatever event is there.
    - `located`: whether it was cut to end just before a root of a condition.
    - `happenings`: its events, None as long as they are not known.
    """

    t: Float[Array, ""]
    u: State
    past: Memory
    dt: Float[Array, ""]
    end: Float[Array, ""]
    step: Int[Array, ""]
    pinned: bool | Bool[Array, ""]
    located: bool | Bool[Array, ""] = False
    happenings: StepEvents | None = None

    @property
    def events(self) -> StepEvents:
        """What is known of its events, once it is."""
        assert self.happenings is not None
        return self.happenings

    def carried(self, beyond: Array) -> "Crossing":
        """The same, carried so far across the root."""
        return self._replace(happenings=self.events._replace(beyond=beyond))


class Arrival(NamedTuple):
    """The end of a step before its events: the time and the state, the size of the step and what it
    gave beside."""

    t: Float[Array, ""]
    u: State
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
        result = step(at, field, at.dt)
        return Arrival(at.end, result.u, at.dt, result)

    def condition(dt: Array, given: tuple[Crossing, Field, EventArgs]) -> Array:
        at, field, args = given
        result = step(at, field, dt)
        parameters = alg.parameters(result.memory)
        values = events.conditions(args, at.t + dt, result.u, parameters)
        return jnp.sum(jnp.where(first_located(events, at.events.fired), values, 0))

    root = _root(condition, at.dt, at.located, (at, field, args))
    dt = jnp.where(at.located, root, at.dt)
    result = step(at, field, dt)
    u = across(alg, alg.field_now(field, result.memory), at, dt, result)
    return Arrival(jnp.where(at.located, at.t + dt + at.events.beyond, at.end), u, dt, result)


def across(alg: Algorithm, field: Field, at: Crossing, dt: Array, result: StepResult) -> State:
    """The state behind the root that a step was cut to end before."""
    coefficients = alg.dense(field, at.t, dt, at.u, result.stages)
    one = jnp.ones_like(at.t)
    here, there = (
        alg.interpolate(coefficients, theta) for theta in (one, one + at.events.beyond / dt)
    )
    return jtu.tree_map(lambda u, x, y: u + jnp.where(at.located, y - x, 0), result.u, here, there)


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


class Departure(NamedTuple):
    """The state and the memory after events; where a state has to satisfy algebraic equations also
    whether it does, and what that took."""

    u: State
    memory: Memory
    consistent: tuple[Bool[Array, ""], Int[Array, " counted"]] | None = None


def depart(
    alg: Algorithm,
    events: Events,
    field: Field,
    args: EventArgs,
    at: Crossing,
    t: Array,
    u: State,
    memory: Memory,
) -> Departure:
    """The state and the memory after the affects, from those before them."""
    after, changed = events.affect(
        args, at.events.fired, at.events.number, t, u, alg.parameters(memory)
    )
    if not (any(events.acts) or events.continuous):
        return Departure(u, memory)
    # At a root that was located the vector field may jump, whether there is an affect or not.
    breaks = events.any_of(events.acts, at.events.fired) | at.located
    consistent = None
    if args.consistent is not None:
        now = field.with_last(changed[: events.changing])
        if field.slope is not None:
            now = dataclasses.replace(now, slope=jax.lax.stop_gradient(_chord(at, u)))
        made, slope, found, work = args.consistent(now, t, after)
        after = jtu.tree_map(lambda x, y: jnp.where(breaks, x, y), made, after)
        field = dataclasses.replace(field, slope=slope)
        consistent = found | ~breaks, jnp.where(breaks, work, 0)
    fresh = alg.restart(field, t, after, memory, changed)
    memory = jtu.tree_map(lambda x, y: jnp.where(breaks, x, y), fresh, memory)
    return Departure(after, memory, consistent)


def _chord(at: Crossing, u: State) -> State:
    """The mean derivative over a step that ends with u."""
    return jtu.tree_map(lambda x, y: (x - y) / at.dt.astype(x.dtype), u, at.u)
