"""The `vmap`s around a function whose rules are written by hand.

Which argument is batched at which level is kept apart from the argument, so that one that lanes
share is never copied a lane.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


class Level:
    """One `vmap` around a linear map: its size and, by argument, whether it is batched."""

    def __init__(self, size: int, residuals: tuple[bool, ...], tangents: tuple[bool, ...]) -> None:
        self.size, self.residuals, self.tangents = size, residuals, tangents


class Lanes:
    """Applies a function of one lane to all lanes of the `vmap`s around.

    An argument's flags say at which levels it has a batch axis: True for all of them, False for
    none, or for a list of arrays one tuple of flags each.
    """

    def __init__(self, levels: tuple[Level, ...]) -> None:
        self.sizes = tuple(level.size for level in levels)
        self.all = (True,) * len(levels)

    def __call__(self, fn: Callable[..., Any], *flags: Any) -> Callable[..., Any]:
        for i, size in enumerate(self.sizes):
            axes = tuple(_axes(flag, i) for flag in flags)
            fn = jax.vmap(fn, in_axes=axes, axis_size=size)
        return fn

    def fill(self, x: Array, have: tuple[bool, ...], want: tuple[bool, ...]) -> Array:
        """Give an argument the batch axes that it lacks."""
        for i, size in enumerate(self.sizes):
            if want[i] and not have[i]:
                axis = sum(have[i + 1 :])
                shape = (*x.shape[:axis], size, *x.shape[axis:])
                x = jnp.broadcast_to(jnp.expand_dims(x, axis), shape)
                have = (*have[:i], True, *have[i + 1 :])
        return x

    def reduce(self, x: Array, want: tuple[bool, ...]) -> Array:
        """Sum over the levels at which the result has no batch axis."""
        levels = len(self.sizes)
        axes = tuple(levels - 1 - i for i, flag in enumerate(want) if not flag)
        return jnp.sum(x, axis=axes) if axes else x


def _axes(flag: Any, level: int) -> Any:
    if isinstance(flag, bool):
        return 0 if flag else None
    return [0 if flags[level] else None for flags in flag]
