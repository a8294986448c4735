"""The state of an adjoint equation: several pytrees, carried through the steps as one."""

from typing import Any

import jax.tree_util as jtu
from jaxtyping import PyTree

from ..algorithms.base import State
from ..stepping.layout import Layout


class Packing:
    """Packs the parts of a state that are not empty, and unpacks them.

    Small parts become one vector per dtype, since XLA pays for every leaf that a loop carries;
    large ones stay as they are, since raveling would copy them.
    """

    def __init__(self, parts: PyTree, *, small: bool) -> None:
        leaves, self.structure = jtu.tree_flatten(parts)
        self.layout = Layout(leaves) if small else None

    def pack(self, parts: PyTree) -> State:
        leaves = jtu.tree_leaves(parts)
        return tuple(leaves) if self.layout is None else self.layout.ravel(leaves)

    def unpack(self, state: State) -> Any:
        leaves = jtu.tree_leaves(state) if self.layout is None else self.layout.unravel(state)
        return jtu.tree_unflatten(self.structure, leaves)
