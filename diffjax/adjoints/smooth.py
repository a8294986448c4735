"""Telling the part of an outcome that carries a derivative from the part that does not."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from ..stepping.outcome import Outcome
from ..stepping.plan import Inputs
from ..stepping.tape import Snapshots, Tape
from ..stepping.trees import chosen, nan_like
from ..varying import mesh_axes


class Smooth(NamedTuple):
    """The part of an outcome that carries a derivative; `history` is what is remembered at the
    end, `log` when the events were and the states before and after them."""

    rows: list[Array] | None
    u_end: PyTree
    t_end: Array
    tape_t: Array | None
    tape_u: PyTree
    tape_history: PyTree
    history: PyTree
    log: PyTree = None


def names_of(inputs: Inputs) -> list[str]:
    """The field of `Inputs` that each of its leaves belongs to."""
    fields = [
        jtu.tree_map(lambda _, name=name: name, value)
        for name, value in zip(inputs._fields, inputs, strict=True)
    ]
    return jtu.tree_leaves(Inputs(*fields))


TIMES = ("t0", "t1", "saves", "stops", "grid")


def check_times(inputs: Inputs, moving: list[str]) -> None:
    """Raise if a derivative by times is asked for where there is none."""
    noise, times = inputs.noise, [name for name in moving if name in TIMES]
    if noise is not None and times and not noise.has_times:
        raise ValueError(
            "a Brownian path has no derivative by time, so neither has a stochastic solve with "
            "adaptive steps or a path= by its span, save times or stops; take fixed steps and "
            "key=, whose noise scales with the span, or jax.lax.stop_gradient of the times."
        )


def no_tangent(x: Array) -> Any:
    if _is_inexact(x):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


class Counters:
    """Carries integers through a `custom_jvp` inside `shard_map`.

    There the tangent of an integer must have a type that varies over the mesh like the integer
    itself, which no float0 array can have; so integers travel as floats, exact up to 2**24 (2**53
    in double precision).
    """

    def __init__(self) -> None:
        self.dtypes: list[Any] = []

    def pack(self, tree: PyTree) -> PyTree:
        self.dtypes = [x.dtype for x in jtu.tree_leaves(tree)]
        if not mesh_axes(tree):
            return tree
        return jtu.tree_map(lambda x: x if _is_inexact(x) else x.astype(float), tree)

    def unpack(self, tree: PyTree) -> PyTree:
        leaves, structure = jtu.tree_flatten(tree)
        back = [x.astype(dtype) for x, dtype in zip(leaves, self.dtypes, strict=True)]
        return jtu.tree_unflatten(structure, back)


def _is_inexact(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def reached(rows: list[Array] | None, saved: Array | None) -> list[Array] | None:
    """Tangents of saves, NaN for those that were not reached, like the saves themselves."""
    if rows is None or saved is None:
        return rows
    kept = jnp.arange(rows[0].shape[0], dtype=saved.dtype) < saved
    return [chosen(kept, x, nan_like(x)) for x in rows]


def split(outcome: Outcome) -> tuple[Smooth, Outcome]:
    tape = outcome.tape
    t, u, history = None, None, None
    if isinstance(tape, Tape):
        t, u = tape.t, tape.u
        if tape.past is not None:
            history = tape.past.history
            tape = tape._replace(past=tape.past._replace(history=None))
        tape = tape._replace(t=None, u=None)
    elif isinstance(tape, Snapshots):
        carry = tape.carry
        t, u, history = getattr(carry, "t", None), carry.u, carry.memory.history
        cleared = {"u": None, "memory": carry.memory._replace(history=None)}
        if t is not None:
            cleared["t"] = None
        tape = tape._replace(carry=carry._replace(**cleared))
    memory = outcome.memory
    last = None if memory is None else memory.history
    log, kept = outcome.log, None
    if log is not None:
        kept = (log.t, log.before, log.after)
        log = log._replace(t=None, before=None, after=None)
    smooth = Smooth(outcome.rows, outcome.u_end, outcome.t_end, t, u, history, last, kept)
    memory = None if memory is None else memory._replace(history=None)
    rest = outcome._replace(rows=None, u_end=None, t_end=None, tape=tape, memory=memory, log=log)
    return smooth, rest


def join(smooth: Smooth, rest: Outcome) -> Outcome:
    tape = rest.tape
    if isinstance(tape, Tape):
        tape = tape._replace(t=smooth.tape_t, u=smooth.tape_u)
        if tape.past is not None:
            tape = tape._replace(past=tape.past._replace(history=smooth.tape_history))
    elif isinstance(tape, Snapshots):
        memory = tape.carry.memory._replace(history=smooth.tape_history)
        fields = {"u": smooth.tape_u, "memory": memory}
        if smooth.tape_t is not None:
            fields["t"] = smooth.tape_t
        tape = tape._replace(carry=tape.carry._replace(**fields))
    memory = rest.memory
    memory = None if memory is None else memory._replace(history=smooth.history)
    log = rest.log
    if log is not None:
        t, before, after = smooth.log
        log = log._replace(t=t, before=before, after=after)
    rest = rest._replace(rows=smooth.rows, u_end=smooth.u_end, t_end=smooth.t_end)
    return rest._replace(tape=tape, memory=memory, log=log)
