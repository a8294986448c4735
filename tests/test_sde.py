"""Stochastic solves: every transformation, gradients on a given path, saves, the same path always.

Methods are tested in `test_sde_methods.py`; here one or two stand for all.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffjax as dj

ALPHA, BETA, U0 = 1.01, 0.87, 0.5
KEY = jax.random.key(17)
P = jnp.array([ALPHA, BETA])
EM_STEPS = {"alg": dj.EM(), "steps": 50}
ADAPTIVE = {"alg": dj.SOSRI(), "rtol": 1e-3, "atol": 1e-4}


def drift(u: Any, p: Any, t: Any) -> Any:
    return p[0] * u


def diffusion(u: Any, p: Any, t: Any) -> Any:
    return p[1] * u


PROB = dj.SDEProblem(drift, diffusion, jnp.array([U0, 2 * U0]), (0.0, 1.0), P)


def end(p: jax.Array, key: jax.Array, **options: Any) -> jax.Array:
    return dj.solve(PROB, p=p, key=key, **options).u[-1]


@pytest.mark.parametrize("options", [EM_STEPS, ADAPTIVE], ids=["fixed", "adaptive"])
def test_lanes_are_the_solves_of_their_keys(options: dict[str, Any]) -> None:
    """vmap = loop, jit = eager, and another number of lanes changes nothing."""
    keys = jax.random.split(KEY, 6)
    lanes = jax.jit(jax.vmap(lambda key: end(P, key, **options)))(keys)
    alone = [end(P, key, **options) for key in keys]
    np.testing.assert_allclose(lanes, jnp.stack(alone), rtol=1e-12)
    assert len(np.unique(np.round(np.asarray(lanes), 12))) == lanes.size


@pytest.mark.parametrize("options", [EM_STEPS, ADAPTIVE], ids=["fixed", "adaptive"])
def test_gradients_agree(options: dict[str, Any]) -> None:
    """Reverse, forward, checkpoints and ForwardMode; the end of the span with fixed steps."""

    def loss(p: jax.Array, adjoint: Any = None) -> jax.Array:
        return jnp.sum(end(p, KEY, adjoint=adjoint, **options) ** 2)

    reverse = jax.jit(jax.grad(loss))(P)
    others = (
        jax.jit(jax.jacfwd(loss))(P),
        jax.jit(jax.grad(lambda p: loss(p, dj.DiscreteAdjoint(checkpoints=7))))(P),
        jax.jit(jax.grad(lambda p: loss(p, dj.ForwardMode())))(P),
    )
    for other in others:
        np.testing.assert_allclose(other, reverse, rtol=1e-9)


def test_a_gradient_is_that_of_a_scan() -> None:
    """Against the same method written out on the same path, by parameters and initial state."""
    t = np.linspace(0.0, 1.0, 41)
    W = np.concatenate([np.zeros((1, 2)), np.random.default_rng(0).normal(size=(40, 2))]).cumsum(0)
    W = W * np.sqrt(t[1])
    h, dW = t[1], jnp.asarray(np.diff(W, axis=0))

    def ours(p: jax.Array, u0: jax.Array) -> jax.Array:
        path = dj.noise.NoiseGrid(t, W)
        sol = dj.solve(PROB, dj.EM(), p=p, u0=u0, steps=40, path=path, saveat=0.25)
        return jnp.sum(sol.u**2)

    def scan(p: jax.Array, u0: jax.Array) -> jax.Array:
        def one(u: jax.Array, dw: jax.Array) -> tuple[jax.Array, jax.Array]:
            u = u + h * p[0] * u + p[1] * u * dw
            return u, u

        us = jnp.concatenate([u0[None], jax.lax.scan(one, u0, dW)[1]])
        return jnp.sum(us[::10] ** 2)

    both = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(P, PROB.u0)
    wanted = jax.jit(jax.value_and_grad(scan, argnums=(0, 1)))(P, PROB.u0)
    for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10)


def test_a_pathwise_gradient_converges() -> None:
    """dG/dp of G = sum of u(t_i)**2 / 2 along the path, to its closed form, as the steps shrink."""
    times = np.linspace(0.0, 1.0, 5)
    prob = dj.remake(PROB, u0=jnp.array([U0]))

    def errors(steps: int) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            path = dj.noise.VirtualBrownianTree(0.0, 1.0, 1, key)

            def G(p: jax.Array, u0: jax.Array) -> jax.Array:
                sol = dj.solve(prob, dj.SRIW1(), p=p, u0=u0, steps=steps, path=path, saveat=times)
                return jnp.sum(sol.u**2) / 2

            by_p, by_u0 = jax.grad(G, argnums=(0, 1))(P, prob.u0)
            w = path(times)[:, 0]
            u = U0 * jnp.exp((ALPHA - BETA**2 / 2) * times + BETA * w)
            wanted = jnp.stack([jnp.sum(times * u**2), jnp.sum((w - BETA * times) * u**2)])
            gaps = jnp.concatenate([by_p - wanted, by_u0 - jnp.sum(u**2) / U0])
            return gaps / jnp.sum(u**2)

        gaps = jax.jit(jax.vmap(one))(jax.random.split(KEY, 200))
        return jnp.sqrt(jnp.mean(gaps**2, axis=0))

    coarse, fine = errors(16), errors(64)
    # Strong order 3/2: a quarter of the step is an eighth of the error.
    assert np.all(np.asarray(fine) < np.asarray(coarse) / 6)


def test_the_gradient_of_an_expectation() -> None:
    """d/d(alpha) E u(1) = u0 exp(alpha), through an ensemble; of a method whose bias is far below
    the standard error."""

    def mean(p: jax.Array) -> tuple[jax.Array, jax.Array]:
        ensemble = dj.EnsembleProblem(dj.remake(PROB, p=p, u0=jnp.array([U0])))
        options: dict[str, Any] = {"steps": 32, "adaptive": False, "trajectories": 20_000}
        sol = dj.solve(ensemble, dj.SRIW1(), key=KEY, **options)
        return jnp.mean(sol.u), jnp.std(sol.u)

    (_, spread), slope = jax.value_and_grad(mean, has_aux=True)(P)
    # du/dalpha is t u along a path, so the spread of u(1) is that of the derivative too.
    error = float(spread) / np.sqrt(20_000)
    wanted = U0 * np.exp(ALPHA)
    assert error < 0.02 * wanted
    assert abs(slope[0] - wanted) < 4 * error


def test_the_same_key_is_the_same_path_at_any_tolerance() -> None:
    """Solves of one key come together on the closed form on its path, whatever their steps."""
    options: dict[str, Any] = {"alg": dj.SOSRI(), "max_steps": 10**5, "key": KEY}
    sols = [dj.solve(PROB, rtol=tol, atol=tol, **options) for tol in (1e-2, 1e-4, 1e-6)]
    w = sols[0].noise(1.0)
    exact = PROB.u0 * jnp.exp((ALPHA - BETA**2 / 2) + BETA * w)
    gaps = [np.abs(sol.u[-1] - exact).max() for sol in sols]
    assert gaps[2] < 1e-4
    assert gaps[2] < gaps[0] / 20


@pytest.mark.usefixtures("optimised")
def test_rejected_steps_do_not_spoil_the_law() -> None:
    """W(1) is normal though many steps are refused, which a redrawn increment would not be."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Steps are refused where the noise is large: the diffusion is steep there.
        prob = dj.SDEProblem(
            lambda u, p, t: jnp.zeros_like(u),
            lambda u, p, t: jnp.stack([jnp.ones_like(u[0]), 3 * jnp.sin(3 * u[1])]),
            jnp.array([0.0, 1.0]),
            (0.0, 1.0),
        )
        sol = dj.solve(prob, dj.SRIW1(), key=key, rtol=0.3, atol=0.3, dt=0.5, throw=False)
        return sol.u[-1, 0], sol.stats.nreject

    ends, rejected = jax.jit(jax.vmap(one))(jax.random.split(KEY, 10_000))
    # In some four steps each.
    assert np.mean(np.asarray(rejected)) > 1
    assert scipy.stats.kstest(np.asarray(ends), "norm").pvalue > 1e-3


