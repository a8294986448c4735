"""Tau-leaping: many jumps at once, whose numbers are drawn from rates held constant for a while.

It is approximate. It pays where rates are large and change little from jump to jump.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..noise.random import exponential, threefry, uniform
from ..stepping.status import ReturnCode
from .aggregators import find
from .base import End, JumpAlgorithm, Process, Setting
from .channels import Leaves
from .mass_action import species
from .poisson import poisson

# Of Cao, Gillespie and Petzold (2006): a reaction is critical if its reactants last for less than
# so many of it; leaps are not worth it if they are shorter than so many mean waits.
_CRITICAL, _WAITS = 10, 10
# Second counters of the random numbers of a leap.
_COUNTS, _NEXT = np.uint32(2**32 - 3), np.uint32(0)


class TauLeaping(JumpAlgorithm):
    """Tau-leaping in steps of a fixed size, `dt=` or `steps=`; explicit, of weak order one.

    For `dj.MassActionJump` and `dj.RegularJump`. Leaps end on save times. A leap that makes a rate
    negative, or a number of molecules that some reaction takes, ends the solve with
    `event_failed`: `dj.CaoTauLeaping` never does.

    Source: Gillespie, Approximate accelerated stochastic simulation of chemically reacting systems,
    J. Chem. Phys. 115 (2001), section III.

    !!! example
        `dj.solve(jump_prob, dj.TauLeaping(), dt=0.1, saveat=10.0, key=jax.random.key(0))`
    """

    jumps: ClassVar[frozenset[str] | None] = frozenset({"MassActionJump", "RegularJump"})
    has_fixed_steps: ClassVar[bool] = True

    def process(self, setting: Setting) -> "FixedLeaps":
        return FixedLeaps(setting)


class CaoTauLeaping(JumpAlgorithm):
    """Tau-leaping in steps over which no rate is expected to change by more than a small share.

    For `dj.MassActionJump`. Reactions whose reactants are nearly used up are simulated one at a
    time, and all of them where a leap would hold few; so numbers of molecules are never negative. A
    leap that would make one so is taken again at half its length. Leaps end on save times.

    **Arguments:** `epsilon`, the share; smaller is more accurate.

    **Raises:** `ValueError` for an `epsilon` that is not between 0 and 1.

    Source: Cao, Gillespie and Petzold, Efficient step size selection for the tau-leaping simulation
    method, J. Chem. Phys. 124 (2006) 044109, section III and equations (27), (32), (33).

    !!! example
        `dj.solve(jump_prob, dj.CaoTauLeaping(epsilon=0.03), saveat=10.0, key=jax.random.key(0))`
    """

    jumps: ClassVar[frozenset[str] | None] = frozenset({"MassActionJump"})

    epsilon: float = 0.03

    def __check_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon must be between 0 and 1, got {self.epsilon!r}.")

    def process(self, setting: Setting) -> "CaoLeaps":
        return CaoLeaps(setting, self.epsilon)


class LeapCarry(NamedTuple):
    """`rates` are those at `t`; `done` counts whole steps of a fixed size; no leap is longer than
    `longest`, which is finite after one that was refused."""

    t: Float[Array, ""]
    u: Leaves
    rates: Float[Array, " m"]
    done: Int[Array, ""]
    longest: Float[Array, ""]
    accepted: Int[Array, ""]
    refused: Int[Array, ""]
    fired: Int[Array, ""]


class _Leaps(Process[LeapCarry]):
    """What all leaps share. A rate that is none ends the loop."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def init(self) -> LeapCarry:
        t, u, zero = self.setting.t0, self.setting.u0, jnp.zeros((), jnp.int32)
        never = jnp.full_like(t, jnp.inf)
        return LeapCarry(t, u, self._rates(t, u), zero, never, zero, zero, zero)

    def _rates(self, t: Array, u: Leaves) -> Float[Array, " m"]:
        return self.setting.channels.rates(self.setting.args, t, u)

    def sound(self, c: LeapCarry) -> Bool[Array, ""]:
        return jnp.all((c.rates >= 0) & (c.rates < jnp.inf))

    def active(self, c: LeapCarry) -> Bool[Array, ""]:
        left = c.accepted + c.refused < self.setting.max_steps
        return self.sound(c) & (c.t < self.setting.t1) & left

    def holds(self, c: LeapCarry, t: Array) -> Bool[Array, ""]:
        return (c.t >= t) & self.sound(c)

    def state(self, c: LeapCarry) -> Leaves:
        return c.u

    def last(self, c: LeapCarry) -> tuple[Array, Array]:
        return c.t, jnp.full_like(c.accepted, -1)

    def rows(self, c: LeapCarry) -> Int[Array, ""]:
        return c.accepted

    def outcome(self, c: LeapCarry) -> End:
        failed = jnp.where(self.sound(c), ReturnCode.max_steps, ReturnCode.event_failed)
        ended = self.sound(c) & (c.t >= self.setting.t1)
        status = jnp.where(ended, ReturnCode.success, failed).astype(jnp.int32)
        return End(status, c.accepted, c.refused, c.fired, c.accepted + 1)

    def words(self, c: LeapCarry, purpose: Any) -> tuple[Array, Array]:
        """Two random words for the next leap."""
        number = (c.accepted + c.refused).astype(jnp.uint32)
        return threefry(self.setting.key, number, jnp.full_like(number, purpose))

    def counts(self, c: LeapCarry, rates: Array, tau: Array) -> Int[Array, " m"]:
        """How many jumps of each kind happen in a leap."""
        return poisson(jnp.stack(self.words(c, _COUNTS)), rates * tau)

    def leapt(self, c: LeapCarry, t: Array, counts: Array) -> LeapCarry:
        """The carry after a leap to time t."""
        u = self.setting.channels.after(self.setting.args, counts, c.t, c.u)
        return c._replace(
            t=t,
            u=u,
            rates=self._rates(t, u),
            accepted=c.accepted + 1,
            fired=c.fired + jnp.sum(counts, dtype=jnp.int32),
        )


