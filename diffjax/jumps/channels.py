"""Jumps of all kinds as one list of channels: their rates as one vector, and what each does.

The user's functions are traced once, whatever they close over (`stepping/trace`).
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt32

from ..algorithms.field import evaluate
from ..problems.jump_kinds import (
    ConstantRateJump,
    Jump,
    MassActionJump,
    RegularJump,
    VariableRateJump,
)
from ..problems.parts import Parts
from ..stepping.trace import checked, hoist
from ..varying import mesh_axes, vary_over
from .mass_action import Reactions, add, change_by, species_of

Leaves = list[Array]


class ChannelArgs(NamedTuple):
    """What the traced functions take beside time and state."""

    rates: tuple[Array, ...]
    bounds: tuple[Array, ...]
    affects: tuple[Array, ...]
    changes: tuple[Array, ...]


@dataclass(frozen=True, eq=False)
class Channels:
    """All jumps of a problem; channels are numbered in the order of the jumps.

    - `count`: how many; `dtype`: of their rates, and of time.
    - `rate_jaxpr`, `affect_jaxpr`: all rates, and all affects, of which one is chosen.
    - `bound_jaxpr`: bounds of the rates and for how long they hold; None if the rates are constant.
    - `change_jaxpr`: what is added by many jumps at once; None if that was not asked for.
    - `reactants`, `net_change`: of all reactions, of shape (count, species); None if there are
        jumps of another kind.
    """

    count: int
    dtype: Any
    rate_jaxpr: Any
    bound_jaxpr: Any
    affect_jaxpr: Any
    change_jaxpr: Any
    reactants: np.ndarray | None
    net_change: np.ndarray | None

    @property
    def traced(self) -> tuple[Any, ...]:
        """All jaxprs."""
        jaxprs = (self.rate_jaxpr, self.bound_jaxpr, self.affect_jaxpr, self.change_jaxpr)
        return tuple(jaxpr for jaxpr in jaxprs if jaxpr is not None)

    def rates(self, args: ChannelArgs, t: Array, u: Leaves) -> Float[Array, " count"]:
        """How often each jump happens, at this time in this state."""
        return evaluate(self.rate_jaxpr, (), *args.rates, t, *u)[0]

    def bounds(
        self, args: ChannelArgs, t: Array, u: Leaves
    ) -> tuple[Float[Array, " count"], Float[Array, ""] | None]:
        """Rates that are not exceeded from now on, and for how long (None: for ever)."""
        if self.bound_jaxpr is None:
            return self.rates(args, t, u), None
        bounds, horizon = evaluate(self.bound_jaxpr, (), *args.bounds, t, *u)
        return bounds, horizon

    def affect(
        self, args: ChannelArgs, index: Int[Array, ""], words: UInt32[Array, " 2"], t: Array, u: Any
    ) -> Leaves:
        """The state after a jump; `words` are those of a key, for affects that are random."""
        return evaluate(self.affect_jaxpr, (), *args.affects, index, words, t, *u)

    def after(self, args: ChannelArgs, counts: Int[Array, " count"], t: Array, u: Leaves) -> Leaves:
        """The state after so many jumps of each kind at once."""
        change = evaluate(self.change_jaxpr, (), *args.changes, counts, t, *u)
        return [x + dx for x, dx in zip(u, change, strict=True)]


class View(NamedTuple):
    """One jump as a number of channels; all functions take the user's u, p and t.

    - `rates`, and `bounds` (if they change between jumps): of shape (width,).
    - `interval`: for how long the bounds hold, or None.
    - `affect`: `affect(u, p, t, index, words) -> u`, the words being those of a key.
    - `change`: `change(u, p, t, counts) -> du` of many at once, of kinds that have it.
    """

    width: int
    rates: Callable[[Any, Any, Any], Array]
    affect: Callable[..., PyTree]
    bounds: Callable[[Any, Any, Any], Array] | None = None
    interval: Callable[[Any, Any, Any], Array] | None = None
    change: Callable[..., PyTree] | None = None


def trace_channels(
    jumps: Sequence[Jump], u: PyTree, p: Parts, t: Array, *, leaps: bool
) -> tuple[Channels, ChannelArgs]:
    """The jumps of a problem on the leaves of a state; the dtype of `t` is that of all rates.

    With `leaps`, many jumps are to happen at once; else one after another.

    **Raises:** `TypeError` or `ValueError` for a rate or an affect that does not fit the state.
    """
    parameters, held = jtu.tree_flatten(p)
    leaves, structure = jtu.tree_flatten(u)
    dtype = t.dtype
    views = [view_of(jump, (u, p.value, t), dtype) for jump in jumps]
    starts = np.cumsum([0, *(view.width for view in views)])

    def user(parameters: list[Array], u: Sequence[Array]) -> tuple[PyTree, PyTree]:
        return jtu.tree_unflatten(structure, u), jtu.tree_unflatten(held, parameters).value

    def rates(parameters: list[Array], t: Array, *u: Array) -> Array:
        state, value = user(parameters, u)
        return jnp.concatenate([view.rates(state, value, t) for view in views])

    def bounds(parameters: list[Array], t: Array, *u: Array) -> tuple[Array, Array]:
        state, value = user(parameters, u)
        found = [(view.bounds or view.rates)(state, value, t) for view in views]
        ends = [view.interval(state, value, t) for view in views if view.interval is not None]
        horizon = jnp.full((), jnp.inf, dtype)
        for end in ends:
            horizon = jnp.minimum(horizon, end)
        return jnp.concatenate(found), horizon

    def affect(
        parameters: list[Array], index: Array, words: Array, t: Array, *u: Array
    ) -> Sequence[Array]:
        state, value = user(parameters, u)
        new = list(u)
        for view, start in zip(views, starts, strict=False):
            inside = jnp.clip(index - int(start), 0, view.width - 1)
            after = checked(view.affect(state, value, t, inside, words), state, "affect")
            mine = (index >= int(start)) & (index < int(start) + view.width)
            pairs = zip(jtu.tree_leaves(after), new, strict=True)
            new = [jnp.where(mine, x, old) for x, old in pairs]
        return new

    def changes(parameters: list[Array], counts: Array, t: Array, *u: Array) -> Sequence[Array]:
        state, value = user(parameters, u)
        total = [jnp.zeros_like(x) for x in u]
        for view, start in zip(views, starts, strict=False):
            assert view.change is not None
            mine = counts[int(start) : int(start) + view.width]
            change = jtu.tree_leaves(view.change(state, value, t, mine))
            total = [x + dx for x, dx in zip(total, change, strict=True)]
        return total

    def traced(function: Callable[..., Any], *args: Any) -> tuple[Any, tuple[Array, ...]]:
        closed = jax.make_jaxpr(function)(parameters, *args)
        return hoist(closed.jaxpr, (*closed.consts, *map(jnp.asarray, parameters)))

    zeros = jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.uint32)
    index, words = vary_over(mesh_axes((t, leaves)), zeros)
    none: tuple[Any, tuple[Array, ...]] = (None, ())
    bounded = any(view.bounds is not None for view in views)
    counts = jnp.zeros(int(starts[-1]), jnp.int32) + index
    found = (
        traced(rates, t, *leaves),
        traced(bounds, t, *leaves) if bounded else none,
        none if leaps else traced(affect, index, words, t, *leaves),
        traced(changes, counts, t, *leaves) if leaps else none,
    )
    jaxprs, args = zip(*found, strict=True)
    return Channels(int(starts[-1]), dtype, *jaxprs, *_tables(jumps)), ChannelArgs(*args)


def _tables(jumps: Sequence[Jump]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Reactants and net changes of all reactions, if all jumps are reactions."""
    reactions = [jump for jump in jumps if isinstance(jump, MassActionJump)]
    if len(reactions) < len(jumps):
        return None, None
    reactants = np.concatenate([jump.reactants for jump in reactions])
    return reactants, np.concatenate([jump.net_change for jump in reactions])


