"""Fixed steps: a bare loop over step numbers, with nothing of the controller in it."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..algorithms.base import Memory, State
from .plan import Inputs, Plan
from .status import ReturnCode
from .stepper import Counts, Iterations, Record, Step, Stepper
from .trees import where


class FixedState(NamedTuple):
    """What the loop carries: the number of steps done, the state, the algorithm's memory."""

    done: Int[Array, ""]
    u: State
    memory: Memory
    iterations: Iterations | None
    events: None = None

    @property
    def steps(self) -> Int[Array, ""]:
        """How many steps were taken."""
        return self.done


class FixedGrid(eqx.Module):
    """Where fixed steps end, as in `Plan` and `Inputs`."""

    steps: int = eqx.field(static=True)
    dt: float | None = eqx.field(static=True)
    times: Float[Array, " steps+1"] | None = None
    leftover: bool = eqx.field(static=True, default=False)

    @staticmethod
    def of(plan: Plan, inputs: Inputs) -> "FixedGrid":
        assert plan.fixed_steps is not None
        return FixedGrid(plan.fixed_steps, plan.fixed_dt, inputs.grid, plan.leftover)

    @property
    def count(self) -> int | Int[Array, ""]:
        """How many steps there are without those left over, which have no length."""
        if not self.leftover:
            return self.steps
        assert self.times is not None
        return jnp.sum(self.times[:-1] < self.times[-1], dtype=jnp.int32)


def fixed_time(plan: Plan, inputs: Inputs, index: Array) -> Float[Array, ""]:
    """The time after `index` fixed steps, from the index alone so that rounding cannot pile up."""
    return time_on(FixedGrid.of(plan, inputs), inputs.t0, inputs.t1, index)


def time_on(grid: FixedGrid, t0: Array, t1: Array, index: Array) -> Float[Array, ""]:
    """The time after `index` steps of a grid from t0 to t1."""
    steps = grid.steps
    i = index.astype(t0.dtype)
    if grid.times is not None:
        t = grid.times[index]
    elif grid.dt is not None:
        # In single precision the rounding of dt itself would grow to a phase error.
        high = np.asarray(grid.dt, t0.dtype)
        low = np.asarray(grid.dt - float(high), t0.dtype)
        t = t0 + (i * high + i * low)
    else:
        t = t0 + (t1 - t0) * (i / steps)
    return jnp.where(index == steps, t1, t)


class FixedStepper(Stepper[FixedState]):
    """Takes steps of known sizes; of many lanes all take as many, unless the plan says that some
    are left over."""

    def __init__(self, plan: Plan, inputs: Inputs) -> None:
        super().__init__(plan, inputs)
        self.count = FixedGrid.of(plan, inputs).count

    def init(self) -> FixedState:
        inputs = self.inputs
        return FixedState(
            done=jnp.zeros((), jnp.int32),
            u=inputs.u0,
            memory=self.plan.first_memory(inputs),
            iterations=self.no_iterations(),
        )

    def active(self, c: FixedState) -> Bool[Array, ""]:
        return c.done < self.count

    def time(self, c: FixedState) -> Float[Array, ""]:
        return fixed_time(self.plan, self.inputs, c.done)

    def state(self, c: FixedState) -> State:
        return c.u

    def attempt(self, c: FixedState, *, masked: bool) -> tuple[FixedState, Record]:
        """One step; it is always accepted."""
        t = self.time(c)
        # The difference of two times on the grid, so that the steps add up to the span exactly.
        dt = fixed_time(self.plan, self.inputs, c.done + 1) - t
        waits = masked and self.plan.leftover
        active = self.active(c) if waits else True
        # A step of no length would divide by it.
        dt = jnp.where(active, dt, 1) if waits else dt
        field = self.field.during(c.done)
        result = self.alg.step(field, t, dt, c.u, c.memory, None)
        u, iterations = result.u, c.iterations
        if iterations is not None:
            # There is no smaller step to try, and what did not converge is no solution.
            u = jtu.tree_map(lambda x: jnp.where(result.ok, x, jnp.nan), u)
            iterations = iterations.after(result, ~iterations.failed)
        state = FixedState(c.done + 1, u, result.memory, iterations)
        state = where(jnp.asarray(active), state, c) if waits else state
        self.report_progress(c, state)
        landed = jnp.full((), -1, jnp.int32)
        return state, Record(Step(t, dt, c.u, c.memory.lasting, result.stages), active, landed)

    def counts(self, c: FixedState) -> Counts:
        return Counts(c.done, jnp.zeros((), jnp.int32))

    def final(self, c: FixedState) -> None:
        return None

    def status(self, c: FixedState) -> Int[Array, ""]:
        """The return code, judged at the end."""
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(c.u)]))
        failed = ReturnCode.unstable
        if c.iterations is not None:
            failed = jnp.where(c.iterations.failed, ReturnCode.newton_failed, failed)
        return jnp.where(finite, ReturnCode.success, failed).astype(jnp.int32)
