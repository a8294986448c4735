"""Stochastic Runge-Kutta methods of strong order 3/2 for diagonal and scalar noise, Ito.

One engine for Roessler's form SRI; the methods are tableaus.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ..noise.base import Increment
from .base import Field, Norm, State
from .field import Diffusion
from .stochastic import (
    DIAGONAL,
    ITO,
    RoesslerMethod,
    alternating,
    by_sum,
    plus,
    plus_noise,
)
from .tableaus import stochastic as tableaus
from .tableaus.stochastic import SRITableau


class Integrals(eqx.Module):
    """The iterated integrals of a step over powers of its length, spread over the state: dW and
    I_(1,1)/sqrt(dt), I_(1,0)/dt, I_(1,1,1)/dt (Roessler 2010, equation 6.4)."""

    dw: State
    i11: State
    i10: State
    i111: State

    @staticmethod
    def of(diffusion: Diffusion, noise: Increment, dt: Array, u: State) -> "Integrals":
        assert noise.area is not None
        dw = noise.dw
        each = (
            dw,
            (dw * dw - dt) / (2 * jnp.sqrt(dt)),
            noise.area / dt,
            (dw * dw * dw - 3 * dt * dw) / (6 * dt),
        )
        return Integrals(*(diffusion.spread(x, u) for x in each))


class StochasticRungeKutta(RoesslerMethod):
    """A method of the form SRI, given by its tableau.

    **Arguments:** `tableau`: the coefficients.

    The error estimate is that of Rackauckas and Nie, DCDS-B 22 (2017), section 2: what the drift
    changes by over the stages, and the terms of order 3/2 in the diffusion.
    """

    noises: ClassVar[frozenset[str]] = DIAGONAL
    interpretations: ClassVar[frozenset[str]] = ITO

    tableau: SRITableau = eqx.field(static=True)

    @property
    def step_counts(self) -> dict[str, int]:
        return {"nf": len(self.tableau.drifts)}

    def advance(
        self, field: Field, t: Array, dt: Array, u: State, noise: Increment, norm: Norm | None
    ) -> tuple[State, Float[Array, ""] | None]:
        tableau, diffusion = self.tableau, field.diffusion
        assert diffusion is not None
        integrals = Integrals.of(diffusion, noise, dt, u)
        root = jnp.sqrt(dt)
        fs: list[State] = []
        gs: list[State] = []
        zero = jtu.tree_map(jnp.zeros_like, u)
        for i in range(tableau.stages):
            if i in tableau.drifts:
                inner = plus(u, dt, tableau.a0[i], fs)
                inner = plus_noise(inner, tableau.b0[i], gs, integrals.i10)
                fs.append(field.once(field.f(t + tableau.c0[i] * dt, field.once(inner))))
            else:
                fs.append(zero)
            outer = plus(u, dt, tableau.a1[i], fs)
            outer = plus(outer, root, tableau.b1[i], gs)
            g = diffusion.g(t + tableau.c1[i] * dt, diffusion.once(outer))
            gs.append(diffusion.once(g))
        end = plus(u, dt, tableau.alpha, fs)
        end = plus_noise(end, tableau.beta1, gs, integrals.dw)
        end = plus_noise(end, tableau.beta2, gs, integrals.i11)
        high = plus_noise(zero, tableau.beta3, gs, integrals.i10)
        high = plus_noise(high, tableau.beta4, gs, integrals.i111)
        end = jtu.tree_map(jnp.add, end, high)
        if norm is None:
            return end, None
        return end, by_sum(norm, (alternating(dt, [fs[j] for j in tableau.drifts]), high), u, end)


def SRIW1() -> StochasticRungeKutta:
    """Roessler's method SRIW1: Ito, diagonal or scalar noise, strong order 3/2 and weak order 2,
    with two drift and four diffusion evaluations a step; adaptive.

    Source: Roessler, SIAM J. Numer. Anal. 48 (2010), table 6.3.

    !!! example
        `dj.solve(prob, dj.SRIW1(), key=jax.random.key(0))`
    """
    return StochasticRungeKutta(tableaus.SRIW1)


def SOSRI() -> StochasticRungeKutta:
    """A stability-optimised method of strong order 3/2: the first choice for diagonal or scalar
    noise (Ito); adaptive.

    Source: Rackauckas and Nie, arXiv 1804.04344, appendix.

    !!! example
        `dj.solve(prob, dj.SOSRI(), rtol=1e-2, atol=1e-3, key=jax.random.key(0))`
    """
    return StochasticRungeKutta(tableaus.SOSRI)


def SOSRI2() -> StochasticRungeKutta:
    """A method of strong order 3/2 with a larger region of stability than `SOSRI`, for mildly stiff
    equations with diagonal or scalar noise (Ito); adaptive.

    Source: Rackauckas and Nie, arXiv 1804.04344, appendix.

    !!! example
        `dj.solve(prob, dj.SOSRI2(), key=jax.random.key(0))`
    """
    return StochasticRungeKutta(tableaus.SOSRI2)
