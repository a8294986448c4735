"""ReversibleAdjoint: exact gradients of the coupled steps, in constant memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import diffjax as dj
from tests.derivatives import ARGS, close, compare, differences, grown, solve_growth
from tests.problems import (
    CLOCK,
    GRAD_FALLING_MASS,
    GRAD_LV_BLOG,
    GRAD_LV_IN_TIME,
    LOTKA_VOLTERRA,
    GradientCase,
    clock_exact,
    lotka_volterra,
)

REVERSIBLE = dj.ReversibleAdjoint()
CHECKPOINTED = dj.ReversibleAdjoint(checkpoints=20)
U0, P = jnp.asarray(LOTKA_VOLTERRA.u0), jnp.asarray(LOTKA_VOLTERRA.p)
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
# Both ends, a time twice, several in one step.
PARTS = jnp.asarray([0.0, 0.0, 0.3, 0.301, 0.302, 0.302, 0.7, 1.0])


def solve(
    p: jax.Array, u0: jax.Array = U0, alg: dj.Algorithm | None = None, **options: Any
) -> dj.Solution:
    prob = dj.ODEProblem(lotka_volterra, u0, (0.0, 3.0), p)
    defaults = {"saveat": jnp.linspace(0.0, 3.0, 7), "rtol": 1e-5, "atol": 1e-5}
    options = {**defaults, "adjoint": REVERSIBLE, **options}
    # A small method, which makes small programs.
    alg = dj.BS3() if alg is None else alg
    return dj.solve(prob, alg, max_steps=256, **options)


def loss(p: jax.Array, u0: jax.Array = U0, **options: Any) -> jax.Array:
    return jnp.sum(solve(p, u0, **options).u ** 2)


# The gradient -------------------------------------------------------------------------


def forced(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    return lotka_volterra(u, p, t) + jnp.sin(t) / 10


def cost(alg: dj.Algorithm, **options: Any) -> Callable:
    """A loss of the end and of saves that move with the span, by u0, p and both ends."""

    def of_arguments(adjoint: dj.Adjoint, *args: jax.Array) -> jax.Array:
        u0, p, t0, t1 = args
        prob = dj.ODEProblem(forced, u0, (t0, t1), p)
        sol = dj.solve(
            prob, alg, saveat=lambda t0, t1: t0 + (t1 - t0) * PARTS, adjoint=adjoint, **options
        )
        weights = jnp.cos(jnp.arange(float(sol.u.size))).reshape(sol.u.shape)
        return jnp.sum(weights * sol.u**2) + jnp.sum(jnp.sin(sol.u_end)) * sol.t_end

    return of_arguments


# Of a dtype, as the arguments of differences are: plain numbers would compile once more.
EVERYTHING = (U0, P, jnp.asarray(0.3, float), jnp.asarray(2.4, float))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alg", "options"),
    [(dj.Tsit5(), TIGHT), (dj.Heun(), {"steps": 200})],
    ids=["Tsit5", "fixed"],
)
def test_gradient_by_everything(alg: dj.Algorithm, options: dict) -> None:
    """Against the jvp of the same steps to rounding; and of adaptive steps against forward mode, of
    the method without the coupling, of fixed steps against differences."""
    f, numbers = cost(alg, **options), (1, 2, 3, 4)

    def twice(*args: Any) -> tuple[jax.Array, jax.Array]:
        value = f(*args)
        return value, value

    gradient = jax.jit(jax.grad(f, numbers), static_argnums=0)(REVERSIBLE, *EVERYTHING)
    forward = jax.jit(jax.jacfwd(twice, numbers, has_aux=True), static_argnums=0)
    close(gradient, forward(REVERSIBLE, *EVERYTHING)[0], 1e-9, 1e-11)
    if "steps" not in options:
        close(gradient, forward(dj.ForwardMode(), *EVERYTHING)[0], 1e-6)
        return
    for i, got in enumerate(gradient):

        def of_one(x: jax.Array, i: int = i) -> jax.Array:
            return forward(REVERSIBLE, *EVERYTHING[:i], x, *EVERYTHING[i + 1 :])[1]

        close(got, differences(of_one, EVERYTHING[i], 1e-3), 1e-6, 1e-7)


@pytest.mark.parametrize(
    ("case", "alg", "tolerance", "most"),
    [
        (GRAD_LV_IN_TIME, dj.Vern7(), 1e-11, 400),
        (GRAD_LV_BLOG, dj.Tsit5(), 1e-10, 800),
        (GRAD_FALLING_MASS, dj.Tsit5(), 1e-10, 10),
    ],
    ids=["time-dependent", "blog", "falling-mass"],
)
def test_published_gradients(
    case: GradientCase, alg: dj.Algorithm, tolerance: float, most: int
) -> None:
    """With checkpoints, as the cycle of prey and predators contracts: without, the drift of the
    pair takes thousands of steps and rounding leaves five digits of the gradient, or none."""

    def loss(p: jax.Array, u0: jax.Array) -> tuple[jax.Array, jax.Array]:
        adjoint, prob = dj.ReversibleAdjoint(checkpoints=64), case.case.ode(p=p, u0=u0)
        options = {"rtol": tolerance, "atol": tolerance, "saveat": case.times}
        sol = dj.solve(prob, alg, adjoint=adjoint, **options)
        return case.loss(sol.u), sol.stats.naccept

    arguments = jnp.asarray(case.case.p), jnp.asarray(case.case.u0)
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, steps), grads = gradient(*arguments)
    close(value, case.value)
    got = dict(zip(("p", "u0"), grads, strict=True))
    close({name: got[name] for name in case.grads}, case.grads, 1e-6, 1e-12)
    assert steps < most


@pytest.mark.slow
def test_save_times_stops_and_the_end_in_closed_form() -> None:
    """Derivatives by save times and stops, through `t_end`, and backwards in time."""
    times = jnp.asarray([0.2, 0.5, 0.500001, 0.6, 0.6, 2.0, 2.9])

    def ours(u0: Any, p: Any, times: Any, stops: Any) -> jax.Array:
        return solve_growth(u0, p, 0.2, 2.9, REVERSIBLE, saveat=times, tstops=stops).u

    compare(
        ours,
        lambda u0, p, times, stops: grown(u0, p, 0.2, times) + 0 * jnp.sum(stops),
        (*ARGS[:2], times, jnp.asarray([0.9, 1.7])),
    )

    def end(u0: Any, p: Any, t0: Any, t1: Any) -> jax.Array:
        sol = solve_growth(u0, p, t1, t0, REVERSIBLE, alg=dj.Tsit5())
        return sol.u_end * sol.t_end**2

    compare(end, lambda u0, p, t0, t1: grown(u0, p, t1, t0) * t0**2)


@pytest.mark.slow
def test_second_derivatives() -> None:
    """Forward over reverse and forward over forward agree with differences of the gradient."""

    def end(p: jax.Array) -> jax.Array:
        return loss(p, alg=dj.Midpoint(), steps=40, adjoint=dj.ReversibleAdjoint(checkpoints=3))

    def along(f: Callable, p: jax.Array) -> Any:
        return jax.jvp(f, (p,), (direction,))

    direction = jnp.asarray([0.3, -1.0, 0.5, 0.8])
    both = jax.jit(lambda p: along(jax.grad(end), p))
    product = np.asarray(both(P)[1])
    twice = jax.jit(lambda p: along(lambda p: along(end, p)[1], p)[1])
    np.testing.assert_allclose(product @ np.asarray(direction), twice(P), rtol=1e-9)
    slope = differences(lambda s: both(P + s * direction)[0], 0.0, 1e-4)
    close(product, slope, 1e-6, 1e-7 * float(np.abs(product).max()))


# The coupled method -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alg", "widths"),
    [
        (dj.Midpoint(), (0.06, 0.04, 0.03)),
        (dj.RK4(), (0.12, 0.09, 0.06)),
        (dj.Tsit5(), (0.2, 0.15, 0.1)),
        (dj.BS5(), (0.2, 0.15, 0.1)),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_the_order_of_the_method_is_kept(alg: dj.Algorithm, widths: tuple[float, ...]) -> None:
    """McCallum and Foster, theorem 2.1: the coupled method has the order of the method. Five steps
    that start on the solution of `clock` end with an error O(h^(p+1)), and have one O(h^(q+1))
    inside if the extension is of order q."""
    parts, starts = np.linspace(0.0, 1.0, 41), np.linspace(0.0, 6.0, 13)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None))
    @partial(jax.vmap, in_axes=(None, 0, 0))
    def solved(width: jax.Array, start: jax.Array, u0: jax.Array) -> tuple:
        prob = CLOCK.ode(u0=u0, tspan=(start, start + 5 * width))
        at = lambda a, b: a + (b - a) * parts  # noqa: E731
        sol = dj.solve(prob, alg, steps=5, saveat=at, adjoint=REVERSIBLE)
        return sol.t, sol.u

    t, u = solved(np.array(widths), starts, clock_exact(starts))
    errors = np.max(np.abs(np.asarray(u) - clock_exact(np.asarray(t))), axis=(1, 3))
    at_end, anywhere = (
        np.polyfit(np.log(widths), np.log(x), 1)[0] for x in (errors[:, -1], np.max(errors, axis=1))
    )
    assert at_end > alg.order + 1 - 0.3
    assert anywhere > min(alg.order, alg.dense_order) + 1 - 0.3


def test_the_extension_is_exact_at_both_ends() -> None:
    """A save at the end of a step is the state there, at any coupling."""
    adjoint = dj.ReversibleAdjoint(coupling=0.7)
    times = jnp.linspace(0.0, 3.0, 11)
    saved = dj.solve(CLOCK.ode(), dj.Tsit5(), steps=10, saveat=times, adjoint=adjoint)
    # Just before and just after the end of a step: one extension each.
    near = jnp.stack([times[5] - 1e-9, times[5] + 1e-9])
    around = dj.solve(CLOCK.ode(), dj.Tsit5(), steps=10, saveat=near, adjoint=adjoint)
    close(saved.u[-1], saved.u_end, 1e-14)
    close(around.u, jnp.stack([saved.u[5]] * 2), 0.0, 1e-8)


def test_work_is_twice_the_method() -> None:
    """Two steps of the method a step, each with its own first stage, and hardly more steps."""
    prob = dj.ODEProblem(lotka_volterra, U0, (0.0, 1.0), P)
    coupled, plain = (dj.solve(prob, dj.Tsit5(), adjoint=a).stats for a in (REVERSIBLE, None))
    attempts = int(coupled.naccept + coupled.nreject)
    # Two more choose the first step.
    assert coupled.nf == 14 * attempts + 2
    assert attempts <= int(plain.naccept + plain.nreject) + 2


def test_growing_differences_shorten_the_steps() -> None:
    """y - z grows where the solution contracts: it must not spoil the solution unseen.

    Damped by 0.1 a step it stays below 10 tolerances, by steps below 0.1 / 8.
    """
    prob = dj.ODEProblem(lambda u, p, t: -8.0 * (u - jnp.cos(t)), jnp.asarray(0.0), (0.0, 4.0))
    adjoint = dj.ReversibleAdjoint(coupling=0.9)
    sol = dj.solve(prob, dj.Tsit5(), rtol=1e-7, atol=1e-7, adjoint=adjoint)
    exact = (64 * np.cos(4.0) + 8 * np.sin(4.0) - 64 * np.exp(-32.0)) / 65
    close(sol.u, [exact], 0.0, 4e-6)
    assert 200 < int(sol.stats.naccept) < 800


# Memory -------------------------------------------------------------------------------


def gradient_memory(saveat: Any = None, adjoint: dj.Adjoint = REVERSIBLE, **options: Any) -> int:
    """Bytes of temporaries of a gradient over a state of a hundred numbers."""

    def loss(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: -p * u, jnp.ones(100), (0.0, 1.0), p)
        sol = dj.solve(prob, dj.Tsit5(), adjoint=adjoint, saveat=saveat, **options)
        return jnp.sum(sol.u**2)

    analysis = jax.jit(jax.grad(loss)).lower(jnp.ones(())).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def test_memory_is_constant_with_fixed_steps() -> None:
    few, many = gradient_memory(steps=100), gradient_memory(steps=10_000)
    assert many == few
    # More saved numbers than XLA reduces in a native function.
    few, many = (gradient_memory(saveat=1 / 128, steps=n) for n in (100, 10_000))
    assert many == few


def test_memory_is_that_of_the_checkpoints() -> None:
    """Two states each, whatever the number of steps."""
    few, many, more = (
        gradient_memory(adjoint=dj.ReversibleAdjoint(checkpoints=n), steps=steps)
        for n, steps in ((10, 100), (10, 10_000), (110, 11_000))
    )
    assert many == few
    assert more - many <= 1.01 * 100 * 2 * 100 * 8


def test_memory_is_two_numbers_a_step_when_adaptive() -> None:
    few, many = gradient_memory(max_steps=100), gradient_memory(max_steps=10_100)
    assert many - few <= 10_000 * 2 * 8


# Transformations ----------------------------------------------------------------------

PS = P[None] * jnp.linspace(0.8, 1.2, 4)[:, None]
U0S = U0[None] * jnp.linspace(0.9, 1.1, 3)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"adjoint": CHECKPOINTED}, {"steps": 60}], ids=["adaptive", "fixed"]
)
def test_vmap_equals_a_loop(options: dict) -> None:
    """Lanes of their own steps, and a parameter that they share."""
    one = jax.jit(jax.grad(lambda p, u0: loss(p, u0, **options), argnums=(0, 1)))
    looped = jtu.tree_map(lambda *x: jnp.stack(x), *(one(p, U0) for p in PS))
    lanes = jax.jit(jax.vmap(one, (0, None)))(PS, U0)
    close(lanes, looped, 1e-10)

    def total(p: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(lambda u0: loss(p, u0, **options))(U0S))

    close(jax.jit(jax.grad(total))(P), sum(one(P, u0)[0] for u0 in U0S), 1e-10)


@pytest.mark.slow
def test_vmap_of_vmap_and_jit() -> None:
    def total(p: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(lambda u0: loss(p, u0))(U0S))

    looped = np.stack([jax.grad(total)(p) for p in PS])
    close(jax.jit(jax.vmap(jax.grad(total)))(PS), looped, 1e-10)


@pytest.mark.slow
def test_shard_map() -> None:
    """Four devices, JAX's own checks on."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("lanes",))
    spec = PartitionSpec("lanes")

    def local(ps: jax.Array, u0: jax.Array) -> jax.Array:
        return jax.vmap(lambda p: loss(p, u0, adjoint=CHECKPOINTED))(ps)

    def total(ps: jax.Array, u0: jax.Array) -> jax.Array:
        f = jax.shard_map(local, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
        return jnp.sum(f(ps, u0))

    got = jax.jit(jax.grad(total, argnums=(0, 1)))(PS, U0)
    wanted = jax.jit(jax.grad(lambda *args: jnp.sum(local(*args)), argnums=(0, 1)))(PS, U0)
    close(got, wanted, 1e-10)


def test_a_shared_parameter_has_one_cotangent() -> None:
    """Of a parameter that lanes share no copy a lane is made."""
    lanes, size = 7, 11

    def total(p: jax.Array) -> jax.Array:
        def one(u0: jax.Array) -> jax.Array:
            prob = dj.ODEProblem(lambda u, p, t: jnp.tanh(p @ u), u0, (0.0, 1.0), p)
            return jnp.sum(dj.solve(prob, dj.RK4(), steps=5, adjoint=REVERSIBLE).u)

        return jnp.sum(jax.vmap(one)(jnp.ones((lanes, size))))

    text = jax.jit(jax.grad(total)).lower(jnp.eye(size)).compile().as_text()
    assert f"f64[{lanes},{size},{size}]" not in text


# States and parameters ----------------------------------------------------------------


def test_network_over_a_pytree_state() -> None:
    """An equinox network as `p`, a dictionary as state, against forward mode."""
    network = eqx.nn.MLP(3, 3, 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    network = jtu.tree_map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, network)

    def f(u: dict, p: Any, t: jax.Array) -> dict:
        out = p(jnp.concatenate([u["a"], u["b"][None]]))
        return {"a": out[:2], "b": out[2]}

    def final(network: Any, u0: dict, adjoint: dj.Adjoint) -> jax.Array:
        prob = dj.ODEProblem(f, u0, (0.0, 1.0), network)
        u = dj.solve(prob, dj.Tsit5(), saveat=0.25, adjoint=adjoint, **TIGHT).u
        return jnp.sum(u["a"] ** 2) + jnp.sum(jnp.cos(u["b"]))

    u0 = {"a": jnp.asarray([1.0, -0.5]), "b": jnp.asarray(0.2)}
    gradient = eqx.filter_jit(eqx.filter_grad(lambda args, adjoint: final(*args, adjoint)))
    got, wanted = gradient((network, u0), REVERSIBLE), gradient((network, u0), dj.DiscreteAdjoint())
    close(jtu.tree_leaves(got), jtu.tree_leaves(wanted), 1e-7, 1e-9)


def test_complex_state() -> None:
    """Of a field that is not holomorphic, against the jvp."""

    def end(x: jax.Array) -> jax.Array:
        def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
            return 1j * p * u - (u * jnp.conj(u)) * jnp.conj(u) / 5.0

        p = jax.lax.complex(x[2], x[3])
        prob = dj.ODEProblem(f, jax.lax.complex(x[0], x[1]), (0.0, 1.0), p)
        u = dj.solve(prob, dj.RK4(), steps=20, adjoint=REVERSIBLE).u[-1]
        return jnp.stack([u.real, u.imag])

    x = jnp.asarray([1.0, 0.5, 1.2, -0.3])
    got = jax.jit(jax.jacrev(end))(x)
    close(got, jax.jit(jax.jacfwd(end))(x), 1e-10, 1e-11)
    close(got, differences(jax.jit(end), x), 1e-7, 1e-8)


def test_float32() -> None:
    """In single precision the dtype is kept; rounding, enlarged on the way back, leaves 1e-3 of
    the largest component."""
    p32, u32 = P.astype(jnp.float32), U0.astype(jnp.float32)
    options = {"rtol": 1e-5, "atol": 1e-5}
    got = jax.jit(jax.grad(lambda p: loss(p, u32, **options)))(p32)
    assert got.dtype == jnp.float32
    close(got, jax.jit(jax.grad(loss))(P), 3e-2, 0.2)


# Failure ------------------------------------------------------------------------------


def blowing_up(p: jax.Array, saveat: Any, **options: Any) -> jax.Array:
    """u' = p u^2 from 1 has a pole at 1/p."""
    prob = dj.ODEProblem(lambda u, p, t: p * u**2, jnp.asarray(1.0), (0.0, 2.0), p)
    return dj.solve(prob, dj.Tsit5(), saveat=saveat, adjoint=REVERSIBLE, throw=False, **options).u


@pytest.mark.parametrize("options", [{}, {"steps": 60}, {"max_steps": 5}], ids=str)
@pytest.mark.parametrize("saveat", [None, (0.1, 0.2, 1.9)], ids=["end", "saves"])
def test_a_failed_solve_has_no_gradient(saveat: Any, options: dict) -> None:
    """NaN where the loss looks at what was not reached, even with the NaN taken out of it."""
    saveat = None if saveat is None else jnp.asarray(saveat)

    def last(p: jax.Array) -> jax.Array:
        return blowing_up(p, saveat, **options)[-1]

    p = jnp.asarray(0.9)
    assert jnp.isnan(jax.jit(jax.grad(last))(p))


def test_what_a_failed_solve_reached_has_a_gradient() -> None:
    """Also of a parameter that lanes share, of which one fails and is not looked at."""

    def reached(p: jax.Array, scale: jax.Array) -> jax.Array:
        u = blowing_up(p * scale, jnp.asarray([0.1, 1.9]), rtol=1e-9, atol=1e-9)
        return jnp.where(scale > 0.5, 0.0, u[0])

    scales, p = jnp.asarray([0.1, 1.0, 0.2]), jnp.asarray(0.9)
    total = jax.jit(jax.grad(lambda p: jnp.sum(jax.vmap(lambda s: reached(p, s))(scales))))
    close(total(p), sum(0.1 * s / (1 - 0.1 * p * s) ** 2 for s in (0.1, 0.2)), 1e-6)


def test_a_reconstruction_that_misses_the_start_is_no_gradient() -> None:
    """Backward in time exp(-40 t) grows by 1e17 to t = 1: nothing is left of the start."""

    def end(p: jax.Array, adjoint: dj.Adjoint) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: -p * (u - jnp.cos(t)), jnp.asarray(2.0), (0.0, 1.0), p)
        return dj.solve(prob, dj.RK4(), steps=200, adjoint=adjoint).u[-1]

    gradient = jax.jit(jax.grad(end), static_argnums=1)
    assert jnp.isnan(gradient(jnp.asarray(80.0), REVERSIBLE))
    close(
        gradient(jnp.asarray(5.0), REVERSIBLE), gradient(jnp.asarray(5.0), dj.ForwardMode()), 1e-5
    )


# Refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"saveat": "steps"}, {"dense": True, "saveat": None}], ids=str)
def test_outputs_of_all_states_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"keeps no states.*dj.DiscreteAdjoint\(\)"):
        solve(P, **options)


def test_other_methods_are_refused() -> None:
    class Other(type(dj.Tsit5())):
        """A method that remembers more than the state."""

        is_explicit_one_step = False

    method = dj.Tsit5()
    prob = dj.ODEProblem(lotka_volterra, U0, (0.0, 3.0), P)
    with pytest.raises(ValueError, match=r"explicit Runge-Kutta.*dj.DiscreteAdjoint\(\)"):
        dj.solve(prob, Other(method.tableau), adjoint=REVERSIBLE)


@pytest.mark.parametrize("coupling", [0.0, 1.5, -1, "half", True])
def test_couplings_out_of_range_are_refused(coupling: Any) -> None:
    with pytest.raises(ValueError, match="coupling must be a number above 0 and at most 1"):
        dj.ReversibleAdjoint(coupling=coupling)


@pytest.mark.parametrize("checkpoints", [0, 2.0, True])
def test_checkpoints_out_of_range_are_refused(checkpoints: Any) -> None:
    with pytest.raises(ValueError, match="checkpoints must be None or a positive integer"):
        dj.ReversibleAdjoint(checkpoints=checkpoints)
