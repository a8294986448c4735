"""Tracing callbacks: from what the user gives to the events of a plan."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, PyTree

from ..events.callbacks import (
    AlarmCallback,
    Callback,
    ContinuousCallback,
    DiscreteCallback,
    HazardCallback,
    ScheduledCallback,
)
from ..events.events import EventArgs, Events
from ..problems.parts import Parts
from ..varying import mesh_axes, vary_over
from .layout import Layout
from .trace import checked, hoist
from .trees import replaced, where


class EventTracer:
    """Traces the functions of callbacks on laid-out states.

    The arguments are those of `trace_field`, and when jumps are due as the solve begins. With
    hazards the state is a pair of the user's and theirs.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        layout: Layout,
        u: PyTree,
        p: Parts,
        t: Array,
        direction: Any,
        *,
        alarms: Array | None = None,
        has_hazards: bool = False,
    ) -> None:
        self.alarms, self.has_hazards = alarms, has_hazards
        self.callbacks, self.layout, self.t, self.direction = callbacks, layout, t, direction
        self.state = layout.ravel(u)
        self.leaves, self.structure = jtu.tree_flatten(p)
        self.leaves = [jnp.asarray(x) for x in self.leaves]
        self.located = [c for c in callbacks if isinstance(c, ContinuousCallback)]
        self.tested = [c for c in callbacks if isinstance(c, DiscreteCallback)]
        self.changing = self._changing()

    def _user(self, t: Array, u: Sequence[Array]) -> tuple[PyTree, Array]:
        """A laid-out state and its time as the user knows them."""
        state = self.layout.unravel(u[0] if len(u) == 1 else tuple(u))
        return state, t * self.direction

    def _parameters(self, leaves: Sequence[Array]) -> Any:
        return jtu.tree_unflatten(self.structure, leaves).value

    def _with(self, parameters: Sequence[Array]) -> list[Array]:
        """All leaves of p, with those that change as they are now."""
        return replaced(self.leaves, self.changing, parameters[: len(self.changing)])

    def _alarms(self, parameters: Sequence[Array]) -> Array | None:
        """When jumps are due, of what events change."""
        return None if self.alarms is None else parameters[len(self.changing)]

    def _acted(
        self, callback: Callback, t: Array, state: PyTree, leaves: Sequence[Array]
    ) -> tuple[PyTree, list[Array]]:
        """The state and the leaves of p after one affect."""
        if not self.has_hazards:
            return self._affected(callback, t, state, leaves)
        u, leaves = self._affected(callback, t, state[0], leaves)
        return (u, state[1]), leaves

    def _affected(
        self, callback: Callback, t: Array, u: PyTree, leaves: Sequence[Array]
    ) -> tuple[PyTree, list[Array]]:
        """The user's state and the leaves of p after one affect."""
        assert callback.affect is not None
        out = callback.affect.value(u, self._parameters(leaves), t)
        name = f"the affect of {callback.name}"
        if not callback.changes_p:
            return checked(out, u, name), list(leaves)
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(
                f"{name} must return (u, p), since it was given changes_p=True: got "
                f"{type(out).__name__}."
            )
        return checked(out[0], u, name), self._checked_parameters(out[1], name)

    def _checked_parameters(self, p: Any, name: str) -> list[Array]:
        new, structure = jtu.tree_flatten(Parts(p))
        if structure != self.structure:
            raise TypeError(
                f"{name} must return parameters like p: got the structure {structure}, wanted "
                f"{self.structure}."
            )
        out = []
        for old, x in zip(self.leaves, map(jnp.asarray, new), strict=True):
            if x.shape != old.shape or not jnp.can_cast(x.dtype, old.dtype, casting="same_kind"):
                raise ValueError(
                    f"{name} must return parameters of the shapes and dtypes of p: got "
                    f"{x.dtype}{list(x.shape)}, wanted {old.dtype}{list(old.shape)}."
                )
            out.append(x.astype(old.dtype))
        return out

    def _changing(self) -> tuple[int, ...]:
        """Which leaves of p some affect changes."""
        changed: set[int] = set()
        for callback in self.callbacks:
            if not callback.changes_p:
                continue

            def act(
                leaves: list[Array], t: Array, *u: Array, callback: Callback = callback
            ) -> list[Array]:
                state, t = self._user(t, u)
                return self._acted(callback, t, state, leaves)[1]

            jaxpr = jax.make_jaxpr(act)(self.leaves, self.t, *jtu.tree_leaves(self.state)).jaxpr
            pairs = zip(jaxpr.invars, jaxpr.outvars, strict=False)
            changed |= {i for i, (before, after) in enumerate(pairs) if before is not after}
        return tuple(sorted(changed))

    def _traced(self, function: Any, *before: Array) -> tuple[Any, tuple[Array, ...]]:
        """A function of the changing parameters, of what comes `before`, of t and u."""
        given = [self.leaves[i] for i in self.changing]
        given += [] if self.alarms is None else [self.alarms]
        count = len(given)

        def flat(*args: Array) -> Any:
            parameters, rest = args[:count], args[count:]
            t, u = rest[len(before)], rest[len(before) + 1 :]
            return function(parameters, *rest[: len(before)], t, u)

        here = (self.t, *jtu.tree_leaves(self.state))
        before = vary_over(mesh_axes(here), before)
        closed = jax.make_jaxpr(flat)(*given, *before, *here)
        return hoist(closed.jaxpr, tuple(closed.consts))

    def conditions(
        self, conditions: Sequence[tuple[Callback, Any]], dtype: Any
    ) -> tuple[Any, tuple[Array, ...]]:
        """Conditions, each with its callback, in one array."""
        if not conditions:
            return None, ()

        def values(parameters: Sequence[Array], t: Array, u: Sequence[Array]) -> Array:
            state, time = self._user(t, u)
            p = self._parameters(self._with(parameters))

            def value(callback: Callback, condition: Any) -> Array:
                whole = not self.has_hazards or isinstance(callback, HazardCallback)
                given = state if whole else state[0]
                return _scalar(callback.name, condition(given, p, time), dtype)

            return jnp.stack([value(*condition) for condition in conditions])

        return self._traced(values)

    def affects(self) -> tuple[Any, tuple[Array, ...]]:
        """All affects in turn, each where its callback has fired."""
        if not any(callback.acts for callback in self.callbacks):
            return None, ()

        def act(
            parameters: Sequence[Array], fired: Array, number: Array, t: Array, u: Sequence[Array]
        ) -> list[Array]:
            state, time = self._user(t, u)
            leaves, alarms = self._with(parameters), self._alarms(parameters)
            for i, callback in enumerate(self.callbacks):
                if isinstance(callback, AlarmCallback | HazardCallback):
                    p = self._parameters(leaves)
                    jumped, rung = callback.act(state, p, time, alarms, number)
                    new = jumped, leaves, rung
                elif callback.affect is not None:
                    new = *self._acted(callback, time, state, leaves), alarms
                else:
                    continue
                state, leaves, alarms = where(fired[i], new, (state, leaves, alarms))
            after = jtu.tree_leaves(self.layout.ravel(state))
            changed = [leaves[i] for i in self.changing]
            return [*after, *changed, *([] if alarms is None else [alarms])]

        fired = jnp.zeros(len(self.callbacks), bool)
        return self._traced(act, fired, jnp.zeros((), jnp.int32))

    def events(self, most: int) -> tuple[Events, EventArgs]:
        """The events of a plan and what they close over."""
        kinds = [
            tuple(i for i, c in enumerate(self.callbacks) if isinstance(c, kind))
            for kind in (ContinuousCallback, DiscreteCallback, ScheduledCallback)
        ]
        continuous, discrete, scheduled = kinds
        located, tested = (
            [(c, c.condition.value) for c in some] for some in (self.located, self.tested)
        )
        refusing = [(c, c.refused) for c in self.callbacks if c.refuses]
        condition_jaxpr, condition_args = self.conditions(located, self.t.dtype)
        test_jaxpr, test_args = self.conditions(tested, jnp.bool_)
        refusal_jaxpr, refusal_args = self.conditions(refusing, jnp.bool_)
        affect_jaxpr, affect_args = self.affects()
        events = Events(
            condition_jaxpr=condition_jaxpr,
            test_jaxpr=test_jaxpr,
            affect_jaxpr=affect_jaxpr,
            refusal_jaxpr=refusal_jaxpr,
            continuous=continuous,
            discrete=discrete,
            scheduled=scheduled,
            ringing=tuple(i for i, c in enumerate(self.callbacks) if isinstance(c, AlarmCallback)),
            directions=tuple(c.direction for c in self.located),
            acts=tuple(c.acts for c in self.callbacks),
            terminates=tuple(c.terminate for c in self.callbacks),
            logged=tuple(c.logged for c in self.callbacks),
            limited=tuple(c.limited for c in self.located),
            samples=max((c.samples for c in self.located), default=0),
            save=any(c.save for c in self.located),
            changing=len(self.changing),
            most=most,
        )
        return events, EventArgs(condition_args, test_args, affect_args, refusal_args)


