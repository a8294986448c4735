"""A linear map with a transpose of its own: what lets one adjoint serve every transformation.

The derivative of a solve is linear in the tangents. Giving it to JAX as one primitive, with a rule
for applying it (replay the steps forwards) and one for transposing it (replay them backwards),
makes `jvp`, `grad`, `jacfwd`, `jacrev`, `vmap` and `jit` all work from the same definition, where
`jax.custom_vjp` would forbid forward mode.

Batching keeps track of which arguments are batched instead of broadcasting them, so that in the
gradient of a `vmap` a shared parameter has one cotangent, not one a lane.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from ..stepping.levels import Level as Level
from ..stepping.trees import replaced


class LinearMap:
    """Base class. Subclasses hold static facts; arrays come as `residuals`.

    - `apply(residuals, tangents)`: the map, for one lane.
    - `transpose(levels, residuals, cotangents)`: cotangents of the tangents, for all lanes at
        once, innermost level first; a cotangent that is known to be zero comes as None.
    """

    out_avals: tuple[Any, ...]

    def apply(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        raise NotImplementedError

    def transpose(
        self,
        levels: tuple[Level, ...],
        residuals: Sequence[Array],
        cotangents: Sequence[Array | None],
    ) -> list[Array]:
        raise NotImplementedError


def apply_linear(
    linear: LinearMap, residuals: Sequence[Array], tangents: Sequence[Array]
) -> list[Array]:
    """Apply a linear map so that JAX can transform it."""
    return linear_p.bind(
        *residuals, *tangents, linear=linear, levels=(), n_residuals=len(residuals)
    )


def _batched_apply(
    *args: Array, linear: LinearMap, levels: tuple[Level, ...], n_residuals: int
) -> Any:
    def one(*args: Array) -> list[Array]:
        return linear.apply(args[:n_residuals], args[n_residuals:])

    for level in levels:
        axes = tuple(0 if flag else None for flag in level.residuals + level.tangents)
        one = jax.vmap(one, in_axes=axes, axis_size=level.size)
    return one(*args)


def _abstract(*args: Any, linear: LinearMap, levels: tuple[Level, ...], n_residuals: int) -> Any:
    sizes = tuple(level.size for level in reversed(levels))
    return [aval.update(shape=sizes + aval.shape) if sizes else aval for aval in linear.out_avals]


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    # Linear in the tangents, smooth in the residuals: both are followed by differentiating the
    # forward replay.
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def of_moving(*values: Array) -> Any:
        return _batched_apply(*replaced(primals, moving, values), **params)

    out = linear_p.bind(*primals, **params)
    primals_moving = [primals[i] for i in moving]
    _, out_dot = jax.jvp(of_moving, primals_moving, [tangents[i] for i in moving])
    return out, out_dot


def _transpose(
    cotangents: Any, *args: Any, linear: LinearMap, levels: tuple[Level, ...], n_residuals: int
) -> Any:
    residuals = args[:n_residuals]
    given = [None if isinstance(ct, ad.Zero) else ct for ct in cotangents]
    out = linear.transpose(levels, residuals, given)
    return [None] * n_residuals + list(out)


def _batch(
    args: Any, dims: Any, *, linear: LinearMap, levels: tuple[Level, ...], n_residuals: int
) -> Any:
    mapped = [d is not None for d in dims]
    size = next(x.shape[d] for x, d, m in zip(args, dims, mapped, strict=True) if m)
    args = [jnp.moveaxis(x, d, 0) if m else x for x, d, m in zip(args, dims, mapped, strict=True)]
    level = Level(size, tuple(mapped[:n_residuals]), tuple(mapped[n_residuals:]))
    out = linear_p.bind(*args, linear=linear, levels=(*levels, level), n_residuals=n_residuals)
    return out, [0] * len(out)


linear_p = jex.Primitive("diffjax_linear")
linear_p.multiple_results = True
linear_p.def_impl(_batched_apply)
linear_p.def_abstract_eval(_abstract)
ad.primitive_jvps[linear_p] = _jvp
ad.primitive_transposes[linear_p] = _transpose
batching.primitive_batchers[linear_p] = _batch
mlir.register_lowering(linear_p, mlir.lower_fun(_batched_apply, multiple_results=True))
