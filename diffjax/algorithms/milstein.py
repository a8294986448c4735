"""Milstein methods without derivatives: strong order 1."""

from typing import ClassVar

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ..noise.base import Increment
from .base import Field, Norm, State
from .stages import scaled
from .stochastic import DIAGONAL, EITHER, StochasticMethod, add, by_sum, drifted


class RKMil(StochasticMethod):
    """Milstein's method with a difference in place of the derivative of g: diagonal or scalar
    noise, Ito or Stratonovich as the problem says, strong order 1; adaptive.

    Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, section
    11.1, equation (1.3) and, for Stratonovich, (1.6). The error estimate is what the drift changes
    by over the step, and the next term of the expansion, the derivative of g'g along g times
    I_(1,1,1), by one difference more.

    !!! example
        `dj.solve(prob, dj.RKMil(), key=jax.random.key(0))`
    """

    noises: ClassVar[frozenset[str]] = DIAGONAL
    interpretations: ClassVar[frozenset[str]] = EITHER
    evaluations: ClassVar[int] = 2

    @property
    def order(self) -> float:
        return 1.0

    @property
    def error_order(self) -> float:
        return 0.5

    def advance(
        self, field: Field, t: Array, dt: Array, u: State, noise: Increment, norm: Norm | None
    ) -> tuple[State, Float[Array, ""] | None]:
        diffusion = field.diffusion
        assert diffusion is not None
        f, g = field.f(t, u), diffusion.g(t, u)
        root, dw = jnp.sqrt(dt), noise.dw
        square = dw * dw - dt if diffusion.is_ito else dw * dw
        euler = drifted(u, f, dt)
        moved = _moved(euler, g, root)
        g_moved = diffusion.g(t, moved)
        slope = _quotient(g_moved, g, root)
        end = add(
            euler,
            diffusion.times(g, diffusion.spread(dw, u)),
            diffusion.times(slope, diffusion.spread(0.5 * square, u)),
        )
        if norm is None:
            return end, None
        drift = jtu.tree_map(lambda a, b: 0.5 * scaled(a - b, dt), field.f(t + dt, end), f)
        further = _quotient(diffusion.g(t, _moved(moved, g_moved, root)), g_moved, root)
        cube = diffusion.spread((dw * dw * dw - 3 * dt * dw) / 6, u)
        third = diffusion.times(_quotient(further, slope, root), cube)
        return end, by_sum(norm, (drift, third), u, end)


def _moved(u: State, g: State, root: Array) -> State:
    """The state moved along the diffusion by the size of the noise."""
    return jtu.tree_map(lambda x, d: x + scaled(d, root), u, g)


def _quotient(after: State, before: State, root: Array) -> State:
    return jtu.tree_map(lambda a, b: scaled(a - b, 1 / root), after, before)
