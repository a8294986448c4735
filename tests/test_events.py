"""Events on differential equations: when they happen, what they do, and their derivatives.

The references are closed forms, of a ball above all: x'' = -g, and v becomes -e v where it lands.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import diffjax as dj
from diffjax.events.search import Attempt, Search, look, resolution
from tests.derivatives import EVERY_ADJOINT, close

pytestmark = pytest.mark.slow

# g, e, x0, v0
BALL = jnp.asarray([9.8, 0.8, 1.0, 0.0])
TIGHT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}


def fall(u: Any, p: Any, t: Any) -> jax.Array:
    return jnp.stack([u[1], -p[0]])


def bounce(**options: Any) -> dj.ContinuousCallback:
    return dj.ContinuousCallback(
        lambda u, p, t: u[0],
        lambda u, p, t: jnp.stack([u[0], -p[1] * u[1]]),
        **{"direction": -1, **options},
    )


def ball(q: jax.Array, alg: dj.Algorithm | None = None, end: float = 1.0, **options: Any) -> Any:
    prob = dj.ODEProblem(fall, q[2:], (0.0, end), q[:2])
    callback = options.pop("callback", bounce())
    return dj.solve(prob, alg or dj.Tsit5(), callback=callback, **options)


def landing(q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """When a ball lands, and how fast."""
    g, _, x, v = q
    speed = jnp.sqrt(v**2 + 2 * g * x)
    return (v + speed) / g, speed


def bounced(q: jax.Array, end: float = 1.0) -> jax.Array:
    """Where a ball is at the end, after one landing."""
    t, speed = landing(q)
    later = end - t
    return jnp.stack([q[1] * speed * later - q[0] * later**2 / 2, q[1] * speed - q[0] * later])


def heights(q: jax.Array, ts: np.ndarray) -> np.ndarray:
    """A ball that starts at rest at given times, through all its landings."""
    g, e, x, _ = map(float, q)
    out, t, speed = [], np.sqrt(2 * x / g), np.sqrt(2 * g * x)
    for s in ts:
        if s < np.sqrt(2 * x / g):
            out.append(x - g * s**2 / 2)
            continue
        while s > t + 2 * e * speed / g:
            speed, t = e * speed, t + 2 * e * speed / g
        out.append(e * speed * (s - t) - g * (s - t) ** 2 / 2)
    return np.asarray(out)


@EVERY_ADJOINT
def test_bouncing_ball(adjoint: dj.Adjoint) -> None:
    """The end, the time of the landing, and the speeds around it, with all their derivatives."""

    def ours(q: jax.Array) -> tuple[jax.Array, Any]:
        sol = ball(q, callback=bounce(save=True), adjoint=adjoint, **TIGHT)
        sides = jnp.stack([sol.events.before[0, 1], sol.events.after[0, 1]])
        values = jnp.concatenate([sol.u[-1], sol.events.t[:1], sides])
        return values, (values, sol.events, sol.stats)

    @jax.jit
    def exact(q: jax.Array) -> jax.Array:
        t, speed = landing(q)
        return jnp.concatenate([bounced(q), jnp.stack([t, -speed, q[1] * speed])])

    weights = jnp.cos(jnp.arange(5.0))

    def weighted(q: jax.Array) -> tuple[jax.Array, Any]:
        """One pass backwards for all of them."""
        values, others = ours(q)
        return weights @ values, others

    slopes = jax.jit(jax.jacfwd(exact))(BALL)
    forwards = jax.jacfwd(ours, has_aux=True), slopes
    backwards = jax.grad(weighted, has_aux=True), weights @ slopes
    modes = [forwards] if isinstance(adjoint, dj.ForwardMode) else [backwards]
    if adjoint == dj.DiscreteAdjoint():
        modes.append(forwards)
    for derivative, wanted in modes:
        got, (values, events, stats) = jax.jit(derivative)(BALL)
        close(got, wanted, 1e-8, 1e-8)
        close(values, exact(BALL), 1e-8)
        # As in SciML/OrdinaryDiffEq.jl, test/AD/autodiff_events.jl.
        close(values[:3], [0.4689397036243159, -1.8310602963756841, 0.45175395145262565], 1e-8)
        assert int(events.n) == int(stats.nevents) == 1
        assert events.t.shape == events.which.shape == (64,)
        np.testing.assert_array_equal(events.which, [0] + [-1] * 63)
        assert np.all(np.isnan(events.t[1:]))
        assert np.all(np.isnan(events.after[1:]))


def test_second_derivative_through_a_landing() -> None:
    def ours(q: jax.Array) -> jax.Array:
        return ball(q, **TIGHT).u[-1, 0]

    got = jax.jit(jax.jacfwd(jax.grad(ours)))(BALL)
    close(got, jax.jit(jax.hessian(lambda q: bounced(q)[0]))(BALL), 1e-7, 1e-7)


def test_lanes_with_different_events() -> None:
    """Lanes bounce once, twice and four times; one lands ever faster, which ends that lane alone.
    What is saved between is right, and what is saved after an end is NaN."""
    elasticity, ts = jnp.asarray([0.8, 0.5, 0.3, 0.1]), np.linspace(0, 1, 9)

    @jax.jit
    @jax.vmap
    def solve(e: jax.Array) -> Any:
        sol = ball(BALL.at[1].set(e), saveat=ts, rtol=1e-9, atol=1e-9, throw=False)
        return sol.u[:, 0], sol.events.n, sol._retcode, sol.t_end

    u, n, codes, ends = solve(elasticity)
    np.testing.assert_array_equal(n[:2], [1, 2])
    np.testing.assert_array_equal(codes[:2], [dj.ReturnCode.success] * 2)
    for lane in range(2):
        close(u[lane], heights(BALL.at[1].set(elasticity[lane]), ts), 0.0, 1e-7)
    first = np.sqrt(2 / 9.8)
    for lane in (2, 3):
        e = float(elasticity[lane])
        assert codes[lane] == dj.ReturnCode.event_failed
        close(ends[lane], first * (1 + 2 * e / (1 - e)), 1e-6)
        assert np.all(np.isnan(u[lane][ts > ends[lane]]))


def test_field_that_jumps_at_an_event() -> None:
    """u' is 1 below p and 3 above, so that u(2) = p + 3 (2 - p)."""

    @jax.jit
    @jax.value_and_grad
    def ours(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: jnp.where(u < p, 1.0, 3.0), 0.0, (0.0, 2.0), p)
        callback = dj.ContinuousCallback(lambda u, p, t: u - p)
        return dj.solve(prob, dj.Tsit5(), callback=callback, rtol=1e-8, atol=1e-8).u[-1]

    close(ours(jnp.asarray(1.03)), (6 - 2 * 1.03, -2.0), 1e-10)


