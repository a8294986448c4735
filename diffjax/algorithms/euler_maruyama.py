"""Euler-Maruyama and Euler-Heun methods: for any noise, of strong order 1/2 (1 if additive)."""

from typing import ClassVar

import jax.tree_util as jtu
from jaxtyping import Array, Float

from ..noise.base import Increment
from .base import Field, Norm, State
from .previsible import error_of_euler
from .stochastic import ANY_NOISE, ITO, STRATONOVICH, StochasticMethod, add, drifted


class _Euler(StochasticMethod):
    """The order of all methods here."""

    noises: ClassVar[frozenset[str]] = ANY_NOISE

    @property
    def order(self) -> float:
        return 0.5


class EM(_Euler):
    """Euler-Maruyama: u + f dt + g dW, Ito, any noise, strong order 1/2 (1 for additive noise);
    fixed steps.

    Source: Maruyama, Rend. Circ. Mat. Palermo 4 (1955); Kloeden and Platen, Numerical Solution of
    Stochastic Differential Equations, section 10.2.

    !!! example
        `dj.solve(prob, dj.EM(), dt=0.01, key=jax.random.key(0))`
    """

    interpretations: ClassVar[frozenset[str]] = ITO

    def advance(
        self, field: Field, t: Array, dt: Array, u: State, noise: Increment, norm: Norm | None
    ) -> tuple[State, Float[Array, ""] | None]:
        diffusion = field.diffusion
        assert diffusion is not None
        f, g = field.f(t, u), diffusion.g(t, u)
        end = add(drifted(u, f, dt), diffusion.times(g, diffusion.spread(noise.dw, u)))
        if norm is None or self.error_order is None:
            return end, None
        return end, error_of_euler(field, t, dt, u, f, g, norm)


class LambaEM(EM):
    """Euler-Maruyama with adaptive steps: Ito, any noise, strong order 1/2.

    What a step leaves out is of the order of its length, while the state moves by the root of it.
    So where an element is near zero steps must be as short as the square of `rtol`, unless `atol`
    says below which size its values do not matter: give it, or take a method of strong order 1
    (`dj.RKMilCommute`, `dj.RKMilGeneral`; `dj.SOSRI` for diagonal noise).

    Source: Lamba, An adaptive timestepping algorithm for stochastic differential equations,
    J. Comput. Appl. Math. 161 (2003): the drift's error, half of its change over the step, and the
    diffusion's, (g'g)(dW**2 - dt)/2 with the derivative by a difference. Here dW**2 - dt enters by
    its root mean square: steps refused for their own noise converge to another equation's solution
    (Gaines and Lyons, SIAM J. Appl. Math. 57, 1997).

    !!! example
        `dj.solve(prob, dj.LambaEM(), rtol=1e-2, atol=1e-2, key=jax.random.key(0))`
    """

    evaluations: ClassVar[int] = 2

    @property
    def error_order(self) -> float | None:
        return 0.0


class EulerHeun(_Euler):
    """Euler-Heun: trapezoidal in drift and diffusion, Stratonovich, any noise, strong order 1/2
    (1 for commutative noise); fixed steps.

    Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, section
    15.5; Rumelin, SIAM J. Numer. Anal. 19 (1982).

    !!! example
        `dj.solve(prob, dj.EulerHeun(), dt=0.01, key=jax.random.key(0))`
    """

    interpretations: ClassVar[frozenset[str]] = STRATONOVICH
    evaluations: ClassVar[int] = 2

    def advance(
        self, field: Field, t: Array, dt: Array, u: State, noise: Increment, norm: Norm | None
    ) -> tuple[State, Float[Array, ""] | None]:
        diffusion = field.diffusion
        assert diffusion is not None
        f, g = field.f(t, u), diffusion.g(t, u)
        dw = diffusion.spread(noise.dw, u)
        predicted = add(drifted(u, f, dt), diffusion.times(g, dw))
        after = t + dt
        f_end, g_end = field.f(after, predicted), diffusion.g(after, predicted)
        f_mean, g_mean = (
            jtu.tree_map(lambda x, y: 0.5 * (x + y), *pair) for pair in ((f, f_end), (g, g_end))
        )
        end = add(drifted(u, f_mean, dt), diffusion.times(g_mean, dw))
        if norm is None or self.error_order is None:
            return end, None
        return end, error_of_euler(field, t, dt, u, f, g, norm)


class LambaEulerHeun(EulerHeun):
    """Euler-Heun with adaptive steps: Stratonovich, any noise, strong order 1/2.

    Source: the estimate of `dj.LambaEM` (Lamba 2003) on `dj.EulerHeun`.

    !!! example
        `dj.solve(prob, dj.LambaEulerHeun(), rtol=1e-2, atol=1e-2, key=jax.random.key(0))`
    """

    evaluations: ClassVar[int] = 3

    @property
    def error_order(self) -> float | None:
        return 0.0
