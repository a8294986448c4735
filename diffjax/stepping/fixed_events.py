"""Fixed steps with events: those on the grid, and the parts that an event cuts one into."""

from typing import NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from ..algorithms.base import Memory, State, StepResult
from ..events.transition import Crossing
from .fixed import FixedGrid, fixed_time
from .plan import Inputs, Plan
from .status import ReturnCode
from .stepper import ON_ALARM, Counts, Iterations, Record, Step, Stepper
from .trees import where
from .watch import Ending, EventState, Watch


class FixedEventState(NamedTuple):
    """What the loop carries.

    - `t`: the time, which between two points of the grid is that of an event; `done`: how many
        points of the grid were passed.
    - `taken`: how many steps were accepted, `again` how many were taken again.
    """

    t: Float[Array, ""]
    done: Int[Array, ""]
    taken: Int[Array, ""]
    again: Int[Array, ""]
    u: State
    memory: Memory
    iterations: Iterations | None
    events: EventState

    @property
    def steps(self) -> Int[Array, ""]:
        """How many steps were accepted."""
        return self.taken


class FixedEventStepper(Stepper[FixedEventState]):
    """Takes steps up to the next point of a grid, or to an event before it."""

    def __init__(self, plan: Plan, inputs: Inputs) -> None:
        super().__init__(plan, inputs)
        self.count = FixedGrid.of(plan, inputs).count
        self.watch = Watch(plan, inputs)

    def init(self) -> FixedEventState:
        inputs = self.inputs
        zero, memory = jnp.zeros((), jnp.int32), self.plan.first_memory(inputs)
        return FixedEventState(
            t=inputs.t0,
            done=zero,
            taken=zero,
            again=zero,
            u=inputs.u0,
            memory=memory,
            iterations=self.no_iterations(),
            events=self.watch.start(inputs.t0, inputs.u0, memory),
        )

    def active(self, c: FixedEventState) -> Bool[Array, ""]:
        enough = (c.taken < self.plan.rows) & (c.taken + c.again < self.plan.attempts)
        return (c.done < self.count) & enough & (c.events.code == ReturnCode.success)

    def time(self, c: FixedEventState) -> Float[Array, ""]:
        return c.t

    def state(self, c: FixedEventState) -> State:
        return c.u

    def attempt(self, c: FixedEventState, *, masked: bool) -> tuple[FixedEventState, Record]:
        """One step, accepted unless it must be taken again up to an event."""
        if self.quiet:
            return self._undisturbed(c)
        grid = fixed_time(self.plan, self.inputs, c.done + 1)
        due = self.plan.next_alarm(c.memory)
        target = grid if due is None else jnp.minimum(grid, due)
        dt, landing = self.watch.planned(c.events, target - c.t, jnp.asarray(True))
        on_grid = landing & (grid <= target)
        on_alarm = landing & ~on_grid
        result = self.alg.step(self.field.during(c.taken), c.t, dt, c.u, c.memory, None)
        active = self.active(c) if masked else jnp.asarray(True)
        sighting = self.watch.look(c.events, c.t, dt, c.u, result, active, active)
        accepted = active if sighting is None else active & ~sighting.pending
        on_grid |= c.t + dt >= grid
        if sighting is not None:
            on_grid |= self.watch.meets(sighting, c.t, dt, grid)
        end = jnp.where(on_grid, grid, jnp.where(on_alarm, target, c.t + dt))
        u, iterations = self._converged(c, result, active)
        owners = self.watch.args.owners
        scheduled = None if owners is None else owners[c.done + 1] & on_grid
        at = Crossing(c.t, c.u, c.memory.lasting, dt, end, c.taken, pinned=on_grid | on_alarm)
        result = result._replace(u=u)
        before = Ending(
            jnp.where(accepted, end, c.t),
            where(accepted, u, c.u),
            where(accepted, result.memory, c.memory),
            c.events,
        )
        ending, at = self.watch.settle(before, at, result, sighting, accepted, scheduled, on_alarm)
        step = accepted.astype(jnp.int32)
        state = FixedEventState(
            **ending._asdict(),
            done=c.done + step * on_grid.astype(jnp.int32),
            taken=c.taken + step,
            again=c.again + (active & ~accepted).astype(jnp.int32),
            iterations=iterations,
        )
        self.report_progress(c, state)
        past = c.memory.lasting
        landed = jnp.where(on_alarm, ON_ALARM, jnp.where(on_grid, c.done + 1, -1))
        landed = jnp.where(at.located, -1, landed)
        record = Record(Step(c.t, dt, c.u, past, result.stages), accepted, landed, at.happenings)
        return state, record

    def _converged(
        self, c: FixedEventState, result: StepResult, active: Array
    ) -> tuple[State, Iterations | None]:
        """The end of a step, NaN where its iteration failed, and what the iterations have done."""
        if c.iterations is None:
            return result.u, None
        # There is no smaller step to try, and what did not converge is no solution.
        u = jtu.tree_map(lambda x: jnp.where(result.ok, x, jnp.nan), result.u)
        return u, c.iterations.after(result, ~c.iterations.failed & active)

    def _undisturbed(self, c: FixedEventState) -> tuple[FixedEventState, Record]:
        """A step in which nothing happens; none if something may."""
        grid, yes = fixed_time(self.plan, self.inputs, c.done + 1), jnp.asarray(True)
        watch, due = self.watch, self.plan.next_alarm(c.memory)
        rings = jnp.asarray(False) if due is None else due < grid
        owners = watch.args.owners
        scheduled = rings if owners is None else rings | jnp.any(owners[c.done + 1])
        field, past = self.field.during(c.taken), c.memory.lasting
        result = self.alg.step(field, c.t, grid - c.t, c.u, c.memory, None)
        u, iterations = self._converged(c, result, yes)
        step = Step(c.t, grid - c.t, c.u, past, result.stages)
        found, values = watch.disturbed(c.events, step, result._replace(u=u), yes, yes, scheduled)
        after = c._replace(
            t=grid,
            done=c.done + 1,
            taken=c.taken + 1,
            u=u,
            memory=result.memory,
            iterations=iterations,
        )
        events = c.events._replace(values=values, quiet=~found)
        state = where(found, c, after)._replace(events=events)
        self.report_progress(c, state)
        record = Record(step, ~found, c.done + 1, watch.nothing(c.events, step.dt))
        return state, record

    def counts(self, c: FixedEventState) -> Counts:
        return Counts(c.taken, c.again)

    def final(self, c: FixedEventState) -> None:
        return None

    def status(self, c: FixedEventState) -> Int[Array, ""]:
        """The return code, judged at the end."""
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(c.u)]))
        failed = ReturnCode.unstable
        if c.iterations is not None:
            failed = jnp.where(c.iterations.failed, ReturnCode.newton_failed, failed)
        done = c.done >= self.count
        ended = jnp.where(done, ReturnCode.success, ReturnCode.max_steps)
        ended = jnp.where(c.events.code == ReturnCode.success, ended, c.events.code)
        finite |= c.events.code == ReturnCode.initial_failed
        return jnp.where(finite, ended, failed).astype(jnp.int32)
