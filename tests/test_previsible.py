"""Steps whose sizes follow from the state at their start: refusals that bias nothing, the areas of
Levy and the numbers of weak methods in adaptive solves, and what `solve` takes by default."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jaxtyping import Array

import diffjax as dj

KEY = jax.random.key(23)


def rotating(u: Array, p: Any, t: Any) -> Array:
    x, y, z = u
    return jnp.stack([-y + 0.1 * x, x - 0.2 * y, -z + jnp.sin(t)])


def crossing(u: Array, p: Any, t: Any) -> Array:
    """Noises that do not commute and do not vanish where an element does."""
    x, y, z = u
    rows = [[0.5 + 0.3 * y, 0.2 * x], [0.2 * z, 0.4 + p * x], [0.3 * x, 0.3 + 0.2 * y]]
    return jnp.stack([jnp.stack(row) for row in rows])


# All elements pass zero, some of them often.
CROSSING = dj.SDEProblem(
    rotating, crossing, jnp.array([1.0, 0.0, 0.0]), (0.0, 3.0), jnp.array(0.3), noise="general"
)


def areas(u: Array, p: Any, t: Any) -> Array:
    """(W_1, W_2, int W_1 dW_2) and an element for whose steep diffusion steps are refused."""
    one, zero = jnp.ones_like(u[0]), jnp.zeros_like(u[0])
    rows = [[one, zero], [zero, one], [zero, u[0]], [3 * jnp.sin(3 * u[3]), 2 * jnp.cos(4 * u[3])]]
    return jnp.stack([jnp.stack(row) for row in rows])


AREAS = dj.SDEProblem(
    lambda u, p, t: jnp.zeros_like(u),
    areas,
    jnp.array([0.0, 0.0, 0.0, 1.0]),
    (0.0, 1.0),
    noise="general",
)


@pytest.mark.parametrize(
    "alg", [dj.LambaEM(), dj.RKMilGeneral(terms=1), dj.DRI1()], ids=lambda alg: alg.name
)
def test_refusals_look_at_no_noise(alg: dj.Algorithm) -> None:
    """The first step is refused some times, and then has the same length whatever the noise."""

    @jax.jit
    @jax.vmap
    def first(key: Array) -> tuple[Array, Array]:
        options: dict[str, Any] = {"rtol": 0.1, "atol": 0.1, "max_steps": 64, "throw": False}
        sol = dj.solve(AREAS, alg, key=key, dt=1.0, saveat="steps", **options)
        return sol.t[1], sol.u[1]

    t, u = first(jax.random.split(KEY, 8))
    assert t[0] < 1
    assert np.all(np.asarray(t) == t[0])
    assert np.ptp(np.asarray(u)[:, 3]) > 0


def test_euler_maruyama_has_no_bias_of_selection() -> None:
    """An estimate made of dW refuses steps with a large square of it, and the mean of log u is then
    0.04 too large at any tolerance."""
    prob = dj.SDEProblem(lambda u, p, t: 0 * u, lambda u, p, t: u, jnp.ones(1), (0.0, 1.0))

    @jax.jit
    @jax.vmap
    def gap(key: Array) -> Array:
        sol = dj.solve(prob, dj.LambaEM(), key=key, rtol=3e-3, atol=3e-3)
        return jnp.log(sol.u[-1, 0]) - (sol.noise(1.0)[0] - 0.5)

    gaps = np.asarray(gap(jax.random.split(KEY, 400)))
    error = np.std(gaps) / 20
    assert error < 0.005
    assert abs(np.mean(gaps)) < 4 * error


def test_areas_keep_their_law_when_steps_are_refused() -> None:
    """That over [0, 1] has the density 1/cosh(pi x) (Levy, Wiener's random function, 1951)."""

    def one(key: Array) -> tuple[Array, Array]:
        sol = dj.solve(AREAS, dj.RKMilGeneral(terms=2), key=key, rtol=0.3, atol=0.3, dt=0.5)
        return sol.u[-1], sol.stats.nreject

    u, rejected = jax.jit(jax.vmap(one))(jax.random.split(KEY, 5000))
    x, y, integral, _ = np.asarray(u).T
    area = integral - x * y / 2
    assert np.mean(np.asarray(rejected)) > 0.3

    def law(a: np.ndarray) -> np.ndarray:
        return 2 / np.pi * np.arctan(np.exp(np.pi * a))

    assert scipy.stats.kstest(area, law).pvalue > 1e-3
    assert scipy.stats.kstest(x, "norm").pvalue > 1e-3
    # Given W its variance is (1 + |W|^2)/12; four standard errors.
    assert abs(np.mean(area**2 * (x**2 + y**2)) - 5 / 6) < 0.12


def test_areas_agree_with_the_path() -> None:
    """Given W and its integral the mean of an area over a step of length 1 is H W' - W H', with H
    the mean of the bridge; what is left has a variance of 1/12 (1/4 in all)."""
    times = jnp.linspace(0.0, 1.0, 2)

    @jax.jit
    @jax.vmap
    def one(key: Array) -> tuple[Array, Array]:
        path = dj.noise.VirtualBrownianTree(0.0, 1.0, 2, key)
        u = dj.solve(AREAS, dj.RKMilGeneral(), path=path, steps=1, adaptive=False).u[-1]
        (x, y), (a, b) = u[:2], path.look(times[1]).integral - u[:2] / 2
        return u[2] - x * y / 2, a * y - b * x

    area, mean = np.asarray(one(jax.random.split(KEY, 4000)))
    assert abs(np.mean((area - mean) * mean)) < 4 * np.std((area - mean) * mean) / 4000**0.5
    assert np.var(area - mean) < 1 / 11


def test_solves_come_together_on_the_path() -> None:
    """With the tolerance, on what Euler's method makes of 2**14 values of the same path."""
    steps = 2**14

    def reference(path: dj.noise.NoiseProcess, u0: Array) -> Array:
        t = jnp.linspace(0.0, 1.0, steps + 1)

        def step(u: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
            time, dw = now
            return u + rotating(u, None, time) / steps + crossing(u, 0.3, time) @ dw, None

        return jax.lax.scan(step, u0, (t[:-1], jnp.diff(path(t), axis=0)))[0]

    @jax.jit
    @jax.vmap
    def errors(key: Array) -> tuple[Array, Array]:
        path = dj.noise.VirtualBrownianTree(0.0, 1.0, 2, key)
        prob = dj.remake(CROSSING, tspan=(0.0, 1.0))
        exact = reference(path, prob.u0)

        def one(tol: Array) -> tuple[Array, Array]:
            sol = dj.solve(prob, path=path, rtol=tol, atol=tol, max_steps=20000)
            return jnp.mean((sol.u[-1] - exact) ** 2), sol.stats.naccept

        return jax.lax.map(one, jnp.array([1e-1, 1e-3, 1e-5]))

    squares, accepted = errors(jax.random.split(KEY, 20))
    rms, work = np.sqrt(np.mean(squares, axis=0)), np.mean(accepted, axis=0)
    # Steps shrink as the power 2/3 of the tolerance, errors as the root of the steps or faster.
    assert work[1] < 150, work
    assert work[2] < 2000, work
    assert rms[2] < rms[0] / 6, rms


def test_defaults_succeed_where_elements_pass_zero() -> None:
    """At the default tolerances, with the steps of a method of order 1; Euler's method fails."""

    def one(alg: Any, key: Array) -> tuple[Array, Array]:
        sol = dj.solve(CROSSING, alg, key=key, throw=False)
        return sol.t_end, sol.stats.naccept

    keys = jax.random.split(KEY, 8)
    ends, accepted = jax.jit(jax.vmap(lambda key: one(None, key)))(keys)
    assert np.all(np.asarray(ends) == 3.0)
    assert np.max(np.asarray(accepted)) < 1200
    with pytest.raises(dj.SolveError, match="give atol=, the size below which"):
        dj.solve(CROSSING, dj.LambaEM(), key=KEY)
    dj.solve(CROSSING, dj.LambaEM(), key=KEY, atol=1e-2, rtol=1e-2)


def test_gradients_and_lanes_of_adaptive_areas() -> None:
    """A lane is the solve of its key; the replay draws the same areas, so that the gradient is that
    of differences, over which the steps stay: they are rounded to a few digits."""

    def end(p: Array, key: Array) -> Array:
        options: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2, "max_steps": 256}
        return jnp.sum(dj.solve(CROSSING, p=p, key=key, **options).u_end ** 2)

    keys, p = jax.random.split(KEY, 3), jnp.array(0.3)
    values, slopes = jax.jit(jax.vmap(lambda key: jax.value_and_grad(end)(p, key)))(keys)
    single = jax.jit(end)
    np.testing.assert_allclose([single(p, key) for key in keys], values, rtol=1e-9)
    change = [single(p + 1e-6, key) - single(p - 1e-6, key) for key in keys]
    np.testing.assert_allclose(np.array(change) / 2e-6, slopes, rtol=1e-6)


def test_a_dictionary_in_single_precision_backwards() -> None:
    matrix = {"x": np.array([[1.0, 0.5], [0.0, 2.0]], np.float32), "y": np.ones(2, np.float32)}
    prob = dj.SDEProblem(
        lambda u, p, t: jax.tree.map(jnp.zeros_like, u),
        lambda u, p, t: jax.tree.map(jnp.asarray, matrix),
        {"x": jnp.zeros(2, jnp.float32), "y": jnp.zeros((), jnp.float32)},
        (1.0, 0.0),
        noise="general",
    )
    path = dj.noise.VirtualBrownianTree(jnp.float32(0), jnp.float32(1), 2, KEY)
    sol = dj.solve(prob, dj.RKMilGeneral(terms=2), path=path)
    assert sol.u["x"].dtype == jnp.float32
    moved = path(0.0) - path(1.0)
    np.testing.assert_allclose(sol.u["x"][-1], matrix["x"] @ moved, atol=1e-5)
    np.testing.assert_allclose(sol.u["y"][-1], matrix["y"] @ moved, atol=1e-5)


def test_adaptive_weak_steps() -> None:
    """The second moment of du = -3/2 u dt + 3/10 u dW, with steps refused at the start."""
    prob = dj.SDEProblem(lambda u, p, t: -1.5 * u, lambda u, p, t: 0.3 * u, jnp.ones(1), (0.0, 2.0))

    def one(key: Array) -> tuple[Array, Any]:
        sol = dj.solve(prob, dj.DRI1(), key=key, dt=1.0, rtol=1e-2, atol=1e-3)
        return sol.u[-1, 0] ** 2, (sol.stats.naccept, sol.stats.nreject)

    squares, (accepted, rejected) = jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000))
    squares, exact = np.asarray(squares), np.exp(-2.91 * 2)
    assert np.min(np.asarray(rejected)) >= 1
    assert np.max(np.asarray(accepted)) < 60
    assert abs(np.mean(squares) - exact) < 4 * np.std(squares) / 4000**0.5 + 0.01 * exact


