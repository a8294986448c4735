"""The driver whose one loop runs over steps.

Under `vmap` lanes must not wait for each other at save times, so here each lane saves when it is
due. It is also the driver that keeps what a gradient is replayed from: a tape of all steps, or
the loop's state every so many steps, between which a tape is made when it is needed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..varying import vary_alike
from .lanes import any_lane
from .outcome import Keep, Outcome, make_stepper, outcome_of, step_while
from .plan import Inputs, Plan, Settings
from .saving import Saver
from .stepper import Record, Stepper
from .tape import Snapshots, Tape, new_tape, put
from .trees import Apart, chosen, nan_like, when

# How many more attempts a segment may need when it is taken again (see `retape_segment`).
_SPARE_ATTEMPTS = 8
# The most that the past of a segment that is taken again may differ from what it was.
_SAME_PAST = 1e-3


class _Saving(NamedTuple):
    """What has been saved; `next_save` is the time of the save that comes next."""

    saved: Int[Array, ""]
    next_save: Float[Array, ""]
    rows: list[Array]


class _BySteps(NamedTuple):
    carry: Any
    first_step: Int[Array, ""]
    iteration: Int[Array, ""]
    saving: _Saving | None
    tape: Tape | None
    states: tuple[PyTree, PyTree] | None
    ndense: Int[Array, ""]


class ByStepsDriver:
    """One loop over steps; saves and tape rows are written as steps are accepted.

    Rows are numbered by accepted step, so that going back over them takes as many iterations as
    some lane has accepted steps, not as many as it has attempted.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Inputs,
        settings: Settings,
        keep: Keep,
        *,
        many: bool,
        limit: Array | None = None,
    ) -> None:
        self.inputs, self.settings, self.keep = inputs, settings, keep
        self.many = many
        self.stepper = make_stepper(plan, inputs, settings, limit)
        self.saver = Saver(plan, inputs, self.stepper)

    def start(self, carry: Any, tape_length: int | None, saving: bool) -> _BySteps:
        inputs, tape = self.inputs, None
        zero = jnp.zeros((), jnp.int32)
        if tape_length is not None:
            keep = self.keep
            past = carry.memory.lasting if keep.states else None
            tape = new_tape(
                tape_length,
                inputs,
                past,
                landings=keep.landings,
                states=keep.states,
                callbacks=self.stepper.callbacks,
            )
        saved = self._initial_saves() if saving and inputs.saves is not None else None
        states = None if self.keep.every is None else self._no_states(carry, self.keep.every)
        loop = _BySteps(carry, carry.steps, zero, saved, tape, states, zero)
        return vary_alike((loop, inputs, self.settings))[0]

    def _no_states(self, carry: Any, every: int) -> tuple[PyTree, PyTree]:
        """Rows for the state at the start of every so-many-th step, and one for what comes after
        the last."""
        plan = self.stepper.plan
        length = -(-plan.rows // every) + 1
        like = carry.u, carry.memory.history
        return jtu.tree_map(lambda x: jnp.zeros((length, *x.shape), x.dtype), like)

    def _with_state(self, loop: _BySteps) -> tuple[PyTree, PyTree] | None:
        """With the state before the next step, in a row that the steps up to the next to be kept
        write over."""
        every, carry = self.keep.every, loop.carry
        if every is None:
            return None
        number = -(-carry.steps // every)
        here = carry.u, carry.memory.history
        return jtu.tree_map(lambda buffer, x: put(buffer, x, number), loop.states, here)

    def _schedule(self) -> Float[Array, " saves+1"]:
        """The save times, and one that never comes; finite, or what lanes compute at it in vain
        would be NaN and reach their derivatives."""
        t0, t1, saves = self.inputs.t0, self.inputs.t1, self.inputs.saves
        assert saves is not None
        never = 2 * jnp.abs(t1) + (t1 - t0) + 1
        return jnp.concatenate([saves, jax.lax.stop_gradient(never).reshape(1)])

    def _initial_saves(self) -> _Saving:
        """Everything NaN until it is reached, but for the saves at the start."""
        schedule, inputs = self._schedule(), self.inputs
        initial = schedule[:-1] <= inputs.t0
        saved = jnp.sum(initial, dtype=jnp.int32)
        row = self.saver.initial_row()
        rows = [chosen(initial, x[None], nan_like(x)[None]) for x in row]
        return _Saving(saved, schedule[saved], rows)

    def active(self, loop: _BySteps) -> Array:
        return any_lane(self.stepper.active(loop.carry))

    def advance(self, stepper: Stepper[Any], loop: _BySteps) -> _BySteps:
        states = self._with_state(loop)
        carry, record = stepper.attempt(loop.carry, masked=True)
        tape = loop.tape
        if tape is not None:
            tape = tape.write(loop.carry.steps - loop.first_step, record)
        tried = 1
        if stepper.quiet is not None:
            # An attempt that the stepper leaves to another does not count.
            tried = sum(stepper.counts(carry)) - sum(stepper.counts(loop.carry))
        iteration = loop.iteration + tried
        loop = loop._replace(carry=carry, tape=tape, states=states, iteration=iteration)
        return loop if loop.saving is None else self._save(loop, loop.saving, record)

    def _due(self, carry: Any, saving: _Saving, record: Record) -> Bool[Array, ""]:
        """Whether the next save lies in the step that led to the carry."""
        return (saving.next_save <= self.stepper.time(carry)) & record.accepted

    def _save(self, loop: _BySteps, saving: _Saving, record: Record) -> _BySteps:
        carry = loop.carry
        if self.many:
            # Lanes that have ended stand still; dividing by their step would make NaN derivatives.
            dt = jnp.where(record.accepted, record.step.dt, 1)
            record = record._replace(step=record.step._replace(dt=dt))
        if not self.saver.lazy:
            saving = self._save_due(carry, saving, record, self.saver.dense(record.step))
            return loop._replace(saving=saving)
        due = self._due(carry, saving, record)
        # A loop of one turn and not a branch, which no native function may contain.
        saving = when(
            any_lane(due),
            lambda s: self._save_due(carry, s, record, self.saver.dense(record.step)),
            saving,
        )
        return loop._replace(saving=saving, ndense=loop.ndense + due.astype(jnp.int32))

    def _save_due(
        self, carry: Any, saving: _Saving, record: Record, coefficients: PyTree
    ) -> _Saving:
        schedule, apart = self._schedule(), Apart(coefficients)
        parts = apart.split(coefficients)

        def write(saving: _Saving) -> _Saving:
            due = self._due(carry, saving, record)
            row = self.saver.row(apart.join(parts), record.step, saving.next_save)
            row = self.saver.after_events(row, carry, saving.next_save)
            pairs = zip(saving.rows, row, strict=True)
            if self.many:
                # Lanes that have nothing to save write nowhere.
                place = jnp.where(due, saving.saved, schedule.shape[0])
                rows = [x.at[place].set(r, mode="drop") for x, r in pairs]
            else:
                rows = [put(x, r, saving.saved) for x, r in pairs]
            saved = saving.saved + due.astype(jnp.int32)
            return _Saving(saved, schedule[saved], rows)

        def pending(saving: _Saving) -> Array:
            return any_lane(self._due(carry, saving, record))

        return jax.lax.while_loop(pending, write, saving)

    def run(self, loop: _BySteps, most: int | None = None) -> _BySteps:
        """Advance to the end, or by `most` further iterations."""
        first = loop.iteration

        def pending(loop: _BySteps) -> Array:
            more = self.active(loop)
            return more if most is None else more & (loop.iteration - first < most)

        return step_while(self.stepper, pending, self.advance, loop, many=self.many)

    def close(self, loop: _BySteps) -> Tape:
        """The tape, with the point at which the loop has ended."""
        assert loop.tape is not None
        return loop.tape.close(loop.carry.steps - loop.first_step, self.stepper, loop.carry)

    def finish(self, loop: _BySteps, tape: Tape | Snapshots | None) -> Outcome:
        saving = loop.saving
        rows, saved = (None, None) if saving is None else (saving.rows, saving.saved)
        outcome = outcome_of(self.stepper, loop.carry, rows, tape, loop.ndense, saved)
        return outcome._replace(states=loop.states)


def by_steps(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, *, many: bool, idle: bool
) -> Outcome:
    """One loop over steps, with or without a tape of them."""
    driver = ByStepsDriver(plan, inputs, settings, keep, many=many)
    length = plan.rows
    loop = driver.start(driver.stepper.init(), length if keep.tape else None, saving=True)
    loop = loop if idle else driver.run(loop)
    return driver.finish(loop, driver.close(loop) if keep.tape else None)


def by_segments(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, *, many: bool, idle: bool
) -> Outcome:
    """One loop over steps that keeps the loop's state every so many steps, not every step."""
    driver = ByStepsDriver(plan, inputs, settings, keep, many=many)
    assert keep.segments is not None
    length = segment_length(plan, keep.segments)
    loop = driver.start(driver.stepper.init(), None, saving=True)
    # One row more is where the last segment ended.
    blank = Snapshots.new(keep.segments + 1, _lasting(loop.carry))
    snapshots = vary_alike((blank, loop))[0]

    def segment(state: tuple[_BySteps, Snapshots]) -> tuple[_BySteps, Snapshots]:
        loop, snapshots = state
        snapshots = snapshots.write(loop.iteration // length, _lasting(loop.carry))
        return driver.run(loop, length), snapshots

    if not idle:
        loop, snapshots = jax.lax.while_loop(
            lambda state: driver.active(state[0]), segment, (loop, snapshots)
        )
    used = -(-loop.iteration // length)
    snapshots = snapshots.write(used, _lasting(loop.carry))
    return driver.finish(loop, snapshots._replace(used=used))


def retape_segment(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, start: Any, end: Any, *, many: bool
) -> Tape:
    """Take the steps between two snapshots again, keeping a tape of them."""
    # Compiled into another program, the same arithmetic may round otherwise and choose a slightly
    # different step. So the segment is taken to the very time at which it ended, and may need a
    # few attempts more or less.
    adaptive = plan.controller is not None
    limit = end.t if adaptive else None
    driver = ByStepsDriver(plan, inputs, settings, keep, many=many, limit=limit)
    stepper = driver.stepper
    assert keep.segments is not None
    length = segment_length(plan, keep.segments) + (_SPARE_ATTEMPTS if adaptive else 0)
    memory = plan.alg.recall(stepper.field, stepper.time(start), start.u, start.memory)
    carry = start._replace(memory=memory)
    loop = driver.run(driver.start(carry, length, saving=False), length)
    tape = driver.close(loop)
    if not adaptive:
        return tape
    # Should they not suffice, or end in another past, the derivative must not look like one.
    same = (loop.carry.t >= end.t) & _nearly(loop.carry.memory.history, end.memory.history)
    if end.events is not None:
        same &= loop.carry.events.log.n == end.events.log.n
    return tape._replace(dt=jnp.where(same, tape.dt, jnp.nan))


def _lasting(carry: Any) -> Any:
    """A loop's state without what is computed again when its steps are taken again."""
    return carry._replace(memory=carry.memory.lasting)


def _nearly(history: PyTree, other: PyTree) -> Bool[Array, ""]:
    """Whether two histories differ only by rounding and what iterations left of their tolerance."""

    def near(x: Array, y: Array) -> Array:
        return jnp.max(jnp.abs(x - y)) <= _SAME_PAST * jnp.max(jnp.abs(y))

    leaves = jtu.tree_leaves(jtu.tree_map(near, history, other))
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.asarray(True)


def segment_length(plan: Plan, segments: int) -> int:
    return -(-plan.attempts // segments)
