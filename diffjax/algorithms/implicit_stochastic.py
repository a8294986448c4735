"""Methods that are implicit in the drift, for stiff stochastic equations.

The noise enters explicitly, so that the steps are bounded by the diffusion but not by the drift.
Their stages are those of the ESDIRK methods, with one matrix a step (`implicit_stage`).
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ..noise.base import Increment, Need
from .base import Field, Memory, Norm, State, StepResult
from .field import Diffusion
from .implicit_stage import DriftStages
from .iterating import Work, error_or_failed
from .milstein import milstein_terms
from .previsible import Probe, noise_left_out
from .stages import combine, scaled
from .stochastic import (
    ANY_NOISE,
    DIAGONAL,
    EITHER,
    ITO,
    StochasticMethod,
    add,
    by_sum,
    plus_noise,
)
from .tableaus.stochastic import SKENCARP, SKENCARP_ERROR


class DriftImplicit(StochasticMethod):
    """Base class of these methods; they write `solve`."""

    counted: ClassVar[tuple[str, ...]] = Work._fields

    @property
    def step_counts(self) -> dict[str, int]:
        return {}

    @property
    def gamma(self) -> float:
        """What the drift at the end of a stage is weighted with in it."""
        raise NotImplementedError

    def solve(
        self,
        field: Field,
        t: Array,
        dt: Array,
        u: State,
        noise: Increment,
        stages: DriftStages,
        norm: Norm | None,
    ) -> tuple[State, Float[Array, ""] | None]:
        """As `advance`, with what solves its implicit stages."""
        raise NotImplementedError

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        assert field.diffusion is not None
        noise, there = field.diffusion.over(t, dt, memory.cache)
        stages = DriftStages(field, t, dt, u, self.gamma, norm)
        end, error = self.solve(field, t, dt, u, noise, stages, norm)
        if error is not None:
            error = error_or_failed(error, stages.converged, jnp.isfinite(stages.radius))
        work = stages.work(evaluations=1, solves=0 if norm is None else 1)
        return StepResult(
            u=end,
            error=error,
            ok=stages.converged,
            memory=Memory(cache=there),
            memory_if_rejected=memory,
            stages=(end,),
            counts=jnp.stack(work),
            stiffness=scaled(stages.radius, jnp.abs(dt)),
        )


class ImplicitEM(DriftImplicit):
    """The theta method with Euler-Maruyama's noise: u + dt ((1 - theta) f + theta f_end) + g dW,
    Ito, any noise, strong order 1/2 (1 for additive noise); for stiff drifts; adaptive.

    **Arguments:** `theta`: from 1/2 (`dj.STrapezoid`) to 1, backward Euler, which damps stiff
    components.

    **Raises:** `ValueError` for another `theta`.

    Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, section
    12.2, equation (2.12). The error estimate is half of what the drift changes by over the step,
    under the filter of the ESDIRK methods, and what Lamba leaves out of the noise (`dj.LambaEM`).

    !!! example
        `dj.solve(prob, dj.ImplicitEM(), rtol=1e-2, atol=1e-3, key=jax.random.key(0))`
    """

    noises: ClassVar[frozenset[str]] = ANY_NOISE
    interpretations: ClassVar[frozenset[str]] = ITO

    theta: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not isinstance(self.theta, int | float) or not 0.5 <= self.theta <= 1:
            raise ValueError(f"theta must be a number from 0.5 to 1, got {self.theta!r}.")

    @property
    def order(self) -> float:
        return 0.5

    @property
    def error_order(self) -> float:
        return 0.0

    @property
    def gamma(self) -> float:
        return float(self.theta)

    def noise_terms(
        self, diffusion: Diffusion, t: Array, dt: Array, u: State, g: State, noise: Increment
    ) -> tuple[State, State, State | None]:
        """What the noise adds to the state, and what it leaves out; and how large the state may
        be, None for as it is."""
        added = diffusion.times(g, diffusion.spread(noise.dw, u))
        probe = Probe.of(diffusion, t, dt, u, g)
        return added, noise_left_out(diffusion, probe, dt, g), probe.size

    def solve(
        self,
        field: Field,
        t: Array,
        dt: Array,
        u: State,
        noise: Increment,
        stages: DriftStages,
        norm: Norm | None,
    ) -> tuple[State, Float[Array, ""] | None]:
        diffusion, theta = field.diffusion, self.gamma
        assert diffusion is not None
        first = jtu.tree_map(lambda x: scaled(x, dt), field.f(t, u))
        added, left_out, size = self.noise_terms(diffusion, t, dt, u, diffusion.g(t, u), noise)
        base = add(u, added)
        if theta < 1:
            base = jtu.tree_map(lambda x, z: x + (1 - theta) * z, base, first)
        last = stages.solve(1.0, base, first)
        end = jtu.tree_map(lambda x, z: x + theta * z, base, last)
        if norm is None:
            return end, None
        drift = stages.filtered(jtu.tree_map(lambda a, b: 0.5 * (a - b), last, first))
        return end, by_sum(norm, (drift, left_out), u, end if size is None else size)


def STrapezoid() -> ImplicitEM:
    """The trapezoidal rule with Euler-Maruyama's noise: `dj.ImplicitEM(theta=0.5)`, which keeps
    the variance of linear equations but does not damp stiff components.

    Source: as `dj.ImplicitEM`.

    !!! example
        `dj.solve(prob, dj.STrapezoid(), dt=0.01, key=jax.random.key(0))`
    """
    return ImplicitEM(theta=0.5)


class ImplicitRKMil(ImplicitEM):
    """The theta method with Milstein's noise: diagonal or scalar noise, Ito or Stratonovich as the
    problem says, strong order 1; for stiff drifts; adaptive.

    **Arguments:** `theta`: as of `dj.ImplicitEM`.

    **Raises:** `ValueError` for another `theta`.

    Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, section
    12.2, equation (2.14), with the differences and the error estimate of `dj.RKMil`.

    !!! example
        `dj.solve(prob, dj.ImplicitRKMil(), key=jax.random.key(0))`
    """

    noises: ClassVar[frozenset[str]] = DIAGONAL
    interpretations: ClassVar[frozenset[str]] = EITHER

    @property
    def order(self) -> float:
        return 1.0

    @property
    def error_order(self) -> float:
        return 0.5

    def noise_terms(
        self, diffusion: Diffusion, t: Array, dt: Array, u: State, g: State, noise: Increment
    ) -> tuple[State, State, State | None]:
        second, third = milstein_terms(diffusion, t, dt, u, g, noise, further=True)
        return add(diffusion.times(g, diffusion.spread(noise.dw, u)), second), third, None


class SKenCarp(DriftImplicit):
    """An L-stable method for stiff equations with additive noise: strong order 3/2, of order 3
    without noise; adaptive.

    Stiff components are damped, but for the noise of the last step, of which they keep some 14
    times: `dj.ImplicitEM` damps it too.

    Source: Rackauckas and Nie, arXiv 1804.04344, on the ESDIRK method ARK3(2)4L[2]SA of Kennedy and
    Carpenter, Appl. Numer. Math. 44 (2003). The error estimate is that of the drift's embedded
    method, under the filter of the ESDIRK methods, and the noise's term of order 3/2.

    !!! example
        `dj.solve(prob, dj.SKenCarp(), rtol=1e-2, atol=1e-3, key=jax.random.key(0))`
    """

    noises: ClassVar[frozenset[str]] = frozenset({"additive"})
    interpretations: ClassVar[frozenset[str]] = EITHER

    @property
    def order(self) -> float:
        return 1.5

    @property
    def error_order(self) -> float:
        return 0.5

    @property
    def gamma(self) -> float:
        return SKENCARP.alpha[-1]

    def need(self, dim: int) -> Need:
        return Need(area=True)

    def solve(
        self,
        field: Field,
        t: Array,
        dt: Array,
        u: State,
        noise: Increment,
        stages: DriftStages,
        norm: Norm | None,
    ) -> tuple[State, Float[Array, ""] | None]:
        tableau, diffusion = SKENCARP, field.diffusion
        assert diffusion is not None
        assert noise.area is not None
        dw, i10 = diffusion.spread(noise.dw, u), diffusion.spread(noise.area / dt, u)
        first, last = diffusion.g(t, u), diffusion.g(t + dt, u)
        gs = [first, first, first, last]
        zs = [jtu.tree_map(lambda x: scaled(x, dt), field.f(t, u))]
        for i in range(1, tableau.stages):
            base = plus_noise(_plus(u, tableau.a0[i][:i], zs), tableau.b0[i], gs, i10)
            zs.append(stages.solve(tableau.c0[i], base, zs[-1]))
        end = plus_noise(_plus(u, tableau.alpha, zs), tableau.beta1, gs, dw)
        high = plus_noise(jtu.tree_map(jnp.zeros_like, u), tableau.beta2, gs, i10)
        end = add(end, high)
        if norm is None:
            return end, None
        drift = stages.filtered(_plus(jtu.tree_map(jnp.zeros_like, u), SKENCARP_ERROR, zs))
        return end, by_sum(norm, (drift, high), u, end)


def _plus(u: State, weights: tuple[float, ...], stages: list[State]) -> State:
    total = combine(weights, stages)
    assert total is not None
    return add(u, total)
