"""Gradients of solves: against published values, differences, and a hand-written scan.

Three references that share nothing with the adjoints: figures of an independent code, central
differences of the same fixed-step map, and JAX's own derivative of a bare `lax.scan`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import diffjax as dj
from tests.problems import (
    GRAD_LV_BLOG,
    GRADIENTS,
    LOTKA_VOLTERRA,
    GradientCase,
    clock,
    clock_exact,
    lotka_volterra,
)

ADJOINTS = {
    "tape": dj.DiscreteAdjoint(),
    "checkpoints": dj.DiscreteAdjoint(checkpoints=20),
    "forward": dj.ForwardMode(),
}
EVERY_ADJOINT = pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS.keys())


def close(got: Any, wanted: Any, rtol: float = 1e-6, atol: float = 0.0) -> None:
    jtu.tree_map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol, atol),
        got,
        wanted,
    )


def differences(f: Callable[[np.ndarray], Any], x: Any, step: float = 1e-3) -> np.ndarray:
    """The derivative of f by central differences of order 6; f may return an array."""
    x = np.asarray(x, float)
    columns = []
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = step

        def central(k: int, e: np.ndarray = e) -> np.ndarray:
            return np.asarray(f(jnp.asarray(x + k * e))) - np.asarray(f(jnp.asarray(x - k * e)))

        columns.append((45 * central(1) - 9 * central(2) + central(3)) / (60 * step))
    return np.stack(columns, axis=-1).reshape(columns[0].shape + x.shape)


# Published values --------------------------------------------------------------------------------


def published_loss(case: GradientCase, adjoint: Any = None, **options: Any) -> Callable:
    """The loss of a published case as a function of its parameters and initial state."""

    def loss(p: jax.Array, u0: jax.Array) -> jax.Array:
        prob = case.case.ode(p=p, u0=u0)
        sol = dj.solve(prob, dj.Vern7(), saveat=case.times, adjoint=adjoint, **options)
        return case.loss(sol.u)

    return loss


TIGHT = {"rtol": 1e-10, "atol": 1e-10}


@EVERY_ADJOINT
@pytest.mark.parametrize("case", GRADIENTS, ids=lambda c: c.case.name)
def test_published_gradients_in_reverse(case: GradientCase, adjoint: dj.Adjoint) -> None:
    """Loss and gradient to 1e-6 of independent figures, whatever the adjoint."""
    arguments = jnp.asarray(case.case.p), jnp.asarray(case.case.u0)
    loss = jax.jit(jax.value_and_grad(published_loss(case, adjoint, **TIGHT), argnums=(0, 1)))
    value, grads = loss(*arguments)
    close(value, case.value)
    got = dict(zip(("p", "u0"), grads, strict=True))
    for name, wanted in case.grads.items():
        close(got[name], wanted, atol=1e-9)


@pytest.mark.parametrize("case", GRADIENTS, ids=lambda c: c.case.name)
def test_published_gradients_forward(case: GradientCase) -> None:
    """The same by `jacfwd`, through the replay with tangents."""
    loss = jax.jit(jax.jacfwd(published_loss(case, **TIGHT), argnums=(0, 1)))
    got = loss(jnp.asarray(case.case.p), jnp.asarray(case.case.u0))
    got = dict(zip(("p", "u0"), got, strict=True))
    for name, wanted in case.grads.items():
        close(got[name], wanted, atol=1e-9)


# Against a scan ----------------------------------------------------------------------------------


def scan_of_rk4(u0: jax.Array, p: jax.Array, t0: Any, t1: Any, steps: int) -> jax.Array:
    """All states of the classical method, written down independently."""
    h = (t1 - t0) / steps

    def step(u: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = t0 + h * i
        k1 = lotka_volterra_forced(u, p, t)
        k2 = lotka_volterra_forced(u + h / 2 * k1, p, t + h / 2)
        k3 = lotka_volterra_forced(u + h / 2 * k2, p, t + h / 2)
        k4 = lotka_volterra_forced(u + h * k3, p, t + h)
        u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return u, u

    _, us = jax.lax.scan(step, u0, jnp.arange(steps, dtype=u0.dtype))
    return jnp.concatenate([u0[None], us])


def lotka_volterra_forced(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    return lotka_volterra(u, p, t) + jnp.sin(t) / 10


_SCAN_ARGS = (
    jnp.asarray(LOTKA_VOLTERRA.u0),
    jnp.asarray(LOTKA_VOLTERRA.p),
    jnp.asarray(0.3),
    jnp.asarray(4.1),
)


@EVERY_ADJOINT
@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd], ids=["jacrev", "jacfwd"])
def test_equals_a_differentiated_scan(mode: Callable, adjoint: dj.Adjoint) -> None:
    """The discrete adjoint is the derivative of the steps taken, to rounding, span included."""
    if mode is jax.jacfwd and isinstance(adjoint, dj.ForwardMode):
        mode = jax.jacrev
    weights = jnp.cos(jnp.arange(82.0)).reshape(41, 2)

    def ours(u0: jax.Array, p: jax.Array, t0: jax.Array, t1: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lotka_volterra_forced, u0, (t0, t1), p)
        sol = dj.solve(prob, dj.RK4(), steps=40, saveat="steps", adjoint=adjoint)
        return jnp.sum(weights * sol.u**2)

    def scan(*args: jax.Array) -> jax.Array:
        return jnp.sum(weights * scan_of_rk4(*args, 40) ** 2)

    close(jax.jit(ours)(*_SCAN_ARGS), scan(*_SCAN_ARGS), 1e-12)
    got = jax.jit(mode(ours, argnums=(0, 1, 2, 3)))(*_SCAN_ARGS)
    close(got, jax.grad(scan, argnums=(0, 1, 2, 3))(*_SCAN_ARGS), 1e-11, 1e-11)


@pytest.mark.parametrize("adjoint", [ADJOINTS["tape"], ADJOINTS["forward"]], ids=["tape", "fwd"])
def test_hessian(adjoint: dj.Adjoint) -> None:
    """Forward over reverse, against the scan's Hessian and differences of the gradient."""

    def ours(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lotka_volterra_forced, _SCAN_ARGS[0], (0.3, 4.1), p)
        times = jnp.linspace(0.3, 4.1, 21)
        sol = dj.solve(prob, dj.RK4(), steps=40, saveat=times, adjoint=adjoint)
        return jnp.sum(sol.u**2)

    def scan(p: jax.Array) -> jax.Array:
        return jnp.sum(scan_of_rk4(_SCAN_ARGS[0], p, 0.3, 4.1, 40)[::2] ** 2)

    p = _SCAN_ARGS[1]
    hessian = jax.jit(jax.hessian(ours))(p)
    scale = float(jnp.max(jnp.abs(hessian)))
    close(hessian, jax.hessian(scan)(p), 1e-9, 1e-9 * scale)
    close(hessian, differences(jax.jit(jax.grad(ours)), p, 1e-4), 1e-6, 1e-6 * scale)
    close(hessian, jnp.swapaxes(hessian, 0, 1), 1e-9, 1e-9 * scale)


