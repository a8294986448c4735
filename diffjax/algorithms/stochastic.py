"""What the methods for stochastic equations have in common."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ..noise.base import Increment, Need
from .base import Algorithm, Field, Memory, Norm, State, StepResult
from .stages import combine, scaled

DIAGONAL = frozenset({"diagonal", "scalar", "additive"})
ANY_NOISE = frozenset({"diagonal", "scalar", "additive", "commutative", "general"})
ITO = frozenset({"ito"})
STRATONOVICH = frozenset({"stratonovich"})
EITHER = ITO | STRATONOVICH


class StochasticMethod(Algorithm):
    """Base class of one-step methods for du = f dt + g dW; they write `advance`.

    The extension over a step is the line between its ends: a path between them is as rough as on
    the whole, and what is wanted of it is stepped on.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"SDEProblem"})
    is_dense_linear: ClassVar[bool] = True
    # Evaluations of the drift in a step.
    evaluations: ClassVar[int] = 1

    @property
    def dense_order(self) -> int:
        return 1

    @property
    def error_order(self) -> float | None:
        """One less than the power of dt that the error of a step scales as."""
        return None

    @property
    def step_counts(self) -> dict[str, int]:
        return {"nf": self.evaluations}

    @property
    def dense_counts(self) -> dict[str, int]:
        return {}

    def init(self, field: Field, t: Array, u: State) -> Memory:
        assert field.diffusion is not None
        return Memory(cache=field.diffusion.noise.look(t))

    def advance(
        self, field: Field, t: Array, dt: Array, u: State, noise: Increment, norm: Norm | None
    ) -> tuple[State, Float[Array, ""] | None]:
        """The state at the end of the step, and the scaled error if there is a norm to scale by."""
        raise NotImplementedError

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        assert field.diffusion is not None
        noise, there = field.diffusion.over(t, dt, memory.cache)
        end, error = self.advance(field, t, dt, u, noise, norm)
        return StepResult(end, error, True, Memory(cache=there), memory, stages=(end,))

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        """Both ends of the step."""
        return (u, *stages)

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        start, end = coefficients
        return jtu.tree_map(lambda x, y: x + scaled(y - x, theta), start, end)


class RoesslerMethod(StochasticMethod):
    """Base class of stochastic Runge-Kutta methods of strong order 3/2, given by a tableau."""

    tableau: eqx.AbstractVar[Any]

    @property
    def name(self) -> str:
        return self.tableau.name

    @property
    def order(self) -> float:
        return 1.5

    @property
    def error_order(self) -> float:
        return 0.5

    def need(self, dim: int) -> Need:
        return Need(area=True)


def add(*states: State) -> State:
    """The sum of several states."""
    return jtu.tree_map(lambda *xs: sum(xs[1:], start=xs[0]), *states)


def drifted(u: State, f: State, dt: Array) -> State:
    """u + dt f."""
    return jtu.tree_map(lambda x, d: x + scaled(d, dt), u, f)


def by_sum(norm: Norm, parts: tuple[State, ...], start: State, end: State) -> Float[Array, ""]:
    """The norm of the sum of the sizes of several parts of an error, which may be of one sign."""
    total = jtu.tree_map(lambda *xs: sum(jnp.abs(x) for x in xs[1:]) + jnp.abs(xs[0]), *parts)
    return norm(total, start, end)


def alternating(dt: Array, stages: list[State]) -> State:
    """dt times the sum of the stages with alternating signs; of an odd number without the first,
    so that it vanishes where the drift does not change."""
    chosen = stages[len(stages) % 2 :]
    signs = tuple((-1.0) ** i for i in range(len(chosen)))
    total = combine(signs, chosen)
    return jtu.tree_map(lambda x: scaled(x, dt), total)


def plus(u: State, factor: Array, weights: tuple[float, ...], stages: list[State]) -> State:
    """u plus a factor times a weighted sum."""
    total = combine(weights, stages)
    if total is None:
        return u
    return jtu.tree_map(lambda x, k: x + scaled(k, factor), u, total)


def plus_noise(u: State, weights: tuple[float, ...], stages: list[State], noise: State) -> State:
    """u plus a noise times a weighted sum."""
    total = combine(weights, stages)
    if total is None:
        return u
    return jtu.tree_map(lambda x, k, w: x + k * w, u, total, noise)
