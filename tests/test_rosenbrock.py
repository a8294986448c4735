"""Rosenbrock methods on stiff and differential-algebraic problems: accuracy, work, derivatives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import diffjax as dj
from diffjax.stepping.lanes import is_native
from tests.methods import BY_NAME, EVERY_ROSENBROCK_METHOD, Method
from tests.problems import AFFINE, CHEMAKZO_DAE, DATA, ROBER, ROBER_DAE, Case, robertson
from tests.stiff_problems import MASS, TOLERANCES, error, solve


@EVERY_ROSENBROCK_METHOD
def test_robertson_by_every_method(method: Method) -> None:
    """Eleven decades of time, where an explicit method stalls; the last save is the end."""
    sol = solve(ROBER, method.name, 1e-4, saveat=jnp.array([1e2, 1e8, 1e11]))
    assert error(ROBER, sol.u[-1]) < 5e-3
    # The three fractions add up to one, which every method keeps up to rounding.
    np.testing.assert_allclose(np.sum(sol.u, axis=1), 1.0, rtol=0, atol=1e-12)


# Steps at each tolerance, and the digits that each method is known to lose on them.
@pytest.mark.parametrize(
    ("method", "case", "work"),
    [
        ("Rosenbrock23", CHEMAKZO_DAE, (153, 1310, 12600)),
        ("Rodas3P", CHEMAKZO_DAE, (57, 240, 1080)),
        ("Rodas4", CHEMAKZO_DAE, (34, 102, 392)),
        ("Rodas4P", CHEMAKZO_DAE, (36, 99, 310)),
        ("Rodas5", CHEMAKZO_DAE, (33, 68, 180)),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_algebraic_equations(method: str, case: Case, work: tuple[int, ...]) -> None:
    """A singular mass matrix, by its diagonal: an algebraic variable is as accurate as the rest."""
    for rtol, most in zip(TOLERANCES, work, strict=True):
        sol = solve(case, method, rtol)
        assert error(case, sol.u_end) <= 100 * rtol
        assert int(sol.stats.naccept) + int(sol.stats.nreject) <= most


@pytest.mark.parametrize("name", ["Rosenbrock23", "Rodas5P"])
def test_order_with_a_dense_mass_matrix(name: str) -> None:
    """M u' = A u + t A 1, explicit in time, with M = A: guards against a lost product with M.

    The step is the same for all methods.
    """
    assert AFFINE.exact is not None
    method, errors, times = BY_NAME[name], [], np.linspace(0, 1, 7)
    for steps in (8, 16):
        sol = dj.solve(AFFINE.ode(mass_matrix=AFFINE.p), method.make(), steps=steps, saveat=times)
        errors.append(np.max(np.abs(np.asarray(sol.u) - AFFINE.exact(times))))
    order = np.log2(errors[0] / errors[1])
    assert order > min(method.order, method.dense_order + 1) - 0.3


def prothero_robinson(rate: float) -> dj.ODEProblem:
    """u' = -rate (u - sin t) + cos t, with the solution sin t."""
    return dj.ODEProblem(
        lambda u, p, t: -p * (u - jnp.sin(t)) + jnp.cos(t), jnp.zeros(1), (0.0, 2.0), rate
    )


def errors_on_a_stiff_problem(alg: dj.Algorithm, widths: Any, steps: int) -> np.ndarray:
    """At t = 2, after that many steps of each width that start on the solution: one program."""
    widths = np.asarray(widths)

    def end(start: jax.Array) -> jax.Array:
        prob = dj.remake(
            prothero_robinson(1e6), u0=jnp.sin(start)[None], tspan=(start, jnp.asarray(2.0))
        )
        return dj.solve(prob, alg, steps=steps).u_end[0]

    return np.abs(jax.jit(jax.vmap(end))(2.0 - steps * widths) - np.sin(2.0))


