"""The contract between one step and the loop that takes it.

How to add an algorithm:

1. For a method of a family that exists, write its coefficients into `tableaus/` (numbers, each
   with its source) and a constructor beside its kin (see `explicit_rk.py`).
2. For a new family, subclass `Algorithm` in a file of its own and write the four methods below.
   They are pure functions of their arguments; they never see saving, events, adjoints or the
   step controller.
3. Export it from `diffjax/__init__.py` and add a row to the table in `tests/methods.py`.

The loop never asks which algorithm it runs: what it needs to know is a declared attribute.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..noise.base import Need
from .field import Field as Field
from .field import State as State
from .field import evaluate as evaluate

# The tolerance-scaled root-mean-square norm: norm(v, u_start, u_end).
Norm = Callable[[State, State, State], Float[Array, ""]]


class Memory(NamedTuple):
    """What a step hands to the next beside the state; parts that a method has not are None.

    - `history`: past values that shape the next step, of real or complex numbers. They carry a
        derivative and are kept with every step on a tape.
    - `choice`: what was decided for the next step (an order, the side of a switch, counters). It
        is kept on a tape too, and frozen when the step is replayed.
    - `cache`: what only saves work. It may be dropped at any time, for that of `Algorithm.init`.
    """

    history: PyTree = None
    choice: PyTree = None
    cache: PyTree = None

    @property
    def lasting(self) -> "Memory":
        """Without what may be dropped."""
        return self._replace(cache=None)


class StepResult(NamedTuple):
    """What one attempted step gives back.

    - `u`: the state at the end of the step.
    - `error`: scaled error norm, to be accepted at or below 1; None if the method has no estimate.
    - `ok`: False if the step must be rejected whatever its error (a failed Newton solve).
    - `memory`, `memory_if_rejected`: what the next step gets if this one is accepted, rejected. A
        rejected step leaves the history as it was.
    - `stages`: what `dense` needs.
    - `counts`: the work of this step that differs from step to step, a number for each name in the
        algorithm's `counted`; None if that is empty.
    - `dt_next`: the size that the method itself proposes for the next attempt, whether this one is
        accepted or not; None, or NaN in a lane, leaves it to the step controller.
    - `stiffness`: of an implicit step |dt| times the largest row sum of the Jacobian, which bounds
        the eigenvalues; None if unknown.
    """

    u: State
    error: Float[Array, ""] | None
    ok: bool | Array
    memory: Memory
    memory_if_rejected: Memory
    stages: PyTree
    counts: Int[Array, " counted"] | None = None
    dt_next: Float[Array, ""] | None = None
    stiffness: Float[Array, ""] | None = None


class Algorithm(eqx.Module):
    """How one step is taken.

    Class attributes declare what the loop, the front door and the adjoints may rely on.
    """

    # Kinds of problem it takes, by class name.
    takes: ClassVar[frozenset[str]] = frozenset()
    # A step is explicit and follows from (t, u) alone; the first of the coefficients that `dense`
    # gives is the state at its start, which `interpolate` adds the others to.
    is_explicit_one_step: ClassVar[bool] = False
    # Of a stochastic equation the kinds of noise that it takes, and the interpretations.
    noises: ClassVar[frozenset[str]] = frozenset()
    interpretations: ClassVar[frozenset[str]] = frozenset()
    # Whether what it makes of the noises holds for independent ones only.
    needs_independent_noises: ClassVar[bool] = False
    # The continuous extension is the line between both ends of a step, and needs nothing of it.
    is_dense_linear: ClassVar[bool] = False
    # Whether the sizes of its steps follow from a rule of its own (`StepResult.dt_next`), so that
    # `error_order` serves for the first step alone.
    sizes_steps: ClassVar[bool] = False
    # Whether M in M u' = f may be another matrix than the identity.
    takes_mass_matrix: ClassVar[bool] = False
    # Statistics that every step counts for itself, by name. An algorithm whose steps iterate counts
    # here, and only such a one may return a step that is not `ok`.
    counted: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """What error messages call it."""
        return type(self).__name__

    @property
    def order(self) -> float:
        """Order of convergence of the solution that is carried forward; of a stochastic equation
        the strong order, which may be a half, of a weak method the weak one."""
        raise NotImplementedError

    @property
    def error_order(self) -> float | None:
        """Order of the embedded solution; None if there is no error estimate."""
        raise NotImplementedError

    @property
    def dense_order(self) -> int:
        """Order of the continuous extension."""
        raise NotImplementedError

    @property
    def is_fsal(self) -> bool:
        """Whether the last stage of a step is the first of the next: `Memory.cache` is the
        derivative at the start of the step, and nothing else."""
        return False

    @property
    def stability(self) -> float | None:
        """Length of the interval of stability on the negative real axis, of explicit methods whose
        `stiffness` is known; None otherwise."""
        return None

    @property
    def looks_back(self) -> bool:
        """Whether past values shape its steps, which a sliver of a step would spoil."""
        return False

    @property
    def init_counts(self) -> dict[str, int]:
        """Work of `init`, by name of the statistic."""
        return {}

    @property
    def step_counts(self) -> dict[str, int]:
        """Work of one attempted step, where it is the same every time."""
        return {}

    @property
    def dense_counts(self) -> dict[str, int]:
        """Work of one call of `dense`; empty if it only rearranges what the step computed."""
        raise NotImplementedError

    def need(self, dim: int) -> Need:
        """What a step wants to know of so many noises, beside their increments."""
        return Need()

    @property
    def phases(self) -> tuple["Algorithm", ...]:
        """Of an algorithm whose steps are of several kinds: each kind by itself, as an algorithm
        with the same memory and results. The steps of one trajectory then run in a loop a kind,
        with no choice in it, which XLA compiles far better."""
        return ()

    def ready(self, memory: Memory) -> Bool[Array, ""]:
        """Whether the next step is of this kind, as it is if all are alike."""
        return jnp.asarray(True)

    def begins(self, memory: Memory) -> Bool[Array, ""]:
        """Whether the next step is the first of this kind in a row, for which to `enter`."""
        return jnp.asarray(False)

    def enter(self, field: Field, t: Array, u: State, memory: Memory) -> Memory:
        """The memory before the first step of this kind in a row."""
        return memory

    def init(self, field: Field, t: Array, u: State) -> Memory:
        """The memory before the first step."""
        raise NotImplementedError

    def recall(self, field: Field, t: Array, u: State, lasting: Memory) -> Memory:
        """The memory of a step that is taken again, of which only the lasting part was kept."""
        return lasting._replace(cache=self.init(field, t, u).cache)

    def restart(
        self, field: Field, t: Array, u: State, memory: Memory, parameters: tuple[Array, ...]
    ) -> Memory:
        """The memory after an event has made `u` of the state, and `parameters` of those that
        events change."""
        return self.init(field, t, u)

    def parameters(self, memory: Memory) -> tuple[Array, ...]:
        """What events change beside the state, as it is now: parameters, and last the alarms."""
        return ()

    def alarms(self, memory: Memory) -> Float[Array, " jumps"] | None:
        """When jumps are due; None without any."""
        return None

    def field_now(self, field: Field, memory: Memory) -> Field:
        """The field with the parameters as they are now."""
        return field

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        """Attempt a step from (t, u) to t + dt; `norm=None` asks for no error estimate, and for
        none of the decisions that would follow from one."""
        raise NotImplementedError

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        """Coefficients of the continuous extension over a step."""
        raise NotImplementedError

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        """The state at t + theta*dt; linear in `coefficients`."""
        raise NotImplementedError

    def stiffness(self, dt: Array, u: State, stages: PyTree) -> Float[Array, ""] | None:
        """|dt * rho| over the interval of stability for a step from u; None if unknown."""
        return None


class TableauMethod(Algorithm):
    """Base class of methods that are given by a tableau: what that says of them."""

    tableau: eqx.AbstractVar[Any]

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def error_order(self) -> int | None:
        return self.tableau.error_order

    @property
    def dense_order(self) -> int:
        return self.tableau.dense.order

    @property
    def name(self) -> str:
        return self.tableau.name

    @property
    def dense_counts(self) -> dict[str, int]:
        """Of implicit stages one iteration each; they take some five."""
        extra = len(self.tableau.dense.c_extra)
        if self.tableau.dense.gamma_extra:
            return dict.fromkeys(("nf", "njac", "nfactor", "nsolve"), extra)
        return {"nf": extra} if extra else {}