@pytest.mark.parametrize("adaptive", [True, False])
def test_many_conditions(adaptive: bool) -> None:
    """Each of five conditions fires once, some of them in one step."""
    eps = 1e-3
    callbacks = tuple(
        dj.ContinuousCallback(lambda u, p, t, c=c: u - jnp.exp(c * eps)) for c in range(50, 100, 10)
    )
    prob = dj.ODEProblem(lambda u, p, t: u, 1.0, (0.0, 100 * eps))
    options: dict[str, Any] = {"dtmax": 4.7 * eps} if adaptive else {"adaptive": False}
    sol = dj.solve(prob, dj.Tsit5(), callback=callbacks, dt=4.7 * eps, **options)
    np.testing.assert_array_equal(sol.events.which[:6], [0, 1, 2, 3, 4, -1])
    close(sol.events.t[:5] / eps, np.arange(50, 100, 10), 1e-9)
    close(sol.u[-1], np.exp(100 * eps), 1e-12)


def test_landing_ends_the_solve() -> None:
    """The time is found to rounding and differentiable; the state there is one of the solution."""

    @jax.jit
    def ours(q: jax.Array) -> Any:
        callback = bounce(terminate=True)
        sol = ball(q, end=15.0, callback=callback, saveat=1.0)
        return sol.t_end, sol.u_end, sol._retcode, sol.u, sol.events.n

    q = jnp.asarray([9.81, 0.5, 50.0, 0.0])
    t, u, code, saved, n = ours(q)
    assert code == dj.ReturnCode.terminated
    assert n == 1
    close(t, np.sqrt(100 / 9.81), 1e-14)
    assert abs(u[0]) < 3e-12
    close(u[1], 0.5 * np.sqrt(2 * 9.81 * 50), 1e-12)
    assert np.all(np.isfinite(saved[:4]))
    assert np.all(np.isnan(saved[4:]))
    got = jax.grad(lambda q: ours(q)[0])(q)
    close(got, jax.jit(jax.grad(lambda q: landing(q)[0]))(q), 1e-10)


