"""Switching between an explicit and an implicit method while a solve runs.

Each step votes on the method that takes it. An explicit step finds the problem stiff where its
stages say that stability, not accuracy, holds the step back; an implicit one finds it not stiff
where its step would be stable for the explicit method. After enough votes in a row the other method
goes on.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Int, PyTree

from ..linear.coordinates import Coordinates
from ..linear.dense import INVERTED
from ..linear.jacobian import varying_like
from .base import Algorithm, Field, Memory, Norm, State, StepResult
from .explicit_methods import DP5, Tsit5, Vern6, Vern7, Vern8, Vern9

# In the order of `AutoSwitch.counted`.
_COUNTED = ("nf", "njac", "nfactor", "nsolve", "nnewton_fail")


class Switch(NamedTuple):
    """Which method takes the next step.

    - `stiff`: the implicit one; `fresh`: for the first time in a row.
    - `votes`: against it, one after another, so far.
    - `inner`: the choice of the implicit method.
    """

    stiff: Bool[Array, ""]
    fresh: Bool[Array, ""]
    votes: Int[Array, ""]
    inner: PyTree


class AutoSwitch(Algorithm):
    """An explicit method that hands over to an implicit one where the problem is stiff, and back.

    A solve of one trajectory pays for the method that steps. Under `vmap` the lanes of both kinds
    are stepped side by side, so a lane costs at most a step of each.

    **Arguments:**

    - `nonstiff`: an explicit Runge-Kutta method that can estimate stiffness, as `dj.Tsit5()`.
    - `stiff`: an implicit method, as `dj.Rodas5P()`.
    - `max_stiff_steps`: after more than so many votes in a row the implicit method takes over.
    - `max_nonstiff_steps`: after more than so many the explicit one does.
    - `stiff_tol`: an explicit step votes "stiff" if |dt*rho| is above this part of its interval of
        stability on the negative real axis; rho estimates the largest eigenvalue.
    - `nonstiff_tol`: an implicit step votes "not stiff" if |dt| times the largest row sum of the
        Jacobian is below this part of that interval.

    **Raises:** `ValueError` if `nonstiff` is not explicit or has no estimate of stiffness, or
    `stiff` has none. Evaluations for output between steps are counted as those of `nonstiff`.

    !!! example
        `dj.solve(prob, dj.AutoSwitch(dj.Tsit5(), dj.Rodas5P(), max_stiff_steps=5))`

    Source: Hairer and Wanner, Solving ODEs II, section IV.2 (estimate of an explicit step); L.
    Petzold, Automatic selection of methods for solving stiff and nonstiff systems, SIAM J. Sci.
    Stat. Comput. 4 (1983); the constants are those of OrdinaryDiffEq.jl.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem"})
    counted: ClassVar[tuple[str, ...]] = _COUNTED

    nonstiff: Algorithm
    stiff: Algorithm
    max_stiff_steps: int = eqx.field(static=True, default=10)
    max_nonstiff_steps: int = eqx.field(static=True, default=3)
    stiff_tol: float = eqx.field(static=True, default=0.9)
    nonstiff_tol: float = eqx.field(static=True, default=0.9)

    def __check_init__(self) -> None:
        explicit, implicit = self.nonstiff, self.stiff
        if not explicit.is_explicit_one_step or explicit.stability is None:
            raise ValueError(
                f"nonstiff must be an explicit method that estimates stiffness, got "
                f"{explicit.name}; take dj.Tsit5(), dj.DP5(), dj.Vern7() or their kin."
            )
        if implicit.is_explicit_one_step or implicit.error_order is None:
            raise ValueError(
                f"stiff must be an implicit method with an error estimate, got {implicit.name}; "
                "take dj.Rodas5P() or dj.KenCarp4()."
            )

    @property
    def name(self) -> str:
        return f"AutoSwitch({self.nonstiff.name}, {self.stiff.name})"

    @property
    def looks_back(self) -> bool:
        return self.stiff.looks_back

    @property
    def order(self) -> float:
        return min(self.nonstiff.order, self.stiff.order)

    @property
    def error_order(self) -> float:
        lower, other = self.nonstiff.error_order, self.stiff.error_order
        assert lower is not None
        assert other is not None
        # The controller sees the errors of the explicit method only, if the other needs none.
        return lower if self.stiff.sizes_steps else min(lower, other)

    @property
    def dense_order(self) -> int:
        return min(self.nonstiff.dense_order, self.stiff.dense_order)

    @property
    def init_counts(self) -> dict[str, int]:
        return self.nonstiff.init_counts

    @property
    def dense_counts(self) -> dict[str, int]:
        first, second = self.nonstiff.dense_counts, self.stiff.dense_counts
        return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}

    def init(self, field: Field, t: Array, u: State) -> Memory:
        blank = _blank(lambda: self.stiff.init(field, t, u), t)
        no = varying_like(t, jnp.zeros((), bool))
        votes = varying_like(t, jnp.zeros((), jnp.int32))
        first = self.nonstiff.init(field, t, u).cache
        return Memory(blank.history, Switch(no, no, votes, blank.choice), (first, blank.cache))

    @property
    def phases(self) -> tuple[Algorithm, ...]:
        limits = self.max_stiff_steps, self.max_nonstiff_steps, self.stiff_tol, self.nonstiff_tol
        return tuple(_Phase(self.nonstiff, self.stiff, *limits, side) for side in (False, True))

    def recall(self, field: Field, t: Array, u: State, lasting: Memory) -> Memory:
        first = self.nonstiff.init(field, t, u).cache
        inner = Memory(lasting.history, lasting.choice.inner)
        return lasting._replace(cache=(first, self.stiff.recall(field, t, u, inner).cache))

    def _taken(
        self,
        stiff: Array,
        explicit: Callable[[], StepResult],
        implicit: Callable[[], StepResult],
        t: Array,
    ) -> tuple[StepResult, StepResult]:
        """The step of each method, if any lane wants it."""
        return _where_any(~stiff, explicit, t), _where_any(stiff, implicit, t)

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        choice: Switch = memory.choice
        stiff = choice.stiff

        def explicit() -> StepResult:
            # Where the lane is stiff a step of length zero, which is finite, and thrown away.
            h = jnp.where(stiff, 0, dt)
            inner = Memory(cache=memory.cache[0])
            inner = self._refreshed(self.nonstiff, field, t, u, inner, choice.fresh & ~stiff)
            result = self.nonstiff.step(field, t, h, u, inner, norm)
            rho = self.nonstiff.stiffness(h, u, result.stages)
            return self._uniform(result._replace(stiffness=rho), self.nonstiff, choice.fresh, t)

        def implicit() -> StepResult:
            inner = Memory(memory.history, choice.inner, memory.cache[1])
            inner = self._refreshed(self.stiff, field, t, u, inner, choice.fresh & stiff)
            result = self.stiff.step(field, t, dt, u, inner, norm)
            return self._uniform(result, self.stiff, choice.fresh, t)

        results = self._taken(stiff, explicit, implicit, t)
        one: StepResult = self._of_stepped(stiff, *(r._replace(**_APART) for r in results))
        spoilt = jnp.zeros((), bool) if one.error is None else ~stiff & ~jnp.isfinite(one.error)
        accepted = self._voted(choice, self._against(stiff, one.stiffness))
        rejected = _either(spoilt, choice, self._voted(choice, jnp.ones((), bool)))
        refused = [r.memory_if_rejected for r in results]
        return one._replace(
            memory=self._joined(memory, accepted, [r.memory for r in results]),
            memory_if_rejected=self._joined(memory, rejected, refused),
            stages=(stiff, *(r.stages for r in results)),
            stiffness=None,
        )

    def _of_stepped(self, stiff: Array, explicit: PyTree, implicit: PyTree) -> PyTree:
        """Of what is of the explicit and of the implicit method, that of the one which steps."""
        return _either(stiff, explicit, implicit)

    def _joined(self, old: Memory, choice: Switch, new: list[Memory]) -> Memory:
        """The memory of both methods, new of the one that has stepped."""
        stiff, of_stepped = old.choice.stiff, self._of_stepped
        kept = old.history, old.choice.inner, old.cache[1]
        history, inner, second = of_stepped(stiff, kept, tuple(new[1]))
        first = of_stepped(stiff, new[0].cache, old.cache[0])
        return Memory(history, choice._replace(inner=inner), (first, second))

    def _refreshed(
        self, alg: Algorithm, field: Field, t: Array, u: State, memory: Memory, fresh: Array
    ) -> Memory:
        """The memory of a method, from scratch if it has just taken over."""
        if not jtu.tree_leaves(memory):
            return memory
        new = _where_any(fresh, lambda: alg.init(field, t, u), t)
        return _either(fresh, memory, new)

    def _uniform(self, result: StepResult, alg: Algorithm, fresh: Array, t: Array) -> StepResult:
        """A result in the form that both methods share."""
        own = () if result.counts is None else result.counts
        work = dict(zip(alg.counted, own, strict=True))
        started = fresh.astype(jnp.int32)
        counts = [
            started * alg.init_counts.get(name, 0)
            + alg.step_counts.get(name, 0)
            + work.get(name, 0)
            for name in self.counted
        ]
        unknown = varying_like(t, jnp.full((), jnp.nan, t.dtype))
        return result._replace(
            ok=jnp.asarray(result.ok),
            counts=jnp.stack(counts),
            dt_next=unknown if result.dt_next is None else result.dt_next,
            stiffness=unknown if result.stiffness is None else result.stiffness.astype(t.dtype),
        )

    def _against(self, stiff: Array, stiffness: Array | None) -> Bool[Array, ""]:
        """Whether a step votes against the method that has taken it; one that is not finite does
        against the explicit one."""
        assert stiffness is not None
        assert self.nonstiff.stability is not None
        relaxed = stiffness < self.nonstiff_tol * self.nonstiff.stability
        return jnp.where(stiff, relaxed, ~(stiffness <= self.stiff_tol))

    def _voted(self, choice: Switch, against: Array) -> Switch:
        votes = jnp.where(against, choice.votes + 1, 0)
        over = votes > jnp.where(choice.stiff, self.max_nonstiff_steps, self.max_stiff_steps)
        return Switch(choice.stiff != over, over, jnp.where(over, 0, votes), choice.inner)

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        """The coefficients of both methods; those of the one that has not stepped are zero."""
        stiff, *several = stages
        nonstiff = self.nonstiff.dense(field, t, dt, u, several[0])

        def of_stiff() -> PyTree:
            return self.stiff.dense(field, t, dt, u, several[1])

        # Its further stages may take a factorisation. Those of small systems do not, and there a
        # branch would keep loops from being native functions.
        costly = self.stiff.dense_counts and Coordinates(u).size > INVERTED
        both = [nonstiff, _where_any(stiff, of_stiff, t) if costly else of_stiff()]
        zeros = jtu.tree_map(jnp.zeros_like, both)
        first, *rest = _either(stiff, both[0], zeros[0])
        return (first, rest, _either(stiff, zeros[1], both[1]))

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        first, rest, implicit = coefficients
        values = (
            self.nonstiff.interpolate((first, *rest), theta),
            self.stiff.interpolate(implicit, theta),
        )
        return jtu.tree_map(jnp.add, *values)


