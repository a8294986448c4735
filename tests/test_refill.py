"""Lanes that go on with another trajectory when one has ended change nothing but the time it takes.

With a hundred states sixteen lanes fill the cache, so that some dozens of trajectories share them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.stepping import refill
from diffjax.stepping.refill import lanes_in_cache

COUNT = 70
KEY = jax.random.key(5)
START = jnp.linspace(0.5, 1.5, 100)
# Stability bounds the steps: the last take some sixty times as many as the first.
RATES = jnp.asarray(np.random.default_rng(0).permutation(np.geomspace(1.0, 300.0, COUNT)))


def towards_cosine(u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
    return -p * (u - jnp.cos(t))


def solve(prob: dj.Problem, alg: dj.Algorithm, count: int = COUNT, **options: Any) -> Any:
    ensemble = dj.EnsembleProblem(prob, lambda prob, i, key: dj.remake(prob, p=prob.p * RATES[i]))
    return dj.solve(ensemble, alg, trajectories=count, throw=False, **options)


def test_ordinary_equations() -> None:
    """Saves, counts, and trajectories that end before their time; and a plain `vmap`."""
    assert 4 * lanes_in_cache(START) <= COUNT
    prob = dj.ODEProblem(towards_cosine, START, (2.0, 0.0), jnp.asarray(-1.0))
    options: dict[str, Any] = {"saveat": 0.25, "max_steps": 150}
    sol, alone = (solve(prob, dj.BS3(), batch_size=n, **options) for n in (None, 10))
    assert 0 < int(sol.failed) < COUNT // 2
    np.testing.assert_array_equal(sol.retcode, alone.retcode)
    np.testing.assert_array_equal(sol.stats.naccept, alone.stats.naccept)
    np.testing.assert_allclose(sol.u, alone.u, rtol=1e-12)
    lanes = jax.jit(
        jax.vmap(lambda p: dj.solve(prob, dj.BS3(), p=-p, throw=False, **options).u_end)
    )
    np.testing.assert_allclose(lanes(RATES), sol.solutions.u_end, rtol=1e-12)


def test_gradients() -> None:
    """Which are taken by tiles of sixteen."""

    def mean(p: jax.Array, size: int | None) -> jax.Array:
        prob = dj.ODEProblem(towards_cosine, START, (0.0, 1.0), p)
        return jnp.mean(solve(prob, dj.BS3(), batch_size=size, max_steps=200).u ** 2)

    got, wanted = (jax.value_and_grad(mean)(jnp.asarray(1.0), size) for size in (None, 10))
    np.testing.assert_allclose(got, wanted, rtol=1e-10)


def test_stochastic_equations_on_a_mesh() -> None:
    """In single precision: the paths of each device are those of their keys."""
    prob = dj.SDEProblem(
        lambda u, p, t: -p * u,
        lambda u, p, t: 0.1 * u * jnp.sqrt(p),
        START.astype(jnp.float32),
        (0.0, 1.0),
        jnp.asarray(0.1, jnp.float32),
    )
    options: dict[str, Any] = {"key": KEY, "rtol": 1e-2, "atol": 1e-2}
    mesh = jax.make_mesh((4,), ("a",))
    shared = RATES.astype(jnp.float32)
    ensemble = dj.EnsembleProblem(
        prob, lambda prob, i, key: dj.remake(prob, p=prob.p * shared[i % COUNT])
    )
    options["trajectories"] = mesh.size * 4 * lanes_in_cache(prob.u0)
    sol = dj.solve(ensemble, dj.SOSRI(), mesh=mesh, **options)
    alone = dj.solve(ensemble, dj.SOSRI(), batch_size=20, **options)
    np.testing.assert_array_equal(sol.stats.naccept, alone.stats.naccept)
    # Rounding of states of size one, some of which have decayed.
    np.testing.assert_allclose(sol.u, alone.u, rtol=1e-5, atol=1e-7)


def jumping() -> dj.Problem:
    decay = dj.ODEProblem(towards_cosine, FEW, (0.0, 1.0), jnp.asarray(0.1))
    return dj.JumpProblem(decay, dj.VariableRateJump(lambda u, p, t: 1 + u[0] ** 2, raised))


def raised(u: jax.Array, p: Any, t: Any) -> jax.Array:
    return u + 0.5


FEW = jnp.linspace(0.5, 1.5, 3)
EVENTS = (
    dj.ContinuousCallback(lambda u, p, t: u[0] - 0.8, raised),
    dj.PresetTimeCallback(jnp.asarray([0.3, 0.61]), lambda u, p, t: 0.5 * u),
)
KINDS = {
    "events": (
        dj.ODEProblem(towards_cosine, FEW, (0.0, 1.0), jnp.asarray(0.1)),
        dj.BS3(),
        {"callback": EVENTS, "saveat": 0.25},
    ),
    "algebraic": (
        dj.DAEProblem(
            lambda du, u, p, t: jnp.stack([du[0] + p * u[0], u[1] - u[0], du[2] + u[2]]),
            jnp.zeros(3),
            FEW,
            (0.0, 1.0),
            jnp.asarray(0.1),
        ),
        dj.DFBDF(),
        {"saveat": 0.25},
    ),
    "jumps": (jumping(), dj.BS3(), {"key": KEY}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_problems(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With events, of several steps behind one another, and with jumps, on eight lanes."""
    prob, alg, options = KINDS[kind]

    def member(prob: Any, i: jax.Array, key: jax.Array) -> Any:
        inner = prob.prob if kind == "jumps" else prob
        inner = dj.remake(inner, p=inner.p * RATES[i])
        return dj.remake(prob, prob=inner) if kind == "jumps" else inner

    monkeypatch.setattr(refill, "_CACHE", 8 * refill.step_bytes(FEW))
    assert refill.is_crowd(40, lanes_in_cache(FEW))
    ensemble = dj.EnsembleProblem(prob, member)
    options = {"trajectories": 40, "throw": False, "max_steps": 500} | options
    sol, alone = (dj.solve(ensemble, alg, batch_size=n, **options) for n in (None, 20))
    np.testing.assert_array_equal(sol.retcode, alone.retcode)
    np.testing.assert_array_equal(sol.stats.naccept, alone.stats.naccept)
    np.testing.assert_array_equal(sol.stats.nevents, alone.stats.nevents)
    np.testing.assert_allclose(sol.u, alone.u, rtol=1e-10)


