"""How steps make a solve: two drivers over one step function.

For one trajectory the fastest program is an outer loop over save times around an inner loop whose
carry is so small that XLA compiles it to one native function (`by_saves`). Under `vmap` lanes must
not wait for each other at save times, so there one loop runs over steps and each lane saves when
it is due (`by_steps`); this driver also writes the tape that a gradient is replayed from.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..algorithms.base import State
from .adaptive import AdaptiveStepper, Record
from .fixed import FixedStepper
from .lanes import one_or_many
from .plan import Inputs, Plan, Settings
from .tape import Snapshots, Tape, new_tape, put
from .varying import vary_alike

Stepper = AdaptiveStepper | FixedStepper


class Outcome(NamedTuple):
    """What a driver gives back, before anybody looks at it.

    - `rows`: what was saved, arrays with a leading axis over `saves`; None without save times.
    - `tape`: the accepted steps, if asked for.
    - `saved`: how many save times were reached.
    """

    rows: list[Array] | None
    u_end: State
    t_end: Float[Array, ""]
    tape: Tape | Snapshots | None
    final: Any
    status: Int[Array, ""]
    naccept: Int[Array, ""]
    nreject: Int[Array, ""]
    ndense: Int[Array, ""]
    saved: Int[Array, ""] | None


def make_stepper(
    plan: Plan, inputs: Inputs, settings: Settings, limit: Array | None = None
) -> Stepper:
    if plan.controller is None:
        return FixedStepper(plan, inputs)
    return AdaptiveStepper(plan, inputs, settings, limit)


def any_lane(condition: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether the condition holds in any lane of the `vmap`s around; itself never batched."""
    return eqxi.unvmap_any(condition)


def _nan_like(x: Array) -> Array:
    fill = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
    return jnp.full_like(x, fill)


class Saver:
    """Evaluates what is to be saved inside a step."""

    def __init__(self, plan: Plan, inputs: Inputs, stepper: Stepper) -> None:
        self.plan, self.inputs, self.stepper = plan, inputs, stepper
        self.lazy = bool(plan.alg.dense_counts)

    def dense(self, record: Record) -> PyTree:
        alg, field = self.plan.alg, self.stepper.field
        return alg.dense(field, record.t, record.dt, record.u, record.stages)

    def row(self, coefficients: PyTree, record: Record, ts: Array) -> list[Array]:
        u = self.plan.alg.interpolate(coefficients, (ts - record.t) / record.dt)
        return self.plan.observe(self.inputs.save_args, u, ts)

    def initial_row(self) -> list[Array]:
        inputs = self.inputs
        return self.plan.observe(inputs.save_args, inputs.u0, inputs.t0)

    def blank_record(self, carry: Any) -> Record:
        """Stands for the step before the first: constant and of length one."""
        _, record = jax.eval_shape(partial(self.stepper.attempt, masked=False), carry)
        stages = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), record.stages)
        t0 = self.inputs.t0
        return Record(t0, jnp.ones_like(t0), self.inputs.u0, stages, None, None)


@dataclass(frozen=True)
class Keep:
    """What a solve keeps of its steps for whoever replays them.

    - `tape`: all of them.
    - `segments`: the loop's state at the start of each of this many segments.
    - `landings`: which steps were cut to end on a given time.
    """

    tape: bool = False
    segments: int | None = None
    landings: bool = False


# How many more attempts a segment may need when it is taken again (see `_retape`).
_SPARE_ATTEMPTS = 8


class _BySaves(NamedTuple):
    carry: Any
    record: Record
    coefficients: PyTree
    dense_at: Int[Array, ""] | None
    ndense: Int[Array, ""]
    saved: Int[Array, ""]