class FixedLeaps(_Leaps):
    """Leaps to the times of a grid, and on the way to those asked for."""

    def advance(self, c: LeapCarry, until: Array) -> LeapCarry:
        assert self.setting.dt is not None
        whole = self.setting.t0 + (c.done + 1).astype(c.t.dtype) * self.setting.dt
        t = jnp.minimum(whole, until)
        new = self.leapt(c, t, self.counts(c, c.rates, t - c.t))
        return new._replace(done=c.done + (t >= whole).astype(jnp.int32))


class CaoLeaps(_Leaps):
    """Leaps as long as the rates allow, and single jumps of what is critical."""

    def __init__(self, setting: Setting, epsilon: float) -> None:
        super().__init__(setting)
        reactants, change = setting.channels.reactants, setting.channels.net_change
        assert reactants is not None
        assert change is not None
        self.epsilon, self.reactants, self.change = epsilon, reactants, change

    def advance(self, c: LeapCarry, until: Array) -> LeapCarry:
        rates, numbers = c.rates, species(c.u, c.t.dtype)
        critical = (rates > 0) & (self._lasts(numbers) < _CRITICAL)
        longest = jnp.minimum(self._longest(jnp.where(critical, 0, rates), numbers), c.longest)
        # Where leaps are not worth it every reaction is critical: one jump, exactly.
        alone = longest * jnp.sum(rates) < _WAITS
        critical = critical | alone
        longest = jnp.where(alone, jnp.inf, longest)
        first, second = self.words(c, _NEXT)
        index, total = find(jnp.where(critical, rates, 0), uniform(second, rates.dtype))
        wait = exponential(first, rates.dtype) / total
        room = until - c.t
        tau = jnp.minimum(jnp.minimum(longest, wait), room)
        counts = self.counts(c, jnp.where(critical, 0, rates), tau)
        fires = (wait <= longest) & (wait <= room)
        hit = (jnp.arange(rates.shape[0], dtype=index.dtype) == index) & fires
        counts = counts + hit.astype(counts.dtype)
        new = self.leapt(c, jnp.where(tau >= room, until, c.t + tau), counts)
        good = jnp.all(species(new.u, c.t.dtype) >= 0)
        shorter = c._replace(longest=0.5 * tau, refused=c.refused + 1)
        never = jnp.full_like(c.longest, jnp.inf)
        return jax.tree.map(
            lambda x, y: jnp.where(good, x, y), new._replace(longest=never), shorter
        )

    def _lasts(self, numbers: Float[Array, " species"]) -> Float[Array, " m"]:
        """How many of each reaction there could be one after another: L_j, equation (10)."""
        used = np.maximum(-self.change, 1)
        lasts = jnp.floor(numbers[None] / used.astype(numbers.dtype))
        return jnp.min(jnp.where(self.change < 0, lasts, jnp.inf), axis=1)

    def _longest(self, rates: Array, numbers: Array) -> Float[Array, ""]:
        """tau' of equation (33), for the reactions that are not critical."""
        change = jnp.asarray(self.change, rates.dtype)
        mean = jnp.abs(jnp.sum(change * rates[:, None], axis=0))
        variance = jnp.sum(change**2 * rates[:, None], axis=0)
        allowed = jnp.maximum(self.epsilon * numbers / self._orders(numbers), 1)
        # Two quotients that are infinite for a species that does not change.
        one = allowed / jnp.where(mean > 0, mean, 0)
        two = allowed**2 / jnp.where(variance > 0, variance, 0)
        taken = self.reactants.any(axis=0)
        return jnp.min(jnp.where(taken, jnp.minimum(one, two), jnp.inf))

    def _orders(self, numbers: Float[Array, " species"]) -> Float[Array, " species"]:
        """g_i of section IV: n/h sum_(k<h) x/(x - k) for a species of which h molecules take part
        in a reaction of the order n, the largest of all reactions."""
        order = self.reactants.sum(axis=1)
        most = jnp.ones_like(numbers)
        for n, h in sorted({(int(order[j]), int(h)) for j, h in self._uses()}):
            mask = ((order[:, None] == n) & (self.reactants == h)).any(axis=0)
            terms = [numbers / jnp.maximum(numbers - k, 1) for k in range(h)]
            most = jnp.where(mask, jnp.maximum(most, (n / h) * sum(terms)), most)
        return most

    def _uses(self) -> list[tuple[int, int]]:
        """The reactions and how many molecules of some species they take."""
        return [(int(j), int(self.reactants[j, i])) for j, i in np.argwhere(self.reactants)]
