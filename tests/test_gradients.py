"""Gradients of solves: against published values, differences, and a hand-written scan.

Three references that share nothing with the adjoints: figures of an independent code, central
differences of the same fixed-step map, and JAX's own derivative of a bare `lax.scan`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import diffjax as dj
from tests.derivatives import (
    ADJOINTS,
    EVERY_ADJOINT,
    OPTIONS,
    close,
    compare,
    differences,
    grown,
    growth,
)
from tests.problems import (
    GRAD_LV_BLOG,
    GRAD_LV_IN_TIME,
    GRADIENTS,
    LOTKA_VOLTERRA,
    GradientCase,
    lotka_volterra,
)

# Published values ---------------------------------------------------------------------


def published_loss(case: GradientCase, adjoint: Any = None, **options: Any) -> Callable:
    """The loss of a published case as a function of its parameters and initial state."""

    def loss(p: jax.Array, u0: jax.Array) -> jax.Array:
        prob = case.case.ode(p=p, u0=u0)
        sol = dj.solve(prob, dj.Tsit5(), saveat=case.times, adjoint=adjoint, **options)
        return case.loss(sol.u)

    return loss


TIGHT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "adjoint"),
    [
        *((case, "tape") for case in GRADIENTS),
        (GRAD_LV_IN_TIME, "checkpoints"),
        (GRAD_LV_BLOG, "forward"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.case.name,
)
def test_published_gradients_in_reverse(case: GradientCase, adjoint: str) -> None:
    """Loss and gradient to 1e-6 of independent figures, whatever the adjoint."""
    arguments = jnp.asarray(case.case.p), jnp.asarray(case.case.u0)
    f = published_loss(case, ADJOINTS[adjoint], **TIGHT)
    value, grads = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(*arguments)
    close(value, case.value)
    got = dict(zip(("p", "u0"), grads, strict=True))
    for name, wanted in case.grads.items():
        close(got[name], wanted, atol=1e-9)


@pytest.mark.slow
def test_published_gradient_forward() -> None:
    """The same by `jacfwd`, through the replay with tangents."""
    case = GRAD_LV_IN_TIME
    loss = jax.jit(jax.jacfwd(published_loss(case, **TIGHT), argnums=(0, 1)))
    got = loss(jnp.asarray(case.case.p), jnp.asarray(case.case.u0))
    close(dict(zip(("p", "u0"), got, strict=True)), case.grads, atol=1e-9)


# Against a scan -----------------------------------------------------------------------


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


_WEIGHTS = jnp.cos(jnp.arange(82.0)).reshape(41, 2)


@cache
def derivative_of_the_scan() -> Any:
    def scan(*args: jax.Array) -> jax.Array:
        return jnp.sum(_WEIGHTS * scan_of_rk4(*args, 40) ** 2)

    return jax.jit(jax.value_and_grad(scan, argnums=(0, 1, 2, 3)))(*_SCAN_ARGS)


@pytest.mark.parametrize(
    ("mode", "adjoint"),
    # Of forward mode the reverse is the forward derivative.
    [
        *((jax.jacrev, adjoint) for adjoint in ADJOINTS),
        (jax.jacfwd, "tape"),
        (jax.jacfwd, "checkpoints"),
    ],
)
def test_equals_a_differentiated_scan(mode: Callable, adjoint: str) -> None:
    """The discrete adjoint is the derivative of the steps taken, to rounding, span included."""

    def ours(u0: jax.Array, p: jax.Array, t0: jax.Array, t1: jax.Array) -> tuple:
        prob = dj.ODEProblem(lotka_volterra_forced, u0, (t0, t1), p)
        sol = dj.solve(prob, dj.RK4(), steps=40, saveat="steps", adjoint=ADJOINTS[adjoint])
        value = jnp.sum(_WEIGHTS * sol.u**2)
        return value, value

    wanted_value, wanted = derivative_of_the_scan()
    got, value = jax.jit(mode(ours, argnums=(0, 1, 2, 3), has_aux=True))(*_SCAN_ARGS)
    close(value, wanted_value, 1e-12)
    close(got, wanted, 1e-11, 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [ADJOINTS["tape"], ADJOINTS["forward"]], ids=["tape", "fwd"])
def test_hessian(adjoint: dj.Adjoint) -> None:
    """Forward over reverse along a direction, against the scan's Hessian and differences of the
    gradient."""

    def ours(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lotka_volterra_forced, _SCAN_ARGS[0], (0.3, 4.1), p)
        times = jnp.linspace(0.3, 4.1, 21)
        sol = dj.solve(prob, dj.RK4(), steps=40, saveat=times, adjoint=adjoint)
        return jnp.sum(sol.u**2)

    p, direction = _SCAN_ARGS[1], jnp.asarray([0.3, -1.0, 0.5, 0.8])
    both = jax.jit(lambda p: jax.jvp(jax.grad(ours), (p,), (direction,)))
    product = both(p)[1]
    scale = float(jnp.max(jnp.abs(product)))
    close(product, hessian_of_the_scan() @ direction, 1e-9, 1e-9 * scale)
    wanted = differences(lambda s: both(p + s * direction)[0], 0.0, 1e-4)
    close(product, wanted, 1e-6, 1e-6 * scale)


@cache
def hessian_of_the_scan() -> jax.Array:
    def scan(p: jax.Array) -> jax.Array:
        return jnp.sum(scan_of_rk4(_SCAN_ARGS[0], p, 0.3, 4.1, 40)[::2] ** 2)

    return jax.jit(jax.hessian(scan))(_SCAN_ARGS[1])


# What may hold parameters -------------------------------------------------------------


@EVERY_ADJOINT
def test_what_may_hold_parameters(adjoint: dj.Adjoint) -> None:
    """`u0(p, t0)` and `tspan(p)` pass derivatives on to `p`, of which leaves that cannot be
    differentiated are left alone; what the field closes over is differentiated like `p`."""

    def ours(a: jax.Array, x: jax.Array) -> jax.Array:
        p = {"x": x, "power": jnp.asarray(2), "on": jnp.asarray(True), "name": "clock"}

        def f(u: jax.Array, p: dict, t: jax.Array) -> jax.Array:
            rate = jnp.where(p["on"], p["x"][0] ** p["power"].astype(u.dtype), 0.0)
            return growth(u, a * rate, t)

        prob = dj.ODEProblem(f, lambda p, t0: p["x"][1] * t0, lambda p: (p["x"][2], p["x"][3]), p)
        return dj.solve(prob, dj.Tsit5(), adjoint=adjoint, **OPTIONS).u[-1]

    def exact(a: jax.Array, x: jax.Array) -> jax.Array:
        return grown(x[1] * x[2], a * x[0] ** 2, x[2], x[3])

    compare(ours, exact, (jnp.asarray(1.1), jnp.asarray([0.7, 1.3, 0.2, 2.9])))


@EVERY_ADJOINT
def test_complex_state_of_a_field_that_is_not_holomorphic(adjoint: dj.Adjoint) -> None:
    """The same system in complex and in real form: u' = i a u - |u|^2 conj(u) / 5."""

    def by_complex(x: jax.Array) -> jax.Array:
        def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
            size = (u * jnp.conj(u)).real.astype(u.dtype)
            return 1j * p * u - size * jnp.conj(u) / 5.0

        prob = dj.ODEProblem(
            f, jax.lax.complex(x[0], x[1]), (0.0, 1.0), jax.lax.complex(x[2], x[3])
        )
        u = dj.solve(prob, dj.RK4(), steps=50, adjoint=adjoint).u[-1]
        return jnp.stack([u.real, u.imag])

    x = jnp.asarray([1.0, 0.5, 1.2, -0.3])
    value, wanted = complex_in_real_form()
    for mode in (jax.jacrev, jax.jacfwd):
        got, same = jax.jit(mode(lambda x: (by_complex(x),) * 2, has_aux=True))(x)
        close(same, value, 1e-12)
        close(got, wanted, 1e-11, 1e-12)


@cache
def complex_in_real_form() -> tuple[jax.Array, jax.Array]:
    """The end of the same system, and its derivative."""

    def by_real(x: jax.Array) -> jax.Array:
        def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
            a, b = u
            size = (a**2 + b**2) / 5.0
            return jnp.stack([-p[1] * a - p[0] * b - size * a, p[0] * a - p[1] * b + size * b])

        return dj.solve(dj.ODEProblem(f, x[:2], (0.0, 1.0), x[2:]), dj.RK4(), steps=50).u[-1]

    x, value = jnp.asarray([1.0, 0.5, 1.2, -0.3]), jax.jit(by_real)
    wanted = jax.jit(jax.jacfwd(by_real))(x)
    close(wanted, differences(value, x), 1e-7, 1e-8)
    return value(x), wanted
