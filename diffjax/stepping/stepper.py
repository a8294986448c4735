"""The contract between a loop over steps and what takes one of them.

A loop knows no step-size control: it carries a state that only the stepper looks into, asks
whether the solve goes on and where it stands, and is handed each attempted step as a `Record`.
"""

from copy import copy
from typing import Any, Generic, NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..algorithms.base import Algorithm, Memory, State, StepResult
from ..events.transition import StepEvents
from .plan import Inputs, Plan
from .trees import when

Carry = TypeVar("Carry")

# `Record.landed` of a step that was cut to end when a jump is due.
ON_ALARM = -2


class Step(NamedTuple):
    """A step from `(t, u)` to `t + dt`, with the lasting memory that it was taken with and the
    stages that its extension is made of."""

    t: Float[Array, ""]
    dt: Float[Array, ""]
    u: State
    past: Memory
    stages: PyTree


class Record(NamedTuple):
    """One attempted step, as savers and the tape see it.

    `landed` is the index of the stop that the step was cut to end on, -1 if none, `ON_ALARM`
    if a jump was due. `events` are those at its end; None for a solve without any.
    """

    step: Step
    accepted: bool | Bool[Array, ""]
    landed: Int[Array, ""]
    events: StepEvents | None = None


class Counts(NamedTuple):
    """Steps so far."""

    naccept: Int[Array, ""]
    nreject: Int[Array, ""]


class Iterations(NamedTuple):
    """What is carried along with an algorithm whose steps iterate (`Algorithm.counted`).

    - `counts`: the sums of `StepResult.counts`.
    - `failed`: the iteration of the last attempted step did not converge.
    """

    counts: Int[Array, " counted"]
    failed: Bool[Array, ""]

    def after(self, result: StepResult, active: Array | bool = True) -> "Iterations":
        """With one more attempted step, which counts if `active`."""
        assert result.counts is not None
        return Iterations(
            counts=self.counts + jnp.where(active, result.counts, 0),
            failed=jnp.where(active, ~jnp.asarray(result.ok), self.failed),
        )


class Stepper(Generic[Carry]):
    """Base class. A carry is a named tuple with fields `u`, `memory`, `iterations` and `events`,
    and a property `steps`, the number of accepted ones."""

    # Of a solve with events: whether this one takes the steps in which nothing happens, or the
    # others; None if it takes both.
    quiet: bool | None = None

    def __init__(self, plan: Plan, inputs: Inputs) -> None:
        self.plan, self.inputs = plan, inputs
        self.alg = plan.alg
        self.field = plan.field(inputs)

    @property
    def callbacks(self) -> int | None:
        """How many callbacks there are; None for a solve without events."""
        return None if self.plan.events is None else self.plan.events.count

    def phases(self) -> list["Stepper[Carry]"]:
        """A stepper for each kind of step, if there are several."""
        if self.plan.events is None:
            return [self._taking(alg, None) for alg in self.alg.phases]
        algs = self.alg.phases or (self.alg,)
        return [self._taking(alg, quiet) for alg in algs for quiet in (True, False)]

    def _taking(self, alg: Algorithm, quiet: bool | None) -> "Stepper[Carry]":
        other = copy(self)
        other.alg, other.quiet = alg, quiet
        return other

    def ready(self, c: Any) -> Bool[Array, ""]:
        """Whether the next step is of the kind that this stepper takes."""
        ready = self.alg.ready(c.memory)
        return ready if self.quiet is None else ready & (c.events.quiet == self.quiet)

    def enter(self, c: Any) -> Any:
        """The carry when a loop over steps of one kind begins."""
        alg, t, u = self.alg, self.time(c), self.state(c)
        memory = when(alg.begins(c.memory), lambda m: alg.enter(self.field, t, u, m), c.memory)
        return c._replace(memory=memory)

    def no_iterations(self) -> Iterations | None:
        """What is carried before the first step; None for steps that do not iterate."""
        if not self.alg.counted:
            return None
        return Iterations(jnp.zeros(len(self.alg.counted), jnp.int32), jnp.zeros((), bool))

    def init(self) -> Carry:
        """The carry before the first step."""
        raise NotImplementedError

    def active(self, c: Carry) -> Bool[Array, ""]:
        """Whether the solve goes on."""
        raise NotImplementedError

    def time(self, c: Carry) -> Float[Array, ""]:
        raise NotImplementedError

    def state(self, c: Carry) -> State:
        raise NotImplementedError

    def attempt(self, c: Carry, *, masked: bool) -> tuple[Carry, Record]:
        """One attempted step; `masked` leaves a solve that has ended as it is."""
        raise NotImplementedError

    def counts(self, c: Carry) -> Counts:
        raise NotImplementedError

    def status(self, c: Carry) -> Int[Array, ""]:
        """The return code of a solve that is no longer active."""
        raise NotImplementedError

    def final(self, c: Carry) -> tuple[Array, PyTree] | None:
        """The next step's size and the controller's memory, to resume with; None if there is no
        controller."""
        raise NotImplementedError

    def report_progress(self, old: Carry, new: Carry) -> None:
        """Tell the progress bar, if there is one, what a step has done."""
        report: Any = self.plan.progress
        if report is None:
            return
        span = self.inputs.t1 - self.inputs.t0
        before, after = ((self.time(c) - self.inputs.t0) / span for c in (old, new))
        report(before, after, jnp.asarray(self.active(new)))