def test_directions_and_order() -> None:
    """x = sin t; three conditions at the same roots, whose affects on a number do not commute."""

    def affect(change: Any) -> Any:
        return lambda u, p, t: u.at[2].set(change(u[2]))

    def root(u: Any, p: Any, t: Any) -> Any:
        return u[0]

    callbacks = (
        dj.ContinuousCallback(root, affect(lambda c: 2 * c)),
        dj.ContinuousCallback(root, affect(lambda c: c + 1), direction=-1),
        dj.ContinuousCallback(root, affect(lambda c: 10 * c), direction=1),
    )
    field = lambda u, p, t: jnp.stack([u[1], -u[0], jnp.zeros_like(t)])  # noqa: E731
    prob = dj.ODEProblem(field, jnp.asarray([0.0, 1.0, 1.0]), (0.0, 10.0))
    sol = dj.solve(prob, dj.Vern7(), callback=callbacks, rtol=1e-10, atol=1e-10)
    # The solve starts on a root, which is no event.
    np.testing.assert_array_equal(sol.events.which[:7], [0, 1, 0, 2, 0, 1, -1])
    close(sol.events.t[:6], np.pi * np.asarray([1, 1, 2, 2, 3, 3]), 1e-9)
    close(sol.u[-1], [np.sin(10), np.cos(10), 121.0], 0.0, 1e-8)


def test_events_where_steps_end() -> None:
    """Roots at the start (no event), between two of one step, at a step's end that is a save time,
    and at the end: what is saved there is the state after."""
    ones = lambda u, p, t: jnp.ones_like(u)  # noqa: E731
    ts = np.asarray([0.0, 0.25, 0.5, 0.75, 1.0])
    callbacks = (
        dj.ContinuousCallback(lambda u, p, t: (t - 0.3) * (t - 0.4), lambda u, p, t: u + 1.0),
        dj.ContinuousCallback(
            lambda u, p, t: t * (t - 0.5) * (t - 1.0), lambda u, p, t: u + 10.0, samples=0
        ),
    )
    prob = dj.ODEProblem(ones, 0.0, (0.0, 1.0))
    sol = dj.solve(prob, dj.Tsit5(), callback=callbacks, dt=0.5, saveat=ts)
    np.testing.assert_array_equal(sol.events.which[:5], [0, 0, 1, 1, -1])
    close(sol.events.t[:4], [0.3, 0.4, 0.5, 1.0], 1e-14)
    close(sol.u, [0.0, 0.25, 12.5, 12.75, 23.0], 1e-13)
    close((sol.u_end, sol.t_end), (23.0, 1.0), 1e-13)


