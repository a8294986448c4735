"""Keeping a user's objects inside problems that plain `jax.jit`, `vmap` and `grad` accept.

JAX's own transformations want every leaf of an argument to be an array, while an equinox network
carries activation functions and flags as leaves too. `Parts` holds the two apart: the arrays are
leaves, the rest is static and compared by value.
"""

from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree


def _is_module(x: Any) -> bool:
    return isinstance(x, eqx.Module)


def is_array(x: Any) -> bool:
    """Arrays, tracers, and what a transformation puts in their place while it rebuilds a tree."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def is_parameter(x: Any) -> bool | PyTree:
    """True for the leaves that a transformation may trace.

    Numbers in a plain tree are parameters; a module's own numbers (a dropout rate) are settings.
    """
    if _is_module(x):
        return jtu.tree_map(is_array, x)
    return is_array(x) or (isinstance(x, int | float | complex) and not isinstance(x, bool))


class Parts(eqx.Module):
    """A pytree with some leaves dynamic and all others static."""

    arrays: PyTree
    rest: tuple[Hashable, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    def __init__(self, tree: PyTree, dynamic: Callable[[Any], bool] | None = None) -> None:
        if dynamic is None:
            mask = jtu.tree_map(is_parameter, tree, is_leaf=_is_module)
        else:
            mask = jtu.tree_map(dynamic, tree)
        self.arrays, static = eqx.partition(tree, mask)
        leaves, self.structure = jtu.tree_flatten(static)
        self.rest = tuple(leaves)

    @property
    def value(self) -> PyTree:
        """The object as the user gave it."""
        return eqx.combine(self.arrays, jtu.tree_unflatten(self.structure, self.rest))


class UserFunction(eqx.Module):
    """A user's function: a callable pytree stays one, a plain function is static."""

    parts: Parts | None
    function: Any = eqx.field(static=True)

    def __init__(self, function: Any) -> None:
        leaves = jtu.tree_leaves(function)
        is_plain = len(leaves) == 1 and leaves[0] is function
        self.parts = None if is_plain else Parts(function)
        self.function = function if is_plain else None

    @property
    def value(self) -> Any:
        return self.function if self.parts is None else self.parts.value