@singledispatch
def view_of(jump: Jump, at: tuple[Any, Any, Any], dtype: Any) -> View:
    """A jump as channels, judged at one state, value of p and time."""
    raise TypeError(f"jumps of kind {type(jump).__name__} have no rates.")


@view_of.register
def _(jump: ConstantRateJump, at: tuple[Any, Any, Any], dtype: Any) -> View:
    shape = _rate_shape("rate", jump.rate, at)
    width = math.prod(shape)
    return View(width, _vector("rate", jump.rate, dtype, shape), _affect(jump.affect, shape))


@view_of.register
def _(jump: VariableRateJump, at: tuple[Any, Any, Any], dtype: Any) -> View:
    shape = _rate_shape("rate", jump.rate, at)
    width = math.prod(shape)
    bounds, interval = None, None
    if jump.urate is not None:
        if _rate_shape("urate", jump.urate, at) not in ((), shape):
            raise ValueError(f"urate must be a scalar or of the shape of rate, {shape}.")
        bounds = _vector("urate", jump.urate, dtype, shape)
    if jump.rateinterval is not None:
        interval = _scalar("rateinterval", jump.rateinterval, dtype)
    rates, affect = _vector("rate", jump.rate, dtype, shape), _affect(jump.affect, shape)
    return View(width, rates, affect, bounds, interval)