def test_correlated_noises() -> None:
    """Of Milstein's double integrals the means are their covariance; areas want independent ones,
    so that `solve` takes Euler-Maruyama."""
    factor, columns = np.array([[1.0, 0.0], [0.8, 0.6]]), np.array([0.5, 0.7])
    prob = dj.SDEProblem(
        lambda u, p, t: jnp.zeros_like(u),
        lambda u, p, t: u[0] * jnp.asarray(columns)[None],
        jnp.ones(1),
        (0.0, 1.0),
        noise="commutative",
        correlation=factor,
    )
    path = dj.noise.VirtualBrownianTree(0.0, 1.0, 2, KEY)
    sol = dj.solve(prob, rtol=1e-4, atol=1e-4, path=path)
    mixed = columns @ factor
    exact = np.exp(mixed @ np.asarray(path(1.0)) - mixed @ mixed / 2)
    np.testing.assert_allclose(sol.u[-1, 0], exact, rtol=5e-3)
    general = dj.remake(prob, noise="general")

    @jax.jit
    @jax.vmap
    def gap(key: Array) -> Array:
        path = dj.noise.VirtualBrownianTree(0.0, 1.0, 2, key)
        end = dj.solve(general, rtol=1e-3, atol=1e-3, path=path).u[-1, 0]
        return jnp.log(end) - (mixed @ path(1.0) - mixed @ mixed / 2)

    # Half an order of some 2000 steps; noises taken for independent would be 0.8 off.
    assert np.sqrt(np.mean(gap(jax.random.split(KEY, 20)) ** 2)) < 0.03
    mixture = dj.noise.Correlated(path, factor)
    with pytest.raises(ValueError, match="takes independent noises only, which path=Correlated"):
        dj.solve(dj.remake(general, correlation=None), dj.RKMilGeneral(), path=mixture)
