"""The events of a solve, as its loop sees them: traced functions and what is known of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from ..algorithms.field import Field, State, evaluate
from ..varying import mesh_axes, vary_over

# The leaves of p that affects change, in the order of the leaves.
Parameters = tuple[Array, ...]


class EventArgs(NamedTuple):
    """What the traced functions close over, and beside it

    - `owners`: which stop belongs to which scheduled callback: a row for every time that a step is
        cut to end on, the last for the end of the span.
    - `consistent`: of a field, a time and a state the state that satisfies the algebraic equations,
        its derivative if the problem is fully implicit, whether there is one, and the work; None
        where every state does.
    """

    conditions: tuple[Array, ...]
    tests: tuple[Array, ...]
    affects: tuple[Array, ...]
    refusals: tuple[Array, ...]
    owners: Bool[Array, "stops scheduled"] | None = None
    consistent: Callable[[Field, Array, State], tuple[State, Any, Array, Array]] | None = None


@dataclass(frozen=True, eq=False)
class Events:
    """The callbacks of a solve; numbers are positions in the order they are listed in.

    - `condition_jaxpr`, `test_jaxpr`, `affect_jaxpr`, `refusal_jaxpr`: all conditions of continuous
        callbacks, those of discrete ones, all affects in turn, and whether the end of a step is
        refused; traced once.
    - `continuous`, `discrete`, `scheduled`: which callbacks are of which kind.
    - `directions`: of the continuous ones; `limited`: whether too many of them end the solve.
    - `ringing`: those that act when a jump is due.
    - `acts`, `terminates`, `logged`: by callback.
    - `samples`: points inside a step at which conditions are looked at.
    - `save`: whether the states before and after events are kept.
    - `changing`: how many leaves of p affects change.
    - `most`: how many events are kept; more of continuous callbacks end the solve.
    """

    condition_jaxpr: Any
    test_jaxpr: Any
    affect_jaxpr: Any
    refusal_jaxpr: Any
    continuous: tuple[int, ...]
    discrete: tuple[int, ...]
    scheduled: tuple[int, ...]
    ringing: tuple[int, ...]
    directions: tuple[int, ...]
    acts: tuple[bool, ...]
    terminates: tuple[bool, ...]
    logged: tuple[bool, ...]
    limited: tuple[bool, ...]
    samples: int
    save: bool
    changing: int
    most: int

    @property
    def count(self) -> int:
        """How many callbacks there are."""
        return len(self.acts)

    @property
    def jaxprs(self) -> tuple[Any, ...]:
        """All that was traced; None for what there is not."""
        return self.condition_jaxpr, self.test_jaxpr, self.affect_jaxpr, self.refusal_jaxpr

    def conditions(
        self, args: EventArgs, t: Array, u: State, parameters: Parameters
    ) -> Float[Array, " continuous"]:
        """The values of the conditions whose roots are events."""
        leaves = jtu.tree_leaves(u)
        return evaluate(self.condition_jaxpr, (), *args.conditions, *parameters, t, *leaves)[0]

    def tests(
        self, args: EventArgs, t: Array, u: State, parameters: Parameters
    ) -> Bool[Array, " discrete"]:
        """Which discrete callbacks' conditions are met."""
        leaves = jtu.tree_leaves(u)
        return evaluate(self.test_jaxpr, (), *args.tests, *parameters, t, *leaves)[0]

    def refused(
        self, args: EventArgs, t: Array, u: State, parameters: Parameters
    ) -> Bool[Array, ""]:
        """Whether a step must not end here."""
        leaves = jtu.tree_leaves(u)
        refusals = evaluate(self.refusal_jaxpr, (), *args.refusals, *parameters, t, *leaves)[0]
        return jnp.any(refusals)

    def affect(
        self,
        args: EventArgs,
        fired: Bool[Array, " callbacks"],
        number: Int[Array, ""],
        t: Array,
        u: State,
        parameters: Parameters,
    ) -> tuple[State, Parameters]:
        """The state and the parameters after the affects of all that fired, in turn."""
        if self.affect_jaxpr is None:
            return u, parameters
        leaves, structure = jtu.tree_flatten(u)
        # As where they were traced.
        fired, number = vary_over(mesh_axes((t, leaves)), (fired, number))
        out = evaluate(self.affect_jaxpr, (), *args.affects, *parameters, fired, number, t, *leaves)
        return jtu.tree_unflatten(structure, out[: len(leaves)]), tuple(out[len(leaves) :])

    def fired(
        self,
        located: Bool[Array, " continuous"] | None,
        tested: Bool[Array, " discrete"] | None,
        due: Bool[Array, " scheduled"] | None,
        rings: Bool[Array, ""] | None,
    ) -> Bool[Array, " callbacks"]:
        """One flag a callback, from those of each kind; None for a kind that cannot fire now."""
        flags: list[Any] = [jnp.asarray(False)] * self.count
        kinds = ((self.continuous, located), (self.discrete, tested), (self.scheduled, due))
        for place in self.ringing if rings is not None else ():
            flags[place] = rings
        for which, values in kinds:
            if values is not None:
                for i, place in enumerate(which):
                    flags[place] = values[i]
        return jnp.stack(flags)

    def any_of(self, flags: tuple[bool, ...], fired: Bool[Array, " callbacks"]) -> Bool[Array, ""]:
        """Whether some callback fired for which a flag is set."""
        return jnp.any(fired & jnp.asarray(flags))

    def places(self, fired: Bool[Array, " callbacks"], number: Array) -> list[tuple[Array, Array]]:
        """Of each callback whether it is entered in the log, and in which row."""
        rows = []
        for i, logged in enumerate(self.logged):
            entered = fired[i] & logged
            rows.append((entered & (number < self.most), number))
            number = number + entered.astype(jnp.int32)
        return rows
