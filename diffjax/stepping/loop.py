"""How steps make a solve: which driver takes it, and the choice between one and many.

For one trajectory the drivers are `plain` and `by_saves`, whose loops carry as little as will do.
Many under `vmap`, and whoever needs a record of the steps, are served by `by_steps`.
"""

from typing import Any

from .by_steps import by_segments, by_steps, retape_segment
from .lanes import one_or_many
from .outcome import Keep, Outcome, make_stepper, outcome_of, step_to_end
from .plan import Inputs, Plan, Settings
from .saving import by_saves
from .tape import Tape
from .varying import vary_alike


def plain(plan: Plan, inputs: Inputs, settings: Settings, *, many: bool) -> Outcome:
    """Only the final state: the smallest loop there is."""
    stepper = make_stepper(plan, inputs, settings)
    carry = vary_alike((stepper.init(), inputs, settings))[0]
    return outcome_of(stepper, step_to_end(stepper, carry, many=many))


def drive(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, *, many: bool = False
) -> Outcome:
    """Solve by the driver that suits one trajectory, or many under `vmap`; a plain loop."""
    if keep.segments is not None:
        return by_segments(plan, inputs, settings, keep, many=many)
    if keep.tape or keep.every is not None or (many and inputs.saves is not None):
        return by_steps(plan, inputs, settings, keep, many=many)
    if inputs.saves is None:
        return plain(plan, inputs, settings, many=many)
    return by_saves(plan, inputs, settings)


def integrate(plan: Plan, inputs: Inputs, settings: Settings, keep: Keep) -> Outcome:
    """Solve, choosing the driver by whether a `vmap` is around."""
    return one_or_many(
        lambda i, s: drive(plan, i, s, keep),
        lambda i, s: drive(plan, i, s, keep, many=True),
        inputs,
        settings,
        native=plan.small,
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
