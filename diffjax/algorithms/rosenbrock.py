"""Rosenbrock methods: one engine, the methods are tableaus.

A step costs one Jacobian, one factorisation and a solve a stage; there is no iteration that could
fail. That makes them the first choice for small stiff systems, and for systems with a constant
mass matrix.
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..linear.dense import INVERTED, Matrix, factorize, row_sum_norm
from .base import Field, Memory, Norm, State, StepResult, TableauMethod
from .implicit import VectorField
from .stages import combine, evaluate_extension, scaled
from .tableaus.rosenbrock import RosenbrockTableau

# Of a stage its row of a, its node, and its row of C.
Row = tuple[tuple[float, ...], float, tuple[float, ...]]


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

    @property
    def dense_counts(self) -> dict[str, int]:
        """Without the factorisation that larger systems take."""
        extra = len(self.tableau.dense.c_extra)
        return {"nf": extra, "nsolve": extra} if extra else {}

    def init(self, field: Field, t: Array, u: State) -> Memory:
        return Memory()

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        tableau, view = self.tableau, VectorField(field, u)
        coordinates = view.coordinates
        start = coordinates.flatten(u)
        slope, jacobian = view.value_and_jacobian(t, start)
        in_time = view.time_derivative(t, start)
        h = dt.astype(start.dtype)
        solve = self._inverse(view, h, jacobian)
        stages: list[Array] = []
        for a, c, coupling, d in zip(tableau.a, tableau.c, tableau.C, tableau.d, strict=True):
            right = _right(view, t, dt, start, stages, (a, c, coupling)) if stages else slope
            if in_time is not None and d != 0.0:
                right = right + d * h * in_time
            stages.append(solve(right))
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
            stages=(tuple(stages), solve if self._keeps(view) else None),
            stiffness=scaled(row_sum_norm(jacobian), jnp.abs(dt)),
        )

    def _inverse(self, view: VectorField, h: Array, jacobian: Matrix) -> Callable[[Array], Array]:
        return factorize(view.shifted(1 / (self.tableau.gamma * h), jacobian))

    def _keeps(self, view: VectorField) -> bool:
        """Whether the extension is given the inverse of the step. Of larger systems that would be
        much to hand on, and of a step that is not taken (`switch`) its zeros would be singular
        factors: it factorises their matrix again."""
        inverted = view.coordinates.size <= INVERTED and view.field.sparsity is None
        return bool(self.tableau.dense.c_extra) and inverted

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        """The coefficients of a polynomial in theta; see `evaluate_extension`."""
        extension, view = self.tableau.dense, VectorField(field, u)
        coordinates = view.coordinates
        own, solve = stages
        start, known = coordinates.flatten(u), list(own)
        if extension.c_extra and solve is None:
            jacobian = view.value_and_jacobian(t, start)[1]
            solve = self._inverse(view, dt.astype(start.dtype), jacobian)
        for row in zip(extension.a_extra, extension.c_extra, extension.C_extra, strict=True):
            known.append(solve(_right(view, t, dt, start, known, row)))
        columns = zip(*extension.weights, strict=True)
        return (u, *(coordinates.unflatten(_sum(column, known)) for column in columns))

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        return evaluate_extension(coefficients, theta)


def _right(
    view: VectorField, t: Array, dt: Array, start: Array, stages: list[Array], row: Row
) -> Array:
    """The right-hand side of the stage after the first ones, of an autonomous equation."""
    a, c, coupling = row
    # Not forwards, where it would cost lanes of a few equations a quarter.
    once = view.field.once_backwards
    slope = once(view.f(t + c * dt, once(start + _sum(a, stages))))
    return slope + view.mass_times(_sum(coupling, stages) / dt.astype(start.dtype))


def _sum(weights: tuple[float, ...], stages: list[Array]) -> Array:
    """The weighted sum of the stages; zero if all weights are."""
    total = combine(weights, stages)
    return jnp.zeros_like(stages[0]) if total is None else total