@pytest.mark.parametrize("alg", [dj.EM(), dj.SOSRI()], ids=["fixed", "adaptive"])
def test_saves_are_stepped_on(alg: dj.Algorithm) -> None:
    """On the grid of the steps, off it, at both ends, twice; Brownian motion itself is exact."""
    unit = dj.SDEProblem(
        lambda u, p, t: jnp.zeros_like(u),
        lambda u, p, t: jnp.ones_like(u),
        jnp.zeros(1),
        (0.0, 1.0),
    )
    path = dj.noise.VirtualBrownianTree(0.0, 1.0, 1, KEY)
    fixed = {"dt": 0.1, "adaptive": False} if alg.error_order is None else {"rtol": 0.1}
    for saveat in (0.25, np.array([0.0, 0.1, 0.1, 0.33, 1.0])):
        sol = dj.solve(unit, alg, path=path, saveat=saveat, **fixed)
        np.testing.assert_allclose(sol.u[:, 0], path(sol.t)[:, 0], atol=1e-12)


@pytest.mark.parametrize("alg", [dj.EM(), dj.SRIW1()], ids=lambda alg: alg.name)
def test_fixed_steps_end_on_save_times_that_are_traced(alg: dj.Algorithm) -> None:
    """As on those that are known, in every lane and derivative: the increments scale with steps."""

    def saved(ts: jax.Array, p: jax.Array = P) -> jax.Array:
        sol = dj.solve(PROB, alg, p=p, key=KEY, dt=0.1, adaptive=False, saveat=ts, tstops=(0.6,))
        return jnp.concatenate([sol.u, sol.noise(ts)])

    times = jnp.array([[0.0, 0.33, 0.33, 1.0], [0.1, 0.2, 0.21, 0.9999999], [0.6, 0.7, 0.8, 0.9]])
    known = jnp.stack([saved(ts) for ts in times])
    np.testing.assert_allclose(jax.jit(jax.vmap(saved))(times), known, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(saved)(times), known, rtol=1e-12)

    def loss(ts: jax.Array, p: jax.Array) -> jax.Array:
        return jnp.sum(saved(ts, p) ** 2)

    by_p = jax.jit(jax.vmap(jax.grad(loss, 1), (0, None)))(times, P)
    known = jnp.stack([jax.grad(loss, 1)(ts, P) for ts in times])
    np.testing.assert_allclose(by_p, known, rtol=1e-10)
    times, h = jnp.array([0.1, 0.33, 0.64, 0.9]) + 0.02, 1e-6
    slope = jax.jit(jax.grad(loss))(times, P)
    moved = [loss(times + x, P) for x in h * np.concatenate([np.eye(4), -np.eye(4)])]
    difference = (np.array(moved[:4]) - np.array(moved[4:])) / (2 * h)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_traced_times_backwards_in_single_precision() -> None:
    """Of a span that is traced too; what is left over of the steps adds no noise."""
    prob = dj.remake(PROB, u0=jnp.ones(2, jnp.float32), p=P.astype(jnp.float32))

    @jax.jit
    def solved(start: jax.Array) -> Any:
        sol = dj.solve(
            prob,
            dj.EM(),
            tspan=(start, jnp.float32(0)),
            key=KEY,
            steps=16,
            saveat=lambda t0, t1: jnp.stack([t0, t0 - 0.3, t1]),
        )
        return sol.u, sol.stats.naccept, sol.noise(jnp.array([0.0, 0.7], jnp.float32))

    u, taken, noise = solved(jnp.float32(1))
    known = dj.solve(prob, dj.EM(), tspan=(1.0, 0.0), key=KEY, steps=16, saveat=[1.0, 0.7, 0.0])
    assert u.dtype == jnp.float32
    assert taken == known.stats.naccept == 17
    np.testing.assert_allclose(u, known.u, rtol=1e-5)
    np.testing.assert_allclose(noise, known.noise(np.array([0.0, 0.7])), rtol=1e-5)


