"""A stochastic solve run backwards along its own path, with its adjoint equation beside it.

In Stratonovich's sense lambda' = -(df/du)^T lambda - sum_k (dg_k/du)^T lambda dW_k/dt, as for the
ordinary equation with the velocity v = f + g dW/dt: so what is run backwards is that, with the line
between both ends of a step for the path. Nothing of the path is kept: its process gives it again.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..algorithms.base import Algorithm, State
from ..algorithms.explicit_methods import BS3
from ..algorithms.stratonovich import AlongPath, stratonovich_drift
from ..noise.mixed import Retraced, Turned
from ..stepping.plan import Inputs, Plan
from .backsolve_backward import Backsolve
from .continuous import Sweep, placed
from .landing import AdaptiveLanding, GridLanding
from .smooth import TIMES

REFUSED = {
    **dict.fromkeys(TIMES, "times"),
    "noise": "the noise itself (a path, or its correlation)",
}


class StochasticBacksolve(Backsolve):
    """The parts are those of `Backsolve`; the parameters are those of the drift, then those of the
    diffusion."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for name in self.tangent.names:
            if name in REFUSED:
                raise ValueError(
                    "BacksolveAdjoint cannot differentiate a stochastic problem by "
                    f"{REFUSED[name]}; use adjoint=dj.DiscreteAdjoint()."
                )
        assert self.inputs.diffusion is not None
        self.diffusion_places = self.tangent.places_of("diffusion")
        self.moving = self.args + [self.inputs.diffusion[i] for i in self.diffusion_places]

    def algorithm(self) -> Algorithm:
        return AlongPath(BS3() if self.options.alg is None else self.options.alg)

    def slope(
        self, parts: tuple[PyTree, ...], t: Array, context: PyTree, args: tuple[Array, ...]
    ) -> tuple[PyTree, ...]:
        adjoint, u, *_ = parts
        diffusion_args, slope_of_path = context
        count = len(self.places)

        def velocity(u: State, moving: list[Array]) -> State:
            inputs = self.inputs._replace(
                args=placed(args, self.places, moving[:count]),
                diffusion=placed(diffusion_args, self.diffusion_places, moving[count:]),
            )
            field = self.plan.field(inputs)
            diffusion = field.diffusion
            assert diffusion is not None
            # The path is that in -t.
            noise = diffusion.times(diffusion.g(t, u), diffusion.spread(-slope_of_path, u))
            return jtu.tree_map(jnp.add, stratonovich_drift(field, t, u), noise)

        moving = [args[i] for i in self.places]
        moving += [diffusion_args[i] for i in self.diffusion_places]
        v, pull = jax.vjp(velocity, u, moving)
        u_bar, bars = pull(adjoint)
        return (u_bar, jtu.tree_map(jnp.negative, v), bars)[: len(parts)]

    def context(self) -> PyTree:
        noise, diffusion = self.inputs.noise, self.inputs.diffusion
        assert noise is not None
        return diffusion, jnp.zeros(noise.dim, self.inputs.t0.dtype)

    def for_diffusion(self, carry: Sweep) -> list[Array]:
        return self.for_moving(carry)[len(self.places) :]

    def landing(self, plan: Plan, inputs: Inputs) -> AdaptiveLanding | GridLanding:
        noise = self.inputs.noise
        assert noise is not None
        back = Turned(noise, -1.0) if noise.anywhere else Retraced(noise)
        plan = dataclasses.replace(plan, diffusion_jaxpr=None)
        inputs = inputs._replace(noise=back, diffusion=())
        if plan.controller is None:
            return GridLanding(plan, inputs, (self.inputs.t0, self.inputs.t1))
        return AdaptiveLanding(plan, inputs, self.settings, self.packing)
