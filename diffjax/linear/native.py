"""Loops over single numbers, compiled as one native function on a CPU.

An elimination column by column is thousands of operations on a few numbers each. XLA's CPU backend
dispatches each as a kernel of its own; marked as below, it compiles the whole loop as one function,
which is some fifty times faster.
"""

import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.extend.core as jex
import jax.tree_util as jtu
from jax.interpreters import batching, mlir
from jaxtyping import Array, PyTree

# A way out, should a version of XLA ever not compile them: DIFFJAX_NATIVE=0 in the environment.
NATIVE_ON = os.environ.get("DIFFJAX_NATIVE", "1") != "0"

# Whether what is being lowered is inside of such a function.
_INSIDE = ContextVar("inside a native function", default=False)


def in_native() -> bool:
    """Whether what is being lowered is inside of a native function, and so needs no mark."""
    return _INSIDE.get()


def marked_call(function: Callable[..., list[Array]], ctx: Any, *args: Any) -> list[Any]:
    """Lower a call that XLA's CPU backend compiles as one function, where it can compile it so.

    It stops at an argument that nothing in the function uses. So all are given back as well, and
    pass a barrier outside: or XLA would copy a constant into the function and leave its argument
    unused. What is given back comes after the function's own results.
    """

    call = jax.jit(lambda *xs: (function(*xs), xs))

    def guarded(*xs: Array) -> list[Array]:
        return jtu.tree_leaves(call(*jax.lax.optimization_barrier(xs)))

    outside = _INSIDE.set(True)
    try:
        out = list(mlir.lower_fun(guarded, multiple_results=True)(ctx, *args))
    finally:
        _INSIDE.reset(outside)
    # The attribute that XLA's CPU backend itself gives to calls of small loops.
    marks = {"xla_cpu_small_call": "true", "inlineable": "false"}
    strings: dict[str, mlir.ir.Attribute] = {
        name: mlir.ir.StringAttr.get(value) for name, value in marks.items()
    }
    out[0].owner.attributes["mhlo.frontend_attributes"] = mlir.ir.DictAttr.get(strings)
    return out


def call_primitive(
    name: str,
    apply: Callable[..., list[Array]],
    avals: Callable[..., list[Any]],
    marked: Callable[..., Callable[..., list[Array]] | None],
) -> jex.Primitive:
    """A primitive that calls a function, on a CPU as one native function where that is best.

    `apply(*args, **params)` is what it does, `avals(**params)` are the types of its results, and
    `marked(context, **params)` is the function to be compiled as one, or None.
    """
    primitive = jex.Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(apply)
    primitive.def_abstract_eval(lambda *args, **params: avals(**params))
    lower = mlir.lower_fun(apply, multiple_results=True)

    def lower_cpu(ctx: Any, *args: Any, **params: Any) -> Any:
        function = marked(ctx, **params) if NATIVE_ON else None
        if function is None:
            return lower(ctx, *args, **params)
        return marked_call(function, ctx, *args)[: len(ctx.avals_out)]

    mlir.register_lowering(primitive, lower)
    mlir.register_lowering(primitive, lower_cpu, platform="cpu")
    return primitive


def native(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`function(*args)`, on a CPU compiled as one native function unless a `vmap` is around.

    Nothing differentiates it. It must close over no tracer, and do nothing that the emitter of
    whole functions cannot compile: no `cond`, gather, scatter or library call, no large arrays.
    """
    leaves, structure = jtu.tree_flatten(args)
    traced, shape = jax.make_jaxpr(
        lambda *xs: function(*jtu.tree_unflatten(structure, xs)), return_shape=True
    )(*leaves)
    return jtu.tree_unflatten(jtu.tree_structure(shape), native_p.bind(*leaves, traced=traced))


def _apply(*args: Array, traced: Any) -> list[Array]:
    return jex.jaxpr_as_fun(traced)(*args)


def _batch(args: Sequence[Array], dims: Sequence[Any], *, traced: Any) -> Any:
    out = jax.vmap(jex.jaxpr_as_fun(traced), in_axes=tuple(dims))(*args)
    return out, [0] * len(out)


native_p = call_primitive(
    "diffjax_native",
    _apply,
    lambda traced: list(traced.out_avals),
    lambda context, traced: jex.jaxpr_as_fun(traced),
)
batching.primitive_batchers[native_p] = _batch
