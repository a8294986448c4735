"""Derivatives with respect to times, and through everything that a solve gives back.

The reference is a closed form, differentiated by JAX: u' = p cos(t) u.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.derivatives import ARGS, EVERY_ADJOINT, close, compare, grown, solve_growth
from tests.problems import clock, clock_exact

pytestmark = pytest.mark.slow


@EVERY_ADJOINT
def test_end_of_the_solve(adjoint: dj.Adjoint) -> None:
    """What is saved there, `u_end` and `t_end`, with respect to u0, p and both ends of an adaptive
    solve."""

    def ours(u0: Any, p: Any, t0: Any, t1: Any) -> jax.Array:
        sol = solve_growth(u0, p, t0, t1, adjoint)
        return jnp.stack([sol.u[-1], sol.u_end * sol.t_end**2])

    compare(ours, lambda u0, p, t0, t1: grown(u0, p, t0, t1) * jnp.stack([jnp.ones(()), t1**2]))


@EVERY_ADJOINT
def test_save_times_and_stops(adjoint: dj.Adjoint) -> None:
    """Save times move what is saved: at both ends, twice the same, several in one step. A stop cuts
    a step short and must not leave a trace in what does not depend on it."""
    times = jnp.asarray([0.2, 0.5, 0.500001, 0.6, 0.6, 2.0, 2.9])
    options: dict[str, Any] = {}
    # One of them with a method that has stages of its own for its extension.
    if adjoint != dj.DiscreteAdjoint():
        options |= {"alg": dj.Tsit5(), "rtol": 1e-12, "atol": 1e-12}

    def ours(u0: Any, p: Any, times: Any, stops: Any) -> jax.Array:
        return solve_growth(u0, p, 0.2, 2.9, adjoint, saveat=times, tstops=stops, **options).u

    compare(
        ours,
        lambda u0, p, times, stops: grown(u0, p, 0.2, times) + 0 * jnp.sum(stops),
        (*ARGS[:2], times, jnp.asarray([0.9, 1.7])),
    )


def test_save_times_of_a_traced_span_in_backward_time() -> None:
    """`saveat` as a function of the ends: each save moves with them. A solve from t1 to t0 has the
    derivatives of the same solution."""
    parts = jnp.linspace(0.0, 1.0, 5)

    def at(t0: Any, t1: Any) -> jax.Array:
        return t0 + (t1 - t0) * parts

    compare(
        lambda u0, p, t0, t1: solve_growth(u0, p, t1, t0, saveat=at, alg=dj.Tsit5()).u,
        lambda u0, p, t0, t1: grown(u0, p, t1, at(t1, t0)),
    )


def test_through_every_step() -> None:
    """Rows of `saveat="steps"` are the solution at times of their own, NaN rows apart."""

    def ours(u0: Any, p: Any) -> jax.Array:
        sol = solve_growth(u0, p, 0.2, 2.9, saveat="steps", max_steps=256)
        # The error made at each step: a function whose derivative is zero.
        filled = ~jnp.isnan(sol.t)
        t = jnp.where(filled, jax.lax.stop_gradient(sol.t), 0.2)
        return jnp.where(filled, sol.u, u0) / grown(u0, p, 0.2, t)

    close(jax.jit(ours)(*ARGS[:2]), np.ones(257), 1e-9)
    for mode in (jax.jacrev, jax.jacfwd):
        jacobian = jax.jit(mode(ours, argnums=(0, 1)))(*ARGS[:2])
        close(jacobian, (np.zeros(257), np.zeros(257)), 0.0, 1e-8)


def test_through_dense_output() -> None:
    """`sol(t)` is differentiable in the time asked for and in everything the solve is."""

    def ours(u0: Any, p: Any, t: Any) -> jax.Array:
        sol = solve_growth(u0, p, 0.2, 2.9, dense=True, max_steps=256)
        return jnp.stack([sol(t), sol(t, deriv=1)])

    def exact(u0: Any, p: Any, t: Any) -> jax.Array:
        u = grown(u0, p, 0.2, t)
        return jnp.stack([u, p * jnp.cos(t) * u])

    args = (*ARGS[:2], jnp.asarray([0.2, 0.75, 1.9]))
    close(jax.jit(ours)(*args), exact(*args), 1e-8)
    wanted = jax.jit(jax.jacfwd(exact, argnums=(0, 1, 2)))(*args)
    # A derivative of the extension is an order less accurate than the extension.
    close(jax.jit(jax.jacrev(ours, argnums=(0, 1, 2)))(*args), wanted, 1e-6, 1e-6)
    close(jax.jit(jax.jacfwd(ours, argnums=(0, 1, 2)))(*args), wanted, 1e-6, 1e-6)


def test_clock_moves_along_its_solution() -> None:
    """Starting later on the same solution ends in the same state: that derivative is zero."""

    def end(t0: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(clock, lambda p, t0: clock_exact(t0, jnp), (t0, jnp.asarray(3.0)))
        return dj.solve(prob, dj.Tsit5(), rtol=1e-10, atol=1e-10).u[-1]

    t0 = jnp.asarray(0.4)
    close(jax.jit(jax.jacrev(end))(t0), np.zeros(2), 0.0, 1e-7)
    close(jax.jit(jax.jacfwd(end))(t0), np.zeros(2), 0.0, 1e-7)


@pytest.mark.parametrize("options", [{"rtol": 1e-9, "atol": 1e-9}, {"steps": 50}])
def test_mixed_second_derivatives(options: dict[str, Any]) -> None:
    """Guards against taped step sizes without the derivative of the times they end on."""

    def end(p: jax.Array, t1: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: -p * u, jnp.ones(()), (0.0, t1), p)
        return dj.solve(prob, dj.Tsit5(), max_steps=128, **options).u[-1]

    p, t1 = jnp.asarray(0.7), jnp.asarray(1.3)
    mixed = jax.jit(jax.jacfwd(jax.grad(end), argnums=1))(p, t1)
    np.testing.assert_allclose(mixed, (p * t1 - 1) * jnp.exp(-p * t1), rtol=1e-7)


def test_lanes_that_have_ended_do_not_leave_the_domain() -> None:
    """A lane with fewer steps idles where f is defined, and spoils no shared derivative."""

    def total(p: jax.Array) -> jax.Array:
        def one(rate: jax.Array) -> jax.Array:
            # Not defined before t = 1, nor after t = 1.5.
            field = lambda u, p, t: -p * rate * u * jnp.log(t) * jnp.sqrt(1.5 - t)  # noqa: E731
            prob = dj.ODEProblem(field, jnp.ones(()), (1.0, 1.4), p)
            return dj.solve(prob, dj.Tsit5(), rtol=1e-8, atol=1e-8, max_steps=256).u[-1]

        return jnp.sum(jax.vmap(one)(jnp.asarray([0.1, 30.0])))

    p = jnp.asarray(0.5)
    h = 1e-4
    wanted = (total(p + h) - total(p - h)) / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(p), wanted, rtol=1e-6)
