"""Pytrees of arrays: choosing between two, and replacing some of several."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeVar

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Bool, PyTree

from ..varying import mesh_axes, vary_over

T = TypeVar("T")


def where(condition: bool | Array, yes: PyTree, no: PyTree) -> PyTree:
    """`yes` or `no`, of the same types, by one scalar condition; one of two arrays may be a number.

    By `lax`: the first use of a function or an operator of `jax.numpy` on some types takes a third
    of a millisecond to trace, and the control of steps would need a hundred of them.
    """

    def select(x: Any, y: Any) -> Array:
        x = x if hasattr(x, "dtype") else number(x, y)
        y = y if hasattr(y, "dtype") else number(y, x)
        if isinstance(condition, bool):
            return x if condition else y
        return lax.select(condition, x, y)

    return jtu.tree_map(select, yes, no)


def number(value: float, like: Array) -> Any:
    """A number in the shape and dtype of an array."""
    return lax.full_like(like, value) if like.ndim else like.dtype.type(value)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether all numbers are finite."""

    def finite(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            return finite(lax.real(x)) & finite(lax.imag(x))
        return lax.reduce_and(lax.is_finite(x), tuple(range(x.ndim)))

    return reduce(lax.bitwise_and, map(finite, jtu.tree_leaves(tree)))


def chosen(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """`yes` or `no` by a condition whose axes are the first of every leaf of theirs."""

    def choose(a: Array, b: Array) -> Array:
        shape = condition.shape + (1,) * (a.ndim - condition.ndim)
        return jnp.where(condition.reshape(shape), a, b)

    return jtu.tree_map(choose, yes, no)


def nan_like(x: Array) -> Any:
    """NaN in the shape of `x`; zero where its dtype has no NaN."""
    fill = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
    return number(fill, x)


def replaced(values: Sequence[Array], where: Sequence[int], new: Sequence[Array]) -> list[Array]:
    """A copy of a list with some of its values replaced."""
    full = list(values)
    for i, value in zip(where, new, strict=True):
        full[i] = value
    return full


def sum_of_rows(x: Array, count: Array) -> Array:
    """The sum of the first rows, which are few.

    A loop: a sum over thousands of rows XLA's CPU backend hands to a library, which no native
    function can hold.
    """
    return jax.lax.fori_loop(0, count, lambda i, total: total + x[i], jnp.zeros_like(x[0]))


def largest(x: Array) -> Array:
    """The largest absolute value; zero if there is none. By its place, for the same reason."""
    if not x.size:
        return jnp.zeros((), x.real.dtype)
    sizes = jnp.abs(x).reshape(-1)
    return sizes[jnp.argmax(sizes)]


# Vectors up to this length are taken apart.
_SHORT = 8


class Apart:
    """How to take apart what a loop over many lanes carries: short vectors into their elements.

    Under `vmap` a vector of two becomes an array (lanes, 2), among whose rows XLA's CPU backend
    does not vectorise a choice lane by lane; among the elements of all lanes it does.
    """

    def __init__(self, like: PyTree) -> None:
        leaves, self.structure = jtu.tree_flatten(like)
        self.short = [
            x.ndim == 1 and 0 < x.size <= _SHORT and jnp.issubdtype(x.dtype, jnp.inexact)
            for x in leaves
        ]

    def split(self, tree: PyTree) -> list[PyTree]:
        """The leaves, of short vectors a tuple of their elements."""
        pairs = zip(jtu.tree_leaves(tree), self.short, strict=True)
        return [tuple(x) if short else x for x, short in pairs]

    def join(self, parts: list[PyTree]) -> PyTree:
        whole = [jnp.stack(x) if isinstance(x, tuple) else x for x in parts]
        return jtu.tree_unflatten(self.structure, whole)


def when(condition: Array, function: Callable[[T], T], x: T) -> T:
    """`function(x)` if the condition holds, `x` if not.

    A loop of one turn at most: XLA's emitter of whole functions takes no branches. A barrier keeps
    XLA from moving what the loop does, all of which is the same in every turn, out of it.
    """
    leaves, structure = jtu.tree_flatten(x)

    def traced(leaves: list[Array]) -> Any:
        return jax.make_jaxpr(
            lambda *xs: jtu.tree_leaves(function(jtu.tree_unflatten(structure, xs)))
        )(*leaves)

    closed = traced(leaves)
    # What passes a barrier together comes out with the mesh axes of all.
    axes = mesh_axes((leaves, condition, closed.consts))
    if axes:
        condition, leaves = vary_over(axes, (condition, leaves))
        closed = traced(leaves)

    def turn(state: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
        if axes:
            # Constants keep the types that they were traced with.
            (flag, leaves), consts = jax.lax.optimization_barrier(state), closed.consts
        else:
            flag, leaves, consts = jax.lax.optimization_barrier((*state, closed.consts))
        out = jex.jaxpr_as_fun(jex.ClosedJaxpr(closed.jaxpr, consts))(*leaves)
        return ~flag, vary_over(axes, out)

    out = jax.lax.while_loop(lambda state: state[0], turn, (condition, leaves))[1]
    return jtu.tree_unflatten(structure, out)
