"""A start that satisfies the algebraic equations, before the first step is taken.

Of M u' = f with rows of zeros in M those rows are algebraic equations, 0 = f_i(u, p, t), which a
given start need not satisfy. It is changed so that it does

- `"brown"`: with M u, the part that the equation gives a derivative to, held (Brown, Hindmarsh,
    Petzold, Consistent initial condition calculation for differential-algebraic systems, SIAM J.
    Sci. Comput. 19, 1998);
- `"collocation"`: by the end of a short step of the implicit Euler method, which may move every
    variable (Shampine, Solving 0 = F(t, y(t), y'(t)) in Matlab, J. Numer. Math. 10, 2002);
- `"check"`: not at all.

The new start is the root of an equation, and has its derivative by the implicit function theorem:
whatever differentiates the solve goes on through it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, PyTree

from ..algorithms.base import Field, State
from ..algorithms.implicit import VectorField
from ..linear.coordinates import Coordinates
from ..linear.damped import damped_newton
from ..linear.dense import is_regular
from ..linear.newton import implicit_solution
from .lanes import one_or_many
from .plan import Inputs, Plan, Settings

Vector = Float[Array, " n"]
Matrix = Float[Array, "n n"]

HOW = ("brown", "collocation", "check")
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
    """What the equation of the start depends on, beside the vector field."""

    t: Float[Array, ""]
    u: Vector
    h: Float[Array, ""]


class _Equation(NamedTuple):
    """The equation of the start, and minus its Jacobian."""

    residual: Callable[[VectorField, Vector, _Given], Vector]
    matrix: Callable[[VectorField, Vector, _Given], Matrix]


def _keeping_mass(view: VectorField, x: Vector, given: _Given) -> Vector:
    return jnp.where(view.algebraic(), view.f(given.t, x), view.mass_times(given.u - x))


def _keeping_mass_matrix(view: VectorField, x: Vector, given: _Given) -> Matrix:
    _, jacobian = view.value_and_jacobian(given.t, x)
    mass = view.shifted(jnp.ones((), x.dtype), jnp.zeros_like(jacobian))
    algebraic = view.algebraic()
    assert algebraic is not None
    return jnp.where(algebraic[:, None], -jacobian, mass)


def _short_step(view: VectorField, x: Vector, given: _Given) -> Vector:
    return view.f(given.t, x) - view.mass_times(x - given.u) / given.h


def _short_step_matrix(view: VectorField, x: Vector, given: _Given) -> Matrix:
    return view.shifted(1 / given.h, view.value_and_jacobian(given.t, x)[1])


_BROWN = _Equation(_keeping_mass, _keeping_mass_matrix)
_COLLOCATION = _Equation(_short_step, _short_step_matrix)


def consistent_start(plan: Plan, inputs: Inputs, settings: Settings, how: str) -> Start:
    """Make the start of a solve consistent, or find out that it is not."""
    field, coordinates = plan.field(inputs), Coordinates(inputs.u0)
    frozen = jax.lax.stop_gradient((field, inputs, settings))
    if how == "check":
        one = jnp.ones((), jnp.int32)
        consistent = jnp.all(inconsistency(*frozen) <= 1)
        return _start(inputs, inputs.u0, consistent, {"nf": one, "njac": one})
    equation = _BROWN if how == "brown" else _COLLOCATION
    given = _Given(inputs.t0, coordinates.flatten(inputs.u0), _step(*frozen[1:]))
    solve = partial(_solve, equation)
    frozen = *frozen, jax.lax.stop_gradient(given)
    x, found, work = one_or_many(solve, solve, *frozen, native=plan.small)
    if how == "collocation":
        # Without rows of zeros there is no telling whether the given start would have done.
        judged = jnp.any(VectorField(field, inputs.u0).algebraic())
        x = jnp.where(judged & jnp.all(inconsistency(*frozen[:3]) <= 1), given.u, x)
    x = _with_derivative(equation, field, inputs.u0, x, given)
    return _start(inputs, coordinates.unflatten(x), found, work)


def inconsistency(field: Field, inputs: Inputs, settings: Settings) -> Vector:
    """How far each algebraic equation is from being satisfied at the start.

    One is what changes of the state within the tolerance make of it; other equations have zero.
    """
    view = VectorField(field, inputs.u0)
    start = view.coordinates.flatten(inputs.u0)
    value, jacobian = view.value_and_jacobian(inputs.t0, start)
    algebraic = view.algebraic()
    assert algebraic is not None
    tolerance = _tolerance(settings, view.coordinates)(start)
    allowed = jnp.sum(jnp.abs(jacobian) * tolerance[None, :], axis=1)
    excess = jnp.abs(value) / jnp.maximum(allowed, float(jnp.finfo(allowed.dtype).tiny))
    return jnp.where(algebraic, jnp.where(jnp.isfinite(value), excess, jnp.inf), 0)


def _start(inputs: Inputs, u: State, found: Array, work: dict[str, Array]) -> Start:
    u0 = jtu.tree_map(lambda x: jnp.where(found, x, jnp.nan), u)
    return Start(inputs._replace(u0=u0), found, work)


def _step(inputs: Inputs, settings: Settings) -> Float[Array, ""]:
    """So short a step that it stands for an instant, and no shorter than rounding allows."""
    eps = float(jnp.finfo(inputs.t0.dtype).eps)
    span = _OF_SPAN * (inputs.t1 - inputs.t0)
    instant = jnp.minimum(span, eps**0.5 * jnp.maximum(1, jnp.abs(inputs.t0)))
    h = instant if settings.dt is None else _OF_STEP * settings.dt
    # Without a span there is still a start.
    return jnp.where(h > 0, h, eps**0.5).astype(Coordinates(inputs.u0).dtype)


def _tolerance(settings: Settings, coordinates: Coordinates) -> Callable[[Vector], Vector]:
    """The tolerance of each real coordinate of a state."""

    def of_leaf(rtol: Array, atol: Array, x: Array) -> Array:
        allowed = jnp.broadcast_to(atol + rtol * jnp.abs(x), x.shape)
        return jax.lax.complex(allowed, allowed) if jnp.iscomplexobj(x) else allowed

    def of(x: Vector) -> Vector:
        u = coordinates.unflatten(x)
        allowed = coordinates.flatten(jtu.tree_map(of_leaf, settings.rtol, settings.atol, u))
        return jnp.maximum(allowed, float(jnp.finfo(x.dtype).tiny))

    return of


def _solve(
    equation: _Equation, field: Field, inputs: Inputs, settings: Settings, given: _Given
) -> tuple[Vector, Array, dict[str, Array]]:
    """The start without its derivative, whether it is one, and the work it took."""
    view = VectorField(field, inputs.u0)
    tolerance = _tolerance(settings, view.coordinates)

    def size(correction: Vector, x: Vector) -> Array:
        return jnp.max(jnp.abs(correction) / tolerance(x))

    def matrix(x: Vector) -> Matrix:
        return equation.matrix(view, x, given)

    root = damped_newton(lambda x: equation.residual(view, x, given), matrix, size, given.u)
    at_root = matrix(root.x)
    # The variables may have very different units.
    found = root.converged & is_regular(at_root / jnp.max(jnp.abs(at_root), axis=0, keepdims=True))
    work = {
        "nf": root.evaluations,
        "njac": root.corrections + 1,
        "nfactor": root.corrections,
        "nsolve": root.evaluations,
    }
    return root.x, found, work


def _with_derivative(
    equation: _Equation, field: Field, u: State, x: Vector, given: _Given
) -> Vector:
    """The start with the derivative of the solution of its equation."""
    leaves, structure = jtu.tree_flatten(field)
    count = len(_Given._fields)

    def parts(arguments: tuple[Array, ...]) -> tuple[VectorField, _Given]:
        field = jtu.tree_unflatten(structure, arguments[count:])
        return VectorField(field, u), _Given(*arguments[:count])

    def residual(x: Vector, *arguments: Array) -> Vector:
        view, given = parts(arguments)
        return equation.residual(view, x, given)

    def matrix(x: Vector, *arguments: Array) -> Matrix:
        view, given = parts(arguments)
        return equation.matrix(view, x, given)

    return implicit_solution(residual, matrix, x, [*given, *leaves])
