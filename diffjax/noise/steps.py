"""White noise by step number: what fixed steps are driven by when nobody gives a path."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32

from .base import Increment, Need, NoiseProcess
from .random import normal_pairs, normals


class StepNoise(NoiseProcess):
    """Independent increments, each named by the key and the number of the step.

    There is nothing to carry along and nothing to search for, so a fixed step draws what it needs
    and no more; and a step that is taken again gets the same numbers. What else a method draws
    does not change the increments.
    """

    key: UInt32[Array, " 2"]
    count: int = eqx.field(static=True)

    @property
    def anywhere(self) -> bool:
        return False

    @property
    def has_extra(self) -> bool:
        return True

    @property
    def has_times(self) -> bool:
        # It is the root of the step's length times a number that stays.
        return True

    @property
    def dim(self) -> int:
        return self.count

    def over(
        self, number: Array, start: Array, dt: Array, need: Need, here: PyTree
    ) -> tuple[Increment, PyTree]:
        # One word of every draw makes the increment, the other what its integral adds to that.
        first, second = normal_pairs(self.key, number, self.count, dt.dtype)
        root = jnp.sqrt(jnp.abs(dt))
        dw, area, extra = root * first, None, None
        if need.area:
            # The integral of a Brownian motion given its end: mean dt*dw/2, variance |dt|**3/12.
            area = dt * (0.5 * dw + root * second / 12**0.5)
        if need.extra:
            extra = normals(self.key, number, need.extra, dt.dtype, start=self.count)
        return Increment(dw, area, extra), None
