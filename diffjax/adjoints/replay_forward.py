"""A solve replayed forwards: a tangent pushed through every accepted step."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..stepping.lanes import one_or_many
from ..stepping.plan import Inputs
from ..stepping.tape import Tape, put
from ..stepping.trees import chosen, when, where
from ..varying import vary_alike
from .replay import (
    Happened,
    Inside,
    Point,
    Replay,
    Residuals,
    Row,
    Spare,
    any_of,
    max_of,
    of_record,
    read,
)
from .smooth import Smooth, reached


class _Carry(NamedTuple):
    """Tangents of the current point and of the outputs; `j` is the save that comes next."""

    point: Point
    rows: list[Array] | None
    tape_t: Array | None
    tape_u: PyTree
    tape_history: PyTree
    j: Array | None
    log: Happened | None


class _Forward:
    def __init__(
        self, replay: Replay, residuals: Residuals, tangents: Sequence[Array], *, many: bool
    ) -> None:
        self.replay, self.residuals, self.many = replay, residuals, many
        self.moving, self.steps = replay.moving, replay.steps
        self.leaves = residuals.leaves
        self.inputs: Inputs = jtu.tree_unflatten(self.moving.structure, self.leaves)
        self.tangents = list(tangents)
        self.primals = [self.leaves[i] for i in self.moving.which]

    def start(self) -> _Carry:
        inputs, replay = self.inputs, self.replay
        zeros = [jnp.zeros_like(x) for x in self.leaves]
        for i, tangent in zip(self.moving.which, self.tangents, strict=True):
            zeros[i] = tangent
        dots: Inputs = jtu.tree_unflatten(self.moving.structure, zeros)
        handed = None, None
        if self.steps.hand_on or jtu.tree_leaves(of_record(self.residuals.record)[2]):
            handed = jax.jvp(self.steps.first, (inputs,), (_tangents_of(dots),))[1]
        point = Point(dots.u0, dots.t0 if self.steps.times else None, *handed)
        rows, j = None, None
        if self.steps.saves:
            assert inputs.saves is not None
            initial = inputs.saves <= inputs.t0

            def first(u0: PyTree, save_args: tuple[Array, ...], t0: Array) -> list[Array]:
                return self.steps.initial_save(inputs._replace(u0=u0, save_args=save_args, t0=t0))

            dot = _tangents_of((dots.u0, dots.save_args, dots.t0))
            row = jax.jvp(first, (inputs.u0, inputs.save_args, inputs.t0), dot)[1]
            rows = [chosen(initial, x[None], jnp.zeros_like(x)[None]) for x in row]
            j = jnp.sum(initial, dtype=jnp.int32)
        recorded = of_record(self.residuals.record) if replay.recorded else (None, None, None)
        tape_t, tape_u, tape_history = jtu.tree_map(jnp.zeros_like, recorded)
        carry = _Carry(point, rows, tape_t, tape_u, tape_history, j, self._no_events())
        return vary_alike((carry, self.residuals))[0]

    def _no_events(self) -> Happened | None:
        """The log of events, with tangents of zero."""
        events, like = self.replay.plan.events, self.inputs
        if events is None:
            return None

        def rows(x: Array) -> Array:
            return jnp.zeros((max(events.most, 1), *x.shape), x.dtype)

        states = jtu.tree_map(rows, like.u0) if events.save else None
        return Happened(rows(like.t0), states, states)

    def due(self, j: Array | None, row: Row) -> Array:
        saves = self.inputs.saves
        assert saves is not None
        assert j is not None
        assert self.residuals.saved is not None
        ts = saves[jnp.clip(j, 0, saves.shape[0] - 1)]
        return (j < self.residuals.saved) & (ts <= row.t_next) & row.active

    def step(self, carry: _Carry, row: Row, inside: bool, event: bool) -> _Carry:
        def one(start: Point, leaves: list[Array]) -> tuple[Point, Inside, Happened | None]:
            inputs = self.moving.place(self.leaves, "step", leaves)
            if event:
                return self.steps.cross(start, inputs, row, inside)
            return *self.steps.step(start, inputs, row, inside), None

        start = self.steps.start(row, self.inputs)
        primals = self.moving.take(self.primals, "step")
        dots = self.moving.take(self.tangents, "step")
        (_, between, _), (end, between_dot, happened) = jax.jvp(
            one, (start, primals), (carry.point, dots)
        )
        if inside:
            carry = self.save(carry, row, between, between_dot)
        if happened is not None:
            carry = carry._replace(log=self.logged(carry.log, happened, row))
        return carry._replace(point=chosen(row.active, end, carry.point))

    def logged(self, log: Happened | None, happened: Happened, row: Row) -> Happened | None:
        """The log with the tangents of what has happened at the end of a step."""
        events = self.replay.plan.events
        assert events is not None
        assert row.events is not None
        for entered, number in events.places(row.events.fired, row.events.number):
            written = jtu.tree_map(lambda b, v, n=number: put(b, v, n), log, happened)
            log = where(entered & row.active, written, log)
        return log

    def save(self, carry: _Carry, row: Row, between: Inside, between_dot: Inside) -> _Carry:
        primals = self.moving.take(self.primals, "save")
        dots = self.moving.take(self.tangents, "save")

        def write(state: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
            j, rows = state

            def one(between: Inside, leaves: list[Array]) -> list[Array]:
                inputs = self.moving.place(self.leaves, "save", leaves)
                return self.steps.save(between, inputs, row, j)

            value = jax.jvp(one, (between, primals), (between_dot, dots))[1]
            due = self.due(j, row)
            pairs = zip(rows, value, strict=True)
            if self.many:
                # Lanes that have nothing to save write nowhere.
                index = jnp.where(due, j, rows[0].shape[0])
                rows = [x.at[index].set(v, mode="drop") for x, v in pairs]
            else:
                rows = [_put(x, v, j) for x, v in pairs]
            return j + due.astype(jnp.int32), rows

        assert carry.j is not None
        assert carry.rows is not None
        j, rows = jax.lax.while_loop(
            lambda state: any_of(self.due(state[0], row)), write, (carry.j, carry.rows)
        )
        return carry._replace(j=j, rows=rows)

    def advance(self, carry: _Carry, row: Row) -> _Carry:
        def through(carry: _Carry, row: Row, event: bool) -> _Carry:
            return self.replay.through(
                lambda c, inside: self.step(c, row, inside, event),
                carry,
                lambda: self.due(carry.j, row),
                saving=self.steps.saves,
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
        tape, first = self.replay.segment(
            residuals.record, residuals.leaves, residuals.settings, number
        )
        if self.replay.recorded and not full:
            carry = _mark(carry, number)

        spare = Spare.of(tape)

        def one(k: Array, carry: _Carry) -> _Carry:
            if self.replay.recorded and full:
                carry = _mark(carry, k)
            return self.advance(carry, read(tape, k, first, spare))

        return jax.lax.fori_loop(0, max_of(tape.used), one, carry)

    def run(self) -> Smooth:
        segments = max_of(self.replay.segments(self.residuals.record))
        carry = self.start()
        if isinstance(self.residuals.record, Tape):
            carry = self.segment(jnp.zeros((), jnp.int32), carry)
        else:
            carry = jax.lax.fori_loop(0, segments, self.segment, carry)
        if self.replay.recorded:
            carry = _mark(carry, self.residuals.record.used)
        t_end = carry.point.t
        if t_end is None:
            t_end = jnp.zeros_like(self.inputs.t0)
        rows = reached(carry.rows, self.residuals.saved)
        point, tape = carry.point, (carry.tape_t, carry.tape_u, carry.tape_history)
        log = None if carry.log is None else tuple(carry.log)
        return Smooth(rows, point.u, t_end, *tape, point.history, log)


@jax.custom_batching.custom_vmap
def _put(buffer: Array, row: Array, number: Array) -> Array:
    """As `put`; of several tangents of one trajectory, whose number is the same, by one update,
    where JAX would scatter."""
    return put(buffer, row, number)


@_put.def_vmap
def _(size: int, mapped: Any, buffer: Array, row: Array, number: Array) -> tuple[Array, bool]:
    if mapped[2]:
        axes = [0 if m else None for m in mapped]
        return jax.vmap(put, axes, axis_size=size)(buffer, row, number), True
    buffer, row = (
        x if m else jnp.broadcast_to(x, (size, *x.shape))
        for x, m in zip((buffer, row), mapped, strict=False)
    )
    return jax.lax.dynamic_update_slice_in_dim(buffer, row[:, None], number, axis=1), True


def _mark(carry: _Carry, number: Array) -> _Carry:
    """Write the tangent of the current point into row `number` of the tape's."""
    t = carry.tape_t
    if t is not None and carry.point.t is not None:
        t = put(t, carry.point.t, number)
    u, history = jtu.tree_map(
        lambda buffer, x: put(buffer, x, number),
        (carry.tape_u, carry.tape_history),
        (carry.point.u, carry.point.history),
    )
    return carry._replace(tape_t=t, tape_u=u, tape_history=history)


def _tangents_of(tree: PyTree) -> PyTree:
    """Tangents as `jax.jvp` wants them: float0 for what is not inexact."""

    def tangent(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.zeros(x.shape, jax.dtypes.float0)

    return jtu.tree_map(tangent, tree)


def replay_forward(
    replay: Replay, residuals: Sequence[Array], tangents: Sequence[Array]
) -> list[Array]:
    """The tangents of a solve's outputs, for one lane."""

    def run(residuals: Sequence[Array], tangents: Sequence[Array], *, many: bool) -> list[Array]:
        given: Residuals = jtu.tree_unflatten(replay.residual_structure, residuals)
        return jtu.tree_leaves(_Forward(replay, given, tangents, many=many).run())

    return one_or_many(
        partial(run, many=False),
        partial(run, many=True),
        list(residuals),
        list(tangents),
        native=replay.plan.small,
        tangents=True,
    )
