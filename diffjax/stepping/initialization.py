"""A state that satisfies the algebraic equations, before the first step and after each event.

Of M u' = f with rows of zeros in M those rows are algebraic equations, 0 = f_i(u, p, t), which a
given start need not satisfy, nor what an event makes of a state; nor need u0 and du0 satisfy
F(du, u, p, t) = 0. It is changed so that it does

- `"brown"`: with M u, the part that the equation gives a derivative to, held, or of F the
    differential variables (Brown, Hindmarsh, Petzold, Consistent initial condition calculation for
    differential-algebraic systems, SIAM J. Sci. Comput. 19, 1998);
- `"collocation"`: by the end of a short step of the implicit Euler method, which may move every
    variable (Shampine, Solving 0 = F(t, y(t), y'(t)) in Matlab, J. Numer. Math. 10, 2002);
- `"check"`: not at all.

The new state is the root of an equation, and has its derivative by the implicit function theorem:
whatever differentiates the solve goes on through it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..algorithms.base import Field, State
from ..algorithms.implicit import VectorField
from ..linear.coordinates import Coordinates
from ..linear.damped import damped_newton
from ..linear.dense import (
    Matrix,
    columns_of,
    factorize,
    is_regular,
    rows_of,
    times,
    with_columns_scaled,
)
from ..linear.jacobian import varying_like
from ..linear.newton import implicit_solution
from ..varying import mesh_axes, vary_over
from .lanes import one_or_many
from .plan import Inputs, Plan, Settings

Vector = Float[Array, " n"]

HOW = ("brown", "collocation", "check")
# The statistics that it adds to.
WORK = ("nf", "njac", "nfactor", "nsolve")
# The step of a collocation, as a part of the first step that was asked for, and of the span.
_OF_STEP = 0.2
_OF_SPAN = 1e-3


class Start(NamedTuple):
    """The inputs from a consistent start.

    - `consistent`: False if there is none; the state is then NaN, so that no step is taken.
    - `work`: by name of the statistic.
    """

    inputs: Inputs
    consistent: Bool[Array, ""]
    work: dict[str, Array]


class _Given(NamedTuple):
    """What the equation of the state depends on, beside the vector field.

    `slope` and `differential` (one for a differential variable, zero for another) matter to a
    fully implicit problem.
    """

    t: Float[Array, ""]
    u: Vector
    h: Float[Array, ""]
    slope: Vector
    differential: Vector


def _algebraic(view: VectorField) -> Bool[Array, " n"]:
    algebraic = view.algebraic()
    assert algebraic is not None
    return algebraic


class _Brown:
    """The algebraic equations hold and M u stays."""

    def start(self, given: _Given) -> Vector:
        return given.u

    def state(self, x: Vector, given: _Given) -> tuple[Vector, Vector]:
        """The state, and its derivative if the problem is fully implicit."""
        return x, given.slope

    def residual(self, view: VectorField, x: Vector, given: _Given) -> Vector:
        return jnp.where(_algebraic(view), view.f(given.t, x), view.mass_times(given.u - x))

    def matrix(self, view: VectorField, x: Vector, given: _Given) -> Matrix:
        """Minus the residual's Jacobian."""
        _, jacobian = view.value_and_jacobian(given.t, x)
        mass = view.shifted(jnp.ones((), x.dtype), 0.0 * jacobian)
        return rows_of(_algebraic(view), -1.0 * jacobian, mass)


class _ImplicitBrown(_Brown):
    """The unknowns are the derivatives of differential variables, and the algebraic variables."""

    def start(self, given: _Given) -> Vector:
        return jnp.where(given.differential == 1, given.slope, given.u)

    def state(self, x: Vector, given: _Given) -> tuple[Vector, Vector]:
        differential = given.differential == 1
        return jnp.where(differential, given.u, x), jnp.where(differential, x, given.slope)

    def residual(self, view: VectorField, x: Vector, given: _Given) -> Vector:
        return view.residual(given.t, *self.state(x, given))

    def matrix(self, view: VectorField, x: Vector, given: _Given) -> Matrix:
        of_slope, of_state = view.jacobian(given.t, *self.state(x, given))
        return columns_of(given.differential == 1, of_slope, of_state)

    def complete(self, view: VectorField, x: Vector, given: _Given) -> Vector:
        """The derivative of every variable: algebraic ones follow from that of the equations."""
        u, slope = self.state(x, given)
        moving = jnp.where(given.differential == 1, slope, 0)
        one = varying_like(given.t, jnp.ones_like(given.t))
        along = jax.jvp(lambda t, u: view.residual(t, u, slope), (given.t, u), (one, moving))[1]
        implied = factorize(self.matrix(view, x, given))(along)
        return jnp.where(given.differential == 1, slope, implied)


