"""A solve replayed backwards: a cotangent pulled through every accepted step.

One vjp an accepted step. A save inside a step adds its cotangent to that of the coefficients of
the step's continuous extension, in which it is linear, before the step is pulled back.

All lanes go backwards together, with the step of all lanes as one function: a parameter that lanes
share has one cotangent, contracted over the lanes inside the vjp, not one accumulator a lane.
"""

import dataclasses
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..algorithms.base import Algorithm
from ..stepping.lanes import one_or_many
from ..stepping.plan import Inputs
from ..stepping.tape import Tape
from ..stepping.trees import chosen, sum_of_rows, when
from ..varying import vary_alike
from .linear_map import Level
from .replay import (
    Happened,
    Inside,
    Lanes,
    Point,
    Replay,
    Residuals,
    Row,
    Spare,
    add,
    any_of,
    masked,
    max_of,
    of_record,
    read,
)
from .smooth import Smooth
from .turned import is_tall, turn, with_turned


class _Carry(NamedTuple):
    """Cotangents of the current point and of the moving inputs; `j` is the save that comes next."""

    point: Point
    for_step: list[Array]
    for_save: list[Array]
    j: Array | None


class Retreat:
    def __init__(
        self,
        replay: Replay,
        levels: tuple[Level, ...],
        residuals: Sequence[Array],
        cotangents: Sequence[Array | None],
    ) -> None:
        self.replay, self.moving, self.steps = replay, replay.moving, replay.steps
        self.lanes = Lanes(levels)
        count = self.moving.structure.num_leaves
        by_residual = list(zip(*(level.residuals for level in levels), strict=True))
        flags = by_residual or [()] * len(residuals)
        tangent_flags = list(zip(*(level.tangents for level in levels), strict=True))
        self.out_flags = tangent_flags or [()] * len(self.moving.which)
        residuals = list(residuals)
        # A moving input is batched where its tangent is.
        for i, want in zip(self.moving.which, self.out_flags, strict=True):
            both = tuple(a or b for a, b in zip(flags[i], want, strict=True))
            residuals[i] = self.lanes.fill(residuals[i], flags[i], both)
            flags[i] = both
        for i in range(count, len(residuals)):
            residuals[i] = self.lanes.fill(residuals[i], flags[i], self.lanes.all)
        self.flags = flags[:count]
        self.residuals: Residuals = jtu.tree_unflatten(replay.residual_structure, residuals)
        self.leaves = self.residuals.leaves
        self._turn()
        self.inputs: Inputs = jtu.tree_unflatten(self.moving.structure, self.leaves)
        # Flags in the fields of `Inputs` in place of arrays.
        self.input_flags: Any = jtu.tree_unflatten(self.moving.structure, self.flags)
        self.primals = [self.leaves[i] for i in self.moving.which]
        self.primal_flags = [self.flags[i] for i in self.moving.which]
        self.cotangents: Smooth = jtu.tree_unflatten(replay.smooth_structure, cotangents)

    def _turn(self) -> None:
        """Turn the tall matrices that have a cotangent and that all lanes share."""
        self.turned = [
            i
            for i, name in zip(self.moving.which, self.moving.names, strict=True)
            if name == "args" and not any(self.flags[i]) and is_tall(self.leaves[i])
        ]
        inputs: Inputs = jtu.tree_unflatten(self.moving.structure, range(len(self.leaves)))
        which = [k for k, i in enumerate(inputs.args) if i in self.turned]
        args = [self.leaves[i] for i in inputs.args]
        plan = with_turned(self.steps.plan, args, which)
        self.steps = dataclasses.replace(self.steps, plan=plan)
        self.leaves = turn(self.leaves, self.turned)

    def _group(self, group: str) -> tuple[list[Array], list[Any]]:
        """Primals of a group of moving leaves, and their flags."""
        return self.moving.take(self.primals, group), self.moving.take(self.primal_flags, group)

    def start(self) -> _Carry:
        record, given = self.residuals.record, self.cotangents
        _, *rows = of_record(record)
        like = self.lanes(lambda rows: jtu.tree_map(lambda x: x[0], rows), True)(rows)
        u, history = given_or_zero(given.u_end, like[0]), given_or_zero(given.history, like[1])
        t = None
        if self.steps.times:
            t = jnp.zeros(self._lane_shape(), self.inputs.t0.dtype)
            t = t if given.t_end is None else t + given.t_end
        slope = jtu.tree_map(jnp.zeros_like, like[0]) if self.steps.hand_on else None
        point = Point(u, t, history, slope)
        if self.replay.recorded:
            point = self._from_tape(point, record.used, jnp.asarray(True))
        j = None
        if self.steps.saves:
            assert self.residuals.saved is not None
            j = self.residuals.saved - 1
            point = point._replace(u=self._poisoned(point.u))
        carry = _Carry(
            point,
            [jnp.zeros_like(x) for x in self._group("step")[0]],
            [jnp.zeros_like(x) for x in self._group("save")[0]],
            j,
        )
        return vary_alike((carry, self.residuals, cotangent_leaves(given)))[0]

    def _poisoned(self, u: PyTree) -> PyTree:
        """NaN where a cotangent came for a save that was not reached: a loss that looks at one
        must not get a gradient that looks right."""
        poison = jnp.zeros(self._lane_shape(), bool)

        def unreached(g: Array, saved: Array) -> Array:
            late = jnp.arange(g.shape[0], dtype=saved.dtype) >= saved
            return jnp.any(masked(late, g) != 0)

        for g in self.cotangents.rows or []:
            if g is not None:
                poison |= self.lanes(unreached, True, True)(g, self.residuals.saved)
        return chosen(poison, jtu.tree_map(lambda x: jnp.full_like(x, jnp.nan), u), u)

    def _lane_shape(self) -> tuple[int, ...]:
        return tuple(reversed(self.lanes.sizes))

    def _from_tape(self, point: Point, number: Array, active: Array) -> Point:
        """Add the cotangent of row `number` of the tape."""
        given = self.cotangents

        def row(buffer: Array, number: Array) -> Array:
            return buffer[number]

        flag, t = number.ndim > 0, point.t
        here = jnp.broadcast_to(active, self._lane_shape())

        def added(values: PyTree, buffers: PyTree) -> PyTree:
            leaves, structure = jtu.tree_flatten(values)
            for i, buffer in enumerate(_like(structure, buffers)):
                if buffer is not None:
                    at = self.lanes(row, True, flag)(buffer, number)
                    leaves[i] = leaves[i] + masked(here, at)
            return jtu.tree_unflatten(structure, leaves)

        u = added(point.u, given.tape_u)
        history = added(point.history, given.tape_history)
        if t is not None and given.tape_t is not None:
            t = t + jnp.where(active, self.lanes(row, True, flag)(given.tape_t, number), 0)
        return point._replace(u=u, t=t, history=history)

    def due(self, j: Array | None, row: Row) -> Array:
        """Whether save j lies in this step, by lane."""

        def one(j: Array, saves: Array, row: Row) -> Array:
            return (j >= 0) & (saves[jnp.maximum(j, 0)] > row.t) & row.active

        flag = self.input_flags.saves
        return self.lanes(lambda j, s, row: one(j, s[0], row), True, [flag], True)(
            j, [self.inputs.saves], row
        )

    def step(self, carry: _Carry, row: Row, inside: bool, event: bool) -> _Carry:
        primals, flags = self._group("step")

        def one(start: Point, moving: list[Array], leaves: list[Array], row: Row) -> Any:
            inputs = self.moving.place(leaves, "step", moving)
            if event:
                return self.steps.cross(start, inputs, row, inside)
            return *self.steps.step(start, inputs, row, inside), None

        def lanes(start: Point, moving: list[Array]) -> tuple[Point, Inside, Happened | None]:
            return self.lanes(one, True, flags, self.flags, True)(start, moving, self.leaves, row)

        def at(row: Row, leaves: list[Array]) -> Point:
            return self.steps.start(row, jtu.tree_unflatten(self.moving.structure, leaves))

        start = self.lanes(at, True, self.flags)(row, self.leaves)
        (_, between, happened), pull = jax.vjp(lanes, start, primals)
        between_bar = jtu.tree_map(jnp.zeros_like, between)
        if inside:
            carry, between_bar = self.saves(carry, row, between, between_bar)
        happened_bar = None if happened is None else self.from_log(happened, row)
        point_bar = masked(row.active, carry.point)
        start_bar, moving_bar = pull((point_bar, between_bar, happened_bar))
        return carry._replace(
            point=chosen(row.active, start_bar, carry.point),
            for_step=add(carry.for_step, moving_bar),
        )

    def from_log(self, happened: Happened, row: Row) -> Happened:
        """The cotangents of what the log of events has of a step."""
        events = self.replay.plan.events
        assert events is not None
        assert row.events is not None
        total = jtu.tree_map(jnp.zeros_like, happened)
        buffers = given_or_zero_rows(self.cotangents.log, happened)

        def entries(buffers: list[Array], fired: Array, number: Array) -> list[Array]:
            out = [jnp.zeros(x.shape[1:], x.dtype) for x in buffers]
            for entered, place in events.places(fired, number):
                at = jnp.minimum(place, events.most - 1)
                out = [o + masked(entered, x[at]) for o, x in zip(out, buffers, strict=True)]
            return out

        given = [x for x in buffers if x is not None]
        found = iter(
            self.lanes(entries, True, True, True)(given, row.events.fired, row.events.number)
        )
        leaves, structure = jtu.tree_flatten(total)
        leaves = [
            x if b is None else masked(row.active, next(found))
            for x, b in zip(leaves, buffers, strict=True)
        ]
        return jtu.tree_unflatten(structure, leaves)

    def saves(
        self, carry: _Carry, row: Row, between: Inside, between_bar: Inside
    ) -> tuple[_Carry, Inside]:
        primals, flags = self._group("save")
        given = self.cotangents.rows
        assert given is not None

        def one(
            between: Inside, moving: list[Array], leaves: list[Array], row: Row, j: Array
        ) -> list[Array]:
            inputs = self.moving.place(leaves, "save", moving)
            return self.steps.save(between, inputs, row, j)

        def pull(state: Any) -> Any:
            j, due, bars, for_save = state

            def lanes(between: Inside, moving: list[Array]) -> list[Array]:
                return self.lanes(one, True, flags, self.flags, True, True)(
                    between, moving, self.leaves, row, j
                )

            out, back = jax.vjp(lanes, between, primals)
            at = self.lanes(lambda x, j: x[jnp.maximum(j, 0)], True, True)
            rows = [
                jnp.zeros_like(o) if g is None else masked(due, at(g, j))
                for o, g in zip(out, given, strict=True)
            ]
            bar, moving_bar = back(rows)
            j = j - due.astype(jnp.int32)
            return j, self.due(j, row), add(bars, stacked(bar)), add(for_save, moving_bar)

        j, _, bars, for_save = jax.lax.while_loop(
            lambda state: any_of(state[1]),
            pull,
            (carry.j, self.due(carry.j, row), stacked(between_bar), carry.for_save),
        )
        between_bar = unstacked(bars, between_bar)
        return carry._replace(j=j, for_save=for_save), between_bar

    def retreat(self, carry: _Carry, row: Row) -> _Carry:
        def through(carry: _Carry, row: Row, event: bool) -> _Carry:
            return self.replay.through(
                lambda c, inside: self.step(c, row, inside, event),
                carry,
                lambda: self.due(carry.j, row),
                saving=self.steps.saves and self.cotangents.rows is not None,
            )

        if row.events is None:
            return through(carry, row, False)
        for event, part in row.kinds:
            carry = when(
                any_of(part.active), lambda c, e=event, part=part: through(c, part, e), carry
            )
        return carry

    def segment(self, number: Array, carry: _Carry) -> _Carry:
        residuals = self.residuals
        full = isinstance(residuals.record, Tape)

        def make(record: Any, leaves: list[Array], settings: Any) -> tuple[Tape, Array]:
            return self.replay.segment(record, leaves, settings, number)

        if full:
            tape, first = residuals.record, jnp.zeros(self._lane_shape(), jnp.int32)
        else:
            tape, first = self.lanes(make, True, self.flags, True)(
                residuals.record, residuals.leaves, residuals.settings
            )
        used, spare = max_of(tape.used), self.lanes(Spare.of, True)(tape)

        def row(k: Array) -> Row:
            return self.lanes(read, True, False, True, True)(tape, k, first, spare)

        def back(retreat: Retreat, k: Array, carry: _Carry) -> _Carry:
            carry = retreat.retreat(carry, row(k))
            if self.replay.recorded and full:
                carry = carry._replace(point=self._from_tape(carry.point, k, row(k).active))
            return carry

        carry = self._over_rows(used, row, back, carry)
        if self.replay.recorded and not full:
            active = number < residuals.record.used
            carry = carry._replace(point=self._from_tape(carry.point, number, active))
        return carry

    def _over_rows(
        self,
        used: Array,
        row: Callable[[Array], Row],
        back: Callable[["Retreat", Array, _Carry], _Carry],
        carry: _Carry,
    ) -> _Carry:
        """Back over the rows; of one trajectory the steps of each kind in a loop of their own."""
        phases = () if self.lanes.sizes else self.replay.plan.alg.phases
        if not phases:
            return jax.lax.fori_loop(0, used, lambda i, c: back(self, used - 1 - i, c), carry)

        def turn(state: tuple[Array, _Carry]) -> tuple[Array, _Carry]:
            for alg in phases:
                retreat = self._by(alg)
                state = jax.lax.while_loop(
                    lambda s, alg=alg: (s[0] >= 0) & alg.ready(row(jnp.maximum(s[0], 0)).past),
                    lambda s, retreat=retreat: (s[0] - 1, back(retreat, *s)),
                    state,
                )
            return state

        return jax.lax.while_loop(lambda s: s[0] >= 0, turn, (used - 1, carry))[1]

    def _by(self, alg: Algorithm) -> "Retreat":
        """The same retreat over steps of another algorithm."""
        other = copy(self)
        for part in ("replay", "steps"):
            of = getattr(self, part)
            plan = dataclasses.replace(of.plan, alg=alg)
            setattr(other, part, dataclasses.replace(of, plan=plan))
        return other

    def initial_saves(self, carry: _Carry) -> _Carry:
        """Pull back the saves at t0 itself."""
        given = self.cotangents.rows
        assert given is not None
        assert carry.j is not None
        primals, flags = self._group("save")

        def one(point: Point, moving: list[Array], leaves: list[Array]) -> list[Array]:
            inputs = self.moving.place(leaves, "save", moving)
            t0 = inputs.t0 if point.t is None else point.t
            return self.steps.initial_save(inputs._replace(u0=point.u, t0=t0))

        def lanes(point: Point, moving: list[Array]) -> list[Array]:
            return self.lanes(one, True, flags, self.flags)(point, moving, self.leaves)

        out, back = jax.vjp(lanes, self._first_point(), primals)
        rows = [
            jnp.zeros_like(o) if g is None else self.lanes(sum_of_rows, True, True)(g, carry.j + 1)
            for o, g in zip(out, given, strict=True)
        ]
        point_bar, moving_bar = back(rows)
        u, t = add((carry.point.u, carry.point.t), (point_bar.u, point_bar.t))
        point = carry.point._replace(u=u, t=t)
        return carry._replace(point=point, for_save=add(carry.for_save, moving_bar))

    def _first_point(self) -> Point:
        fill, flags = self.lanes.fill, self.input_flags
        u = [
            fill(x, f, self.lanes.all)
            for x, f in zip(jtu.tree_leaves(self.inputs.u0), self.flags, strict=False)
        ]
        t = fill(self.inputs.t0, flags.t0, self.lanes.all) if self.steps.times else None
        return Point(jtu.tree_unflatten(jtu.tree_structure(self.inputs.u0), u), t)

    def run(self) -> list[Array]:
        carry = self.start()
        segments = max_of(self.replay.segments(self.residuals.record))
        if isinstance(self.residuals.record, Tape):
            carry = self.segment(jnp.zeros((), jnp.int32), carry)
        else:
            carry = jax.lax.fori_loop(
                0, segments, lambda i, c: self.segment(segments - 1 - i, c), carry
            )
        if self.steps.saves and self.cotangents.rows is not None:
            carry = self.initial_saves(carry)
        return self._collect(self.before_first(carry))

    def before_first(self, carry: _Carry) -> _Carry:
        """Pull back what the first step is handed beside the state."""
        handed = carry.point.history, carry.point.slope
        if not jtu.tree_leaves(handed):
            return carry
        primals, flags = self._group("step")

        def one(point: Point, moving: list[Array], leaves: list[Array]) -> PyTree:
            inputs = self.moving.place(leaves, "step", moving)
            t0 = inputs.t0 if point.t is None else point.t
            return self.steps.first(inputs._replace(u0=point.u, t0=t0))

        def lanes(point: Point, moving: list[Array]) -> PyTree:
            return self.lanes(one, True, flags, self.flags)(point, moving, self.leaves)

        _, back = jax.vjp(lanes, self._first_point(), primals)
        point_bar, moving_bar = back(handed)
        point = add(carry.point._replace(history=None, slope=None), point_bar)
        return carry._replace(point=point, for_step=add(carry.for_step, moving_bar))

    def _collect(self, carry: _Carry) -> list[Array]:
        """One cotangent for each moving leaf, with the batch axes of its tangent."""
        moving = self.moving
        out: list[Any] = [None] * len(moving.which)
        for group, values in (("step", carry.for_step), ("save", carry.for_save)):
            for i, value in zip(moving.positions(group), values, strict=True):
                out[i] = self._reduced(value, self.primal_flags[i], self.out_flags[i])
                if moving.which[i] in self.turned:
                    out[i] = out[i].T
        states = jtu.tree_leaves(carry.point.u)
        for i, name in enumerate(moving.names):
            want = self.out_flags[i]
            if name == "u0":
                out[i] = self.lanes.reduce(states[moving.which[i]], want)
            elif name == "t0" and carry.point.t is not None:
                out[i] = out[i] + self.lanes.reduce(carry.point.t, want)
        return out

    def _reduced(self, x: Array, have: tuple[bool, ...], want: tuple[bool, ...]) -> Array:
        return x if have == want else self.lanes.reduce(self.lanes.fill(x, have, have), want)


