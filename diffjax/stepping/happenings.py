"""The events of a solve as the user sees them, those at its very start among them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..algorithms.base import State
from .plan import Inputs, Plan, with_parameters
from .trace_events import owners_of
from .watch import EventLog


class Happenings(NamedTuple):
    """The events of a solve, `sol.events`: as many rows as `max_events`, of which `n` are filled.

    - `t`: when; NaN in rows that are not filled.
    - `which`: the number of the callback, in the order they were listed in; -1 if none.
    - `n`: how many there were; more than there are rows if there was no room for all.
    - `before`, `after`: the states on both sides, if a callback asked for them (`save=True`).
    """

    t: Float[Array, " events"]
    which: Int[Array, " events"]
    n: Int[Array, ""]
    before: PyTree
    after: PyTree


class FirstEvents(NamedTuple):
    """What scheduled callbacks have made of the start: which fired, the states before and after."""

    fired: Bool[Array, " callbacks"]
    before: State
    after: State


def events_at_start(
    plan: Plan, inputs: Inputs, scheduled: list[Array]
) -> tuple[Inputs, FirstEvents]:
    """The inputs after what is scheduled for the start of the solve, and what that was."""
    events, before = plan.events, inputs.u0
    assert events is not None
    assert inputs.events is not None
    due = owners_of(inputs.t0.reshape(1), scheduled)[0]
    fired, number = events.fired(None, None, due, None), jnp.full((), -1, jnp.int32)
    given = inputs.args[len(inputs.args) - events.changing :]
    given = given if inputs.alarms is None else (*given, inputs.alarms)
    after, changed = events.affect(inputs.events, fired, number, inputs.t0, before, given)
    inputs = with_parameters(inputs._replace(u0=after), changed)
    return inputs, FirstEvents(fired, before, after)


def happenings(
    log: EventLog,
    first: FirstEvents | None,
    plan: Plan,
    inputs: Inputs,
    unravel: Callable[[State], PyTree],
    direction: Any,
) -> Happenings:
    """The events in the order in which they happened, in the user's terms."""
    events = plan.events
    assert events is not None
    if first is not None:
        log = _with_first(log, first, inputs.t0, events.logged)
    states = (log.before, log.after)
    before, after = (None if x is None else jax.vmap(unravel)(x) for x in states)
    return Happenings(log.t * direction, log.which, log.n, before, after)


def _with_first(log: EventLog, first: FirstEvents, t0: Array, logged: tuple[bool, ...]) -> EventLog:
    """The log with the events at the start before those that it has."""
    fired = first.fired & jnp.asarray(logged)
    rows = log.t.shape[0]
    kept = jnp.concatenate([fired, jnp.arange(rows, dtype=log.n.dtype) < log.n])
    order = jnp.argsort(~kept, stable=True)[:rows]
    numbers = jnp.arange(fired.shape[0], dtype=log.which.dtype)

    def before(x: State, later: State) -> State:
        return jtu.tree_map(
            lambda x, y: jnp.concatenate([jnp.broadcast_to(x, (*fired.shape, *x.shape)), y])[order],
            x,
            later,
        )

    return EventLog(
        t=jnp.concatenate([jnp.where(fired, t0, jnp.nan), log.t])[order],
        which=jnp.concatenate([jnp.where(fired, numbers, -1), log.which])[order],
        before=None if log.before is None else before(first.before, log.before),
        after=None if log.after is None else before(first.after, log.after),
        n=log.n + jnp.sum(fired, dtype=log.n.dtype),
    )
