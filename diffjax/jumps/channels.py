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
from ..stepping.varying import mesh_axes, vary_over
from .mass_action import Reactions, add_to_species, species_of

Leaves = list[Array]


class ChannelArgs(NamedTuple):
    """What the traced functions take beside time and state."""

    rates: tuple[Array, ...]
    bounds: tuple[Array, ...]
    affects: tuple[Array, ...]


@dataclass(frozen=True, eq=False)
class Channels:
    """All jumps of a problem; channels are numbered in the order of the jumps.

    - `count`: how many; `dtype`: of their rates, and of time.
    - `rate_jaxpr`, `affect_jaxpr`: all rates, and all affects, of which one is chosen.
    - `bound_jaxpr`: bounds of the rates and for how long they hold; None if the rates are constant.
    """

    count: int
    dtype: Any
    rate_jaxpr: Any
    bound_jaxpr: Any
    affect_jaxpr: Any

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


class _View(NamedTuple):
    """One jump as a number of channels; all functions take the user's u, p and t.

    - `rates`, and `bounds` (if they change between jumps): of shape (width,).
    - `interval`: for how long the bounds hold, or None.
    - `affect`: `affect(u, p, t, index, words) -> u`, the words being those of a key.
    """

    width: int
    rates: Callable[[Any, Any, Any], Array]
    affect: Callable[..., PyTree]
    bounds: Callable[[Any, Any, Any], Array] | None = None
    interval: Callable[[Any, Any, Any], Array] | None = None


def trace_channels(
    jumps: Sequence[Jump], u: PyTree, p: Parts, t: Array, *, thin: bool
) -> tuple[Channels, ChannelArgs]:
    """The jumps of a problem on the leaves of a state; the dtype of `t` is that of all rates.

    With `thin`, rates that change between jumps have bounds.

    **Raises:** `TypeError` or `ValueError` for a rate or an affect that does not fit the state.
    """
    parameters, held = jtu.tree_flatten(p)
    leaves, structure = jtu.tree_flatten(u)
    dtype = t.dtype
    views = [_view(jump, (u, p.value, t), dtype) for jump in jumps]
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

    def traced(function: Callable[..., Any], *args: Any) -> tuple[Any, tuple[Array, ...]]:
        closed = jax.make_jaxpr(function)(parameters, *args)
        return hoist(closed.jaxpr, (*closed.consts, *map(jnp.asarray, parameters)))

    zeros = jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.uint32)
    index, words = vary_over(mesh_axes((t, leaves)), zeros)
    rate_jaxpr, rate_args = traced(rates, t, *leaves)
    affect_jaxpr, affect_args = traced(affect, index, words, t, *leaves)
    bound_jaxpr, bound_args = None, ()
    if thin and any(view.bounds is not None for view in views):
        bound_jaxpr, bound_args = traced(bounds, t, *leaves)
    channels = Channels(int(starts[-1]), dtype, rate_jaxpr, bound_jaxpr, affect_jaxpr)
    return channels, ChannelArgs(rate_args, bound_args, affect_args)


@singledispatch
def _view(jump: Jump, at: tuple[Any, Any, Any], dtype: Any) -> _View:
    """A jump as channels, judged at one state, value of p and time."""
    raise TypeError(f"jumps of kind {type(jump).__name__} have no rates.")


@_view.register
def _(jump: ConstantRateJump, at: tuple[Any, Any, Any], dtype: Any) -> _View:
    shape = _rate_shape("rate", jump.rate, at)
    width = math.prod(shape)
    return _View(width, _vector("rate", jump.rate, dtype, shape), _affect(jump.affect, shape))


@_view.register
def _(jump: VariableRateJump, at: tuple[Any, Any, Any], dtype: Any) -> _View:
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
    return _View(width, rates, affect, bounds, interval)


@_view.register
def _(jump: MassActionJump, at: tuple[Any, Any, Any], dtype: Any) -> _View:
    reactions = Reactions(jump, at[0], dtype)

    def affect(u: PyTree, p: PyTree, t: Any, index: Array, words: Array) -> PyTree:
        return reactions.after(u, index)

    return _View(reactions.count, lambda u, p, t: reactions.rates(u, p), affect)


@_view.register
def _(jump: RegularJump, at: tuple[Any, Any, Any], dtype: Any) -> _View:
    shape = _rate_shape("rate", jump.rate, at)
    width = math.prod(shape)
    change = regular_change(jump, at[0], width)

    def affect(u: PyTree, p: PyTree, t: Any, index: Array, words: Array) -> PyTree:
        return change(u, p, t, (jnp.arange(width) == index).astype(jnp.int32))

    return _View(width, _vector("rate", jump.rate, dtype, shape), affect)


def regular_change(jump: RegularJump, u: PyTree, width: int) -> Callable[..., PyTree]:
    """What counts of each jump make of the state: `change(u, p, t, counts) -> u`."""
    given = jump.change
    if callable(given):

        def changed(u: PyTree, p: PyTree, t: Any, counts: Array) -> PyTree:
            du = checked(given(u, p, t, counts), u, "change")
            return jtu.tree_map(jnp.add, u, du)

        return changed
    shape = (width, species_of(u))
    if given.shape != shape:
        raise ValueError(
            f"change must be of shape (jumps, species), {shape} with this rate and u0, got "
            f"{given.shape}."
        )
    return lambda u, p, t, counts: add_to_species(
        u, jnp.sum(jnp.asarray(given, counts.dtype) * counts[:, None], axis=0)
    )


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