# On a stiff linear problem whose forcing moves, methods lose order (HW II, section IV.15). Of a
# stiffly accurate one the error is C dt^q / (rate dt), so that one order less than q is seen:
# q = 4 for Rodas4P and Rodas5P, q = 3 for Rodas3P, built to keep it (Steinebach 1995, 2023, 2024).
@pytest.mark.parametrize(
    ("name", "observed"),
    [
        ("Rosenbrock23", 2),
        ("Rodas3P", 2),
        ("Rodas4", 1),
        ("Rodas4P", 3),
        ("Rodas5", 1),
        ("Rodas5P", 3),
    ],
)
def test_order_on_a_stiff_problem(name: str, observed: int) -> None:
    errors = errors_on_a_stiff_problem(BY_NAME[name].make(), [0.2, 0.1, 0.05], 10)
    orders = np.log2(errors[:-1] / errors[1:])
    assert np.mean(orders) == pytest.approx(observed, abs=0.3), (errors, orders)


# Derivatives ------------------------------------------------------------------------------

SERIES = DATA["grad_rober_forward"]["reference"]["series"]
TIMES = np.array([point["t"] for point in SERIES])
# Columns in the file are k1, k3, k2.
SENSITIVITIES = np.array([point["dy_dp"] for point in SERIES])[:, :, [0, 2, 1]]


P = jnp.asarray(ROBER.p)
# Every state counts at every time.
WEIGHTS = np.random.default_rng(0).normal(size=SENSITIVITIES.shape[:2])
WEIGHTS /= np.max(np.abs(SENSITIVITIES * ROBER.p), axis=2)


def check_robertson(states: Callable, adjoint: Any, rtol: float = 1e-6) -> None:
    """Six digits of the published sensitivities: every one of them forwards, and backwards that of
    a sum to which all of them contribute."""
    if isinstance(adjoint, dj.ForwardMode):
        jacobian = jax.jit(jax.jacfwd(lambda p: states(p, adjoint)))(P)
        np.testing.assert_allclose(jacobian, SENSITIVITIES, rtol=rtol)
        return
    in_reverse(lambda p: jnp.sum(WEIGHTS * states(p, adjoint)), slice(None), rtol)


def in_reverse(total: Callable, times: slice, rtol: float) -> None:
    """The gradient of the weighted sum over these times, to `rtol` of what it consists of."""
    parts = WEIGHTS[times, :, None] * SENSITIVITIES[times]
    scale = np.sum(np.abs(parts), axis=(0, 1))
    gradient = jax.jit(jax.grad(total))(P)
    np.testing.assert_allclose(gradient / scale, np.sum(parts, axis=(0, 1)) / scale, 0, rtol)


EVERY_DERIVATIVE = pytest.mark.parametrize(
    "adjoint", [dj.DiscreteAdjoint(), dj.ForwardMode()], ids=["tape", "forward"]
)


@EVERY_DERIVATIVE
def test_gradient_of_robertson(adjoint: Any) -> None:
    def states(p: jax.Array, adjoint: Any) -> jax.Array:
        prob = dj.ODEProblem(robertson, jnp.asarray(ROBER.u0), (0.0, 4e4), p)
        options = {"rtol": 1e-8, "atol": 1e-12, "saveat": TIMES, "max_steps": 1024}
        return dj.solve(prob, dj.Rodas5P(), adjoint=adjoint, **options).u

    check_robertson(states, adjoint)


