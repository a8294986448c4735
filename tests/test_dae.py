"""Fully implicit equations F(u', u, p, t) = 0: accuracy, work, derivatives, kinds of state."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import diffjax as dj
from tests.derivatives import close
from tests.problems import AFFINE, CHEMAKZO_DAE, DATA, ROBER, ROBER_DAE, Case

ALGEBRAIC = {"ROBER_DAE": 2, "CHEMAKZO_DAE": 5}


def implicit(case: Case, **changes: Any) -> dj.DAEProblem:
    """A problem with one algebraic equation, whose start knows nothing of the derivative."""
    last = ALGEBRAIC[case.name]

    def F(du: jax.Array, u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
        return case.field(u, p, t) - du.at[last].set(0.0)

    u0 = jnp.asarray(case.u0)
    given = {"u0": u0, "tspan": case.tspan, "p": jnp.asarray(case.p)}
    return dj.DAEProblem(F, jnp.zeros_like(u0), **{**given, **changes})


# Steps at each tolerance, rejected ones counted: about a fifth more than were taken when the bounds
# were set. DFBDF holds the error of a step to a sixtieth of the tolerance, since the errors of its
# many steps add up: that takes a third more steps than a sixth of it, and loses fewer digits.
@pytest.mark.parametrize(
    ("alg", "case", "atol", "work", "evaluations"),
    [
        # At 1e-8 the second component is asked for to the rounding of the others, which makes it a
        # thousand steps more or less.
        (dj.DFBDF(), ROBER_DAE, 1e-6, (830, 1600, 4400), 1.2),
        (dj.DFBDF(), CHEMAKZO_DAE, 1e-2, (160, 300, 580), 1.2),
        (dj.RadauIIA5(), ROBER_DAE, 1e-6, (210, 440, 980), 9.0),
        (dj.RadauIIA5(), CHEMAKZO_DAE, 1e-2, (32, 70, 160), 13.0),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_problems_with_references(
    alg: dj.Algorithm, case: Case, atol: float, work: tuple[int, ...], evaluations: float
) -> None:
    prob = implicit(case)
    for rtol, most in zip((1e-4, 1e-6, 1e-8), work, strict=True):
        sol = dj.solve(prob, alg, rtol=rtol, atol=rtol * atol)
        assert case.end is not None
        assert np.max(np.abs(np.asarray(sol.u_end) / case.end - 1)) <= 100 * rtol
        attempts = int(sol.stats.naccept) + int(sol.stats.nreject)
        assert attempts <= most
        assert int(sol.stats.nf) <= evaluations * attempts + 10


def test_a_dense_matrix_of_the_derivative() -> None:
    """A u' = A u + t A 1, with the solution 2 e^t - t - 1: the steps and between them."""
    prob = dj.DAEProblem(
        lambda du, u, p, t: jnp.sum(p * (du - u - t)[None, :], axis=1),
        jnp.zeros(3),
        jnp.ones(3),
        (0.0, 1.0),
        jnp.asarray(AFFINE.p),
    )
    times = np.linspace(0.0, 1.0, 101)
    sol = dj.solve(prob, rtol=1e-8, atol=1e-8, saveat=times)
    assert AFFINE.exact is not None
    np.testing.assert_allclose(sol.u, AFFINE.exact(times), rtol=2e-6)


def test_the_jacobian_of_the_user() -> None:
    """It takes the place of the computed one, dense or in a pattern, and no more changes: not the
    steps, nor a derivative, in single precision, of a dictionary, and backwards in time."""

    def F(du: Any, u: Any, p: Any, t: Any) -> Any:
        x, y = u["x"], u["y"]
        return {"x": du["x"] * (1 + x) + p * x * y, "y": y - jnp.sum(x**2) - jnp.cos(t)}

    def jac(du: Any, u: Any, p: Any, gamma: Any, t: Any) -> jax.Array:
        x, y = u["x"], u["y"]
        rows = jnp.diag(gamma * (1 + x) + du["x"] + p * y)
        rows = jnp.concatenate([rows, (p * x)[:, None]], axis=1)
        return jnp.concatenate([rows, jnp.append(-2 * x, jnp.ones_like(y))[None]])

    pattern = np.array([[True, False, True], [False, True, True], [True, True, True]])
    single = jnp.float32
    u0 = {"x": jnp.array([1.0, 0.5], single), "y": jnp.asarray(2.25, single)}
    prob = dj.DAEProblem(
        F, jax.tree.map(jnp.zeros_like, u0), u0, (1.0, 0.0), jnp.asarray(3.0, single)
    )

    def end(p: jax.Array, alg: dj.Algorithm, **changes: Any) -> Any:
        sol = dj.solve(dj.remake(prob, p=p, **changes), alg, rtol=1e-4, atol=1e-5)
        return jnp.sum(sol.u["x"]), sol.stats

    def solved(alg: dj.Algorithm, **changes: Any) -> Any:
        along = partial(jax.jvp, lambda p: end(p, alg, **changes), has_aux=True)
        return jax.jit(lambda p: along((p,), (jnp.ones_like(p),)))(prob.p)

    for alg, changes in (
        (dj.DFBDF(), {"jac": jac, "jac_sparsity": pattern}),
        (dj.RadauIIA5(), {"jac": jac}),
    ):
        got, slope, stats = solved(alg, **changes)
        wanted, wanted_slope, plain = solved(alg)
        assert got.dtype == single
        np.testing.assert_allclose(got, wanted, rtol=1e-4)
        np.testing.assert_allclose(slope, wanted_slope, rtol=1e-3)
        assert abs(int(stats.naccept) - int(plain.naccept)) <= 2
        assert int(stats.nnewton_fail) <= int(plain.nnewton_fail) + 1
    with pytest.raises(ValueError, match=r"jac must return an array of shape \(3, 3\)"):
        end(prob.p, dj.DFBDF(), jac=lambda du, u, p, gamma, t: jnp.eye(2))
    with pytest.raises(TypeError, match=r"jac must be a function jac\(du, u, p, gamma, t\)"):
        dj.remake(prob, jac=1.0)


