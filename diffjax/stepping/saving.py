"""What is saved inside a step, and the driver for one trajectory that saves.

For one trajectory the fastest program is an outer loop over save times around an inner loop whose
carry is so small that XLA compiles it to one native function (`by_saves`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Int, PyTree

from ..algorithms.base import Memory
from ..varying import mesh_axes, vary_alike, vary_over
from .outcome import Outcome, make_stepper, outcome_of, step_to_end, step_while
from .plan import Inputs, Plan, Settings
from .stepper import Step, Stepper
from .trees import chosen, nan_like, when, where
from .watch import just_happened


class Saver:
    """Evaluates what is to be saved inside a step."""

    def __init__(self, plan: Plan, inputs: Inputs, stepper: Stepper[Any]) -> None:
        self.plan, self.inputs, self.stepper = plan, inputs, stepper
        self.lazy = bool(plan.alg.dense_counts)

    def dense(self, step: Step) -> PyTree:
        alg, field = self.plan.alg, self.stepper.field
        return alg.dense(field, step.t, step.dt, step.u, step.stages)

    def row(self, coefficients: PyTree, step: Step, ts: Array) -> list[Array]:
        theta = lax.div(lax.sub(ts, step.t), step.dt)
        u = self.plan.alg.interpolate(coefficients, theta)
        return self.plan.observe(self.inputs.save_args, u, ts)

    def after_events(self, row: list[Array], carry: Any, ts: Array) -> list[Array]:
        """What is saved at `ts`, which of the time of an event is the state after it."""
        if self.plan.events is None:
            return row
        moved = self.plan.observe(self.inputs.save_args, self.stepper.state(carry), ts)
        # A save some rounding later is inside the step after.
        here = self.stepper.time(carry) <= carry.events.latest
        return chosen(here & just_happened(carry.events, ts), moved, row)

    def initial_row(self) -> list[Array]:
        inputs = self.inputs
        return self.plan.observe(inputs.save_args, inputs.u0, inputs.t0)

    def blank_step(self, record: Any) -> Step:
        """Stands for the step before the first: constant and of length one, of a step's types."""
        stages = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), record.step.stages)
        t0 = self.inputs.t0
        return Step(t0, jnp.ones_like(t0), self.inputs.u0, Memory(), stages)

    def blank_coefficients(self, step: Step) -> PyTree:
        """Zero coefficients, whose extension is the initial state."""
        _, *others = jax.eval_shape(self.dense, step)
        return (step.u, *jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), others))


class _BySaves(NamedTuple):
    carry: Any
    step: Step
    coefficients: PyTree
    ndense: Int[Array, ""]
    saved: Int[Array, ""]


def by_saves(plan: Plan, inputs: Inputs, settings: Settings, *, idle: bool) -> Outcome:
    """One trajectory: step up to each save time in turn."""
    stepper = make_stepper(plan, inputs, settings)
    saver = Saver(plan, inputs, stepper)
    assert inputs.saves is not None
    carry = stepper.init()
    if idle:
        rows = jax.vmap(lambda _: saver.initial_row())(inputs.saves)
        none = jnp.zeros((), jnp.int32)
        return outcome_of(stepper, carry, rows=rows, ndense=none, saved=none)
    # Traced once, for the types of a step and for the loop.
    attempt = jax.jit(partial(stepper.attempt, masked=False), inline=True)
    step = saver.blank_step(jax.eval_shape(attempt, carry)[1])
    zero = jnp.zeros((), jnp.int32)
    # Extra stages of the extension are computed once a step however many saves fall into it, and
    # what they are made of is not kept.
    coefficients = None
    if saver.lazy:
        coefficients, step = saver.blank_coefficients(step), step._replace(stages=None)
    loop = vary_alike((_BySaves(carry, step, coefficients, zero, zero), inputs, settings))[0]
    axes = mesh_axes(loop)

    def advance(ts: Array, by: Stepper[Any], loop: _BySaves) -> _BySaves:
        one = attempt if by is stepper else partial(by.attempt, masked=False)
        carry, record = one(loop.carry)
        # Of a method of fixed nodes some of what it hands on is constant.
        step = vary_over(axes, record.step._replace(past=Memory()))
        if not saver.lazy:
            return loop._replace(carry=carry, step=step)
        due = lax.bitwise_and(record.accepted, lax.ge(stepper.time(carry), ts))
        # A loop of one turn and not a branch, which no native function may contain.
        coefficients = when(due, lambda _: saver.dense(step), loop.coefficients)
        ndense = loop.ndense + due.astype(jnp.int32)
        return _BySaves(carry, step._replace(stages=None), coefficients, ndense, loop.saved)

    def to_save(loop: _BySaves, ts: Array) -> tuple[_BySaves, list[Array]]:
        def pending(loop: _BySaves) -> Array:
            due = lax.lt(stepper.time(loop.carry), ts)
            return lax.bitwise_and(stepper.active(loop.carry), due)

        loop = step_while(stepper, pending, partial(advance, ts), loop, many=False)
        coefficients = loop.coefficients if saver.lazy else saver.dense(loop.step)
        row = saver.row(coefficients, loop.step, ts)
        if plan.alg.looks_back:
            # No extension through past values is made of a step that was not taken.
            row = chosen(loop.carry.steps > 0, row, saver.initial_row())
        row = saver.after_events(row, loop.carry, ts)
        reached = lax.ge(stepper.time(loop.carry), ts)
        row = [where(reached, x, nan_like(x)) for x in row]
        saved = lax.add(loop.saved, lax.convert_element_type(reached, jnp.int32))
        return loop._replace(saved=saved), row

    loop, rows = lax.scan(to_save, loop, inputs.saves)
    carry = loop.carry
    if not plan.ends_on_save:
        carry = step_to_end(stepper, carry, many=False)
    return outcome_of(stepper, carry, rows=rows, ndense=loop.ndense, saved=loop.saved)
