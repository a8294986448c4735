"""The areas of Levy of a Brownian motion over a step: A_jk = int (W_j dW_k - W_k dW_j)/2.

They are what methods of strong order 1 want of noises that do not commute. Their law given the
increments is that of a Fourier series, which is cut off; the rest of it is replaced by normal
numbers of the same variance.

Sources: Kloeden, Platen, Wright, The approximation of multiple stochastic integrals, Stochastic
Anal. Appl. 10 (1992), for the series; Mrongowius, Roessler, On the approximation and simulation of
iterated stochastic integrals and the corresponding Levy areas in terms of a multidimensional
Brownian motion, arXiv 2201.08424, section 4, for the rest of it.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def normals_for_area(dim: int, terms: int) -> int:
    """How many normal numbers the areas of a step take."""
    return 2 * terms * dim + dim + dim * dim


def levy_area(
    dw: Float[Array, " dim"],
    integral: Float[Array, " dim"],
    dt: Array,
    normals: Float[Array, " normals"],
    terms: int,
) -> Float[Array, "dim dim"]:
    """The areas over a step of length dt given its increments, and the integral over it of what W
    has moved by since its start; antisymmetric.

    With x_r, y_r and w = dW/sqrt(dt) standard normal, and [x, y] = x y^T - y x^T, they are
    dt/(2 pi) times the sum over r of [x_r, y_r + sqrt(2) w]/r. Of w there is [v, w] with
    v = sqrt(2) sum x_r/r, which is the mean of the bridge times 2 pi/sqrt(dt), so it is known; the
    x_r that are drawn are moved to agree with it. Of the terms left out those without w are
    uncorrelated, and taken to be normal.
    """
    dim = dw.shape[0]
    series, rest = normals[: 2 * terms * dim], normals[2 * terms * dim :]
    x, y = series.reshape(2, terms, dim)
    root = jnp.sqrt(dt)
    w, v = dw / root, 2 * math.pi / root * (integral / dt - 0.5 * dw)
    inverse = 1.0 / np.arange(1, terms + 1)
    weights = jnp.asarray(inverse, dw.dtype)[:, None]
    # The variance of the tails: the sum of 1/r^2 from terms + 1 on.
    tail = math.sqrt(2.0 * (math.pi**2 / 6 - float(np.sum(inverse**2))))
    drawn = math.sqrt(2.0) * jnp.sum(weights * x, axis=0) + tail * rest[:dim]
    # The regression of x_r on v, whose variance is pi^2/3.
    x = x + math.sqrt(2.0) / (math.pi**2 / 3) * weights * (v - drawn)[None, :]
    half = jnp.sum((weights * x)[:, :, None] * y[:, None, :], axis=0) + v[:, None] * w[None, :]
    half = half + tail / math.sqrt(2.0) * rest[dim:].reshape(dim, dim)
    return dt / (2 * math.pi) * (half - half.T)
