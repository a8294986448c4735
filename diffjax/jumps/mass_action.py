"""The law of mass action, as arithmetic on whole vectors of reactions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..problems.jump_kinds import MassActionJump

# Up to so many entries are taken out of a vector one by one, then by masks up to so many in all.
_ONE_BY_ONE, _BY_MASKS = 32, 4096


def species_of(u: PyTree) -> int:
    """How many species a state holds: its elements, counted leaf by leaf."""
    return sum(math.prod(jnp.shape(x)) for x in jtu.tree_leaves(u))


def species(u: PyTree, dtype: Any) -> Float[Array, " species"]:
    """The numbers of molecules in a state, as one vector."""
    return jnp.concatenate([jnp.ravel(x).astype(dtype) for x in jtu.tree_leaves(u)])


def add_to_species(u: PyTree, change: Int[Array, " species"]) -> PyTree:
    """A state with other numbers of molecules."""
    leaves, structure = jtu.tree_flatten(u)
    ends = np.cumsum([math.prod(x.shape) for x in leaves])[:-1]
    parts = jnp.split(change, ends) if len(leaves) > 1 else [change]
    new = [x + part.reshape(x.shape).astype(x.dtype) for x, part in zip(leaves, parts, strict=True)]
    return jtu.tree_unflatten(structure, new)


class Reactions:
    """The reactions of a `MassActionJump`, for states like `u`.

    **Raises:** `ValueError` for another number of species, or of rates.
    """

    def __init__(self, jump: MassActionJump, u: PyTree, dtype: Any) -> None:
        self.jump, self.dtype = jump, dtype
        self.reactants, self.net_change = jump.reactants, jump.net_change
        self.count, width = self.reactants.shape
        if width != species_of(u):
            raise ValueError(
                f"reactants and net_change have {width} species (columns), but u0 has "
                f"{species_of(u)} elements."
            )
        factorials = np.vectorize(math.factorial)(self.reactants)
        self.scale = 1.0 / np.prod(factorials.astype(float), axis=1)
        self.slots = self._slots()

    def _slots(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of every reaction the first, second, ... species that it takes, and how many molecules
        (none where it takes fewer species)."""
        taken = [np.flatnonzero(row) for row in self.reactants]
        slots = []
        for k in range(max(map(len, taken))):
            which = np.array([row[k] if k < len(row) else 0 for row in taken])
            many = (
                np.array([k < len(row) for row in taken])
                * self.reactants[np.arange(self.count), which]
            )
            slots.append((which, many))
        return slots

    def constants(self, p: PyTree) -> Float[Array, " reactions"]:
        """The rate constants over the factorials of the reactants."""
        rates = self.jump.rates
        given = jnp.asarray(rates(p) if callable(rates) else rates)
        if given.shape != (self.count,):
            raise ValueError(
                f"rates must have one constant for each of {self.count} reactions, got shape "
                f"{given.shape}."
            )
        return given.astype(self.dtype) * jnp.asarray(self.scale, self.dtype)

    def rates(self, u: PyTree, p: PyTree) -> Float[Array, " reactions"]:
        """How often each reaction happens; NaN for a negative number of molecules."""
        rates, numbers = self.constants(p), species(u, self.dtype)
        for which, many in self.slots:
            found = _taken(numbers, which)
            ways = found
            for k in range(1, int(many.max())):
                ways = jnp.where(many > k, ways * jnp.maximum(found - k, 0), ways)
            ways = jnp.where(found < 0, jnp.nan, ways)
            rates = rates * (ways if many.all() else jnp.where(many > 0, ways, 1))
        return rates

    def after(self, u: PyTree, index: Int[Array, ""]) -> PyTree:
        """The state after one reaction."""
        rows = jnp.asarray(self.net_change, jnp.int32)
        return add_to_species(u, jax.lax.dynamic_index_in_dim(rows, index, keepdims=False))


def _taken(numbers: Float[Array, " species"], which: np.ndarray) -> Float[Array, " reactions"]:
    """`numbers[which]`, without a gather where one would stop a native function."""
    if which.size <= _ONE_BY_ONE:
        return jnp.stack([numbers[int(i)] for i in which])
    if which.size * numbers.size <= _BY_MASKS:
        mask = which[:, None] == np.arange(numbers.size)
        return jnp.sum(jnp.where(mask, numbers[None], 0), axis=1)
    return numbers[which]
