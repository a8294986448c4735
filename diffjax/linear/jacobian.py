"""The dense Jacobian of a function, by forward derivatives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Vector = Float[Array, " n"]


def value_and_jacobian(
    f: Callable[[Vector], Vector], u: Vector
) -> tuple[Vector, Float[Array, "n n"]]:
    """`f(u)` and its Jacobian, a column for each basis vector."""
    value, push = jax.linearize(f, u)
    basis = jnp.eye(u.shape[0], dtype=u.dtype)
    return value, jax.vmap(push, out_axes=1)(basis)