def _scalar(name: str, value: Any, dtype: Any) -> Array:
    """The value of a condition, or a clear error."""
    shape, given = jnp.shape(value), jnp.asarray(value).dtype
    wants_bool = dtype == jnp.bool_
    if shape != ():
        raise ValueError(
            f"the condition of {name} must be a scalar, got shape {shape}; give a "
            "callback for each component, or reduce it, for example by jnp.min."
        )
    is_bool = given == jnp.bool_
    if wants_bool != is_bool or jnp.issubdtype(given, jnp.complexfloating):
        wanted = "a boolean" if wants_bool else "a real number, which changes its sign at the event"
        raise TypeError(f"the condition of {name} must be {wanted}, got {given}.")
    return jnp.asarray(value).astype(dtype)


def scheduled_stops(callbacks: Sequence[Callback], times: Any, dtype: Any) -> list[Array]:
    """The times of each scheduled callback, in the time of the solve."""
    found = []
    for callback in callbacks:
        if isinstance(callback, ScheduledCallback):
            given = jnp.asarray(callback.times_in(times.span), dtype)
            turn = times.direction
            found.append(given if isinstance(turn, float) and turn == 1.0 else given * turn)
    return found


def may_start(callbacks: Sequence[Callback], span: tuple[float, float] | None) -> bool:
    """Whether something may be scheduled for the start of the span, which is None if traced."""
    for callback in callbacks:
        if isinstance(callback, ScheduledCallback):
            times = callback.times_in(span)
            if span is None or not isinstance(times, tuple) or span[0] in times:
                return True
    return False


def owners_of(stops: Array, scheduled: Sequence[Array]) -> Bool[Array, "stops scheduled"]:
    """Which of the stops belong to which scheduled callback."""
    stops = jax.lax.stop_gradient(stops)
    columns = [jnp.any(stops[:, None] == jax.lax.stop_gradient(x)[None], axis=1) for x in scheduled]
    return jnp.stack(columns, axis=1)


def in_span(scheduled: Sequence[Array], t0: Array, t1: Array) -> Array:
    """All scheduled times after the start in order, each once; what is left over is the end."""
    times = jnp.sort(jnp.concatenate(scheduled))
    again = jnp.concatenate([jnp.zeros(1, bool), times[1:] == times[:-1]])
    outside = (times <= t0) | (times > t1)
    return jnp.sort(jnp.where(again | outside, t1, times))
