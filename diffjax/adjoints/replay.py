"""Replaying the accepted steps of a solve: forwards with tangents, backwards with cotangents.

A replay knows nothing of the step controller. It reads rows `(t, dt, u)` and pulls a tangent or a
cotangent through each step with one jvp or vjp, and through what was saved inside it.

Step sizes carry no derivative, except where a step was cut to land on a time that does: then
`dt = stop - t`. Fixed steps are functions of both ends of the span.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..algorithms.base import Memory
from ..algorithms.implicit import derivative
from ..events.search import same_time
from ..events.transition import Crossing, StepEvents, arrive, depart
from ..stepping.fixed import fixed_time
from ..stepping.lanes import any_lane
from ..stepping.levels import Lanes as Lanes
from ..stepping.loop import retape
from ..stepping.outcome import Keep
from ..stepping.plan import Inputs, Plan, Settings
from ..stepping.stepper import ON_ALARM
from ..stepping.tape import Snapshots, Tape
from ..stepping.trees import chosen, replaced, when, where

Carry = TypeVar("Carry")


class Point(NamedTuple):
    """Where a step starts or ends; `t` is None if times carry no derivative, `history` has no
    leaves but for methods that remember past values, `slope` is None unless steps hand it on."""

    u: PyTree
    t: Array | None
    history: PyTree = None
    slope: PyTree = None


class Row(NamedTuple):
    """One row of the tape, as a lane reads it; `number` counts from the start of the solve,
    `events` are those at its end."""

    number: Array
    t: Array
    t_next: Array
    dt: Array
    u: PyTree
    past: Memory
    landed: Array | None
    active: Array
    events: StepEvents | None = None

    @property
    def kinds(self) -> list[tuple[bool, "Row"]]:
        """The rows of steps that end with events and of those that do not, each active where the
        row is of its kind."""
        if self.events is None:
            return [(False, self)]
        happened = jnp.any(self.events.fired, axis=-1)
        return [
            (False, self._replace(active=self.active & ~happened)),
            (True, self._replace(active=self.active & happened)),
        ]


class Inside(NamedTuple):
    """What a save inside a step is computed from; times are None if they carry no derivative. After
    events at its end: when that is, the state there and its derivative by time."""

    coefficients: PyTree
    t: Array | None
    dt: Array | None
    end: tuple[Array, PyTree, PyTree] | None = None


class Happened(NamedTuple):
    """What the log of events has of a step: when it ended, the states before and after them."""

    t: Array
    before: PyTree
    after: PyTree


class Spare(NamedTuple):
    """A step that can be taken for certain: the first accepted one. It is replayed, and thrown
    away, in place of rows that are none; where the field is not defined or cannot be solved it
    would spoil the derivatives that lanes share, since a NaN times zero is one."""

    t: Array
    t_next: Array
    dt: Array
    u: PyTree
    past: Memory

    @staticmethod
    def of(tape: Tape) -> "Spare":
        # Of a lane without any accepted row nothing is known.
        dt = jnp.where(tape.dt[0] != 0, tape.dt[0], 1)
        u, past = jtu.tree_map(lambda x: x[0], (tape.u, tape.past))
        return Spare(tape.t[0], tape.t[1], dt, u, past)


def read(tape: Tape, k: Array, first: Array, spare: Spare) -> Row:
    """Row k of a tape whose rows are numbered from `first`."""
    active = (tape.dt[k] != 0) & (k < tape.used)
    u, past = jtu.tree_map(
        lambda x, other: jnp.where(active, x[k], other),
        (tape.u, tape.past),
        (spare.u, spare.past),
    )
    return Row(
        number=k + first,
        t=jnp.where(active, tape.t[k], spare.t),
        t_next=jnp.where(active, tape.t[k + 1], spare.t_next),
        dt=jnp.where(active, tape.dt[k], spare.dt),
        u=u,
        past=past,
        landed=None if tape.landed is None else jnp.where(active, tape.landed[k], -1),
        active=active,
        events=_events(tape, k, active),
    )


def _events(tape: Tape, k: Array, active: Array) -> StepEvents | None:
    """The events at the end of a step, none of one that is not there."""
    if tape.events is None:
        return None
    events: StepEvents = jtu.tree_map(lambda x: x[k], tape.events)
    return events._replace(fired=events.fired & active)


@dataclass(frozen=True, eq=False)
class Steps:
    """One step and one save as pure functions of what is differentiated.

    `times` says whether times carry a derivative, `saves` whether anything is saved at save times.
    """

    plan: Plan
    times: bool
    saves: bool

    @property
    def hand_on(self) -> bool:
        """Whether the last stage of a step is handed to the next as its first, so that it is
        differentiated once, not twice: where saves depend on it. Otherwise it is not even computed
        as the last."""
        return self.plan.alg.is_fsal and self.saves and self.plan.events is None

    def start(self, row: Row, inputs: Inputs) -> Point:
        """Where a step starts."""
        slope = None
        if self.hand_on:
            slope = self.plan.alg.init(self.plan.field(inputs), row.t, row.u).cache
        return Point(row.u, row.t if self.times else None, row.past.history, slope)

    def step(self, start: Point, inputs: Inputs, row: Row, inside: bool) -> tuple[Point, Inside]:
        """From the start of a step to its end, and what its saves need if `inside`."""
        alg, field = self.plan.alg, self.plan.field(inputs)
        t, dt, end = self.schedule(start, inputs, row)
        memory = row.past._replace(history=start.history, cache=start.slope)
        if not self.hand_on:
            memory = alg.recall(field, t, start.u, memory)
        result = alg.step(field.during(row.number), t, dt, start.u, memory, None)
        coefficients = alg.dense(field, t, dt, start.u, result.stages) if inside else None
        after = Point(result.u, None, *self._handed(result.memory))
        if not self.times:
            return after, Inside(coefficients, None, None)
        return after._replace(t=end), Inside(coefficients, t, dt)

    def _handed(self, memory: Memory) -> tuple[PyTree, PyTree]:
        """What a step hands to the next beside the state: history and slope."""
        return memory.history, memory.cache if self.hand_on else None

    def cross(
        self, start: Point, inputs: Inputs, row: Row, inside: bool
    ) -> tuple[Point, Inside, Happened]:
        """As `step`, of a step that ends with events: to the state after them."""
        plan, alg, field = self.plan, self.plan.alg, self.plan.field(inputs)
        events, args = plan.events, inputs.events
        assert events is not None
        assert args is not None
        assert row.events is not None
        t, dt, end = self.schedule(start, inputs, row)
        past = row.past._replace(history=start.history)
        located = jnp.asarray(False)
        if events.continuous and row.landed is not None:
            located = (row.landed == -1) & jnp.any(row.events.fired[jnp.asarray(events.continuous)])
        at = Crossing(t, start.u, past, dt, end, row.number, False, located, row.events)
        t1, before, dt, result = arrive(alg, events, field, args, at, self.times)
        after, memory, _ = depart(alg, events, field, args, at, t1, before, result.memory)
        coefficients, ending = None, None
        if inside:
            coefficients = alg.dense(field, t, dt, start.u, result.stages)
            ending = (t1, after, self._slope(inputs, t1, after, memory))
        happened = Happened(t1, before, after) if events.save else Happened(t1, None, None)
        if not self.times:
            return Point(after, None, memory.history), Inside(coefficients, t, dt, ending), happened
        return Point(after, t1, memory.history), Inside(coefficients, t, dt, ending), happened

    def _slope(self, inputs: Inputs, t: Array, u: PyTree, memory: Memory) -> PyTree:
        """The derivative of the state by time, where it is known and matters."""
        field = self.plan.field(inputs)
        if not self.times or field.slope is not None or field.diffusion is not None:
            return jtu.tree_map(jnp.zeros_like, u)
        return derivative(self.plan.alg.field_now(field, memory), t, u)

    def first(self, inputs: Inputs) -> tuple[PyTree, PyTree]:
        """What the first step is handed beside the state: history and slope."""
        return self._handed(self.plan.first_memory(inputs))

    def schedule(self, start: Point, inputs: Inputs, row: Row) -> tuple[Array, Array, Array]:
        if not self.times:
            return row.t, row.dt, row.t_next
        if self.plan.controller is None and self.plan.rows == self.plan.fixed_steps:
            t = fixed_time(self.plan, inputs, row.number)
            end = fixed_time(self.plan, inputs, row.number + 1)
            if self.plan.leftover:
                t, end = where(row.active, (t, end), (row.t, row.t_next))
            return t, end - t, end
        assert start.t is not None
        assert row.landed is not None
        stop, landed = self._stop(inputs, jnp.maximum(row.landed, 0)), row.landed >= 0
        if self.plan.events is not None and self.plan.events.ringing:
            due = self.plan.next_alarm(row.past._replace(history=start.history))
            assert due is not None
            rang = row.landed == ON_ALARM
            stop, landed = jnp.where(rang, due, stop), landed | rang
        dt = jnp.where(landed, stop - start.t, jax.lax.stop_gradient(row.dt))
        return start.t, dt, jnp.where(landed, stop, start.t + dt)

    def _stop(self, inputs: Inputs, number: Array) -> Array:
        """The time that a step may be cut to end on."""
        if self.plan.controller is None:
            return fixed_time(self.plan, inputs, number)
        t1 = jnp.reshape(jnp.asarray(inputs.t1), (1,))
        return (t1 if inputs.stops is None else jnp.concatenate([inputs.stops, t1]))[number]

    def save(self, inside: Inside, inputs: Inputs, row: Row, j: Array) -> list[Array]:
        """What is saved at save time number j, inside this step."""
        assert inputs.saves is not None
        ts = inputs.saves[jnp.clip(j, 0, inputs.saves.shape[0] - 1)]
        t = row.t if inside.t is None else inside.t
        dt = row.dt if inside.dt is None else inside.dt
        u = self.plan.alg.interpolate(inside.coefficients, (ts - t) / dt)
        if inside.end is not None:
            end, after, slope = inside.end
            later = jtu.tree_map(lambda x, d: x + d * (ts - end).astype(d.dtype), after, slope)
            u = where((ts >= row.t_next) | same_time(row.t_next, ts), later, u)
        return self.plan.observe(inputs.save_args, u, ts)

    def initial_save(self, inputs: Inputs) -> list[Array]:
        return self.plan.observe(inputs.save_args, inputs.u0, inputs.t0)


def of_record(record: Tape | Snapshots) -> tuple[Array | None, PyTree, PyTree]:
    """The times, states and histories that a record keeps, in rows."""
    if isinstance(record, Tape):
        return record.t, record.u, None if record.past is None else record.past.history
    return getattr(record.carry, "t", None), record.carry.u, record.carry.memory.history


def any_of(condition: Array) -> Array:
    """Whether a condition holds in any lane, of the levels and of any `vmap` further out."""
    return any_lane(jnp.any(condition))


def max_of(x: Array) -> Array:
    return eqxi.unvmap_max(jnp.max(x))


def masked(active: Array, x: PyTree) -> PyTree:
    """`x` where a lane is active, zero elsewhere; lane axes come first."""
    return chosen(active, x, jtu.tree_map(jnp.zeros_like, x))


def add(x: PyTree, y: PyTree) -> PyTree:
    return jtu.tree_map(jnp.add, x, y)


# What depends on which field of `Inputs`: a step, a save, or only the start of the solve.
_GROUPS = {
    "u0": "start",
    "args": "step",
    "mass": "step",
    "jac_args": "step",
    "slope": "step",
    "diffusion": "step",
    "noise": "step",
    "past": "step",
    "t0": "step",
    "t1": "step",
    "stops": "step",
    "grid": "step",
    "events": "step",
    "alarms": "step",
    "save_args": "save",
    "saves": "save",
}


class Moving:
    """Which leaves of the inputs carry a derivative, and how to put them back in place."""

    def __init__(self, structure: Any, which: Sequence[int], names: Sequence[str]) -> None:
        self.structure = structure
        self.which = tuple(which)
        self.names = tuple(names[i] for i in which)

    def positions(self, group: str) -> list[int]:
        """Positions, in the list of moving leaves, of those in a group."""
        return [i for i, name in enumerate(self.names) if _GROUPS[name] == group]

    def take(self, values: Sequence[Any], group: str) -> list[Any]:
        """Of one value per moving leaf, those in a group."""
        return [values[i] for i in self.positions(group)]

    def place(self, leaves: Sequence[Array], group: str, values: Sequence[Array]) -> Inputs:
        """The inputs with the moving leaves of one group replaced."""
        where = [self.which[i] for i in self.positions(group)]
        return jtu.tree_unflatten(self.structure, replaced(leaves, where, values))


class Residuals(NamedTuple):
    """What a replay reads: the solve's inputs, and its tape or the snapshots to make it from."""

    leaves: list[Array]
    settings: Settings
    record: Tape | Snapshots
    saved: Array | None


