"""A whole solve as one native function on a CPU: what is around the loop as well as the loop.

Each operation that XLA's CPU backend compiles apart from a native function costs several
milliseconds of compilation, and some time in every call. Around the loop of a solve there are a
dozen: what the field computes from its parameters alone, the layout of what is saved, the counts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.tree_util as jtu
from jax.interpreters import ad, batching
from jax.interpreters import partial_eval as pe
from jaxtyping import Array, PyTree

from ..linear.native import call_primitive, in_native
from ..varying import mesh_axes
from .lanes import NATIVE_MAX_SIZE, is_native, lane_p
from .program import inner_jaxprs
from .trees import replaced


def whole(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`function(*args)`, on a CPU compiled as one native function if its loops are and it can be.

    Transformations go through: what is differentiated or batched is what the function does.
    """
    leaves, structure = jtu.tree_flatten(args)
    if mesh_axes(leaves):
        return function(*args)
    traced, shape = jax.make_jaxpr(
        lambda *xs: function(*jtu.tree_unflatten(structure, xs)), return_shape=True
    )(*leaves)
    # What the function closes over becomes arguments, to be differentiated and batched alike.
    names = traced.jaxpr.debug_info.with_unknown_names()
    invars = [*traced.jaxpr.constvars, *traced.jaxpr.invars]
    jaxpr = traced.jaxpr.replace(constvars=[], invars=invars, debug_info=names)
    # A callback is not to be hidden.
    run = _apply if traced.effects else whole_p.bind
    out = run(*traced.consts, *leaves, jaxpr=jaxpr)
    return jtu.tree_unflatten(jtu.tree_structure(shape), out)


def _function(jaxpr: Any) -> Callable[..., list[Array]]:
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, ()))


def _apply(*args: Array, jaxpr: Any) -> list[Array]:
    return _function(jaxpr)(*args)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, but those inside of loops over steps."""
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive is not lane_p:
            for inner in inner_jaxprs(eqn):
                yield from _equations(inner)


def _can_be_native(jaxpr: Any) -> bool:
    """Whether the loops over steps are compiled so, and all that is around them can be."""
    equations = list(_equations(jaxpr))
    loops = [eqn for eqn in equations if eqn.primitive is lane_p]
    if not loops or not all(eqn.params["native"] for eqn in loops):
        return False
    # Sums of many numbers XLA hands to a library.
    sums = [eqn for eqn in equations if eqn.primitive.name.startswith("reduce")]
    long = any(v.aval.size > NATIVE_MAX_SIZE for eqn in sums for v in eqn.invars)
    return not long and is_native(jaxpr)


def _marked(context: Any, jaxpr: Any) -> Callable[..., list[Array]] | None:
    return _function(jaxpr) if not in_native() and _can_be_native(jaxpr) else None


def _jvp(primals: Any, tangents: Any, *, jaxpr: Any) -> Any:
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]
    out, out_dot = jax.jvp(
        lambda *xs: _function(jaxpr)(*replaced(primals, moving, xs)),
        [primals[i] for i in moving],
        [tangents[i] for i in moving],
    )
    zero = jax.dtypes.float0
    return out, [
        ad.Zero(jax.typeof(x).to_tangent_aval()) if d.dtype == zero else d
        for x, d in zip(out, out_dot, strict=True)
    ]


def _batch(args: Sequence[Array], dims: Sequence[Any], *, jaxpr: Any) -> Any:
    out = jax.vmap(_function(jaxpr), in_axes=tuple(dims))(*args)
    return out, [0] * len(out)


def _dce(used: list[bool], eqn: Any) -> tuple[list[bool], Any]:
    """The equation without results that nobody uses, and without what only they need."""
    if not any(used):
        return [False] * len(eqn.invars), None
    jaxpr, needed = pe.dce_jaxpr(eqn.params["jaxpr"], used)
    new = eqn.replace(
        invars=[v for v, keep in zip(eqn.invars, needed, strict=True) if keep],
        outvars=[v for v, keep in zip(eqn.outvars, used, strict=True) if keep],
        params={"jaxpr": jaxpr},
    )
    return needed, new


whole_p = call_primitive(
    "diffjax_whole", _apply, lambda jaxpr: [v.aval for v in jaxpr.outvars], _marked
)
ad.primitive_jvps[whole_p] = _jvp
batching.primitive_batchers[whole_p] = _batch
pe.dce_rules[whole_p] = _dce
