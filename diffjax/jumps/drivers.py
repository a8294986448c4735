"""Loops over jumps or leaps, and what is saved on the way.

The state is constant but for its jumps, so saving is copying it at the right moment: as long as the
process says that it holds at the time that is due.
"""

from typing import Any, NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..stepping.trees import nan_like, where
from ..varying import mesh_axes, vary_alike, vary_over
from .base import Advance, Carry, Process
from .channels import Leaves


class Rows(NamedTuple):
    """What was saved: states by leaf, and of every jump or leap the time and which it was."""

    u: Leaves
    t: Array | None = None
    which: Array | None = None


def _varying(advance: Advance) -> Advance:
    """Constants that a jump gives back vary over the mesh axes of what it was given."""
    return lambda c, t: vary_over(mesh_axes(c), advance(c, t))


def to_saves(
    process: Process[Carry], saves: Float[Array, " saves"], end: Array, advance: Advance
) -> tuple[Carry, Rows]:
    """One path: up to each save time in turn, then to the end."""
    carry, advance = vary_alike((process.init(), saves, end))[0], _varying(advance)

    def until(c: Carry, t: Array) -> Carry:
        return jax.lax.while_loop(
            lambda c: process.active(c) & ~process.holds(c, t), lambda c: advance(c, t), c
        )

    def to_save(c: Carry, t: Array) -> tuple[Carry, Leaves]:
        c = until(c, t)
        held = process.holds(c, t)
        return c, [jnp.where(held, x, nan_like(x)) for x in process.state(c)]

    carry, rows = jax.lax.scan(to_save, carry, saves)
    carry = jax.lax.while_loop(process.active, lambda c: advance(c, end), carry)
    return carry, Rows(rows)


class _Saving(NamedTuple):
    carry: Any
    saved: Int[Array, ""]
    rows: Leaves


def to_saves_together(
    process: Process[Carry], saves: Float[Array, " saves"], end: Array, advance: Advance
) -> tuple[Carry, Rows]:
    """Many paths in one loop, none of which waits for another at a save time."""
    count, advance = saves.shape[0], _varying(advance)
    schedule = jnp.concatenate([saves, jnp.full(1, jnp.inf, saves.dtype)])
    carry = process.init()
    blank = [jnp.broadcast_to(nan_like(x), (count, *x.shape)) for x in process.state(carry)]
    loop = _Saving(carry, jnp.zeros((), jnp.int32), blank)
    loop = vary_alike((loop, saves, end))[0]

    def due(loop: _Saving) -> Array:
        return (loop.saved < count) & process.holds(loop.carry, schedule[loop.saved])

    def pending(loop: _Saving) -> Array:
        return eqxi.unvmap_any(process.active(loop.carry) | due(loop))

    def turn(loop: _Saving) -> _Saving:
        c, now = loop.carry, due(loop)
        # Lanes that have nothing to save write nowhere.
        place = jnp.where(now, loop.saved, count)
        pairs = zip(loop.rows, process.state(c), strict=True)
        rows = [x.at[place].set(row, mode="drop") for x, row in pairs]
        loop = _Saving(c, loop.saved + now.astype(jnp.int32), rows)
        t = schedule[loop.saved]
        go = process.active(c) & ~due(loop)
        return loop._replace(carry=where(go, advance(c, jnp.minimum(t, end)), c))

    loop = jax.lax.while_loop(pending, turn, loop)
    return loop.carry, Rows(loop.rows)


class _Tracing(NamedTuple):
    carry: Any
    rows: Rows


def every_row(
    process: Process[Carry], length: int, end: Array, advance: Advance, *, many: bool
) -> tuple[Carry, Rows]:
    """Every jump or leap, in so many rows behind the start; and a last one for the end."""
    carry, advance = process.init(), _varying(advance)

    def write(rows: Rows, carry: Carry, number: Array) -> Rows:
        new = Rows(process.state(carry), *process.last(carry))

        def put(buffer: Array, row: Array) -> Array:
            if many:
                return buffer.at[number].set(row, mode="drop")
            return jax.lax.dynamic_update_index_in_dim(buffer, row, number, 0)

        return jax.tree.map(put, rows, new)

    first = Rows(process.state(carry), *process.last(carry))
    blank = jax.tree.map(lambda x: jnp.broadcast_to(nan_like(x), (length + 2, *x.shape)), first)
    rows = write(blank, carry, jnp.zeros((), jnp.int32))
    loop = vary_alike((_Tracing(carry, rows), end))[0]

    def pending(loop: _Tracing) -> Array:
        active = process.active(loop.carry)
        return eqxi.unvmap_any(active) if many else active

    def turn(loop: _Tracing) -> _Tracing:
        c = advance(loop.carry, end)
        if many:
            c = where(process.active(loop.carry), c, loop.carry)
        return _Tracing(c, write(loop.rows, c, process.rows(c)))

    loop = jax.lax.while_loop(pending, turn, loop)
    return loop.carry, loop.rows
