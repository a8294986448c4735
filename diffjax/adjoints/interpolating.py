"""The adjoint equation on the recorded solve, one step of it after another."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..algorithms.base import State
from ..stepping.loop import retape
from ..stepping.outcome import Keep, Outcome
from ..stepping.plan import Inputs, Plan, Settings
from ..stepping.tape import Snapshots, Tape
from .continuous import Backward, ContinuousAdjoint, Recorded, Sweep, recorded
from .discrete import solve_by_replay
from .replay import Row, Spare, max_of, read


class RecordedAdjoint(ContinuousAdjoint):
    """Base class of continuous adjoints that read the solution from a record of its steps."""

    takes_mass_matrix: ClassVar[bool] = True

    checkpoints: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        c = self.checkpoints
        if c is not None and (isinstance(c, bool) or not isinstance(c, int) or c < 1):
            raise ValueError(f"checkpoints must be None or a positive integer, got {c!r}.")

    def record(
        self, plan: Plan, inputs: Inputs, settings: Settings, keep: Keep
    ) -> tuple[Outcome, Recorded]:
        full = plan.every_step or self.checkpoints is None
        kept = Keep(tape=full, segments=None if full else self.checkpoints)
        # Differentiated by replay: the jvp of the loop would number the rows of a tape its own way
        # under `vmap`.
        outcome = solve_by_replay(plan, inputs, settings, kept, self.checkpoints)
        record = recorded(outcome, steps=outcome.tape)
        return outcome if kept == keep else outcome._replace(tape=None), record


class InterpolatingAdjoint(RecordedAdjoint):
    """The adjoint equation, with the solution taken from the recorded steps.

    The solution between two steps comes from the step's own continuous extension, so that nothing
    is run backwards that was not meant to be: unlike `dj.BacksolveAdjoint` it is as stable as the
    solve. Its error is that of the tolerances, not zero as for `dj.DiscreteAdjoint`.

    **Arguments:**

    - `checkpoints`: None keeps a record of every step, `max_steps` rows of `(t, dt, u)`. A number
        keeps the state at the start of so many segments instead, and takes each segment's steps
        once more on the way back; about `sqrt(max_steps)` needs the least memory.

    Source: Cao, Li, Petzold, Serban, SIAM J. Sci. Comput. 24 (2003), section 3; the name is that of
    Rackauckas et al., Universal differential equations for scientific machine learning,
    arXiv 2001.04385.

    !!! example
        `dj.solve(prob, dj.Tsit5(), adjoint=dj.InterpolatingAdjoint(checkpoints=64))`
    """

    def backward(self) -> Any:
        return Interpolating


class OnRecord(Backward):
    """Backwards over the recorded steps; a context is `(coefficients, t, dt)` of one of them."""

    def landings(self) -> int:
        return super().landings() + self.plan.max_steps

    def state(self, context: PyTree, t: Array) -> State:
        """The solution inside a recorded step."""
        coefficients, start, dt = context
        return self.plan.alg.interpolate(coefficients, (t - start) / dt)

    def saved_state(self, context: PyTree, t: Array, j: Array) -> State:
        return self.state(context, t)

    def sweep(self, carry: Sweep) -> Sweep:
        record = self.record.steps
        if isinstance(record, Tape):
            return self.over(record, carry)
        assert isinstance(record, Snapshots)
        last = max_of(record.used) - 1 if self.many else record.used - 1

        # One row more than segments is where the last of them ended.
        keep = Keep(segments=jtu.tree_leaves(record.carry)[0].shape[0] - 1)

        def segment(i: Array, carry: Sweep) -> Sweep:
            start, end = record.read(last - i), record.read(last - i + 1)
            tape = retape(self.plan, self.inputs, self.forward_settings, keep, start, end)
            return self.over(tape, carry)

        return jax.lax.fori_loop(0, last + 1, segment, carry)

    def over(self, tape: Tape, carry: Sweep) -> Sweep:
        """Backwards over the steps of a tape; lanes of many each at a step of their own."""
        spare = Spare.of(tape)

        def left(state: tuple[Array, Sweep]) -> Array:
            k, carry = state
            return (k >= 0) & self.going(carry)

        def back(state: tuple[Array, Sweep]) -> tuple[Array, Sweep]:
            k, carry = state
            row = read(tape, jnp.maximum(k, 0), jnp.zeros((), jnp.int32), spare)
            carry = self.through(row, carry)
            done = (carry.steps.t >= -row.t) | ~row.active
            return k - (done & left(state)).astype(jnp.int32), carry

        state = (tape.used - 1, carry)
        return jax.lax.while_loop(lambda state: self.pending(left(state)), back, state)[1]

    def through(self, row: Row, carry: Sweep) -> Sweep:
        """Backwards over one recorded step; a step on, if there are many lanes."""
        alg, field = self.plan.alg, self.plan.field(self.inputs)
        memory = alg.recall(field, row.t, row.u, row.past)
        result = alg.step(field, row.t, row.dt, row.u, memory, None)
        context = (alg.dense(field, row.t, row.dt, row.u, result.stages), row.t, row.dt)
        if self.plan.controller is None:
            carry = carry._replace(steps=carry.steps._replace(dt=row.dt))
        # A row that is no step leads nowhere.
        end = jnp.where(row.active, -row.t, carry.steps.t)
        if self.many:
            return self.piece(carry, context, end, row.active)
        return jax.lax.while_loop(
            lambda carry: self.going(carry, end),
            lambda carry: self.piece(carry, context, end),
            carry,
        )


class Interpolating(OnRecord):
    """The parts are lambda and, if they move, the cotangents of the parameters."""

    def parts(self, u: State, adjoint: State) -> tuple[PyTree, ...]:
        return (adjoint, [jnp.zeros_like(x) for x in self.args])[: 2 if self.args else 1]

    def slope(
        self, parts: tuple[PyTree, ...], t: Array, context: PyTree, args: tuple[Array, ...]
    ) -> tuple[PyTree, ...]:
        _, u_bar, args_bar = self.pulled(args, t, self.state(context, t), parts[0])
        return (u_bar, args_bar)[: len(parts)]

    def for_args(self, carry: Sweep) -> list[Array]:
        return self.packing.unpack(carry.steps.u)[1] if self.args else []

    def with_args(self, carry: Sweep, bars: list[Array]) -> Sweep:
        if not bars:
            return carry
        adjoint, args = self.packing.unpack(carry.steps.u)
        y = self.packing.pack((adjoint, jtu.tree_map(jnp.add, args, bars)))
        return carry._replace(steps=carry.steps._replace(u=y))
