"""The automatic first step.

Source: Hairer, Norsett, Wanner, Solving ODEs I, section II.4, "Starting step size" (a)-(f).
"""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Float

from ..algorithms.base import Field, Norm, State
from ..algorithms.implicit import derivative
from ..algorithms.stages import scaled
from .trees import number, where

# Steps (b), (e) and (f) of the source.
_TINY_SIZE = 1.0e-5
_TINY_STEP = 1.0e-6
_FIRST_GUESS = 0.01
_TINY_DERIVATIVE = 1.0e-15
_MAX_GROWTH = 100.0
_SHORTER = 1.0e-3
# Of the noise in unit time.
_DEVIATIONS = 3.0

# Evaluations of the vector field that it takes.
INITIAL_STEP_NF = 2


def _with_noise(field: Field, t: Array, u: State, slope: State) -> State:
    """The derivative, of a stochastic equation |f| and three standard deviations of the noise in
    unit time (StochasticDiffEq.jl, `initdt.jl`)."""
    diffusion = field.diffusion
    if diffusion is None:
        return slope

    def size(g: Array) -> Array:
        squares = jnp.real(g * jnp.conj(g))
        return jnp.sqrt(jnp.sum(squares, axis=-1) if diffusion.is_matrix else squares)

    gu = jax.lax.stop_gradient(diffusion.g(t, u))
    return jtu.tree_map(
        lambda d, g: jnp.abs(d).astype(d.dtype) + _DEVIATIONS * size(g).astype(d.dtype), slope, gu
    )


def initial_step(
    field: Field, t: Array, u: State, order: float, norm: Norm, largest: Array
) -> Float[Array, ""]:
    """A first step whose error is about the tolerance for a method of this order.

    `largest` bounds it (the length of the solve, or `dtmax`).
    """
    f0 = derivative(field, t, u)
    size, slope = norm(u, u, u), norm(_with_noise(field, t, u, f0), u, u)
    tiny_size, tiny_step = number(_TINY_SIZE, size), number(_TINY_STEP, size)
    guess = lax.div(lax.mul(number(_FIRST_GUESS, size), size), lax.max(slope, tiny_size))
    nothing = lax.bitwise_or(lax.lt(size, tiny_size), lax.lt(slope, tiny_size))
    guess = where(nothing, tiny_step, guess)
    guess = lax.min(guess, largest)
    if field.slope is not None:
        # There is no second derivative without solving for it.
        return guess
    u1 = jtu.tree_map(lambda x, d: lax.add(x, scaled(d, guess)), u, f0)
    f1 = derivative(field, lax.add(t, guess), u1)
    if field.diffusion is not None:
        f0, f1 = _with_noise(field, t, u, f0), _with_noise(field, t + guess, u1, f1)
    curvature = lax.div(norm(jtu.tree_map(lax.sub, f1, f0), u, u), guess)
    steepest, flat = lax.max(slope, curvature), number(_TINY_DERIVATIVE, slope)
    step = lax.div(number(_FIRST_GUESS, slope), lax.max(steepest, flat))
    step = lax.pow(step, number(1.0 / order, step))
    short = lax.max(tiny_step, lax.mul(guess, number(_SHORTER, guess)))
    longest = lax.mul(number(_MAX_GROWTH, guess), guess)
    step = where(lax.le(steepest, flat), short, step)
    step = where(lax.eq(curvature, number(0, curvature)), longest, step)
    step = lax.min(lax.min(longest, step), largest)
    # A field that is not finite nearby: start small and let the first steps find out.
    usable = lax.bitwise_and(lax.is_finite(step), lax.gt(step, number(0, step)))
    return where(usable, step, lax.min(tiny_step, largest))
