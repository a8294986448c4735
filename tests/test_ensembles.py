"""An ensemble is the loop over its problems, whatever the tile."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.problems import LOTKA_VOLTERRA, lotka_volterra

P = jnp.asarray(LOTKA_VOLTERRA.p)
PROB = dj.ODEProblem(lotka_volterra, jnp.asarray(LOTKA_VOLTERRA.u0), (0.0, 3.0), P)
KEY = jax.random.key(3)
OPTIONS: dict[str, Any] = {"saveat": 0.5, "rtol": 1e-7, "atol": 1e-7, "max_steps": 128}


def varied(prob: dj.Problem, i: jax.Array, key: jax.Array) -> dj.Problem:
    return dj.remake(prob, p=prob.p * (1 + 0.1 * jax.random.normal(key, (4,))))


def solve(count: int, prob: dj.Problem = PROB, **options: Any) -> Any:
    made = {k: options.pop(k) for k in ("output_func", "reduction", "init") if k in options}
    ensemble = dj.EnsembleProblem(prob, varied, **made)
    options = {"key": KEY, **OPTIONS, **options}
    return dj.solve(ensemble, dj.Tsit5(), trajectories=count, **options)


def test_is_the_loop() -> None:
    """Trajectory i is a solve of problem i, however many there are and however they are tiled."""
    sol = solve(7)
    assert sol.u.shape == (7, 7, 2)
    np.testing.assert_array_equal(sol.t, np.arange(7) * 0.5)
    alone = dj.solve(varied(PROB, 4, jax.random.fold_in(KEY, 4)), dj.Tsit5(), **OPTIONS)
    np.testing.assert_allclose(sol.u[4], alone.u, rtol=1e-12)
    np.testing.assert_allclose(sol[4].u_end, alone.u_end, rtol=1e-12)
    assert sol[4].retcode == dj.ReturnCode.success
    assert int(sol[4].stats.naccept) == int(alone.stats.naccept)
    np.testing.assert_allclose(solve(5, batch_size=2).u, sol.u[:5], rtol=1e-12)
    assert len(sol) == 7
    assert int(sol.failed) == 0


@pytest.mark.parametrize("batch_size", [None, 3])
def test_gradients(batch_size: int | None) -> None:
    """Reverse and forward, tiled or not: the mean of the gradients of the trajectories."""

    def mean(p: jax.Array) -> jax.Array:
        return jnp.mean(solve(4, dj.remake(PROB, p=p), batch_size=batch_size).u ** 2)

    def alone(p: jax.Array, key: jax.Array) -> jax.Array:
        member = varied(dj.remake(PROB, p=p), jnp.zeros(()), key)
        return jnp.mean(dj.solve(member, dj.Tsit5(), **OPTIONS).u ** 2)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    wanted = jnp.mean(jax.jit(jax.vmap(jax.grad(alone), (None, 0)))(P, keys), axis=0)
    np.testing.assert_allclose(jax.grad(mean)(P), wanted, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(mean))(P), wanted, rtol=1e-10)


def test_a_reduction_sees_every_trajectory_once() -> None:
    sol = solve(
        7,
        batch_size=3,
        reduction=lambda acc, outs: acc + outs.sum(0),
        init=0.0 * P[:2],
        output_func=lambda sol, i: sol.u[-1] + i.astype(float),
    )
    np.testing.assert_allclose(sol.u, solve(7).u[:, -1].sum(0) + 21.0, rtol=1e-12)
    assert sol.retcode is None
    assert int(sol.returned[0]) == 7