def test_scheduled_and_discrete() -> None:
    """Doses at the start, at given times and at regular ones, with the derivatives by all of it;
    a discrete callback ends the solve of a state that has grown too large."""

    def ours(times: jax.Array, dose: jax.Array) -> tuple[jax.Array, Any]:
        prob = dj.ODEProblem(lambda u, p, t: -u, 0.0, (0.0, 3.0), dose)
        more = lambda u, p, t: u + p  # noqa: E731
        callbacks = (
            dj.PresetTimeCallback([0.0], more),
            dj.PresetTimeCallback(times, more),
            dj.PeriodicCallback(1.0, more),
        )
        sol = dj.solve(prob, dj.Tsit5(), callback=callbacks, saveat=0.75, **TIGHT)
        return sol.u, (sol.u, sol.events)

    @jax.jit
    def exact(times: jax.Array, dose: jax.Array) -> jax.Array:
        ts = jnp.asarray([0.0, 0.75, 1.5, 2.25, 3.0])
        when = jnp.concatenate([jnp.zeros(1), times, jnp.asarray([1.0, 2.0, 3.0])])
        later = ts[:, None] - when[None]
        return dose * jnp.sum(jnp.where(later >= 0, jnp.exp(-later), 0), axis=1)

    given = (jnp.asarray([1.3, 0.4]), jnp.asarray(1.7))
    got, (u, events) = jax.jit(jax.jacrev(ours, argnums=(0, 1), has_aux=True))(*given)
    close(u, exact(*given), 1e-9)
    np.testing.assert_array_equal(events.which[:7], [0, 1, 2, 1, 2, 2, -1])
    close(got, jax.jit(jax.jacfwd(exact, argnums=(0, 1)))(*given), 1e-8, 1e-9)
    large = dj.DiscreteCallback(lambda u, p, t: u > 10, lambda u, p, t: -u, terminate=True)
    sol = dj.solve(dj.ODEProblem(lambda u, p, t: u, 1.0, (0.0, 30.0)), dj.Tsit5(), callback=large)
    assert sol.retcode == dj.ReturnCode.terminated
    assert sol.events.n == 1
    close((sol.events.t[0], -sol.u_end), (sol.t_end, np.exp(sol.t_end)), 1e-2)


def test_saves_within_rounding_of_an_event() -> None:
    """A save just after an event is inside the next step, not at its end."""
    around = [np.nextafter(0.5, 0.0), 0.5, np.nextafter(0.5, 1.0), 1.0]
    prob = dj.ODEProblem(lambda u, p, t: jnp.ones_like(u), 0.0, (0.0, 1.0))
    callback = dj.PresetTimeCallback([0.5], lambda u, p, t: u + 1.0)

    def ours(u0: jax.Array) -> jax.Array:
        given = {"callback": callback, "dt": 0.3, "saveat": np.asarray(around)}
        return dj.solve(prob, dj.Tsit5(), u0=u0, **given).u

    for u in (ours(jnp.asarray(0.0)), jax.vmap(ours)(jnp.zeros(2))[1]):
        close(u, [1.5, 1.5, 1.5, 2.0], 1e-14)


@pytest.mark.usefixtures("optimised")
def test_single_precision_pytree_in_backward_time() -> None:
    """What goes up as time goes on comes down as it goes back."""
    state = {"x": jnp.ones((), jnp.float32), "v": jnp.zeros((), jnp.float32)}

    def field(u: Any, p: Any, t: Any) -> Any:
        return {"x": u["v"], "v": jnp.full_like(u["v"], -9.8)}

    callback = dj.ContinuousCallback(
        lambda u, p, t: u["x"], lambda u, p, t: {"x": u["x"], "v": -0.8 * u["v"]}, direction=-1
    )
    prob = dj.ODEProblem(field, state, (0.0, -1.0))
    sol = dj.solve(prob, dj.Tsit5(), callback=callback, rtol=1e-5, atol=1e-6)
    x, v = bounced(BALL)
    assert sol.events.n == 1
    assert sol.u["x"].dtype == jnp.float32
    close(sol.events.t[0], -landing(BALL)[0], 1e-6)
    close((sol.u["x"][-1], sol.u["v"][-1]), (x, -v), 1e-5)


