"""Milstein methods without derivatives: strong order 1.

Where the iterated integrals have mean zero, as those of Ito do, a one-sided difference serves for
the derivative of g; its error of order 1/2 would bias those of Stratonovich, whose squares are
differences along the increment itself, which are odd in it.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ..noise.base import Increment, Need
from .base import Field, Norm, State
from .field import Diffusion
from .levy_area import levy_area, normals_for_area
from .previsible import error_of_milstein
from .stages import scaled
from .stochastic import DIAGONAL, EITHER, StochasticMethod, add, by_sum, drifted


class RKMil(StochasticMethod):
    """Milstein's method with a difference in place of the derivative of g: diagonal or scalar
    noise, Ito or Stratonovich as the problem says, strong order 1; adaptive.

    Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, section
    11.1, equation (1.3); for Stratonovich the difference is one along g dW. The error
    estimate is what the drift changes by over the step, and the next term of the expansion, the
    derivative of g'g along g times I_(1,1,1), by one difference more.

    !!! example
        `dj.solve(prob, dj.RKMil(), key=jax.random.key(0))`
    """

    noises: ClassVar[frozenset[str]] = DIAGONAL
    interpretations: ClassVar[frozenset[str]] = EITHER
    evaluations: ClassVar[int] = 2

    @property
    def order(self) -> float:
        return 1.0

    @property
    def error_order(self) -> float:
        return 0.5

    def advance(
        self, field: Field, t: Array, dt: Array, u: State, noise: Increment, norm: Norm | None
    ) -> tuple[State, Float[Array, ""] | None]:
        diffusion = field.diffusion
        assert diffusion is not None
        f, g = field.f(t, u), diffusion.g(t, u)
        euler = drifted(u, f, dt)
        second, third = milstein_terms(diffusion, t, dt, euler, g, noise, further=norm is not None)
        end = add(euler, diffusion.times(g, diffusion.spread(noise.dw, u)), second)
        if norm is None:
            return end, None
        drift = jtu.tree_map(lambda a, b: 0.5 * scaled(a - b, dt), field.f(t + dt, end), f)
        return end, by_sum(norm, (drift, third), u, end)


def milstein_terms(
    diffusion: Diffusion,
    t: Array,
    dt: Array,
    near: State,
    g: State,
    noise: Increment,
    *,
    further: bool,
) -> tuple[State, State]:
    """Of diagonal or scalar noise the terms of second and third order, g'g I_(1,1) and
    (g'g)'g I_(1,1,1), by differences from a state near the start; the third only if `further`."""
    dw = noise.dw
    if diffusion.is_ito:
        reach = jnp.broadcast_to(jnp.sqrt(dt), dw.shape)
        square, cube = (dw * dw - dt) / (2 * reach), (dw * dw * dw - 3 * dt * dw) / (6 * dt)
    else:
        reach, square, cube = dw, dw / 2, dw / 6
    # The iterated integrals of order two and three, over as many powers of the reach less one.
    along, square, cube = (diffusion.spread(x, near) for x in (reach, square, cube))
    moved = add(near, diffusion.times(g, along))
    g_moved = diffusion.g(t, moved)
    change = jtu.tree_map(jnp.subtract, g_moved, g)
    second = diffusion.times(change, square)
    if not further:
        return second, jtu.tree_map(jnp.zeros_like, second)
    after = diffusion.g(t, add(moved, diffusion.times(g_moved, along)))
    change = jtu.tree_map(lambda a, b, c: a - b - c, after, g_moved, change)
    return second, diffusion.times(change, cube)


class RKMilCommute(StochasticMethod):
    """Milstein's method for commutative noise, Ito or Stratonovich as the problem says, without
    derivatives: strong order 1; adaptive.

    Ito takes a value of g more for each noise, Stratonovich one.

    Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, section
    10.3, equations (3.16) and (3.17), with differences as in section 11.1. The error estimate is
    what the drift changes by over the step, and the next term of the expansion along g, with the
    noise in its root mean square.

    !!! example
        `dj.solve(prob, dj.RKMilCommute(), key=jax.random.key(0))`
    """

    noises: ClassVar[frozenset[str]] = frozenset({"commutative"})
    interpretations: ClassVar[frozenset[str]] = EITHER

    @property
    def order(self) -> float:
        return 1.0

    @property
    def error_order(self) -> float:
        return 0.5

    @property
    def step_counts(self) -> dict[str, int]:
        return {"nf": 2}

    def areas(self, noise: Increment, dt: Array) -> Float[Array, "dim dim"] | None:
        """The antisymmetric part of the iterated integrals; None where it cancels."""
        return None

    def advance(
        self, field: Field, t: Array, dt: Array, u: State, noise: Increment, norm: Norm | None
    ) -> tuple[State, Float[Array, ""] | None]:
        diffusion = field.diffusion
        assert diffusion is not None
        f, g = field.f(t, u), diffusion.g(t, u)
        dw, areas = diffusion.spread(noise.dw, u), self.areas(noise, dt)
        euler = drifted(u, f, dt)
        end = add(euler, diffusion.times(g, dw))
        if diffusion.is_ito:
            covariance = diffusion.noise.covariance
            if covariance is None:
                covariance = jnp.eye(noise.dw.shape[0])
            square = (jnp.outer(noise.dw, noise.dw) - dt * covariance.astype(dt.dtype)) / 2
            integrals = square if areas is None else square + areas
            end = add(end, _by_columns(diffusion, t, dt, euler, g, integrals))
        else:
            end = add(end, diffusion.times(_half_difference(diffusion.g(t, end), g), dw))
            if areas is not None:
                end = add(end, _by_columns(diffusion, t, dt, euler, g, areas))
        if norm is None:
            return end, None
        return end, error_of_milstein(field, t, dt, u, f, g, norm)


class RKMilGeneral(RKMilCommute):
    """Milstein's method for any noise given as a matrix, Ito or Stratonovich as the problem says,
    without derivatives: strong order 1; adaptive.

    **Arguments:** `terms`: how many terms of their Fourier series the areas of Levy are made of.
    For order 1 they should be some dt**(-1/2). A step takes 2*terms + 1 normal numbers for each
    noise, and one for each ordered pair. The noises must be independent.

    The areas have their law given the increments of the path and its integrals over the steps, and
    are otherwise drawn, by the key and the time at which a step starts. Refused steps do not
    disturb that law, since what refuses them looks at no noise (the estimate is that of
    `dj.RKMilCommute`). Values of a path at some times leave its areas open, which limits every
    method that uses such to order 1/2 on the path itself (Clark and Cameron, The maximum rate of
    convergence of discrete approximations for stochastic differential equations, 1980): of noises
    that do not commute, solves of one key come together as the root of the steps.

    **Raises:** `ValueError` if `terms` is not a positive integer.

    Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, section
    10.3, equation (3.3), with differences as in section 11.1; the areas are those of Mrongowius and
    Roessler, arXiv 2201.08424.

    !!! example
        `dj.solve(prob, dj.RKMilGeneral(terms=10), key=jax.random.key(0))`
    """

    noises: ClassVar[frozenset[str]] = frozenset({"commutative", "general"})
    needs_independent_noises: ClassVar[bool] = True

    terms: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        if not isinstance(self.terms, int) or self.terms < 1:
            raise ValueError(f"terms must be a positive integer, got {self.terms!r}.")

    def need(self, dim: int) -> Need:
        return Need(area=True, extra=normals_for_area(dim, self.terms))

    def areas(self, noise: Increment, dt: Array) -> Float[Array, "dim dim"] | None:
        assert noise.area is not None
        assert noise.extra is not None
        return levy_area(noise.dw, noise.area, dt, noise.extra, self.terms)


def _half_difference(after: State, before: State) -> State:
    return jtu.tree_map(lambda a, b: 0.5 * (a - b), after, before)


def _by_columns(
    diffusion: Diffusion,
    t: Array,
    dt: Array,
    euler: State,
    g: State,
    integrals: Float[Array, "dim dim"],
) -> State:
    """The sum over j and k of (D g_k) g_j I_jk, by a difference along each column."""
    root = jnp.sqrt(dt)
    columns = jtu.tree_map(lambda x: jnp.moveaxis(x, -1, 0), g)

    def moved_along(column: State) -> State:
        return diffusion.g(t, drifted(euler, column, root))

    moved = jax.vmap(moved_along)(columns)

    def total(after: Array, before: Array) -> Array:
        weights = (integrals / root).astype(before.dtype)
        weights = weights.reshape(weights.shape[:1] + (1,) * (before.ndim - 1) + weights.shape[1:])
        return jnp.sum((after - before[None]) * weights, axis=(0, -1))

    return jtu.tree_map(total, moved, g)
