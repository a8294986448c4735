"""Poisson numbers by counting.

As `jax.random.poisson`, but a draw is named by a counter, runs inside a native loop, and keeps the
precision of its rate.
"""

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from ..noise.random import threefry, uniform
from ..varying import vary_alike

# Smaller rates are inverted by search, larger ones drawn by rejection.
_SMALL = 10.0
# The search gives up here, where less is left than a number of 32 bits can tell from one.
_LONGEST = 64
# log k! for the small k, and Stirling's series beyond.
_LOG_FACTORIALS = np.cumsum(np.log(np.maximum(np.arange(10), 1)))


def poisson(key: UInt32[Array, " 2"], rates: Float[Array, " m"]) -> Int[Array, " m"]:
    """Independent Poisson numbers with these means (0 for one that is not finite).

    Sources: inversion by sequential search (Devroye, Non-Uniform Random Variate Generation, 1986,
    section X.3.3); the transformed rejection PTRS of Hörmann, The transformed rejection method for
    generating Poisson random variables, Insurance: Mathematics and Economics 12 (1993).
    """
    rates = jnp.where(jnp.isfinite(rates), rates, 0)
    is_small = rates < _SMALL
    small = _by_search(key, jnp.where(is_small, rates, 0))
    large = _by_rejection(key, jnp.maximum(rates, _SMALL), ~is_small)
    return jnp.where(is_small, small, large).astype(jnp.int32)


def _words(key: Array, attempt: Array, rates: Array) -> tuple[Array, Array]:
    places = jnp.arange(rates.shape[0], dtype=jnp.uint32)
    return threefry(key, jnp.broadcast_to(attempt, places.shape), places)


def _by_search(key: Array, rates: Array) -> Array:
    """The least k whose distribution function passes a uniform number."""
    first, _ = _words(key, jnp.zeros((), jnp.uint32), rates)
    level = uniform(first, rates.dtype)

    def pending(c: tuple[Array, ...]) -> Array:
        k, _, total = c
        return eqxi.unvmap_any(jnp.any((total < level) & (k < _LONGEST)))

    def longer(c: tuple[Array, ...]) -> tuple[Array, ...]:
        k, term, total = c
        more = (total < level) & (k < _LONGEST)
        k = k + more.astype(k.dtype)
        term = jnp.where(more, term * rates / jnp.maximum(k, 1), term)
        return k, term, jnp.where(more, total + term, total)

    zero = jnp.exp(-rates)
    start = vary_alike((jnp.zeros_like(rates), zero, zero))
    return jax.lax.while_loop(pending, longer, start)[0]


def _by_rejection(key: Array, rates: Array, wanted: Array) -> Array:
    """Algorithm PTRS, for the rates that are wanted."""
    b = 0.931 + 2.53 * jnp.sqrt(rates)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2)

    def pending(c: tuple[Array, ...]) -> Array:
        return eqxi.unvmap_any(jnp.any(~c[2]))

    def again(c: tuple[Array, ...]) -> tuple[Array, ...]:
        attempt, found, done = c
        first, second = _words(key, attempt, rates)
        u, v = uniform(first, rates.dtype) - 0.5, uniform(second, rates.dtype)
        side = 0.5 - jnp.abs(u)
        k = jnp.floor((2 * a / side + b) * u + rates + 0.43)
        density = _log_density(jnp.maximum(k, 0), rates)
        under = jnp.log(v * inverse_alpha / (a / side**2 + b)) <= density
        inside = (k >= 0) & ~((side < 0.013) & (v > side))
        good = ((side >= 0.07) & (v <= squeeze)) | (inside & under)
        return attempt + 1, jnp.where(good & ~done, k, found), done | good

    start = vary_alike((jnp.ones((), jnp.uint32), rates, ~wanted))
    return jax.lax.while_loop(pending, again, start)[1]


def _log_density(k: Array, rates: Array) -> Array:
    """log(exp(-rate) rate**k / k!); for a large k as a small difference."""
    factorial = jnp.zeros_like(k)
    for number, value in enumerate(_LOG_FACTORIALS):
        factorial = jnp.where(k == number, jnp.asarray(value, k.dtype), factorial)
    few = k * jnp.log(rates) - rates - factorial
    n = jnp.maximum(k, 10)
    off = (n - rates) / rates
    stirling = 0.5 * jnp.log(2 * np.pi * n) + (1 - (1 - 2 / (7 * n**2)) / (30 * n**2)) / (12 * n)
    many = n - rates - n * jnp.log1p(off) - stirling
    return jnp.where(k < 10, few, many)
