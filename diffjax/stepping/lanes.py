"""One trajectory or many: two programs for one function, chosen by whether a `vmap` is around.

For one small trajectory XLA's CPU backend spends its time on dispatching kernels of a few numbers
each; compiled as one native function the same loop is several times faster. For many trajectories
the opposite program is best: few iterations over wide arrays. `one_or_many` holds both as one
primitive, so that `vmap` in any order with `jit`, `jvp` and `grad` finds the right one.
"""

import os
from collections.abc import Callable
from typing import Any

import equinox.internal as eqxi
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, PyTree

# Operations that XLA's emitter of whole functions can compile. `cond` is not among them: a branch
# that ignores an operand stops the emitter. Nor are matrix products, which it may hand to a
# library.
_NATIVE_PRIMITIVES = """
    abs add add_any and argmax argmin atan2 broadcast_in_dim cbrt ceil clamp complex concatenate
    conj convert_element_type copy copy_p cos cosh custom_jvp_call custom_vjp_call
    custom_vjp_call_jaxpr custom_vmap_call diffjax_forward_only diffjax_linear diffjax_one_or_many
    div dynamic_slice dynamic_update_slice eq exp exp2 expand_dims expm1 floor ge gt imag
    integer_pow iota is_finite jit le log log1p logistic lt max min mul ne neg not or pad pjit pow
    real reduce_and reduce_max reduce_min reduce_or reduce_sum rem reshape rev round rsqrt scan
    select_n sign sin sinh slice split sqrt square squeeze stack stop_gradient sub tan tanh
    transpose unstack unvmap_any unvmap_max while
"""
_NATIVE = frozenset(_NATIVE_PRIMITIVES.split())
# A way out, should a version of XLA ever not compile them: DIFFJAX_NATIVE=0 in the environment.
_NATIVE_ON = os.environ.get("DIFFJAX_NATIVE", "1") != "0"
# A field whose arrays are larger than this is left to XLA's parallel kernels.
_NATIVE_MAX_SIZE = 256


def one_or_many(
    single: Callable[..., PyTree], many: Callable[..., PyTree], *args: PyTree, native: bool
) -> PyTree:
    """`single(*args)`, or under a `vmap` the `vmap` of `many`.

    With `native`, `single` is compiled as one function on a CPU if all that it does can be.

    Both must compute the same from their arguments alone and close over no tracer. `many` must
    not be confused by lanes that have ended.
    """
    leaves, structure = jtu.tree_flatten(args)

    def flat(fn: Callable[..., PyTree]) -> Callable[..., list[Array]]:
        return lambda *xs: jtu.tree_leaves(fn(*jtu.tree_unflatten(structure, xs)))

    traced, shape = jax.make_jaxpr(
        lambda *xs: single(*jtu.tree_unflatten(structure, xs)), return_shape=True
    )(*leaves)
    out = lane_p.bind(*leaves, single=traced, many=flat(many), native=native)
    return jtu.tree_unflatten(jtu.tree_structure(shape), out)


