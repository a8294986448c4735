"""Jumps on differential equations, and parameters that events change."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffjax as dj
from diffjax import ConstantRateJump, VariableRateJump

KINDS = pytest.mark.parametrize("kind", [ConstantRateJump, VariableRateJump])


def rate(u, p, t):
    return p


def shot(u, p, t):
    return u + 1.0


def shot_noise(kind, p=2.0, t1=10.0, u0=0.2):
    """u' = -u, jumps of one at the rate p."""
    ode = dj.ODEProblem(lambda u, p, t: -u, jnp.array([u0]), (0.0, t1), jnp.asarray(p))
    return dj.JumpProblem(ode, kind(rate, shot))


@pytest.mark.usefixtures("optimised")
@KINDS
def test_mean_and_variance_of_shot_noise(kind):
    """The public problem: E u(t) = u0 e^-t + p (1 - e^-t), var u(t) = p (1 - e^-2t) / 2."""
    keys, times = jax.random.split(jax.random.key(0), 20000), jnp.array([2.0, 10.0])

    @jax.jit
    @jax.vmap
    def path(key):
        sol = dj.solve(shot_noise(kind), dj.BS3(), key=key, saveat=times, max_events=1)
        return sol.u[:, 0], sol.stats.nevents

    u, count = map(np.asarray, path(keys))
    times = np.asarray(times)
    mean = 0.2 * np.exp(-times) + 2 * (1 - np.exp(-times))
    error = np.std(u, axis=0) / np.sqrt(len(keys))
    assert np.all(np.abs(np.mean(u, axis=0) - mean) < 4 * error)
    assert np.all(error < 0.006 * mean)
    variance = 1 - np.exp(-2 * times)
    spread = np.sqrt(np.var((u - mean) ** 2, axis=0) / len(keys))
    assert np.all(np.abs(np.var(u, axis=0) - variance) < 4 * spread)
    # The number of jumps has the law of Poisson.
    assert abs(np.mean(count) - 20) < 4 * np.sqrt(20 / len(keys))
    assert abs(np.var(count) - 20) < 4 * np.sqrt((20 + 2 * 20**2) / len(keys))


def test_jump_times_of_a_variable_rate_have_their_law_at_any_tolerance():
    """The integral of the rate up to the first jump is exponential: rate 1 + u with u = e^t."""
    ode = dj.ODEProblem(lambda u, p, t: u, jnp.array([1.0]), (0.0, 6.0))
    prob = dj.JumpProblem(ode, VariableRateJump(lambda u, p, t: 1 + u[0], lambda u, p, t: 0 * u))
    keys = jax.random.split(jax.random.key(1), 2000)

    @jax.jit
    def first(rtol):
        solve = jax.vmap(lambda key: dj.solve(prob, dj.Tsit5(), key=key, rtol=rtol, atol=1e-9))
        return solve(keys).events.t[:, 0]

    loose, tight = first(1e-3), first(1e-9)
    assert np.max(np.abs(loose - tight)) < 2e-3
    for t in (loose, tight):
        t = np.asarray(t)
        u = np.sort(1 - np.exp(-(t + np.exp(t) - 1)))
        distance = np.max(np.abs(u - (np.arange(len(u)) + 0.5) / len(u)))
        # Kolmogorov's distribution at one in a thousand.
        assert distance < 1.95 / np.sqrt(len(u))


@KINDS
def test_gradient_is_that_of_the_path_and_of_the_expectation(kind):
    """Of the integral of u, in which a jump at the end of the span does not matter, so that the
    pathwise derivative is unbiased: d/dp E = T - (1 - e^-T)."""

    def integral(p, key, **options):
        ode = dj.ODEProblem(
            lambda u, p, t: jnp.stack([-u[0], u[0]]), jnp.array([0.2, 0.0]), (0.0, 3.0), p
        )
        prob = dj.JumpProblem(ode, kind(rate, lambda u, p, t: u.at[0].add(1.0)))
        return dj.solve(prob, dj.Tsit5(), key=key, rtol=1e-8, atol=1e-10, **options).u[-1, 1]

    key, keys = jax.random.key(5), jax.random.split(jax.random.key(2), 4000)
    both = jax.jit(jax.vmap(jax.value_and_grad(integral)))
    slopes = both(np.full(4000, 2.0), keys)[1]
    error = np.std(slopes) / np.sqrt(len(slopes))
    want = 3 - (1 - np.exp(-3.0))
    assert abs(np.mean(slopes) - want) < 4 * error
    assert error < 0.02 * want
    # The same program on one path, at three parameters.
    eps = 1e-5
    near = np.full(4000, 2.0)
    near[:2] += eps, -eps
    values, slopes = both(near, jnp.broadcast_to(key, keys.shape))
    quotient = (values[0] - values[1]) / (2 * eps)
    np.testing.assert_allclose(slopes[2], quotient, rtol=1e-6)
    if kind is VariableRateJump:
        p = jnp.array(2.0)
        forward = jax.grad(lambda p: integral(p, key, adjoint=dj.ForwardMode()))(p)
        np.testing.assert_allclose(forward, quotient, rtol=1e-6)


