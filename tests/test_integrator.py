"""Walking a solve step by step, under the transformations, and what it must equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj


def decay(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    return -p * u


def walked(prob: dj.ODEProblem, alg: dj.Algorithm, **options: object) -> tuple[dj.Integrator, int]:
    """The integrator at the end, and the number of steps that it took."""
    integrator, steps = dj.init(prob, alg, **options), 0
    while not integrator.done:
        integrator, steps = dj.step(integrator), steps + 1
        assert steps < 1000
    return integrator, steps


PROB = dj.ODEProblem(decay, jnp.array([1.0, 2.0]), (0.0, 2.0), jnp.array(1.5))


@pytest.mark.parametrize(
    ("alg", "options"),
    [(dj.Tsit5(), {"rtol": 1e-8, "atol": 1e-10}), (dj.RK4(), {"dt": 0.01})],
    ids=["adaptive", "fixed"],
)
def test_walk_ends_where_the_equation_says(alg: dj.Algorithm, options: dict[str, float]) -> None:
    integrator, steps = walked(PROB, alg, **options)
    sol = dj.solve(PROB, alg, **options)
    assert float(integrator.t) == 2.0
    assert steps == int(sol.stats.naccept)
    np.testing.assert_allclose(integrator.u, np.array([1.0, 2.0]) * np.exp(-3.0), rtol=1e-7)


def test_walk_backwards_with_a_dict_state() -> None:
    prob = dj.ODEProblem(
        lambda u, p, t: {"x": -u["x"], "y": u["x"]},
        {"x": jnp.array(np.exp(-1.0)), "y": jnp.array(0.0)},
        (1.0, 0.0),
    )
    integrator, _ = walked(prob, dj.Tsit5(), rtol=1e-9, atol=1e-12)
    assert float(integrator.t) == 0.0
    np.testing.assert_allclose(integrator.u["x"], 1.0, rtol=1e-8)
    np.testing.assert_allclose(integrator.u["y"], np.exp(-1.0) - 1.0, rtol=1e-7)


def test_step_under_jit_vmap_and_grad() -> None:
    """One step of fixed size is the method's polynomial: RK4 on u' = -p u, closed form."""

    def one_step(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(decay, jnp.array([1.0]), (0.0, 1.0), p)
        return dj.step(dj.init(prob, dj.RK4(), dt=0.5)).u[0]

    p = jnp.array([0.5, 1.0, 2.0])
    z = -0.5 * np.asarray(p)
    polynomial = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    slope = -0.5 * (1 + z + z**2 / 2 + z**3 / 6)
    np.testing.assert_allclose(jax.jit(jax.vmap(one_step))(p), polynomial, rtol=1e-14)
    # Forward mode: the loop that repeats rejected attempts has no reverse pass.
    np.testing.assert_allclose(jax.vmap(jax.jacfwd(one_step))(p), slope, rtol=1e-14)


def test_second_step_traces_nothing() -> None:
    traced = 0

    def counting(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        nonlocal traced
        traced += 1
        return -p * u

    prob = dj.ODEProblem(counting, jnp.array([1.0]), (0.0, 1.0), jnp.array(1.0))
    integrator = dj.step(dj.init(prob, dj.Tsit5()))
    before = traced
    dj.step(integrator)
    assert traced == before
