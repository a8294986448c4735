"""Products with second derivatives, as Newton's and Gauss and Newton's methods use them.

Neither forms a matrix: a Hessian-vector product is a tangent of a gradient, a Gauss-Newton product
a tangent followed by a cotangent.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from tests.derivatives import EVERY_ADJOINT, close, differences
from tests.problems import LOTKA_VOLTERRA, lotka_volterra

TIMES = jnp.linspace(0.0, 3.0, 7)
P = jnp.asarray(LOTKA_VOLTERRA.p)
DIRECTION = jnp.asarray([0.3, -1.0, 0.5, 0.8])


def residuals(p: jax.Array, adjoint: Any = None, **options: Any) -> jax.Array:
    prob = dj.ODEProblem(lotka_volterra, jnp.asarray(LOTKA_VOLTERRA.u0), (0.0, 3.0), p)
    u = dj.solve(prob, dj.Tsit5(), saveat=TIMES, adjoint=adjoint, max_steps=100, **options).u
    return (u - 1.0).reshape(-1)


@EVERY_ADJOINT
def test_hessian_vector_product(adjoint: dj.Adjoint) -> None:
    """Forward over reverse, against differences of the gradient of the same fixed steps."""

    def loss(p: jax.Array) -> jax.Array:
        return jnp.sum(residuals(p, adjoint, steps=30) ** 2) / 2.0

    both = jax.jit(lambda p: jax.jvp(jax.grad(loss), (p,), (DIRECTION,)))
    wanted = differences(lambda s: both(P + s * DIRECTION)[0], 0.0)
    close(both(P)[1], wanted, 1e-6, 1e-6 * float(np.abs(wanted).max()))


@EVERY_ADJOINT
def test_gauss_newton_product(adjoint: dj.Adjoint) -> None:
    """J^T J v by a jvp and a vjp, and by one linearization and its transpose."""
    options = {"rtol": 1e-6, "atol": 1e-6}

    def f(p: jax.Array) -> jax.Array:
        return residuals(p, adjoint, **options)

    def by_both(p: jax.Array, v: jax.Array) -> jax.Array:
        _, pull = jax.vjp(f, p)
        return pull(jax.jvp(f, (p,), (v,))[1])[0]

    def by_linearization(p: jax.Array, v: jax.Array) -> jax.Array:
        _, push = jax.linearize(f, p)
        return jax.linear_transpose(push, p)(push(v))[0]

    J = np.asarray(jax.jit(jax.jacfwd(f))(P))
    wanted = J.T @ (J @ np.asarray(DIRECTION))
    scale = float(np.abs(wanted).max())
    close(jax.jit(by_both)(P, DIRECTION), wanted, 1e-10, 1e-10 * scale)
    close(jax.jit(by_linearization)(P, DIRECTION), wanted, 1e-10, 1e-10 * scale)


def test_conjugate_gradients_find_the_gauss_newton_step() -> None:
    """The products as the operator of a Krylov method, against a dense least-squares solution."""

    def step(p: jax.Array) -> jax.Array:
        r, push = jax.linearize(residuals, p)
        pull = jax.linear_transpose(push, p)
        normal = lambda v: pull(push(v))[0]  # noqa: E731
        return jax.scipy.sparse.linalg.cg(normal, -pull(r)[0], tol=1e-12)[0]

    J, r = jax.jit(lambda p: (jax.jacfwd(residuals)(p), residuals(p)))(P)
    wanted = np.linalg.lstsq(np.asarray(J), -np.asarray(r), rcond=None)[0]
    close(jax.jit(step)(P), wanted, 1e-6)