def by_saves(plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
    """One trajectory: step up to each save time in turn."""
    stepper = make_stepper(plan, inputs, settings)
    saver = Saver(plan, inputs, stepper)
    assert inputs.saves is not None
    carry = stepper.init()
    record = saver.blank_record(carry)
    zero = jnp.zeros((), jnp.int32)
    # Extra stages of the extension are computed once a step however many saves fall into it.
    coefficients = saver_zeros(saver, record) if saver.lazy else None
    dense_at = zero - 1 if saver.lazy else None
    loop = _BySaves(carry, record, coefficients, dense_at, zero, zero)
    loop = vary_alike((loop, inputs, settings))[0]

    def advance(loop: _BySaves) -> _BySaves:
        carry, record = stepper.attempt(loop.carry, masked=False)
        return loop._replace(carry=carry, record=record._replace(accepted=None, landed=None))

    def refreshed(loop: _BySaves) -> _BySaves:
        if not saver.lazy:
            return loop
        step = steps_done(loop.carry)
        stale = (loop.dense_at != step) & (step > 0)
        coefficients = jax.lax.cond(
            stale, lambda l: saver.dense(l.record), lambda l: l.coefficients, loop
        )
        ndense = loop.ndense + stale.astype(jnp.int32)
        return loop._replace(coefficients=coefficients, dense_at=step, ndense=ndense)

    def to_save(loop: _BySaves, ts: Array) -> tuple[_BySaves, list[Array]]:
        def pending(loop: _BySaves) -> Array:
            return stepper.active(loop.carry) & (stepper.time(loop.carry) < ts)

        loop = jax.lax.while_loop(pending, advance, loop)
        loop = refreshed(loop)
        coefficients = loop.coefficients if saver.lazy else saver.dense(loop.record)
        row = saver.row(coefficients, loop.record, ts)
        reached = stepper.time(loop.carry) >= ts
        row = [jnp.where(reached, x, _nan_like(x)) for x in row]
        return loop._replace(saved=loop.saved + reached.astype(jnp.int32)), row

    loop, rows = jax.lax.scan(to_save, loop, inputs.saves)
    carry = loop.carry
    if not plan.ends_on_save:
        carry = _finish(stepper, carry, many=False)
    return _outcome(stepper, carry, rows=rows, ndense=loop.ndense, saved=loop.saved)


def saver_zeros(saver: Saver, record: Record) -> PyTree:
    """Zero coefficients, whose extension is the initial state."""
    _, *others = jax.eval_shape(saver.dense, record)
    return (record.u, *jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), others))


def steps_done(carry: Any) -> Int[Array, ""]:
    return carry.naccept if hasattr(carry, "naccept") else carry.done


def _finish(stepper: Stepper, carry: Any, *, many: bool) -> Any:
    """Step to the end. Lanes of many go on until the last has ended, which an unbatched condition
    says; a batched one would make XLA select over the whole carry."""

    def pending(carry: Any) -> Array:
        return any_lane(stepper.active(carry)) if many else stepper.active(carry)

    return jax.lax.while_loop(
        pending, lambda c: stepper.attempt(c, masked=many)[0], carry
    )


def plain(plan: Plan, inputs: Inputs, settings: Settings, *, many: bool) -> Outcome:
    """Only the final state: the smallest loop there is."""
    stepper = make_stepper(plan, inputs, settings)
    carry = vary_alike((stepper.init(), inputs, settings))[0]
    return _outcome(stepper, _finish(stepper, carry, many=many))


def _outcome(
    stepper: Stepper,
    carry: Any,
    rows: list[Array] | None = None,
    tape: Tape | Snapshots | None = None,
    ndense: Array | int = 0,
    saved: Array | None = None,
) -> Outcome:
    u, t = stepper.state(carry), stepper.time(carry)
    if isinstance(stepper, FixedStepper):
        naccept, nreject, final = carry.done, jnp.zeros((), jnp.int32), None
    else:
        naccept, nreject = carry.naccept, carry.nreject
        final = (carry.dt, carry.control)
    return Outcome(
        rows=rows,
        u_end=u,
        t_end=t,
        tape=tape,
        final=final,
        status=stepper.status(carry),
        naccept=naccept,
        nreject=nreject,
        ndense=jnp.asarray(ndense, jnp.int32),
        saved=saved,
    )


class _Saving(NamedTuple):
    """What has been saved; `next_save` is the time of the save that comes next, or infinity."""

    saved: Int[Array, ""]
    next_save: Float[Array, ""]
    rows: list[Array]


class _BySteps(NamedTuple):
    carry: Any
    first_step: Int[Array, ""]
    iteration: Int[Array, ""]
    saving: _Saving | None
    tape: Tape | None
    ndense: Int[Array, ""]


