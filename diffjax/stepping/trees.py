"""Pytrees of arrays: choosing between two, and one as a vector."""

from collections.abc import Callable
from itertools import accumulate

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree


def where(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """`yes` or `no` by one scalar condition."""
    return jtu.tree_map(lambda x, y: jnp.where(condition, x, y), yes, no)


def chosen(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """`yes` or `no` by a condition whose axes are the first of every leaf of theirs."""

    def choose(a: Array, b: Array) -> Array:
        shape = condition.shape + (1,) * (a.ndim - condition.ndim)
        return jnp.where(condition.reshape(shape), a, b)

    return jtu.tree_map(choose, yes, no)


def nan_like(x: Array) -> Array:
    """NaN in the shape of `x`; zero where its dtype has no NaN."""
    fill = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
    return jnp.full_like(x, fill)


def real_vector(tree: PyTree) -> tuple[Float[Array, " n"], Callable[[Array], PyTree]]:
    """The real and imaginary parts of all leaves as one vector, and the way back."""
    leaves, structure = jtu.tree_flatten(tree)
    dtype = jnp.result_type(*(jnp.finfo(x.dtype).dtype for x in leaves))
    parts = [p for x in leaves for p in _real_parts(x)]
    ends = list(accumulate(p.size for p in parts))

    def back(vector: Array) -> PyTree:
        pieces = iter(jnp.split(vector, ends[:-1]))
        out = []
        for x in leaves:
            own = [next(pieces).reshape(x.shape) for _ in _real_parts(x)]
            out.append((jax.lax.complex(*own) if len(own) == 2 else own[0]).astype(x.dtype))
        return jtu.tree_unflatten(structure, out)

    return jnp.concatenate([p.reshape(-1).astype(dtype) for p in parts]), back


def _real_parts(x: Array) -> tuple[Array, ...]:
    return (jnp.real(x), jnp.imag(x)) if jnp.iscomplexobj(x) else (x,)
