"""Coloured noise."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .base import Increment, Need, NoiseProcess
from .tree import VirtualBrownianTree


class OrnsteinUhlenbeck(NoiseProcess):
    """Coloured noise: dX = theta (mu - X) dt + sigma dW, with the exact law at every time.

    As a `path` its increments take the place of dW, so methods that use only these take it.

    **Arguments:**

    - `theta`, `mu`, `sigma`: rate, mean and strength; numbers, or arrays of shape (dim,).
    - `t0`, `t1`: the span, which must hold that of the solve.
    - `dim`: how many independent noises.
    - `key`: of `jax.random`.
    - `x0`: the value at the earlier end, by default `mu`.

    **Returns:** a path.

    Source: Doob, The Brownian movement and stochastic equations, Ann. of Math. 43 (1942): X is a
    Brownian motion B in another time, X(t) = mu + e (x0 - mu) + e sigma B(1/e**2 - 1) /
    sqrt(2 theta) with e = exp(-theta (t - t0)).

    !!! example
        `path = dj.noise.OrnsteinUhlenbeck(1.0, 0.0, 0.3, 0.0, 1.0, dim=1, key=jax.random.key(0))`
    """

    theta: Float[Array, " dim"]
    mu: Float[Array, " dim"]
    sigma: Float[Array, " dim"]
    x0: Float[Array, " dim"]
    low: Float[Array, ""]
    trees: Any

    def __init__(
        self,
        theta: Any,
        mu: Any,
        sigma: Any,
        t0: Any,
        t1: Any,
        dim: int,
        key: Array,
        *,
        x0: Any = None,
    ) -> None:
        dtype = jnp.result_type(float, t0, t1)

        def filled(x: Any) -> Array:
            return jnp.broadcast_to(jnp.asarray(x, dtype), (dim,))

        self.theta, self.mu, self.sigma = filled(theta), filled(mu), filled(sigma)
        self.x0 = self.mu if x0 is None else filled(x0)
        t0, t1 = jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)
        self.low = jnp.minimum(t0, t1)
        # The fastest rate sets the span of the Brownian motion.
        latest = jnp.expm1(2 * jnp.max(self.theta) * jnp.abs(t1 - t0))
        self.trees = VirtualBrownianTree(jnp.zeros((), dtype), latest, dim, key)

    @property
    def has_area(self) -> bool:
        return False

    @property
    def dim(self) -> int:
        return self.theta.shape[0]

    @property
    def covariance(self) -> Float[Array, "dim dim"]:
        return jnp.diag(self.sigma**2)

    def at(self, t: Array) -> Float[Array, " dim"]:
        passed = self.theta * (t - self.low)
        shrunk = jnp.exp(-passed)
        times = jnp.expm1(2 * passed)
        motion = jnp.diagonal(self.trees(times))
        spread = shrunk * self.sigma / jnp.sqrt(2 * self.theta)
        return self.mu + shrunk * (self.x0 - self.mu) + spread * motion

    def look(self, t: Array) -> Float[Array, " dim"]:
        return self.at(t)

    def over(
        self, number: Array, start: Array, dt: Array, need: Need, here: PyTree
    ) -> tuple[Increment, PyTree]:
        there = self.at(start + dt)
        return Increment(there - here), there
