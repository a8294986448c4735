"""BDF methods: their formulas, accuracy and work on stiff and algebraic problems, derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.algorithms.base import Field, Memory
from diffjax.algorithms.bdf import BDF
from diffjax.algorithms.bdf_history import History
from diffjax.algorithms.bdf_order import Choice
from diffjax.linear import reuse
from diffjax.stepping.lanes import is_native
from tests.methods import BY_NAME, EVERY_BDF_METHOD, Method
from tests.problems import (
    AFFINE,
    CLOCK,
    ROBER,
    clock,
    robertson,
)
from tests.stiff_problems import solve
from tests.test_esdirk import brusselator, end_by_lsoda, trap
from tests.test_orders import slope
from tests.test_rosenbrock import INPUTS, THIRDS, TIMES, check_robertson

# Formulas -------------------------------------------------------------------------------------


def past_of(values: Any, times: np.ndarray, steps: int) -> History:
    """The history of a function with values at times[0] > times[1] > ...; D_j by its definition."""

    def divided(k: int, j: int) -> Any:
        if j == 0:
            return values(times[k])
        return (divided(k, j - 1) - divided(k + 1, j - 1)) / (times[k] - times[k + j])

    rows = [
        np.prod([times[0] - times[m] for m in range(1, j + 1)]) * divided(0, j) for j in range(1, 6)
    ]
    return History(jnp.asarray(np.stack(rows)), jnp.asarray(times[:steps] - times[1 : steps + 1]))


def spacing(alg: BDF, h: float) -> np.ndarray:
    """Times 0 > ... of the past of a step h: uneven where the method keeps them as they are."""
    gaps = np.full(6, 1.3) if alg.steps_back == 1 else np.array([1.1, 0.7, 1.3, 0.8, 1.2, 0.9])
    return -h * np.concatenate([[0.0], np.cumsum(gaps)])


@EVERY_BDF_METHOD
def test_a_step_is_exact_for_polynomials(method: Method) -> None:
    """Of degree up to the order: prediction, its derivative, and what a step hands to the next."""
    alg, h, orders = method.make(), 0.7, np.arange(1, 6, dtype=np.int32)
    rows = np.tril(np.ones((5, 5)), 1) * np.array([0.3, -1.0, 0.7, 0.2, -0.4])
    polys = [np.polynomial.Polynomial([*row, 0.1 * (k == 5)]) for k, row in enumerate(rows, 1)]

    def past_at(times: np.ndarray) -> History:
        return past_of(lambda t: np.array([q(t) for q in polys]), times, alg.steps_back)

    @jax.jit
    @jax.vmap
    def step(history: History, order: Any) -> Any:
        past = alg.formula(history, jnp.asarray(h), order).past
        return past.predicted(order), past.distances, past.after(order, jnp.zeros(1))

    before = past_at(spacing(alg, h))
    each = History(before.differences.T[:, :, None], jnp.tile(before.steps, (5, 1)))
    (change, slope), distances, after = step(each, orders)
    wanted = past_at(h * (1 - np.concatenate([[0.0], distances[0]])))
    for k, poly in zip(orders, polys, strict=True):
        np.testing.assert_allclose(poly(0.0) + change[k - 1], poly(h), rtol=1e-11)
        np.testing.assert_allclose(slope[k - 1], h * poly.deriv()(h), rtol=1e-11)
        rows = after.differences[k - 1, :k, 0], wanted.differences[:k, k - 1]
        np.testing.assert_allclose(*rows, rtol=1e-8)
        np.testing.assert_allclose(after.steps[k - 1], wanted.steps, rtol=1e-12)


@EVERY_BDF_METHOD
def test_orders_of_one_step(method: Method) -> None:
    """From an exact past a step of order k has an error O(h^(k+1)), at its end and inside."""
    alg = method.make()
    assert (alg.order, alg.dense_order) == (method.order, method.dense_order)
    jaxpr = jax.make_jaxpr(lambda t, u: clock(u, None, t))(jnp.zeros(()), jnp.ones(2))
    field, theta = Field(jaxpr.jaxpr, tuple(jaxpr.consts)), jnp.linspace(0.0, 1.0, 11)
    assert CLOCK.exact is not None
    exact = CLOCK.exact

    @jax.jit
    @jax.vmap
    def step(t: Any, h: Any, u: Any, history: History, order: Any) -> Any:
        cache = alg.init(field, t, u).cache
        memory = Memory(history, Choice.first()._replace(order=order), cache)
        result = alg.step(field, t, h, u, memory, None)
        coefficients = alg.dense(field, t, h, u, result.stages)
        return result.u, jax.vmap(lambda x: alg.interpolate(coefficients, x))(theta)

    widths, starts = np.array([0.02, 0.014, 0.01]), np.linspace(0.5, 6.0, 7)
    cases = [(k, h, t) for k in range(1, 6) for h in widths for t in starts]
    orders, sizes, times = (np.array(x) for x in zip(*cases, strict=True))
    histories = [
        past_of(lambda s, t=t: exact(t + s), spacing(alg, h), alg.steps_back) for _, h, t in cases
    ]
    past = jax.tree.map(lambda *xs: jnp.stack(xs), *histories)
    end, between = step(times, sizes, exact(times), past, orders.astype(np.int32))
    inside = exact(times[:, None] + sizes[:, None] * np.asarray(theta))
    np.testing.assert_allclose(between[:, -1], end, rtol=1e-13)
    errors = np.max(np.abs(np.asarray(between) - inside), axis=2).reshape(5, 3, 7, 11)
    for k in range(1, 6):
        at_end, anywhere = (
            np.max(errors[k - 1, :, :, -1], axis=1),
            np.max(errors[k - 1], axis=(1, 2)),
        )
        assert slope(widths, at_end) > k + 1 - 0.35
        assert slope(widths, anywhere) > k + 1 - 0.35


@EVERY_BDF_METHOD
def test_fixed_steps_are_of_order_two(method: Method) -> None:
    """As good as a start from one value allows; of order one if that is asked for."""
    assert CLOCK.exact is not None
    for highest, order in ((1, 1), (5, 2)):
        alg = type(method.make())(max_order=highest)
        ends = [dj.solve(CLOCK.ode(), alg, steps=steps).u_end for steps in (400, 800)]
        errors = [np.max(np.abs(end - CLOCK.exact(np.array([3.0]))[0])) for end in ends]
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@EVERY_BDF_METHOD
def test_the_order_rises_to_five(method: Method) -> None:
    """On a smooth problem, one at a time, and each is kept for as many steps as it has."""
    integrator, orders = dj.init(CLOCK.ode(), method.make(), rtol=1e-7, atol=1e-7), []
    while not integrator.done:
        orders.append(int(integrator._carry.memory.choice.order))
        integrator = dj.step(integrator)
    assert orders[0] == 1
    assert max(orders) == 5
    changes = np.abs(np.diff(orders))
    assert np.max(changes) == 1
    assert orders.index(5) >= 8
    assert orders.count(5) > len(orders) / 2


# Accuracy and work ----------------------------------------------------------------------------


def test_a_dense_mass_matrix() -> None:
    """M u' = A u + t A 1, explicit in time, with M = A: guards against a lost product with M."""
    for rtol in (1e-4, 1e-8):
        sol = solve(AFFINE, "FBDF", rtol, saveat=np.linspace(0, 1, 7))
        np.testing.assert_allclose(sol.u, AFFINE.exact(np.linspace(0, 1, 7)), rtol=10 * rtol)


