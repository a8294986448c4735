"""Stabilised explicit methods for stiff stochastic equations: Chebyshev stages."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from ..noise.base import Increment
from .base import Field, Norm, State
from .stages import scaled
from .stochastic import ANY_NOISE, EITHER, StochasticMethod, add, drifted

# The damping that makes the region of mean-square stability largest, from so many stages on.
_DAMPING = (
    (3, 2.2),
    (5, 12.0),
    (7, 13.0),
    (10, 14.3),
    (25, 20.3),
    (50, 27.2),
    (75, 32.1),
    (100, 36.0),
    (150, 42.1),
    (200, 46.7),
)


class SROCK1(StochasticMethod):
    """A stabilised explicit method: any noise, Ito or Stratonovich as the problem says, weak
    order 1, strong order 1/2 (1 for Stratonovich equations with commutative noise); fixed steps.

    For drifts with real negative eigenvalues down to -`bound`/dt, without solving anything.

    **Arguments:** `stages`: from 3 to 200, evaluations of the drift in a step.

    **Raises:** `ValueError` for another number of stages.

    Source: Abdulle and Cirilli, S-ROCK: Chebyshev methods for stiff stochastic differential
    equations, SIAM J. Sci. Comput. 30 (2008), for Stratonovich; Abdulle and Li, S-ROCK methods for
    stiff Ito SDEs, Commun. Math. Sci. 6 (2008), for Ito.

    !!! example
        `dj.solve(prob, dj.SROCK1(stages=20), dt=0.1, key=jax.random.key(0))`
    """

    noises: ClassVar[frozenset[str]] = ANY_NOISE
    interpretations: ClassVar[frozenset[str]] = EITHER

    stages: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        if not isinstance(self.stages, int) or not 3 <= self.stages <= 200:
            raise ValueError(f"stages must be an integer from 3 to 200, got {self.stages!r}.")

    @property
    def order(self) -> float:
        return 0.5

    @property
    def step_counts(self) -> dict[str, int]:
        return {"nf": self.stages}

    @property
    def bound(self) -> float:
        """How large dt times the spectral radius of the drift's Jacobian may be."""
        start, scale, _ = self._chebyshev()
        return (1 + start) / scale

    def _chebyshev(self) -> tuple[float, float, np.ndarray]:
        """The two numbers omega_0 and omega_1, and T_j(omega_0)."""
        s = self.stages
        damping = max(pair for pair in _DAMPING if pair[0] <= s)[1]
        x = 1 + damping / s**2
        values, slopes = [1.0, x], [0.0, 1.0]
        for _ in range(2, s + 1):
            values.append(2 * x * values[-1] - values[-2])
            slopes.append(2 * values[-2] + 2 * x * slopes[-1] - slopes[-2])
        return x, values[-1] / slopes[-1], np.array(values)

    def advance(
        self, field: Field, t: Array, dt: Array, u: State, noise: Increment, norm: Norm | None
    ) -> tuple[State, Float[Array, ""] | None]:
        diffusion = field.diffusion
        assert diffusion is not None
        x, scale, values = self._chebyshev()
        ratios = values[1:-1] / values[2:]
        rows = np.stack([2 * scale * ratios, 2 * x * ratios, -values[:-2] / values[2:]], axis=1)

        def stage(row: Array, states: tuple[State, State], times: tuple[Array, Array]) -> Any:
            (older, old), (older_t, old_t) = states, times
            mu, nu, kappa = row
            kept = jtu.tree_map(lambda y, z: scaled(y, nu) + scaled(z, kappa), old, older)
            new = drifted(kept, field.f(old_t, old), mu * dt)
            return (old, new), (old_t, mu * dt + nu * old_t + kappa * older_t)

        first = scale / x * dt
        carry = ((u, drifted(u, field.f(t, u), first)), (t, t + first))
        coefficients = jnp.asarray(rows, dt.dtype)
        carry, _ = jax.lax.scan(lambda c, row: (stage(row, *c), None), carry, coefficients[:-2])
        dw = diffusion.spread(noise.dw, u)
        if diffusion.is_ito:
            states, times = stage(coefficients[-2], *carry)
            added = diffusion.times(diffusion.g(times[1], states[1]), dw)
            states, _ = stage(coefficients[-1], states, times)
            return add(states[1], added), None
        # Both evaluations of g make up half of g'g dW**2, whatever the drift's stages are.
        alpha = float(values[-1] / (2 * x * values[-2]))
        before = diffusion.times(diffusion.g(carry[1][1], carry[0][1]), dw)
        (old, new), times = stage(coefficients[-2], *carry)
        states = (old, jtu.tree_map(lambda y, z: y + alpha * z, new, before))
        after = diffusion.times(diffusion.g(times[1], states[1]), dw)
        states, _ = stage(coefficients[-1], states, times)
        share = 1 / (2 * alpha)
        return jtu.tree_map(lambda y, a, b: y + share * (a - b), states[1], after, before), None
