"""Weighted sums of stages, and the polynomials made of them.

Zeros of a tableau are skipped, since XLA on a CPU pays for each small kernel.
"""

from functools import reduce

import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, PyTree

from .base import State


def scaled(x: Array, factor: Array) -> Array:
    """`factor * x` for a real factor, in the dtype of `x`."""
    return lax.mul(x, lax.convert_element_type(factor, x.dtype))


def combine(weights: tuple[float, ...], stages: list[State]) -> State | None:
    """The weighted sum of the stages, without the terms whose weight is zero."""
    terms = [(w, k) for w, k in zip(weights, stages, strict=False) if w != 0.0]
    if not terms:
        return None

    def total(*ks: Array) -> Array:
        # By `lax`, since an operator of `jax.numpy` takes several times as long to trace.
        pairs = zip((w for w, _ in terms), ks, strict=True)
        return reduce(lax.add, [k if w == 1.0 else lax.mul(k, k.dtype.type(w)) for w, k in pairs])

    return jtu.tree_map(total, *(k for _, k in terms))


def advance(u: State, dt: Array, weights: tuple[float, ...], stages: list[State]) -> State:
    """`u` plus `dt` times the weighted sum of the stages."""
    increment = combine(weights, stages)
    if increment is None:
        return u
    return jtu.tree_map(lambda x, k: lax.add(x, scaled(k, dt)), u, increment)


def evaluate_extension(coefficients: PyTree, theta: Array) -> State:
    """The value at `t + theta*dt`, exact at theta = 0. It is linear in the coefficients.

    The first coefficient is the start of the step, number m + 1 belongs to
    `theta * T_m(2*theta - 1)`.
    """
    start, *others = coefficients
    one, two = theta.dtype.type(1), theta.dtype.type(2)
    x = lax.sub(lax.mul(two, theta), one)
    basis = [theta, lax.mul(theta, x)][: len(others)]
    while len(basis) < len(others):
        # T_m(x) = 2x T_{m-1}(x) - T_{m-2}(x), here times theta.
        basis.append(lax.sub(lax.mul(lax.mul(two, x), basis[-1]), basis[-2]))
    # Term by term: as one contraction XLA would hand it to a matrix library, which under
    # `vmap` costs several times the few products it is.
    value = start
    for weight, state in zip(basis, others, strict=True):
        value = jtu.tree_map(lambda v, c, w=weight: lax.add(v, scaled(c, w)), value, state)
    return value
