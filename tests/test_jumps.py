"""Jump processes against closed forms, whatever simulates them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffjax as dj
from diffjax.jumps.poisson import poisson
from tests.problems import DATA

KEY = jax.random.key(20)
AGGREGATORS = (dj.Direct(), dj.FirstReaction(), dj.NextReaction())
# What a mean of many paths may miss, in standard errors, and how large one may be beside the mean.
MOST, SHARPEST = 4.0, 0.005


def public(name: str, *jumps: Any, p: Any, **options: Any) -> dj.JumpProblem:
    """A problem of the table."""
    data = DATA[name]
    t0, t1 = (float(t) for t in data["tspan"])
    inner = dj.DiscreteProblem(jnp.asarray(data["u0"]), (t0, t1), jnp.asarray(p))
    return dj.JumpProblem(inner, *jumps, **options)


def birth_death(**options: Any) -> dj.JumpProblem:
    given = DATA["jump_birth_death"]["parameters"]
    birth = dj.ConstantRateJump(lambda u, p, t: p[0], lambda u, p, t: u + 1)
    death = dj.ConstantRateJump(lambda u, p, t: p[1] * u[0].astype(p.dtype), lambda u, p, t: u - 1)
    return public("jump_birth_death", birth, death, p=[given["k1"], given["k2"]], **options)


def linear_a_to_b(**options: Any) -> dj.JumpProblem:
    taken, change = np.tile([[1, 0]], (16, 1)), np.tile([[-1, 1]], (16, 1))
    reactions = dj.MassActionJump(lambda p: p, taken, change)
    rates = 0.1 * np.arange(1, 17)
    return public("jump_linear_A_to_B", reactions, p=rates, **options)


def single_pair(**options: Any) -> dj.JumpProblem:
    pair = dj.MassActionJump(lambda p: p[None], [[1, 1, 0]], [[-1, -1, 1]])
    return public("jump_single_pair", pair, p=10.0, **options)


def sir_influx() -> dj.JumpProblem:
    reactions = dj.MassActionJump(
        lambda p: p, [[1, 1, 0], [0, 1, 0], [0, 0, 0]], [[-1, 1, 0], [0, -1, 1], [1, 0, 0]]
    )
    return public("jump_sir_influx_tau", reactions, p=[1e-4, 0.01, 1.0])


def solutions(prob: dj.JumpProblem, count: int, alg: Any = None, **options: Any) -> dj.Solution:
    """Many paths, as one solution with a leading axis."""
    solve = jax.vmap(lambda key: dj.solve(prob, alg, key=key, **options))
    return jax.jit(solve)(jax.random.split(KEY, count))


def check_mean(values: Any, mean: Any, sharpest: float = SHARPEST) -> None:
    """The mean over the first axis within four standard errors, each of which is small."""
    values = np.asarray(values, float)
    error = values.std(0) / np.sqrt(len(values))
    assert np.all(error <= sharpest * np.abs(mean))
    assert np.all(np.abs(values.mean(0) - mean) <= MOST * error)


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=lambda a: type(a).__name__)
def test_birth_death_is_poisson(aggregator: Any) -> None:
    values = DATA["jump_birth_death"]["reference"]["values"]
    times = np.array([float(t) for t in values])
    sol = solutions(birth_death(aggregator=aggregator), 4000, saveat=times)
    mean, u = np.array(list(values.values())), np.asarray(sol.u[..., 0])
    check_mean(u, mean)
    # Of a Poisson number n times: the fourth central moment is 3 m**2 + m.
    spread = np.sqrt((2 * mean**2 + mean) / len(u))
    assert np.all(np.abs(u.var(0) - mean) <= MOST * spread)
    assert np.all(np.asarray(sol.stats.nevents) >= u[:, -1])


def test_many_reactions() -> None:
    sol = solutions(linear_a_to_b(), 4000)
    assert np.all(np.asarray(sol.u.sum(-1)) == 100)
    check_mean(sol.u[:, 0, 0], DATA["jump_linear_A_to_B"]["reference"]["mean_A_end"])


def test_last_molecules() -> None:
    """A state that has come to an end stays, and nothing is drawn in vain."""
    sol = solutions(single_pair(), 300_000, saveat=0.05)
    check_mean(sol.u[:, 1:, 0], np.exp(-10 * np.linspace(0.05, 0.2, 4)))
    assert int(sol.stats.nf.max()) == 2


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=lambda a: type(a).__name__)
def test_thinned_waiting_times(aggregator: Any) -> None:
    """The first jump of a constant and two variable rates, and which one it was."""
    jumps = (
        dj.ConstantRateJump(lambda u, p, t: 0.5 * p, lambda u, p, t: u + 1),
        dj.VariableRateJump(
            lambda u, p, t: jnp.stack([p * (1 + jnp.sin(3 * t)), t]),
            lambda u, p, t, index: u + 10 * index,
            urate=lambda u, p, t: jnp.stack([2 * p, t + 0.4]),
            rateinterval=lambda u, p, t: 0.4,
        ),
    )
    inner = dj.DiscreteProblem(jnp.array(0, jnp.int32), (0.0, 50.0), 0.7)
    prob = dj.JumpProblem(inner, *jumps, aggregator=aggregator)
    sol = solutions(prob, 4000, saveat="steps", max_steps=40, throw=False)
    first, which = np.asarray(sol.events.t[:, 0]), np.asarray(sol.events.which[:, 0])
    hazard = 0.35 * first + 0.7 * (first + (1 - np.cos(3 * first)) / 3) + first**2 / 2
    assert stats.kstest(np.exp(-hazard), stats.uniform.cdf).pvalue > 1e-3
    # Each is chosen in proportion to its rate at the time: compensated, the counts have mean zero.
    rates = np.stack([np.full_like(first, 0.35), 0.7 * (1 + np.sin(3 * first)), first])
    chance = rates / rates.sum(0)
    hits = which == np.arange(3)[:, None]
    z = (hits - chance).sum(1) / np.sqrt((chance * (1 - chance)).sum(1))
    assert np.all(np.abs(z) <= MOST)


def test_paths_of_any_state() -> None:
    """A pytree, in single precision, with random affects of several jumps: vmap is the loop, jit is
    eager, and every jump is told."""

    def affect(u: Any, p: Any, t: Any, index: Any, key: Any) -> Any:
        size = jax.random.normal(key, (), jnp.float32)
        return {"x": u["x"].at[index].add(p["scale"] * size), "n": u["n"] + 1}

    jump = dj.ConstantRateJump(lambda u, p, t: p["rates"], affect)
    u0 = {"x": jnp.zeros(2, jnp.float32), "n": jnp.zeros((), jnp.int32)}
    p = {"rates": jnp.array([1.0, 2.0], jnp.float32), "scale": jnp.float32(0.5)}
    prob = dj.JumpProblem(dj.DiscreteProblem(u0, (0.0, 4.0), p), jump)
    many = solutions(prob, 2000, saveat=1.0)
    assert many.t.dtype == many.u["x"].dtype == jnp.float32
    assert many.u["n"].dtype == jnp.int32
    check_mean(many.u["n"][:, 1:], 3.0 * np.arange(1, 5), sharpest=0.02)
    error = MOST * np.sqrt(2 / 2000)
    np.testing.assert_allclose(
        np.asarray(many.u["x"][:, 4]).var(0), [1.0, 2.0], rtol=error * np.sqrt(1 + 3 / 8)
    )
    key = jax.random.split(KEY, 2000)[7]
    alone = dj.solve(prob, saveat=1.0, key=key)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[7], y, rtol=1e-6), many.u, alone.u)
    steps = dj.solve(prob, saveat="steps", key=key, max_steps=64)
    n, count = int(steps.n), int(steps.events.n)
    assert count == int(alone.stats.nevents) == n - 2
    np.testing.assert_array_equal(steps.u["n"][:n], [*range(count + 1), count])
    np.testing.assert_array_equal(steps.events.t[:count], steps.t[1 : n - 1])
    moved = np.diff(np.asarray(steps.u["x"][: n - 1]), axis=0) != 0
    np.testing.assert_array_equal(moved.argmax(1), steps.events.which[:count])
    assert np.all(np.diff(np.asarray(steps.t[:n])) > 0)
    assert np.isnan(steps.t[n:]).all()
    assert float(steps.t[n - 1]) == 4.0


def test_many_rates() -> None:
    """More channels than are added up one by one; a state of several leaves, species by leaf."""
    count = 100
    rates, start = np.linspace(0.1, 2.0, count), 500
    reactions = dj.MassActionJump(rates, np.eye(count, dtype=int), -np.eye(count, dtype=int))
    u0 = (jnp.full(40, start), jnp.full(60, start))
    prob = dj.JumpProblem(dj.DiscreteProblem(u0, (0.0, 1.0)), reactions)
    sol = dj.solve(prob, key=KEY, saveat=0.5)
    left = np.concatenate([np.asarray(x[-1]) for x in sol.u])
    stay = np.exp(-rates)
    z = (left - start * stay) / np.sqrt(start * stay * (1 - stay))
    assert stats.kstest(z, stats.norm.cdf).pvalue > 1e-3
    assert int(sol.stats.nevents) == count * start - left.sum()


def test_solve_options() -> None:
    """Through an ensemble; functions of the state; going on; a traced span and traced times."""
    prob = birth_death()
    sim = dj.solve(dj.EnsembleProblem(prob), trajectories=5, key=KEY, saveat=0.25)
    alone = dj.solve(prob, key=jax.random.fold_in(KEY, 3), saveat=0.25)
    np.testing.assert_array_equal(sim.u[3], alone.u)
    mesh = jax.make_mesh((jax.device_count(),), ("paths",))
    spread = dj.solve(
        dj.EnsembleProblem(prob), trajectories=5, key=KEY, saveat=0.25, mesh=mesh, batch_size=1
    )
    np.testing.assert_array_equal(spread.u, sim.u)
    with pytest.raises(TypeError, match="as a whole"):
        dj.init(prob, dj.SSAStepper(), key=KEY)

    @jax.jit
    def traced(end: Any) -> Any:
        first = dj.solve(prob, tspan=(0.0, end), key=KEY, saveat=lambda t0, t1: t1[None] / 2)
        rest = dj.solve(prob, key=KEY, resume=first.final, save_fn=lambda u, p, t: (2 * u[0], t))
        return first, rest

    first, (twice, at) = (lambda pair: (pair[0], pair[1].u))(traced(jnp.array(0.5)))
    assert float(first.t[0]) == 0.25
    assert float(at[0]) == 1.0
    again = dj.solve(prob, key=KEY, tspan=(0.5, 1.0), u0=first.u_end, save_idxs=0)
    assert int(twice[0]) == 2 * int(again.u[0])


def test_poisson_numbers() -> None:
    """Their law on both sides of the change of method, and for large means in single precision."""
    means = np.array([0.0, 0.05, 3.0, 9.99, 10.01, 40.0, 1e4, 1e6])
    for dtype in (jnp.float64, jnp.float32):
        rates = jnp.tile(jnp.asarray(means, dtype), 30_000)
        draws = np.asarray(jax.jit(poisson)(jax.random.key_data(KEY), rates))
        draws = draws.reshape(-1, len(means))
        assert not np.any(draws[:, 0])
        for i, mean in enumerate(means[1:], 1):
            marks = np.unique(stats.poisson.ppf(np.linspace(0.05, 0.95, 19), mean))
            chance = np.diff(stats.poisson.cdf(marks, mean), prepend=0, append=1)
            edges = np.concatenate([[-1], marks, [np.inf]])
            counts = np.histogram(draws[:, i], edges + 0.5)[0]
            assert stats.chisquare(counts, chance * len(draws)).pvalue > 1e-4


def test_leaping() -> None:
    """Fixed and adaptive leaps beside exact simulation, on an epidemic with an influx."""
    exact = solutions(sir_influx(), 2000, saveat=10.0)
    infected = np.asarray(exact.u[..., 1]).mean(0)
    leaps = ((dj.TauLeaping(), {"dt": 0.1}), (dj.CaoTauLeaping(), {}))
    for alg, options in leaps:
        sol = solutions(sir_influx(), 120, alg, saveat=10.0, **options)
        assert np.all(np.asarray(sol.u) >= 0)
        np.testing.assert_allclose(np.asarray(sol.u[..., 1]).mean(0), infected, rtol=0.1)
        # Every jump counts, though they are not taken one by one.
        assert abs(np.mean(sol.stats.nevents) / np.mean(exact.stats.nevents) - 1) < 0.02
    assert int(sol.stats.naccept.max()) <= int(sol.stats.nevents.max())


def test_adaptive_leaps_are_long() -> None:
    """Of many molecules few leaps; of few none, and never less than no molecules."""
    dimers = dj.MassActionJump(lambda p: p, [[2, 0], [0, 1]], [[-2, 1], [0, -1]])
    p = jnp.array([1e-5, 1.0], jnp.float32)
    inner = dj.DiscreteProblem(jnp.array([100_000, 0], jnp.int32), (0.0, 8.0), p)
    sol = solutions(dj.JumpProblem(inner, dimers), 100, dj.CaoTauLeaping(), saveat=4.0)
    # x' = -c x (x - 1), each event taking two: the rate equation is exact for so many.
    wanted = 1e5 / (1 + 1e5 * 1e-5 * 4.0)
    assert abs(float(sol.u[:, 1, 0].mean()) / wanted - 1) < 0.02
    assert int(sol.u.min()) >= 0
    assert int(sol.stats.naccept.max()) < 0.04 * int(sol.stats.nevents.min())


def test_regular_jumps() -> None:
    """The same by a table, by a function of counts, and exactly; a pytree, with traced steps."""
    rates = {"rate": lambda u, p, t: p * jnp.stack([u["a"], 5.0])}

    def change(u: Any, p: Any, t: Any, counts: Any) -> Any:
        return {"a": (counts[1] - counts[0]).astype(u["a"].dtype)}

    def mean(jump: dj.RegularJump, alg: Any, **options: Any) -> Any:
        inner = dj.DiscreteProblem({"a": jnp.array(200.0)}, (0.0, 1.0), 0.8)
        return solutions(dj.JumpProblem(inner, jump), 2000, alg, **options).u["a"][:, -1]

    wanted = 5 + 195 * np.exp(-0.8)
    table = dj.RegularJump(rates["rate"], [[-1], [1]])
    leaps = mean(table, dj.TauLeaping(), steps=200)
    check_mean(leaps, wanted)
    same = mean(dj.RegularJump(rates["rate"], change), dj.TauLeaping(), dt=1 / 200)
    np.testing.assert_allclose(same, leaps)
    check_mean(mean(table, dj.SSAStepper()), wanted)


def _one_jump(rate: Callable[..., Any], **bound: Any) -> dj.JumpProblem:
    kind = dj.VariableRateJump if bound else dj.ConstantRateJump
    inner = dj.DiscreteProblem(jnp.array([3.0]), (0.0, 10.0))
    return dj.JumpProblem(inner, kind(rate, lambda u, p, t: u - 1, **bound))


FAILURES = {
    "negative": (_one_jump(lambda u, p, t: u[0] + 0.5), {"saveat": 0.5}, "event_failed"),
    "not a number": (_one_jump(lambda u, p, t: jnp.log(-u[0])), {}, "event_failed"),
    "over its bound": (
        _one_jump(lambda u, p, t: t, urate=lambda u, p, t: 1.0),
        {},
        "event_failed",
    ),
    "leaps too long": (
        single_pair(),
        {"alg": dj.TauLeaping(), "steps": 1, "u0": jnp.array([8, 8, 0])},
        "event_failed",
    ),
    "many": (birth_death(), {"saveat": 0.01, "max_steps": 10}, "max_steps"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(name: str) -> None:
    """What only running shows ends the solve: what was reached stays, the rest is NaN (or zero)."""
    prob, options, code = FAILURES[name]
    with pytest.raises(dj.SolveError, match=code) as caught:
        dj.solve(prob, key=KEY, **options)
    sol = caught.value.solution
    reached = np.asarray(sol.t) <= float(sol.t_end)
    if "saveat" in options:
        assert int(sol.n) == reached.sum() > 0
        rest = np.asarray(sol.u)[~reached]
        assert np.all((rest == 0) | np.isnan(rest))
        assert np.all(np.asarray(sol.u)[reached] >= 0)


PROB = birth_death()


@pytest.mark.parametrize(
    ("prob", "options", "message"),
    [
        (PROB, {"key": None}, "needs key="),
        (PROB, {"alg": dj.Tsit5()}, "SSAStepper"),
        (PROB, {"tspan": (1.0, 0.0)}, "forwards"),
        (PROB, {"dense": True}, "dense=True cannot be used"),
        (PROB, {"dt": 0.1}, "no meaning for SSAStepper"),
        (PROB, {"alg": dj.TauLeaping(), "dt": 0.1}, "cannot take a ConstantRateJump"),
        (single_pair(), {"alg": dj.TauLeaping()}, "give dt="),
        (PROB, {"u0": jnp.array([True])}, "integer or floating point"),
        (PROB.prob, {}, "JumpProblem"),
        (_one_jump(lambda u, p, t: u[None]), {}, "rate must return a scalar"),
        (single_pair(), {"u0": jnp.array([1, 2])}, "3 species"),
        (
            dj.JumpProblem(PROB.prob, dj.ConstantRateJump(lambda u, p, t: 1.0, lambda u, p: u)),
            {},
            "affect must be affect",
        ),
        (
            dj.JumpProblem(
                PROB.prob, dj.ConstantRateJump(lambda u, p, t: 1.0, lambda u, p, t: u / 2)
            ),
            {},
            "dtype of u0",
        ),
        (
            dj.JumpProblem(PROB.prob, dj.VariableRateJump(lambda u, p, t: 1.0, lambda u, p, t: u)),
            {},
            "needs urate=",
        ),
    ],
)
def test_errors(prob: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        dj.solve(prob, **{"key": KEY, **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dj.MassActionJump([1.0], [[0]], [[-1]]), "uses up more"),
        (lambda: dj.MassActionJump([1.0], [[1.0]], [[-1]]), "integer array"),
        (lambda: dj.ConstantRateJump(1.0, lambda u, p, t: u), "rate must be a function"),
        (lambda: dj.JumpProblem(PROB.prob), "needs jumps"),
        (lambda: dj.JumpProblem(PROB, *PROB.jumps), "what happens between jumps"),
        (lambda: dj.remake(PROB, q=1), "no argument 'q'"),
    ],
)
def test_errors_of_problems(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_derivatives_are_refused() -> None:
    """A derivative along the path would leave out that jumps happen more often or less."""
    with pytest.raises(TypeError, match="score_gradient"):
        jax.grad(lambda p: dj.solve(PROB, p=p, key=KEY).u_end[0].astype(float))(PROB.p)


def test_log_likelihood() -> None:
    """Of a path of pure death, whose likelihood can be written down; of a rate in time, too."""
    death = dj.MassActionJump(lambda p: p[None], [[1]], [[-1]])
    prob = dj.JumpProblem(dj.DiscreteProblem(jnp.array([20]), (0.0, 2.0), 0.6), death)
    path = dj.solve(prob, saveat="steps", key=KEY, max_steps=32)
    n, count = int(path.n), int(path.events.n)
    held = np.asarray(path.u[: n - 1, 0], float)
    spent = np.sum(held * np.diff(np.asarray(path.t[:n])))
    log = jax.jit(jax.value_and_grad(lambda p: dj.jumps.log_likelihood(prob, path, p)))
    value, slope = log(0.5)
    np.testing.assert_allclose(value, np.sum(np.log(0.5 * held[:count])) - 0.5 * spent)
    np.testing.assert_allclose(slope, count / 0.5 - spent)

    def wave(p: Any, t: Any) -> Any:
        return p * (1 + jnp.sin(t))

    jump = dj.VariableRateJump(
        lambda u, p, t: wave(p, t), lambda u, p, t: u + 1, urate=lambda u, p, t: 2 * p
    )
    prob = dj.JumpProblem(dj.DiscreteProblem(jnp.array(0), (0.0, 3.0), 1.5), jump)
    path = dj.solve(prob, saveat="steps", key=KEY, max_steps=64)
    times = np.asarray(path.events.t[: int(path.events.n)])
    wanted = np.sum(np.log(wave(1.5, times))) - 1.5 * (4 - np.cos(3.0))
    found = jax.jit(lambda path: dj.jumps.log_likelihood(prob, path))(path)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    with pytest.raises(ValueError, match="every jump"):
        dj.jumps.log_likelihood(prob, dj.solve(prob, key=KEY))


def check_gradient(found: dj.jumps.ScoreGradient, wanted: Any) -> None:
    error = np.asarray(found.error)
    assert np.all(error <= 0.02 * np.abs(wanted))
    assert np.all(np.abs(np.asarray(found.gradient) - wanted) <= MOST * error)


def test_score_gradient_of_constant_rates() -> None:
    """Birth and death: the mean of a number, and the chance of a set (which is no smooth function
    of the path)."""
    birth = dj.ConstantRateJump(lambda u, p, t: p[0], lambda u, p, t: u + 1)
    death = dj.ConstantRateJump(lambda u, p, t: p[1] * u, lambda u, p, t: u - 1)
    prob = dj.JumpProblem(
        dj.DiscreteProblem(jnp.array(0.0), (0.0, 1.0), jnp.array([4.0, 1.0])), birth, death
    )
    options: dict[str, Any] = {"trajectories": 40_000, "key": KEY, "max_steps": 64}
    found = dj.jumps.score_gradient(lambda sol, p: sol.u_end, prob, **options)
    e = np.exp(-1.0)
    # The mean is m = (k1/k2)(1 - exp(-k2)), and the law that of Poisson.
    slope = np.array([1 - e, 4 * (2 * e - 1)])
    check_gradient(found, slope)
    few = dj.jumps.score_gradient(
        lambda sol, p: jnp.where(sol.u_end < 2.0, 1.0, 0.0), prob, **options
    )
    mean = 4 * (1 - e)
    check_gradient(few, -mean * np.exp(-mean) * slope)


def test_score_gradient_of_a_rate_in_time() -> None:
    """A thinned rate that depends on p and t, and a function that depends on p itself."""
    jump = dj.VariableRateJump(
        lambda u, p, t: p["a"] * (1 + jnp.sin(t)),
        lambda u, p, t: u + 1,
        urate=lambda u, p, t: 2 * p["a"],
    )
    p = {"a": 2.0, "name": np.int32(3)}
    prob = dj.JumpProblem(dj.DiscreteProblem(jnp.array(0.0), (0.0, 2.0), p), jump)
    found = dj.jumps.score_gradient(
        lambda sol, p: p["a"] ** 2 * sol.u_end, prob, trajectories=20_000, key=KEY, max_steps=64
    )
    # E[a**2 N] = a**3 (3 - cos 2).
    assert found.gradient["name"] is None
    check_gradient(
        dj.jumps.ScoreGradient(found.value, found.gradient["a"], found.error["a"]),
        3 * 2.0**2 * (3 - np.cos(2.0)),
    )
    with pytest.raises(dj.SolveError, match="paths did not reach"):
        dj.jumps.score_gradient(
            lambda sol, p: sol.u_end, prob, trajectories=100, key=KEY, max_steps=2
        )
