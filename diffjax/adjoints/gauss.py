"""The adjoint equation of the state alone; the parameters by quadrature."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from ..algorithms.base import Field, State
from ..stepping.stepper import Record
from .continuous import Sweep, placed
from .interpolating import OnRecord, RecordedAdjoint
from .mass import Eliminated


class GaussAdjoint(RecordedAdjoint):
    """The adjoint equation on the recorded steps, with the parameter integral by quadrature.

    Only the adjoint of the state is integrated, which has the size of the state; the integral of
    `(df/dp)^T lambda` over a step is taken by Gauss-Legendre quadrature from the step's continuous
    extension. With many parameters that needs one pass over them a step, not one a stage, and no
    copies of them.

    **Arguments:**

    - `checkpoints`: as in `dj.InterpolatingAdjoint`.

    Source: the quadrature adjoint of Kim, Ji, Deng, Ma, Rackauckas, Stiff neural ordinary
    differential equations, Chaos 31 (2021), section III; nodes inside each backward step.

    !!! example
        `dj.solve(prob, dj.Tsit5(), adjoint=dj.GaussAdjoint())`
    """

    def backward(self) -> Any:
        return Gauss


class Gauss(OnRecord):
    """The only part is lambda; `Sweep.integral` are the cotangents of the parameters."""

    def _begin(self, adjoint: State) -> Sweep:
        return super()._begin(adjoint)._replace(integral=[jnp.zeros_like(x) for x in self.args])

    def with_args(self, carry: Sweep, bars: list[Array]) -> Sweep:
        if not bars:
            return carry
        return carry._replace(integral=jtu.tree_map(jnp.add, carry.integral, bars))

    def parts(self, u: State, adjoint: State) -> tuple[PyTree, ...]:
        return (adjoint,)

    def slope(
        self, parts: tuple[PyTree, ...], t: Array, context: PyTree, args: tuple[Array, ...]
    ) -> tuple[PyTree, ...]:
        _, u_bar, _ = self.pulled(args, t, self.state(context, t), parts[0])
        return (u_bar,)

    def for_args(self, carry: Sweep) -> list[Array]:
        return carry.integral

    def quadrature(
        self, integral: list[Array], record: Record, field: Field, context: PyTree
    ) -> list[Array]:
        if not self.args:
            return integral
        step, alg = record.step, self.alg
        coefficients = alg.dense(field, step.t, step.dt, step.u, step.stages)
        # Exact for polynomials of a degree above the order: the error of a step is that of lambda.
        nodes, weights = np.polynomial.legendre.leggauss(int(alg.order + 2) // 2)
        thetas = jnp.asarray((nodes + 1) / 2, step.t.dtype)
        sizes = jnp.asarray(weights / 2, step.t.dtype) * step.dt

        def at(theta: Array, size: Array) -> tuple[Array, State, State]:
            t = -(step.t + theta * step.dt)
            (adjoint,) = self.packing.unpack(alg.interpolate(coefficients, theta))
            u = self.state(context, t)
            if self.inputs.mass is not None:
                adjoint, _ = Eliminated(self.field_with(self.inputs.args), t, u).whole(adjoint)
            # Of a rejected step nothing counts, though it may not be finite.
            weighted = jtu.tree_map(
                lambda x: jnp.where(record.accepted, x * size.astype(x.dtype), 0), adjoint
            )
            return t, u, weighted

        ts, us, adjoints = jax.vmap(at)(thetas, sizes)
        # One vjp for all nodes, which contracts over them: no copy of the parameters for each.
        args = self.inputs.args

        def slopes(moving: list[Array]) -> State:
            f = self.field_with(placed(args, self.places, moving)).f
            return jax.vmap(f)(ts, us)

        _, pull = jax.vjp(slopes, self.args)
        return [a + b for a, b in zip(integral, *pull(adjoints), strict=True)]
