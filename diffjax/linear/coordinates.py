"""A state as one real vector, which is what the linear algebra of an implicit step acts on.

A field of complex numbers need not be holomorphic, so its Jacobian acts on real and imaginary
parts; and parts of different precision share one matrix, in the wider precision.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree


class Coordinates:
    """The two ways between a state like `u` and its `size` real coordinates."""

    def __init__(self, u: PyTree) -> None:
        leaves, self.structure = jtu.tree_flatten(u)
        self.shapes = [x.shape for x in leaves]
        self.dtypes = [np.dtype(x.dtype) for x in leaves]
        self.dtype: Any = np.result_type(*(np.finfo(d).dtype for d in self.dtypes))
        self.size = sum(x.size * (2 if jnp.iscomplexobj(x) else 1) for x in leaves)
        self.is_vector = len(leaves) == 1 and leaves[0].ndim == 1 and self.dtypes[0] == self.dtype

    def flatten(self, u: PyTree) -> Float[Array, " size"]:
        """The coordinates of a state."""
        if self.is_vector:
            return jtu.tree_leaves(u)[0]
        parts = [
            part.reshape(-1).astype(self.dtype)
            for x in jtu.tree_leaves(u)
            for part in ((jnp.real(x), jnp.imag(x)) if jnp.iscomplexobj(x) else (x,))
        ]
        return jnp.concatenate(parts)

    def unflatten(self, vector: Float[Array, " size"]) -> PyTree:
        """The state with these coordinates."""
        if self.is_vector:
            return jtu.tree_unflatten(self.structure, [vector])
        leaves, start = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            count = int(np.prod(shape))
            parts = []
            for _ in range(2 if np.issubdtype(dtype, np.complexfloating) else 1):
                part = vector[start : start + count].reshape(shape)
                parts.append(part.astype(np.finfo(dtype).dtype))
                start += count
            leaves.append(parts[0] if len(parts) == 1 else jax.lax.complex(*parts))
        return jtu.tree_unflatten(self.structure, leaves)