@EVERY_BDF_METHOD
def test_a_stiff_linear_problem(method: Method) -> None:
    """u' = -1e6 (u - sin t) + cos t: the steps follow the solution, not the rate."""
    prob = dj.ODEProblem(
        lambda u, p, t: -p * (u - jnp.sin(t)) + jnp.cos(t), jnp.zeros(1), (0.0, 20.0), 1e6
    )
    sol = dj.solve(prob, method.make(), rtol=1e-6, atol=1e-6, saveat=np.linspace(0.0, 20.0, 101))
    assert np.max(np.abs(sol.u[:, 0] - np.sin(sol.t))) < 2e-6
    # Half as many again as when a step's error was held to a sixth of the tolerance. Now it is to a
    # sixtieth, and the bound above is five times tighter.
    assert int(sol.stats.naccept) + int(sol.stats.nreject) < 390
    assert int(sol.stats.nf) < 1.2 * 390


def test_stops_cost_few_steps() -> None:
    """Guards against slivers of steps before a stop, after which the past says nothing."""
    options = {"rtol": 1e-6, "atol": 1e-6}
    free = dj.solve(CLOCK.ode(), dj.QNDF(), **options)
    stops = np.linspace(0.0, 3.0, 9)[1:-1] + 1e-3
    cut = dj.solve(CLOCK.ode(), dj.QNDF(), tstops=stops, **options)
    assert CLOCK.exact is not None
    assert int(cut.stats.naccept) + int(cut.stats.nreject) <= int(free.stats.naccept) + 40
    assert np.max(np.abs(cut.u_end - CLOCK.exact(np.array([3.0]))[0])) < 1e-5


