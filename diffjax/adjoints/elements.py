"""Vector fields that take short vectors apart once, while a solve is replayed backwards.

The transpose of each `u[0]` is a vector of zeros but for one element. XLA's CPU backend compiles
each to a kernel of its own, and into each once more all that led there: for the Lotka-Volterra
equations 6,000 operations a step. The transpose of a split is one concatenation: 2,400.
"""

import dataclasses
from typing import Any

import jax
from jax import lax

from ..stepping.tidy import renamed
from .replay import Replay

# Longer vectors are not taken apart.
_SHORT = 16


def with_elements(replay: Replay) -> Replay:
    """The replay of one trajectory with a vector field that has one split for all the elements that
    it takes of a short vector."""
    steps = replay.steps
    plan = dataclasses.replace(steps.plan, field_jaxpr=_split_once(steps.plan.field_jaxpr))
    return dataclasses.replace(replay, steps=dataclasses.replace(steps, plan=plan))


def _split_once(jaxpr: Any) -> Any:
    apart = _taken_apart(jaxpr)
    eqns: list[Any] = []
    same: dict[Any, Any] = {}
    pieces: dict[Any, list[Any]] = {}
    for eqn in jaxpr.eqns:
        eqn = eqn.replace(invars=[renamed(same, v) for v in eqn.invars])
        element, vector = _element(eqn), next(iter(eqn.invars), None)
        if element is None or vector not in apart:
            eqns.append(eqn)
            continue
        if vector not in pieces:
            split = _split(vector)
            eqns.append(split)
            pieces[vector] = split.outvars
        same[eqn.outvars[0]] = pieces[vector][element]
    return jaxpr.replace(eqns=eqns, outvars=[renamed(same, v) for v in jaxpr.outvars])


def _taken_apart(jaxpr: Any) -> set[Any]:
    """The short vectors of which more than one element is taken, one at a time."""
    found: dict[Any, set[int]] = {}
    for eqn in jaxpr.eqns:
        element = _element(eqn)
        if element is not None:
            found.setdefault(eqn.invars[0], set()).add(element)
    return {v for v, elements in found.items() if len(elements) > 1}


def _element(eqn: Any) -> int | None:
    """Which element of a short vector it takes, if that is what it does."""
    if eqn.primitive.name != "slice" or len(shape := eqn.invars[0].aval.shape) != 1:
        return None
    start, stop = eqn.params["start_indices"][0], eqn.params["limit_indices"][0]
    return start if stop == start + 1 and shape[0] <= _SHORT else None


def _split(vector: Any) -> Any:
    """The equation that splits a vector into its elements."""
    like = jax.ShapeDtypeStruct(vector.aval.shape, vector.aval.dtype)
    ones = [1] * like.shape[0]
    (eqn,) = jax.make_jaxpr(lambda x: lax.split(x, ones))(like).jaxpr.eqns
    return eqn.replace(invars=[vector])
