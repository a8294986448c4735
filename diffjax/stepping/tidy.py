"""A traced function with less in it.

What the user wrote is copied into every stage of every step, so that each of its operations counts
a dozen times.
"""

from collections.abc import Hashable
from typing import Any

import jax.extend.core as jex
import numpy as np


def tidied(jaxpr: Any) -> Any:
    """The same function; what it computes twice, as each `u[0]`, is computed once."""
    eqns: list[Any] = []
    same: dict[Any, Any] = {}
    known: dict[Hashable, Any] = {}
    used = used_in(jaxpr)
    for eqn in jaxpr.eqns:
        eqn = eqn.replace(invars=[_renamed(same, v) for v in eqn.invars])
        key = _key(eqn, used)
        if key is not None and key in known:
            same[eqn.outvars[0]] = known[key]
            continue
        if key is not None:
            known[key] = eqn.outvars[0]
        eqns.append(eqn)
    return jaxpr.replace(eqns=eqns, outvars=[_renamed(same, v) for v in jaxpr.outvars])


def _renamed(same: dict[Any, Any], v: Any) -> Any:
    """The variable that stands for this one."""
    return v if isinstance(v, jex.Literal) else same.get(v, v)


def used_in(jaxpr: Any) -> set[Any]:
    """The variables that something is computed from, or that are given back."""
    values = [v for eqn in jaxpr.eqns for v in eqn.invars] + list(jaxpr.outvars)
    return {v for v in values if not isinstance(v, jex.Literal)}


def _key(eqn: Any, used: set[Any]) -> Hashable | None:
    """What an equation has in common with those that compute the same; None if it cannot tell."""
    if eqn.effects or len(eqn.outvars) != 1 or eqn.outvars[0] not in used:
        return None
    key = (eqn.primitive, tuple(map(_value, eqn.invars)), tuple(sorted(eqn.params.items())))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _value(v: Any) -> Hashable:
    if not isinstance(v, jex.Literal):
        return v
    aval: Any = v.aval
    # By its bytes, since 0.0 is not -0.0, and by its type, since a weak one makes others weak.
    return aval.dtype, aval.weak_type, aval.shape, np.asarray(v.val).tobytes()