@pytest.mark.parametrize("options", [EM_STEPS, ADAPTIVE], ids=["fixed", "adaptive"])
def test_the_noise_can_be_read_back(options: dict[str, Any]) -> None:
    """And drives the same solution when it is given as a path; a resumed solve has other noise."""
    sol = dj.solve(PROB, key=KEY, saveat="steps", **options)
    t = sol.t[: int(sol.n)]
    w = sol.noise(t)
    np.testing.assert_allclose(w[0], 0.0, atol=1e-14)
    euler = dj.solve(PROB, dj.EM(), steps=50, path=dj.noise.NoiseGrid(t, w))
    wanted = sol if options is EM_STEPS else dj.solve(PROB, dj.EM(), steps=50, path=sol.noise.noise)
    tolerance = 1e-12 if options is EM_STEPS else 0.1
    np.testing.assert_allclose(euler.u_end, wanted.u_end, rtol=tolerance)
    later = dj.solve(PROB, key=KEY, tspan=(1.0, 2.0), resume=sol.final, **options)
    assert np.all(np.abs(later.noise(1.5) - sol.noise(0.5)) > 1e-6)


def test_a_key_is_the_same_increments_for_every_method() -> None:
    """Whatever else it draws: the integral over the step, or numbers for the areas of Levy."""
    unit = dj.SDEProblem(
        lambda u, p, t: jnp.zeros_like(u),
        lambda u, p, t: jnp.eye(3),
        jnp.zeros(3),
        (0.0, 1.0),
        noise="general",
    )
    diagonal = dj.remake(unit, g=lambda u, p, t: jnp.ones_like(u), noise="diagonal")
    algs = (unit, dj.EM()), (unit, dj.RKMilGeneral(terms=1)), (diagonal, dj.SRIW1())
    for prob, alg in algs:
        sol = dj.solve(prob, alg, steps=2, adaptive=False, key=KEY)
        np.testing.assert_allclose(sol.u_end, sol.noise(1.0), rtol=1e-12)


