"""What is saved and when, where a solve stops, and that saving never changes the steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.problems import LOTKA_VOLTERRA, OSCILLATOR, oscillator

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
PROB = OSCILLATOR.ode()


def exact(t: Any) -> np.ndarray:
    assert OSCILLATOR.exact is not None
    return OSCILLATOR.exact(np.asarray(t))


def close(got: Any, wanted: Any, atol: float = 1e-7) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=0, atol=atol)


# Forms of saveat ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saveat", "times"),
    [
        (None, [10.0]),
        (2.5, [0.0, 2.5, 5.0, 7.5, 10.0]),
        (4.0, [0.0, 4.0, 8.0, 10.0]),
        (3, [0.0, 3.0, 6.0, 9.0, 10.0]),
        (20.0, [0.0, 10.0]),
        (np.array([0.0, 0.1, 0.1, 9.0]), [0.0, 0.1, 0.1, 9.0]),
        (lambda t0, t1: jnp.linspace(t0, t1, 3), [0.0, 5.0, 10.0]),
    ],
    ids=["end", "spacing", "uneven", "integer", "wide", "array", "function"],
)
@pytest.mark.parametrize("options", [TIGHT, {"steps": 400}], ids=["adaptive", "fixed"])
def test_saveat(saveat: Any, times: list[float], options: dict[str, Any]) -> None:
    """Each form gives its times, and the solution there."""
    sol = dj.solve(PROB, dj.Tsit5(), saveat=saveat, **options)
    close(sol.t, times, 1e-14)
    close(sol.u, exact(times))
    assert int(sol.n) == len(times)


def test_lanes_with_save_times_of_their_own() -> None:
    """Of a `vmap` without a `jit` around it the times of all lanes are known, not those of one."""
    times = jnp.array([[0.5, 2.5], [0.0, 10.0]])
    u = jax.vmap(lambda ts: dj.solve(PROB, dj.Tsit5(), saveat=ts, **TIGHT).u)(times)
    close(u, [exact(ts) for ts in times])
    with pytest.raises(ValueError, match="dt must be a number"):
        jax.vmap(lambda dt: dj.solve(PROB, dj.Euler(), dt=dt).u)(jnp.array([0.1, 0.2]))


def test_a_tenth_divides_ten() -> None:
    """Spacings that are not binary fractions still end on the end, once, at even times."""
    sol = dj.solve(PROB, dj.Tsit5(), saveat=0.1)
    assert sol.t.shape == (101,)
    close(sol.t, np.arange(101) / 10, 1e-14)
    assert float(sol.t[-1]) == 10.0


def test_every_step() -> None:
    """`saveat="steps"` gives all accepted steps, both ends included, NaN beyond `n`."""
    sol = dj.solve(PROB, dj.Tsit5(), saveat="steps", max_steps=300, **TIGHT)
    n = int(sol.n)
    assert n == int(sol.stats.naccept) + 1
    assert float(sol.t[0]) == 0.0
    assert float(sol.t[n - 1]) == 10.0
    assert np.all(np.diff(np.asarray(sol.t[:n])) > 0)
    close(sol.u[:n], exact(sol.t[:n]))
    assert np.all(np.isnan(np.asarray(sol.t[n:])))
    assert np.all(np.isnan(np.asarray(sol.u[n:])))


# With and without a last stage that is the next step's first, and stages for the extension alone.
@pytest.mark.parametrize("alg", [dj.Heun(), dj.Tsit5(), dj.BS5(), dj.Rodas5P()])
def test_saving_never_changes_the_steps(alg: dj.Algorithm) -> None:
    """Steps are chosen by the error alone; the final state is the same but for rounding.

    Two programs round differently (XLA fuses what it likes).
    """
    prob = LOTKA_VOLTERRA.ode(tspan=(0.0, 2.0))
    plain = dj.solve(prob, alg, rtol=1e-5, atol=1e-5)
    saved = dj.solve(prob, alg, rtol=1e-5, atol=1e-5, saveat=0.05, dense=True)
    assert int(plain.stats.naccept) == int(saved.stats.naccept)
    assert int(plain.stats.nreject) == int(saved.stats.nreject)
    close(plain.u_end, saved.u_end, 1e-11)


@pytest.mark.slow
def test_counts_and_flags_are_saved_beside_numbers() -> None:
    """A `save_fn` may return what has no derivative; it stands in the way of nobody else's."""

    def save(u: Any, p: Any, t: Any) -> Any:
        return {"large": u[0] > 1.5, "whole": jnp.floor(u[0]).astype(jnp.int32), "x": u[0]}

    @jax.jit
    def saved(p: jax.Array) -> Any:
        prob = dj.ODEProblem(lambda u, p, t: p * u, jnp.ones(1), (0.0, 1.0), p)
        return dj.solve(prob, dj.Tsit5(), saveat=0.5, save_fn=save, rtol=1e-9, atol=1e-9).u

    p = jnp.asarray(1.0)
    out = saved(p)
    assert out["large"].tolist() == [False, True, True]
    assert out["whole"].tolist() == [1, 1, 2]
    assert out["whole"].dtype == jnp.int32
    for derivative in (jax.grad, jax.jacfwd):
        slope = jax.jit(derivative(lambda p: saved(p)["x"][-1]))(p)
        np.testing.assert_allclose(slope, np.e, rtol=1e-7)