@pytest.mark.usefixtures("optimised")
def test_merton():
    """Log-normal jumps with a random affect on geometric Brownian motion, by fixed and by adaptive
    steps and with both kinds of rates: E S = exp((mu + lambda m) t)."""
    mu, sigma, often = 0.1, 0.2, 1.5
    sde = dj.SDEProblem(
        lambda u, p, t: mu * u, lambda u, p, t: sigma * u, jnp.array([1.0]), (0.0, 1.0)
    )

    def affect(u, p, t, key):
        return u * jnp.exp(-0.1 + 0.3 * jax.random.normal(key, (1,)))

    want = np.exp(mu + often * (np.exp(-0.1 + 0.045) - 1))
    keys = jax.random.split(jax.random.key(1), 4000)
    for kind, alg, options in (
        (ConstantRateJump, dj.SOSRI(), {}),
        (VariableRateJump, dj.EM(), {"steps": 50}),
    ):
        prob = dj.JumpProblem(sde, kind(lambda u, p, t: often, affect))
        solve = jax.jit(
            jax.vmap(lambda key: dj.solve(prob, alg, key=key, **options))  # noqa: B023
        )
        sol = solve(keys)
        u = np.asarray(sol.u[:, -1, 0])
        assert abs(np.mean(u) - want) < 4 * np.std(u) / np.sqrt(len(keys))
        assert abs(np.mean(np.asarray(sol.stats.nevents)) - often) < 4 * np.sqrt(often / len(keys))
        # An attempt or two more for a jump whose time is not known.
        assert np.mean(np.asarray(sol.stats.nreject)) < 3 * often


def test_noise_of_fixed_steps_that_jumps_cut(monkeypatch):
    """u = sigma W + N: W(1) is normal and independent of the number of jumps, and the derivative by
    sigma; no path is looked up for steps whose ends are known before they are taken."""

    def refuse(*args, **options):
        raise AssertionError("a path is looked up")

    monkeypatch.setattr(dj.noise.VirtualBrownianTree, "__init__", refuse)

    def path(sigma, key):
        sde = dj.SDEProblem(
            lambda u, p, t: 0 * u, lambda u, p, t: p, jnp.zeros(1), (0.0, 1.0), sigma
        )
        prob = dj.JumpProblem(sde, ConstantRateJump(lambda u, p, t: 3.0, shot))
        sol = dj.solve(prob, dj.EM(), steps=2, key=key, max_events=16)
        return sol.u[-1, 0], sol

    keys = jax.random.split(jax.random.key(5), 4000)
    run = jax.jit(jax.vmap(jax.grad(path, has_aux=True), in_axes=(None, 0)))
    slopes, sol = run(jnp.full(1, 0.5), keys)
    count = np.asarray(sol.stats.nevents)
    w = (np.asarray(sol.u[:, -1, 0]) - count) / 0.5
    assert scipy.stats.kstest(w, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(w, count)[0, 1]) < 4 / np.sqrt(len(keys))
    np.testing.assert_allclose(slopes[:, 0], w, atol=1e-13)
    with pytest.raises(ValueError, match="adaptive steps"):
        jax.tree.map(lambda x: x[0], sol).noise(0.5)


