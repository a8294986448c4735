"""`adjoint="auto"`: the adjoint that suits the size of a problem."""

import math
from typing import ClassVar

import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from ..stepping.outcome import Outcome
from ..stepping.plan import Inputs, Plan, Settings
from .base import Adjoint
from .discrete import DiscreteAdjoint

# The most memory that a tape may take before segments of it are kept instead.
_TAPE_BYTES = 256 * 2**20


class AutoAdjoint(Adjoint):
    """Picks the adjoint by size; `adjoint="auto"` is its name.

    While the tape of all steps is small, `DiscreteAdjoint()`: as measured by
    `benchmarks/scaling.py`, forward mode is as fast for two parameters and slower beyond. Else
    `DiscreteAdjoint(checkpoints=...)`, with as many segments as need the least memory. Both are
    exact and work under every transformation.

    !!! example
        `dj.solve(prob, dj.Tsit5(), adjoint="auto")`
    """

    takes: ClassVar[frozenset[str]] = DiscreteAdjoint.takes
    takes_callbacks: ClassVar[bool] = True

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        return self.choose(plan, inputs).solve(plan, inputs, settings)

    def choose(self, plan: Plan, inputs: Inputs) -> Adjoint:
        """The adjoint for a plan."""
        rows = plan.rows
        if rows * sum(map(_bytes, jtu.tree_leaves(inputs.u0))) <= _TAPE_BYTES:
            return DiscreteAdjoint()
        return DiscreteAdjoint(checkpoints=math.isqrt(rows))


def _bytes(x: Array) -> int:
    return int(np.prod(jax.typeof(x).shape)) * x.dtype.itemsize