METHODS: dict[str, tuple[Any, dict[str, Any], float]] = {
    "Rodas5P": (dj.Rodas5P(), {}, 1e-6),
    "KenCarp4": (dj.KenCarp4(), {}, 1e-6),
    "FBDF": (dj.FBDF(), {}, 1e-4),
    "RadauIIA5": (dj.RadauIIA5(), {}, 1e-6),
    "AutoTsit5": (dj.AutoTsit5(dj.Rosenbrock23()), {}, 1e-6),
    "RK4": (dj.RK4(), {"dt": 0.01}, 1e-6),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str) -> None:
    """A decay that is turned around where it reaches a level, and its derivatives: u' = -p u."""
    alg, options, rtol = METHODS[name]

    def ours(p: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        callback = dj.ContinuousCallback(lambda u, q, t: u[0] - level, lambda u, q, t: u + 1.0)
        prob = dj.ODEProblem(lambda u, p, t: -p * u, jnp.ones(1), (0.0, 1.0), p)
        sol = dj.solve(prob, alg, callback=callback, rtol=1e-8, atol=1e-8, **options)
        return jnp.stack([sol.u[-1, 0], sol.events.t[0]])

    def exact(p: jax.Array, level: jax.Array) -> jax.Array:
        t = -jnp.log(level) / p
        return jnp.stack([(level + 1) * jnp.exp(-p * (1 - t)), t])

    def derivative(f: Callable) -> tuple:
        """Of a sum of both, which is one pass backwards, and both."""

        def weighted(*given: jax.Array) -> tuple[jax.Array, jax.Array]:
            both = f(*given)
            return both @ jnp.asarray([1.0, 0.7]), both

        given = (jnp.asarray(1.3), jnp.asarray(0.6))
        return jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))(*given)

    close(derivative(ours), derivative(exact), rtol)