def test_an_event_is_no_failure_of_a_step() -> None:
    """Attempts that close in on it must not lower the order: at one that is too low for the step
    none is accepted, and the search would never end."""
    prob = dj.ODEProblem(lambda u, p, t: 2 * (1.5 - u), jnp.zeros(1), (0.0, 2.0))
    event = dj.ContinuousCallback(lambda u, p, t: u[0] - 0.5)
    sol = dj.solve(prob, dj.FBDF(), callback=event, rtol=3e-10, atol=3e-12)
    np.testing.assert_allclose(sol.events.t[0], 0.5 * np.log(1.5), rtol=1e-8)
    assert int(sol.stats.nreject) < 30


@EVERY_BDF_METHOD
def test_saves_meet_the_tolerance_as_steps_do(method: Method) -> None:
    """Dense output at 1,001 points against the closed form."""
    for tolerance in (1e-4, 1e-8):
        options = {"rtol": tolerance, "atol": tolerance}
        sol = dj.solve(CLOCK.ode(), method.make(), saveat="steps", dense=True, **options)
        n, points = int(sol.n), np.linspace(0.0, 3.0, 1001)
        at_steps = np.max(np.abs(sol.u[:n] - CLOCK.exact(np.asarray(sol.t)[:n])))
        between = np.max(np.abs(sol(points) - CLOCK.exact(points)))
        assert between <= max(3 * at_steps, tolerance)