@KINDS
def test_rates_on_a_stochastic_equation_have_no_derivative(kind):
    """Refused where the rate is differentiated, and nowhere else: not for parameters beside its
    own, nor for a rate that is kept out of the gradient. u' = -a u with jumps that do nothing."""

    def end(p, rate):
        sde = dj.SDEProblem(
            lambda u, p, t: -p["a"] * u, lambda u, p, t: 0 * u, jnp.ones(1), (0.0, 1.0), p
        )
        prob = dj.JumpProblem(sde, kind(rate, lambda u, p, t: u))
        return dj.solve(prob, dj.EM(), steps=64, key=jax.random.key(0), max_events=16).u[-1, 0]

    def shared(u, p, t):
        return p["a"] + p["rate"]

    def held(u, p, t):
        return shared(u, jax.lax.stop_gradient(p), t) + u[0] ** 2

    p = {"a": jnp.array(0.5), "rate": jnp.array(2.0)}
    for transform in (jax.grad, jax.jacfwd, lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(TypeError, match=r"cannot be differentiated.*stop_gradient"):
            transform(lambda p: end(p, shared))(p)
    # To the error of Euler's method, whose derivative without jumps is -0.6101.
    want = pytest.approx(-np.exp(-0.5), abs=4e-3)
    assert jax.jit(jax.grad(lambda p: end(p, held)))(p)["a"] == want
    alone = jax.grad(lambda a: end({**p, "a": a}, lambda u, p, t: p["rate"]))
    assert alone(p["a"]) == want


def test_several_jumps_with_one_hazard_or_one_each():
    """Two jumps with rates 1 and 3, told apart by what they do; aggregators differ in how."""

    def act(u, p, t, index):
        return u + jnp.where(jnp.arange(2, dtype=index.dtype) == index, 1.0, 0.0)

    ode = dj.ODEProblem(lambda u, p, t: 0 * u, jnp.zeros(2), (0.0, 2.0))
    jump = VariableRateJump(lambda u, p, t: jnp.array([1.0, 3.0]), act)
    keys = jax.random.split(jax.random.key(4), 4000)
    for aggregator in (dj.jumps.Direct(), dj.jumps.FirstReaction()):
        prob = dj.JumpProblem(ode, jump, aggregator=aggregator)
        u = jax.jit(jax.vmap(lambda key: dj.solve(prob, dj.BS3(), key=key).u_end))(keys)  # noqa: B023
        u = np.asarray(u)
        mean = np.array([2.0, 6.0])
        assert np.all(np.abs(np.mean(u, axis=0) - mean) < 4 * np.sqrt(mean / len(keys)))
        assert np.all(np.abs(np.var(u, axis=0) - mean) < 4 * np.sqrt(3 * mean**2 / len(keys)))


def test_reproducible_in_single_precision_and_with_pytrees():
    ode = dj.ODEProblem(
        lambda u, p, t: {"x": -u["x"]}, {"x": jnp.ones(2, jnp.float32)}, (0.0, 5.0), None
    )
    jump = VariableRateJump(lambda u, p, t: 1.0, lambda u, p, t: {"x": u["x"] + 1})
    prob = dj.JumpProblem(ode, jump, ConstantRateJump(lambda u, p, t: 1.0, lambda u, p, t: u))

    def solve(key):
        return dj.solve(prob, dj.Tsit5(), key=key, saveat=1.0)

    one, again = solve(jax.random.key(3)), jax.jit(solve)(jax.random.key(3))
    assert one.u["x"].dtype == jnp.float32
    np.testing.assert_allclose(one.u["x"], again.u["x"], rtol=1e-5)
    assert one.u["x"].shape == (6, 2)
    assert one.u_end["x"].shape == (2,)
    assert int(one.stats.nevents) > 2
    # Callbacks of the user's see the user's state.
    stop = dj.ContinuousCallback(lambda u, p, t: t - 2.5, terminate=True)
    ended = dj.solve(prob, dj.Tsit5(), key=jax.random.key(3), callback=stop)
    assert ended.retcode == dj.ReturnCode.terminated
    np.testing.assert_allclose(ended.t_end, 2.5, rtol=1e-6)


def test_a_negative_rate_fails_the_solve_where_it_is_met():
    ode = dj.ODEProblem(lambda u, p, t: -jnp.ones_like(u), jnp.array([1.0]), (0.0, 3.0))
    for kind in (ConstantRateJump, VariableRateJump):
        prob = dj.JumpProblem(ode, kind(lambda u, p, t: 3 * u[0], lambda u, p, t: u - 0.5))
        sol = dj.solve(prob, dj.Tsit5(), key=jax.random.key(0), dtmax=0.1, throw=False)
        assert sol.retcode == dj.ReturnCode.event_failed
        assert 0 < sol.t_end < 3


def test_arguments_are_judged():
    prob = shot_noise(ConstantRateJump)
    with pytest.raises(ValueError, match="needs key="):
        dj.solve(prob, dj.Tsit5())
    with pytest.raises(ValueError, match="forwards in time"):
        dj.solve(prob, dj.Tsit5(), tspan=(1.0, 0.0), key=jax.random.key(0))
    with pytest.raises(ValueError, match="GaussAdjoint cannot differentiate"):
        dj.solve(prob, dj.Tsit5(), key=jax.random.key(0), adjoint=dj.GaussAdjoint())
    bad = dj.JumpProblem(prob.prob, ConstantRateJump(rate, lambda u, p, t: jnp.zeros(3)))
    with pytest.raises(ValueError, match="affect must return the shape of u0"):
        dj.solve(bad, dj.Tsit5(), key=jax.random.key(0))


def test_parameters_that_an_affect_changes():
    """u' = -a u until t = 1, then u' = -b u: the state, its derivatives, dense output, and a switch
    whose time depends on the solution."""

    def switch(u, p, t):
        return u, {**p, "a": p["b"]}

    def prob(p):
        return dj.ODEProblem(lambda u, p, t: -p["a"] * u, jnp.array([1.0]), (0.0, 2.0), p)

    p = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
    timed = dj.PresetTimeCallback([1.0], switch, changes_p=True)

    def end(p, alg, **options):
        sol = dj.solve(prob(p), alg, callback=timed, rtol=1e-9, atol=1e-12, **options)
        return sol.u[-1, 0]

    for alg, options in (
        (dj.Tsit5(), {}),
        (dj.FBDF(), {}),
        (dj.Rodas5P(), {"adjoint": dj.ForwardMode()}),
    ):
        value, slopes = jax.value_and_grad(lambda p: end(p, alg, **options))(p)  # noqa: B023
        tolerance = 1e-5 if isinstance(alg, dj.FBDF) else 1e-7
        np.testing.assert_allclose(value, np.exp(-3), rtol=tolerance)
        np.testing.assert_allclose([slopes["a"], slopes["b"]], -np.exp(-3), rtol=tolerance)
    half = dj.ContinuousCallback(lambda u, p, t: u[0] - 0.5, switch, changes_p=True)
    sol = dj.solve(prob(p), dj.Tsit5(), callback=half, rtol=1e-9, atol=1e-12, dense=True)
    t = jnp.linspace(0.0, 2.0, 9)
    want = np.where(t < np.log(2), np.exp(-t), 0.5 * np.exp(-2 * (t - np.log(2))))
    np.testing.assert_allclose(sol(t)[:, 0], want, rtol=1e-6)
    with pytest.raises(ValueError, match="save_fn must not use parameters"):
        dj.solve(prob(p), dj.Tsit5(), callback=timed, save_fn=lambda u, p, t: p["a"] * u)


def test_neural_jump_diffusion():
    """With known terms it is the jump diffusion they say; networks get gradients."""

    def half(u):
        return 0.5 * u

    layer = dj.neural.NeuralJumpDiffusion(
        lambda u: -u, lambda u: 0.1 * u, 2.0, half, (0.0, 1.0), dj.EM(), steps=40
    )
    x, keys = jnp.array([1.0, 2.0]), jax.random.split(jax.random.key(7), 4000)
    u = np.asarray(jax.jit(jax.vmap(lambda key: layer(x, key=key)))(keys))
    want = np.asarray(x) * np.exp(-1 - 2 * 0.5)
    assert np.all(np.abs(np.mean(u, axis=0) - want) < 4 * np.std(u, axis=0) / np.sqrt(4000) + 0.01)
    linear = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    trained = dj.neural.NeuralJumpDiffusion(
        linear, None, lambda u: 1 + u[0] ** 2, linear, (0.0, 1.0), dj.Tsit5()
    )
    gradient = eqx.filter_grad(lambda layer: jnp.sum(layer(x, key=jax.random.key(1))))(trained)
    for model in (gradient.models.drift, gradient.models.affect):
        assert np.all(np.isfinite(model.weight))
        assert np.any(model.weight != 0)
    with pytest.raises(TypeError, match="no option of the layer"):
        dj.neural.NeuralJumpDiffusion(half, half, 1.0, half, (0.0, 1.0), key=keys[0])