def test_algebraic_equations() -> None:
    """u0' = -u1 with u1 = u0, whose affect leaves the algebraic equation as it was."""

    @jax.jit
    @jax.value_and_grad
    def ours(level: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(
            lambda u, p, t: jnp.stack([-u[1], u[1] - u[0]]),
            jnp.ones(2),
            (0.0, 1.0),
            mass_matrix=np.diag([1.0, 0.0]),
        )
        callback = dj.ContinuousCallback(lambda u, p, t: u[1] - level, lambda u, p, t: u + 1.0)
        return dj.solve(prob, dj.Rodas3P(), callback=callback, rtol=1e-8, atol=1e-8).u[-1, 1]

    level = 0.6
    close(ours(jnp.asarray(level)), ((level + 1) / level / np.e, -1 / level**2 / np.e), 1e-6)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", ["EM", "SOSRI"])
def test_barrier_of_a_stochastic_equation(name: str) -> None:
    """dX = mu dt + dW stops at b; what becomes of X is the path itself. The probability of that
    before T is known, for a barrier moved by 0.5826 sqrt(dt) if it is looked for at the ends of
    steps (Broadie, Glasserman and Kou, A continuity correction for discrete barrier options, Math.
    Finance 7, 1997)."""
    mu, b, dt, paths = 0.5, 1.0, 1 / 64, 8000
    alg, options = {
        "EM": (dj.EM(), {"dt": dt}),
        "SOSRI": (dj.SOSRI(), {"rtol": 1e-2, "atol": 1e-2, "dtmax": dt}),
    }[name]
    prob = dj.SDEProblem(
        lambda u, p, t: jnp.full_like(u, mu), lambda u, p, t: jnp.ones_like(u), 0.0, (0.0, 1.0)
    )
    stop = dj.ContinuousCallback(lambda u, p, t: u - b, terminate=True)

    @jax.jit
    @jax.vmap
    def solve(key: jax.Array) -> Any:
        sol = dj.solve(prob, alg, callback=stop, key=key, throw=False, **options)
        w = jnp.reshape(sol.noise(sol.t_end[None]), ())
        return sol.u_end, sol.u_end - mu * sol.t_end - w, sol._retcode

    ends, off, codes = solve(jax.random.split(jax.random.key(0), paths))
    close(off, np.zeros(paths), 0.0, 1e-12)
    hit = np.asarray(codes) == dj.ReturnCode.terminated
    assert np.all(ends[~hit] < b)
    # A Brownian path moves so far in what the tree of its values resolves.
    assert np.all((ends[hit] >= b) & (ends[hit] < b + 5e-3))

    def exact(b: float) -> float:
        return norm.cdf(mu - b) + np.exp(2 * mu * b) * norm.cdf(-b - mu)

    error = np.std(hit) / np.sqrt(paths)
    wanted = exact(b + 0.5826 * np.sqrt(dt))
    assert abs(np.mean(hit) - wanted) < 3 * error < (exact(b) - wanted) / 2


def test_errors() -> None:
    prob = dj.ODEProblem(lambda u, p, t: -u, jnp.ones(2), (0.0, 1.0))
    first = lambda u, p, t: u[0] - 0.5  # noqa: E731

    def solve(callback: Any, **options: Any) -> None:
        dj.solve(prob, dj.Tsit5(), callback=callback, **options)

    for error, match, callback in (
        (ValueError, "must be a scalar, got shape", dj.ContinuousCallback(lambda u, p, t: u)),
        (TypeError, "must be a real number", dj.ContinuousCallback(lambda u, p, t: u[0] > 0)),
        (TypeError, "must be a boolean", dj.DiscreteCallback(first)),
        (
            ValueError,
            "the affect of ContinuousCallback",
            dj.ContinuousCallback(first, lambda u, p, t: u[0]),
        ),
        (
            TypeError,
            "the affect of DiscreteCallback",
            dj.DiscreteCallback(lambda u, p, t: u[0] < 0.5, lambda u, p, t: jax.lax.complex(u, u)),
        ),
        (TypeError, "callback", first),
    ):
        with pytest.raises(error, match=match):
            solve(callback)
    with pytest.raises(ValueError, match="cannot differentiate a solve with callbacks"):
        solve(dj.ContinuousCallback(first), adjoint=dj.BacksolveAdjoint())
    with pytest.raises(ValueError, match="max_events must be a positive integer"):
        solve(dj.ContinuousCallback(first), max_events=0)
    with pytest.raises(ValueError, match="direction must be"):
        dj.ContinuousCallback(first, direction=2)
    with pytest.raises(ValueError, match="period must be a positive"):
        dj.PeriodicCallback(-1.0)
    with pytest.raises(ValueError, match="needs a tspan of Python numbers"):
        jax.jit(lambda t: dj.solve(prob, tspan=(0.0, t), callback=dj.PeriodicCallback(0.1)))(1.0)


@pytest.mark.parametrize("accepted", [True, False])
def test_a_closed_bracket_is_left(accepted: bool) -> None:
    """An attempt of the lower end that crosses all the same, as an iteration may make it, lands, or
    is refused for its error: it is not repeated for ever."""
    one, dt = jnp.ones(1), jnp.asarray(0.5)
    near = resolution(jnp.zeros(()), dt)
    search = Search(
        aim=dt,
        low=dt,
        high=dt + near / 2,
        sure=jnp.asarray(True),
        which=jnp.zeros((), jnp.int32),
        tries=jnp.asarray(20, jnp.int32),
    )
    attempt = Attempt(jnp.zeros(()), dt, one, one, lambda x: one - 2 * x, -one, near)
    sighting = look(
        attempt,
        (0,),
        0,
        search,
        jnp.asarray(True),
        jnp.asarray(accepted),
        lambda condition, function, x: function(x),
        rough=False,
    )
    assert not sighting.pending
    assert not sighting.search.on
    assert bool(sighting.fired[0]) == accepted
