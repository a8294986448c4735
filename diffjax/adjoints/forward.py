"""Forward sensitivities: tangents carried along with the steps, and no tape.

The steps are taken a second time with tangents beside the state. Under `grad` the same map is
transposed by contracting its Jacobian, one column for each input, so that the choice of adjoint
needs no other change in a program.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..stepping.plan import Settings
from .by_lane import AdjointByLane, SolveTangent


class ForwardMode(AdjointByLane):
    """Forward sensitivities: memory does not grow with the number of steps.

    The cheapest for a few inputs (up to about a hundred states and parameters); under `grad` the
    cost grows with the number of inputs.

    **Arguments:**

    - `columns`: how many columns of the Jacobian are carried at once under `grad`.

    !!! example
        `dj.solve(prob, dj.Tsit5(), adjoint=dj.ForwardMode())`
    """

    columns: int = eqx.field(static=True, default=64)

    def pull_back(
        self,
        tangent: SolveTangent,
        leaves: list[Array],
        settings: Settings,
        record: PyTree,
        cotangents: Sequence[Array | None],
    ) -> list[Array]:
        """A column of the Jacobian for each input, contracted with the cotangents."""
        flat, unflatten = _real_parts([leaves[i] for i in tangent.moving])

        def column(i: Array) -> Array:
            basis = jnp.zeros_like(flat).at[i].set(1)
            out = tangent.push(leaves, settings, unflatten(basis))
            # JAX pairs a cotangent with a tangent by Re(sum(ct * v)), without conjugation.
            pairs = [
                jnp.sum(jnp.real(ct * dot))
                for ct, dot in zip(cotangents, out, strict=True)
                if ct is not None
            ]
            return sum((x.astype(flat.dtype) for x in pairs), jnp.zeros((), flat.dtype))

        size = min(self.columns, flat.size)
        columns = jax.lax.map(column, jnp.arange(flat.size), batch_size=size)
        return [jnp.conj(x) for x in unflatten(columns)]


def _real_parts(leaves: list[Array]) -> tuple[Array, Any]:
    """One real vector for the real and imaginary parts of all leaves, and the way back."""
    dtype = np.result_type(*(jnp.finfo(x.dtype).dtype for x in leaves))
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