def test_save_idxs_and_save_fn() -> None:
    full = dj.solve(PROB, dj.Tsit5(), saveat=1.0, **TIGHT)
    for index in (1, [1, 0], slice(0, 1), np.array([1])):
        sol = dj.solve(PROB, dj.Tsit5(), saveat=1.0, save_idxs=index, **TIGHT)
        # Another program, which rounds differently.
        close(sol.u, np.asarray(full.u)[:, index], 1e-14)
    prob = LOTKA_VOLTERRA.ode()

    def save(u: Any, p: Any, t: Any) -> dict[str, Any]:
        return {"sum": jnp.sum(u), "scaled": u * p[0], "time": t, "count": jnp.asarray(3)}

    full = dj.solve(prob, dj.Tsit5(), saveat=1.0)
    for saveat in (1.0, None, "steps"):
        sol = dj.solve(prob, dj.Tsit5(), saveat=saveat, save_fn=save)
        assert set(sol.u) == {"sum", "scaled", "time", "count"}
        if saveat == 1.0:
            close(sol.u["sum"], np.sum(np.asarray(full.u), axis=1), 1e-14)
            close(sol.u["scaled"], np.asarray(full.u) * float(prob.p[0]), 1e-14)
            close(sol.u["time"], full.t, 1e-15)


# Dense output -------------------------------------------------------------------------


@pytest.mark.slow
def test_dense_output() -> None:
    """`sol(t)` takes any shape, in or outside the solve's jit, and knows where it ends."""
    sol = dj.solve(PROB, dj.BS5(), dense=True, saveat=0.5, **TIGHT)
    close(sol(sol.t), sol.u, 1e-13)
    assert sol(1.5).shape == (2,)
    times = jnp.asarray([[0.0, 0.3], [9.9, 10.0]])
    assert sol(times).shape == (2, 2, 2)
    close(sol(times), exact(np.asarray(times).ravel()).reshape(2, 2, 2))
    close(sol(times[0], deriv=1), exact(np.asarray(times[0]) + np.pi / 2), 1e-5)
    close(sol(times[0], deriv=2), -exact(np.asarray(times[0])), 1e-3)
    assert np.all(np.isnan(np.asarray(sol(jnp.asarray([-0.1, 10.1])))))

    @jax.jit
    def solved(u0: jax.Array) -> tuple[dj.Solution, jax.Array]:
        sol = dj.solve(PROB, dj.BS5(), u0=u0, dense=True, **TIGHT)
        return sol, sol(times)

    outside, inside = solved(PROB.u0)
    close(inside, sol(times), 1e-13)
    close(outside(times), sol(times), 1e-13)


