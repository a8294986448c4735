"""Values that are computed once, where XLA would compute them again wherever they are used.

XLA's CPU backend fuses: what is cheap is computed again in each operation that uses it. The state
of a stage is a sum over all stages before it, and a field uses each element of it several times: a
stencil of three points computes that sum three times, and within it what led to the stages before.
On the way back through a step it is worse, since there each stage is used in all before it. Of a
discretised equation with 1,000 unknowns a solve by `Vern6` took seven times as long so, and its
gradient ten times.
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


_same = jax.jit(lambda x: x)


def _by_a_call(context: Any, x: Any) -> Any:
    """`x` by a call that XLA is told not to inline: it fuses nothing into it nor out of it."""
    out = list(mlir.lower_fun(_same, multiple_results=False)(context, x))
    marks: dict[str, mlir.ir.Attribute] = {"inlineable": mlir.ir.StringAttr.get("false")}
    out[0].owner.attributes["mhlo.frontend_attributes"] = mlir.ir.DictAttr.get(marks)
    return out


once_p = jex.Primitive("diffjax_once")
once_p.def_impl(lambda x: x)
once_p.def_abstract_eval(lambda x: x)
batching.defvectorized(once_p)
ad.deflinear2(once_p, lambda cotangent, _: [once_p.bind(cotangent)])
mlir.register_lowering(once_p, lambda context, x: [x])
mlir.register_lowering(once_p, _by_a_call, platform="cpu")