# Adaptive solves against the closed form ------------------------------------------------------------

# `clock` started at t0 in (exp sin s, cos s) with s = t0 + shift; parameters scale both components.
_OPTIONS: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}


def growth(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    """u' = p cos(t) u, so that u(t) = u0 exp(p (sin t - sin t0))."""
    return p * jnp.cos(t) * u


def grown(u0: Any, p: Any, t0: Any, t: Any) -> jax.Array:
    return u0 * jnp.exp(p * (jnp.sin(t) - jnp.sin(t0)))


_ARGS = tuple(map(jnp.asarray, (1.3, 0.7, 0.2, 2.9)))
_ALL = (0, 1, 2, 3)


def solve_growth(u0: Any, p: Any, t0: Any, t1: Any, adjoint: Any = None, **options: Any) -> Any:
    prob = dj.ODEProblem(growth, u0, (t0, t1), p)
    return dj.solve(prob, dj.Vern7(), adjoint=adjoint, **{**_OPTIONS, **options})


def compare(ours: Callable, exact: Callable, args: tuple = _ARGS) -> None:
    """Value, reverse and forward derivative of a solve against those of the closed form."""
    numbers = tuple(range(len(args)))
    close(jax.jit(ours)(*args), exact(*args), 1e-8, 1e-9)
    wanted = jax.jacfwd(exact, argnums=numbers)(*args)
    close(jax.jit(jax.jacrev(ours, argnums=numbers))(*args), wanted, 1e-8, 1e-9)
    close(jax.jit(jax.jacfwd(ours, argnums=numbers))(*args), wanted, 1e-8, 1e-9)


@EVERY_ADJOINT
def test_final_state_and_span(adjoint: dj.Adjoint) -> None:
    """d u(t1) with respect to u0, p and both ends of an adaptive solve."""
    compare(
        lambda u0, p, t0, t1: solve_growth(u0, p, t0, t1, adjoint).u[-1],
        lambda u0, p, t0, t1: grown(u0, p, t0, t1),
    )


@EVERY_ADJOINT
def test_end_of_the_solve(adjoint: dj.Adjoint) -> None:
    """`t_end` and `u_end` carry derivatives too."""

    def ours(u0: Any, p: Any, t0: Any, t1: Any) -> jax.Array:
        sol = solve_growth(u0, p, t0, t1, adjoint)
        return sol.u_end * sol.t_end**2

    compare(ours, lambda u0, p, t0, t1: grown(u0, p, t0, t1) * t1**2)


@EVERY_ADJOINT
def test_save_times(adjoint: dj.Adjoint) -> None:
    """Save times move what is saved: at both ends, twice the same, several in one step."""
    times = jnp.asarray([0.2, 0.5, 0.500001, 0.6, 0.6, 2.0, 2.9])

    def ours(u0: Any, p: Any, times: Any) -> jax.Array:
        return solve_growth(u0, p, 0.2, 2.9, adjoint, saveat=times).u

    compare(ours, lambda u0, p, times: grown(u0, p, 0.2, times), (*_ARGS[:2], times))


def test_save_times_of_a_traced_span() -> None:
    """`saveat` as a function of the ends: each save moves with them."""
    parts = jnp.linspace(0.0, 1.0, 5)

    def at(t0: Any, t1: Any) -> jax.Array:
        return t0 + (t1 - t0) * parts

    compare(
        lambda u0, p, t0, t1: solve_growth(u0, p, t0, t1, saveat=at).u,
        lambda u0, p, t0, t1: grown(u0, p, t0, at(t0, t1)),
    )


@EVERY_ADJOINT
def test_stops(adjoint: dj.Adjoint) -> None:
    """A stop cuts a step short and must not leave a trace in what does not depend on it."""
    stops = jnp.asarray([0.9, 1.7])

    def ours(u0: Any, p: Any, stops: Any) -> jax.Array:
        return solve_growth(u0, p, 0.2, 2.9, adjoint, tstops=stops, saveat=jnp.array([1.0, 2.9])).u

    times = jnp.array([1.0, 2.9])
    compare(
        ours, lambda u0, p, s: grown(u0, p, 0.2, times) + 0 * jnp.sum(s), (*_ARGS[:2], stops)
    )


def test_through_every_step() -> None:
    """Rows of `saveat="steps"` are the solution at times of their own, NaN rows apart."""

    def ours(u0: Any, p: Any) -> jax.Array:
        sol = solve_growth(u0, p, 0.2, 2.9, saveat="steps", max_steps=64)
        # The error made at each step: a function whose derivative is zero.
        filled = ~jnp.isnan(sol.t)
        t = jnp.where(filled, jax.lax.stop_gradient(sol.t), 0.2)
        return jnp.where(filled, sol.u, u0) / grown(u0, p, 0.2, t)

    close(jax.jit(ours)(*_ARGS[:2]), np.ones(65), 1e-9)
    for mode in (jax.jacrev, jax.jacfwd):
        jacobian = jax.jit(mode(ours, argnums=(0, 1)))(*_ARGS[:2])
        close(jacobian, (np.zeros(65), np.zeros(65)), 0.0, 1e-8)


def test_through_dense_output() -> None:
    """`sol(t)` is differentiable in the time asked for and in everything the solve is."""

    def ours(u0: Any, p: Any, t: Any) -> jax.Array:
        sol = solve_growth(u0, p, 0.2, 2.9, dense=True, max_steps=64)
        return jnp.stack([sol(t), sol(t, deriv=1)])

    def exact(u0: Any, p: Any, t: Any) -> jax.Array:
        u = grown(u0, p, 0.2, t)
        return jnp.stack([u, p * jnp.cos(t) * u])

    args = (*_ARGS[:2], jnp.asarray([0.2, 0.75, 1.9]))
    close(jax.jit(ours)(*args), exact(*args), 1e-8)
    wanted = jax.jacfwd(exact, argnums=(0, 1, 2))(*args)
    # A derivative of the extension is an order less accurate than the extension.
    close(jax.jit(jax.jacrev(ours, argnums=(0, 1, 2)))(*args), wanted, 1e-6, 1e-6)
    close(jax.jit(jax.jacfwd(ours, argnums=(0, 1, 2)))(*args), wanted, 1e-6, 1e-6)


def test_backward_time() -> None:
    """A solve from t1 to t0 has the derivatives of the same solution."""
    compare(
        lambda u0, p, t0, t1: solve_growth(u0, p, t1, t0).u[-1],
        lambda u0, p, t0, t1: grown(u0, p, t1, t0),
    )


# What may hold parameters ----------------------------------------------------------------------------


@EVERY_ADJOINT
def test_initial_state_and_span_as_functions(adjoint: dj.Adjoint) -> None:
    """`u0(p, t0)` and `tspan(p)` pass derivatives on to `p`."""

    def ours(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(
            lambda u, p, t: growth(u, p[0], t),
            lambda p, t0: p[1] * t0,
            lambda p: (p[2], p[3]),
            p,
        )
        return dj.solve(prob, dj.Vern7(), adjoint=adjoint, **_OPTIONS).u[-1]

    def exact(p: jax.Array) -> jax.Array:
        return grown(p[1] * p[2], p[0], p[2], p[3])

    compare(ours, exact, (jnp.asarray([0.7, 1.3, 0.2, 2.9]),))


@EVERY_ADJOINT
def test_closed_over_arrays(adjoint: dj.Adjoint) -> None:
    """What the field closes over is differentiated like `p`."""

    def ours(a: jax.Array, b: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: a * jnp.cos(t) * u, b, (0.2, 2.9))
        return dj.solve(prob, dj.Vern7(), adjoint=adjoint, **_OPTIONS).u[-1]

    compare(ours, lambda a, b: grown(b, a, 0.2, 2.9), _ARGS[1::-1])


@EVERY_ADJOINT
def test_integer_parameters_do_no_harm(adjoint: dj.Adjoint) -> None:
    """A leaf of `p` that cannot be differentiated is left alone."""

    def ours(rate: jax.Array) -> jax.Array:
        p = {"rate": rate, "power": jnp.asarray(2), "on": jnp.asarray(True), "name": "clock"}

        def f(u: jax.Array, p: dict, t: jax.Array) -> jax.Array:
            rate = jnp.where(p["on"], p["rate"] ** p["power"].astype(u.dtype), 0.0)
            return growth(u, rate, t)

        prob = dj.ODEProblem(f, jnp.asarray(1.3), (0.2, 2.9), p)
        return dj.solve(prob, dj.Vern7(), adjoint=adjoint, **_OPTIONS).u[-1]

    compare(ours, lambda rate: grown(1.3, rate**2, 0.2, 2.9), (jnp.asarray(0.7),))


@EVERY_ADJOINT
def test_complex_state_of_a_field_that_is_not_holomorphic(adjoint: dj.Adjoint) -> None:
    """The same system in complex and in real form: u' = i a u - |u|^2 conj(u) / 5."""

    def by_complex(x: jax.Array) -> jax.Array:
        def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
            size = (u * jnp.conj(u)).real.astype(u.dtype)
            return 1j * p * u - size * jnp.conj(u) / 5.0

        prob = dj.ODEProblem(f, jax.lax.complex(x[0], x[1]), (0.0, 2.0), jax.lax.complex(x[2], x[3]))
        u = dj.solve(prob, dj.RK4(), steps=50, adjoint=adjoint).u[-1]
        return jnp.stack([u.real, u.imag])

    def by_real(x: jax.Array) -> jax.Array:
        def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
            a, b = u
            size = (a**2 + b**2) / 5.0
            return jnp.stack([-p[1] * a - p[0] * b - size * a, p[0] * a - p[1] * b + size * b])

        return dj.solve(dj.ODEProblem(f, x[:2], (0.0, 2.0), x[2:]), dj.RK4(), steps=50).u[-1]

    x = jnp.asarray([1.0, 0.5, 1.2, -0.3])
    close(by_complex(x), by_real(x), 1e-12)
    wanted = jax.jit(jax.jacfwd(by_real))(x)
    close(wanted, differences(jax.jit(by_real), x), 1e-7, 1e-8)
    close(jax.jit(jax.jacrev(by_complex))(x), wanted, 1e-11, 1e-12)
    close(jax.jit(jax.jacfwd(by_complex))(x), wanted, 1e-11, 1e-12)


def test_adaptive_gradient_equals_its_differences() -> None:
    """The step sizes carry no derivative: tight tolerances make their effect vanish."""
    case = GRAD_LV_BLOG
    loss = jax.jit(published_loss(case, **TIGHT))
    u0 = jnp.asarray(case.case.u0)
    p = jnp.asarray([1.5, 1.0, 3.0, 1.0])
    gradient = jax.jit(jax.grad(published_loss(case, **TIGHT)))(p, u0)
    close(gradient, differences(lambda p: loss(p, u0), p), 1e-6, 1e-6)


def test_clock_moves_along_its_solution() -> None:
    """Starting later on the same solution ends in the same state: that derivative is zero."""

    def end(t0: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(clock, lambda p, t0: clock_exact(t0, jnp), (t0, jnp.asarray(3.0)))
        return dj.solve(prob, dj.Tsit5(), rtol=1e-10, atol=1e-10).u[-1]

    t0 = jnp.asarray(0.4)
    close(jax.jit(jax.jacrev(end))(t0), np.zeros(2), 0.0, 1e-7)
    close(jax.jit(jax.jacfwd(end))(t0), np.zeros(2), 0.0, 1e-7)