class _Phase(AutoSwitch):
    """The steps of one of the methods."""

    side: bool = eqx.field(static=True, default=False)

    @property
    def phases(self) -> tuple[Algorithm, ...]:
        return ()

    def ready(self, memory: Memory) -> Bool[Array, ""]:
        return memory.choice.stiff == self.side

    def begins(self, memory: Memory) -> Bool[Array, ""]:
        return self.ready(memory) & memory.choice.fresh

    def enter(self, field: Field, t: Array, u: State, memory: Memory) -> Memory:
        choice, (first, second) = memory.choice, memory.cache
        if not self.side:
            return memory._replace(cache=(self.nonstiff.init(field, t, u).cache, second))
        inner = self.stiff.init(field, t, u)
        return Memory(inner.history, choice._replace(inner=inner.choice), (first, inner.cache))

    def recall(self, field: Field, t: Array, u: State, lasting: Memory) -> Memory:
        choice, blank = lasting.choice, self.init(field, t, u).cache
        inner = Memory(lasting.history, choice.inner)
        if not self.side:
            return lasting._replace(cache=blank)
        inner = _either(
            choice.fresh, self.stiff.recall(field, t, u, inner), self.stiff.init(field, t, u)
        )
        return Memory(inner.history, choice._replace(inner=inner.choice), (blank[0], inner.cache))

    def _taken(
        self,
        stiff: Array,
        explicit: Callable[[], StepResult],
        implicit: Callable[[], StepResult],
        t: Array,
    ) -> tuple[StepResult, StepResult]:
        if self.side:
            return _blank(explicit, t), implicit()
        return explicit(), _blank(implicit, t)

    def _of_stepped(self, stiff: Array, explicit: PyTree, implicit: PyTree) -> PyTree:
        return implicit if self.side else explicit

    def _refreshed(
        self, alg: Algorithm, field: Field, t: Array, u: State, memory: Memory, fresh: Array
    ) -> Memory:
        return memory


