"""One implicit stage, M z = dt f(t, base + gamma z): its residual, its derivative, its solver.

Solving and differentiating are kept apart: a stage is first solved as if nothing had a derivative,
and then given its own, by the implicit function theorem.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, PyTree

from ..linear.coordinates import Coordinates
from ..linear.dense import BY_NUMBERS, INVERTED, factorize, row_sum_norm
from ..linear.jacobian import varying_like
from ..linear.krylov import GMRES
from ..linear.newton import (
    Stop,
    implicit_solution,
    newton,
    newton_to_rounding,
    relative_size,
    trusted,
)
from .base import Field, Norm, State
from .implicit import VectorField
from .iterating import Work
from .stages import combine
from .tableaus.base import DenseTableau

Vector = Float[Array, " n"]
# The stages of a step so far; in a loop all of them, with zeros for those to come.
Stages = list[Vector] | Float[Array, "stages n"]


def stage_residual(
    view: VectorField, gamma: float, t: Array, h: Array, base: Vector
) -> Callable[[Vector], Vector]:
    """The equation of a stage, over dt, as a function of z; z/dt is the derivative there."""
    return lambda z: view.residual(t, base + gamma * z, z / h)


def stage_with_derivative(
    field: Field,
    u: State,
    z: Vector,
    t: Array,
    h: Array,
    base: Vector,
    gamma: float,
    linear_solver: GMRES | None = None,
) -> Vector:
    """A stage with the derivative of the solution of its equation."""
    leaves, structure = jtu.tree_flatten(field)

    def view(leaves: tuple[Array, ...]) -> VectorField:
        return VectorField(jtu.tree_unflatten(structure, leaves), u, linear_solver)

    def residual(z: Vector, t: Array, h: Array, base: Vector, *leaves: Array) -> Vector:
        return stage_residual(view(leaves), gamma, t, h, base)(z)

    def solver(
        z: Vector, t: Array, h: Array, base: Vector, *leaves: Array
    ) -> Callable[[Vector], Vector]:
        at_stage = view(leaves).jacobian(t, base + gamma * z, z / h)
        solve = factorize(view(leaves).shifted(1 / (gamma * h), at_stage))
        return lambda b: solve(b) / gamma

    return implicit_solution(residual, solver, z, [t, h, base, *leaves])


class Row(NamedTuple):
    """Of a stage the weights of other stages in the state that it starts from, and its node; in a
    loop over stages they are arrays."""

    weights: Sequence[float] | Float[Array, " stages"]
    node: float | Float[Array, ""]

    @staticmethod
    def stacked(rows: Sequence["Row"], total: int, like: Vector) -> "Row":
        """Those of several stages as arrays, with a weight for each of `total` stages."""
        weights = [[*row.weights, *[0.0] * (total - len(row.weights))] for row in rows]
        nodes = [row.node for row in rows]
        return Row(jnp.asarray(weights, like.dtype), jnp.asarray(nodes, like.dtype))

    def after(self, start: Vector, stages: Stages) -> Vector:
        """The start of the step plus the weighted sum of stages."""
        if isinstance(stages, list):
            increment = combine(tuple(self.weights), stages)
        else:
            increment = jnp.sum(jnp.asarray(self.weights)[:, None] * stages, axis=0)
        return start if increment is None else start + increment


def is_looped(n: int) -> bool:
    """Whether the stages of steps that are differentiated are a loop.

    Written out, derivatives take four times as long to compile where each matrix is inverted by a
    loop of its own. Of smaller systems many lanes take 1.2 times as long with a loop over stages,
    as do systems of hundreds of equations.
    """
    return BY_NUMBERS < n <= INVERTED


def in_turn(
    one: Callable[..., tuple[Vector, PyTree]],
    known: Sequence[Vector],
    start: Vector,
    rows: Sequence[tuple[Any, ...]],
    looped: bool,
) -> tuple[list[Vector], PyTree]:
    """All stages of a step, one after the other, from those that are known.

    `one(stages, *row)` gives the next and what else is to be kept of it, which comes back with a
    leading axis. What is in a row is a `Row` or an array. If `looped` it is given an array of all
    stages, of which those to come are zero.
    """
    if not looped:
        stages, each = list(known), []
        for row in rows:
            z, kept = one(stages, *row)
            stages, each = [*stages, z], [*each, kept]
        return stages, jtu.tree_map(lambda *xs: jnp.stack(xs), *each)
    total = len(known) + len(rows)

    def column(values: tuple[Any, ...]) -> Any:
        is_row = isinstance(values[0], Row)
        return Row.stacked(values, total, start) if is_row else jnp.stack(values)

    def body(stages: Array, x: tuple[Array, Any]) -> tuple[Array, PyTree]:
        z, kept = one(stages, *x[1])
        return jax.lax.dynamic_update_index_in_dim(stages, z, x[0], 0), kept

    none = varying_like(start, jnp.zeros_like(start))
    first = jnp.stack([*known, *[none] * len(rows)])
    columns = tuple(map(column, zip(*rows, strict=True)))
    stages, kept = jax.lax.scan(body, first, (jnp.arange(len(known), total), columns))
    return list(stages), kept


def output_stages(
    field: Field,
    t: Array,
    h: Array,
    u: State,
    end: Vector,
    stages: list[Vector],
    extension: DenseTableau,
    linear_solver: GMRES | None = None,
) -> list[Vector]:
    """The implicit stages that an extension adds to the `stages` of a step, solved to rounding.

    Each has a matrix of its own, so that nothing has to be kept of steps in which nothing is saved.
    """
    gamma = extension.gamma_extra
    start = Coordinates(u).flatten(u)
    fixed, fixed_t, fixed_h, fixed_start, last = jax.lax.stop_gradient((field, t, h, start, end))
    view = VectorField(fixed, u, linear_solver, exact=False)

    def at(node: Array, t: Array, h: Array) -> Array:
        return t + (node * h).astype(t.dtype)

    def solved(node: Array, base: Vector) -> Vector:
        time = at(node, fixed_t, fixed_h)

        def solver(z: Vector) -> Callable[[Vector], Vector]:
            jacobian = view.jacobian(time, base + gamma * z, z / fixed_h)
            inverse = factorize(view.shifted(1 / (gamma * fixed_h), jacobian))
            return lambda r: inverse(r) / gamma

        guess = (fixed_start + node * (last - fixed_start) - base) / gamma
        return newton_to_rounding(stage_residual(view, gamma, time, fixed_h, base), solver, guess).x

    def one(stages: Stages, row: Row) -> tuple[Vector, None]:
        base, node = row.after(start, stages), jnp.asarray(row.node)
        z, time = solved(node, jax.lax.stop_gradient(base)), at(node, t, h)
        return stage_with_derivative(field, u, z, time, h, base, gamma, linear_solver), None

    rows = [(Row(*row),) for row in zip(extension.a_extra, extension.c_extra, strict=True)]
    # In a loop, since each stage is much code to compile, twice so where it is differentiated.
    return in_turn(one, stages, start, rows, looped=True)[0][len(stages) :]


def stopping(
    view: VectorField, u: State, start: Vector, norm: Norm | None
) -> tuple[Stop, Callable[[Vector, Vector], Float[Array, ""]]]:
    """When iterations for a step from u stop, and how their updates are measured."""
    coordinates = view.coordinates
    if norm is None:
        return Stop.at_rounding(coordinates.dtype), relative_size

    def size(update: Vector, _: Vector) -> Float[Array, ""]:
        return norm(coordinates.unflatten(update), u, u)

    eps = float(jnp.finfo(coordinates.dtype).eps)
    return Stop.at_tolerance(size(eps * start, start)), size


class DriftStages:
    """Solves the implicit stages of a step of a stochastic equation, with one matrix.

    It keeps count of them: `converged` says whether all were solved, `work` what they took.
    """

    def __init__(
        self, field: Field, t: Array, dt: Array, u: State, gamma: float, norm: Norm | None
    ) -> None:
        self.field, self.u, self.gamma, self.t = replace(field, diffusion=None), u, gamma, t
        fixed, t, u = jax.lax.stop_gradient((self.field, t, u))
        self.view = VectorField(fixed, u, exact=False)
        self.coordinates = self.view.coordinates
        start = self.coordinates.flatten(u)
        self.h = dt.astype(start.dtype)
        self.scale = 1 / (gamma * jax.lax.stop_gradient(self.h))
        self.stop, self.size = stopping(self.view, u, start, norm)
        jacobian = self.view.value_and_jacobian(t, start)[1]
        self.inverse = factorize(self.view.shifted(self.scale, jacobian))
        self.radius = row_sum_norm(jacobian)
        self.converged: Bool[Array, ""] = jnp.ones((), bool)
        self.rate, self.iterations = jnp.ones((), start.dtype), jnp.zeros((), jnp.int32)

    def solve(self, node: float, base: State, guess: State) -> State:
        """z = dt f(t + node dt, base + gamma z), with its derivative."""
        gamma, flat = self.gamma, self.coordinates.flatten
        at, known = self.t + (node * self.h).astype(self.t.dtype), flat(base)
        fixed_at, h, start, known_fixed = jax.lax.stop_gradient((at, self.h, flat(guess), known))
        result = newton(
            stage_residual(self.view, gamma, fixed_at, h, known_fixed),
            lambda r: self.inverse(r) / gamma,
            lambda update, z: self.size(gamma * update, known_fixed + gamma * z),
            start,
            trusted(self.rate),
            self.stop,
        )
        self.converged = self.converged & result.converged
        self.rate = result.rate
        self.iterations = self.iterations + result.iterations
        z = stage_with_derivative(self.field, self.u, result.x, at, self.h, known, gamma)
        return self.coordinates.unflatten(z)

    def filtered(self, error: State) -> State:
        """An error with its stiff components damped, by the inverse of 1 - gamma dt df/du."""
        vector = jax.lax.stop_gradient(self.coordinates.flatten(error))
        return self.coordinates.unflatten(self.inverse(self.scale * vector))

    def work(self, evaluations: int, solves: int) -> Work:
        """With so many evaluations and solves beside the iterations."""
        one = jnp.ones((), jnp.int32)
        failed = (~self.converged).astype(jnp.int32)
        n = self.iterations
        return Work(n + evaluations, one, one, n + solves, failed)
