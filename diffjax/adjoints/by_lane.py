"""Adjoints whose backward pass is written for one lane, and run for all lanes of a `vmap`.

`solve` is a `custom_jvp` whose tangent is one linear map (`linear_map.py`). Applied, it is the jvp
of the solve itself, so that forward mode works whatever the adjoint; transposed, it is the
adjoint's own backward pass, which may read what the forward pass has recorded for it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.tree_util as jtu
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, PyTree

from ..stepping.loop import integrate
from ..stepping.outcome import Keep, Outcome
from ..stepping.plan import Inputs, Plan, Settings
from ..stepping.trees import replaced
from .base import Adjoint
from .linear_map import Level, LinearMap, apply_linear
from .replay import Lanes
from .smooth import Counters, Smooth, check_times, join, names_of, no_tangent, reached, split


class SolveTangent(LinearMap):
    """The tangent of a solve as a linear map of the tangents of its inputs.

    - `structure`: of the residuals `(leaves of the inputs, settings, record)`.
    - `moving`: which leaves of the inputs carry a derivative; `names`: the field of `Inputs` that
        each of them belongs to, `places` its number among the leaves of that field.
    """

    def __init__(
        self,
        adjoint: "AdjointByLane",
        plan: Plan,
        keep: Keep,
        inputs: Inputs,
        structure: Any,
        moving: Sequence[int],
        smooth: Smooth,
    ) -> None:
        self.adjoint, self.plan, self.keep = adjoint, plan, keep
        self.inputs_structure, self.structure = jtu.tree_structure(inputs), structure
        self.smooth_structure = jtu.tree_structure(smooth)
        self.moving = tuple(moving)
        names = names_of(inputs)
        self.names = tuple(names[i] for i in moving)
        self.places = tuple(i - names.index(names[i]) for i in moving)
        self.out_avals = tuple(jax.typeof(x) for x in jtu.tree_leaves(smooth))

    def places_of(self, name: str) -> list[int]:
        """Which leaves of a field of `Inputs` carry a derivative."""
        return [p for p, n in zip(self.places, self.names, strict=True) if n == name]

    def inputs(self, leaves: Sequence[Array]) -> Inputs:
        return jtu.tree_unflatten(self.inputs_structure, leaves)

    def push(
        self, leaves: Sequence[Array], settings: Settings, tangents: Sequence[Array]
    ) -> list[Array]:
        """Tangents of what the solve gives back, by differentiating its loop."""

        def solved(moving: list[Array]) -> tuple[Smooth, Array | None]:
            inputs = self.inputs(replaced(leaves, self.moving, moving))
            outcome = integrate(self.plan, inputs, settings, self.keep)
            return split(outcome)[0], outcome.saved

        primals = [leaves[i] for i in self.moving]
        _, dot, saved = jax.jvp(solved, (primals,), (list(tangents),), has_aux=True)
        return jtu.tree_leaves(dot._replace(rows=reached(dot.rows, saved)))

    def apply(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        leaves, settings, _ = jtu.tree_unflatten(self.structure, residuals)
        return self.push(leaves, settings, tangents)

    def transpose(
        self,
        levels: tuple[Level, ...],
        residuals: Sequence[Array],
        cotangents: Sequence[Array | None],
    ) -> list[Array]:
        lanes = Lanes(levels)
        given = [ct for ct in cotangents if ct is not None]
        flags = [tuple(level.residuals[i] for level in levels) for i in range(len(residuals))]

        def one(residuals: list[Array], given: list[Array]) -> list[Array]:
            leaves, settings, record = jtu.tree_unflatten(self.structure, residuals)
            cts = iter(given)
            full = [None if ct is None else next(cts) for ct in cotangents]
            return self.adjoint.pull_back(self, leaves, settings, record, full)

        out = lanes(one, flags, True)(list(residuals), given)
        wanted = [tuple(level.tangents[i] for level in levels) for i in range(len(out))]
        return [lanes.reduce(x, want) for x, want in zip(out, wanted, strict=True)]


class AdjointByLane(Adjoint):
    """Base class: `record` what the backward pass needs, and `pull_back` for one lane."""

    def record(
        self, plan: Plan, inputs: Inputs, settings: Settings, keep: Keep
    ) -> tuple[Outcome, PyTree]:
        """A solve that is differentiated: its outcome as `keep` says, and what the backward pass
        reads beside the inputs."""
        return self.run(plan, inputs, settings, keep), ()

    def pull_back(
        self,
        tangent: SolveTangent,
        leaves: list[Array],
        settings: Settings,
        record: PyTree,
        cotangents: Sequence[Array | None],
    ) -> list[Array]:
        """Cotangents of the moving leaves, from those of the leaves of `Smooth`."""
        raise NotImplementedError

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        return self.run(plan, inputs, settings, Keep(tape=plan.every_step))

    def run(self, plan: Plan, inputs: Inputs, settings: Settings, keep: Keep) -> Outcome:
        """The solve as a function that JAX can differentiate, keeping what `keep` says."""
        leaves, structure = jtu.tree_flatten(inputs)
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
            inputs = jtu.tree_unflatten(structure, leaves)
            names = names_of(inputs)
            check_times(inputs, [names[i] for i in moving])
            outcome, record = self.record(plan, inputs, settings, keep)
            smooth, rest = split(outcome)
            rest = counters.pack(rest)
            residuals, residual_structure = jtu.tree_flatten((leaves, settings, record))
            linear = SolveTangent(self, plan, keep, inputs, residual_structure, moving, smooth)
            out = apply_linear(linear, residuals, [tangents[0][i] for i in moving])
            smooth_dot = jtu.tree_unflatten(linear.smooth_structure, out)
            return (smooth, rest), (smooth_dot, jtu.tree_map(no_tangent, rest))

        smooth, rest = run(leaves, settings)
        return join(smooth, counters.unpack(rest))