def loss_of_everything(method: Method, inputs: tuple) -> jax.Array:
    """A solve whose every argument matters: state, parameters, mass matrix, Jacobian, times."""
    u0, p, mass, end = inputs

    def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.stack([-p[0] * u[0] + jnp.sin(p[1] * t) * u[1], p[1] * u[0] - p[2] * u[1] ** 3])

    def jac(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        zero = jnp.zeros(())
        rows = [[-p[0] + zero, jnp.sin(p[1] * t)], [p[1] + zero, -3 * p[2] * u[1] ** 2]]
        return jnp.array(rows)

    prob = dj.ODEProblem(f, u0, (0.0, end), p, mass_matrix=mass, jac=jac)
    sol = dj.solve(prob, method.make(), steps=8, saveat=lambda a, b: a + (b - a) * THIRDS)
    return jnp.sum(jnp.sin(sol.u) * jnp.array([[1.0, 2.0]]))


THIRDS = jnp.array([0.3, 0.7, 1.0])
INPUTS = (
    jnp.array([1.0, 0.5]),
    jnp.array([2.0, 1.5, 0.7]),
    jnp.array([[2.0, 0.3], [-0.4, 1.0]]),
    # Of a dtype, as what differences add up to is: a plain number would compile once more.
    jnp.asarray(1.2, float),
)


# The step is the same for all of them: one with extra coefficients that are zero, and another.
@pytest.mark.parametrize("name", ["Rosenbrock23", "Rodas4"])
def test_reverse_is_forward(name: str) -> None:
    """VJP = JVP to 1e-9 with respect to everything, the mass matrix and the span's end included."""
    check_modes(lambda inputs: loss_of_everything(BY_NAME[name], inputs))


def check_modes(loss: Callable) -> None:
    """The derivative by all INPUTS: VJP = JVP to 1e-9, and as differences have it."""
    rng = np.random.default_rng(1)
    dots = jax.tree.map(lambda x: rng.normal(size=x.shape), INPUTS)
    along = jax.jit(lambda inputs: jax.jvp(loss, (inputs,), (dots,)))
    forward = along(INPUTS)[1]
    reverse = jax.jit(jax.grad(loss))(INPUTS)
    total = sum(np.vdot(x, y) for x, y in zip(reverse, dots, strict=True))
    np.testing.assert_allclose(total, forward, rtol=1e-9)
    e = 1e-5
    ends = [along(jax.tree.map(lambda x, d, s=s: x + s * e * d, INPUTS, dots))[0] for s in (1, -1)]
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * e), forward, rtol=1e-7)


def check_second_derivative(loss: Callable, x: jax.Array, direction: np.ndarray) -> None:
    """Forward over reverse along a direction, against a difference of the gradient."""
    both = jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (jnp.asarray(direction),)))
    e = 1e-5 * direction
    difference = (both(x + e)[0] - both(x - e)[0]) / 2e-5
    np.testing.assert_allclose(both(x)[1], difference, rtol=1e-6, atol=1e-8)


def test_second_derivatives() -> None:
    """Forward over reverse against differences of the gradient."""
    method = BY_NAME["Rodas3P"]

    def loss(p: jax.Array) -> jax.Array:
        return loss_of_everything(method, (INPUTS[0], p, INPUTS[2], INPUTS[3]))

    check_second_derivative(loss, INPUTS[1], np.array([1.0, -0.5, 0.7]))


def test_gradient_through_an_algebraic_equation() -> None:
    """The DAE's sensitivities are those of the ODE it stands for."""

    def end(p: jax.Array) -> jax.Array:
        prob = ROBER_DAE.ode(p=p, tspan=(0.0, 40.0), mass_matrix=MASS["ROBER_DAE"])
        return dj.solve(prob, dj.Rodas5P(), rtol=1e-9, atol=1e-13, max_steps=512).u_end

    check_robertson_at_forty(end)


def check_robertson_at_forty(end: Callable) -> None:
    """The published sensitivities of the ends at t = 40, of a weighted sum in reverse."""
    in_reverse(lambda p: jnp.sum(WEIGHTS[2] * end(p)), slice(2, 3), 2e-6)


# Batches, precision, kinds of state ---------------------------------------------------------


def test_a_thousand_lanes_are_a_thousand_solves() -> None:
    """Each lane as if alone; one with absurd parameters is flagged and harms no other."""
    factors = np.random.default_rng(0).uniform(0.8, 1.2, (1000, 3))
    factors[123, 2] = -1e12
    ps = jnp.asarray(ROBER.p * factors)

    def end(p: jax.Array) -> tuple:
        prob = dj.ODEProblem(robertson, jnp.asarray(ROBER.u0), (0.0, 1e5), p)
        sol = dj.solve(prob, dj.Rodas5P(), rtol=1e-6, atol=1e-10, max_steps=1000, throw=False)
        return sol.u[-1], sol._retcode

    u, codes = jax.jit(jax.vmap(end))(ps)
    assert [i for i, code in enumerate(codes) if code != dj.ReturnCode.success] == [123]
    assert np.all(np.isnan(u[123]))
    single = jax.jit(end)
    some = [i for i in range(0, 1000, 3) if i != 123]
    alone = np.stack([single(p)[0] for p in np.asarray(ps)[some]])
    np.testing.assert_allclose(u[np.array(some)], alone, rtol=1e-6)