@pytest.mark.slow
def test_matrices_of_a_large_system_are_kept() -> None:
    """Far fewer factorisations than steps, fewer Jacobians; the solution is that without.

    A replay starts without any, and must come to the derivative that differences come to.
    """
    prob = dj.remake(brusselator(reuse.KEPT // 2 + 1), tspan=(0.0, 3.0))
    sol = dj.solve(prob, dj.FBDF(), rtol=1e-5, atol=1e-5, max_steps=512)
    attempts = int(sol.stats.naccept) + int(sol.stats.nreject)
    assert int(sol.stats.nfactor) <= 0.4 * attempts
    assert int(sol.stats.njac) <= 0.2 * attempts
    np.testing.assert_allclose(sol.u_end, end_by_lsoda(prob), atol=1e-4)

    def total(scale: jax.Array) -> jax.Array:
        start = dj.remake(prob, u0=prob.u0 * scale, tspan=(0.0, 0.5))
        sol = dj.solve(start, dj.FBDF(), steps=5, adjoint=dj.DiscreteAdjoint(checkpoints=2))
        return jnp.sum(sol.u_end**2)

    slope, e = jax.jit(jax.value_and_grad(total)), 1e-5
    difference = (slope(1.0 + e)[0] - slope(1.0 - e)[0]) / (2 * e)
    np.testing.assert_allclose(slope(1.0)[1], difference, rtol=1e-7)


# Failure --------------------------------------------------------------------------------------


def test_a_failed_iteration_is_told() -> None:
    prob = dj.ODEProblem(trap, jnp.ones(1), (0.0, 1.0))
    for name in ("FBDF", "QNDF"):
        sol = dj.solve(prob, BY_NAME[name].make(), throw=False)
        assert sol.retcode is dj.ReturnCode.newton_failed
        assert int(sol.stats.nnewton_fail) > 10
        assert 0.4 < float(sol.t_end) <= 0.5
        assert np.all(np.isnan(sol.u))


def test_a_field_that_is_not_finite_is_unstable_not_newton_failed() -> None:
    prob = dj.ODEProblem(lambda u, p, t: jnp.where(t < 0.5, -u, jnp.nan), jnp.ones(1), (0.0, 1.0))
    sol = dj.solve(prob, dj.FBDF(), throw=False)
    assert sol.retcode is dj.ReturnCode.unstable
    assert float(sol.t_end) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("order", [0, 6, 2.5, "5"])
def test_an_order_that_is_none(order: Any) -> None:
    with pytest.raises(ValueError, match="max_order of FBDF must be a whole number from 1 to 5"):
        dj.FBDF(max_order=order)


# Derivatives ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradient_of_robertson() -> None:
    """Backwards, also by segments that are taken again."""

    def states(p: jax.Array, adjoint: Any) -> jax.Array:
        prob = dj.ODEProblem(robertson, jnp.asarray(ROBER.u0), (0.0, 4e4), p)
        # It takes 1,080 steps, since a step's error is held to a sixtieth of the tolerance.
        options = {"rtol": 1e-8, "atol": 1e-13, "saveat": TIMES, "max_steps": 2048}
        return dj.solve(prob, dj.FBDF(), adjoint=adjoint, **options).u

    for adjoint in (dj.DiscreteAdjoint(), dj.DiscreteAdjoint(checkpoints=20)):
        check_robertson(states, adjoint)


def loss(method: str, inputs: tuple, **options: Any) -> jax.Array:
    """A solve whose every argument matters: state, parameters, mass matrix, Jacobian, times."""
    u0, p, mass, end = inputs

    def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.stack([-p[0] * u[0] + jnp.sin(p[1] * t) * u[1], p[1] * u[0] - p[2] * u[1] ** 3])

    def jac(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        zero = jnp.zeros(())
        rows = [[-p[0] + zero, jnp.sin(p[1] * t)], [p[1] + zero, -3 * p[2] * u[1] ** 2]]
        return jnp.array(rows)

    prob = dj.ODEProblem(f, u0, (0.0, end), p, mass_matrix=mass, jac=jac)
    options = {"saveat": lambda a, b: a + (b - a) * THIRDS, **options}
    sol = dj.solve(prob, BY_NAME[method].make(), **options)
    return jnp.sum(jnp.sin(sol.u) * jnp.array([[1.0, 2.0]]))


DOTS = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(1).normal(size=x.shape)), INPUTS)


def differences(value: Any, e: float) -> Any:
    ends = [value(jax.tree.map(lambda x, d, s=s: x + s * d, INPUTS, DOTS)) for s in (e, -e)]
    return (ends[0] - ends[1]) / (2 * e)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("FBDF", {"rtol": 1e-10, "atol": 1e-10, "max_steps": 256}), ("QNDF", {"steps": 6})],
    ids=["FBDF-adaptive", "QNDF-fixed"],
)
def test_reverse_is_forward(name: str, options: dict[str, Any]) -> None:
    """VJP = JVP to 1e-9 with respect to everything, the mass matrix and the span's end included.

    The derivative is that of fixed steps, or of the solution, by differences.
    """
    value = jax.jit(lambda inputs: loss(name, inputs, **options))
    reverse = jax.jit(jax.grad(value))(INPUTS)
    total = sum(jnp.vdot(x, y) for x, y in zip(reverse, DOTS, strict=True))
    if "steps" not in options:
        forward = jax.jit(lambda x, d: jax.jvp(value, (x,), (d,))[1])(INPUTS, DOTS)
        np.testing.assert_allclose(total, forward, rtol=1e-9)
        tight = {"rtol": 1e-12, "atol": 1e-12}
        value = jax.jit(lambda inputs: loss("Rodas5P", inputs, **tight))
    np.testing.assert_allclose(differences(value, 1e-4), total, rtol=1e-6)


def test_second_derivatives() -> None:
    """Forward over reverse, against the closed form of u' = p cos(t) u."""

    def end(args: Any) -> jax.Array:
        u0, p = args[:1], args[1]
        prob = dj.ODEProblem(lambda u, p, t: p * jnp.cos(t) * u, u0, (0.0, 2.0), p)
        return dj.solve(prob, dj.FBDF(), rtol=1e-8, atol=1e-8, max_steps=256).u_end[0]

    args = jnp.array([1.3, 0.7])
    exact = jax.jit(jax.hessian(lambda x: x[0] * jnp.exp(x[1] * jnp.sin(2.0))))(args)
    np.testing.assert_allclose(jax.jit(jax.hessian(end))(args), exact, rtol=1e-5, atol=1e-5)


# Batches, precision, kinds of state ---------------------------------------------------------


