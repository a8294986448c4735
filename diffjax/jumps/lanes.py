"""One path or many: what a CPU and an accelerator do best are opposite programs.

A CPU takes paths one after another, each in a loop that XLA compiles as one native function: no
path waits for another, and nothing is computed in vain (measured: 20 ns a jump, a third of the
same loop over many paths side by side; in C 29 ns). Where a loop cannot be compiled so, and on an
accelerator, the paths of a `vmap` go side by side in one loop with masks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.interpreters import ad, batching
from jaxtyping import Array, PyTree

from ..linear.native import call_primitive
from ..stepping.lanes import is_native
from ..stepping.program import Program
from ..varying import mesh_axes


def in_turn_or_together(
    single: Callable[..., PyTree], many: Callable[..., PyTree], *args: PyTree, native: bool
) -> PyTree:
    """`single(*args)`, and under `vmap` either that for each lane in turn or the `vmap` of `many`.

    Both must compute the same from their arguments alone and close over no tracer. `native` says
    whether it is worth a native function. Derivatives are refused.
    """
    leaves, structure = jtu.tree_flatten(args)

    def flat(fn: Callable[..., PyTree]) -> Callable[..., list[Array]]:
        return lambda *xs: jtu.tree_leaves(fn(*jtu.tree_unflatten(structure, xs)))

    traced, shape = jax.make_jaxpr(
        lambda *xs: single(*jtu.tree_unflatten(structure, xs)), return_shape=True
    )(*leaves)
    program = Program.traced(traced)
    out = path_p.bind(*leaves, single=program, many=flat(many), lanes=False, native=native)
    return jtu.tree_unflatten(jtu.tree_structure(shape), out)


def _apply(*args: Array, single: Any, many: Any, lanes: bool, native: bool) -> list[Array]:
    return many(*args) if lanes else single(*args)


def _marked(context: Any, single: Any, native: bool, **others: Any) -> Any:
    return single if native and is_native(single.closed.jaxpr) else None


def _batch(
    args: Sequence[Array],
    dims: Sequence[Any],
    *,
    single: Any,
    many: Any,
    lanes: bool,
    native: bool,
) -> Any:
    mapped = [d is not None for d in dims]
    size = next(x.shape[d] for x, d, m in zip(args, dims, mapped, strict=True) if m)
    args = [jnp.moveaxis(x, d, 0) if m else x for x, d, m in zip(args, dims, mapped, strict=True)]

    def in_turn(*xs: Array) -> list[Array]:
        def one(moving: list[Array]) -> list[Array]:
            rest = iter(moving)
            return single(*(next(rest) if m else x for x, m in zip(xs, mapped, strict=True)))

        return jax.lax.map(one, [x for x, m in zip(xs, mapped, strict=True) if m])

    if mesh_axes(args):
        # What is traced later would not know of the mesh.
        program = Program.of(in_turn, *args)
    else:
        out_avals = [aval.update(shape=(size, *aval.shape)) for aval in single.out_avals]
        program = Program(in_turn, map(jax.typeof, args), out_avals)
    together = jax.vmap(many, in_axes=tuple(0 if m else None for m in mapped), axis_size=size)
    out = path_p.bind(*args, single=program, many=together, lanes=True, native=native)
    return out, [0] * len(out)


def _jvp(primals: Any, tangents: Any, **_: Any) -> Any:
    raise TypeError(
        "a simulation of jumps has no derivative along the path with respect to u0, p or tspan: "
        "that a jump happens or not would be left out. dj.jumps.score_gradient estimates the "
        "derivative of an expectation without bias; where the path is data, solve with "
        "p=jax.lax.stop_gradient(p) and differentiate dj.jumps.log_likelihood."
    )


path_p = call_primitive("diffjax_path", _apply, lambda single, **_: list(single.out_avals), _marked)
ad.primitive_jvps[path_p] = _jvp
batching.primitive_batchers[path_p] = _batch
