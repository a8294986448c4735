"""An ensemble is the loop over its problems, whatever the tile."""

from functools import cache
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
    noise = jax.random.normal(key, (4,), prob.p.dtype)
    return dj.remake(prob, p=prob.p * (1 + 0.1 * noise))


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


@cache
def mean_of_gradients() -> jax.Array:
    """Of four trajectories, each differentiated alone."""

    def alone(p: jax.Array, key: jax.Array) -> jax.Array:
        member = varied(dj.remake(PROB, p=p), jnp.zeros(()), key)
        return jnp.mean(dj.solve(member, dj.Tsit5(), **OPTIONS).u ** 2)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    return jnp.mean(jax.jit(jax.vmap(jax.grad(alone), (None, 0)))(P, keys), axis=0)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_gradients(batch_size: int | None) -> None:
    """Reverse and forward, tiled or not: the mean of the gradients of the trajectories."""

    def mean(p: jax.Array) -> jax.Array:
        return jnp.mean(solve(4, dj.remake(PROB, p=p), batch_size=batch_size).u ** 2)

    np.testing.assert_allclose(jax.grad(mean)(P), mean_of_gradients(), rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(mean))(P), mean_of_gradients(), rtol=1e-10)


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


def test_stochastic_paths_by_their_own_keys() -> None:
    """Of an Ornstein-Uhlenbeck process: path i is that of its key; moments against the closed form.

    The bounds are four standard deviations of the estimates from 4,000 paths.
    """
    prob = dj.SDEProblem(
        lambda u, p, t: -p * u, lambda u, p, t: jnp.ones_like(u), jnp.ones(1), (0.0, 1.0), 2.0
    )

    def paths(count: int, **options: Any) -> jax.Array:
        options = {"dt": 0.01, "saveat": 0.5, "key": KEY, **options}
        return dj.solve(dj.EnsembleProblem(prob), dj.EM(), trajectories=count, **options).u

    u = paths(4000)
    key = jax.random.fold_in(KEY, 7)
    alone = dj.solve(prob, dj.EM(), dt=0.01, saveat=0.5, key=key)
    np.testing.assert_allclose(u[7], alone.u, rtol=1e-12)
    mesh = jax.make_mesh((4,), ("a",))
    np.testing.assert_allclose(paths(12, mesh=mesh, batch_size=2), u[:12], rtol=1e-12)
    # The variance of Euler's path after n steps of h: h (1 - a^2n) / (1 - a^2), a = 1 - 2 h.
    a = 0.98
    for row, n in ((1, 50), (2, 100)):
        var = 0.01 * (1 - a ** (2 * n)) / (1 - a**2)
        assert abs(float(u[:, row].mean()) - a**n) < 4 * np.sqrt(var / 4000)
        assert abs(float(u[:, row].var()) - var) < 4 * var * np.sqrt(2 / 4000)


