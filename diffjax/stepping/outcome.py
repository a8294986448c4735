"""What the drivers share: how a solve starts, how it ends, and what comes back.

`loop.py` says which driver takes which solve. This part stands apart from it, since the drivers
need it and it needs none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..algorithms.base import Memory, State
from ..varying import vary_alike
from .adaptive import AdaptiveStepper
from .fixed import FixedStepper
from .fixed_events import FixedEventStepper
from .initialization import WORK
from .lanes import any_lane
from .plan import Inputs, Plan, Settings
from .stepper import Stepper
from .tape import Snapshots, Tape
from .trees import Apart, when
from .watch import EventLog

Loop = TypeVar("Loop", bound=Any)


@dataclass(frozen=True)
class Keep:
    """What a solve keeps of its steps for whoever replays them.

    - `tape`: all of them; without `states` only when they were.
    - `segments`: the loop's state at the start of each of this many segments.
    - `every`: the state, and the history beside it, at the start of every so-many-th step.
    - `landings`: which steps were cut to end on a given time.
    """

    tape: bool = False
    states: bool = True
    segments: int | None = None
    every: int | None = None
    landings: bool = False


class Outcome(NamedTuple):
    """What a driver gives back, before anybody looks at it.

    - `rows`: what was saved, arrays with a leading axis over `saves`; None without save times.
    - `tape`: the accepted steps, if asked for.
    - `final`: the next step's size and the controller's memory; None for fixed steps.
    - `saved`: how many save times were reached.
    - `memory`: the lasting part of what the algorithm remembers at the end.
    - `states`: rows of states, and of the history beside them, if asked for.
    - `log`: the events; None for a solve without.
    - `work`: what was done beside steps that all cost the same, by name of the statistic.
    """

    rows: list[Array] | None
    u_end: State
    t_end: Float[Array, ""]
    tape: Tape | Snapshots | None
    final: tuple[Array, PyTree] | None
    status: Int[Array, ""]
    naccept: Int[Array, ""]
    nreject: Int[Array, ""]
    ndense: Int[Array, ""]
    saved: Int[Array, ""] | None
    memory: Memory | None = None
    states: tuple[PyTree, PyTree] | None = None
    work: dict[str, Array] | None = None
    log: EventLog | None = None


def make_stepper(
    plan: Plan, inputs: Inputs, settings: Settings, limit: Array | None = None
) -> Stepper[Any]:
    """The stepper of a plan; `limit` is the time that adaptive steps do not pass."""
    if plan.controller is None:
        return (
            FixedStepper(plan, inputs) if plan.events is None else FixedEventStepper(plan, inputs)
        )
    return AdaptiveStepper(plan, inputs, settings, limit)


class _Bare(NamedTuple):
    """The state of a loop that carries nothing but what the stepper does."""

    carry: Any


def step_while(
    stepper: Stepper[Any],
    pending: Callable[[Loop], Array],
    advance: Callable[[Stepper[Any], Loop], Loop],
    loop: Loop,
    *,
    many: bool,
) -> Loop:
    """`advance` the state of a loop, which has a field `carry`, as long as it is `pending`.

    Of one trajectory the steps of each kind have a loop of their own (`Algorithm.phases`).
    """
    if many:
        apart = Apart(loop)
        parts = jax.lax.while_loop(
            lambda parts: pending(apart.join(parts)),
            lambda parts: apart.split(advance(stepper, apart.join(parts))),
            apart.split(loop),
        )
        return apart.join(parts)
    phases = stepper.phases()
    if not phases:
        return jax.lax.while_loop(pending, lambda loop: advance(stepper, loop), loop)

    def steps_of(phase: Stepper[Any], loop: Any) -> Any:
        return jax.lax.while_loop(
            lambda loop: pending(loop) & phase.ready(loop.carry),
            lambda loop: advance(phase, loop),
            loop._replace(carry=phase.enter(loop.carry)),
        )

    def turn(loop: Any) -> Any:
        # What XLA moves out of a loop over steps must not be computed where none is taken.
        for phase in phases:
            ready = pending(loop) & phase.ready(loop.carry)
            loop = when(ready, partial(steps_of, phase), loop)
        return loop

    return jax.lax.while_loop(pending, turn, loop)


def step_to_end(stepper: Stepper[Any], carry: Any, *, many: bool) -> Any:
    """Step to the end. Lanes of many go on until the last has ended, which an unbatched condition
    says; a batched one would make XLA select over the whole carry."""

    def pending(loop: _Bare) -> Array:
        active = stepper.active(loop.carry)
        return any_lane(active) if many else active

    def advance(stepper: Stepper[Any], loop: _Bare) -> _Bare:
        return _Bare(stepper.attempt(loop.carry, masked=many)[0])

    return step_while(stepper, pending, advance, _Bare(carry), many=many).carry


def outcome_of(
    stepper: Stepper[Any],
    carry: Any,
    rows: list[Array] | None = None,
    tape: Tape | Snapshots | None = None,
    ndense: Array | int = 0,
    saved: Array | None = None,
) -> Outcome:
    """The outcome of a solve whose loop has ended with this carry."""
    u, t = stepper.state(carry), stepper.time(carry)
    counts = stepper.counts(carry)
    outcome = Outcome(
        rows=rows,
        u_end=u,
        t_end=t,
        tape=tape,
        final=stepper.final(carry),
        status=stepper.status(carry),
        naccept=counts.naccept,
        nreject=counts.nreject,
        ndense=jnp.asarray(ndense, jnp.int32),
        saved=saved,
        memory=carry.memory.lasting,
        work=_counted(stepper, carry),
        log=None if carry.events is None else carry.events.log,
    )
    # So that all drivers give back the same types inside `shard_map`, of constant counts too.
    return vary_alike(outcome)


def _counted(stepper: Stepper[Any], carry: Any) -> dict[str, Array] | None:
    """What was done beside steps that all cost the same, by name of the statistic."""
    work = {}
    if carry.iterations is not None:
        work = dict(zip(stepper.alg.counted, carry.iterations.counts, strict=True))
    if carry.events is not None and carry.events.work is not None:
        for name, count in zip(WORK, carry.events.work, strict=True):
            work[name] = work.get(name, 0) + count
    return work or None