def test_the_order_of_the_implicit_euler_method() -> None:
    """exp(u' + u) = 1, so that u' = -u: not linear in the derivative."""
    prob = dj.DAEProblem(
        lambda du, u, p, t: jnp.exp(du + u) - 1.0, jnp.array([0.3]), jnp.ones(1), (0.0, 1.0)
    )
    errors = [
        abs(float(dj.solve(prob, dj.DImplicitEuler(), steps=n).u_end[0]) - np.exp(-1.0))
        for n in (20, 40)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.1)
    sol = dj.solve(prob, dj.DImplicitEuler(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sol.u_end, np.exp(-1.0), rtol=5e-3)


# A pendulum in Cartesian coordinates, its constraint differentiated twice.
def pendulum(du: Any, u: Any, p: Any, t: jax.Array) -> Any:
    x, v, tension = u["x"], u["v"], u["tension"]
    gravity = jnp.stack([jnp.zeros_like(p), -p])
    return {
        "x": du["x"] - v,
        "v": du["v"] + tension * x - gravity,
        "tension": jnp.sum(v**2) + jnp.sum(gravity * x) - tension * jnp.sum(x**2),
    }


def swinging(angle: float, dtype: Any = float, **changes: Any) -> dj.DAEProblem:
    x = jnp.array([np.sin(angle), -np.cos(angle)], dtype)
    u0 = {"x": x, "v": jnp.zeros(2, dtype), "tension": jnp.zeros((), dtype)}
    p = jnp.asarray(9.81, dtype)
    prob = dj.DAEProblem(pendulum, jax.tree.map(jnp.zeros_like, u0), u0, (0.0, 2.0), p)
    return dj.remake(prob, **changes)


def angles(times: np.ndarray, angle: float) -> np.ndarray:
    sol = solve_ivp(
        lambda t, y: [y[1], -9.81 * np.sin(y[0])],
        (0.0, 2.0),
        [angle, 0.0],
        t_eval=times,
        method="DOP853",
        rtol=1e-12,
        atol=1e-12,
    )
    return sol.y[0]


def test_a_pendulum() -> None:
    """A dictionary, against SciPy's solution in the angle; the tension at the start is found."""
    times = np.linspace(0.0, 2.0, 11)
    sol = dj.solve(swinging(1.0), dj.DFBDF(), rtol=1e-8, atol=1e-8, saveat=times)
    np.testing.assert_allclose(sol.u["x"][:, 0], np.sin(angles(times, 1.0)), rtol=0, atol=2e-5)
    np.testing.assert_allclose(sol.u["tension"][0], 9.81 * np.cos(1.0), rtol=1e-12)


@pytest.mark.slow
def test_backward_time_and_single_precision() -> None:
    """There and back again, from a tension that is not known."""
    there = dj.solve(swinging(1.0, jnp.float32), rtol=1e-4, atol=1e-5)
    assert there.u_end["x"].dtype == jnp.float32
    guess = {**there.u_end, "tension": jnp.zeros((), jnp.float32)}
    back = dj.solve(swinging(1.0, jnp.float32, u0=guess, tspan=(2.0, 0.0)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(back.u_end["x"], swinging(1.0).u0["x"], rtol=0, atol=2e-2)


# Initialisation -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_which_variables_are_differential() -> None:
    """Said or found out, the same; and everything else is an error."""
    found = dj.solve(implicit(ROBER_DAE, tspan=(0.0, 1.0)), rtol=1e-6)
    said = implicit(ROBER_DAE, tspan=(0.0, 1.0), differential_vars=[True, True, False])
    np.testing.assert_allclose(dj.solve(said, rtol=1e-6).u_end, found.u_end, rtol=1e-14)
    with pytest.raises(ValueError, match="differential_vars must have a boolean for each of the 3"):
        dj.solve(dj.remake(said, differential_vars=(True, False)))
    with pytest.raises(TypeError, match="differential_vars must hold booleans"):
        dj.remake(said, differential_vars=[1.0, 1.0, 0.0])
    # An algebraic variable that is taken for a differential one: nothing determines its derivative.
    with pytest.raises(dj.SolveError, match="initial_failed"):
        dj.solve(dj.remake(said, differential_vars=(True, True, True)))


def test_a_published_pendulum_that_determines_nothing() -> None:
    """The example of DifferentialEquations.jl's page on initialisation lacks the tension in all of
    its equations, and two of them are empty."""
    entry = DATA["pendulum_index1_init"]
    u0 = jnp.asarray(entry["u0"], float)

    def F(du: jax.Array, u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
        return jnp.stack([du[0] - du[0], du[1] - du[1], u[0] ** 2 + u[1] ** 2 - p[1] ** 2])

    p = jnp.array([entry["parameters"]["g"], entry["parameters"]["L"]])
    prob = dj.DAEProblem(F, jnp.zeros(3), u0, (0.0, 10.0), p, differential_vars=[True, True, False])
    assert dj.solve(prob, throw=False).retcode == dj.ReturnCode.initial_failed


def test_a_derivative_that_does_not_fit() -> None:
    right = jnp.array([-0.04, 0.04, 0.0])
    prob = implicit(ROBER_DAE, tspan=(0.0, 1e-3))
    assert dj.solve(dj.remake(prob, du0=right), initialize="check").retcode == dj.ReturnCode.success
    with pytest.raises(dj.SolveError, match=r"number 0 has the residual"):
        dj.solve(dj.remake(prob, du0=right.at[0].set(1e4)), initialize="check")


# Derivatives --------------------------------------------------------------------------------------

SERIES = DATA["grad_rober_forward"]["reference"]["series"][2]


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [None, dj.ForwardMode()], ids=["tape", "forward"])
def test_gradient_of_robertson(adjoint: Any) -> None:
    """The published sensitivities of the ODE it stands for, at t = 40; columns are k1, k3, k2."""
    weights = jnp.array([1.0, 1e4, -2.0])

    def loss(p: jax.Array) -> jax.Array:
        prob = implicit(ROBER_DAE, p=p, tspan=(0.0, SERIES["t"]))
        options = {"rtol": 1e-8, "atol": 1e-13, "max_steps": 2048}
        return jnp.sum(weights * dj.solve(prob, dj.DFBDF(), adjoint=adjoint, **options).u[-1])

    p = jnp.asarray(ROBER.p)
    wanted = weights @ np.array(SERIES["dy_dp"])[:, [0, 2, 1]]
    gradient = jax.jit(jax.grad(loss))(p)
    close(gradient, wanted, 1e-5)
    if adjoint is None:
        dots = jnp.array([1.0, 1e9, -1e5])
        close(jax.jit(lambda p: jax.jvp(loss, (p,), (dots,))[1])(p), gradient @ dots, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("alg", [dj.DFBDF(), dj.RadauIIA5()], ids=lambda a: a.name)
def test_derivatives_through_the_start(alg: dj.Algorithm) -> None:
    """u' = -v u with v^3 + v = p u: by p and u, but not by the guesses of v and u'."""

    def loss(inputs: tuple) -> jax.Array:
        du0, u0, p = inputs

        def F(du: jax.Array, u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
            return jnp.stack([du[0] + u[1] * u[0], u[1] ** 3 + u[1] - p * u[0]])

        prob = dj.DAEProblem(F, du0, u0, (0.0, 0.5), p)
        sol = dj.solve(prob, alg, steps=20, saveat=jnp.array([0.0, 0.5]))
        return jnp.sum(sol.u * jnp.array([[1.0, 2.0], [3.0, 4.0]]))

    inputs = (jnp.zeros(2), jnp.array([1.2, 0.1]), jnp.array(1.5))
    value = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss))(inputs)
    e = 1e-5
    for direction in (
        (jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.array(0.0)),
        (jnp.zeros(2), jnp.zeros(2), jnp.array(1.0)),
    ):
        ends = [
            value(jax.tree.map(lambda x, d, s=s: x + s * e * d, inputs, direction)) for s in (1, -1)
        ]
        change = sum(jnp.vdot(x, d) for x, d in zip(gradient, direction, strict=True))
        close(change, (ends[0] - ends[1]) / (2 * e), 1e-7)
    assert not gradient[0].any()
    assert gradient[1][1] == 0


@pytest.mark.slow
def test_lanes() -> None:
    """Each as if alone; one without a start is flagged alone."""
    guesses = jnp.array([[1.0, 0.0, 0.5], [jnp.nan, 0.0, 0.0], [0.9, 0.0, 0.0]])

    def end(u0: jax.Array) -> tuple:
        prob = implicit(ROBER_DAE, u0=u0, tspan=(0.0, 1.0))
        sol = dj.solve(prob, dj.DFBDF(), rtol=1e-5, atol=1e-9, throw=False)
        return sol.u[-1], sol._retcode

    u, codes = jax.jit(jax.vmap(end))(guesses)
    assert codes.tolist() == [dj.ReturnCode.success, dj.ReturnCode.initial_failed, 0]
    alone = jax.jit(end)
    close(u[0], alone(guesses[0])[0], 1e-6)
    close(u[2], alone(guesses[2])[0], 1e-6)


# The adjoint equation of a mass matrix ------------------------------------------------------------


@cache
def gradient_with_a_singular_mass_matrix(adjoint: dj.Adjoint | None) -> tuple:
    def loss(inputs: tuple) -> jax.Array:
        u0, p, end = inputs

        def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
            return jnp.stack([-p[1] * u[0] * u[1], u[1] ** 3 + u[1] - p[0] * u[0] * jnp.cos(t)])

        prob = dj.ODEProblem(f, u0, (0.3, end), p, mass_matrix=np.array([[2.0, 0.3], [0.0, 0.0]]))
        options = {"rtol": 1e-9, "atol": 1e-9, "saveat": jnp.array([0.3, 0.7]), "max_steps": 512}
        sol = dj.solve(prob, dj.Rodas4(), adjoint=adjoint, **options)
        weights = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        return jnp.sum(jnp.sin(sol.u) * weights) + jnp.sum(sol.u_end**2)

    inputs = (jnp.array([1.2, 0.1]), jnp.array([1.5, 0.8]), jnp.asarray(1.0))
    return jax.jit(jax.grad(loss))(inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint",
    [dj.GaussAdjoint(), dj.InterpolatingAdjoint()],
    ids=lambda a: a.name,
)
def test_the_adjoint_equation_with_a_singular_mass_matrix(adjoint: dj.Adjoint) -> None:
    """As the default has it: a loss on algebraic variables, at save times and the end; a row of
    zeros without a column of zeros; times and the start of the span."""
    got, wanted = map(gradient_with_a_singular_mass_matrix, (adjoint, None))
    close(got, wanted, 1e-6, 1e-9)


def test_what_the_adjoint_equation_refuses() -> None:
    def loss(mass: jax.Array, adjoint: dj.Adjoint) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: -u, jnp.ones(2), (0.0, 1.0), mass_matrix=mass)
        return dj.solve(prob, dj.Rosenbrock23(), steps=2, adjoint=adjoint).u[-1, 0]

    with pytest.raises(ValueError, match=r"GaussAdjoint cannot differentiate by the mass matrix"):
        jax.grad(loss)(jnp.ones(2), dj.GaussAdjoint())
    with pytest.raises(ValueError, match=r"BacksolveAdjoint cannot take .* mass matrix"):
        loss(jnp.ones(2), dj.BacksolveAdjoint())


# Errors -------------------------------------------------------------------------------------------


def test_what_does_not_fit() -> None:
    prob = implicit(ROBER_DAE)
    with pytest.raises(TypeError, match=r"Tsit5 cannot solve a problem of kind DAEProblem"):
        dj.solve(prob, dj.Tsit5())
    with pytest.raises(TypeError, match=r"DFBDF cannot solve a problem of kind ODEProblem"):
        dj.solve(ROBER.ode(), dj.DFBDF())
    with pytest.raises(ValueError, match=r"du0 must be a pytree like u0"):
        dj.solve(dj.remake(prob, du0=jnp.zeros(2)))
    with pytest.raises(ValueError, match=r"F must return the shape of u0"):
        dj.solve(dj.remake(prob, F=lambda du, u, p, t: du[:2]))
    with pytest.raises(TypeError, match=r"F must be a function F\(du, u, p, t\)"):
        dj.DAEProblem(1.0, jnp.zeros(1), jnp.zeros(1), (0.0, 1.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"BacksolveAdjoint cannot differentiate.*DAEProblem"):
        dj.solve(prob, adjoint=dj.BacksolveAdjoint())