def test_what_takes_no_steps_of_an_equation_is_not_refilled() -> None:
    """Many trajectories of a pure jump process, or of a steady state, by an algorithm of theirs."""
    leaves = dj.ConstantRateJump(lambda u, p, t: p * u[0].astype(p.dtype), lambda u, p, t: u - 1)
    process = dj.JumpProblem(
        dj.DiscreteProblem(jnp.asarray([20]), (0.0, 1.0), jnp.ones(())), leaves
    )
    steady = dj.SteadyStateProblem(lambda u, p, t: p - u, jnp.zeros(1), jnp.ones(1))

    def states(prob: Any, alg: Any) -> Any:
        ensemble = dj.EnsembleProblem(prob)
        return jax.eval_shape(
            lambda key: dj.solve(ensemble, alg, trajectories=10_000, key=key).u, jax.random.key(0)
        )

    assert states(process, dj.SSAStepper()).shape == (10_000, 1, 1)
    assert states(steady, dj.SSRootfind()).shape[0] == 10_000


def test_memory_of_a_reduction_does_not_grow_with_the_trajectories() -> None:
    """By default, of ten million paths no more than of a thousand: about eight for each lane are
    alive, and of each path its tree of noise only while a lane is at it."""
    prob = dj.SDEProblem(lambda u, p, t: -u, lambda u, p, t: 0.1 * u, START, (0.0, 1.0))

    def mean(key: jax.Array, count: int) -> jax.Array:
        ensemble = dj.EnsembleProblem(prob, reduction=dj.EnsembleMoments())
        sol = dj.solve(ensemble, dj.LambaEM(), trajectories=count, key=key, throw=False)
        return sol.u.mean

    def temporary(count: int) -> int:
        program = jax.jit(mean, static_argnums=1).lower(KEY, count).compile()
        analysis = program.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporary(10_000_000) < 1.1 * temporary(1_000) < 30e6
