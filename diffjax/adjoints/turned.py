"""Tall matrices among the parameters, turned on their side while a solve is replayed backwards.

The cotangent of a matrix that a batch shares is a product contracted over the batch. XLA's CPU
backend takes about three times as long for one of shape (many, few), as of the last layer of a
network, as for its transpose: 5 us against 1.5 us for (50, 2) and a batch of 128.
"""

import dataclasses
from collections.abc import Sequence

import jax
from jaxtyping import Array

from ..algorithms.base import evaluate
from ..stepping.plan import Plan


def is_tall(x: Array) -> bool:
    return x.ndim == 2 and x.shape[0] > x.shape[1]


def turn(values: Sequence[Array], which: Sequence[int]) -> list[Array]:
    """The values with some transposed."""
    return [x.T if i in which else x for i, x in enumerate(values)]


def with_turned(plan: Plan, args: Sequence[Array], which: Sequence[int]) -> Plan:
    """The plan for arguments of the vector field of which some come transposed.

    They are put right in every evaluation, not once a step: XLA then finds a transpose of each
    product, which it cancels, instead of one of their sum.
    """
    if not which:
        return plan
    jaxpr = plan.field_jaxpr
    constants = len(jaxpr.constvars)

    def field(*values: Array) -> list[Array]:
        values = tuple(turn(values, which))
        return evaluate(jaxpr, values[:constants], *values[constants:])

    others = [v.aval for v in jaxpr.invars[len(args) - constants :]]
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*turn(args, which), *others)]
    return dataclasses.replace(plan, field_jaxpr=jax.make_jaxpr(field)(*like).jaxpr)
