"""Steps of an adjoint equation, which has to land on many given times.

The adjoint jumps at each save time and, on a recorded solution, changes its field at each step of
that. Between two landings it is integrated by the same steps as a solve, whose size and controller
memory outlive the landing: nothing is searched for again.
"""

from typing import NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from ..algorithms.base import Memory, State
from ..stepping.adaptive import AdaptiveState, AdaptiveStepper
from ..stepping.fixed import FixedGrid, time_on
from ..stepping.plan import Inputs, Plan, Settings, scaled_norm
from ..stepping.stepper import Record, Step, Stepper
from ..stepping.trees import where
from .packing import Packing

# A piece this much longer than a whole number of fixed steps is still cut into that many.
_ROUNDING = 1e-6


class AdaptiveLanding(AdaptiveStepper):
    """Error-controlled steps to `inputs.t1`. Each part of the state must meet its tolerance by
    itself: in one mean over all, thousands of parameters would hide the error of two states."""

    def __init__(self, plan: Plan, inputs: Inputs, settings: Settings, packing: Packing) -> None:
        super().__init__(plan, inputs, settings)
        self.packing = packing

    def norm(self, v: State, u0: State, u1: State) -> Float[Array, ""]:
        parts = [self.packing.unpack(x) for x in (v, u0, u1)]
        sizes = [
            scaled_norm(rtol, atol, *part).astype(self.inputs.t0.dtype)
            for rtol, atol, *part in zip(self.rtol, self.atol, *parts, strict=True)
        ]
        return jnp.max(jnp.stack(sizes))

    def begin(self, dt: Array) -> AdaptiveState:
        """The carry before the first step, without the algorithm's memory."""
        plan, inputs = self.plan, self.inputs
        dtype = inputs.t0.dtype
        assert plan.controller is not None
        zero = jnp.zeros((), jnp.int32)
        return AdaptiveState(
            t=inputs.t0,
            t_low=jnp.zeros((), dtype) if jnp.finfo(dtype).bits < 64 else None,
            u=inputs.u0,
            dt=dt.astype(dtype),
            memory=Memory(),
            control=plan.controller.init(),
            naccept=zero,
            nreject=zero,
            next_stop=None,
            iterations=self.no_iterations(),
        )

    def going(self, c: AdaptiveState) -> Bool[Array, ""]:
        """Whether it can go on, wherever it has to go."""
        return (c.dt > 0) & (c.naccept + c.nreject < self.plan.max_steps)


class FixedState(NamedTuple):
    """What the loop carries with fixed steps; `dt` is their greatest size."""

    t: Float[Array, ""]
    u: State
    dt: Float[Array, ""]
    memory: Memory
    done: Int[Array, ""]

    @property
    def steps(self) -> Int[Array, ""]:
        return self.done


class FixedLanding(Stepper[FixedState]):
    """As many equal steps to `inputs.t1` as a largest size asks for."""

    def begin(self, dt: Array) -> FixedState:
        inputs = self.inputs
        return FixedState(inputs.t0, inputs.u0, dt, Memory(), jnp.zeros((), jnp.int32))

    def going(self, c: FixedState) -> Bool[Array, ""]:
        return jnp.isfinite(c.t)

    def active(self, c: FixedState) -> Bool[Array, ""]:
        return c.t < self.inputs.t1

    def attempt(self, c: FixedState, *, masked: bool) -> tuple[FixedState, Record]:
        target = self.inputs.t1
        # The number that is left shrinks by one a step, so the steps come out equal.
        left = jnp.maximum(jnp.ceil((target - c.t) / c.dt - _ROUNDING), 1)
        dt = (target - c.t) / left
        result = self.alg.step(self.field, c.t, dt, c.u, c.memory, None)
        u = result.u
        if self.alg.counted:
            # There is no smaller step to try, and what did not converge is no solution.
            u = jtu.tree_map(lambda x: jnp.where(result.ok, x, jnp.nan), u)
        t = jnp.where(left == 1, target, c.t + dt)
        state = FixedState(t, u, c.dt, result.memory, c.done + 1)
        active = self.active(c) if masked else jnp.asarray(True)
        state = where(active, state, c) if masked else state
        step = Step(c.t, dt, c.u, c.memory.lasting, result.stages)
        return state, Record(step, active, jnp.full((), -1, jnp.int32))


class GridLanding(FixedLanding):
    """The fixed steps of a solve from `span[0]` to `span[1]`, from its last to its first."""

    def __init__(self, plan: Plan, inputs: Inputs, span: tuple[Array, Array]) -> None:
        super().__init__(plan, inputs)
        self.grid, self.span = FixedGrid.of(plan, inputs), span
        self.count = self.grid.count

    def _next(self, c: FixedState) -> tuple[Array, Array, Array]:
        """The number of the next step, where it ends in -t, and its size."""
        number = jnp.maximum(self.count - 1 - c.done, 0)
        end = -time_on(self.grid, *self.span, number)
        return number, end, end + time_on(self.grid, *self.span, number + 1)

    def going(self, c: FixedState) -> Bool[Array, ""]:
        return c.done < self.count

    def active(self, c: FixedState) -> Bool[Array, ""]:
        # Half a step short: the grid has all landings, but for rounding.
        return self.going(c) & (c.t + 0.5 * self._next(c)[2] < self.inputs.t1)

    def attempt(self, c: FixedState, *, masked: bool) -> tuple[FixedState, Record]:
        number, end, dt = self._next(c)
        result = self.alg.step(self.field.during(number), c.t, dt, c.u, c.memory, None)
        state = FixedState(end, result.u, c.dt, result.memory, c.done + 1)
        state = state._replace(t=jnp.where(self.active(state), end, self.inputs.t1))
        active = self.active(c) if masked else jnp.asarray(True)
        state = where(active, state, c) if masked else state
        step = Step(c.t, dt, c.u, c.memory.lasting, result.stages)
        return state, Record(step, active, jnp.full((), -1, jnp.int32))


def landing(
    plan: Plan, inputs: Inputs, settings: Settings, packing: Packing
) -> AdaptiveLanding | FixedLanding:
    """Steps from `inputs.t0` to `inputs.t1` of the kind that the plan asks for."""
    if plan.controller is None:
        return FixedLanding(plan, inputs)
    return AdaptiveLanding(plan, inputs, settings, packing)