def given_or_zero(cotangents: PyTree, like: PyTree) -> PyTree:
    """Cotangents with zeros for those that are known to be zero."""
    leaves, structure = jtu.tree_flatten(like)
    if not leaves:
        return like
    given = _like(structure, cotangents)
    filled = [jnp.zeros_like(x) if g is None else g for x, g in zip(leaves, given, strict=True)]
    return jtu.tree_unflatten(structure, filled)


def given_or_zero_rows(cotangents: PyTree, like: PyTree) -> list[Array | None]:
    """For each leaf the cotangent of the buffer that has it in its rows; None where it is zero."""
    return _like(jtu.tree_structure(tuple(like)), cotangents)


def _like(structure: Any, cotangents: PyTree) -> list[Array | None]:
    """Cotangents in the order of the leaves of a structure; None where they are zero."""
    if cotangents is None:
        return [None] * structure.num_leaves
    return structure.flatten_up_to(cotangents)


def cotangent_leaves(smooth: Smooth) -> list[Array]:
    return [x for x in jtu.tree_leaves(smooth) if x is not None]


def replay_backward(
    replay: Replay,
    levels: tuple[Level, ...],
    residuals: Sequence[Array],
    cotangents: Sequence[Array | None],
    backward: Callable[..., Any] = Retreat,
) -> list[Array]:
    """The cotangents of a solve's moving inputs, for all lanes."""

    def run(residuals: Sequence[Array], given: Sequence[Array]) -> list[Array]:
        cts = iter(given)
        full = [None if ct is None else next(cts) for ct in cotangents]
        return backward(replay, levels, residuals, full).run()

    given = [ct for ct in cotangents if ct is not None]
    return one_or_many(run, run, list(residuals), given, native=replay.plan.small)


def stacked(tree: PyTree) -> list[Array]:
    """The leaves of each shape and dtype as one array, on a last axis."""
    leaves = jtu.tree_leaves(tree)
    kinds = dict.fromkeys((x.shape, x.dtype) for x in leaves)
    return [jnp.stack([x for x in leaves if (x.shape, x.dtype) == kind], -1) for kind in kinds]


def unstacked(stacks: list[Array], like: PyTree) -> PyTree:
    """The tree whose leaves were stacked."""
    leaves, structure = jtu.tree_flatten(like)
    kinds = dict.fromkeys((x.shape, x.dtype) for x in leaves)
    parts = {kind: iter(jnp.moveaxis(x, -1, 0)) for kind, x in zip(kinds, stacks, strict=True)}
    return jtu.tree_unflatten(structure, [next(parts[x.shape, x.dtype]) for x in leaves])
