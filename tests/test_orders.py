"""Observed orders: of every method, of every continuous extension.

Modern pairs have principal errors so small that on a generic problem the next order is all one
sees in double precision (Vern6 converges like order 7). So an order is pinned from both sides: from
below on `clock`, a nonlinear problem explicit in time, and exactly on `powers`, a
weighted-homogeneous system, where a method of order p has the error C h^p with no higher terms.
"""

from functools import partial
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.methods import BY_NAME, EVERY_ADAPTIVE_METHOD, EVERY_METHOD, Method
from tests.problems import CLOCK, LINEAR, NONLINCHEM, Case, clock, clock_exact

# How far an observed order may lie from the nominal one.
SLACK = 0.2


def slope(sizes: np.ndarray, errors: np.ndarray) -> float:
    """The observed order: the least-squares slope of log(error) over log(step)."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def powers(order: int) -> Case:
    """Integrators in a chain, two in a fork, and a quadrature: three trees of `order` vertices.

    All components are multiples of powers of t, and a Runge-Kutta method of order `order` - 1 is
    exact in all but the last of each group, whose error is that of one order condition.
    """
    chain = np.arange(1, order + 1)
    fork = max(order - 3, 0)
    fork_there = float(order > 2)

    def f(u: jax.Array, p: None, t: jax.Array) -> jax.Array:
        y, x = u[:order], u[order : order + 2]
        first = jnp.ones((1,), u.dtype)
        product = fork_there * y[0] * (y[fork - 1] if fork else 1.0)
        return jnp.concatenate([first, y[:-1], product[None], x[:1], t[None] ** (order - 1)])

    def exact(t: np.ndarray) -> np.ndarray:
        t = np.asarray(t)[..., None]
        y = t**chain / np.array([float(factorial(k)) for k in chain])
        x = fork_there * t ** (fork + 2) / (factorial(fork) * (fork + 2))
        return np.concatenate([y, x, x * t / (fork + 3), t**order / order], axis=-1)

    return Case("powers", f, np.zeros(order + 3), (0.0, 2.0), None, exact=exact)


def convergence(method: Method, case: Case, numbers: tuple[int, ...]) -> float:
    errors = []
    for steps in numbers:
        sol = dj.solve(case.ode(), method.make(), steps=steps, saveat="steps")
        assert sol.u.shape[0] == steps + 1
        assert case.exact is not None
        errors.append(np.max(np.abs(np.asarray(sol.u) - case.exact(np.asarray(sol.t)))))
    return -slope(np.array(numbers, float), np.array(errors))


@EVERY_METHOD
def test_order_is_reached(method: Method) -> None:
    """Guards against a wrong coefficient or stage time: any loss of order shows here."""
    assert convergence(method, CLOCK, method.steps) > method.order - SLACK


@EVERY_METHOD
def test_order_is_nominal(method: Method) -> None:
    """Guards against a wrong label: the table and `alg.order` say what the method does."""
    assert method.make().order == method.order
    observed = convergence(method, powers(method.order + 1), (2, 4, 8))
    assert observed == pytest.approx(method.order, abs=SLACK)


def local_errors(method: Method, case: Case, starts: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The largest error of the extension inside one step of each width."""
    assert case.exact is not None

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0, 0))
    def one_step(width: jax.Array, start: jax.Array, u0: jax.Array) -> tuple:
        prob = case.ode(u0=u0, tspan=(start, start + width))
        points = jnp.linspace(0.0, 1.0, 101)
        sol = dj.solve(prob, method.make(), steps=1, saveat=lambda a, b: a + (b - a) * points)
        return sol.t, sol.u

    errors = []
    for width in widths:
        t, u = one_step(jnp.asarray(width), jnp.asarray(starts), jnp.asarray(case.exact(starts)))
        errors.append(np.max(np.abs(np.asarray(u) - case.exact(np.asarray(t)))))
    return np.array(errors)


