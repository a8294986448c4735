"""Forward sensitivities."""

from ..stepping.loop import Keep, Outcome, integrate
from ..stepping.plan import Inputs, Plan, Settings
from .base import Adjoint


class ForwardMode(Adjoint):
    """Carry tangents along with the steps: no tape at all."""

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        return integrate(plan, inputs, settings, Keep(tape=plan.every_step))
