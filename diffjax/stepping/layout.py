"""How a user's pytree is laid out while steps are taken.

XLA pays for every leaf that a loop carries, so a state of several leaves becomes one flat vector
per dtype; a single array keeps its shape (it may be a sharded field).
"""

from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from ..algorithms.base import State


class Layout:
    """The structure of a state, and the two ways across.

    **Raises:** `TypeError` for a leaf that is not floating point or complex.
    """

    def __init__(self, u0: PyTree) -> None:
        leaves, self.structure = jtu.tree_flatten(u0)
        if not leaves:
            raise ValueError("u0 must hold at least one array, got an empty pytree.")
        self.shapes = tuple(jnp.shape(x) for x in leaves)
        self.dtypes = tuple(np.dtype(jnp.result_type(x)) for x in leaves)
        for dtype in self.dtypes:
            if not jnp.issubdtype(dtype, jnp.inexact):
                raise TypeError(
                    f"u0 must be floating point or complex, got a leaf of dtype {dtype}; "
                    "try u0=jnp.array([1.0, 2.0]) or .astype(float)."
                )
        self.groups = tuple(dict.fromkeys(self.dtypes))

    def _key(self) -> tuple[Any, ...]:
        return (self.structure, self.shapes, self.dtypes)

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._key() == other._key()

    @property
    def time_dtype(self) -> Any:
        """The real dtype that carries time: the widest of the state's."""
        return np.result_type(*(np.finfo(d).dtype for d in self.dtypes))

    def ravel(self, tree: PyTree) -> State:
        leaves = jtu.tree_leaves(tree)
        if len(leaves) == 1:
            return jnp.asarray(leaves[0])
        vectors = tuple(
            jnp.concatenate(
                [jnp.ravel(x) for x, d in zip(leaves, self.dtypes, strict=True) if d == group]
            )
            for group in self.groups
        )
        return vectors[0] if len(vectors) == 1 else vectors

    def ravel_columns(self, tree: PyTree) -> State:
        """Lay out a pytree whose leaves have one axis more, the last."""
        leaves = jtu.tree_leaves(tree)
        if len(leaves) == 1:
            return jnp.asarray(leaves[0])
        flat = [x.reshape(-1, x.shape[-1]) for x in leaves]
        matrices = tuple(
            jnp.concatenate([x for x, d in zip(flat, self.dtypes, strict=True) if d == group])
            for group in self.groups
        )
        return matrices[0] if len(matrices) == 1 else matrices

    def unravel(self, u: State) -> PyTree:
        if len(self.shapes) == 1:
            return jtu.tree_unflatten(self.structure, [u])
        vectors = dict(zip(self.groups, u if isinstance(u, tuple) else (u,), strict=True))
        offsets = dict.fromkeys(self.groups, 0)
        leaves: list[Array] = []
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            start, size = offsets[dtype], int(np.prod(shape))
            offsets[dtype] = start + size
            leaves.append(vectors[dtype][start : start + size].reshape(shape))
        return jtu.tree_unflatten(self.structure, leaves)

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each real coordinate of a laid-out state (`linear/coordinates`): the element of the
        user's state it belongs to, counted leaf by leaf, and whether it is the imaginary part."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        firsts = np.cumsum([0, *sizes[:-1]])
        elements, parts = [], []
        for group in self.groups:
            chosen = zip(firsts, sizes, self.dtypes, strict=True)
            inside = np.concatenate([first + np.arange(n) for first, n, d in chosen if d == group])
            for part in range(2 if np.issubdtype(group, np.complexfloating) else 1):
                elements.append(inside)
                parts.append(np.full(inside.shape, bool(part)))
        return np.concatenate(elements), np.concatenate(parts)
