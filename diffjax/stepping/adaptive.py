"""Adaptive steps: one attempted step of a solve whose step size follows the error."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..algorithms.base import Memory, State, StepResult
from ..events.search import Sighting
from ..events.transition import Crossing
from .initial_step import initial_step
from .plan import Inputs, Plan, Settings, scaled_norm
from .status import ReturnCode
from .stepper import ON_ALARM, Counts, Iterations, Record, Step, Stepper
from .trees import all_finite, number, where
from .watch import Ending, EventState, Watch

# A step that would end this close to a time to land on is stretched to land there, so that no
# sliver of a step is left over (HNW I, subroutine DOPRI5).
LANDING_STRETCH = 1.01
# A step shorter than this many units in the last place of t cannot be told from none.
MIN_STEP_ULPS = 4.0

# A step whose iteration failed is halved, whatever its error estimate says, and the step after that
# does not grow (HW II, section IV.8; subroutine RADAU5).
FAILURE_FACTOR = 0.5


# Binary digits of the steps of a stochastic solve.
STEP_BITS = 12


class AdaptiveState(NamedTuple):
    """What the loop carries; as little as will do, since XLA pays for each leaf.

    `dt` is the next step to attempt: zero when the solve is stuck because none is small enough, NaN
    when that is because nothing finite comes back, negative when it is because no iteration
    converges. So how the solve ended is read off at its end, not kept up to date. `t_low` is the
    rounding error of `t` in single precision.
    """

    t: Float[Array, ""]
    t_low: Float[Array, ""] | None
    u: State
    dt: Float[Array, ""]
    memory: Memory
    control: PyTree
    naccept: Int[Array, ""]
    nreject: Int[Array, ""]
    next_stop: Int[Array, ""] | None
    iterations: Iterations | None
    events: EventState | None = None

    @property
    def steps(self) -> Int[Array, ""]:
        """How many steps were accepted."""
        return self.naccept


class _Aim(NamedTuple):
    """Where an attempt is to end: `dt` further on.

    - `stop`, `due`: the next stop, and the next alarm of solves with jumps.
    - `target`: the nearest of these and of what else limits steps; `landing` if dt ends there.
    """

    stop: Array
    due: Array | None
    target: Array
    dt: Array
    landing: Array

    def on_stop(self, landing: Array) -> Bool[Array, ""]:
        return lax.bitwise_and(landing, lax.le(self.stop, self.target))

    def landed(self, landing: Array, index: Array) -> Int[Array, ""]:
        """As in `Record`: the number of the stop that was met, or what stands for an alarm."""
        on_stop = self.on_stop(landing)
        landed = where(on_stop, index, -1)
        if self.due is None:
            return landed
        return where(landing & ~on_stop & (self.due <= self.target), ON_ALARM, landed)


class AdaptiveStepper(Stepper[AdaptiveState]):
    """Takes error-controlled steps; the loop around it decides what is kept of them.

    With a `limit` it goes no further than that time, and ends a step there.
    """

    def __init__(
        self, plan: Plan, inputs: Inputs, settings: Settings, limit: Array | None = None
    ) -> None:
        super().__init__(plan, inputs)
        self.settings, self.limit = settings, limit
        self.rtol = lax.stop_gradient(settings.rtol)
        self.atol = lax.stop_gradient(settings.atol)
        t1 = jnp.reshape(inputs.t1, (1,))
        self.stops = t1 if inputs.stops is None else jnp.concatenate([inputs.stops, t1])
        self.watch = None if plan.events is None else Watch(plan, inputs)

    def norm(self, v: State, u0: State, u1: State) -> Float[Array, ""]:
        return scaled_norm(self.rtol, self.atol, v, u0, u1)

    def init(self) -> AdaptiveState:
        inputs, settings, plan = self.inputs, self.settings, self.plan
        t0, dtype = inputs.t0, inputs.t0.dtype
        span = lax.sub(inputs.t1, t0)
        largest = span if settings.dtmax is None else lax.min(span, settings.dtmax)
        if settings.dt is None:
            dt = initial_step(self.field, t0, inputs.u0, plan.error_exponent, self.norm, largest)
        else:
            dt = lax.min(settings.dt, largest)
        # In single precision the first guess may be lost in the rounding of a large time.
        dt = lax.min(lax.max(dt, self._smallest(t0)), largest)
        control = settings.control
        if control is None:
            assert plan.controller is not None
            control = plan.controller.init()
        next_stop = None
        if inputs.stops is not None:
            next_stop = jnp.sum(inputs.stops <= t0, dtype=jnp.int32)
        memory = plan.first_memory(inputs)
        return AdaptiveState(
            t=t0,
            t_low=jnp.zeros((), dtype) if jnp.finfo(dtype).bits < 64 else None,
            u=inputs.u0,
            dt=where(all_finite(inputs.u0), lax.stop_gradient(dt).astype(dtype), jnp.nan),
            memory=memory,
            control=control,
            naccept=jnp.zeros((), jnp.int32),
            nreject=jnp.zeros((), jnp.int32),
            next_stop=next_stop,
            iterations=self.no_iterations(),
            events=None if self.watch is None else self.watch.start(t0, inputs.u0, memory),
        )

    def _smallest(self, t: Array) -> Float[Array, ""]:
        """The smallest step worth taking from `t`."""
        info = jnp.finfo(t.dtype)
        ulps = number(MIN_STEP_ULPS * float(info.eps), t)
        smallest = lax.max(lax.mul(ulps, lax.abs(t)), number(float(info.tiny), t))
        if self.settings.dtmin is not None:
            smallest = lax.max(smallest, self.settings.dtmin)
        return smallest

    def active(self, c: AdaptiveState) -> Bool[Array, ""]:
        attempts = lax.add(c.naccept, c.nreject)
        end = self.inputs.t1 if self.limit is None else self.limit
        # A segment that is taken again may need a few more attempts than it did.
        enough = self.plan.max_steps if self.limit is None else 2 * self.plan.max_steps
        going = lax.bitwise_and(lax.lt(c.t, end), lax.gt(c.dt, number(0, c.dt)))
        active = lax.bitwise_and(going, lax.lt(attempts, np.int32(enough)))
        return active if c.events is None else active & (c.events.code == ReturnCode.success)

    def status(self, c: AdaptiveState) -> Int[Array, ""]:
        none = number(0, c.dt)
        code = where(lax.eq(c.dt, none), ReturnCode.dt_underflow, np.int32(ReturnCode.max_steps))
        code = where(lax.lt(c.dt, none), ReturnCode.newton_failed, code)
        code = where(lax.ne(c.dt, c.dt), ReturnCode.unstable, code)
        code = where(lax.ge(c.t, self.inputs.t1), ReturnCode.success, code)
        finite = all_finite(c.u)
        if c.events is not None:
            code = where(c.events.code == ReturnCode.success, code, c.events.code)
            finite |= c.events.code == ReturnCode.initial_failed
        return where(finite, code, ReturnCode.unstable)

    def counts(self, c: AdaptiveState) -> Counts:
        return Counts(c.naccept, c.nreject)

    def final(self, c: AdaptiveState) -> tuple[Array, PyTree]:
        return c.dt, c.control

    def time(self, c: AdaptiveState) -> Float[Array, ""]:
        return c.t

    def state(self, c: AdaptiveState) -> State:
        return c.u

    def attempt(self, c: AdaptiveState, *, masked: bool) -> tuple[AdaptiveState, Record]:
        watch = None if self.quiet else self.watch
        aim = self._aim(c, watch)
        dt, landing = aim.dt, aim.landing
        field = self.field.during(c.naccept)
        result = self.alg.step(field, c.t, dt, c.u, c.memory, self.norm)
        assert result.error is not None
        error = lax.stop_gradient(result.error)
        if self.watch is not None:
            error = self.watch.judged(c.t, dt, result, error)
        accepted = lax.bitwise_and(lax.le(error, number(1, error)), result.ok)
        active = self.active(c) if masked else None
        if active is not None:
            accepted = accepted & active
        usable, sighting = accepted, None
        if self.watch is not None:
            # A step that misses its error may do so for an event inside of it.
            finite = jnp.isfinite(error) & result.ok
            usable = finite if active is None else finite & active
        if watch is not None and c.events is not None:
            sighting = watch.look(c.events, c.t, dt, c.u, result, usable, accepted)
        next_dt, control = self._next_dt(c, dt, error, result, accepted, landing)
        if watch is not None and sighting is not None:
            # What was planned before an event was met is what the solve goes on with after it.
            met = sighting.pending | jnp.any(sighting.fired & accepted)
            next_dt = where(met, c.dt, next_dt)
            control = where(sighting.pending, c.control, control)
            accepted = accepted & ~sighting.pending
            landing = landing | watch.meets(sighting, c.t, dt, aim.target)
        memory = _memory(c.memory, result, accepted, active)
        if sighting is not None:
            # An attempt that is taken again for an event says nothing against its order, and the
            # next must be of the same, or the root would move.
            choice = where(sighting.pending, c.memory.choice, memory.choice)
            memory = memory._replace(choice=choice)
        t, t_low = _advance_time(c.t, c.t_low, dt, landing, aim.target)
        step = lax.convert_element_type(accepted, jnp.int32)
        tried = np.int32(1) if active is None else lax.convert_element_type(active, jnp.int32)
        state = AdaptiveState(
            t=where(accepted, t, c.t),
            t_low=None if t_low is None else where(accepted, t_low, c.t_low),
            u=where(accepted, result.u, c.u),
            dt=next_dt if active is None else where(active, next_dt, c.dt),
            memory=memory,
            control=control,
            naccept=lax.add(c.naccept, step),
            nreject=lax.add(c.nreject, lax.sub(tried, step)),
            next_stop=None
            if c.next_stop is None
            else c.next_stop + step * aim.on_stop(landing).astype(jnp.int32),
            iterations=None
            if c.iterations is None
            else c.iterations.after(result, True if active is None else active),
            events=c.events,
        )
        index = jnp.zeros((), jnp.int32) if c.next_stop is None else c.next_stop
        landed = aim.landed(landing, index)
        record = Record(Step(c.t, dt, c.u, c.memory.lasting, result.stages), accepted, landed)
        if watch is not None:
            state, record = self._settle(watch, c, state, record, t, result, sighting)
        elif self.watch is not None:
            state, record = self._undisturbed(self.watch, c, state, record, result, usable)
        self.report_progress(c, state)
        return state, record

    def _aim(self, c: AdaptiveState, watch: Watch | None) -> "_Aim":
        stop = self.stops[0] if c.next_stop is None else self.stops[c.next_stop]
        target = stop if self.limit is None else lax.min(stop, self.limit)
        due = self.plan.next_alarm(c.memory)
        target = target if due is None else lax.min(target, due)
        remaining = lax.sub(target, c.t)
        remaining = remaining if c.t_low is None else lax.sub(remaining, c.t_low)
        landing = lax.ge(lax.mul(c.dt, number(LANDING_STRETCH, c.dt)), remaining)
        dt = where(landing, remaining, self._rounded(self._looking_ahead(c, stop)))
        if watch is not None and c.events is not None:
            dt, landing = watch.planned(c.events, dt, landing)
        return _Aim(stop, due, target, dt, landing)

    def _settle(
        self,
        watch: Watch,
        c: AdaptiveState,
        state: AdaptiveState,
        record: Record,
        end: Array,
        result: StepResult,
        sighting: Sighting | None,
    ) -> tuple[AdaptiveState, Record]:
        """The state after the events at the end of a step."""
        assert c.events is not None
        step, due = record.step, None
        accepted, on_stop = jnp.asarray(record.accepted), record.landed >= 0
        pinned = on_stop | (record.landed == ON_ALARM)
        owners = watch.args.owners
        if owners is not None:
            due = owners[jnp.maximum(record.landed, 0)] & on_stop
        at = Crossing(step.t, step.u, step.past, step.dt, end, c.naccept, pinned=pinned)
        before = Ending(state.t, state.u, state.memory, c.events)
        ending, at = watch.settle(
            before, at, result, sighting, accepted, due, record.landed == ON_ALARM
        )
        breaks = watch.events.any_of(watch.events.acts, at.events.fired) | at.located
        assert self.plan.controller is not None
        fresh = self.plan.controller.init()
        control = where(breaks, fresh, state.control)
        state = state._replace(**ending._asdict(), control=control)
        # How far a step goes that was cut at a root does not follow from the stop.
        landed = jnp.where(at.located, -1, record.landed)
        return state, record._replace(landed=landed, events=at.happenings)

    def _undisturbed(
        self,
        watch: Watch,
        c: AdaptiveState,
        state: AdaptiveState,
        record: Record,
        result: StepResult,
        usable: Array,
    ) -> tuple[AdaptiveState, Record]:
        """The state after a step in which nothing happens; that before it if something may."""
        assert c.events is not None
        accepted, scheduled = jnp.asarray(record.accepted), record.landed == ON_ALARM
        owners = watch.args.owners
        if owners is not None:
            due = jnp.any(owners[jnp.maximum(record.landed, 0)])
            scheduled |= due & (record.landed >= 0)
        found, values = watch.disturbed(c.events, record.step, result, usable, accepted, scheduled)
        events = c.events._replace(values=values, quiet=~found)
        nothing = watch.nothing(c.events, record.step.dt)
        state = where(found, c, state)._replace(events=events)
        return state, record._replace(accepted=accepted & ~found, events=nothing)

    def _rounded(self, dt: Array) -> Float[Array, ""]:
        """The planned step; of a stochastic solve only its leading digits.

        Two programs round the same arithmetic differently, and a Brownian path seen at times that
        differ by some rounding differs by the root of it, which is no rounding any more.
        """
        if self.field.diffusion is None:
            return dt
        return lax.reduce_precision(dt, jnp.finfo(dt.dtype).nexp, STEP_BITS)

    def _looking_ahead(self, c: AdaptiveState, stop: Array) -> Float[Array, ""]:
        """The planned step; half of the way to a stop if that is less than two steps off.

        Of methods that remember past values, which a sliver of a step would spoil.
        """
        if not self.alg.looks_back:
            return c.dt
        return jnp.where(2 * c.dt > stop - c.t, (stop - c.t) / 2, c.dt)

    def _next_dt(
        self,
        c: AdaptiveState,
        dt: Array,
        error: Array,
        result: StepResult,
        accepted: Array,
        landing: Array,
    ) -> tuple[Array, PyTree]:
        controller, ok = self.plan.controller, result.ok
        assert controller is not None
        factor, control = controller.factor(
            error, accepted, lax.eq(c.naccept, np.int32(0)), c.control, self.plan.error_exponent
        )
        if result.dt_next is not None:
            own = lax.stop_gradient(result.dt_next / dt)
            factor = where(jnp.isnan(own), factor, own)
        if c.iterations is not None:
            factor = where(ok, factor, FAILURE_FACTOR)
            factor = where(c.iterations.failed & accepted, jnp.minimum(factor, 1), factor)
        proposed = lax.mul(lax.stop_gradient(dt), factor)
        # A step cut short to land says nothing against the size that was planned.
        planned = c.dt if c.iterations is None else where(c.iterations.failed, 0, c.dt)
        landed = lax.bitwise_and(accepted, landing)
        proposed = where(landed, lax.max(proposed, planned), proposed)
        if self.settings.dtmax is not None:
            proposed = lax.min(proposed, self.settings.dtmax)
        tiny = lax.lt(proposed, self._smallest(c.t))
        hopeless = lax.bitwise_and(lax.bitwise_not(accepted), tiny)
        if self.settings.dtmin is not None:
            proposed = lax.max(proposed, self.settings.dtmin)
        stuck = where(lax.is_finite(error), where(ok, 0, number(-1, dt)), jnp.nan)
        return where(hopeless, stuck, proposed), control


def _memory(old: Memory, result: StepResult, accepted: Array, active: Array | None) -> Memory:
    """What the next attempt remembers; of a solve that has ended, what it decided last."""
    memory = where(accepted, result.memory, result.memory_if_rejected)
    if active is None:
        return memory
    return memory._replace(choice=where(active, memory.choice, old.choice))


def _advance_time(
    t: Array, t_low: Array | None, dt: Array, landing: Array, stop: Array
) -> tuple[Array, Array | None]:
    """t + dt, exactly `stop` on landing; in single precision with its rounding error carried."""
    if t_low is None:
        return where(landing, stop, lax.add(t, dt)), None
    # Kahan's compensated sum.
    increment = dt + t_low
    total = t + increment
    low = increment - (total - t)
    return where(landing, stop, total), where(landing, 0, low)