@pytest.mark.parametrize("alg", [dj.Rosenbrock23(), dj.Heun()], ids=lambda a: a.name)
def test_gradient_over_a_mesh(alg: Any) -> None:
    """Guards against a tangent, or a count of steps, that is constant where the state varies."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("lanes",))
    ps = jnp.outer(jnp.arange(1.0, 5.0), jnp.array([1.1, 0.7]))

    def loss(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(
            lambda u, p, t: p[1] * jnp.roll(u, 1) - p[0] * u**2 * jnp.cos(t),
            jnp.ones(2),
            (0.0, 1.0),
            p,
        )
        return jnp.sum(dj.solve(prob, alg, steps=4).u)

    def gradients(ps: jax.Array) -> jax.Array:
        return jax.vmap(jax.grad(loss))(ps)

    lanes = PartitionSpec("lanes")
    spread = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=lanes, out_specs=lanes))(ps)
    np.testing.assert_allclose(spread, jax.jit(gradients)(ps), rtol=1e-13)


def test_single_precision() -> None:
    """Robertson to 1e5 in float32 throughout, four digits."""
    prob = ROBER.ode(jnp.float32, tspan=(0.0, 1e5))
    sol = dj.solve(prob, dj.Rodas5P(), rtol=1e-4, atol=1e-10)
    assert sol.u.dtype == sol.t.dtype == jnp.float32
    accurate = solve(ROBER, "Rodas5P", 1e-9, saveat=jnp.array([1e5]))
    np.testing.assert_allclose(sol.u_end, accurate.u[0], rtol=2e-4)


@pytest.mark.parametrize("name", ["Rosenbrock23", "Rodas5P"])
def test_complex_states(name: str) -> None:
    """u' = (-1 + 20i) u, and the non-holomorphic u' = i conj(u), whose Jacobian is real-linear."""

    def f(u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
        return jnp.stack([(-1 + 20j) * u[0], 1j * jnp.conj(u[1])])

    def exact(t: float) -> np.ndarray:
        return np.array(
            [np.exp((-1 + 20j) * t), (1 + 1j) * np.exp(t) / 2 + (1 - 1j) * np.exp(-t) / 2]
        )

    prob = dj.ODEProblem(f, jnp.array([1.0 + 0j, 1.0 + 0j]), (0.0, 1.0))
    errors = []
    for steps in (100, 200):
        errors.append(
            np.max(np.abs(dj.solve(prob, BY_NAME[name].make(), steps=steps).u_end - exact(1.0)))
        )
    assert np.log2(errors[0] / errors[1]) > BY_NAME[name].order - 0.2
    # A complex mass matrix and Jacobian mean the same as their parts.
    mass = np.array([2j, 1.0 + 0j])
    scaled = dj.ODEProblem(lambda u, p, t: mass * f(u, p, t), prob.u0, (0.0, 1.0), mass_matrix=mass)
    sol = dj.solve(scaled, BY_NAME[name].make(), steps=100)
    plain = dj.solve(prob, BY_NAME[name].make(), steps=100)
    np.testing.assert_allclose(sol.u_end, plain.u_end, rtol=1e-12)


def test_a_jacobian_of_a_complex_state() -> None:
    """Given as a complex matrix, it is the one that is computed."""
    prob = dj.ODEProblem(lambda u, p, t: (-1 + 2j) * u, jnp.array([1.0 + 0j]), (0.0, 1.0))
    given = dj.remake(prob, jac=lambda u, p, t: jnp.array([[-1 + 2j]]))
    ends = [dj.solve(p, dj.Rodas4(), steps=5).u_end for p in (prob, given)]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-14)


def test_pytrees_of_two_precisions() -> None:
    """A dictionary with a scalar, a matrix and a float32 part; a diagonal mass in its order."""

    def f(u: Any, p: Any, t: jax.Array) -> Any:
        slow = u["c"].astype(jnp.float64)
        return {"a": -50.0 * u["a"] + slow[0], "b": -u["b"] * u["a"], "c": -u["c"]}

    u0 = {"a": jnp.asarray(1.0), "b": jnp.ones((2, 2)), "c": jnp.ones(1, jnp.float32)}
    prob = dj.ODEProblem(f, u0, (0.0, 1.0))
    sol = dj.solve(prob, dj.Rodas5P(), rtol=2e-6, atol=1e-8)
    a = np.exp(-50.0) + (np.exp(-1.0) - np.exp(-50.0)) / 49.0
    integral = (1 - np.exp(-50.0)) / 50.0 + ((1 - np.exp(-1.0)) - (1 - np.exp(-50.0)) / 50.0) / 49.0
    np.testing.assert_allclose(sol.u_end["a"], a, rtol=1e-5)
    np.testing.assert_allclose(sol.u_end["b"], np.full((2, 2), np.exp(-integral)), rtol=1e-5)
    np.testing.assert_allclose(sol.u_end["c"], [np.exp(-1.0)], rtol=1e-5)
    assert sol.u_end["c"].dtype == jnp.float32
    # Twice the derivative with a mass of two, for one part of the state.
    mass = np.array([1.0, 2.0, 2.0, 2.0, 2.0, 1.0])

    def doubled(u: Any, p: Any, t: jax.Array) -> Any:
        du = f(u, p, t)
        return {**du, "b": 2.0 * du["b"]}

    heavy = dj.solve(
        dj.ODEProblem(doubled, u0, (0.0, 1.0), mass_matrix=mass), dj.Rodas5P(), steps=20
    )
    light = dj.solve(prob, dj.Rodas5P(), steps=20)
    np.testing.assert_allclose(heavy.u_end["b"], light.u_end["b"], rtol=1e-13)


def test_backwards_and_anywhere() -> None:
    """Back from 1 to 0 with a mass matrix and time in the field; `sol(t)` in between."""
    exact, assembled = AFFINE.exact, AFFINE.ode(mass_matrix=AFFINE.p)
    assert exact is not None
    u1 = jnp.asarray(exact(np.array([1.0]))[0])
    jac = lambda u, p, t: p  # noqa: E731
    prob = dj.remake(assembled, u0=u1, tspan=(1.0, 0.0), jac=jac)
    sol = dj.solve(prob, dj.Rodas5P(), rtol=1e-9, atol=1e-9, dense=True)
    np.testing.assert_allclose(sol.u_end, np.ones(3), rtol=1e-7)
    points = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(sol(points), exact(points), rtol=1e-6)


def test_a_jacobian_from_the_user_is_used() -> None:
    """A method whose order conditions hold for the exact Jacobian only shows a wrong one."""
    p, u0 = 3.0, jnp.array([1.0, 2.0])
    prob = dj.ODEProblem(lambda u, p, t: -p * u**2, u0, (0.0, 1.0), p)
    right = dj.remake(prob, jac=lambda u, p, t: jnp.diag(-2 * p * u))
    wrong = dj.remake(prob, jac=lambda u, p, t: jnp.diag(-p * u))
    ends = [dj.solve(q, dj.Rodas4(), steps=10).u_end for q in (prob, right, wrong)]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-14)
    assert np.max(np.abs(ends[0] - ends[2])) > 1e-6


def test_start_on_a_save_of_an_algebraic_variable() -> None:
    """The derivative with respect to a save time at t0 is u'(t0), of algebraic variables too."""
    prob = dj.ODEProblem(
        lambda u, p, t: jnp.stack([-u[0], u[1] - 2.0 * u[0] - t]),
        jnp.array([1.0, 2.0]),
        (0.0, 1.0),
        mass_matrix=np.array([1.0, 0.0]),
    )
    slope = jax.jacfwd(lambda s: dj.solve(prob, dj.Rodas4(), steps=4, saveat=s[None]).u[0])
    np.testing.assert_allclose(slope(jnp.asarray(0.0)), [-1.0, -2.0 + 1.0], rtol=1e-12)


