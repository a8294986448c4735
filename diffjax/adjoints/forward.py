"""Forward sensitivities: tangents carried along with the steps, and no tape.

The steps are taken a second time with tangents beside the state. Under `grad` the same map is
transposed by contracting its Jacobian, one column for each input, so that the choice of adjoint
needs no other change in a program.
"""

from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..linear.coordinates import Coordinates
from ..stepping.plan import Settings
from .by_lane import AdjointByLane, SolveTangent


class ForwardMode(AdjointByLane):
    """Forward sensitivities: memory does not grow with the number of steps.

    For a handful of inputs about as fast as the default; under `grad` the cost grows with the
    number of inputs.

    **Arguments:**

    - `columns`: how many columns of the Jacobian are carried at once under `grad`.

    !!! example
        `dj.solve(prob, dj.Tsit5(), adjoint=dj.ForwardMode())`
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem", "DAEProblem", "SDEProblem"})
    takes_callbacks: ClassVar[bool] = True

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
        moving = [leaves[i] for i in tangent.moving]
        coordinates = Coordinates(moving)
        flat = coordinates.flatten(moving)

        def column(i: Array) -> Array:
            basis = jnp.zeros_like(flat).at[i].set(1)
            out = tangent.push(leaves, settings, coordinates.unflatten(basis))
            # JAX pairs a cotangent with a tangent by Re(sum(ct * v)), without conjugation.
            pairs = [
                jnp.sum(jnp.real(ct * dot))
                for ct, dot in zip(cotangents, out, strict=True)
                if ct is not None
            ]
            return sum((x.astype(flat.dtype) for x in pairs), jnp.zeros((), flat.dtype))

        places = jnp.arange(flat.size)
        if flat.size <= self.columns:
            columns = jax.vmap(column)(places)
        else:
            columns = jax.lax.map(column, places, batch_size=self.columns)
        return [jnp.conj(x) for x in coordinates.unflatten(columns)]
