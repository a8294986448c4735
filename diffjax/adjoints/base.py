"""How a solve is differentiated."""

from typing import ClassVar

import equinox as eqx

from ..algorithms.base import Algorithm
from ..stepping.outcome import Outcome
from ..stepping.plan import Inputs, Plan, Settings


class Adjoint(eqx.Module):
    """Base class: runs a solve in such a way that JAX can differentiate it."""

    # Kinds of problem it can differentiate, by class name.
    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem"})
    # Its steps restart at many times, or must be explicit: no method that learns as it goes is the
    # default.
    restarts: ClassVar[bool] = False
    # Whether it goes through what callbacks do.
    takes_callbacks: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What error messages call it."""
        return type(self).__name__

    def algorithm(self, alg: Algorithm) -> Algorithm:
        """The method that takes the steps; some adjoints need one made from the user's."""
        return alg

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        """The outcome of the solve, with derivatives attached."""
        raise NotImplementedError