def any_lane(condition: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether the condition holds in any lane of the `vmap`s around; itself never batched."""
    return eqxi.unvmap_any(condition)


def is_native(jaxpr: Any, max_size: int | None = None) -> bool:
    """Whether all operations can be compiled into one function, on arrays up to a size."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name not in _NATIVE:
            return False
        if max_size is not None and any(v.aval.size > max_size for v in eqn.outvars):
            return False
        if not all(is_native(inner, max_size) for inner in jex.jaxprs_in_params(eqn.params)):
            return False
    return True


def is_small(jaxpr: Any) -> bool:
    """Whether a vector field is so small that a step of it is best one native function."""
    return is_native(jaxpr, _NATIVE_MAX_SIZE)


def _apply(*args: Array, single: Any, many: Any, native: bool) -> list[Array]:
    return jex.jaxpr_as_fun(single)(*args)


def _lower_cpu(ctx: Any, *args: Any, single: Any, many: Any, native: bool) -> Any:
    """Lower to one call that XLA compiles as one function, where it can."""
    if not (_NATIVE_ON and native and _at_top(ctx) and is_native(single.jaxpr)):
        return _lower(ctx, *args, single=single, many=many, native=native)

    # The emitter stops at an argument that nothing in the function uses. So all are given back as
    # well, and pass a barrier outside: or XLA would copy a constant into the function and leave
    # its argument unused.
    call = jax.jit(lambda *xs: (jex.jaxpr_as_fun(single)(*xs), xs))

    def guarded(*xs: Array) -> list[Array]:
        return jtu.tree_leaves(call(*jax.lax.optimization_barrier(xs)))

    out = mlir.lower_fun(guarded, multiple_results=True)(ctx, *args)
    # The attribute that XLA's CPU backend itself gives to calls of small loops.
    marks = {"xla_cpu_small_call": "true", "inlineable": "false"}
    strings: dict[str, mlir.ir.Attribute] = {
        name: mlir.ir.StringAttr.get(value) for name, value in marks.items()
    }
    out[0].owner.attributes["mhlo.frontend_attributes"] = mlir.ir.DictAttr.get(strings)
    return out[: len(single.out_avals)]


def _at_top(ctx: Any) -> bool:
    """Whether the call stands outside all control flow, where XLA may compile loops its own way."""
    names = str(ctx.name_stack)
    return not any(name in names for name in ("while", "scan", "cond", "branch", "shard_map"))


def _batch(args: Any, dims: Any, *, single: Any, many: Any, native: bool) -> Any:
    out = jax.vmap(many, in_axes=tuple(dims))(*args)
    return [forward_only_p.bind(x) if _is_inexact(x) else x for x in out], [0] * len(out)


def _jvp(primals: Any, tangents: Any, *, single: Any, many: Any, native: bool) -> Any:
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def tangents_of(fn: Callable[..., Any]) -> Callable[..., list[Array]]:
        def run(primals: list[Array], dots: list[Array]) -> list[Array]:
            def of_moving(*xs: Array) -> list[Array]:
                full = list(primals)
                for i, x in zip(moving, xs, strict=True):
                    full[i] = x
                return list(fn(*full))

            out, out_dot = jax.jvp(of_moving, [primals[i] for i in moving], dots)
            return [d for o, d in zip(out, out_dot, strict=True) if _is_inexact(o)]

        return run

    single_fn = jex.jaxpr_as_fun(single)
    out = lane_p.bind(*primals, single=single, many=many, native=native)
    # Apart from the value, so that a reverse pass that needs the value alone gets as far as
    # transposing the rest, which says by name what is not possible.
    smooth = one_or_many(
        tangents_of(single_fn),
        tangents_of(many),
        list(primals),
        [tangents[i] for i in moving],
        native=native,
    )
    dots = iter(smooth)
    return out, [
        next(dots) if _is_inexact(o) else ad.Zero(jax.typeof(o).to_tangent_aval()) for o in out
    ]


def _is_inexact(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _refuse(*_: Any, **__: Any) -> Any:
    raise ValueError(
        "a second reverse pass through diffjax.solve, or a reverse pass over a forward one, is not "
        "supported; take second derivatives forward over reverse: jax.jacfwd(jax.grad(f)), "
        "jax.hessian(f), or jax.jvp(jax.grad(f), ...) for a Hessian-vector product."
    )


lane_p = jex.Primitive("diffjax_one_or_many")
lane_p.multiple_results = True
lane_p.def_impl(_apply)
lane_p.def_abstract_eval(lambda *args, single, many, native: list(single.out_avals))
ad.primitive_jvps[lane_p] = _jvp
ad.primitive_transposes[lane_p] = _refuse
batching.primitive_batchers[lane_p] = _batch
_lower = mlir.lower_fun(_apply, multiple_results=True)
mlir.register_lowering(lane_p, _lower)
mlir.register_lowering(lane_p, _lower_cpu, platform="cpu")

# The identity, put behind loops that no reverse pass can cross so that it is refused by name.
forward_only_p = jex.Primitive("diffjax_forward_only")
forward_only_p.def_impl(lambda x: x)
forward_only_p.def_abstract_eval(lambda x: x)
ad.deflinear2(forward_only_p, _refuse)
batching.defvectorized(forward_only_p)
mlir.register_lowering(forward_only_p, lambda ctx, x: [x])
