"""Callbacks of the library, against closed forms and published results."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.derivatives import close

pytestmark = pytest.mark.slow


def test_positive_domain() -> None:
    """u' = -|u| falls without bound once below zero. The bounds are those of
    SciML/DiffEqCallbacks.jl, test/domain_tests.jl, after Shampine et al. (2005): there of the
    points where the callback has acted and the end, at the default rtol of 1e-3. At the other steps
    the method's own error of u' = -u is 4.2e-4 then, at t = 1.7, long before anything is negative;
    all steps are within the bounds at a tenth of the rtol."""
    prob = dj.ODEProblem(lambda u, p, t: -jnp.abs(u), jnp.ones(1), (0.0, 40.0))
    options: dict[str, Any] = {"saveat": "steps", "max_steps": 512}
    naive = dj.solve(prob, dj.BS3(), **options)
    assert abs(naive.u_end[0] - np.exp(-40)) > 9e4
    for rtol in (1e-3, 1e-4):
        sol = dj.solve(prob, dj.BS3(), callback=dj.PositiveDomain(), rtol=rtol, **options)
        t, u = np.asarray(sol.t[: sol.n]), np.asarray(sol.u[: sol.n, 0])
        acted = u == 0
        assert np.any(acted[:-1])
        error = np.abs(u - np.exp(-t))[acted if rtol == 1e-3 else slice(None)]
        assert np.max(error) < 9.9e-5
        assert np.sqrt(np.mean(error**2)) < 4.5e-5
        assert error[-1] < 4.3e-18
        assert np.min(u) >= 0
        assert sol.events.n == 0
    with pytest.raises(ValueError, match="needs adaptive steps"):
        dj.solve(prob, dj.RK4(), dt=0.1, callback=dj.PositiveDomain())


def test_manifold_projection() -> None:
    """An oscillator that a coarse method would wind outwards stays on its circle; x / y at the end
    is a derivative's business too: the flow of radius 1 scales with the starting point."""
    callback = dj.ManifoldProjection(lambda u, p, t: jnp.sum(u["x"] ** 2) - p)

    def solve(p: jax.Array) -> Any:
        prob = dj.ODEProblem(
            lambda u, p, t: {"x": jnp.stack([u["x"][1], -u["x"][0]])},
            {"x": jnp.stack([jnp.zeros_like(p), jnp.sqrt(p)])},
            (0.0, 20.0),
            p,
        )
        sol = dj.solve(prob, dj.BS3(), callback=callback, rtol=1e-4, atol=1e-4)
        return sol.u["x"][-1], (sol.u["x"][-1], sol.events.n)

    p = jnp.asarray(1.7)
    slope, (u, n) = jax.jit(jax.jacrev(solve, has_aux=True))(p)
    assert n == 0
    # On the manifold to rounding, along it to the method's error.
    close(jnp.sum(u**2), p, 1e-14)
    close(u, np.sqrt(1.7) * np.asarray([np.sin(20), np.cos(20)]), 0.0, 2e-2)
    # The derivative of |u|^2 = p.
    close(2 * jnp.dot(u, slope), 1.0, 1e-12)


def test_derivatives_of_a_projection() -> None:
    """The nearest point of a circle, and its second derivative, by both modes."""
    project = dj.ManifoldProjection(lambda u, p, t: u @ u - p**2).affect
    assert project is not None
    u, p, t = jnp.asarray([0.6, 0.9]), jnp.asarray(1.3), jnp.asarray(0.0)

    def ours(u: Any, p: Any) -> jax.Array:
        return project.value(u, p, t)

    def exact(u: Any, p: Any) -> jax.Array:
        return p * u / jnp.sqrt(u @ u)

    for derivative in (lambda f: f, jax.jacrev, lambda f: jax.jacfwd(jax.jacrev(f, 1), 0)):
        got, wanted = (jax.jit(derivative(f))(u, p) for f in (ours, exact))
        close(got, wanted, 1e-10, 1e-12)


def test_steady_state_ends_a_solve() -> None:
    """u' = 1 - u comes within abstol of its end at a known time."""
    prob = dj.ODEProblem(lambda u, p, t: 1 - u, jnp.zeros(2), (0.0, 100.0))
    for abstol, reltol in ((1e-5, 0.0), (0.0, 1e-5)):
        sol = dj.solve(
            prob, dj.Tsit5(), callback=dj.TerminateSteadyState(abstol, reltol), rtol=1e-8, atol=1e-8
        )
        assert sol.retcode == dj.ReturnCode.terminated
        assert jnp.max(jnp.abs(1 - sol.u_end)) <= 1e-5
        assert sol.t_end < 40
    late = dj.TerminateSteadyState(1e-5, min_t=50.0)
    assert dj.solve(prob, dj.Tsit5(), callback=late).t_end >= 50
    sde = dj.SDEProblem(lambda u, p, t: -u, lambda u, p, t: u, jnp.ones(1), (0.0, 1.0))
    with pytest.raises(TypeError, match="needs a problem whose derivative"):
        dj.solve(sde, dj.EM(), dt=0.1, callback=late, key=jax.random.key(0))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="tolerance must be a number from 0"):
        dj.PositiveDomain(-1.0)
    with pytest.raises(TypeError, match="g must be a function"):
        dj.ManifoldProjection(1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="reltol must be a number from 0"):
        dj.TerminateSteadyState(reltol=-1.0)


def test_saving_callback_saves_at_times_of_its_own():
    """Of u' = -p u, beside saves of the solve, of every step, or of the end; with gradients."""
    times = jnp.array([0.0, 0.25, 0.5, 0.75])
    square = dj.SavingCallback(lambda u, p, t: {"square": u[0] ** 2, "t": t}, times)
    third = dj.SavingCallback(lambda u, p, t: p * u, lambda t0, t1: t0 + (t1 - t0) * times)

    def solve(p, **options):
        prob = dj.ODEProblem(lambda u, p, t: -p * u, jnp.array([1.0]), (0.0, 1.0), p)
        tolerances = {"rtol": 1e-9, "atol": 1e-9}
        return dj.solve(prob, dj.Tsit5(), callback=(square, third), **tolerances, **options)

    p = jnp.array(2.0)
    for options, rows in (({"saveat": 0.5}, 3), ({}, 1), ({"saveat": "steps"}, None)):
        sol = solve(p, **options)
        assert rows is None or sol.u.shape == (rows, 1)
        n = int(sol.n)
        np.testing.assert_allclose(sol.u[:n, 0], np.exp(-2 * np.asarray(sol.t[:n])), rtol=1e-7)
        first, second = sol.saved
        np.testing.assert_allclose(first.u["square"], np.exp(-4 * np.asarray(times)), rtol=1e-7)
        np.testing.assert_array_equal(first.u["t"], times)
        np.testing.assert_allclose(second.u[:, 0], 2 * np.exp(-2 * np.asarray(times)), rtol=1e-7)
        assert int(first.n) == 4
    slope = jax.jit(jax.grad(lambda p: solve(p, saveat=0.5).saved[0].u["square"][2]))(p)
    np.testing.assert_allclose(slope, -2 * 0.5 * np.exp(-2.0), rtol=1e-6)
    lanes = jax.vmap(lambda p: solve(p).saved[1].u[-1, 0])(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(lanes, [np.exp(-0.75), 2 * np.exp(-1.5)], rtol=1e-7)
    with pytest.raises(ValueError, match="saveat must lie inside"):
        solve(p, tspan=(0.0, 0.6))
    with pytest.raises(ValueError, match="saveat must say when"):
        dj.SavingCallback(lambda u, p, t: u, None)