def test_dense_output_of_a_dict_backwards() -> None:
    prob = dj.ODEProblem(
        lambda u, p, t: {"q": u["p"], "p": -u["q"]},
        {"q": jnp.asarray(1.0), "p": jnp.zeros(())},
        (0.0, -3.0),
    )
    sol = dj.solve(prob, dj.Tsit5(), dense=True, **TIGHT)
    t = jnp.asarray([-0.0, -1.0, -3.0])
    close(sol(t)["q"], jnp.cos(t), 1e-6)
    close(sol(t, deriv=1)["q"], -jnp.sin(t), 1e-5)


# Steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("saveat", [None, 0.5], ids=["end", "saves"])
def test_stops_are_stepped_on(saveat: Any) -> None:
    stops = [0.3, 1.0, 7.7]
    sol = dj.solve(PROB, dj.Tsit5(), saveat="steps", tstops=stops, **TIGHT)
    times = np.asarray(sol.t)
    for stop in stops:
        assert stop in times
    also = dj.solve(PROB, dj.Tsit5(), saveat=saveat, tstops=stops, **TIGHT)
    assert int(also.stats.naccept) == int(sol.stats.naccept)
    fixed = dj.solve(PROB, dj.RK4(), dt=0.5, tstops=[0.3, 1.0], saveat="steps", tspan=(0.0, 2.0))
    close(fixed.t, [0.0, 0.3, 0.8, 1.0, 1.5, 2.0], 1e-15)