def test_antithetic_pairs() -> None:
    """What is odd in the noise has no variance: of a linear equation with additive noise the mean
    of a pair is the mean. Of a geometric Brownian motion the means are still right; in units of
    the mean squared a path has the variance q - 1 and two of a pair the covariance 1/q - 1, with
    q = exp(beta^2)."""
    key = jax.random.key(41)
    start, alpha, beta, count = jnp.ones(2), 0.3, 0.5, 20_000
    growth = jnp.stack([-2.0, alpha])
    prob = dj.SDEProblem(
        lambda u, p, t: growth * u,
        lambda u, p, t: jnp.stack([jnp.ones(()), beta * u[1]]),
        start,
        (0.0, 1.0),
    )

    def paths(count: int, **options: Any) -> jax.Array:
        ensemble = dj.EnsembleProblem(prob)
        given = {"dt": 1 / 64, "adaptive": False, "key": key, "antithetic": True, **options}
        return dj.solve(ensemble, dj.SRIW1(), trajectories=count, **given).u[:, 0]

    u = paths(count)
    pairs = u.reshape(count // 2, 2, 2).mean(axis=1)
    # The method's own mean, which is that of a Taylor polynomial.
    step = 1 - 2 / 64 + (2 / 64) ** 2 / 2
    np.testing.assert_allclose(pairs[:, 0], step**64, rtol=1e-12)
    assert jnp.std(u[:, 0]) > 0.4
    mean, q = np.exp(alpha), np.exp(beta**2)
    var = mean**2 * ((q - 1) + (1 / q - 1)) / 2
    assert abs(float(pairs[:, 1].mean()) - mean) < 4 * np.sqrt(var / (count // 2))
    np.testing.assert_allclose(pairs[:, 1].var(), var, rtol=0.15)
    np.testing.assert_allclose(u[:, 1].var(), mean**2 * (q - 1), rtol=0.05)
    # A pair has the key of its number, whatever the tile.
    alone = dj.solve(prob, dj.SRIW1(), steps=64, adaptive=False, key=jax.random.fold_in(key, 1))
    few = paths(5, batch_size=2)
    np.testing.assert_allclose(few[2], alone.u[0], rtol=1e-12)
    np.testing.assert_allclose(few, u[:5], rtol=1e-12)


def test_inside_jit_vmap_and_float32() -> None:
    """Backwards, in single precision, and for several parameters at once."""
    start = dj.remake(PROB, u0=PROB.u0.astype(jnp.float32), tspan=(1.0, 0.0))

    def ends(scale: jax.Array) -> jax.Array:
        prob = dj.remake(start, p=scale * P.astype(jnp.float32))
        return solve(5, prob, batch_size=2, saveat=None, rtol=1e-5, atol=1e-5).u[:, 0]

    scales = jnp.asarray([1.0, 1.1], jnp.float32)
    got = jax.jit(jax.vmap(ends))(scales)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[1], ends(scales[1]), rtol=1e-5)


def test_pytree_states_closures_and_callable_modules() -> None:
    """What prob_func and output_func close over is differentiated."""
    prob = dj.ODEProblem(lambda u, p, t: {"x": -p * u["x"]}, {"x": jnp.ones(())}, (0.0, 1.0))

    def total(rates: jax.Array, weight: jax.Array) -> jax.Array:
        ensemble = dj.EnsembleProblem(
            prob,
            lambda prob, i, key: dj.remake(prob, p=rates[i]),
            lambda sol, i: weight * sol.u["x"][-1],
            lambda acc, outs: acc + jnp.sum(weight * outs),
            0.0,
        )
        sol = dj.solve(ensemble, trajectories=3, batch_size=2, rtol=1e-8, atol=1e-8)
        assert sol.t is None or sol.t.shape == (3, 1)
        return sol.u

    rates, weight = jnp.asarray([0.5, 1.0, 1.5]), jnp.asarray(2.0)
    gradients = jax.jit(jax.grad(total, (0, 1)))(rates, weight)
    np.testing.assert_allclose(gradients[0], -4.0 * np.exp(-rates), rtol=1e-6)
    np.testing.assert_allclose(gradients[1], 4.0 * np.sum(np.exp(-rates)), rtol=1e-6)


def test_nothing_is_traced_twice() -> None:
    """A second eager call runs the program of the first; the field is traced a fixed number."""
    traced = []

    def field(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        traced.append(1)
        return -u

    prob = dj.ODEProblem(field, jnp.ones(2), (0.0, 1.0), P)
    for key in (KEY, jax.random.key(4)):
        solve(6, prob, key=key, save_idxs=slice(1), batch_size=2)
        first = len(traced) if key is KEY else first
    assert len(traced) == first


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """In rounds, the last of them shorter: the same numbers."""
    sol = solve(7, progress=True, batch_size=2)
    np.testing.assert_allclose(sol.u, solve(7).u, rtol=1e-12)
    assert int(sol.returned[0]) == 7
    assert "7/7" in capsys.readouterr().err


ENSEMBLE = dj.EnsembleProblem(PROB, varied)
PLAIN = dj.EnsembleProblem(PROB, reduction=lambda acc, outs: acc, init=0.0)
CASES: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "missing": (ENSEMBLE, {}, ValueError, "needs trajectories="),
    "zero": (ENSEMBLE, {"trajectories": 0}, ValueError, "trajectories must be a positive"),
    "float": (ENSEMBLE, {"trajectories": 3.0}, ValueError, "trajectories must be a positive"),
    "batch": (ENSEMBLE, {"trajectories": 3, "batch_size": 0}, ValueError, "batch_size must be"),
    "mesh": (ENSEMBLE, {"trajectories": 3, "mesh": "cpu"}, TypeError, "mesh must be a jax"),
    "key": (ENSEMBLE, {"trajectories": 3, "key": 1}, TypeError, "key must be a key"),
    "pairs": (ENSEMBLE, {"trajectories": 3, "antithetic": 1}, TypeError, "antithetic of an"),
    "resume": (ENSEMBLE, {"trajectories": 3, "resume": 1}, ValueError, "resume has no meaning"),
    "member": (
        dj.EnsembleProblem(PROB, lambda prob, i, key: prob.p),
        {"trajectories": 3},
        TypeError,
        "prob_func must return a problem",
    ),
    "fold": (
        PLAIN,
        {"trajectories": 3, "mesh": jax.make_mesh((1,), ("a",))},
        TypeError,
        "reduction on a mesh",
    ),
    "shape": (
        dj.remake(PLAIN, reduction=lambda acc, outs: outs),
        {"trajectories": 3},
        ValueError,
        "reduction must return",
    ),
    "one": (PROB, {"trajectories": 3}, ValueError, "needs many problems"),
}


@pytest.mark.parametrize(("prob", "options", "error", "message"), CASES.values(), ids=CASES.keys())
def test_bad_arguments(prob: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dj.solve(prob, dj.Tsit5(), **options)


def test_bad_problems() -> None:
    with pytest.raises(ValueError, match="reduction needs init="):
        dj.EnsembleProblem(PROB, reduction=lambda acc, outs: acc)
    with pytest.raises(ValueError, match="init is the accumulator"):
        dj.EnsembleProblem(PROB, init=0.0)
    with pytest.raises(ValueError, match="brings its own"):
        dj.EnsembleProblem(PROB, reduction=dj.EnsembleMoments(), init=0.0)
    with pytest.raises(TypeError, match="prob must be the problem"):
        dj.EnsembleProblem(ENSEMBLE)
    with pytest.raises(TypeError, match="prob_func must be a function"):
        dj.EnsembleProblem(PROB, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"solved by dj\.solve"):
        dj.init(ENSEMBLE, dj.Tsit5())
