"""Reading back the noise that drove a solve."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..noise.base import Need, NoiseProcess
from .fixed import FixedGrid, time_on
from .plan import Inputs, Plan


class NoisePath(eqx.Module):
    """W of a solve, from its start: `sol.noise(t)`.

    Of fixed steps it is known where they end, and a line between; of adaptive ones anywhere. Of
    fixed steps that jumps have cut it is not kept.
    """

    noise: NoiseProcess
    t0: Float[Array, ""]
    t1: Float[Array, ""]
    direction: Any
    grid: FixedGrid | None

    @staticmethod
    def of(plan: Plan, inputs: Inputs, direction: Any) -> "NoisePath":
        assert inputs.noise is not None
        cut = plan.events is not None and plan.events.ringing
        grid = None if inputs.noise.anywhere or cut else FixedGrid.of(plan, inputs)
        t0, t1 = inputs.t0, inputs.t1
        return NoisePath(inputs.noise.kept(), t0, t1, jnp.asarray(direction, t0.dtype), grid)

    def __call__(self, t: Any) -> Float[Array, "*times dim"]:
        """The value at a time inside the span, or at an array of times.

        **Raises:** `ValueError` for noise that is not kept.
        """
        if self.grid is None and not self.noise.anywhere:
            raise ValueError(
                "the noise of fixed steps that jumps have cut is not kept; take adaptive steps "
                "(for example dj.LambaEM()), whose noise is known at any time."
            )
        times = jnp.asarray(t, self.t0.dtype) * self.direction
        flat = self._at(times.reshape(-1))
        return flat.reshape(*times.shape, flat.shape[-1])

    @jax.jit
    def _at(self, times: Float[Array, " n"]) -> Float[Array, "n dim"]:
        grid = self.grid
        if grid is None:
            return jax.vmap(self.noise.at)(times) - self.noise.at(self.t0)[None]
        numbers = jnp.arange(grid.steps + 1, dtype=jnp.int32)
        ends = jax.vmap(lambda k: time_on(grid, self.t0, self.t1, k))(numbers)

        def one(number: Array, start: Array, end: Array) -> Array:
            there = end != start
            dt = jnp.where(there, end - start, 1)
            dw = self.noise.over(number, start, dt, Need(), None)[0].dw
            return jnp.where(there, dw, 0)

        steps = jax.vmap(one)(numbers[:-1], ends[:-1], ends[1:])
        values = jnp.concatenate([jnp.zeros_like(steps[:1]), jnp.cumsum(steps, axis=0)])
        return jax.vmap(jnp.interp, in_axes=(None, None, 1), out_axes=1)(times, ends, values)
