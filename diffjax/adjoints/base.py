"""How a solve is differentiated."""

import equinox as eqx

from ..stepping.outcome import Outcome
from ..stepping.plan import Inputs, Plan, Settings


class Adjoint(eqx.Module):
    """Base class: runs a solve in such a way that JAX can differentiate it."""

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        """The outcome of the solve, with derivatives attached."""
        raise NotImplementedError