def test_lanes_are_single_solves() -> None:
    """Each lane as if alone; one with absurd parameters is flagged and harms no other."""
    factors = np.random.default_rng(0).uniform(0.8, 1.2, (50, 3))
    factors[23, 2] = -1e12
    ps = jnp.asarray(ROBER.p * factors)

    def end(p: jax.Array) -> tuple:
        prob = dj.ODEProblem(robertson, jnp.asarray(ROBER.u0), (0.0, 1e5), p)
        sol = dj.solve(prob, dj.FBDF(), rtol=1e-6, atol=1e-10, max_steps=2000, throw=False)
        return sol.u[-1], sol._retcode, sol.stats.nf

    u, codes, nf = jax.jit(jax.vmap(end))(ps)
    assert [i for i, code in enumerate(codes) if code != dj.ReturnCode.success] == [23]
    assert np.all(np.isnan(u[23]))
    single = jax.jit(end)
    for i in (0, 22, 24, 49):
        alone = single(ps[i])
        np.testing.assert_allclose(u[i], alone[0], rtol=1e-6)
        assert abs(int(nf[i]) - int(alone[2])) <= 0.1 * int(alone[2])


def test_gradients_of_lanes_are_single_gradients() -> None:
    def end(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(robertson, jnp.asarray(ROBER.u0), (0.0, 4e2), p)
        return dj.solve(prob, dj.QNDF(), rtol=1e-5, atol=1e-9, max_steps=256).u_end[0]

    ps = jnp.asarray(ROBER.p * np.array([[1.0], [1.3], [0.6]]))
    single = jax.jit(jax.grad(end))
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(end)))(ps), np.stack([single(p) for p in ps]), rtol=1e-5
    )


def test_single_precision() -> None:
    """Robertson to 1e5 in float32 throughout, three digits and more."""
    prob = ROBER.ode(jnp.float32, tspan=(0.0, 1e5))
    sol = dj.solve(prob, dj.FBDF(), rtol=1e-4, atol=1e-10)
    assert sol.u.dtype == sol.t.dtype == jnp.float32
    accurate = solve(ROBER, "Rodas5P", 1e-9, saveat=jnp.array([1e5]))
    np.testing.assert_allclose(sol.u_end, accurate.u[0], rtol=1e-3)


def test_complex_states_in_a_tree() -> None:
    """u' = (-1 + 20i) u, and the non-holomorphic u' = i conj(u), whose Jacobian is real-linear."""

    def f(u: Any, p: Any, t: jax.Array) -> Any:
        return {"a": (-1 + 20j) * u["a"], "b": 1j * jnp.conj(u["b"]), "c": -u["c"]}

    start = {"a": jnp.array([1.0 + 0j]), "b": jnp.array(1.0 + 0j), "c": jnp.array([[2.0]])}
    sol = dj.solve(dj.ODEProblem(f, start, (0.0, 1.0)), dj.FBDF(), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(sol.u_end["a"], [np.exp(-1 + 20j)], rtol=1e-5)
    wanted = (1 + 1j) * np.exp(1.0) / 2 + (1 - 1j) * np.exp(-1.0) / 2
    np.testing.assert_allclose(sol.u_end["b"], wanted, rtol=1e-6)
    np.testing.assert_allclose(sol.u_end["c"], [[2 * np.exp(-1.0)]], rtol=1e-6)


def test_backwards_and_anywhere() -> None:
    """Back from 1 to 0 with a mass matrix, a Jacobian and time in the field; `sol(t)` between."""
    exact = AFFINE.exact
    assert exact is not None
    u1 = jnp.asarray(exact(np.array([1.0]))[0])
    prob = dj.remake(
        AFFINE.ode(mass_matrix=AFFINE.p), u0=u1, tspan=(1.0, 0.0), jac=lambda u, p, t: p
    )
    sol = dj.solve(prob, dj.QNDF(), rtol=1e-9, atol=1e-9, dense=True)
    np.testing.assert_allclose(sol.u_end, np.ones(3), rtol=1e-7)
    points = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(sol(points), exact(points), rtol=1e-6)


# What is compiled ---------------------------------------------------------------------------


@EVERY_BDF_METHOD
def test_one_trajectory_can_be_one_native_function(method: Method) -> None:
    """Guards against an operation in the step that keeps XLA from compiling the loop in place."""
    prob = dj.ODEProblem(lambda u, p, t: -p * u**3, jnp.ones(8), (0.0, 1.0), 2.0)

    def end(prob: dj.ODEProblem) -> jax.Array:
        return dj.solve(prob, method.make()).u_end

    for function in (end, jax.grad(lambda prob: jnp.sum(end(prob)), allow_int=True)):
        assert is_native(jax.make_jaxpr(function)(prob).jaxpr)
