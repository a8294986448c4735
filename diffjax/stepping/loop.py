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
    loop = _BySaves(carry, record, coefficients, zero - 1 if saver.lazy else None, zero)
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

    def to_save(loop: _BySaves, ts: Array) -> tuple[_BySaves, tuple[list[Array], Array]]:
        def pending(loop: _BySaves) -> Array:
            return stepper.active(loop.carry) & (stepper.time(loop.carry) < ts)

        loop = jax.lax.while_loop(pending, advance, loop)
        loop = refreshed(loop)
        coefficients = loop.coefficients if saver.lazy else saver.dense(loop.record)
        row = saver.row(coefficients, loop.record, ts)
        reached = stepper.time(loop.carry) >= ts
        row = [jnp.where(reached, x, _nan_like(x)) for x in row]
        return loop, (row, reached)

    loop, (rows, reached) = jax.lax.scan(to_save, loop, inputs.saves)
    carry = _finish(stepper, loop.carry, many=False)
    return _outcome(
        stepper, carry, rows=rows, ndense=loop.ndense, saved=jnp.sum(reached, dtype=jnp.int32)
    )


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


class _BySteps(NamedTuple):
    carry: Any
    first_step: Int[Array, ""]
    iteration: Int[Array, ""]
    saved: Int[Array, ""] | None
    rows: list[Array] | None
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
        saved, rows = None, None
        if saving and inputs.saves is not None:
            initial = inputs.saves <= inputs.t0
            saved = jnp.sum(initial, dtype=jnp.int32)
            rows = [
                jnp.where(initial.reshape((-1,) + (1,) * x.ndim), x, jnp.zeros_like(x))
                for x in self.saver.initial_row()
            ]
        tape = None if tape_length is None else new_tape(
            tape_length, inputs, landings=self.keep.landings
        )
        loop = _BySteps(carry, steps_done(carry), zero, saved, rows, tape, zero)
        return vary_alike((loop, inputs, self.settings))[0]

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
        return loop if loop.rows is None else self._save(loop, record)

    def _due(self, loop: _BySteps, record: Record) -> Bool[Array, ""]:
        """Whether the next save time lies in this step."""
        saves = self.inputs.saves
        assert saves is not None and loop.saved is not None
        next_save = saves[jnp.minimum(loop.saved, saves.shape[0] - 1)]
        inside = next_save <= self.stepper.time(loop.carry)
        return (loop.saved < saves.shape[0]) & inside & record.accepted

    def _save(self, loop: _BySteps, record: Record) -> _BySteps:
        if not self.saver.lazy:
            return self._save_due(loop, record, self.saver.dense(record))
        due = self._due(loop, record)
        loop = loop._replace(ndense=loop.ndense + due.astype(jnp.int32))
        return jax.lax.cond(
            any_lane(due),
            lambda l: self._save_due(l, record, self.saver.dense(record)),
            lambda l: l,
            loop,
        )

    def _save_due(self, loop: _BySteps, record: Record, coefficients: PyTree) -> _BySteps:
        saves = self.inputs.saves
        assert saves is not None
        count = saves.shape[0]

        def write(state: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
            saved, rows = state
            due = self._due(loop._replace(saved=saved), record)
            row = self.saver.row(coefficients, record, saves[jnp.minimum(saved, count - 1)])
            if not self.many:
                rows = [put(x, r, saved) for x, r in zip(rows, row, strict=True)]
            else:
                # Lanes that have nothing to save write nowhere.
                index = jnp.where(due, saved, count)
                rows = [x.at[index].set(r, mode="drop") for x, r in zip(rows, row, strict=True)]
            return saved + due.astype(jnp.int32), rows

        def pending(state: tuple[Array, list[Array]]) -> Array:
            return any_lane(self._due(loop._replace(saved=state[0]), record))

        saved, rows = jax.lax.while_loop(pending, write, (loop.saved, loop.rows))
        return loop._replace(saved=saved, rows=rows)

    def run(self, loop: _BySteps, most: int | None = None) -> _BySteps:
        """Advance to the end, or by `most` further iterations."""
        first = loop.iteration

        def pending(loop: _BySteps) -> Array:
            more = self.active(loop)
            return more if most is None else more & (loop.iteration - first < most)

        return jax.lax.while_loop(pending, self.advance, loop)

    def finish(self, loop: _BySteps, tape: Tape | Snapshots | None) -> Outcome:
        rows = loop.rows
        if rows is not None:
            assert loop.saved is not None
            kept = jnp.arange(rows[0].shape[0], dtype=jnp.int32) < loop.saved
            rows = [
                jnp.where(kept.reshape((-1,) + (1,) * (x.ndim - 1)), x, _nan_like(x)) for x in rows
            ]
        return _outcome(self.stepper, loop.carry, rows, tape, loop.ndense, loop.saved)


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