@pytest.mark.parametrize("options", [EM_STEPS, ADAPTIVE], ids=["fixed", "adaptive"])
def test_a_path_can_be_negated(options: dict[str, Any]) -> None:
    """By a number that is known or traced, in single precision and backwards in time."""
    single = {"u0": PROB.u0.astype(jnp.float32), "p": P.astype(jnp.float32)}
    prob = dj.remake(PROB, tspan=(1.0, 0.0), **single)

    def noise(antithetic: Any) -> jax.Array:
        sol = dj.solve(prob, key=KEY, antithetic=antithetic, **options)
        return sol.noise(jnp.array([0.7, 0.0]))

    both = jax.jit(jax.vmap(noise))(jnp.array([False, True]))
    assert both.dtype == jnp.float32
    np.testing.assert_allclose(both[0], noise(False), rtol=1e-5)
    np.testing.assert_array_equal(both[1], -both[0])


def test_single_precision_pytrees_and_backward_time() -> None:
    """A dictionary in float32; a Stratonovich equation solved there and back on one path."""
    state = {"x": jnp.ones(2, jnp.float32), "y": jnp.ones((), jnp.float32)}
    prob = dj.SDEProblem(
        lambda u, p, t: jax.tree.map(lambda x: -x, u),
        lambda u, p, t: jax.tree.map(lambda x: p * x, u),
        state,
        (0.0, 1.0),
        jnp.float32(0.3),
        interpretation="stratonovich",
    )
    path = dj.noise.VirtualBrownianTree(jnp.float32(0), jnp.float32(1), 3, KEY)
    settings: dict[str, Any] = {"steps": 2000, "path": path}
    there = dj.solve(prob, dj.RKMil(), **settings)
    w = np.asarray(path(1.0))
    assert there.u["x"].dtype == jnp.float32
    np.testing.assert_allclose(there.u["x"][-1], np.exp(-1 + 0.3 * w[:2]), rtol=5e-3)
    np.testing.assert_allclose(there.u["y"][-1], np.exp(-1 + 0.3 * w[2]), rtol=5e-3)
    back = dj.solve(prob, dj.RKMil(), u0=there.u_end, tspan=(1.0, 0.0), **settings)
    np.testing.assert_allclose(back.u["x"][-1], 1.0, rtol=5e-3)


def test_noise_of_every_kind() -> None:
    """Scalar, general and correlated noise are what they say: one driver, a matrix, a mixture."""
    zero = lambda u, p, t: jnp.zeros_like(u)  # noqa: E731
    path3 = dj.noise.VirtualBrownianTree(0.0, 1.0, 3, KEY)
    matrix = np.array([[1.0, 0.5, 0.0], [0.0, 2.0, 1.0]])
    general = dj.SDEProblem(
        zero, lambda u, p, t: jnp.asarray(matrix), jnp.zeros(2), (0.0, 1.0), noise="general"
    )
    sol = dj.solve(general, dj.LambaEM(), path=path3)
    np.testing.assert_allclose(sol.u[-1], matrix @ path3(1.0), atol=1e-12)
    scalar = dj.SDEProblem(
        zero, lambda u, p, t: jnp.ones_like(u), jnp.zeros(2), (0.0, 1.0), noise="scalar"
    )
    path1 = dj.noise.VirtualBrownianTree(0.0, 1.0, 1, KEY)
    sol = dj.solve(scalar, dj.SOSRI(), path=path1)
    np.testing.assert_allclose(sol.u[-1], [path1(1.0)[0]] * 2, atol=1e-12)
    factor = np.array([[1.0, 0.0], [0.8, 0.6]])
    mixed = dj.SDEProblem(
        zero,
        lambda u, p, t: jnp.ones_like(u),
        jnp.zeros(2),
        (0.0, 1.0),
        noise="additive",
        correlation=factor,
    )
    path2 = dj.noise.VirtualBrownianTree(0.0, 1.0, 2, KEY)
    sol = dj.solve(mixed, path=path2)
    np.testing.assert_allclose(sol.u[-1], factor @ path2(1.0), atol=1e-12)


