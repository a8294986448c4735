"""The dense Jacobian of a function, by forward derivatives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Vector = Float[Array, " n"]

# Up to this size the columns are computed one by one.
UNROLLED = 4


def value_and_jacobian(
    f: Callable[[Vector], Vector], u: Vector
) -> tuple[Vector, Float[Array, "n n"]]:
    """`f(u)` and its Jacobian, a column for each basis vector."""
    value, push = jax.linearize(f, u)
    basis = jnp.eye(u.shape[0], dtype=u.dtype)

    def column(e: Vector) -> Vector:
        return push(varying_like(u, e))

    if u.shape[0] <= UNROLLED:
        return value, jnp.stack([column(e) for e in basis], axis=1)
    return value, jax.vmap(column, out_axes=1)(basis)


def varying_like(x: Array, constant: Array) -> Array:
    """A constant in the shape of `x`, as a tangent of it.

    Inside `jax.shard_map` a tangent must vary over the mesh axes that its primal varies over. Of a
    choice between equals nothing is left in the compiled program.
    """
    return jnp.where(x == x, constant, constant)
