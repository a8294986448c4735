"""RadauIIA5 on stiff and differential-algebraic problems: accuracy, work, derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.algorithms.tableaus import RADAU_IIA_5
from diffjax.linear import reuse
from diffjax.stepping.lanes import is_native
from tests.methods import RADAU
from tests.problems import (
    AFFINE,
    CLOCK,
    ROBER,
    VDPOL_STIFF,
    robertson,
)
from tests.stiff_problems import error, solve
from tests.test_esdirk import brusselator, end_by_lsoda, loss, trap
from tests.test_orders import slope
from tests.test_rosenbrock import (
    TIMES,
    check_modes,
    check_robertson,
    check_second_derivative,
    errors_on_a_stiff_problem,
)

# The tableau ----------------------------------------------------------------------------------


def test_the_tableau() -> None:
    """Collocation at the zeros of Radau's polynomial, and the transformation of its matrix."""
    tableau = RADAU_IIA_5
    c, a = np.array(tableau.c), np.linalg.inv(np.array(tableau.slopes))
    np.testing.assert_allclose(c[:2], [(4 - 6**0.5) / 10, (4 + 6**0.5) / 10], rtol=1e-15)
    for k in range(1, 4):
        np.testing.assert_allclose(a @ c ** (k - 1), c**k / k, rtol=1e-14)
    for k in range(1, 6):
        np.testing.assert_allclose(a[2] @ c ** (k - 1), 1 / k, rtol=1e-14)
    to, back = np.array(tableau.to_modes), np.array(tableau.from_modes)
    gamma, (alpha, beta) = tableau.shift, (tableau.complex_shift.real, tableau.complex_shift.imag)
    modes = [[gamma, 0, 0], [0, alpha, -beta], [0, beta, alpha]]
    np.testing.assert_allclose(to @ back, np.eye(3), atol=1e-15)
    np.testing.assert_allclose(to @ np.linalg.inv(a) @ back, modes, atol=1e-14)
    root = 6**0.5
    printed = np.array([13 + 7 * root, 13 - 7 * root, 1.0]) / 3
    np.testing.assert_allclose(tableau.initial_slope, printed, rtol=1e-14)
    np.testing.assert_allclose(tableau.extrapolation[0], printed, rtol=1e-14)


# Orders ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_orders_of_one_step() -> None:
    """From the solution, a step's error is O(h^6), and O(h^5) inside it."""
    points = jnp.linspace(0.0, 1.0, 21)
    assert CLOCK.exact is not None
    alg = RADAU.make()
    assert (alg.order, alg.dense_order) == (RADAU.order, RADAU.dense_order) == (5, 4)

    def one_step(width: jax.Array, start: jax.Array, u0: jax.Array) -> tuple:
        prob = CLOCK.ode(u0=u0, tspan=(start, start + width))
        sol = dj.solve(prob, alg, steps=1, saveat=lambda a, b: a + (b - a) * points)
        return sol.t, sol.u

    starts, widths = np.linspace(0.0, 6.0, 25), np.array(RADAU.widths) / 4
    lanes = jax.vmap(jax.vmap(one_step, in_axes=(None, 0, 0)), in_axes=(0, None, None))
    t, u = jax.jit(lanes)(widths, starts, CLOCK.exact(starts))
    errors = np.max(np.abs(np.asarray(u) - CLOCK.exact(np.asarray(t))), axis=(1, 3))
    assert slope(widths, errors[:, -1]) > RADAU.order + 1 - 0.25
    assert slope(widths, np.max(errors, axis=1)) > RADAU.dense_order + 1 - 0.25


def test_order_on_a_stiff_problem() -> None:
    """The error is that of stage order 3 over the stiffness, C dt^4/(rate dt): order 3, and tiny
    (HW II, table IV.15.1)."""
    errors = errors_on_a_stiff_problem(RADAU.make(), [0.2, 0.1, 0.05], 10)
    assert np.mean(np.log2(errors[:-1] / errors[1:])) > 2.9
    assert errors[0] < 1e-9


