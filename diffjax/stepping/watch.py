"""Events in the loop over steps: what is carried for them, and when they happen.

A stepper with events asks its `Watch` how far the next attempt may go, whether an attempt has met
an event and must be taken again, and what the events at the end of an accepted step make of it.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from ..algorithms.base import Field, Memory, State, StepResult
from ..algorithms.implicit import derivative
from ..events.search import Attempt, Search, Sighting, crosses, look, resolution, same_time
from ..events.transition import Crossing, StepEvents, across, arrive, attached, depart
from .initialization import WORK
from .lanes import any_lane
from .plan import Inputs, Plan
from .status import ReturnCode
from .stepper import Step
from .tape import put
from .trees import nan_like, when, where

# Two events of one callback so many units of the resolution apart are no two events.
_ZENO = 8.0
# A step is carried across a root by at most so many units of the resolution.
_DOUBLED = 2.0**20
# After an event a condition is looked at so many units of the resolution later.
_LATER = 2.0
# A rough path is searched to this part of the step, or to what its noise resolves.
_ROUGH = 2.0**-20


class EventLog(NamedTuple):
    """What has happened: `n` events, of which the first rows tell when, which callback, and of some
    the states before and after."""

    t: Float[Array, " events"]
    which: Int[Array, " events"]
    before: State | None
    after: State | None
    n: Int[Array, ""]


class EventState(NamedTuple):
    """What the loop carries for events.

    - `values`, `sides`: the conditions where the next step starts, and their sides of zero.
    - `search`: for an event inside the next step.
    - `last`: when each continuous callback fired last; `latest` when any callback did.
    - `code`: a return code other than success ends the solve.
    - `quiet`: nothing is known to happen in the next step.
    - `work`: of making states consistent; None where every state is.
    """

    values: Float[Array, " continuous"]
    sides: Float[Array, " continuous"]
    search: Search
    last: Float[Array, " continuous"]
    latest: Float[Array, ""]
    code: Int[Array, ""]
    log: EventLog
    quiet: Bool[Array, ""]
    work: Int[Array, " counted"] | None


def just_happened(events: EventState, ts: Array) -> Bool[Array, ""]:
    """Whether the last event was at `ts`, but for rounding."""
    return same_time(ts, events.latest)


class Ending(NamedTuple):
    """The end of an accepted step, before and after its events."""

    t: Float[Array, ""]
    u: State
    memory: Memory
    events: EventState


class Watch:
    """Events as a stepper handles them."""

    def __init__(self, plan: Plan, inputs: Inputs) -> None:
        assert plan.events is not None
        assert inputs.events is not None
        self.plan, self.events, self.args = plan, plan.events, inputs.events
        self.alg, self.field, self.inputs = plan.alg, plan.field(inputs), inputs
        # A Brownian path has no derivative by time, so neither has it an event's time.
        self.rough = self.field.diffusion is not None

    def start(self, t: Array, u: State, memory: Memory) -> EventState:
        """What is carried before the first step."""
        events, dtype = self.events, t.dtype
        rows, conditions = max(events.most, 1), len(events.continuous)
        zero = jnp.zeros((), jnp.int32)
        states = None
        if events.save:
            states = jtu.tree_map(lambda x: jnp.broadcast_to(nan_like(x), (rows, *x.shape)), u)
        never = jnp.full(conditions, -jnp.inf, dtype)
        log = EventLog(
            t=jnp.full(rows, jnp.nan, dtype),
            which=jnp.full(rows, -1, jnp.int32),
            before=states,
            after=states,
            n=zero,
        )
        values, sides = self._sides(t, jnp.zeros_like(t), u, memory, u, None)
        return EventState(
            values=values,
            sides=sides,
            search=Search.none(dtype),
            last=never,
            latest=jnp.full((), -jnp.inf, dtype),
            code=zero + ReturnCode.success,
            log=log,
            quiet=jnp.asarray(True),
            work=None if self.args.consistent is None else jnp.zeros(len(WORK), jnp.int32),
        )

    def planned(
        self, state: EventState, dt: Array, landing: Array
    ) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        """The size of the next attempt, and whether it still ends on a stop."""
        on = state.search.on
        return jnp.where(on, state.search.aim, dt), landing & ~on

    def judged(self, t: Array, dt: Array, result: StepResult, error: Array) -> Float[Array, ""]:
        """The error of a step; if some callback refuses its end, one that halves it at least."""
        events = self.events
        if events.refusal_jaxpr is None:
            return error
        args, end, memory = jax.lax.stop_gradient((self.args, result.u, result.memory))
        refused = events.refused(args, t + dt, end, self.alg.parameters(memory))
        return jnp.where(refused, jnp.maximum(error, 2.0**self.plan.error_exponent), error)

    def look(
        self,
        state: EventState,
        t: Array,
        dt: Array,
        u: State,
        result: StepResult,
        usable: Array,
        accepted: Array,
    ) -> Sighting | None:
        """Judge an attempted step by its continuous callbacks; None if there are none.

        It is `accepted` but for its events, or refused for its error and still `usable` for seeing
        one.
        """
        if not self.events.continuous:
            return None
        return look(
            self._attempt(state, t, dt, u, result),
            self.events.directions,
            self._samples,
            state.search,
            jnp.asarray(accepted if self.rough else usable),
            jnp.asarray(accepted),
            lambda condition, function, x: when(any_lane(condition), function, x),
            self.rough,
        )

    def disturbed(
        self,
        state: EventState,
        step: Step,
        result: StepResult,
        usable: Array,
        accepted: Array,
        scheduled: Array,
    ) -> tuple[Bool[Array, ""], Float[Array, " continuous"]]:
        """Whether something may happen in an attempted step or at its end, so that it has to be
        looked at more closely; and the conditions where the next step starts.

        `scheduled` tells whether the end of the step is that of a callback.
        """
        events, values = self.events, state.values
        found = accepted & scheduled
        if events.discrete:
            args, end, u, memory = jax.lax.stop_gradient(
                (self.args, step.t + step.dt, result.u, result.memory)
            )
            tests = events.tests(args, end, u, self.alg.parameters(memory))
            found |= accepted & jnp.any(tests)
        if events.continuous:
            attempt = self._attempt(state, step.t, step.dt, step.u, result)
            found |= (accepted if self.rough else usable) & crosses(attempt, self._samples)
            values = jnp.where(accepted & ~found, attempt.end, values)
        return found, values

    @property
    def _samples(self) -> int:
        return 0 if self.rough else self.events.samples

    def _attempt(
        self, state: EventState, t: Array, dt: Array, u: State, result: StepResult
    ) -> Attempt:
        """An attempted step as the search for events sees it."""
        events, alg = self.events, self.alg
        field, args = jax.lax.stop_gradient((self.field, self.args))
        t, dt, u, end = jax.lax.stop_gradient((t, dt, u, result.u))
        stages, memory = jax.lax.stop_gradient((result.stages, result.memory))
        parameters = alg.parameters(memory)

        def conditions(theta: Array) -> Array:
            now = alg.field_now(field, memory)
            between = (u, end) if alg.is_dense_linear else alg.dense(now, t, dt, u, stages)
            inside = alg.interpolate(between, theta)
            return events.conditions(args, t + theta * dt, inside, parameters)

        finest = resolution(t, dt)
        if self.rough:
            finest = jnp.maximum(finest, self._roughly(state.search, dt))
        return Attempt(
            t=t,
            dt=dt,
            values=state.values,
            sides=state.sides,
            conditions=conditions,
            end=events.conditions(args, t + dt, end, parameters),
            resolution=finest,
        )

    def _roughly(self, search: Search, dt: Array) -> Float[Array, ""]:
        """How exactly an event on a rough path is located."""
        whole = jnp.where(search.on, jnp.maximum(search.high, dt), dt)
        noise = self.inputs.noise
        smallest = None if noise is None else noise.smallest
        finest = _ROUGH * whole
        return finest if smallest is None else jnp.maximum(finest, smallest.astype(dt.dtype))

    def meets(self, sighting: Sighting, t: Array, dt: Array, stop: Array) -> Bool[Array, ""]:
        """Whether a step that ends with an event does so at a stop, but for rounding."""
        t, dt, stop = jax.lax.stop_gradient((t, dt, stop))
        return jnp.any(sighting.fired) & same_time(stop, t + dt, dt)

    def settle(
        self,
        before: Ending,
        at: Crossing,
        result: StepResult,
        sighting: Sighting | None,
        accepted: Array,
        due: Array | None,
        ringing: Array,
    ) -> tuple[Ending, Crossing]:
        """What the events at the end of a step make of it, and which they were.

        `before` is where the loop stands without them, `at` the step, of whose events nothing is
        known yet; `due` are the scheduled callbacks whose time has come, `ringing` tells whether
        that of a jump has.
        """
        events, state = self.events, before.events
        tested, located = None, None
        if events.discrete:
            args, end, u, memory = jax.lax.stop_gradient(
                (self.args, at.end, result.u, result.memory)
            )
            tested = accepted & events.tests(args, end, u, self.alg.parameters(memory))
        if sighting is not None:
            located = accepted & sighting.fired
            state = self._noted(state, sighting, accepted)
        due = None if due is None else accepted & due
        fired = events.fired(located, tested, due, accepted & ringing)
        happened = jnp.any(fired)
        at = at._replace(
            located=jnp.asarray(False) if located is None else jnp.any(located),
            happenings=StepEvents(fired, state.log.n, jnp.zeros_like(at.dt)),
        )
        before = before._replace(events=state)

        def happen(given: tuple[Ending, Array]) -> tuple[Ending, Array]:
            ending, beyond = given
            here = at
            if sighting is not None and not self.rough:
                beyond = self._beyond(at, result, sighting)
                here = at.carried(beyond)
                u = across(self.alg, self._now(result.memory), here, at.dt, result)
                ending = ending._replace(t=ending.t + jnp.where(at.pinned, 0, beyond), u=u)
            ending = self._happen(ending, here, located)
            return where(happened, ending, before), beyond

        ending, beyond = when(any_lane(happened), happen, (before, at.events.beyond))
        quiet = ~ending.events.search.on
        return ending._replace(events=ending.events._replace(quiet=quiet)), at.carried(beyond)

    def nothing(self, state: EventState, dt: Array) -> StepEvents:
        """The events of a step without any."""
        return StepEvents(jnp.zeros(self.events.count, bool), state.log.n, jnp.zeros_like(dt))

    def _now(self, memory: Memory) -> Field:
        """The field with the parameters as they are now."""
        return self.alg.field_now(self.field, memory)

    def _beyond(self, at: Crossing, result: StepResult, sighting: Sighting) -> Float[Array, ""]:
        """How far across the root a step must be carried for its conditions to have changed their
        side: some rounding of time, or what in the state is worth some."""
        at, result, now, args = jax.lax.stop_gradient(
            (at, result, self._now(result.memory), self.args)
        )
        parameters = self.alg.parameters(result.memory)
        least = resolution(at.t, at.dt) / 2

        def short(beyond: Array) -> Array:
            u = across(self.alg, now, at.carried(beyond), at.dt, result)
            values = self.events.conditions(args, at.end + beyond, u, parameters)
            there = jnp.sign(values) == sighting.beyond
            return at.located & jnp.any(sighting.fired & ~there) & (beyond < _DOUBLED * least)

        def further(state: tuple[Array, Array]) -> tuple[Array, Array]:
            beyond, is_short = state
            beyond = jnp.where(is_short, jnp.maximum(2 * beyond, least), beyond)
            return beyond, short(beyond)

        start = (at.events.beyond, short(at.events.beyond))
        return jax.lax.while_loop(lambda s: any_lane(s[1]), further, start)[0]

    def _noted(self, state: EventState, sighting: Sighting, accepted: Array) -> EventState:
        """With what an attempt has shown of the conditions."""
        broken = accepted & jnp.any(jnp.isnan(sighting.values))
        failed = jnp.asarray(ReturnCode.event_failed, state.code.dtype)
        return state._replace(
            values=jnp.where(accepted, sighting.values, state.values),
            sides=jnp.where(accepted, sighting.sides, state.sides),
            search=sighting.search,
            code=jnp.where(broken, failed, state.code),
        )

    def _happen(self, ending: Ending, at: Crossing, located: Array | None) -> Ending:
        alg, events, args = self.alg, self.events, self.args
        state, memory = ending.events, ending.memory
        again = partial(_again, alg, events, not self.rough)
        value = (ending.t, ending.u, memory.history)
        t, u, history = attached(again, value, (at, self.field, args))
        memory = memory._replace(history=history)
        after, memory, consistent = depart(alg, events, self.field, args, at, t, u, memory)
        log = state.log
        for i, (entered, row) in enumerate(events.places(at.events.fired, log.n)):
            log = _entered(log, i, entered, row, t, u, after)
        count = jnp.sum(at.events.fired & jnp.asarray(events.logged), dtype=jnp.int32)
        log = log._replace(n=log.n + count)
        values, sides = self._sides(t, at.dt, after, memory, u, located)
        now = jax.lax.stop_gradient(t)
        code = jnp.where(
            events.any_of(events.terminates, at.events.fired), ReturnCode.terminated, state.code
        )
        work = state.work
        if work is not None and consistent is not None:
            code = jnp.where(consistent[0], code, ReturnCode.initial_failed)
            work = work + consistent[1]
        last, alarms = state.last, alg.alarms(memory)
        if alarms is not None:
            code = jnp.where(jnp.any(jnp.isnan(alarms)), ReturnCode.event_failed, code)
        if located is not None:
            limited = located & jnp.asarray(events.limited)
            least = _ZENO * resolution(now, jnp.zeros_like(now))
            zeno = jnp.any(limited & (now - state.last <= least))
            full = jnp.any(limited) & (state.log.n >= events.most)
            code = jnp.where(zeno | full, ReturnCode.event_failed, code)
            last = jnp.where(located, now, state.last)
        state = state._replace(
            values=values,
            sides=sides,
            last=last,
            latest=now,
            code=code.astype(jnp.int32),
            log=log,
            work=work,
        )
        return Ending(t, after, memory, state)

    def _change(self, t: Array, u: State, memory: Memory) -> tuple[Array, Array]:
        """The conditions, and their slopes along the solution."""
        events, field, args = self.events, self.field, self.args
        t, u, memory, field, args = jax.lax.stop_gradient((t, u, memory, field, args))
        parameters = self.alg.parameters(memory)
        if field.slope is not None or self.rough:
            # What the solution does next is not known.
            value = events.conditions(args, t, u, parameters)
            return value, jnp.zeros_like(value)
        slope = derivative(self.alg.field_now(field, memory), t, u)
        return jax.jvp(
            lambda t, u: events.conditions(args, t, u, parameters),
            (t, u),
            (jnp.ones_like(t), jtu.tree_map(_finite, slope)),
        )

    def _sides(
        self, t: Array, dt: Array, u: State, memory: Memory, before: State, located: Array | None
    ) -> tuple[Array, Array]:
        """The conditions at the start of a step, and on which side of zero they are just after.

        Those that were `located` here, and that the affect has not moved from what they were in the
        state `before` it, are still on their roots, and go where their slopes point.
        """
        if not self.events.continuous:
            none = jnp.zeros(0, t.dtype)
            return none, none
        values, slopes = self._change(t, u, memory)
        later = _LATER * resolution(jax.lax.stop_gradient(t), jax.lax.stop_gradient(dt))
        sides = jnp.sign(values + later * slopes)
        if located is None or self.rough:
            return values, sides
        args, at, state = jax.lax.stop_gradient((self.args, t, before))
        parameters = self.alg.parameters(jax.lax.stop_gradient(memory))
        at_root = self.events.conditions(args, at, state, parameters)
        still = located & (jnp.abs(values) <= 2 * jnp.abs(at_root))
        return values, jnp.where(still, jnp.sign(slopes), sides)


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _again(alg: Any, events: Any, smooth: bool, given: Any) -> Any:
    """The end of a step that has events, before them, once more."""
    at, field, args = given
    arrival = arrive(alg, events, field, args, at, smooth)
    return arrival.t, arrival.u, arrival.result.memory.history


def _entered(
    log: EventLog, which: int, entered: Array, row: Array, t: Array, before: State, after: State
) -> EventLog:
    """The log with one event more, if it is `entered`."""

    def written(buffer: Any, value: Any) -> Any:
        return where(entered, jtu.tree_map(lambda b, v: put(b, v, row), buffer, value), buffer)

    return log._replace(
        t=written(log.t, t),
        which=written(log.which, jnp.asarray(which, jnp.int32)),
        before=None if log.before is None else written(log.before, before),
        after=None if log.after is None else written(log.after, after),
    )
