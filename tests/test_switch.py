"""Switching between an explicit and an implicit method, and the default algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

RATES = jnp.asarray([0.04, 3e7, 1e4])


def robertson(u, p, t):
    a, b, c = u
    slow, fast, back = p[0] * a, p[1] * b * b, p[2] * b * c
    return jnp.stack([back - slow, slow - back - fast, fast])


# Mazzia and Magherini, Test set for IVP solvers, release 2.4, problem ROBER: to 1e11.
END = np.asarray([0.2083340149701255e-07, 0.8333360770334713e-13, 0.9999999791665050])
ROBER = dj.ODEProblem(robertson, jnp.asarray([1.0, 0.0, 0.0]), (0.0, 1e11), RATES)


def oscillator(u, p, t):
    return jnp.stack([u[1], p * (1 - u[0] ** 2) * u[1] - u[0]])


STIFF = dj.ODEProblem(oscillator, jnp.asarray([2.0, 0.0]), (0.0, 800.0), 400.0)
MILD = dj.remake(STIFF, tspan=(0.0, 10.0), p=1.0)


def solved(prob, alg=None, **options):
    return dj.solve(prob, alg, rtol=1e-6, atol=1e-9, max_steps=2000, **options)


def test_a_stiff_problem_is_handed_over():
    sol = solved(dj.remake(ROBER, tspan=(0.0, 1e11)))
    np.testing.assert_allclose(sol.u[-1, [0, 2]], END[[0, 2]], rtol=1e-4)
    stiff = dj.solve(ROBER, dj.Rodas5P(), rtol=1e-6, atol=1e-9)
    # The explicit start takes some steps, and no more.
    assert int(sol.stats.naccept) < int(stiff.stats.naccept) + 60
    assert 0 < int(sol.stats.njac) <= int(stiff.stats.njac) + int(stiff.stats.nreject)


def test_a_problem_that_is_not_stays_explicit():
    sol = solved(MILD)
    alone = solved(MILD, dj.Tsit5())
    np.testing.assert_allclose(sol.u, alone.u, rtol=1e-12)
    assert int(sol.stats.njac) == 0
    assert sol.stats.nf == alone.stats.nf


def diffusion(count, t1=1.0):
    """u' = k (u_{i-1} - 2 u_i + u_{i+1}) + cos t on a ring, and the state at its end."""
    angles, k = 2 * np.pi * np.arange(count) / count, 1e4

    def f(u, p, t):
        return k * (jnp.roll(u, 1) - 2 * u + jnp.roll(u, -1)) + jnp.cos(t)

    decay = 2 * k * (1 - np.cos(2 * np.pi / count))
    prob = dj.ODEProblem(f, jnp.sin(angles), (0.0, t1))
    return prob, np.sin(angles) * np.exp(-decay * t1) + np.sin(t1)


