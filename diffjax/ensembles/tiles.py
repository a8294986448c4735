"""How many trajectories are solved side by side.

On a CPU a tile is as large as what a step works on fits the cache next to a core; what it saves
hardly matters, since each step writes little of it. Measured (2 cores with 1 MiB of L2 each, under
load; microseconds a trajectory by size of tile, Tsit5 at 1e-6):

| state, saves | 25 | 50 | 100 | 250 | 500 | 1000 | 2500 | 10000 |
|---|---|---|---|---|---|---|---|---|
| 2, 101 | | 10 | 7.0 | 6.6 | 8.9 | 6.4 | 8.7 | 19 |
| 2, 1 | | 9.8 | 7.0 | 4.1 | 6.3 | 5.6 | 8.0 | 17 |
| 2, 1001 | 36 | 31 | 29 | 25 | 27 | 25 | | |
| 40, 11 | 142 | 154 | 271 | 333 | 275 | | | |

and for a state of 400 numbers 1.2 ms in tiles of 5, 2.0 in tiles of 10, 5.6 in tiles of 400.

Adaptive steps on a CPU are taken in tiles of some times that size, whose trajectories share as many
lanes as are best: each lane goes on with another one when one has ended (`stepping.refill`). Not so
in a gradient, which keeps a tape of every trajectory of a tile.

Elsewhere a tile goes on until its slowest trajectory has ended. Iterations over what the average
trajectory needs, 6,000 of them in tiles of 600: 1.18 for Lotka-Volterra with rates within 10 %,
2.25 within a factor of 2, 3.9 for Van der Pol with mu from 1 to 100. Sorted by the steps of a solve
at a tolerance of 1e-2 they are 1.15, 1.35 and 1.22, but that solve costs 0.3, 2.6 and 0.8 of the
solve itself (stability, not accuracy, bounds its steps), so sorting does not pay, unless the user
knows what is slow: in an ensemble that is ordered by cost (Van der Pol's by mu) the ratio is 1.2
again.
"""

import math
from typing import Any

import jax.tree_util as jtu
from jaxtyping import PyTree

from ..stepping.refill import is_crowd, lanes_in_cache, step_bytes

# A tile whose lanes are filled again has at most so many trajectories for each of them, of which
# what is kept takes at most so many bytes. A reduction is there to need little memory: its tiles
# are smaller, at the cost of lanes that are idle at the end of each (Lotka-Volterra with 101 saves
# and rates within a factor of 1.4: some 5 % of the time).
_FOR_EACH_LANE, _KEPT = 32, 2**25
_FOR_EACH_LANE_REDUCED, _KEPT_REDUCED = 8, 2**23
# How much of an accelerator's memory a tile may fill, and how much it has if it does not say.
_SHARE = 0.25
_MEMORY = 2**33


def tiling(count: int, most: int) -> tuple[int, int]:
    """The size and the number of tiles, of even size, that hold `count` trajectories."""
    number = -(-count // most)
    return -(-count // number), number


def refilled(
    count: int, most: int, kept: PyTree, reduced: bool, options: dict[str, Any], device: Any
) -> int:
    """The most trajectories, of `count`, in a tile whose `most` lanes are filled again; the same
    number if they are not. What is `kept` of each is `reduced` a tile at a time, or not; `options`
    are the keyword arguments of `solve`."""
    alg = options["alg"]
    fixed = not options["adaptive"] or options["steps"] is not None
    fixed = fixed or (alg is not None and alg.error_order is None)
    each = _FOR_EACH_LANE_REDUCED if reduced else _FOR_EACH_LANE
    held = _KEPT_REDUCED if reduced else _KEPT
    more = min(each * most, held // max(_size(kept), 1), count)
    crowded = not fixed and device.platform == "cpu" and is_crowd(more, most)
    return more if crowded else most


def tile_size(kept: PyTree, state: PyTree, max_steps: int, device: Any) -> int:
    """The most trajectories to solve side by side on a device.

    `kept` is what is kept of one trajectory, `state` its state, shapes and dtypes of both.
    """
    if device.platform == "cpu":
        return lanes_in_cache(state)
    # All that a gradient needs: a tape of states, times and steps.
    lane = step_bytes(state) + _size(kept) + max_steps * (_size(state) + 16)
    memory = (device.memory_stats() or {}).get("bytes_limit", _MEMORY)
    return max(int(_SHARE * memory) // lane, 1)


def _size(tree: PyTree) -> int:
    """Bytes of all leaves."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jtu.tree_leaves(tree))
