"""One trajectory or many: two programs for one function, chosen by whether a `vmap` is around.

For one small trajectory XLA's CPU backend spends its time on dispatching kernels of a few numbers
each; compiled as one native function the same loop is several times faster. For many trajectories
the opposite program is best: few iterations over wide arrays. `one_or_many` holds both as one
primitive, so that `vmap` in any order with `jit`, `jvp` and `grad` finds the right one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.interpreters import ad, batching
from jaxtyping import Array, Bool, PyTree

from ..linear.native import call_primitive, in_native
from ..varying import mesh_axes
from .levels import Lanes, Level
from .program import Program, inner_jaxprs
from .reversible import pull_back
from .trees import replaced

# Operations that XLA's emitter of whole functions can compile. `cond` is not among them: a branch
# that ignores an operand stops the emitter. Nor are matrix products, which it may hand to a
# library.
_NATIVE_PRIMITIVES = """
    abs add add_any and argmax argmin atan2 broadcast_in_dim cbrt ceil clamp complex concatenate
    conj convert_element_type copy copy_p cos cosh custom_jvp_call custom_linear_solve
    custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call diffjax_linear diffjax_native
    diffjax_once diffjax_once_backwards
    diffjax_one_or_many diffjax_whole
    div dynamic_slice dynamic_update_slice eq erf_inv exp exp2 expand_dims expm1 floor ge gt imag
    integer_pow iota is_finite jit le log log1p logistic lt max min mul ne neg not
    optimization_barrier or pad pjit pow real reduce_and reduce_max reduce_min reduce_or
    reduce_precision reduce_sum rem reshape rev round rsqrt scan select_n shift_left
    shift_right_logical sign sin sinh slice split sqrt square squeeze stack stop_gradient sub tan
    tanh transpose unstack unvmap_any unvmap_max while xor
"""
_NATIVE = frozenset(_NATIVE_PRIMITIVES.split())
# From this many numbers on XLA hands their sum or maximum to a library.
_REDUCTIONS = frozenset(("reduce_max", "reduce_min", "reduce_sum"))
_LARGE_REDUCTION = 4096
# A field whose arrays are larger than this is left to XLA's parallel kernels.
NATIVE_MAX_SIZE = 256


# For a number of lanes, and whether each argument has one for each: what serves them, or None.
Crowd = Callable[[int, Sequence[bool]], Callable[..., list[Array]] | None]


def one_or_many(
    single: Callable[..., PyTree],
    many: Callable[..., PyTree],
    *args: PyTree,
    native: bool,
    like: Callable[..., PyTree] | None = None,
    crowd: Crowd | None = None,
    tangents: bool = False,
) -> PyTree:
    """`single(*args)`, or under a `vmap` the `vmap` of `many`.

    With `native`, `single` is compiled as one function on a CPU if all that it does can be.
    `like(*args)`, if given, has results of the same types and is quickly traced; then `single` is
    traced only where it is used.

    `crowd(size, mapped)`, if given, may know something better than the `vmap` of `many` over `size`
    lanes: a function of all arrays in the arguments, of which those that are `mapped` have a first
    axis over lanes.

    With `tangents` the last of the arguments holds tangents; several for the same of all others,
    the columns of a Jacobian, are no lanes, but belong to one trajectory.

    Both must compute the same from their arguments alone and close over no tracer. `many` must
    not be confused by lanes that have ended.
    """
    leaves, structure = jtu.tree_flatten(args)

    def flat(fn: Callable[..., PyTree]) -> Callable[..., list[Array]]:
        return lambda *xs: jtu.tree_leaves(fn(*jtu.tree_unflatten(structure, xs)))

    # Inside `shard_map` what is traced later would not know of the mesh.
    first = single if like is None or mesh_axes(leaves) else like
    traced, shape = jax.make_jaxpr(
        lambda *xs: first(*jtu.tree_unflatten(structure, xs)), return_shape=True
    )(*leaves)
    if first is single:
        program = Program.traced(traced)
    else:
        program = Program(flat(single), traced.in_avals, traced.out_avals)
    own = len(jtu.tree_leaves(args[:-1])) if tangents else len(leaves)
    out = lane_p.bind(
        *leaves, single=program, many=flat(many), crowd=crowd, native=native, tangent=None, own=own
    )
    return jtu.tree_unflatten(jtu.tree_structure(shape), out)


def any_lane(condition: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether the condition holds in any lane of the `vmap`s around; itself never batched."""
    return eqxi.unvmap_any(condition)


