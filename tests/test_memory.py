"""A method that remembers: what its history shapes is taped, differentiated and taken again."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.algorithms.base import Algorithm, Memory, StepResult


class AdamsBashforth2(Algorithm):
    """The two-step method with variable steps (HNW I, section III.5); the first step is Euler's.

    Its history is the slope and the size of the step before; a size of zero says there was none.
    The choice counts steps, and lets every third one be of order one.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem"})

    order: ClassVar[int] = 2
    error_order: ClassVar[int] = 1
    dense_order: ClassVar[int] = 1
    dense_counts: ClassVar[dict[str, int]] = {}

    def init(self, field, t, u):
        slope = jax.tree_util.tree_map(jnp.zeros_like, u)
        return Memory((slope, jnp.zeros_like(t)), jnp.zeros((), jnp.int32), field.f(t, u))

    def step(self, field, t, dt, u, memory, norm):
        (before, size), count = memory.history, memory.choice
        slope = memory.cache
        two = (size > 0) & (count % 3 != 2)
        ratio = jnp.where(two, dt / jnp.where(two, size, 1) / 2, 0)
        change = dt * ratio * (slope - before)
        end = u + dt * slope + change
        error = None
        if norm is not None:
            first = dt * dt * (slope + field.f(t, u) * 0) / 2
            error = norm(jnp.where(two, change, first), u, end)
        return StepResult(
            u=end,
            error=error,
            ok=True,
            memory=Memory((slope, dt), count + 1, field.f(t + dt, end)),
            memory_if_rejected=memory,
            stages=(dt * slope, change),
        )

    def dense(self, field, t, dt, u, stages):
        return (u, *stages)

    def interpolate(self, coefficients, theta):
        u, first, second = coefficients
        return u + theta * first + theta * theta * second


def field(u, p, t):
    return jnp.stack([p[0] * u[1], -p[1] * u[0] * (1 + 0.1 * jnp.sin(t))])


P = jnp.asarray([1.3, 0.7])
SAVES = jnp.linspace(0.5, 4.0, 5)
PROBLEM = dj.ODEProblem(field, jnp.asarray([1.0, 0.3]), (0.0, 4.0), P)


def reference(p, u0, dts):
    """The same steps, written out as a scan."""

    def step(carry, k):
        t, u, before, size = carry
        dt = dts[k]
        slope = field(u, p, t)
        two = (size > 0) & (k % 3 != 2)
        ratio = jnp.where(two, dt / jnp.where(two, size, 1.0) / 2, 0.0)
        end = u + dt * slope + dt * ratio * (slope - before)
        return (t + dt, end, slope, dt), end

    start = (jnp.zeros(()), u0, jnp.zeros_like(u0), jnp.zeros(()))
    return jax.lax.scan(step, start, jnp.arange(dts.shape[0]))[0][1]


def solved(p, u0, **options):
    prob = dj.remake(PROBLEM, p=p, u0=u0)
    return dj.solve(prob, AdamsBashforth2(), rtol=1e-3, atol=1e-3, max_steps=256, **options)


@pytest.fixture(scope="module")
def dts():
    sol = solved(P, PROBLEM.u0, saveat="steps")
    t = np.asarray(sol.t)[: int(sol.n)]
    assert int(sol.stats.nreject) > 0
    return jnp.asarray(np.diff(t))


@pytest.mark.parametrize("checkpoints", [None, 9])
def test_every_derivative_is_that_of_the_steps(dts, checkpoints):
    adjoint = dj.DiscreteAdjoint(checkpoints=checkpoints)

    def ours(p, u0):
        return jnp.sum(solved(p, u0, adjoint=adjoint).u[-1] ** 2)

    def theirs(p, u0):
        return jnp.sum(reference(p, u0, dts) ** 2)

    args = (P, PROBLEM.u0)
    np.testing.assert_allclose(ours(*args), theirs(*args), rtol=1e-12)
    for derivative in (jax.grad, jax.jacfwd):
        got = jax.jit(derivative(ours, (0, 1)))(*args)
        want = jax.jit(derivative(theirs, (0, 1)))(*args)
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-12)


def test_second_derivatives(dts):
    got = jax.jit(jax.hessian(lambda p: jnp.sum(solved(p, PROBLEM.u0).u[-1] ** 2)))(P)
    want = jax.jit(jax.hessian(lambda p: jnp.sum(reference(p, PROBLEM.u0, dts) ** 2)))(P)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_saves_dense_output_and_vmap_agree():
    ps = jnp.stack([P, 1.5 * P])

    def loss(p, options):
        sol = solved(p, PROBLEM.u0, **options)
        u = jax.vmap(sol)(SAVES) if options.get("dense") else sol.u
        return jnp.sum(jnp.cos(u))

    each = [jax.value_and_grad(lambda p, o=o: loss(p, o)) for o in OPTIONS]
    rows = [jax.jit(jax.vmap(f))(ps) for f in each]
    for value, gradient in rows[1:]:
        np.testing.assert_allclose(value, rows[0][0], rtol=1e-12)
        np.testing.assert_allclose(gradient, rows[0][1], rtol=1e-9)
    single = jax.jit(each[0])
    alone = [single(p) for p in ps]
    for k, (value, gradient) in enumerate(alone):
        np.testing.assert_allclose(value, rows[0][0][k], rtol=1e-12)
        np.testing.assert_allclose(gradient, rows[0][1][k], rtol=1e-9)


OPTIONS = (
    {"saveat": SAVES},
    {"dense": True},
    {"saveat": SAVES, "adjoint": dj.ForwardMode()},
)
