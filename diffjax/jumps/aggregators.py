"""Which of several jumps comes next, and when.

All of these are exact. Rates are looked at all together, since a vector of them costs little more
than one; so a search through sorted rates (McCollum et al., The sorting direct method, Comput.
Biol. Chem. 30 (2006)), which saves looking at some, has nothing to save here.

Random numbers are made by counting (`noise/random`), so a path is a function of the key.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, UInt32

from ..noise.random import exponential, threefry, uniform

# The second counter of a random number says what it is for; those of jumps are their numbers + 1.
_NEXT = 0
# Up to this many rates are added up one after another, more of them in as many groups.
_GROUPS = 32

Words = UInt32[Array, " 2"]


class Draw(NamedTuple):
    """The next jump: after which wait, which (-1: none, rates must be looked at anew), and what the
    aggregator remembers after that."""

    wait: Float[Array, ""]
    which: Int[Array, ""]
    memory: PyTree


class Aggregator(eqx.Module):
    """Base class: how the next of several jumps is found. Equal ones are interchangeable."""

    def start(self, key: Words, count: int, dtype: jnp.dtype) -> PyTree:
        """What it remembers before the first of `count` jumps."""
        return ()

    def next(
        self,
        key: Words,
        number: UInt32[Array, ""],
        rates: Float[Array, " m"],
        horizon: Float[Array, ""] | None,
        memory: PyTree,
    ) -> Draw:
        """Draw `number` of a path, from rates that hold for a time `horizon` (None: for ever)."""
        raise NotImplementedError


class Direct(Aggregator):
    """Gillespie's direct method: one wait for the sum of the rates, then which jump it was.

    Two random numbers a jump. The default.

    Source: Gillespie, Exact stochastic simulation of coupled chemical reactions, J. Phys. Chem. 81
    (1977), equations (21).

    !!! example
        `dj.JumpProblem(prob, *jumps, aggregator=dj.Direct())`
    """

    def next(self, key, number, rates, horizon, memory) -> Draw:
        first, second = threefry(key, number, jnp.full_like(number, _NEXT))
        index, total = find(rates, uniform(second, rates.dtype))
        wait = exponential(first, rates.dtype) / total
        return Draw(*_within(wait, index, horizon), memory)


class FirstReaction(Aggregator):
    """Gillespie's first-reaction method: a wait for every jump, of which the shortest counts.

    As many random numbers a jump as there are jumps; the textbook's method, to compare with.

    Source: Gillespie, A general method for numerically simulating the stochastic time evolution of
    coupled chemical reactions, J. Comput. Phys. 22 (1976), section 4.

    !!! example
        `dj.JumpProblem(prob, *jumps, aggregator=dj.FirstReaction())`
    """

    def next(self, key, number, rates, horizon, memory) -> Draw:
        waits = _clocks(key, number, rates) / rates
        index = jnp.argmin(waits).astype(jnp.int32)
        return Draw(*_within(jnp.min(waits), index, horizon), memory)


class NextReaction(Aggregator):
    """The next-reaction method: every jump has a unit Poisson process of its own, whose clock runs
    at the jump's rate.

    One random number a jump. With the same key, paths of nearby parameters share these processes
    and stay close (the common reaction paths of Rathinam, Sheppard and Khammash, J. Chem. Phys. 132
    (2010)): the difference of two of them has little variance.

    Source: Gibson and Bruck, J. Phys. Chem. A 104 (2000), in the form of Anderson, A modified next
    reaction method, J. Chem. Phys. 127 (2007), algorithm 3.

    !!! example
        `dj.JumpProblem(prob, *jumps, aggregator=dj.NextReaction())`
    """

    def start(self, key: Words, count: int, dtype: jnp.dtype) -> PyTree:
        fired = jnp.zeros(count, jnp.uint32)
        return _clocks(key, fired, jnp.zeros(count, dtype)), fired

    def next(self, key, number, rates, horizon, memory) -> Draw:
        left, fired = memory
        runs = rates != 0
        waits = jnp.where(runs, left / jnp.where(runs, rates, 1), jnp.inf)
        index = jnp.argmin(waits).astype(jnp.int32)
        wait, index = _within(jnp.min(waits), index, horizon)
        hit = jnp.arange(rates.shape[0], dtype=jnp.int32) == index
        fired = fired + hit.astype(jnp.uint32)
        passed = jnp.where(runs, rates * jnp.where(jnp.isfinite(wait), wait, 0), 0)
        left = jnp.where(hit, _clocks(key, fired, rates), jnp.maximum(left - passed, 0))
        return Draw(wait, index, (left, fired))


def find(
    rates: Float[Array, " m"], fraction: Float[Array, ""]
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """The index at which the cumulative sum of the rates passes a fraction of their sum, and that.

    It is never one whose rate is zero, unless all are.
    """
    count = rates.shape[0]
    width = -(-count // _GROUPS)
    groups, sums = rates[:, None], rates
    if width > 1:
        filled = jnp.concatenate([rates, jnp.zeros(_GROUPS * width - count, rates.dtype)])
        groups = filled.reshape(_GROUPS, width)
        sums = jnp.sum(groups, axis=1)
    partial = [sums[0]]
    for i in range(1, sums.shape[0]):
        partial.append(partial[-1] + sums[i])
    total = partial[-1]
    passed = fraction * total
    index, below = jnp.zeros((), jnp.int32), jnp.zeros((), rates.dtype)
    for value in partial[:-1]:
        index = index + (value <= passed).astype(jnp.int32)
        below = jnp.where(value <= passed, value, below)
    if width == 1:
        return index, total
    group = jax.lax.dynamic_index_in_dim(groups, index, keepdims=False)
    size = jax.lax.dynamic_index_in_dim(sums, index, keepdims=False)
    # What is left of the fraction, which is as uniform within the group as it was in all of them.
    left = (passed - below) / jnp.where(size > 0, size, 1)
    inner, _ = find(group, jnp.clip(left, 0, 1 - jnp.finfo(rates.dtype).eps))
    return index * width + inner, total


def _clocks(key: Words, number: UInt32[Array, "..."], rates: Array) -> Float[Array, " m"]:
    """An exponential number for every jump."""
    places = jnp.arange(1, rates.shape[0] + 1, dtype=jnp.uint32)
    first, _ = threefry(key, jnp.broadcast_to(number, places.shape), places)
    return exponential(first, rates.dtype)


def _within(wait: Array, index: Array, horizon: Array | None) -> tuple[Array, Array]:
    """The wait and the jump, or the horizon and none if that comes first."""
    if horizon is None:
        return wait, index
    late = wait > horizon
    return jnp.where(late, horizon, wait), jnp.where(late, -1, index)