def test_saves_are_exact_for_quartics_in_the_stiff_limit() -> None:
    """Between the ends of steps so long that the solution follows what drives it."""
    rate = 1e9

    def f(u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
        return -rate * (u - t**4) + 4 * t**3

    prob, points = dj.ODEProblem(f, jnp.zeros(1), (0.0, 2.0)), np.linspace(0.0, 2.0, 33)
    sol = dj.solve(prob, RADAU.make(), steps=2, dense=True)
    np.testing.assert_allclose(sol(points)[:, 0], points**4, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_saves_meet_the_tolerance_as_steps_do() -> None:
    """At 1,001 points of Van der Pol's oscillator no more than 3 times the error at the steps."""
    prob, points = VDPOL_STIFF.ode(tspan=(0.0, 600.0)), np.linspace(0.0, 600.0, 1001)
    fine = dj.solve(prob, dj.Rodas5P(), rtol=1e-10, atol=1e-10, dense=True, max_steps=20_000)
    for tol in (1e-4, 1e-8):
        sol = dj.solve(prob, RADAU.make(), rtol=tol, atol=tol, dense=True, saveat="steps")
        steps = sol.t[: int(sol.n)]
        at_steps, at_points = (np.max(np.abs(sol(t) - fine(t))) for t in (steps, points))
        assert at_points < 3 * at_steps < 300 * tol


# Accuracy ------------------------------------------------------------------------------------
# (with bounds on work in `test_stiff_accuracy.py`)


def test_robertson_to_the_end() -> None:
    """Eleven decades of time, where an explicit method stalls; the last save is the end."""
    sol = solve(ROBER, "RadauIIA5", 1e-4, saveat=jnp.array([1e2, 1e8, 1e11]))
    assert error(ROBER, sol.u[-1]) < 1e-3
    np.testing.assert_allclose(np.sum(sol.u, axis=1), 1.0, rtol=0, atol=1e-6)


def test_the_iteration_is_not_trusted_across_a_turn() -> None:
    """Guards against a rate of smooth steps that stops the iteration at its first update where the
    solution turns: that lost two digits at one tolerance in ten."""
    for factor in np.linspace(1.0, 1.8, 21):
        assert error(VDPOL_STIFF, solve(VDPOL_STIFF, "RadauIIA5", 1e-4 * factor).u_end) < 5e-3


@pytest.mark.slow
def test_matrices_of_a_large_system_are_kept() -> None:
    """Far fewer factorisations than steps, fewer Jacobians; a replay starts without any, and must
    come to the derivative that differences come to."""
    prob = brusselator(reuse.KEPT // 2 + 1)
    sol = dj.solve(prob, RADAU.make(), rtol=1e-5, atol=1e-5, max_steps=128)
    attempts = int(sol.stats.naccept) + int(sol.stats.nreject)
    assert int(sol.stats.nfactor) <= 2 * 0.8 * attempts
    assert int(sol.stats.njac) <= 0.6 * attempts
    np.testing.assert_allclose(sol.u_end, end_by_lsoda(prob), atol=2e-4)

    def total(scale: jax.Array) -> jax.Array:
        start = dj.remake(prob, u0=prob.u0 * scale, tspan=(0.0, 0.5))
        return jnp.sum(dj.solve(start, RADAU.make(), steps=2).u_end ** 2)

    slope, e = jax.jit(jax.value_and_grad(total)), 1e-5
    difference = (slope(1.0 + e)[0] - slope(1.0 - e)[0]) / (2 * e)
    np.testing.assert_allclose(slope(1.0)[1], difference, rtol=1e-7)


# Failure --------------------------------------------------------------------------------------


def test_a_failed_iteration_is_told() -> None:
    prob = dj.ODEProblem(trap, jnp.ones(1), (0.0, 1.0))
    sol = dj.solve(prob, RADAU.make(), throw=False)
    assert sol.retcode is dj.ReturnCode.newton_failed
    assert int(sol.stats.nnewton_fail) > 10
    assert 0.4 < float(sol.t_end) <= 0.5
    fixed = dj.solve(prob, RADAU.make(), steps=10, throw=False)
    assert fixed.retcode is dj.ReturnCode.newton_failed
    assert np.all(np.isnan(fixed.u))


# Derivatives ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradient_of_robertson() -> None:
    """Backwards; in `test_reverse_is_forward` both ways agree."""

    def states(p: jax.Array, adjoint: Any) -> jax.Array:
        prob = dj.ODEProblem(robertson, jnp.asarray(ROBER.u0), (0.0, 4e4), p)
        options = {"rtol": 1e-8, "atol": 1e-12, "saveat": TIMES, "max_steps": 512}
        return dj.solve(prob, RADAU.make(), tstops=TIMES, adjoint=adjoint, **options).u

    check_robertson(states, dj.DiscreteAdjoint())


@pytest.mark.slow
def test_reverse_is_forward() -> None:
    """VJP = JVP to 1e-9 with respect to everything, saves inside steps, mass matrix and the span's
    end included; and as differences have it."""
    check_modes(lambda inputs: loss("RadauIIA5", inputs))


@pytest.mark.slow
def test_derivatives_between_steps_of_a_fully_implicit_equation() -> None:
    """Of saves and of `sol(t)`, backwards and by `ForwardMode`."""

    def F(du: jax.Array, u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.stack([du[0] + p * u[0] * u[1], u[1] ** 3 + u[1] - u[0]])

    def between(p: jax.Array, **options: Any) -> jax.Array:
        dae = dj.DAEProblem(F, jnp.zeros(2), jnp.array([1.0, 0.0]), (0.0, 1.0), p)
        times = np.linspace(0.05, 0.95, 7)
        sol = dj.solve(dae, RADAU.make(), saveat=times, dense=True, steps=4, **options)
        return jnp.concatenate([sol.u[:, 0], sol(times[:2] + 0.01)[:, 1]])

    p, weights = jnp.asarray(2.0), jnp.arange(1.0, 10.0)
    reverse = jax.jit(lambda p: jax.vjp(between, p)[1](weights)[0])(p)
    forward = jax.jit(jax.jacfwd(lambda p: between(p, adjoint=dj.ForwardMode())))(p)
    np.testing.assert_allclose(reverse, weights @ forward, rtol=1e-9)


@pytest.mark.slow
def test_second_derivatives() -> None:
    """Forward over reverse against differences of the gradient."""

    def end(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: -p * u**3, jnp.array([1.0, 2.0]), (0.0, 1.0), p)
        return jnp.sum(dj.solve(prob, RADAU.make(), steps=3).u_end ** 2)

    check_second_derivative(end, jnp.asarray(2.0, float), np.asarray(1.0))


# Batches, precision, kinds of state -----------------------------------------------------------


@pytest.mark.slow
def test_lanes_are_single_solves() -> None:
    """Each lane as if alone, its gradient too; one with absurd parameters harms no other."""
    factors = np.random.default_rng(0).uniform(0.8, 1.2, (4, 3))
    factors[2, 2] = -1e12
    ps = jnp.asarray(ROBER.p * factors)

    def end(p: jax.Array) -> tuple:
        prob = dj.ODEProblem(robertson, jnp.asarray(ROBER.u0), (0.0, 4e2), p)
        sol = dj.solve(prob, RADAU.make(), rtol=1e-5, atol=1e-9, max_steps=100, throw=False)
        return sol.u_end[0], sol._retcode

    function = jax.value_and_grad(end, has_aux=True)
    (u, codes), gradients = jax.jit(jax.vmap(function))(ps)
    assert [i for i, code in enumerate(codes) if code != dj.ReturnCode.success] == [2]
    single = jax.jit(function)
    for i in (0, 3):
        (alone, _), gradient = single(ps[i])
        np.testing.assert_allclose(u[i], alone, rtol=1e-6)
        np.testing.assert_allclose(gradients[i], gradient, rtol=1e-5)


def test_single_precision() -> None:
    """Robertson to 1e5 in float32 throughout, four digits."""
    sol = dj.solve(ROBER.ode(jnp.float32, tspan=(0.0, 1e5)), RADAU.make(), rtol=1e-4, atol=1e-10)
    assert sol.u.dtype == sol.t.dtype == jnp.float32
    accurate = solve(ROBER, "Rodas5P", 1e-9, saveat=jnp.array([1e5]))
    np.testing.assert_allclose(sol.u_end, accurate.u[0], rtol=5e-4)


def test_pytrees_and_complex_numbers() -> None:
    """u' = (-1 + 20i) u, and the non-holomorphic u' = i conj(u), whose Jacobian is real-linear."""

    def f(u: dict, p: Any, t: jax.Array) -> dict:
        return {"a": (-1 + 20j) * u["a"], "b": 1j * jnp.conj(u["b"]), "c": -u["c"]}

    u0 = {"a": jnp.array([1.0 + 0j]), "b": jnp.asarray(1.0 + 0j), "c": jnp.ones((2, 1))}
    exact = {
        "a": np.exp(-1 + 20j),
        "b": (1 + 1j) * np.exp(1.0) / 2 + (1 - 1j) * np.exp(-1.0) / 2,
        "c": np.exp(-1.0),
    }
    prob = dj.ODEProblem(f, u0, (0.0, 1.0))
    sol = dj.solve(prob, RADAU.make(), rtol=1e-8, atol=1e-8)
    for name, value in exact.items():
        np.testing.assert_allclose(sol.u_end[name], np.broadcast_to(value, u0[name].shape), 1e-6)


@pytest.mark.slow
def test_backwards_and_anywhere() -> None:
    """Back from 1 to 0 with a mass matrix, a Jacobian and time in the field; `sol(t)` between."""
    exact = AFFINE.exact
    assert exact is not None
    prob = dj.remake(
        AFFINE.ode(mass_matrix=AFFINE.p),
        u0=jnp.asarray(exact(np.array([1.0]))[0]),
        tspan=(1.0, 0.0),
        jac=lambda u, p, t: p,
    )
    sol = dj.solve(prob, RADAU.make(), rtol=1e-9, atol=1e-9, dense=True)
    np.testing.assert_allclose(sol.u_end, np.ones(3), rtol=1e-7)
    points = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(sol(points), exact(points), rtol=1e-6)


# What is compiled -----------------------------------------------------------------------------


def test_one_trajectory_can_be_one_native_function() -> None:
    """Guards against an operation in the step that keeps XLA from compiling the loop in place."""
    for n in (3, 8):
        prob = dj.ODEProblem(lambda u, p, t: -p * u**3, jnp.ones(n), (0.0, 1.0), 2.0)

        def end(prob: dj.ODEProblem) -> jax.Array:
            return dj.solve(prob, RADAU.make()).u_end

        for function in (end, jax.grad(lambda prob: jnp.sum(end(prob)), allow_int=True)):
            assert is_native(jax.make_jaxpr(function)(prob).jaxpr)
