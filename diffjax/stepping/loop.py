"""How steps make a solve: two drivers over one step function.

For one trajectory the fastest program is an outer loop over save times around an inner loop whose
carry is so small that XLA compiles it to one native function (`by_saves`). Under `vmap` lanes must
not wait for each other at save times, so there one loop runs over steps and each lane saves when
it is due (`by_steps`); this driver also writes the tape that a gradient is replayed from.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..algorithms.base import State
from .adaptive import AdaptiveStepper, Record
from .fixed import FixedStepper, fixed_status
from .plan import Inputs, Plan, Settings
from .tape import Snapshots, Tape, new_tape
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


def make_stepper(plan: Plan, inputs: Inputs, settings: Settings) -> Stepper:
    if plan.controller is None:
        return FixedStepper(plan, inputs)
    return AdaptiveStepper(plan, inputs, settings)


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
        _, record = jax.eval_shape(self.stepper.attempt, carry)
        stages = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), record.stages)
        t0 = self.inputs.t0
        none = jnp.full((), -1, jnp.int32)
        return Record(t0, jnp.ones_like(t0), self.inputs.u0, stages, True, none)


@dataclass(frozen=True)
class Keep:
    """What a solve keeps of its steps for whoever replays them.

    - `tape`: all of them.
    - `segments`: the loop's state at the start of each of this many segments.
    - `compact`: tape rows are numbered by accepted step. Otherwise by attempt, with the same
        number in every lane: an unbatched index is what makes the write cheap under `vmap`.
    - `landings`: which steps were cut to end on a given time.
    """

    tape: bool = False
    segments: int | None = None
    compact: bool = True
    landings: bool = False


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
        carry, record = stepper.attempt(loop.carry)
        return loop._replace(carry=carry, record=record._replace(accepted=True))

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
            before = stepper.time(loop.carry) < ts
            return any_lane(stepper.active(loop.carry) & before)

        loop = jax.lax.while_loop(pending, advance, loop)
        loop = refreshed(loop)
        coefficients = loop.coefficients if saver.lazy else saver.dense(loop.record)
        row = saver.row(coefficients, loop.record, ts)
        reached = stepper.time(loop.carry) >= ts
        row = [jnp.where(reached, x, _nan_like(x)) for x in row]
        return loop, (row, reached)

    loop, (rows, reached) = jax.lax.scan(to_save, loop, inputs.saves)
    carry = _finish(stepper, loop.carry)
    return _outcome(
        stepper, carry, rows=rows, ndense=loop.ndense, saved=jnp.sum(reached, dtype=jnp.int32)
    )


def saver_zeros(saver: Saver, record: Record) -> PyTree:
    """Zero coefficients, whose extension is the initial state."""
    shapes = jax.eval_shape(saver.dense, record)
    return jtu.tree_map(
        lambda s, x: jnp.zeros(s.shape, s.dtype).at[0].set(x), shapes, record.u
    )


def steps_done(carry: Any) -> Int[Array, ""]:
    return carry.naccept if hasattr(carry, "naccept") else carry.index


def _finish(stepper: Stepper, carry: Any) -> Any:
    return jax.lax.while_loop(
        lambda c: any_lane(stepper.active(c)), lambda c: stepper.attempt(c)[0], carry
    )


def plain(plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
    """Only the final state: the smallest loop there is."""
    stepper = make_stepper(plan, inputs, settings)
    carry = vary_alike((stepper.init(), inputs, settings))[0]
    return _outcome(stepper, _finish(stepper, carry))


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
        zero = jnp.zeros((), jnp.int32)
        status, naccept, nreject, final = fixed_status(u), carry.index, zero, None
    else:
        status, naccept, nreject = carry.status, carry.naccept, carry.nreject
        final = (carry.dt, carry.control)
    return Outcome(
        rows=rows,
        u_end=u,
        t_end=t,
        tape=tape,
        final=final,
        status=status,
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
    """One loop over steps; saves and tape rows are written as steps are accepted."""

    def __init__(self, plan: Plan, inputs: Inputs, settings: Settings, keep: Keep) -> None:
        self.plan, self.inputs, self.settings, self.keep = plan, inputs, settings, keep
        self.stepper = make_stepper(plan, inputs, settings)
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
        carry, record = self.stepper.attempt(loop.carry)
        tape = loop.tape
        if tape is not None:
            number = loop.iteration
            if self.keep.compact:
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
            kept = jnp.arange(rows[0].shape[0]) < loop.saved
            rows = [
                jnp.where(kept.reshape((-1,) + (1,) * (x.ndim - 1)), x, _nan_like(x)) for x in rows
            ]
        return _outcome(self.stepper, loop.carry, rows, tape, loop.ndense, loop.saved)


def by_steps(plan: Plan, inputs: Inputs, settings: Settings, keep: Keep) -> Outcome:
    """One loop over steps, with or without a tape of them."""
    driver = ByStepsDriver(plan, inputs, settings, keep)
    length = plan.fixed_steps or plan.max_steps
    loop = driver.start(driver.stepper.init(), length if keep.tape else None, saving=True)
    loop = driver.run(loop)
    tape = None
    if loop.tape is not None:
        rows = steps_done(loop.carry) if keep.compact else loop.iteration
        tape = loop.tape.close(rows, driver.stepper, loop.carry)
    return driver.finish(loop, tape)


def by_segments(plan: Plan, inputs: Inputs, settings: Settings, keep: Keep) -> Outcome:
    """One loop over steps that keeps the loop's state every so many steps, not every step."""
    driver = ByStepsDriver(plan, inputs, settings, keep)
    assert keep.segments is not None
    length = segment_length(plan, keep.segments)
    loop = driver.start(driver.stepper.init(), None, saving=True)
    # What `memory` holds is computed again from the state when the segment is.
    blank = Snapshots.new(keep.segments, loop.carry._replace(memory=None))
    snapshots = vary_alike((blank, loop))[0]

    def segment(state: tuple[_BySteps, Snapshots]) -> tuple[_BySteps, Snapshots]:
        loop, snapshots = state
        snapshots = snapshots.write(loop.iteration // length, loop.carry._replace(memory=None))
        return driver.run(loop, length), snapshots

    loop, snapshots = jax.lax.while_loop(
        lambda state: driver.active(state[0]), segment, (loop, snapshots)
    )
    used = -(-loop.iteration // length)
    return driver.finish(loop, snapshots._replace(used=used))


def _retape(plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, carry: Any) -> Tape:
    driver = ByStepsDriver(plan, inputs, settings, keep)
    assert keep.segments is not None
    length = segment_length(plan, keep.segments)
    t, u = driver.stepper.time(carry), carry.u
    carry = carry._replace(memory=plan.alg.init(driver.stepper.field, t, u))
    loop = driver.run(driver.start(carry, length, saving=False), length)
    assert loop.tape is not None
    if keep.compact:
        used = steps_done(loop.carry) - steps_done(carry)
    else:
        used = loop.iteration
    return loop.tape.close(used, driver.stepper, loop.carry)


def segment_length(plan: Plan, segments: int) -> int:
    return -(-(plan.fixed_steps or plan.max_steps) // segments)


def drive(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, *, many: bool = False
) -> Outcome:
    """Solve by the driver that suits one trajectory, or many under `vmap`; a plain loop."""
    if many:
        keep = replace(keep, compact=keep.compact and plan.every_step)
    if keep.segments is not None:
        return by_segments(plan, inputs, settings, keep)
    if keep.tape or (many and inputs.saves is not None):
        return by_steps(plan, inputs, settings, keep)
    if inputs.saves is None:
        return plain(plan, inputs, settings)
    return by_saves(plan, inputs, settings)


def integrate(plan: Plan, inputs: Inputs, settings: Settings, keep: Keep) -> Outcome:
    """Solve, choosing the driver by whether a `vmap` is around."""
    run = jax.custom_batching.custom_vmap(lambda i, s: drive(plan, i, s, keep))

    @run.def_vmap
    def _(size: int, batched: tuple[Inputs, Settings], inputs: Inputs, settings: Settings) -> Any:
        # Lanes that share their fixed times never wait for one another.
        times = (batched[0].t0, batched[0].t1, batched[0].saves)
        in_step = plan.controller is None and not any(jtu.tree_leaves(times))
        out = jax.vmap(
            lambda i, s: drive(plan, i, s, keep, many=not in_step),
            in_axes=tuple(jtu.tree_map(lambda flag: 0 if flag else None, batched)),
            axis_size=size,
        )(inputs, settings)
        return out, jtu.tree_map(lambda _: True, out)

    return run(inputs, settings)


def retape(plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, carry: Any) -> Tape:
    """Take the steps of one segment again, from its snapshot, this time keeping a tape."""

    @jax.custom_batching.custom_vmap
    def run(inputs: Inputs, settings: Settings, carry: Any) -> Tape:
        return _retape(plan, inputs, settings, keep, carry)

    @run.def_vmap
    def _(size: int, batched: Any, *args: Any) -> Any:
        axes = jtu.tree_map(lambda flag: 0 if flag else None, batched)
        by_attempt = replace(keep, compact=False)
        out = jax.vmap(
            lambda *args: _retape(plan, args[0], args[1], by_attempt, args[2]),
            in_axes=tuple(axes),
            axis_size=size,
        )(*args)
        return out, jtu.tree_map(lambda _: True, out)

    return run(inputs, settings, carry)