def _bad(**changes: Any) -> dj.SDEProblem:
    return dj.remake(PROB, **changes)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: dj.solve(PROB, dj.EM(), dt=0.1), ValueError, "needs key="),
        (lambda: dj.solve(PROB, dj.EulerHeun(), dt=0.1, key=KEY), ValueError, "interpretation="),
        (lambda: dj.solve(_bad(noise="general"), dj.SOSRI(), key=KEY), ValueError, "noise="),
        (lambda: dj.solve(_bad(noise="additive"), key=KEY), ValueError, "does not depend on u"),
        (
            lambda: dj.solve(_bad(g=lambda u, p, t: u[0]), dj.EM(), dt=0.1, key=KEY),
            ValueError,
            "g must return the shape",
        ),
        (
            lambda: dj.solve(_bad(noise="general", noise_dim=3), dj.EM(), dt=0.1, key=KEY),
            ValueError,
            "g must return the shape",
        ),
        (lambda: _bad(noise="white"), ValueError, "noise must be"),
        (lambda: _bad(correlation=2 * np.eye(2)), ValueError, "rows of length one"),
        (
            lambda: dj.solve(PROB, path=dj.noise.NoiseGrid(np.arange(2.0), np.zeros((2, 2)))),
            ValueError,
            "does not know the noise between",
        ),
        (
            lambda: dj.solve(
                PROB, dj.EM(), dt=0.1, path=dj.noise.VirtualBrownianTree(0.0, 1.0, 3, KEY)
            ),
            ValueError,
            "must have 2 components",
        ),
        (
            lambda: dj.solve(
                PROB,
                dj.SRIW1(),
                dt=0.1,
                adaptive=False,
                path=dj.noise.NoiseGrid(np.arange(2.0), np.zeros((2, 2))),
            ),
            ValueError,
            "needs the integral",
        ),
        (
            lambda: dj.solve(PROB, dj.EM(), dt=0.1, key=KEY, adjoint=dj.GaussAdjoint()),
            TypeError,
            "cannot differentiate a problem of kind SDEProblem",
        ),
        (
            lambda: jax.grad(lambda t: dj.solve(PROB, tspan=(0.0, t), key=KEY).u.sum())(1.0),
            ValueError,
            "no derivative by time",
        ),
        (
            lambda: dj.solve(dj.ODEProblem(drift, jnp.ones(1), (0.0, 1.0), P), dj.Tsit5(), key=KEY),
            ValueError,
            "key is for stochastic problems",
        ),
        (
            lambda: dj.solve(dj.ODEProblem(drift, jnp.ones(1), (0.0, 1.0), P), antithetic=True),
            ValueError,
            "antithetic is for stochastic problems",
        ),
    ],
)
def test_bad_input_is_refused(run: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run()


def test_a_span_that_is_differentiated() -> None:
    """Of fixed steps the noise scales with the span: u0 (1 + alpha h + beta sqrt(h) z) by h."""
    one = dj.remake(PROB, u0=jnp.array([U0]))

    def single(t1: jax.Array) -> jax.Array:
        return dj.solve(one, dj.EM(), tspan=(0.0, t1), steps=1, key=KEY).u[-1, 0]

    u = single(jnp.asarray(1.0))
    z = (u - U0 - ALPHA * U0) / (BETA * U0)
    slope = jax.grad(single)(jnp.asarray(1.0))
    np.testing.assert_allclose(slope, ALPHA * U0 + BETA * U0 * z / 2, rtol=1e-12)