def is_native(jaxpr: Any, max_size: int | None = None) -> bool:
    """Whether all operations can be compiled into one function, on arrays up to a size."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name not in _NATIVE:
            return False
        if name in _REDUCTIONS and eqn.invars[0].aval.size >= _LARGE_REDUCTION:
            return False
        if max_size is not None and any(v.aval.size > max_size for v in eqn.outvars):
            return False
        if not all(is_native(inner, max_size) for inner in inner_jaxprs(eqn)):
            return False
    return True


def is_small(jaxpr: Any) -> bool:
    """Whether a vector field is so small that a step of it is best one native function."""
    return is_native(jaxpr, NATIVE_MAX_SIZE)


class _Tangent:
    """What it takes to go backwards through the tangent of a function: the function itself.

    - `function`: what to evaluate, as `many` of `one_or_many`; `avals` are its arguments' types.
    - `moving`: which of its arguments have tangents. The tangent's own arguments are those of the
        function, then these tangents.
    - `levels`: the `vmap`s around.
    """

    def __init__(
        self,
        function: Callable[..., list[Array]],
        avals: Sequence[Any],
        moving: Sequence[int],
        levels: tuple[Level, ...] = (),
    ) -> None:
        self.function, self.avals = function, tuple(avals)
        self.moving, self.levels = tuple(moving), levels

    def within(self, size: int, mapped: Sequence[bool]) -> "_Tangent":
        """The same under one `vmap` more."""
        count = len(self.avals)
        level = Level(size, tuple(mapped[:count]), tuple(mapped[count:]))
        return _Tangent(self.function, self.avals, self.moving, (*self.levels, level))

    def transpose(self, primals: Sequence[Array], cotangents: Sequence[Any]) -> list[Array]:
        """Cotangents of the tangents."""
        lanes = Lanes(self.levels)
        flags = [tuple(level.residuals[i] for level in self.levels) for i in range(len(self.avals))]
        given = [i for i, ct in enumerate(cotangents) if not isinstance(ct, ad.Zero)]
        filled = [lanes.fill(primals[i], flags[i], lanes.all) for i in self.moving]

        def smooth(*args: Array) -> list[Array]:
            out = [x for x in self.function(*args) if _is_inexact(x)]
            return [out[i] for i in given]

        def one(moving: list[Array], primals: list[Array], cts: list[Array]) -> list[Array]:
            return pull_back(smooth, self.moving, replaced(primals, self.moving, moving), cts)

        out = lanes(one, True, flags, True)(filled, list(primals), [cotangents[i] for i in given])
        wanted = [
            tuple(level.tangents[k] for level in self.levels) for k in range(len(self.moving))
        ]
        return [lanes.reduce(x, want) for x, want in zip(out, wanted, strict=True)]


def _apply(*args: Array, single: Any, **others: Any) -> list[Array]:
    return single(*args)


def _marked(context: Any, single: Any, native: bool, **others: Any) -> Any:
    return single if native and not in_native() and is_native(single.closed.jaxpr) else None


def _batch(
    args: Any,
    dims: Any,
    *,
    single: Any,
    many: Any,
    crowd: Crowd | None,
    native: bool,
    tangent: _Tangent | None,
    own: int,
) -> Any:
    mapped = [d is not None for d in dims]
    size = next(x.shape[d] for x, d, m in zip(args, dims, mapped, strict=True) if m)
    args = [jnp.moveaxis(x, d, 0) if m else x for x, d, m in zip(args, dims, mapped, strict=True)]
    axes = tuple(0 if m else None for m in mapped)
    lanes = jax.vmap(many, in_axes=axes, axis_size=size)
    # Several tangents of one trajectory, which is still one.
    columns = native and not any(mapped[:own])
    alone = jax.vmap(single, in_axes=axes, axis_size=size) if columns else lanes
    if crowd is not None:
        alone = crowd(size, mapped) or alone
    if mesh_axes(args):
        program = Program.of(alone, *args)
    else:
        out_avals = [aval.update(shape=(size, *aval.shape)) for aval in single.out_avals]
        program = Program(alone, map(jax.typeof, args), out_avals)
    out = lane_p.bind(
        *args,
        single=program,
        many=lanes,
        crowd=None,
        native=columns,
        tangent=None if tangent is None else tangent.within(size, mapped),
        own=own,
    )
    return out, [0] * len(out)


def _jvp(
    primals: Any, tangents: Any, *, single: Any, many: Any, crowd: Any, native: bool, **others: Any
) -> Any:
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]
    count = len(primals)

    def tangents_of(fn: Callable[..., Any]) -> Callable[..., list[Array]]:
        def run(*args: Array) -> list[Array]:
            primals, dots = args[:count], list(args[count:])

            def of_moving(*xs: Array) -> list[Array]:
                return list(fn(*replaced(primals, moving, xs)))

            out, out_dot = jax.jvp(of_moving, [primals[i] for i in moving], dots)
            return [d for o, d in zip(out, out_dot, strict=True) if _is_inexact(o)]

        return run

    out = lane_p.bind(*primals, single=single, many=many, crowd=crowd, native=native, **others)
    # Apart from the value, so that a reverse pass transposes nothing but what is linear.
    args = [*primals, *(tangents[i] for i in moving)]
    smooth = lane_p.bind(
        *args,
        single=Program.of(tangents_of(single), *args),
        many=tangents_of(many),
        crowd=None,
        native=native,
        tangent=_Tangent(many, single.in_avals, moving),
        own=count,
    )
    dots = iter(smooth)
    return out, [
        next(dots) if _is_inexact(o) else ad.Zero(jax.typeof(o).to_tangent_aval()) for o in out
    ]


def _transpose(cotangents: Any, *args: Any, tangent: _Tangent | None, **others: Any) -> Any:
    assert tangent is not None, "only a tangent is linear in what comes last"
    primals = args[: len(tangent.avals)]
    return [None] * len(primals) + tangent.transpose(primals, cotangents)


def _is_inexact(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


lane_p = call_primitive(
    "diffjax_one_or_many", _apply, lambda single, **_: list(single.out_avals), _marked
)
ad.primitive_jvps[lane_p] = _jvp
ad.primitive_transposes[lane_p] = _transpose
batching.primitive_batchers[lane_p] = _batch
