"""Exact stochastic simulation: from jump to jump."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from ..noise.random import threefry, uniform
from ..stepping.status import ReturnCode
from ..stepping.trees import where
from .aggregators import Aggregator
from .base import End, JumpAlgorithm, Process, Setting
from .channels import ChannelArgs, Channels, Leaves

# Second counters of random numbers that no aggregator uses.
_ACCEPT, _AFFECT = np.uint32(2**32 - 1), np.uint32(2**32 - 2)
# By how much a rate may exceed its bound, for rounding.
_SLACK = 1e-5
# Up to so many rates are judged by their sum.
_FEW = 32


class SSAStepper(JumpAlgorithm):
    """Exact simulation of a pure jump process, by the aggregator of its `dj.JumpProblem`.

    It takes no tolerance and no step size; a step is a jump (or one that thinning refused). Every
    path has the exact law of the process.

    **Raises** (through `solve`): `TypeError` for a `dj.VariableRateJump` without `urate`. A rate
    that is negative or not finite, or exceeds its `urate`, ends the solve with `event_failed`.

    Sources: those of the aggregators, `dj.Direct` by default. For rates that change between jumps
    Lewis and Shedler, Naval Research Logistics 26 (1979), algorithm 1.

    !!! example
        `dj.solve(dj.JumpProblem(prob, *jumps), dj.SSAStepper(), saveat=1.0, key=jax.random.key(0))`
    """

    def process(self, setting: Setting) -> "ExactProcess":
        return ExactProcess(setting)


class ExactCarry(NamedTuple):
    """`t` is the time of the last jump, `last` its number; the next comes at `next` (`low` is what
    that has lost by rounding), and is number `which`, if it is accepted at `bound`."""

    t: Float[Array, ""]
    last: Int[Array, ""]
    u: Leaves
    next: Float[Array, ""]
    low: Float[Array, ""]
    which: Int[Array, ""]
    bound: Float[Array, ""] | None
    memory: PyTree
    accepted: Int[Array, ""]
    refused: Int[Array, ""]


class ExactProcess(Process[ExactCarry]):
    """Jumps one after another, each drawn when the one before has happened."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.channels: Channels = setting.channels
        self.args: ChannelArgs = setting.args
        self.key: UInt32[Array, " 2"] = setting.key
        self.aggregator: Aggregator = setting.aggregator
        self.thins = self.channels.bound_jaxpr is not None

    def init(self) -> ExactCarry:
        t, zero = self.setting.t0, jnp.zeros((), jnp.int32)
        memory = self.aggregator.start(self.key, self.channels.count, t.dtype)
        none, low, u0 = zero - 1, jnp.zeros_like(t), self.setting.u0
        bound, failed = (jnp.zeros_like(t), jnp.zeros((), bool)) if self.thins else (None, None)
        start = ExactCarry(t, none, u0, t, low, none, bound, memory, zero, zero)
        return self._drawn(start, failed=failed)

    def active(self, c: ExactCarry) -> Bool[Array, ""]:
        done = c.accepted + c.refused
        return (c.next <= self.setting.t1) & (done < self.setting.max_steps)

    def holds(self, c: ExactCarry, t: Array) -> Bool[Array, ""]:
        return t < c.next

    def state(self, c: ExactCarry) -> Leaves:
        return c.u

    def last(self, c: ExactCarry) -> tuple[Array, Array]:
        return c.t, c.last

    def rows(self, c: ExactCarry) -> Int[Array, ""]:
        return c.accepted

    def outcome(self, c: ExactCarry) -> End:
        failed = jnp.where(jnp.isnan(c.next), ReturnCode.event_failed, ReturnCode.max_steps)
        status = jnp.where(c.next > self.setting.t1, ReturnCode.success, failed)
        draws = c.accepted + c.refused
        return End(status.astype(jnp.int32), c.accepted, c.refused, c.accepted, draws + 1)

    def number(self, c: ExactCarry) -> UInt32[Array, ""]:
        """What names the next draw."""
        return (c.accepted + c.refused).astype(jnp.uint32)

    def advance(self, c: ExactCarry, until: Array) -> ExactCarry:
        t, number, one = c.next, self.number(c), jnp.ones((), jnp.int32)
        words = jnp.stack(threefry(self.key, number, jnp.full_like(number, _AFFECT)))
        u = self.channels.affect(self.args, c.which, words, t, c.u)
        if not self.thins:
            return self._drawn(c._replace(t=t, last=c.which, u=u, accepted=c.accepted + one))
        accepted, failed = self._thinned(c, t, number)
        u = where(accepted, u, c.u)
        counted = accepted.astype(jnp.int32)
        c = c._replace(
            t=jnp.where(accepted, t, c.t),
            last=jnp.where(accepted, c.which, c.last),
            u=u,
            accepted=c.accepted + counted,
            refused=c.refused + 1 - counted,
        )
        return self._drawn(c, t, failed)

    def _thinned(self, c: ExactCarry, t: Array, number: Array) -> tuple[Array, Array]:
        """Whether the jump happens, and whether its rate does not keep to its bound."""
        rate = self._chosen(self.channels.rates(self.args, t, c.u), c.which)
        first, _ = threefry(self.key, number, jnp.full_like(number, _ACCEPT))
        assert c.bound is not None
        accepted = uniform(first, t.dtype) * c.bound < rate
        kept = (rate >= 0) & (rate <= c.bound * (1 + _SLACK))
        proposed = c.which >= 0
        return accepted & proposed, proposed & ~kept

    def _drawn(self, c: ExactCarry, t: Any = None, failed: Any = None) -> ExactCarry:
        """With the jump that comes next, from time `t` on (by default the last jump's)."""
        t = c.t if t is None else t
        rates, horizon = self.channels.bounds(self.args, t, c.u)
        draw = self.aggregator.next(self.key, self.number(c), rates, horizon, c.memory)
        sound = _are_rates(rates) & (draw.wait >= 0)
        bound = None
        if failed is not None:
            sound, bound = sound & ~failed, self._chosen(rates, draw.which)
        # After a wait that is no number nothing comes, and nothing holds.
        later, low = _sum(t, c.low, jnp.where(sound, draw.wait, jnp.nan))
        if failed is not None:
            # The time at which it failed is told.
            c = c._replace(t=jnp.where(jnp.isnan(later), t, c.t))
        return c._replace(next=later, low=low, which=draw.which, bound=bound, memory=draw.memory)

    def _chosen(self, rates: Array, which: Array) -> Array:
        """The rate of one jump; zero if it is none."""
        numbers = jnp.arange(rates.shape[0], dtype=jnp.int32)
        return jnp.sum(jnp.where(numbers == which, rates, 0))


def _are_rates(rates: Array) -> Bool[Array, ""]:
    """Whether all rates are finite and not negative.

    Few are judged by their sum, which is that of their absolute values, added in the same order, if
    none is negative: in a native loop a look at each costs a quarter of a jump more.
    """
    if rates.shape[0] > _FEW:
        return jnp.all((rates >= 0) & (rates < jnp.inf))
    total, sizes = rates[0], jnp.abs(rates[0])
    for i in range(1, rates.shape[0]):
        total, sizes = total + rates[i], sizes + jnp.abs(rates[i])
    return (total == sizes) & (total < jnp.inf)


def _sum(t: Array, low: Array, wait: Array) -> tuple[Array, Array]:
    """t + low + wait and what rounding loses of it (Kahan), so that the time of a million short
    waits is as good as that of one."""
    add = wait + low
    later = t + add
    return later, add - (later - t)