class ByStepsDriver:
    """One loop over steps; saves and tape rows are written as steps are accepted.

    Tape rows are numbered by accepted step. Of many lanes they are numbered by attempt, with the
    same number in every lane: an unbatched index is what makes the write cheap under `vmap`.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Inputs,
        settings: Settings,
        keep: Keep,
        many: bool,
        limit: Array | None = None,
    ) -> None:
        self.plan, self.inputs, self.settings, self.keep = plan, inputs, settings, keep
        self.many = many
        self.compact = not many or plan.every_step
        self.stepper = make_stepper(plan, inputs, settings, limit)
        self.saver = Saver(plan, inputs, self.stepper)

    def start(self, carry: Any, tape_length: int | None, saving: bool) -> _BySteps:
        inputs = self.inputs
        zero = jnp.zeros((), jnp.int32)
        tape = None
        if tape_length is not None:
            tape = new_tape(tape_length, inputs, landings=self.keep.landings)
        saved = self._initial_saves() if saving and inputs.saves is not None else None
        loop = _BySteps(carry, steps_done(carry), zero, saved, tape, zero)
        return vary_alike((loop, inputs, self.settings))[0]

    def _schedule(self) -> Float[Array, " saves+1"]:
        """The save times, and one that never comes."""
        saves = self.inputs.saves
        assert saves is not None
        return jnp.concatenate([saves, jnp.full(1, jnp.inf, saves.dtype)])

    def _initial_saves(self) -> _Saving:
        """Everything NaN until it is reached, but for the saves at the start."""
        schedule, inputs = self._schedule(), self.inputs
        initial = schedule[:-1] <= inputs.t0
        saved = jnp.sum(initial, dtype=jnp.int32)
        rows = [
            jnp.where(initial.reshape((-1,) + (1,) * x.ndim), x, _nan_like(x))
            for x in self.saver.initial_row()
        ]
        return _Saving(saved, schedule[saved], rows)

    def active(self, loop: _BySteps) -> Array:
        return any_lane(self.stepper.active(loop.carry))

    def advance(self, loop: _BySteps) -> _BySteps:
        carry, record = self.stepper.attempt(loop.carry, masked=True)
        tape = loop.tape
        if tape is not None:
            number = loop.iteration
            if self.compact:
                number = steps_done(loop.carry) - loop.first_step
            tape = tape.write(number, record)
        loop = loop._replace(carry=carry, tape=tape, iteration=loop.iteration + 1)
        return loop if loop.saving is None else self._save(loop, record)

    def _save(self, loop: _BySteps, record: Record) -> _BySteps:
        if not self.saver.lazy:
            return self._save_due(loop, record, self.saver.dense(record))
        assert loop.saving is not None
        due = (loop.saving.next_save <= self.stepper.time(loop.carry)) & record.accepted
        loop = loop._replace(ndense=loop.ndense + due.astype(jnp.int32))
        return jax.lax.cond(
            any_lane(due),
            lambda l: self._save_due(l, record, self.saver.dense(record)),
            lambda l: l,
            loop,
        )

    def _save_due(self, loop: _BySteps, record: Record, coefficients: PyTree) -> _BySteps:
        schedule, reached = self._schedule(), self.stepper.time(loop.carry)

        def due(saving: _Saving) -> Bool[Array, ""]:
            return (saving.next_save <= reached) & record.accepted

        def write(saving: _Saving) -> _Saving:
            row = self.saver.row(coefficients, record, saving.next_save)
            saved = saving.saved + due(saving).astype(jnp.int32)
            if self.many:
                # Lanes that have nothing to save write nowhere.
                place = jnp.where(due(saving), saving.saved, schedule.shape[0])
                pairs = zip(saving.rows, row, strict=True)
                rows = [x.at[place].set(r, mode="drop") for x, r in pairs]
            else:
                rows = [put(x, r, saving.saved) for x, r in zip(saving.rows, row, strict=True)]
            return _Saving(saved, schedule[saved], rows)

        assert loop.saving is not None
        saving = jax.lax.while_loop(lambda s: any_lane(due(s)), write, loop.saving)
        return loop._replace(saving=saving)

    def run(self, loop: _BySteps, most: int | None = None) -> _BySteps:
        """Advance to the end, or by `most` further iterations."""
        first = loop.iteration

        def pending(loop: _BySteps) -> Array:
            more = self.active(loop)
            return more if most is None else more & (loop.iteration - first < most)

        return jax.lax.while_loop(pending, self.advance, loop)

    def finish(self, loop: _BySteps, tape: Tape | Snapshots | None) -> Outcome:
        saving = loop.saving
        rows, saved = (None, None) if saving is None else (saving.rows, saving.saved)
        return _outcome(self.stepper, loop.carry, rows, tape, loop.ndense, saved)


def by_steps(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, *, many: bool
) -> Outcome:
    """One loop over steps, with or without a tape of them."""
    driver = ByStepsDriver(plan, inputs, settings, keep, many)
    length = plan.fixed_steps or plan.max_steps
    loop = driver.start(driver.stepper.init(), length if keep.tape else None, saving=True)
    loop = driver.run(loop)
    tape = None
    if loop.tape is not None:
        rows = steps_done(loop.carry) if driver.compact else loop.iteration
        tape = loop.tape.close(rows, driver.stepper, loop.carry)
    return driver.finish(loop, tape)


def by_segments(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, *, many: bool
) -> Outcome:
    """One loop over steps that keeps the loop's state every so many steps, not every step."""
    driver = ByStepsDriver(plan, inputs, settings, keep, many)
    assert keep.segments is not None
    length = segment_length(plan, keep.segments)
    loop = driver.start(driver.stepper.init(), None, saving=True)
    # What `memory` holds is computed again from the state when the segment is. One row more is
    # where the last segment ended.
    blank = Snapshots.new(keep.segments + 1, loop.carry._replace(memory=None))
    snapshots = vary_alike((blank, loop))[0]

    def segment(state: tuple[_BySteps, Snapshots]) -> tuple[_BySteps, Snapshots]:
        loop, snapshots = state
        snapshots = snapshots.write(loop.iteration // length, loop.carry._replace(memory=None))
        return driver.run(loop, length), snapshots

    loop, snapshots = jax.lax.while_loop(
        lambda state: driver.active(state[0]), segment, (loop, snapshots)
    )
    used = -(-loop.iteration // length)
    snapshots = snapshots.write(used, loop.carry._replace(memory=None))
    return driver.finish(loop, snapshots._replace(used=used))


def _retape(
    plan: Plan,
    inputs: Inputs,
    settings: Settings,
    keep: Keep,
    start: Any,
    end: Any,
    *,
    many: bool,
) -> Tape:
    # Compiled into another program, the same arithmetic may round otherwise and choose a slightly
    # different step. So the segment is taken to the very time at which it ended, and may need a
    # few attempts more or less.
    adaptive = plan.controller is not None
    limit = end.t if adaptive else None
    driver = ByStepsDriver(plan, inputs, settings, keep, many, limit)
    stepper = driver.stepper
    assert keep.segments is not None
    length = segment_length(plan, keep.segments) + (_SPARE_ATTEMPTS if adaptive else 0)
    memory = plan.alg.init(stepper.field, stepper.time(start), start.u)
    carry = start._replace(memory=memory)
    loop = driver.run(driver.start(carry, length, saving=False), length)
    assert loop.tape is not None
    used = loop.iteration
    if driver.compact:
        used = steps_done(loop.carry) - steps_done(start)
    tape = loop.tape.close(used, stepper, loop.carry)
    if not adaptive:
        return tape
    # Should they not suffice, the derivative must not look like one.
    return tape._replace(dt=jnp.where(loop.carry.t >= end.t, tape.dt, jnp.nan))


def segment_length(plan: Plan, segments: int) -> int:
    return -(-(plan.fixed_steps or plan.max_steps) // segments)


def drive(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, *, many: bool = False
) -> Outcome:
    """Solve by the driver that suits one trajectory, or many under `vmap`; a plain loop."""
    if keep.segments is not None:
        return by_segments(plan, inputs, settings, keep, many=many)
    if keep.tape or (many and inputs.saves is not None):
        return by_steps(plan, inputs, settings, keep, many=many)
    if inputs.saves is None:
        return plain(plan, inputs, settings, many=many)
    return by_saves(plan, inputs, settings)


def integrate(plan: Plan, inputs: Inputs, settings: Settings, keep: Keep) -> Outcome:
    """Solve, choosing the driver by whether a `vmap` is around."""
    return one_or_many(
        lambda i, s: drive(plan, i, s, keep),
        lambda i, s: drive(plan, i, s, keep, many=True),
        inputs,
        settings,
        native=plan.small,
    )


def retape(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, start: Any, end: Any
) -> Tape:
    """Take the steps between two snapshots again, this time keeping a tape."""
    return one_or_many(
        lambda i, s, a, b: _retape(plan, i, s, keep, a, b, many=False),
        lambda i, s, a, b: _retape(plan, i, s, keep, a, b, many=True),
        inputs,
        settings,
        start,
        end,
        native=plan.small,
    )
