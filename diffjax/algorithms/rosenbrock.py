"""Rosenbrock methods: one engine, the methods are tableaus.

A step costs one Jacobian, one factorisation and a solve a stage; there is no iteration that could
fail. That makes them the first choice for small stiff systems, and for systems with a constant
mass matrix.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..linear.coordinates import Coordinates
from ..linear.dense import factorize, row_sum_norm
from .base import Field, Memory, Norm, State, StepResult, TableauMethod
from .implicit import VectorField
from .stages import combine, evaluate_extension, scaled
from .tableaus.rosenbrock import RosenbrockTableau


class Rosenbrock(TableauMethod):
    """A Rosenbrock method given by its tableau.

    **Arguments:**

    - `tableau`: the coefficients.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem"})
    takes_mass_matrix: ClassVar[bool] = True

    tableau: RosenbrockTableau = eqx.field(static=True)

    @property
    def step_counts(self) -> dict[str, int]:
        stages = self.tableau.stages
        return {"nf": stages, "njac": 1, "nfactor": 1, "nsolve": stages}

    def init(self, field: Field, t: Array, u: State) -> Memory:
        return Memory()

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        tableau, view = self.tableau, VectorField(field, u)
        coordinates = view.coordinates
        start = coordinates.flatten(u)
        stages, radius = self._stages(view, t, dt, start)
        u_end = coordinates.unflatten(start + _sum(tableau.b, stages))
        error = None
        if norm is not None:
            estimate = coordinates.unflatten(_sum(tableau.b_error, stages))
            error = tableau.caution * norm(estimate, u, u_end)
        return StepResult(
            u=u_end,
            error=error,
            ok=True,
            memory=memory,
            memory_if_rejected=memory,
            stages=tuple(stages),
            stiffness=scaled(radius, jnp.abs(dt)),
        )

    def _stages(
        self, view: VectorField, t: Array, dt: Array, start: Array
    ) -> tuple[list[Array], Array]:
        """The stages, and a bound of the eigenvalues."""
        tableau, h = self.tableau, dt.astype(start.dtype)
        slope, jacobian = view.value_and_jacobian(t, start)
        in_time = view.time_derivative(t, start)
        solve = factorize(view.shifted(1 / (tableau.gamma * h), jacobian))
        stages: list[Array] = []
        for a, c, coupling, d in zip(tableau.a, tableau.c, tableau.C, tableau.d, strict=True):
            if stages:
                slope = view.f(t + c * dt, start + _sum(a, stages))
            right = slope
            if in_time is not None and d != 0.0:
                right = right + d * h * in_time
            if stages:
                right = right + view.mass_times(_sum(coupling, stages) / h)
            stages.append(solve(right))
        return stages, row_sum_norm(jacobian)

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        """The coefficients of a polynomial in theta; see `evaluate_extension`."""
        coordinates = Coordinates(u)
        columns = zip(*self.tableau.dense.weights, strict=True)
        return (u, *(coordinates.unflatten(_sum(column, stages)) for column in columns))

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        return evaluate_extension(coefficients, theta)


def _sum(weights: tuple[float, ...], stages: list[Array]) -> Array:
    """The weighted sum of the stages; zero if all weights are."""
    total = combine(weights, stages)
    return jnp.zeros_like(stages[0]) if total is None else total
