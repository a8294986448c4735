"""ESDIRK methods on stiff and differential-algebraic problems: accuracy, work, derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import diffjax as dj
from diffjax.linear import reuse
from diffjax.stepping.lanes import is_native
from tests.methods import BY_NAME, EVERY_ESDIRK_METHOD, Method
from tests.problems import (
    AFFINE,
    CHEMAKZO_DAE,
    CLOCK,
    ROBER,
    ROBER_DAE,
    VDPOL_STIFF,
    Case,
    robertson,
)
from tests.stiff_problems import TOLERANCES, error, solve
from tests.test_orders import slope
from tests.test_rosenbrock import (
    EVERY_DERIVATIVE,
    INPUTS,
    THIRDS,
    TIMES,
    check_modes,
    check_robertson,
    check_robertson_at_forty,
    check_second_derivative,
    errors_on_a_stiff_problem,
)

# Orders ---------------------------------------------------------------------------------------


@EVERY_ESDIRK_METHOD
def test_orders_of_one_step(method: Method) -> None:
    """From the solution, a step's error is O(h^(p+1)), and O(h^(q+1)) inside it."""
    points = jnp.linspace(0.0, 1.0, 21)
    assert CLOCK.exact is not None
    assert (method.make().order, method.make().dense_order) == (method.order, method.dense_order)

    def one_step(width: jax.Array, start: jax.Array, u0: jax.Array) -> tuple:
        prob = CLOCK.ode(u0=u0, tspan=(start, start + width))
        sol = dj.solve(prob, method.make(), steps=1, saveat=lambda a, b: a + (b - a) * points)
        return sol.t, sol.u

    starts, widths = np.linspace(0.0, 6.0, 25), np.array(method.widths) / 2
    lanes = jax.vmap(jax.vmap(one_step, in_axes=(None, 0, 0)), in_axes=(0, None, None))
    t, u = jax.jit(lanes)(widths, starts, CLOCK.exact(starts))
    errors = np.max(np.abs(np.asarray(u) - CLOCK.exact(np.asarray(t))), axis=(1, 3))
    assert slope(widths, errors[:, -1]) > method.order + 1 - 0.25
    assert slope(widths, np.max(errors, axis=1)) > method.dense_order + 1 - 0.25


# On a stiff linear problem whose forcing moves, the error of a stiffly accurate method of stage
# order q is C dt^(q+1)/(rate dt): order q = 2 is left of a method that has an explicit first stage
# (HW II, section IV.15). The midpoint rule, which is not stiffly accurate, keeps its own order 2.
@pytest.mark.parametrize(
    ("name", "observed"),
    [
        ("ImplicitEuler", 1),
        ("ImplicitMidpoint", 2),
        ("TRBDF2", 2),
        ("KenCarp4", 2),
        ("Kvaerno5", 2),
    ],
)
def test_order_on_a_stiff_problem(name: str, observed: int) -> None:
    # An odd number: errors of the midpoint rule alternate, and of an even one half cancel.
    errors = errors_on_a_stiff_problem(BY_NAME[name].make(), [0.04, 0.02, 0.01], 21)
    orders = np.log2(errors[:-1] / errors[1:])
    assert np.mean(orders) > observed - 0.3, (errors, orders)


@pytest.mark.parametrize("name", ["ImplicitMidpoint", "KenCarp58"])
def test_order_with_a_dense_mass_matrix(name: str) -> None:
    """M u' = A u + t A 1, explicit in time, with M = A: guards against a lost product with M."""
    assert AFFINE.exact is not None
    errors, method, prob = [], BY_NAME[name], AFFINE.ode(mass_matrix=AFFINE.p)
    for steps in (4, 8):
        sol = dj.solve(prob, method.make(), steps=steps, saveat=np.linspace(0, 1, 7))
        errors.append(np.max(np.abs(np.asarray(sol.u) - AFFINE.exact(np.linspace(0, 1, 7)))))
    assert np.log2(errors[0] / errors[1]) > min(method.order, method.dense_order + 1) - 0.3


