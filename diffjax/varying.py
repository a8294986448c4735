"""Carries of loops inside `jax.shard_map`.

Under its default checks every value has a type that says over which mesh axes it varies, and a
loop must be given a carry of the type it gives back. A counter that starts at zero varies over
nothing; what the loop makes of it varies like the inputs.
"""

import jax
import jax.tree_util as jtu
from jaxtyping import PyTree


def _varying(x: jax.Array) -> frozenset[str]:
    """The mesh axes in the type of `x`; jax renamed the attribute between 0.10 and its kin."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)
    return manual.varying if manual is not None else getattr(aval, "vma", frozenset())


def mesh_axes(tree: PyTree) -> frozenset[str]:
    """The mesh axes over which some leaf varies; empty outside `shard_map`."""
    return frozenset().union(*map(_varying, jtu.tree_leaves(tree)))


def vary_over(axes: frozenset[str], tree: PyTree) -> PyTree:
    """Mark every leaf as varying over all of `axes`."""
    if not axes:
        return tree

    def mark(x: jax.Array) -> jax.Array:
        if isinstance(x, int | float | str):
            return x
        missing = tuple(axes - _varying(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jtu.tree_map(mark, tree)


def vary_alike(tree: PyTree) -> PyTree:
    """Mark every leaf as varying over whatever some leaf varies over."""
    return vary_over(mesh_axes(tree), tree)