def test_a_stop_cures_a_kink() -> None:
    """A jump of the field that a step lands on costs no accuracy."""

    def f(u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
        return jnp.where(t < 1.0, u, -u)

    prob = dj.ODEProblem(f, jnp.ones(1), (0.0, 2.0))
    sol = dj.solve(prob, dj.Tsit5(), rtol=1e-8, atol=1e-8, tstops=(1.0,))
    close(sol.u_end, [1.0], 1e-6)


def test_bounds_on_the_step() -> None:
    sol = dj.solve(PROB, dj.Tsit5(), saveat="steps", dtmax=0.25)
    widths = np.diff(np.asarray(sol.t[: int(sol.n)]))
    assert widths.max() <= 0.25 * (1 + 1e-2)
    first = dj.solve(PROB, dj.Tsit5(), saveat="steps", dt=1e-3)
    assert float(first.t[1]) == 1e-3
    stuck = dj.solve(PROB, dj.Tsit5(), dt=1.0, dtmin=0.9, throw=False, **TIGHT)
    assert stuck.retcode is dj.ReturnCode.dt_underflow


def test_fixed_steps() -> None:
    """`dt` that does not divide the span ends on it with a shorter step; `steps` divides it."""
    prob = OSCILLATOR.ode(tspan=(0.0, 1.0))
    sol = dj.solve(prob, dj.RK4(), dt=0.3, saveat="steps")
    close(sol.t, [0.0, 0.3, 0.6, 0.9, 1.0], 1e-15)
    sol = dj.solve(prob, dj.Tsit5(), dt=0.25, adaptive=False, saveat="steps")
    close(sol.t, [0.0, 0.25, 0.5, 0.75, 1.0], 1e-15)
    sol = dj.solve(prob, dj.Tsit5(), steps=3, saveat="steps")
    close(sol.t, np.linspace(0, 1, 4), 1e-15)


# Failure ------------------------------------------------------------------------------


def blow_up(u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
    return u**2


BLOW_UP = dj.ODEProblem(blow_up, jnp.ones(1), (0.0, 2.0))  # 1/(1 - t)


def test_out_of_steps_keeps_what_was_reached() -> None:
    sol = dj.solve(PROB, dj.Tsit5(), saveat=0.1, max_steps=40, throw=False, **TIGHT)
    assert sol.retcode is dj.ReturnCode.max_steps
    n = int(sol.n)
    assert 0 < n < 101
    close(sol.t, np.arange(101) / 10, 1e-14)
    close(sol.u[:n], exact(sol.t[:n]))
    assert np.all(np.isnan(np.asarray(sol.u[n:])))
    assert 0 < float(sol.t_end) < 10
    close(sol.u_end, exact(float(sol.t_end)))
    assert int(sol.stats.naccept) + int(sol.stats.nreject) == 40
    # Nothing saved but the end: it was not reached.
    sol = dj.solve(PROB, dj.Tsit5(), max_steps=40, throw=False, **TIGHT)
    assert np.all(np.isnan(np.asarray(sol.u)))


def test_a_singularity_ends_the_solve() -> None:
    """Nothing loops for ever, and what came before the pole stays."""
    sol = dj.solve(BLOW_UP, dj.Tsit5(), saveat=0.25, throw=False)
    code = sol.retcode
    assert code in (dj.ReturnCode.dt_underflow, dj.ReturnCode.unstable, dj.ReturnCode.max_steps)
    assert float(sol.t_end) == pytest.approx(1.0, abs=1e-2)
    close(sol.u[:4, 0], [1.0, 4 / 3, 2.0, 4.0], 1e-2)
    assert np.all(np.isnan(np.asarray(sol.u[5:])))


def test_a_field_that_is_not_finite() -> None:
    """A NaN rejects the step and ends the solve as `unstable`, whatever the steps."""
    prob = dj.ODEProblem(lambda u, p, t: jnp.where(t > 0.5, jnp.nan, -u), jnp.ones(2), (0.0, 1.0))
    sol = dj.solve(prob, dj.Tsit5(), saveat=0.25, throw=False)
    assert sol.retcode is dj.ReturnCode.unstable
    assert float(sol.t_end) <= 0.5
    close(sol.u[:2, 0], np.exp([0.0, -0.25]), 1e-3)
    fixed = dj.solve(prob, dj.RK4(), dt=0.1, throw=False)
    assert fixed.retcode is dj.ReturnCode.unstable
    # A NaN that a smaller step avoids is no failure.
    wall = dj.ODEProblem(
        lambda u, p, t: -jnp.sqrt(jnp.where(u < 0, jnp.nan, u)), jnp.ones(1), (0.0, 1.99)
    )
    sol = dj.solve(wall, dj.Tsit5(), dt=5.0, rtol=1e-6, atol=1e-6)
    close(sol.u_end, [(1 - 1.99 / 2) ** 2], 1e-5)


def test_solve_error() -> None:
    """The error says the code, the time, a cure, and keeps the solution."""
    with pytest.raises(dj.SolveError, match=r"max_steps.*t = [0-9.]+.*raise max_steps") as caught:
        dj.solve(PROB, dj.Tsit5(), saveat=0.1, max_steps=40, **TIGHT)
    kept = caught.value.solution
    assert kept is not None
    assert kept.retcode is dj.ReturnCode.max_steps
    assert int(kept.n) > 0

    def total(u0: jax.Array) -> jax.Array:
        return jnp.sum(dj.solve(PROB, dj.Tsit5(), u0=u0, max_steps=5, **TIGHT).u)

    with pytest.raises(dj.SolveError):
        jax.grad(total)(PROB.u0)


def test_under_jit_nothing_is_raised_unless_asked() -> None:
    def run(u0: jax.Array, throw: bool | None) -> jax.Array:
        return dj.solve(PROB, dj.Tsit5(), u0=u0, max_steps=5, throw=throw, **TIGHT).u

    quiet = jax.jit(lambda u0: run(u0, None)).lower(PROB.u0)
    assert np.all(np.isnan(np.asarray(quiet.compile()(PROB.u0))))
    assert "callback" not in quiet.as_text()
    with pytest.raises(Exception, match="did not reach its end"):
        jax.block_until_ready(jax.jit(lambda u0: run(u0, True))(PROB.u0))


def test_a_stiff_problem_out_of_steps_names_the_cure() -> None:
    """An explicit method that fails for stiffness says so, not just 'raise max_steps'."""
    prob = dj.ODEProblem(lambda u, p, t: -1e5 * (u - jnp.cos(t)), jnp.zeros(1), (0.0, 10.0))
    with pytest.raises(dj.SolveError, match="stiff"):
        dj.solve(prob, dj.Tsit5(), max_steps=500)


# States and spans ---------------------------------------------------------------------


def test_backward_time() -> None:
    prob = OSCILLATOR.ode(u0=jnp.asarray(exact(10.0)), tspan=(10.0, 0.0))
    for saveat, times in ((2.5, [10, 7.5, 5, 2.5, 0]), (np.array([9.0, 1.0]), [9, 1])):
        sol = dj.solve(prob, dj.Tsit5(), saveat=saveat, **TIGHT)
        close(sol.t, times, 1e-14)
        close(sol.u, exact(times))
    steps = dj.solve(prob, dj.Tsit5(), saveat="steps", tstops=[5.0], dt=0.01, **TIGHT)
    n = int(steps.n)
    assert np.all(np.diff(np.asarray(steps.t[:n])) < 0)
    assert float(steps.t[1]) == 9.99
    assert 5.0 in np.asarray(steps.t)
    assert float(steps.t_end) == 0.0
    fixed = dj.solve(prob, dj.RK4(), dt=0.01, saveat=5.0)
    close(fixed.u, exact([10.0, 5.0, 0.0]))


def test_a_span_of_no_length() -> None:
    """t1 = t0 gives the initial state, adaptive or fixed, traced or not."""
    for tspan in ((1.0, 1.0), (jnp.asarray(1.0), jnp.asarray(1.0))):
        sol = dj.solve(PROB, dj.Tsit5(), tspan=tspan, saveat=jnp.asarray([1.0, 1.0]))
        close(sol.u, [[1.0, 0.0]] * 2, 0.0)
        assert sol.retcode is dj.ReturnCode.success
        assert int(sol.stats.naccept) == 0
        close(dj.solve(PROB, dj.Tsit5(), tspan=tspan).u, [[1.0, 0.0]], 0.0)
        close(dj.solve(PROB, dj.RK4(), tspan=tspan, steps=3).u, [[1.0, 0.0]], 0.0)


def test_pytree_states_of_mixed_dtypes() -> None:
    """Any containers, shapes and dtypes; each leaf keeps its own."""
    u0 = {
        "a": jnp.ones((2, 3)),
        "b": (jnp.asarray(2.0, jnp.float32), jnp.asarray([1.0 + 1.0j])),
        "c": [jnp.ones(())],
    }
    prob = dj.ODEProblem(lambda u, p, t: jax.tree.map(lambda x: -x, u), u0, (0.0, 1.0))
    for options in ({"saveat": 0.5}, {"saveat": "steps", "max_steps": 64}, {"steps": 30}, {}):
        sol = dj.solve(prob, dj.Tsit5(), rtol=1e-5, atol=1e-7, **options)
        assert jax.tree.structure(sol.u) == jax.tree.structure(u0)
        for got, first in zip(jax.tree.leaves(sol.u_end), jax.tree.leaves(u0), strict=True):
            assert (got.dtype, got.shape) == (first.dtype, first.shape)
            close(got, np.asarray(first) * np.asarray(np.exp(-1.0), first.dtype), 1e-5)
    dense = dj.solve(prob, dj.Tsit5(), rtol=1e-5, atol=1e-7, dense=True)
    close(dense(0.5)["a"], np.full((2, 3), np.exp(-0.5)), 1e-5)


def test_tolerances_as_pytrees() -> None:
    """A leaf with a loose tolerance does not steer the steps."""

    def f(u: dict, p: Any, t: Any) -> dict:
        return {"slow": -u["slow"], "fast": 30.0 * jnp.cos(30.0 * t) * jnp.ones(2)}

    prob = dj.ODEProblem(f, {"slow": jnp.ones(2), "fast": jnp.zeros(2)}, (0.0, 1.0))

    def steps(rtol: Any, atol: Any) -> int:
        return int(dj.solve(prob, dj.Tsit5(), rtol=rtol, atol=atol).stats.naccept)

    strict = steps(1e-7, 1e-7)
    loose = steps({"slow": 1e-7, "fast": 1.0}, {"slow": 1e-7, "fast": jnp.asarray([1e3, 1e3])})
    assert loose < strict / 2
    assert steps({"slow": 1e-7, "fast": 1e-7}, 1e-7) == strict


def test_initial_state_and_span_as_functions() -> None:
    prob = dj.ODEProblem(
        oscillator,
        lambda p, t0: p["amplitude"] * jnp.stack([jnp.cos(t0), -jnp.sin(t0)]),
        lambda p: (p["start"], 4.0),
        {"amplitude": jnp.asarray(2.0), "start": jnp.asarray(1.0)},
    )
    sol = dj.solve(prob, dj.Tsit5(), saveat=jnp.asarray([1.0, 3.0]), **TIGHT)
    close(sol.u, 2 * exact([1.0, 3.0]))
    close(sol.t_end, 4.0, 0.0)


def test_overrides_are_remake() -> None:
    """`solve(prob, u0=, tspan=, p=)` equals solving the remade problem."""
    changes = {"u0": jnp.asarray([2.0, 1.0]), "tspan": (1.0, 2.0), "p": jnp.ones(4)}
    prob = LOTKA_VOLTERRA.ode()
    alg = dj.Tsit5()
    close(dj.solve(prob, alg, **changes).u, dj.solve(dj.remake(prob, **changes), alg).u, 0.0)


@pytest.mark.parametrize("name", ["Tsit5", "BS5"])
def test_resuming_equals_one_go(name: str) -> None:
    """Stopped at a step and gone on, controller state included, the steps are the same."""
    alg = getattr(dj, name)()
    prob = LOTKA_VOLTERRA.ode()
    options = {"rtol": 1e-6, "atol": 1e-6}
    whole = dj.solve(prob, alg, saveat="steps", tstops=[4.0], **options)
    first = dj.solve(prob, alg, tspan=(0.0, 4.0), **options)
    second = dj.solve(prob, alg, resume=first.final, saveat="steps", **options)
    n, m = int(whole.n), int(second.n)
    assert float(second.t[0]) == 4.0
    # A rounding error in the first step is a thousand times larger in the size of the last.
    close(second.t[:m], whole.t[n - m : n], 1e-9)
    close(second.u_end, whole.u_end, 1e-9)
    assert int(first.stats.naccept) + int(second.stats.naccept) == int(whole.stats.naccept)
    assert int(second.stats.nf) <= int(whole.stats.nf) - int(first.stats.nf) + 2
    fixed = dj.solve(prob, dj.RK4(), tspan=(0.0, 5.0), steps=50)
    rest = dj.solve(prob, dj.RK4(), resume=fixed.final, steps=50)
    close(rest.u_end, dj.solve(prob, dj.RK4(), steps=100).u_end, 1e-12)


def test_save_times_of_a_stochastic_solve_that_rounding_keeps_off_its_steps() -> None:
    """No step is put between the two: in that precision its length, and so its noise, is 0/0."""
    times = jnp.linspace(0.0, 1.0, 30, dtype=jnp.float32)
    u0 = jnp.ones(2, jnp.float32)
    prob = dj.SDEProblem(lambda u, p, t: u, lambda u, p, t: u, u0, (0.0, 1.0))
    sol = dj.solve(prob, dj.SOSRI(), steps=58, saveat=times, key=jax.random.key(0))
    assert int(sol.stats.naccept) == 58
    assert sol.u.shape == (30, 2)


def relaxing(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.stack([-p * (u[0] - jnp.cos(t)), u[0] - u[1] ** 3])


def relaxing_residual(du: jax.Array, u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    return du - relaxing(u, p, t)


@pytest.mark.parametrize(
    "alg",
    [dj.FBDF(), dj.DFBDF(), dj.AutoTsit5(dj.Rodas5P())],
    ids=lambda alg: alg.name,
)
def test_resuming_goes_on_with_what_was_remembered(alg: dj.Algorithm) -> None:
    """Past values, order and the side of a switch: no start anew, which costs a dozen steps, and
    the derivative of the whole."""
    u0, options = jnp.asarray([2.0, 0.5]), {"rtol": 1e-6, "atol": 1e-8}

    def problem(p: jax.Array) -> dj.ODEProblem | dj.DAEProblem:
        if isinstance(alg, dj.DFBDF):
            du0 = relaxing(u0, p, jnp.asarray(0.0))
            return dj.DAEProblem(relaxing_residual, du0, u0, (0.0, 6.0), p)
        return dj.ODEProblem(relaxing, u0, (0.0, 6.0), p)

    @jax.jit
    def until(t1: float, p: jax.Array) -> tuple[jax.Array, Any, Any]:
        sol = dj.solve(problem(p), alg, tspan=(0.0, t1), tstops=[3.0], **options)
        return sol.u_end, sol.stats, sol.final

    @jax.jit
    def rest(p: jax.Array, final: Any) -> tuple[jax.Array, Any]:
        sol = dj.solve(problem(p), alg, resume=final, **options)
        return sol.u_end, sol.stats

    def halves(p: jax.Array) -> tuple[jax.Array, Any]:
        _, first, final = until(3.0, p)
        end, second = rest(p, final)
        return end[1], (end, first, second)

    def whole(p: jax.Array) -> tuple[jax.Array, Any]:
        end, stats, _ = until(6.0, p)
        return end[1], (end, stats)

    def run(f: Any) -> Any:
        p = jnp.asarray(5000.0)
        return jax.value_and_grad(f, has_aux=True)(p) if isinstance(alg, dj.FBDF) else (f(p), None)

    (_, (end, first, second)), slope = run(halves)
    (_, (wanted, stats)), wanted_slope = run(whole)
    close(end, wanted, 1e-9)
    assert abs(int(first.naccept + second.naccept - stats.naccept)) <= 2
    assert second.nfactor > 0
    assert second.nf < 300
    if slope is not None:
        close(slope / wanted_slope, 1.0, 1e-6)


def test_resuming_by_another_method_or_backwards_starts_anew() -> None:
    """What is remembered is of one method and one direction of time."""
    prob = dj.ODEProblem(lambda u, p, t: -u, jnp.asarray(1.0), (0.0, 1.0))
    final = dj.solve(prob, dj.FBDF(), rtol=1e-6, atol=1e-8).final
    for alg, end in ((dj.QNDF(), 2.0), (dj.FBDF(), 0.5)):
        resumed = dj.solve(prob, alg, tspan=(0.0, end), resume=final, rtol=1e-6, atol=1e-8)
        close(resumed.u_end, np.exp(-end), 1e-5)


@pytest.mark.parametrize("alg", [dj.FBDF(), dj.RadauIIA5(), dj.AutoTsit5(dj.FBDF())])
def test_a_spacing_saves_the_start(alg: dj.Algorithm) -> None:
    """Methods that remember past values have none there to interpolate."""
    prob = dj.ODEProblem(lambda u, p, t: -u, jnp.ones(1), (0.0, 1.0))
    sol = dj.solve(prob, alg, saveat=0.5, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sol.u[:, 0], np.exp(-np.array([0.0, 0.5, 1.0])), rtol=1e-4)