# Accuracy and work ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TRBDF2", "Kvaerno3", "Kvaerno4", "KenCarp47", "KenCarp5"])
def test_robertson_by_other_methods(name: str) -> None:
    """Eleven decades of time, where an explicit method stalls; the last save is the end."""
    sol = solve(ROBER, name, 1e-4, saveat=jnp.array([1e2, 1e8, 1e11]))
    assert error(ROBER, sol.u[-1]) < 5e-3
    np.testing.assert_allclose(np.sum(sol.u, axis=1), 1.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("ImplicitEuler", ROBER_DAE),
        ("KenCarp4", ROBER_DAE),
        ("KenCarp4", CHEMAKZO_DAE),
        ("Kvaerno5", CHEMAKZO_DAE),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_algebraic_equations(name: str, case: Case) -> None:
    """A singular mass matrix: an algebraic variable is as accurate as the rest."""
    if name == "ImplicitEuler":
        assert error(case, solve(case, name, 1e-4).u_end) < 0.1
        return
    for rtol in TOLERANCES:
        atol = rtol * (1e-8 if case is ROBER_DAE else 1e-2)
        sol = solve(case, name, rtol, atol=atol)
        assert error(case, sol.u_end) <= 100 * rtol


def test_a_linear_problem_takes_one_iteration_a_stage() -> None:
    """Two in the first stage of all, which cannot know; and later where the rate is measured."""
    rates = jnp.array([1.0, 1e3])
    prob = dj.ODEProblem(lambda u, p, t: -p * (u - jnp.cos(t)), jnp.ones(2), (0.0, 10.0), rates)
    sol = dj.solve(prob, dj.KenCarp4(), rtol=1e-6, atol=1e-6)
    stages = 5 * (int(sol.stats.naccept) + int(sol.stats.nreject))
    assert int(sol.stats.nf) - 3 <= 1.05 * stages
    assert int(sol.stats.nnewton_fail) == 0


def test_saves_meet_the_tolerance_as_steps_do() -> None:
    """On Van der Pol's oscillator, dense output against a solve a hundred times more accurate."""
    prob, points = VDPOL_STIFF.ode(tspan=(0.0, 600.0)), np.linspace(0.0, 600.0, 201)
    fine = dj.solve(prob, dj.Rodas5P(), rtol=1e-9, atol=1e-9, saveat=points, max_steps=20_000)
    for alg in (dj.KenCarp4(), dj.Kvaerno5()):
        sol = dj.solve(prob, alg, rtol=1e-6, atol=1e-6, saveat=points)
        assert np.max(np.abs(np.asarray(sol.u - fine.u))) < 1e-4


def brusselator(n: int) -> dj.ODEProblem:
    """Two substances on a line of n points (HW II, section IV.10, equation (10.14))."""

    def diffusion(w: jax.Array, edge: float) -> jax.Array:
        padded = jnp.pad(w, 1, constant_values=edge)
        return (n + 1) ** 2 / 50 * (padded[2:] - 2 * w + padded[:-2])

    def f(w: jax.Array, p: Any, t: jax.Array) -> jax.Array:
        u, v = w
        du = 1 + u**2 * v - 4 * u + diffusion(u, 1.0)
        return jnp.stack([du, 3 * u - u**2 * v + diffusion(v, 3.0)])

    x = jnp.arange(1, n + 1) / (n + 1)
    return dj.ODEProblem(f, jnp.stack([1 + jnp.sin(2 * jnp.pi * x), jnp.full(n, 3.0)]), (0.0, 10.0))


def end_by_lsoda(prob: dj.ODEProblem) -> np.ndarray:
    """The end of `brusselator` by another code, on a line with u and v of a point side by side."""
    f = jax.jit(lambda t, w: prob.f(w.reshape(-1, 2).T, None, t).T.reshape(-1))
    start, near = np.asarray(prob.u0.T.reshape(-1)), {"lband": 2, "uband": 2}
    sol = solve_ivp(f, prob.tspan, start, "LSODA", rtol=1e-8, atol=1e-8, **near)
    return sol.y[:, -1].reshape(-1, 2).T


def test_matrices_of_a_large_system_are_kept() -> None:
    """Far fewer factorisations than steps, fewer Jacobians; the solution is that without.

    A replay starts without any, and must come to the derivative that differences come to.
    """
    prob = brusselator(reuse.KEPT // 2 + 1)

    def solved(prob: dj.ODEProblem, alg: dj.Algorithm) -> dj.Solution:
        return dj.solve(prob, alg, rtol=1e-5, atol=1e-5, max_steps=128)

    sol = solved(prob, dj.KenCarp4())
    attempts = int(sol.stats.naccept) + int(sol.stats.nreject)
    assert int(sol.stats.nfactor) <= 0.8 * attempts
    assert int(sol.stats.njac) <= 0.5 * attempts
    np.testing.assert_allclose(sol.u_end, end_by_lsoda(prob), atol=2e-4)

    def total(scale: jax.Array) -> jax.Array:
        start = dj.remake(prob, u0=prob.u0 * scale, tspan=(0.0, 0.5))
        sol = dj.solve(start, dj.KenCarp3(), steps=5, adjoint=dj.DiscreteAdjoint(checkpoints=2))
        return jnp.sum(sol.u_end**2)

    slope, e = jax.jit(jax.value_and_grad(total)), 1e-5
    difference = (slope(1.0 + e)[0] - slope(1.0 - e)[0]) / (2 * e)
    np.testing.assert_allclose(slope(1.0)[1], difference, rtol=1e-7)


# Failure --------------------------------------------------------------------------------------


def trap(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    """From t = 0.5 on a field that throws u to and fro across 0.3: stages have no solution."""
    return jnp.where(t < 0.5, -u, 1e20 * jnp.sign(0.3 - u))


def test_a_failed_iteration_is_told() -> None:
    prob = dj.ODEProblem(trap, jnp.ones(1), (0.0, 1.0))
    sol = dj.solve(prob, dj.KenCarp4(), throw=False)
    assert sol.retcode is dj.ReturnCode.newton_failed
    assert int(sol.stats.nnewton_fail) > 10
    assert 0.4 < float(sol.t_end) <= 0.5
    assert np.all(np.isnan(sol.u))
    fixed = dj.solve(prob, dj.KenCarp4(), steps=10, throw=False)
    assert fixed.retcode is dj.ReturnCode.newton_failed
    with pytest.raises(dj.SolveError, match="newton_failed"):
        dj.solve(prob, dj.KenCarp4(), steps=10)


def test_a_field_that_is_not_finite_is_unstable_not_newton_failed() -> None:
    prob = dj.ODEProblem(lambda u, p, t: jnp.where(t < 0.5, -u, jnp.nan), jnp.ones(1), (0.0, 1.0))
    sol = dj.solve(prob, dj.KenCarp4(), throw=False)
    assert sol.retcode in (dj.ReturnCode.unstable, dj.ReturnCode.newton_failed)
    assert float(sol.t_end) == pytest.approx(0.5, abs=1e-6)


def test_the_step_after_a_failed_iteration_does_not_grow() -> None:
    """Guards against a failure that is followed by a tenfold step, and by the next failure."""
    sol = dj.solve(
        VDPOL_STIFF.ode(), dj.Kvaerno5(), rtol=1e-4, atol=1e-4, saveat="steps", max_steps=1000
    )
    assert 0 < int(sol.stats.nnewton_fail) <= 0.45 * int(sol.stats.naccept)


# Derivatives ------------------------------------------------------------------------------------


@EVERY_DERIVATIVE
def test_gradient_of_robertson(adjoint: Any) -> None:
    """At the ends of steps: between them the quasi-stationary second component has five digits."""

    def states(p: jax.Array, adjoint: Any) -> jax.Array:
        prob = dj.ODEProblem(robertson, jnp.asarray(ROBER.u0), (0.0, 4e4), p)
        options = {"rtol": 1e-9, "atol": 1e-13, "saveat": TIMES, "max_steps": 1024}
        options["tstops"] = TIMES
        return dj.solve(prob, dj.Kvaerno5(), adjoint=adjoint, **options).u

    check_robertson(states, adjoint)


def test_steps_of_loose_tolerances_are_taken_again() -> None:
    """Their iterations may stop before it shows that the matrix of the step's start diverges, as
    rounding would ask for: then the sensitivity of what Robertson's reactions conserve was NaN."""

    def mass(u0: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(robertson, u0, ROBER.tspan, ROBER.p)
        return jnp.sum(dj.solve(prob, dj.Kvaerno5(), rtol=1e-4, atol=1e-12).u_end)

    gradient = jax.grad(mass)(jnp.asarray(ROBER.u0))
    np.testing.assert_allclose(gradient, 1.0, rtol=0, atol=1e-6)


def loss(name: str, inputs: tuple) -> jax.Array:
    """A solve whose every argument matters: state, parameters, mass matrix, Jacobian, times."""
    u0, p, mass, end = inputs

    def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.stack([-p[0] * u[0] + jnp.sin(p[1] * t) * u[1], p[1] * u[0] - p[2] * u[1] ** 3])

    def jac(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        zero = jnp.zeros(())
        rows = [[-p[0] + zero, jnp.sin(p[1] * t)], [p[1] + zero, -3 * p[2] * u[1] ** 2]]
        return jnp.array(rows)

    prob = dj.ODEProblem(f, u0, (0.0, end), p, mass_matrix=mass, jac=jac)
    sol = dj.solve(prob, BY_NAME[name].make(), steps=6, saveat=lambda a, b: a + (b - a) * THIRDS)
    return jnp.sum(jnp.sin(sol.u) * jnp.array([[1.0, 2.0]]))


@pytest.mark.parametrize("name", ["ImplicitMidpoint", "KenCarp47"])
def test_reverse_is_forward(name: str) -> None:
    """VJP = JVP to 1e-9 with respect to everything, the mass matrix and the span's end included."""
    check_modes(lambda inputs: loss(name, inputs))


def test_second_derivatives() -> None:
    """Forward over reverse against differences of the gradient."""

    def of_parameters(p: jax.Array) -> jax.Array:
        return loss("TRBDF2", (INPUTS[0], p, INPUTS[2], INPUTS[3]))

    check_second_derivative(of_parameters, INPUTS[1], np.array([1.0, -0.5, 0.7]))


def test_gradient_through_an_algebraic_equation() -> None:
    """The DAE's sensitivities are those of the ODE it stands for."""

    def end(p: jax.Array) -> jax.Array:
        prob = ROBER_DAE.ode(p=p, tspan=(0.0, 40.0), mass_matrix=np.array([1.0, 1.0, 0.0]))
        return dj.solve(prob, dj.Kvaerno5(), rtol=1e-9, atol=1e-13, max_steps=1024).u_end

    check_robertson_at_forty(end)


# Batches, precision, kinds of state ---------------------------------------------------------


def test_lanes_are_single_solves() -> None:
    """Each lane as if alone; one with absurd parameters is flagged and harms no other."""
    factors = np.random.default_rng(0).uniform(0.8, 1.2, (200, 3))
    factors[123, 2] = -1e12
    ps = jnp.asarray(ROBER.p * factors)

    def end(p: jax.Array) -> tuple:
        prob = dj.ODEProblem(robertson, jnp.asarray(ROBER.u0), (0.0, 1e5), p)
        sol = dj.solve(prob, dj.KenCarp4(), rtol=1e-6, atol=1e-10, max_steps=1000, throw=False)
        return sol.u[-1], sol._retcode, sol.stats.nf

    u, codes, nf = jax.jit(jax.vmap(end))(ps)
    assert [i for i, code in enumerate(codes) if code != dj.ReturnCode.success] == [123]
    assert np.all(np.isnan(u[123]))
    single = jax.jit(end)
    for i in (0, 122, 124, 199):
        alone = single(ps[i])
        np.testing.assert_allclose(u[i], alone[0], rtol=1e-6)
        assert abs(int(nf[i]) - int(alone[2])) <= 0.1 * int(alone[2])


def test_gradients_of_lanes_are_single_gradients() -> None:
    """Guards against a rejected step of one lane, replayed beside the others: it cannot be solved,
    and a NaN times zero is one."""

    def end(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(robertson, jnp.asarray(ROBER.u0), (0.0, 4e2), p)
        return dj.solve(prob, dj.KenCarp4(), rtol=1e-5, atol=1e-9, max_steps=128).u_end[0]

    ps = jnp.asarray(ROBER.p * np.array([[1.0], [1.3], [0.6]]))
    single = jax.jit(jax.grad(end))
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(end)))(ps), np.stack([single(p) for p in ps]), rtol=1e-6
    )


def test_stages_for_output_alone() -> None:
    """Saves of lanes are those of one solve each; of pytrees, and in float32."""

    def saves(p: jax.Array) -> dict[str, jax.Array]:
        def f(u: dict, p: jax.Array, t: jax.Array) -> dict:
            return {"x": -p * (u["x"] - jnp.cos(t)), "y": u["x"][:1] - u["y"] ** 3}

        u0 = {"x": jnp.ones(2, p.dtype), "y": jnp.zeros(1, p.dtype)}
        prob = dj.ODEProblem(f, u0, (0.0, 2.0), p)
        return dj.solve(prob, dj.KenCarp47(), saveat=0.1, rtol=1e-5, atol=1e-5, max_steps=64).u

    ps = jnp.array([[1e3, 2.0], [1.0, 3.0], [30.0, 0.1]])
    lanes, alone = jax.jit(jax.vmap(saves))(ps), jax.jit(saves)
    for i, p in enumerate(ps):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, 1e-9), lanes, alone(p))
    single = saves(ps[0].astype(jnp.float32))
    assert single["x"].dtype == jnp.float32
    np.testing.assert_allclose(single["y"], lanes["y"][0], rtol=0, atol=3e-4)


def test_single_precision() -> None:
    """Robertson to 1e5 in float32 throughout, four digits."""
    prob = ROBER.ode(jnp.float32, tspan=(0.0, 1e5))
    sol = dj.solve(prob, dj.KenCarp4(), rtol=1e-4, atol=1e-10)
    assert sol.u.dtype == sol.t.dtype == jnp.float32
    accurate = solve(ROBER, "Rodas5P", 1e-9, saveat=jnp.array([1e5]))
    np.testing.assert_allclose(sol.u_end, accurate.u[0], rtol=5e-4)


@pytest.mark.parametrize("name", ["ImplicitMidpoint", "KenCarp3"])
def test_complex_states(name: str) -> None:
    """u' = (-1 + 20i) u, and the non-holomorphic u' = i conj(u), whose Jacobian is real-linear."""

    def f(u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
        return jnp.stack([(-1 + 20j) * u[0], 1j * jnp.conj(u[1])])

    exact = np.array([np.exp(-1 + 20j), (1 + 1j) * np.exp(1.0) / 2 + (1 - 1j) * np.exp(-1.0) / 2])
    prob = dj.ODEProblem(f, jnp.array([1.0 + 0j, 1.0 + 0j]), (0.0, 1.0))
    ends = [dj.solve(prob, BY_NAME[name].make(), steps=steps).u_end for steps in (100, 200)]
    errors = [np.max(np.abs(end - exact)) for end in ends]
    assert np.log2(errors[0] / errors[1]) > BY_NAME[name].order - 0.2


def test_backwards_and_anywhere() -> None:
    """Back from 1 to 0 with a mass matrix, a Jacobian and time in the field; `sol(t)` between."""
    exact = AFFINE.exact
    assert exact is not None
    u1 = jnp.asarray(exact(np.array([1.0]))[0])
    prob = dj.remake(
        AFFINE.ode(mass_matrix=AFFINE.p), u0=u1, tspan=(1.0, 0.0), jac=lambda u, p, t: p
    )
    sol = dj.solve(prob, dj.Kvaerno5(), rtol=1e-9, atol=1e-9, dense=True)
    np.testing.assert_allclose(sol.u_end, np.ones(3), rtol=1e-7)
    points = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(sol(points), exact(points), rtol=1e-6)


def test_a_jacobian_from_the_user_is_used() -> None:
    """A wrong one slows the iteration down and changes nothing else."""
    p, u0 = 3.0, jnp.array([1.0, 2.0])
    prob = dj.ODEProblem(lambda u, p, t: -p * u**2, u0, (0.0, 1.0), p)
    right = dj.remake(prob, jac=lambda u, p, t: jnp.diag(-2 * p * u))
    wrong = dj.remake(prob, jac=lambda u, p, t: jnp.diag(-p * u))
    plain, good, bad = (dj.solve(q, dj.Kvaerno3(), steps=10) for q in (prob, right, wrong))
    np.testing.assert_allclose(plain.u_end, good.u_end, rtol=1e-14)
    np.testing.assert_allclose(plain.u_end, bad.u_end, rtol=1e-13)
    assert int(plain.stats.nf) == int(good.stats.nf) < int(bad.stats.nf)


# What is compiled ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 8])
def test_one_trajectory_can_be_one_native_function(n: int) -> None:
    """Guards against an operation in the step that keeps XLA from compiling the loop in place."""
    prob = dj.ODEProblem(lambda u, p, t: -p * u**3, jnp.ones(n), (0.0, 1.0), 2.0)

    def end(prob: dj.ODEProblem) -> jax.Array:
        return dj.solve(prob, dj.KenCarp4()).u_end

    for function in (end, jax.grad(lambda prob: jnp.sum(end(prob)), allow_int=True)):
        assert is_native(jax.make_jaxpr(function)(prob).jaxpr)