@EVERY_METHOD
def test_dense_order(method: Method) -> None:
    """Guards against saves less accurate than the steps.

    Inside one step that starts on the solution, the error of an extension of order q is O(h^(q+1)).
    """
    assert method.make().dense_order == method.dense_order
    widths = np.array(method.widths)
    starts = np.linspace(0.0, 6.0, 25)
    order = slope(widths, local_errors(method, CLOCK, starts, widths)) - 1
    assert order > method.dense_order - SLACK

    widths = np.array([4.0, 2.0, 1.0])
    case = powers(method.dense_order + 1)
    order = slope(widths, local_errors(method, case, np.zeros(1), widths)) - 1
    assert order == pytest.approx(method.dense_order, abs=SLACK)


# Bounds from the published error constants of the methods.
@pytest.mark.parametrize(
    ("name", "bound"), [("Tsit5", 2e-7), ("DP5", 6e-7), ("BS3", 1e-3), ("DP8", 2e-9)]
)
def test_dense_error_at_a_coarse_step(name: str, bound: float) -> None:
    """`sol(t)` and `saveat` agree, and are as accurate as the extension's authors say."""
    alg, points = BY_NAME[name].make(), np.linspace(0.0, 1.0, 1001)
    sol = dj.solve(LINEAR.ode(), alg, dt=0.25, adaptive=False, dense=True, saveat=points)
    assert LINEAR.exact is not None
    exact = LINEAR.exact(points)
    assert np.max(np.abs(np.asarray(sol.u) - exact)) < bound
    # The same polynomial by another route, up to the rounding of its largest coefficients (1e2).
    np.testing.assert_allclose(np.asarray(sol(points)), np.asarray(sol.u), rtol=0, atol=1e-13)


@pytest.mark.parametrize("tolerance", [1e-6, 1e-9])
@EVERY_ADAPTIVE_METHOD
def test_saves_meet_the_tolerance_as_steps_do(method: Method, tolerance: float) -> None:
    """Guards against what a peer got wrong: dense output that misses the tolerance up to 73-fold.

    On some problems an error estimate is so careful that steps end far below the tolerance; what
    lies between them then needs to meet the tolerance, not the luck. An extension an order below
    its method (DP5, Tsit5, DP8, Rodas4P) may miss it as far as SciPy's RK45 and DOP853 do on these
    problems and on `clock`: by 12 times.
    """
    if method.order == 2 and tolerance < 1e-6:
        # A hundred thousand steps say nothing that some thousand do not.
        tolerance = 1e-7
    lower = method.name in ("DP5", "Tsit5", "DP8", "Rodas4P")
    for case in (LINEAR, NONLINCHEM):
        at_steps, between = errors_at_and_between_steps(method, case, tolerance)
        bound = max(3 * at_steps, (12 if lower else 1) * tolerance)
        assert between <= bound, (case.name, between, at_steps)


def errors_at_and_between_steps(
    method: Method, case: Case, tolerance: float
) -> tuple[float, float]:
    assert case.exact is not None
    options = {"rtol": tolerance, "atol": tolerance, "max_steps": 20_000}
    sol = dj.solve(case.ode(), method.make(), saveat="steps", dense=True, **options)
    n = int(sol.n)
    points = np.linspace(*case.tspan, 1001)
    at_steps = np.abs(np.asarray(sol.u)[:n] - case.exact(np.asarray(sol.t)[:n]))
    between = np.abs(np.asarray(sol(points)) - case.exact(points))
    return float(at_steps.max()), float(between.max())


def test_reference_solves_its_equation() -> None:
    """The closed form of `clock` against its field, by a derivative."""
    t = jnp.linspace(0.0, 6.0, 13)
    u, du = jax.vmap(lambda s: jax.jvp(lambda s: clock_exact(s, jnp), (s,), (jnp.ones_like(s),)))(t)
    field = jax.vmap(lambda u, s: clock(u, None, s))(u, t)
    np.testing.assert_allclose(field, du, rtol=1e-12, atol=1e-12)