# What the two methods do not share, and what is made of them together.
_APART = {"memory": Memory(), "memory_if_rejected": Memory(), "stages": None}


def _either(condition: Array, no: PyTree, yes: PyTree) -> PyTree:
    return jtu.tree_map(lambda x, y: jnp.where(condition, y, x), no, yes)


def _blank(compute: Callable[[], PyTree], like: Array) -> PyTree:
    """Zeros in the shape of what would be computed."""
    return jtu.tree_map(
        lambda s: varying_like(like, jnp.zeros(s.shape, s.dtype)), jax.eval_shape(compute)
    )


def _where_any(wanted: Array, compute: Callable[[], PyTree], like: Array) -> PyTree:
    """What is computed, if any lane of a `vmap` wants it; else zeros."""

    def varying() -> PyTree:
        return jtu.tree_map(partial(varying_like, like), compute())

    return jax.lax.cond(eqxi.unvmap_any(wanted), varying, lambda: _blank(compute, like))


def AutoTsit5(stiff: Algorithm, **options: Any) -> AutoSwitch:
    """`AutoSwitch` between `dj.Tsit5()` (order 5) and an implicit method; `options` are its own.

    !!! example
        `dj.solve(prob, dj.AutoTsit5(dj.Rodas5P()))`
    """
    return AutoSwitch(Tsit5(), stiff, **options)