class _Collocation(_Brown):
    """The equation holds with the derivative that a short step from the given state has."""

    def state(self, x: Vector, given: _Given) -> tuple[Vector, Vector]:
        return x, (x - given.u) / given.h

    def residual(self, view: VectorField, x: Vector, given: _Given) -> Vector:
        return view.residual(given.t, *self.state(x, given))

    def matrix(self, view: VectorField, x: Vector, given: _Given) -> Matrix:
        return view.shifted(1 / given.h, view.jacobian(given.t, *self.state(x, given)))


class Consistent(NamedTuple):
    """A consistent state, NaN if there is none.

    - `slope`: its derivative, if the problem is fully implicit.
    - `found`: whether there is one.
    - `work`: what it took, in the order of `WORK`.
    """

    u: State
    slope: State | None
    found: Bool[Array, ""]
    work: Int[Array, " counted"]


class Consistency(eqx.Module):
    """How states are made consistent.

    - `how`: one of `HOW`.
    - `said`: whether each variable of a fully implicit problem is said to be differential; None if
        nothing is said.
    - `native`: whether one state is best made so by a native function.
    - `span`, `dt`: the length of the solve, and the first step if one was asked for.
    """

    how: str = eqx.field(static=True)
    said: tuple[bool, ...] | None = eqx.field(static=True)
    native: bool = eqx.field(static=True)
    rtol: PyTree
    atol: PyTree
    span: Float[Array, ""]
    dt: Float[Array, ""] | None

    @staticmethod
    def of(
        plan: Plan, inputs: Inputs, settings: Settings, how: str, said: np.ndarray | None
    ) -> "Consistency":
        flags = None if said is None else tuple(map(bool, said))
        numbers = settings.rtol, settings.atol, inputs.t1 - inputs.t0, settings.dt
        return Consistency(how, flags, plan.small, *jax.lax.stop_gradient(numbers))

    def __call__(self, field: Field, t: Float[Array, ""], u: State) -> Consistent:
        """The state at a time made consistent, or found not to be; of a fully implicit problem
        `field.slope` is a guess of its derivative."""
        frozen = jax.lax.stop_gradient((field, t, u))
        if self.how == "check":
            fits = jnp.all(inconsistency(*frozen, self.rtol, self.atol) <= 1)
            return _if_found(u, field.slope, fits, jnp.array([1, 1, 0, 0], jnp.int32))
        coordinates, implicit = Coordinates(u), field.slope is not None
        start = coordinates.flatten(u)
        given = _Given(
            t,
            start,
            self._step(frozen[1], coordinates.dtype),
            coordinates.flatten(field.slope) if implicit else jnp.zeros_like(start),
            _differential(*frozen, self.said) if implicit else jnp.ones_like(start),
        )
        brown = _ImplicitBrown() if implicit else _Brown()
        equation = brown if self.how == "brown" else _Collocation()
        solve = partial(_solve, equation)
        still = frozen[0], u, self.rtol, self.atol, given
        still = jax.lax.stop_gradient(still)
        x, found, work = one_or_many(solve, solve, *still, native=self.native)
        if self.how == "collocation":
            # Of a matrix without rows of zeros there is no telling whether the state would do.
            judged = implicit or jnp.any(_algebraic(VectorField(field, u)))
            fits = jnp.all(inconsistency(*frozen, self.rtol, self.atol) <= 1)
            x = jnp.where(judged & fits, given.u, x)
        x = _with_derivative(equation, field, u, x, given)
        end, slope = equation.state(x, given)
        if isinstance(equation, _ImplicitBrown):
            slope = equation.complete(VectorField(field, u), x, given)
        slope = coordinates.unflatten(slope) if implicit else None
        return _if_found(coordinates.unflatten(end), slope, found, work)

    def _step(self, t: Float[Array, ""], dtype: Any) -> Float[Array, ""]:
        """So short a step that it stands for an instant, and no shorter than rounding allows."""
        eps = float(jnp.finfo(t.dtype).eps)
        instant = jnp.minimum(_OF_SPAN * self.span, eps**0.5 * jnp.maximum(1, jnp.abs(t)))
        h = instant if self.dt is None else _OF_STEP * self.dt
        # Without a span there is still a start.
        return jnp.where(h > 0, h, eps**0.5).astype(dtype)


def consistent_start(plan: Plan, inputs: Inputs, consistency: Consistency) -> Start:
    """Make the start of a solve consistent, or find out that it is not."""
    made = consistency(plan.field(inputs), inputs.t0, inputs.u0)
    new = inputs._replace(u0=made.u, slope=made.slope)
    return Start(new, made.found, dict(zip(WORK, made.work, strict=True)))


