"""How steps make a solve: which driver takes it, and the choice between one and many.

For one trajectory the drivers are `plain` and `by_saves`, whose loops carry as little as will do.
Many under `vmap`, and whoever needs a record of the steps, are served by `by_steps`.
"""

from typing import Any

from ..varying import vary_alike
from .by_steps import by_segments, by_steps, retape_segment
from .lanes import one_or_many
from .outcome import Keep, Outcome, make_stepper, outcome_of, step_to_end
from .plan import Inputs, Plan, Settings
from .refill import Crowd
from .saving import by_saves
from .tape import Tape


def plain(plan: Plan, inputs: Inputs, settings: Settings, *, many: bool, idle: bool) -> Outcome:
    """Only the final state: the smallest loop there is."""
    stepper = make_stepper(plan, inputs, settings)
    carry = vary_alike((stepper.init(), inputs, settings))[0]
    return outcome_of(stepper, carry if idle else step_to_end(stepper, carry, many=many))


def drive(
    plan: Plan,
    inputs: Inputs,
    settings: Settings,
    keep: Keep,
    *,
    many: bool = False,
    idle: bool = False,
) -> Outcome:
    """Solve by the driver that suits one trajectory, or many under `vmap`; a plain loop.

    An `idle` driver takes no step: what it gives back has the right types, and nothing more.
    """
    if keep.segments is not None:
        return by_segments(plan, inputs, settings, keep, many=many, idle=idle)
    if keep.tape or keep.every is not None or (many and inputs.saves is not None):
        return by_steps(plan, inputs, settings, keep, many=many, idle=idle)
    if inputs.saves is None:
        return plain(plan, inputs, settings, many=many, idle=idle)
    return by_saves(plan, inputs, settings, idle=idle)


def integrate(plan: Plan, inputs: Inputs, settings: Settings, keep: Keep) -> Outcome:
    """Solve, choosing the driver by whether a `vmap` is around."""

    def idle(inputs: Inputs, settings: Settings) -> Outcome:
        # A first step that is given, since to choose one is half of what there would be to trace.
        settings = settings._replace(dt=inputs.t1)
        return drive(plan, inputs, settings, keep, idle=True)

    return one_or_many(
        lambda i, s: drive(plan, i, s, keep),
        lambda i, s: drive(plan, i, s, keep, many=True),
        inputs,
        settings,
        native=plan.small,
        like=idle,
        crowd=Crowd(plan, inputs, settings, keep),
    )


def retape(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, start: Any, end: Any
) -> Tape:
    """Take the steps between two snapshots again, this time keeping a tape."""
    return one_or_many(
        lambda i, s, a, b: retape_segment(plan, i, s, keep, a, b, many=False),
        lambda i, s, a, b: retape_segment(plan, i, s, keep, a, b, many=True),
        inputs,
        settings,
        start,
        end,
        native=plan.small,
    )
