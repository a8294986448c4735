"""The automatic first step.

Source: Hairer, Norsett, Wanner, Solving ODEs I, section II.4, "Starting step size" (a)-(f).
"""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ..algorithms.base import Field, Norm, State
from ..algorithms.implicit import derivative

# Steps (b), (e) and (f) of the source.
_TINY_SIZE = 1.0e-5
_TINY_STEP = 1.0e-6
_FIRST_GUESS = 0.01
_TINY_DERIVATIVE = 1.0e-15
_MAX_GROWTH = 100.0
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
    guess = jnp.where(
        (size < _TINY_SIZE) | (slope < _TINY_SIZE),
        _TINY_STEP,
        _FIRST_GUESS * size / jnp.maximum(slope, _TINY_SIZE),
    )
    guess = jnp.minimum(guess, largest)
    if field.slope is not None:
        # There is no second derivative without solving for it.
        return guess
    u1 = jtu.tree_map(lambda x, d: x + d * guess.astype(x.dtype), u, f0)
    f1 = derivative(field, t + guess, u1)
    if field.diffusion is not None:
        f0, f1 = _with_noise(field, t, u, f0), _with_noise(field, t + guess, u1, f1)
    change = jtu.tree_map(jnp.subtract, f1, f0)
    curvature = norm(change, u, u) / guess
    steepest = jnp.maximum(slope, curvature)
    step = jnp.where(
        steepest <= _TINY_DERIVATIVE,
        jnp.maximum(_TINY_STEP, guess * 1e-3),
        (_FIRST_GUESS / jnp.maximum(steepest, _TINY_DERIVATIVE)) ** (1.0 / order),
    )
    step = jnp.where(curvature == 0, _MAX_GROWTH * guess, step)
    step = jnp.minimum(jnp.minimum(_MAX_GROWTH * guess, step), largest)
    # A field that is not finite nearby: start small and let the first steps find out.
    return jnp.where(jnp.isfinite(step) & (step > 0), step, jnp.minimum(_TINY_STEP, largest))