def _differential(field: Field, t: Array, u: State, said: tuple[bool, ...] | None) -> Vector:
    """Of each variable one if it is differential, else zero."""
    view = VectorField(field, u)
    flatten = view.coordinates.flatten
    if said is not None:
        flags = jnp.asarray(said)
    else:
        of_slope, _ = view.jacobian(t, flatten(u), flatten(field.slope))
        sizes = jtu.tree_map(jnp.abs, of_slope)
        ones = jnp.ones(view.coordinates.size, view.coordinates.dtype)
        ones = vary_over(mesh_axes((sizes, u)), ones)
        flags = jax.linear_transpose(lambda x: times(sizes, x), ones)(ones)[0] != 0
    return flags.astype(view.coordinates.dtype)


def inconsistency(field: Field, t: Array, u: State, rtol: PyTree, atol: PyTree) -> Vector:
    """How far each algebraic equation is from being satisfied.

    One is what changes of the state within the tolerance make of it; other equations have zero.
    """
    view = VectorField(field, u)
    start = view.coordinates.flatten(u)
    tolerance = _tolerance(rtol, atol, view.coordinates)
    slope = None if field.slope is None else view.coordinates.flatten(field.slope)
    value = view.f(t, start) if slope is None else view.residual(t, start, slope)
    if slope is None:
        algebraic = _algebraic(view)
        parts = [(view.value_and_jacobian(t, start)[1], start)]
    else:
        algebraic = jnp.ones_like(value, bool)
        of_slope, of_state = view.jacobian(t, start, slope)
        parts = [(of_state, start), (of_slope, slope)]
    allowed = sum(
        (times(jtu.tree_map(jnp.abs, matrix), tolerance(x)) for matrix, x in parts),
        jnp.zeros_like(value),
    )
    excess = jnp.abs(value) / jnp.maximum(allowed, float(jnp.finfo(allowed.dtype).tiny))
    return jnp.where(algebraic, jnp.where(jnp.isfinite(value), excess, jnp.inf), 0)


def _if_found(u: State, slope: State | None, found: Array, work: Array) -> Consistent:
    u = jtu.tree_map(lambda x: jnp.where(found, x, jnp.nan), u)
    return Consistent(u, slope, found, work)


def _tolerance(rtol: PyTree, atol: PyTree, coordinates: Coordinates) -> Callable[[Vector], Vector]:
    """The tolerance of each real coordinate of a state."""

    def of_leaf(rtol: Array, atol: Array, x: Array) -> Array:
        allowed = jnp.broadcast_to(atol + rtol * jnp.abs(x), x.shape)
        return jax.lax.complex(allowed, allowed) if jnp.iscomplexobj(x) else allowed

    def of(x: Vector) -> Vector:
        u = coordinates.unflatten(x)
        allowed = coordinates.flatten(jtu.tree_map(of_leaf, rtol, atol, u))
        return jnp.maximum(allowed, float(jnp.finfo(x.dtype).tiny))

    return of


def _solve(
    equation: _Brown, field: Field, u: State, rtol: PyTree, atol: PyTree, given: _Given
) -> tuple[Vector, Array, Array]:
    """The state without its derivative, whether it is one, and the work it took."""
    view = VectorField(field, u)
    tolerance = _tolerance(rtol, atol, view.coordinates)

    def size(correction: Vector, x: Vector) -> Array:
        return jnp.max(jnp.abs(correction) / tolerance(x))

    def matrix(x: Vector) -> Matrix:
        return equation.matrix(view, x, given)

    start = equation.start(given)
    root = damped_newton(lambda x: equation.residual(view, x, given), matrix, size, start)
    at_root = matrix(root.x)
    # The variables may have very different units.
    found = root.converged & is_regular(with_columns_scaled(at_root))
    work = (root.evaluations, root.corrections + 1, root.corrections, root.evaluations)
    return root.x, found, jnp.stack(work)


def _with_derivative(equation: _Brown, field: Field, u: State, x: Vector, given: _Given) -> Vector:
    """The state with the derivative of the solution of its equation."""
    leaves, structure = jtu.tree_flatten((field, given))

    def parts(arguments: tuple[Array, ...]) -> tuple[VectorField, _Given]:
        field, given = jtu.tree_unflatten(structure, arguments)
        return VectorField(field, u), given

    def residual(x: Vector, *arguments: Array) -> Vector:
        view, given = parts(arguments)
        return equation.residual(view, x, given)

    def solver(x: Vector, *arguments: Array) -> Callable[[Vector], Vector]:
        view, given = parts(arguments)
        return factorize(equation.matrix(view, x, given))

    return implicit_solution(residual, solver, x, leaves)