def test_many_unknowns():
    """A hundred of them are handed over by default, in a few steps where an explicit method needs
    12,000; with more, whose matrices would be large, what to do is said."""
    prob, end = diffusion(100)
    sol = dj.solve(prob, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(sol.u[-1], end, rtol=1e-5)
    assert int(sol.stats.naccept) < 200
    assert 0 < int(sol.stats.nfactor) < 100
    with pytest.raises(dj.SolveError, match=r"KenCarp4.*jac_sparsity.*GMRES"):
        dj.solve(diffusion(201)[0])


def test_back_and_forth():
    """Between its jumps the relaxation oscillator is stiff, in them it is not."""
    counts = []
    for alg in (dj.AutoTsit5(dj.Rodas5P()), dj.Rodas5P()):
        sol = solved(STIFF, alg)
        counts.append((int(sol.stats.naccept), int(sol.stats.njac)))
        np.testing.assert_allclose(sol.u[-1, 0], solved_by_scipy(), rtol=1e-4)
    (steps, jacobians), (steps_alone, _) = counts
    assert jacobians < 0.7 * steps
    assert steps < 1.5 * steps_alone


def test_a_multistep_method_keeps_what_it_was_handed():
    """Its first steps, of order one, are so short that they would be stable for the explicit
    method; to be sent back for that took a hundred times the steps. The explicit method is steered
    by the order of its own error."""
    n = 100
    rates = jnp.geomspace(1.0, 1e4, n)
    prob = dj.ODEProblem(lambda u, p, t: rates * (jnp.cos(t) - u), jnp.ones(n), (0.0, 10.0))
    steps = {}
    for alg in (dj.AutoTsit5(dj.FBDF()), dj.FBDF()):
        sol = dj.solve(prob, alg, rtol=1e-5, atol=1e-5, max_steps=2000)
        steps[alg.name] = int(sol.stats.naccept)
        exact = (rates**2 * jnp.cos(10.0) + rates * jnp.sin(10.0)) / (1 + rates**2)
        np.testing.assert_allclose(sol.u[-1][1:], exact[1:], atol=2e-4)
    auto, alone = steps.values()
    assert auto < alone + 60
    assert dj.AutoTsit5(dj.FBDF()).error_order == dj.Tsit5().error_order


def solved_by_scipy():
    from scipy.integrate import solve_ivp

    def f(t, u):
        return [u[1], 400.0 * (1 - u[0] ** 2) * u[1] - u[0]]

    out = solve_ivp(f, (0, 800.0), [2.0, 0.0], method="Radau", rtol=1e-10, atol=1e-12)
    return out.y[0, -1]


@pytest.mark.slow
def test_derivatives_across_a_switch():
    """All modes agree, and with the implicit method alone."""
    prob = dj.remake(ROBER, tspan=(0.0, 40.0))
    auto = dj.AutoTsit5(dj.Rosenbrock23(), max_stiff_steps=5)

    def loss(p, alg, adjoint=None):
        sol = dj.solve(
            dj.remake(prob, p=p), alg, rtol=1e-5, atol=1e-8, saveat=20.0, adjoint=adjoint
        )
        return jnp.sum(sol.u @ jnp.asarray([1.0, 1e4, 2.0]))

    def derivative(mode, *how):
        return jax.jit(mode(lambda p: loss(p, *how)))(RATES)

    forward, reverse = (derivative(mode, auto) for mode in (jax.jacfwd, jax.grad))
    np.testing.assert_allclose(reverse, forward, rtol=1e-9)
    segments = derivative(jax.grad, auto, dj.DiscreteAdjoint(checkpoints=8))
    np.testing.assert_allclose(segments, forward, rtol=1e-8)
    np.testing.assert_allclose(reverse, derivative(jax.grad, dj.Rodas3P()), rtol=1e-3)


def test_lanes_switch_for_themselves():
    ps = jnp.asarray([1.0, 200.0, 50.0])

    @jax.jit
    @jax.vmap
    def lane(p):
        sol = solved(dj.remake(STIFF, p=p, tspan=(0.0, 20.0)), saveat=5.0)
        return sol.u, sol.stats

    us, stats = lane(ps)
    for k, p in enumerate(ps):
        sol = solved(dj.remake(STIFF, p=p, tspan=(0.0, 20.0)), saveat=5.0)
        np.testing.assert_allclose(us[k], sol.u, rtol=1e-6, atol=1e-9)
        assert int(stats.njac[k]) == int(sol.stats.njac)
    assert int(stats.njac[0]) == 0
    assert int(stats.njac[1]) > 0


def test_single_precision_trees_and_backward_time():
    def field(u, p, t):
        return {"fast": -p * (u["fast"] - jnp.cos(t)), "slow": -u["slow"]}

    u0 = {"fast": jnp.float32(1.0), "slow": jnp.ones(2, jnp.float32)}
    p = jnp.float32(1e4)
    prob = dj.ODEProblem(field, u0, (0.0, 3.0), p)
    sol = dj.solve(prob, rtol=1e-4, atol=1e-4)
    assert sol.u["fast"].dtype == jnp.float32
    np.testing.assert_allclose(sol.u["fast"][-1], np.cos(3.0), atol=1e-3)
    np.testing.assert_allclose(sol.u["slow"][-1], np.exp(-3.0), rtol=1e-3)
    assert int(sol.stats.njac) > 0

    def turned(u, p, t):
        return jax.tree_util.tree_map(jnp.negative, field(u, p, -t))

    back = dj.solve(dj.ODEProblem(turned, u0, (0.0, -3.0), p), rtol=1e-4, atol=1e-4)
    for x, y in zip(
        jax.tree_util.tree_leaves(back.u), jax.tree_util.tree_leaves(sol.u), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-4)


def test_dense_output_of_both_methods():
    sol = solved(dj.remake(STIFF, tspan=(0.0, 10.0)), saveat="steps", dense=True)
    inside = (sol.t[: int(sol.n) - 1] + sol.t[1 : int(sol.n)]) / 2
    exact = solved(dj.remake(STIFF, tspan=(0.0, 10.0)), dj.Rodas5P(), saveat=inside)
    np.testing.assert_allclose(sol(inside)[:, 0], exact.u[:, 0], rtol=1e-5)


def test_defaults_that_do_not_switch():
    big = dj.ODEProblem(lambda u, p, t: -u, jnp.ones(60), (0.0, 1.0))
    assert int(dj.solve(big).stats.njac) == 0
    gradient = jax.grad(
        lambda p: dj.solve(MILD, p=p, rtol=1e-6, adjoint=dj.BacksolveAdjoint()).u[-1, 0]
    )(1.0)
    assert np.isfinite(gradient)


@pytest.mark.slow
def test_a_large_system_switches_if_its_jacobian_is_sparse():
    """Heat in a rod of 60 points; its slowest mode is what is left."""
    x = jnp.arange(1, 61) / 61

    def heat(u, p, t):
        full = jnp.pad(u, 1)
        return 61.0**2 * (full[2:] - 2 * u + full[:-2])

    prob = dj.ODEProblem(heat, jnp.sin(jnp.pi * x), (0.0, 1.0), jac_sparsity=(1, 1))
    sol = dj.solve(prob, rtol=1e-5, atol=1e-9)
    rate = (2 * 61 * np.sin(np.pi / 122)) ** 2
    np.testing.assert_allclose(sol.u[-1], np.sin(np.pi * x) * np.exp(-rate), rtol=1e-2)
    assert int(sol.stats.njac) > 0
    assert int(sol.stats.naccept) < 150


def test_methods_that_cannot_switch():
    with pytest.raises(ValueError, match=r"nonstiff must be an explicit method.*RK4"):
        dj.AutoSwitch(dj.RK4(), dj.Rodas5P())
    with pytest.raises(ValueError, match=r"stiff must be an implicit method.*Tsit5"):
        dj.AutoTsit5(dj.Tsit5())


@pytest.mark.slow
def test_gradients_of_saves_by_lanes_of_larger_systems() -> None:
    """Of a system whose matrices are not inverted, with lanes that never are stiff: guards against
    factors of zeros, whose solves are NaN, where the implicit method has not stepped."""

    def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        return p * (jnp.roll(u, 1) - 2 * u + jnp.roll(u, -1)) - u**3

    prob = dj.ODEProblem(f, jnp.linspace(0.5, 1.5, 26), (0.0, 1.0), jnp.asarray(1.0))
    options = {"rtol": 1e-8, "atol": 1e-8, "max_steps": 128}

    def total(p: jax.Array) -> jax.Array:
        alg = dj.AutoTsit5(dj.Rodas4())
        return jnp.sum(dj.solve(prob, alg, p=p, saveat=0.25, **options).u ** 2)

    ps, e = jnp.array([1.0, 1e3]), 1e-3
    values = jax.jit(jax.vmap(total))
    # They err by some e**2, and steps that change by 1e-8 / e.
    differences = (values(ps * (1 + e)) - values(ps * (1 - e))) / (2 * e * ps)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(total)))(ps), differences, rtol=1e-3)