def AutoDP5(stiff: Algorithm, **options: Any) -> AutoSwitch:
    """`AutoSwitch` between `dj.DP5()` (order 5) and an implicit method; `options` are its own.

    !!! example
        `dj.solve(prob, dj.AutoDP5(dj.Rodas5P()))`
    """
    return AutoSwitch(DP5(), stiff, **options)


def AutoVern6(stiff: Algorithm, **options: Any) -> AutoSwitch:
    """`AutoSwitch` between `dj.Vern6()` (order 6) and an implicit method; `options` are its own.

    !!! example
        `dj.solve(prob, dj.AutoVern6(dj.Rodas5P()))`
    """
    return AutoSwitch(Vern6(), stiff, **options)


def AutoVern7(stiff: Algorithm, **options: Any) -> AutoSwitch:
    """`AutoSwitch` between `dj.Vern7()` (order 7) and an implicit method; `options` are its own.

    !!! example
        `dj.solve(prob, dj.AutoVern7(dj.Rodas5P()))`
    """
    return AutoSwitch(Vern7(), stiff, **options)


def AutoVern8(stiff: Algorithm, **options: Any) -> AutoSwitch:
    """`AutoSwitch` between `dj.Vern8()` (order 8) and an implicit method; `options` are its own.

    !!! example
        `dj.solve(prob, dj.AutoVern8(dj.Rodas5P()))`
    """
    return AutoSwitch(Vern8(), stiff, **options)


def AutoVern9(stiff: Algorithm, **options: Any) -> AutoSwitch:
    """`AutoSwitch` between `dj.Vern9()` (order 9) and an implicit method; `options` are its own.

    !!! example
        `dj.solve(prob, dj.AutoVern9(dj.Rodas5P()))`
    """
    return AutoSwitch(Vern9(), stiff, **options)
