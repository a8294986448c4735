"""How many trajectories are solved side by side."""

import math
from typing import Any

import jax.tree_util as jtu
from jaxtyping import PyTree

CACHE = 2**21


def size_of(tree: PyTree) -> int:
    """Bytes of all leaves."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jtu.tree_leaves(tree))


def tiling(count: int, most: int) -> tuple[int, int]:
    """The size and the number of tiles, of even size, that hold `count` trajectories."""
    number = -(-count // most)
    return -(-count // number), number


def tile_size(kept: PyTree, prob: Any) -> int:
    """The most trajectories to solve side by side, from what is kept of one."""
    return max(CACHE // size_of(kept), 1)
