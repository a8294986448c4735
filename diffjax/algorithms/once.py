"""Values that are computed once, where XLA would compute them again wherever they are used.

XLA's CPU backend fuses: what is cheap is computed again in each operation that uses it. The state
of a stage is a sum over all stages before it, and a field uses each element of it several times: a
stencil of three points computes that sum three times, and within it what led to the stages before.
On the way back through a step it is worse, since there each stage is used in all before it. Of a
discretised equation with 1,000 unknowns a solve by `Vern6` took seven times as long so, and its
gradient ten times.

Where a field treats each element of the state by itself, all of a step is best one loop over them;
and a matrix product takes whole arrays, which are computed once for it anyway.
"""

from typing import Any, TypeVar

import jax
import jax.extend.core as jex
import jax.tree_util as jtu
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

Tree = TypeVar("Tree", bound=PyTree[Array])


def once(tree: Tree) -> Tree:
    """The same arrays, each computed once, as are their tangents and cotangents."""
    return jtu.tree_map(once_p.bind, tree)


def once_backwards(tree: Tree) -> Tree:
    """The same arrays, whose cotangents are each computed once."""
    return jtu.tree_map(once_backwards_p.bind, tree)


_same = jax.jit(lambda x: x)


def _by_a_call(context: Any, x: Any) -> Any:
    """`x` by a call that XLA is told not to inline: it fuses nothing into it nor out of it."""
    out = list(mlir.lower_fun(_same, multiple_results=False)(context, x))
    marks: dict[str, mlir.ir.Attribute] = {"inlineable": mlir.ir.StringAttr.get("false")}
    out[0].owner.attributes["mhlo.frontend_attributes"] = mlir.ir.DictAttr.get(marks)
    return out


def _identity(name: str) -> jex.Primitive:
    """A primitive that gives back its argument, and whose cotangent is computed once."""
    primitive = jex.Primitive(name)
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    batching.defvectorized(primitive)
    ad.deflinear2(primitive, lambda cotangent, _: [once_p.bind(cotangent)])
    mlir.register_lowering(primitive, lambda context, x: [x])
    return primitive


once_p, once_backwards_p = _identity("diffjax_once"), _identity("diffjax_once_backwards")
mlir.register_lowering(once_p, _by_a_call, platform="cpu")

_NAMES = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp complex conj
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor
    ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter
    not or pow real reduce_precision rem round rsqrt select_n sign sin sinh sqrt square
    stop_gradient sub tan tanh xor
"""
_ELEMENTWISE = frozenset(_NAMES.split())

# Of one shape with what they are made of, or handed to a library, which takes whole arrays.
_WHOLE = frozenset(("conv_general_dilated", "dot_general", "expand_dims", "reshape", "squeeze"))


def mixes(jaxpr: Any) -> bool:
    """Whether a field, whose last arguments are the state, takes elements of it together in what
    XLA fuses."""
    count = len(jaxpr.outvars)
    return _mixed(jaxpr, [False] * (len(jaxpr.invars) - count) + [True] * count)


def _mixed(jaxpr: Any, moving: list[bool]) -> bool:
    """Whether it does so with those of its arguments that are `moving`."""
    known = {v for v, moves in zip(jaxpr.invars, moving, strict=True) if moves}
    for eqn in jaxpr.eqns:
        moves = [not isinstance(v, jex.Literal) and v in known for v in eqn.invars]
        if any(moves):
            known.update(eqn.outvars)
            if _mixes(eqn, moves):
                return True
    return False


def _mixes(eqn: Any, moving: list[bool]) -> bool:
    """Whether an operation does; one that is not known here is taken to."""
    name = eqn.primitive.name
    if all(v.aval.size == 1 for v in (*eqn.invars, *eqn.outvars)) or name in _WHOLE:
        return False
    if name == "broadcast_in_dim":
        return eqn.invars[0].aval.size != 1
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)
    if inner is None or name in ("scan", "while") or len(inner.invars) != len(moving):
        return name not in _ELEMENTWISE
    return _mixed(inner, moving)