@dataclass(frozen=True, eq=False)
class Replay:
    """The static facts of a replay.

    - `recorded`: the tape itself is an output of the solve, and has tangents.
    - `kept`: how the tape was, or is to be, written.
    """

    plan: Plan
    moving: Moving
    steps: Steps
    kept: Keep
    recorded: bool
    residual_structure: Any
    smooth_structure: Any

    def through(
        self,
        step: Callable[[Carry, bool], Carry],
        carry: Carry,
        due: Callable[[], Array],
        *,
        saving: bool,
    ) -> Carry:
        """`step(carry, inside)`, looking inside the step only if something may be saved there."""
        if not saving:
            return step(carry, False)
        # What saves need may cost evaluations, which a step without one should not pay; but of
        # implicit steps a second copy takes many seconds to compile.
        costs = self.plan.alg.dense_counts
        if not costs or "nsolve" in costs:
            return step(carry, True)
        saves = any_of(due())
        carry = when(saves, lambda c: step(c, True), carry)
        return when(~saves, lambda c: step(c, False), carry)

    def segments(self, record: Tape | Snapshots) -> Array:
        return jnp.ones((), jnp.int32) if isinstance(record, Tape) else record.used

    def segment(
        self, record: Tape | Snapshots, leaves: list[Array], settings: Settings, number: Array
    ) -> tuple[Tape, Array]:
        """The tape of a segment and the number of its first step."""
        if isinstance(record, Tape):
            return record, jnp.zeros((), jnp.int32)
        inputs = jtu.tree_unflatten(self.moving.structure, leaves)
        start, end = record.read(number), record.read(number + 1)
        tape = retape(self.plan, inputs, settings, self.kept, start, end)
        return tape, start.steps