@view_of.register
def _(jump: MassActionJump, at: tuple[Any, Any, Any], dtype: Any) -> View:
    reactions = Reactions(jump, at[0], dtype)

    def affect(u: PyTree, p: PyTree, t: Any, index: Array, words: Array) -> PyTree:
        return add(u, reactions.change_of(u, index))

    def change(u: PyTree, p: PyTree, t: Any, counts: Array) -> PyTree:
        return change_by(u, reactions.net_change, counts)

    rates = lambda u, p, t: reactions.rates(u, p)  # noqa: E731
    return View(reactions.count, rates, affect, change=change)


@view_of.register
def _(jump: RegularJump, at: tuple[Any, Any, Any], dtype: Any) -> View:
    shape = _rate_shape("rate", jump.rate, at)
    width = math.prod(shape)
    change = _regular_change(jump, at[0], width)

    def affect(u: PyTree, p: PyTree, t: Any, index: Array, words: Array) -> PyTree:
        one = (jnp.arange(width, dtype=index.dtype) == index).astype(jnp.int32)
        return add(u, change(u, p, t, one))

    return View(width, _vector("rate", jump.rate, dtype, shape), affect, change=change)


def _regular_change(jump: RegularJump, u: PyTree, width: int) -> Callable[..., PyTree]:
    """What counts of each jump add to the state: `change(u, p, t, counts) -> du`."""
    given = jump.change
    if callable(given):
        return lambda u, p, t, counts: checked(given(u, p, t, counts), u, "change")
    shape = (width, species_of(u))
    if given.shape != shape:
        raise ValueError(
            f"change must be of shape (jumps, species), {shape} with this rate and u0, got "
            f"{given.shape}."
        )
    return lambda u, p, t, counts: change_by(u, given, counts)


def _rate_shape(name: str, rate: Callable[..., Any], at: tuple[Any, Any, Any]) -> tuple[int, ...]:
    # Traced, not `eval_shape`: parameters may hold what is no array.
    shape = jnp.shape(jax.eval_shape(lambda: jnp.asarray(rate(*at))))
    if len(shape) > 1 or 0 in shape:
        raise ValueError(
            f"{name} must return a scalar, or an array of shape (m,) for m jumps; got shape "
            f"{shape}."
        )
    return shape


def _vector(
    name: str, rate: Callable[..., Any], dtype: Any, shape: tuple[int, ...]
) -> Callable[..., Array]:
    width = math.prod(shape)

    def vector(u: PyTree, p: PyTree, t: Any) -> Array:
        value = jnp.asarray(rate(u, p, t))
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise TypeError(f"{name} must return real numbers, got dtype {value.dtype}.")
        return jnp.broadcast_to(value.astype(dtype), (width,))

    return vector


def _scalar(name: str, function: Callable[..., Any], dtype: Any) -> Callable[..., Array]:
    def scalar(u: PyTree, p: PyTree, t: Any) -> Array:
        value = jnp.asarray(function(u, p, t))
        if value.ndim:
            raise ValueError(f"{name} must return a scalar, got shape {value.shape}.")
        return value.astype(dtype)

    return scalar


def _affect(affect: Callable[..., PyTree], shape: tuple[int, ...]) -> Callable[..., PyTree]:
    """`affect(u, p, t, index, words)`, whatever the user's takes of index and key."""
    least = 3 + len(shape)
    count = _positional(affect)
    count = least if count is None else count
    if count not in (least, least + 1):
        form = "affect(u, p, t, index[, key])" if shape else "affect(u, p, t[, key])"
        raise TypeError(
            f"affect must be {form} for a rate of shape {shape}, got a function of {count} "
            "arguments."
        )

    def called(u: PyTree, p: PyTree, t: Any, index: Array, words: Array) -> PyTree:
        extra = [index] if shape else []
        if count > least:
            extra.append(jax.random.wrap_key_data(words, impl="threefry2x32"))
        return affect(u, p, t, *extra)

    return called


def _positional(function: Callable[..., Any]) -> int | None:
    """How many arguments without a default a function takes by position; None if it hides them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(x.kind is x.VAR_POSITIONAL for x in parameters):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(x.kind in kinds and x.default is x.empty for x in parameters)