# What is compiled, and what is refused ---------------------------------------------------------


def test_the_field_is_traced_once() -> None:
    traced = []

    def f(u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
        traced.append(u)
        return -u * jnp.array([1.0, 1e3])

    prob = dj.ODEProblem(f, jnp.ones(2), (0.0, 1.0))
    jax.grad(lambda u0: jnp.sum(dj.solve(prob, dj.Rodas5P(), u0=u0).u_end))(jnp.ones(2))
    assert len(traced) <= 2  # once for the solve, once for its derivative


@pytest.mark.parametrize("n", [3, 8])
def test_one_trajectory_can_be_one_native_function(n: int) -> None:
    """Guards against an operation in the step that keeps XLA from compiling the loop in place."""
    prob = dj.ODEProblem(lambda u, p, t: -p * u**3, jnp.ones(n), (0.0, 1.0), 2.0)

    def end(prob: dj.ODEProblem) -> jax.Array:
        return dj.solve(prob, dj.Rodas5P()).u_end

    for function in (end, jax.grad(lambda prob: jnp.sum(end(prob)), allow_int=True)):
        assert is_native(jax.make_jaxpr(function)(prob).jaxpr)


DECAY = dj.ODEProblem(lambda u, p, t: -u, jnp.ones(2), (0.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "alg", "kind", "words"),
    [
        ({"mass_matrix": np.eye(3)}, dj.Rodas4(), ValueError, ("mass_matrix", "(2, 2)", "(3, 3)")),
        ({"mass_matrix": [1.0, 0.0]}, dj.Tsit5(), ValueError, ("Tsit5", "mass_matrix", "Rodas5P")),
        ({"mass_matrix": [1j, 0.0]}, dj.Rodas4(), TypeError, ("mass_matrix", "real", "complex")),
        ({"jac": lambda u, p, t: jnp.ones(2)}, dj.Rodas4(), ValueError, ("jac", "(2, 2)", "(2,)")),
        ({"jac": lambda u, p, t: [[1.0]]}, dj.Rodas4(), ValueError, ("jac", "list", "jnp.stack")),
        (
            {"jac": lambda u, p, t: jnp.eye(2, dtype=complex)},
            dj.Rodas4(),
            TypeError,
            ("jac", "real"),
        ),
        ({"jac": np.eye(2)}, dj.Rodas4(), TypeError, ("jac", "function", "ndarray")),
    ],
    ids=["shape", "explicit", "complex", "vector", "list", "complex jac", "array"],
)
def test_a_mistake_is_named(changes: dict, alg: Any, kind: type, words: tuple) -> None:
    with pytest.raises(kind) as caught:
        dj.solve(dj.remake(DECAY, **changes), alg)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_mass_matrix_chooses_the_method() -> None:
    """Without `alg=`, a problem with a mass matrix is not handed to an explicit method."""
    sol = dj.solve(dj.remake(DECAY, mass_matrix=np.array([2.0, 1.0])), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(sol.u_end, np.exp([-0.5, -1.0]), rtol=1e-6)


def test_a_field_that_is_not_finite_ends_the_solve() -> None:
    """sqrt of what turns negative: the step is refused, then the solve, with its reason."""
    prob = dj.ODEProblem(lambda u, p, t: -1.0 - jnp.sqrt(u), jnp.ones(1), (0.0, 3.0))
    sol = dj.solve(prob, dj.Rodas5P(), throw=False)
    assert sol.retcode in (dj.ReturnCode.dt_underflow, dj.ReturnCode.unstable)
    assert 0.5 < float(sol.t_end) < 1.0
