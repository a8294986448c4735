"""The record of a solve that its derivative is computed from.

A tape row is one step `(t, dt, u)`; what happened inside it is recomputed when it is replayed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, PyTree

from ..algorithms.base import Memory
from ..events.transition import StepEvents
from .plan import Inputs
from .stepper import Record, Stepper


def put(buffer: Array, row: Array, number: Array) -> Array:
    """Write one row; the number must lie inside the buffer."""
    return jax.lax.dynamic_update_index_in_dim(buffer, row, number, 0)


class Tape(NamedTuple):
    """Steps in order of time.

    Row k is the step that starts at `t[k]` in state `u[k]`; one row more is the end of the last.
    `u` is None on a tape of times alone. `landed` is the stop a step was cut to end on, -1 if none;
    it is kept only for a derivative with respect to times. `past` is the lasting memory that a step
    was taken with; of most methods it has no leaves. `events` are those at the end of a
    step; None for a solve without any.
    """

    t: Float[Array, " rows+1"]
    dt: Float[Array, " rows+1"]
    u: PyTree
    past: Memory | None
    landed: Int[Array, " rows+1"] | None
    used: Int[Array, ""]
    events: StepEvents | None = None

    def write(self, number: Array, record: Record) -> "Tape":
        """Row `number`; a rejected step's row is overwritten by the next attempt's."""
        step = record.step
        return self._replace(
            t=put(self.t, step.t, number),
            dt=put(self.dt, jnp.where(record.accepted, step.dt, 0), number),
            u=self._with_state(step.u, number),
            past=self._with_past(step.past, number),
            landed=None if self.landed is None else put(self.landed, record.landed, number),
            events=jtu.tree_map(lambda x, row: put(x, row, number), self.events, record.events),
        )

    def close(self, used: Array, stepper: Stepper[Any], carry: Any) -> "Tape":
        """Add the point at which the last step ended."""
        return self._replace(
            t=put(self.t, stepper.time(carry), used),
            u=self._with_state(stepper.state(carry), used),
            past=self._with_past(carry.memory.lasting, used),
            used=used,
        )

    def _with_state(self, u: PyTree, number: Array) -> PyTree:
        if self.u is None:
            return None
        return jtu.tree_map(lambda buffer, x: put(buffer, x, number), self.u, u)

    def _with_past(self, past: Memory, number: Array) -> Memory | None:
        if self.past is None:
            return None
        return jtu.tree_map(lambda buffer, x: put(buffer, x, number), self.past, past)


def new_tape(
    length: int,
    inputs: Inputs,
    past: Memory | None,
    *,
    landings: bool,
    states: bool,
    callbacks: int | None,
) -> Tape:
    """Rows for so many steps, at whose ends that many callbacks may act; None without any."""
    dtype = inputs.t0.dtype

    def rows(like: PyTree) -> PyTree:
        return jtu.tree_map(lambda x: jnp.zeros((length + 1, *x.shape), x.dtype), like)

    return Tape(
        t=jnp.zeros(length + 1, dtype),
        dt=jnp.zeros(length + 1, dtype),
        u=rows(inputs.u0 if states else None),
        past=rows(past),
        landed=jnp.full(length + 1, -1, jnp.int32) if landings else None,
        used=jnp.zeros((), jnp.int32),
        events=None
        if callbacks is None
        else StepEvents(
            fired=jnp.zeros((length + 1, callbacks), bool),
            number=jnp.zeros(length + 1, jnp.int32),
            beyond=jnp.zeros(length + 1, dtype),
        ),
    )


class Snapshots(NamedTuple):
    """The loop's state at both ends of each segment; the steps between are taken again."""

    carry: PyTree
    used: Int[Array, ""]

    @staticmethod
    def new(segments: int, carry: PyTree) -> "Snapshots":
        rows = jtu.tree_map(lambda x: jnp.zeros((segments, *x.shape), x.dtype), carry)
        return Snapshots(rows, jnp.zeros((), jnp.int32))

    def write(self, number: Array, carry: PyTree) -> "Snapshots":
        rows = jtu.tree_map(lambda buffer, x: put(buffer, x, number), self.carry, carry)
        return self._replace(carry=rows)

    def read(self, number: Array) -> PyTree:
        return jtu.tree_map(lambda buffer: buffer[number], self.carry)
