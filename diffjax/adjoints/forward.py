"""Forward sensitivities: tangents carried along with the steps, and no tape.

The steps are taken a second time with tangents beside the state. Under `grad` the same map is
transposed by contracting its Jacobian, one column for each input, so that the choice of adjoint
needs no other change in a program.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from ..stepping.loop import integrate
from ..stepping.outcome import Keep, Outcome
from ..stepping.plan import Inputs, Plan, Settings
from .base import Adjoint
from .linear_map import Level, LinearMap, apply_linear
from .replay import Lanes
from .smooth import Counters, Smooth, join, no_tangent, split


class ForwardMode(Adjoint):
    """Forward sensitivities: memory does not grow with the number of steps.

    The cheapest for a few inputs (up to about a hundred states and parameters); under `grad` the
    cost grows with the number of inputs.

    **Arguments:**

    - `columns`: how many columns of the Jacobian are carried at once under `grad`.

    !!! example
        `dj.solve(prob, dj.Tsit5(), adjoint=dj.ForwardMode())`
    """

    columns: int = eqx.field(static=True, default=64)

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        leaves, structure = jtu.tree_flatten(inputs)
        keep = Keep(tape=plan.every_step)
        counters = Counters()

        @jax.custom_jvp
        def run(leaves: list[Array], settings: Settings) -> tuple[Smooth, Outcome]:
            inputs = jtu.tree_unflatten(structure, leaves)
            smooth, rest = split(integrate(plan, inputs, settings, keep))
            return smooth, counters.pack(rest)

        @partial(run.defjvp, symbolic_zeros=True)
        def _(primals: Any, tangents: Any) -> Any:
            leaves, settings = primals
            moving = [i for i, t in enumerate(tangents[0]) if not isinstance(t, SymbolicZero)]
            smooth, rest = run(leaves, settings)
            structures = jtu.tree_structure(primals), structure
            linear = _Sensitivity(self.columns, plan, keep, structures, moving, smooth)
            out = apply_linear(linear, jtu.tree_leaves(primals), [tangents[0][i] for i in moving])
            smooth_dot = jtu.tree_unflatten(jtu.tree_structure(smooth), out)
            return (smooth, rest), (smooth_dot, jtu.tree_map(no_tangent, rest))

        smooth, rest = run(leaves, settings)
        return join(smooth, counters.unpack(rest))


class _Sensitivity(LinearMap):
    """The tangent of a solve, by differentiating its loop."""

    def __init__(
        self,
        columns: int,
        plan: Plan,
        keep: Keep,
        structures: tuple[Any, Any],
        moving: Sequence[int],
        smooth: Smooth,
    ) -> None:
        self.columns, self.plan, self.keep, self.moving = columns, plan, keep, moving
        self.structure, self.input_structure = structures
        self.out_avals = tuple(jax.typeof(x) for x in jtu.tree_leaves(smooth))

    def apply(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        leaves, settings = jtu.tree_unflatten(self.structure, residuals)

        def solved(moving: list[Array]) -> list[Array]:
            replaced = list(leaves)
            for i, value in zip(self.moving, moving, strict=True):
                replaced[i] = value
            inputs = jtu.tree_unflatten(self.input_structure, replaced)
            outcome = integrate(self.plan, inputs, settings, self.keep)
            return jtu.tree_leaves(split(outcome)[0])

        primals = [leaves[i] for i in self.moving]
        return jax.jvp(solved, (primals,), (list(tangents),))[1]

    def transpose(
        self,
        levels: tuple[Level, ...],
        residuals: Sequence[Array],
        cotangents: Sequence[Array | None],
    ) -> list[Array]:
        lanes = Lanes(levels)
        given = [i for i, ct in enumerate(cotangents) if ct is not None]
        flags = [tuple(level.residuals[i] for level in levels) for i in range(len(residuals))]
        full = [lanes.fill(x, have, lanes.all) for x, have in zip(residuals, flags, strict=True)]

        def one(residuals: list[Array], cts: list[Array]) -> list[Array]:
            return self._contract(residuals, dict(zip(given, cts, strict=True)))

        out = lanes(one, True, True)(full, [cotangents[i] for i in given])
        wanted = [tuple(level.tangents[i] for level in levels) for i in range(len(out))]
        return [lanes.reduce(x, want) for x, want in zip(out, wanted, strict=True)]

    def _contract(self, residuals: list[Array], cotangents: dict[int, Array]) -> list[Array]:
        """Cotangents of the moving inputs of one lane, a column of the Jacobian for each."""
        leaves, _ = jtu.tree_unflatten(self.structure, residuals)
        primals = [leaves[i] for i in self.moving]
        flat, unflatten = _real_parts(primals)

        def column(i: Array) -> Array:
            basis = jnp.zeros_like(flat).at[i].set(1)
            out = self.apply(residuals, unflatten(basis))
            # JAX pairs a cotangent with a tangent by Re(sum(ct * v)), without conjugation.
            pairs = [jnp.sum(jnp.real(ct * out[k])) for k, ct in cotangents.items()]
            return sum((x.astype(flat.dtype) for x in pairs), jnp.zeros((), flat.dtype))

        size = min(self.columns, flat.size)
        columns = jax.lax.map(column, jnp.arange(flat.size), batch_size=size)
        return [jnp.conj(x) for x in unflatten(columns)]


def _real_parts(leaves: list[Array]) -> tuple[Array, Any]:
    """One real vector for the real and imaginary parts of all leaves, and the way back."""
    dtype = jnp.result_type(*(jnp.finfo(x.dtype).dtype for x in leaves))
    parts = [
        part.reshape(-1).astype(dtype)
        for x in leaves
        for part in ((jnp.real(x), jnp.imag(x)) if jnp.iscomplexobj(x) else (x,))
    ]

    def unflatten(flat: Array) -> list[Array]:
        out, start = [], 0

        def take(x: Array, start: int) -> Array:
            return flat[start : start + x.size].reshape(x.shape)

        for x in leaves:
            if jnp.iscomplexobj(x):
                out.append(jax.lax.complex(take(x, start), take(x, start + x.size)).astype(x.dtype))
                start += 2 * x.size
            else:
                out.append(take(x, start).astype(x.dtype))
                start += x.size
        return out

    return jnp.concatenate(parts), unflatten
