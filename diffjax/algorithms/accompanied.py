"""A method whose steps carry along what events change beside the state.

Parameters that affects change, and the times at which the next jumps are due, are no part of the
state: no error is controlled for them, and no Jacobian has a row for them. They ride with the
memory of the method, so that they are kept on tapes and differentiated like past values.
"""

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, PyTree

from ..noise.base import Need
from .base import Algorithm, Memory, Norm, StepResult
from .field import Field, State


class Marks(eqx.Module):
    """What is carried along.

    - `inner`: the method's own history.
    - `parameters`: the leaves of p that are `changing`.
    - `alarms`: when jumps are due; None without jumps of known times.
    """

    inner: PyTree
    parameters: tuple[Array, ...]
    alarms: Float[Array, " jumps"] | None
    changing: tuple[int, ...] = eqx.field(static=True)

    @property
    def all(self) -> tuple[Array, ...]:
        """All that affects change."""
        return self.parameters if self.alarms is None else (*self.parameters, self.alarms)


class Accompanied(Algorithm):
    """The method `inner`, whose field's last arguments are the leaves of p that are `changing`."""

    inner: Algorithm
    changing: tuple[int, ...] = eqx.field(static=True, default=())

    # What it declares is what the method declares. The contract has these as attributes of a class;
    # here only an instance knows them, which a type checker cannot be told otherwise.
    is_explicit_one_step = property(lambda self: self.inner.is_explicit_one_step)  # pyright: ignore
    is_dense_linear = property(lambda self: self.inner.is_dense_linear)  # pyright: ignore
    counted = property(lambda self: self.inner.counted)  # pyright: ignore

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def order(self) -> float:
        return self.inner.order

    @property
    def error_order(self) -> float | None:
        return self.inner.error_order

    @property
    def dense_order(self) -> int:
        return self.inner.dense_order

    @property
    def stability(self) -> float | None:
        return self.inner.stability

    @property
    def looks_back(self) -> bool:
        return self.inner.looks_back

    @property
    def init_counts(self) -> dict[str, int]:
        return self.inner.init_counts

    @property
    def step_counts(self) -> dict[str, int]:
        return self.inner.step_counts

    @property
    def dense_counts(self) -> dict[str, int]:
        return self.inner.dense_counts

    def need(self, dim: int) -> Need:
        return self.inner.need(dim)

    @property
    def phases(self) -> tuple[Algorithm, ...]:
        return tuple(Accompanied(phase, self.changing) for phase in self.inner.phases)

    def ready(self, memory: Memory) -> Bool[Array, ""]:
        return self.inner.ready(_own(memory))

    def begins(self, memory: Memory) -> Bool[Array, ""]:
        return self.inner.begins(_own(memory))

    def enter(self, field: Field, t: Array, u: State, memory: Memory) -> Memory:
        own = self.inner.enter(self.field_now(field, memory), t, u, _own(memory))
        return _with(own, memory.history)

    def init(self, field: Field, t: Array, u: State) -> Memory:
        count = len(self.changing)
        parameters = field.args[len(field.args) - count :]
        marks = Marks(None, parameters, field.alarms, self.changing)
        return _with(self.inner.init(field, t, u), marks)

    def recall(self, field: Field, t: Array, u: State, lasting: Memory) -> Memory:
        own = self.inner.recall(self.field_now(field, lasting), t, u, _own(lasting))
        return _with(own, lasting.history)

    def restart(
        self, field: Field, t: Array, u: State, memory: Memory, parameters: tuple[Array, ...]
    ) -> Memory:
        count = len(self.changing)
        alarms = parameters[count] if len(parameters) > count else None
        marks = Marks(None, parameters[:count], alarms, self.changing)
        now = self.field_now(field, Memory(marks))
        return _with(self.inner.restart(now, t, u, _own(memory), ()), marks)

    def parameters(self, memory: Memory) -> tuple[Array, ...]:
        return memory.history.all

    def alarms(self, memory: Memory) -> Float[Array, " jumps"] | None:
        return memory.history.alarms

    def field_now(self, field: Field, memory: Memory) -> Field:
        return field.with_last(memory.history.parameters)

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        now, marks = self.field_now(field, memory), memory.history
        result = self.inner.step(now, t, dt, u, _own(memory), norm)
        return result._replace(
            memory=_with(result.memory, marks),
            memory_if_rejected=_with(result.memory_if_rejected, marks),
            stages=(result.stages, marks.parameters),
        )

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        own, parameters = stages
        return self.inner.dense(field.with_last(parameters), t, dt, u, own)

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        return self.inner.interpolate(coefficients, theta)

    def stiffness(self, dt: Array, u: State, stages: PyTree) -> Any:
        return self.inner.stiffness(dt, u, stages[0])


def _own(memory: Memory) -> Memory:
    """What the method itself remembers."""
    return memory._replace(history=memory.history.inner)


def _with(own: Memory, marks: Marks) -> Memory:
    """The method's memory with what is carried along."""
    return own._replace(history=dataclasses.replace(marks, inner=own.history))
