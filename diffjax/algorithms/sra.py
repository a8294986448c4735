"""Stochastic Runge-Kutta methods of strong order 3/2 for additive noise.

One engine for Roessler's form SRA; the methods are tableaus. With additive noise the Ito and the
Stratonovich equation are the same.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ..noise.base import Increment
from .base import Field, Norm, State
from .stochastic import EITHER, RoesslerMethod, alternating, by_sum, plus, plus_noise
from .tableaus import stochastic as tableaus
from .tableaus.stochastic import SRATableau


class AdditiveRungeKutta(RoesslerMethod):
    """A method of the form SRA, given by its tableau.

    **Arguments:** `tableau`: the coefficients.

    The error estimate is that of `StochasticRungeKutta`.
    """

    noises: ClassVar[frozenset[str]] = frozenset({"additive"})
    interpretations: ClassVar[frozenset[str]] = EITHER

    tableau: SRATableau = eqx.field(static=True)

    @property
    def step_counts(self) -> dict[str, int]:
        return {"nf": self.tableau.stages}

    def advance(
        self, field: Field, t: Array, dt: Array, u: State, noise: Increment, norm: Norm | None
    ) -> tuple[State, Float[Array, ""] | None]:
        tableau, diffusion = self.tableau, field.diffusion
        assert diffusion is not None
        assert noise.area is not None
        dw, i10 = diffusion.spread(noise.dw, u), diffusion.spread(noise.area / dt, u)
        gs = [diffusion.g(t + c * dt, u) for c in tableau.c1]
        fs: list[State] = []
        for i in range(tableau.stages):
            inner = plus_noise(plus(u, dt, tableau.a0[i], fs), tableau.b0[i], gs, i10)
            fs.append(field.once(field.f(t + tableau.c0[i] * dt, field.once(inner))))
        end = plus_noise(plus(u, dt, tableau.alpha, fs), tableau.beta1, gs, dw)
        high = plus_noise(jtu.tree_map(jnp.zeros_like, u), tableau.beta2, gs, i10)
        end = jtu.tree_map(jnp.add, end, high)
        if norm is None:
            return end, None
        return end, by_sum(norm, (alternating(dt, fs), high), u, end)


def SRA1() -> AdditiveRungeKutta:
    """Roessler's method SRA1: additive noise, strong order 3/2, two drift evaluations; adaptive.

    Source: Roessler, SIAM J. Numer. Anal. 48 (2010), table 6.2.

    !!! example
        `dj.solve(prob, dj.SRA1(), key=jax.random.key(0))`
    """
    return AdditiveRungeKutta(tableaus.SRA1)


def SRA3() -> AdditiveRungeKutta:
    """Roessler's method SRA3: additive noise, strong order 3/2 and deterministic order 3, three
    drift evaluations; adaptive.

    Source: Roessler, SIAM J. Numer. Anal. 48 (2010), table 6.2.

    !!! example
        `dj.solve(prob, dj.SRA3(), key=jax.random.key(0))`
    """
    return AdditiveRungeKutta(tableaus.SRA3)


def SOSRA() -> AdditiveRungeKutta:
    """A stability-optimised method of strong order 3/2: the first choice for additive noise;
    adaptive.

    Source: Rackauckas and Nie, arXiv 1804.04344, appendix.

    !!! example
        `dj.solve(prob, dj.SOSRA(), rtol=1e-2, atol=1e-3, key=jax.random.key(0))`
    """
    return AdditiveRungeKutta(tableaus.SOSRA)
