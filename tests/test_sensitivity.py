"""Costs along the trajectory by every adjoint, and what else is asked of a derivative."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.problems import LOTKA_VOLTERRA, lotka_volterra

P = jnp.asarray(LOTKA_VOLTERRA.p)
U0 = jnp.asarray(LOTKA_VOLTERRA.u0)
PROB = dj.ODEProblem(lotka_volterra, U0, (0.0, 2.0), P)

ADJOINTS: dict[str, Any] = {
    "discrete": dj.DiscreteAdjoint(),
    "checkpoints": dj.DiscreteAdjoint(checkpoints=8),
    "backsolve": dj.BacksolveAdjoint(),
    "interpolating": dj.InterpolatingAdjoint(),
    "gauss": dj.GaussAdjoint(),
    "reversible": dj.ReversibleAdjoint(),
    "forward": dj.ForwardMode(),
    "auto": "auto",
}
TIGHT = {"rtol": 1e-9, "atol": 1e-9, "max_steps": 512}
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Tsit5": (dj.Tsit5(), TIGHT),
    # A method with stages of its own for its extension.
    "BS5": (dj.BS5(), TIGHT),
    "fixed": (dj.Tsit5(), {"steps": 200}),
}


def decay_cost(p: jax.Array, u0: jax.Array, t0: jax.Array, t1: jax.Array, **options: Any) -> Any:
    """The integral of (1 + t) u^2 for u' = -p u."""
    prob = dj.ODEProblem(lambda u, p, t: -p * u, u0, (t0, t1), p)
    return dj.integral_cost(lambda u, p, t: (1 + t) * u**2, prob, **options)


@jax.jit
def decay_exact(p: jax.Array, u0: jax.Array, t0: jax.Array, t1: jax.Array) -> jax.Array:
    k = 2 * p

    def primitive(t: jax.Array) -> jax.Array:
        return -jnp.exp(-k * (t - t0)) * ((1 + t) / k + 1 / k**2)

    return u0**2 * (primitive(t1) - primitive(t0))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "Tsit5") for name in ADJOINTS),
        *((name, "BS5") for name in ("discrete", "gauss")),
        *((name, "fixed") for name in ("checkpoints", "backsolve", "interpolating", "reversible")),
    ],
)
def test_integral_cost_against_its_closed_form(name: str, way: str) -> None:
    """Value, and derivatives by p, u0 and both ends of the span."""
    adjoint, (alg, options) = ADJOINTS[name], WAYS[way]
    at = tuple(jnp.asarray(x) for x in (0.7, 1.3, 0.2, 1.9))

    def cost(*at: jax.Array) -> jax.Array:
        return decay_cost(*at, alg=alg, adjoint=adjoint, **options)

    value, gradient = jax.jit(jax.value_and_grad(cost, argnums=(0, 1, 2, 3)))(*at)
    np.testing.assert_allclose(value, decay_exact(*at), rtol=1e-7)
    wanted = jax.grad(decay_exact, argnums=(0, 1, 2, 3))(*at)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-6)


def test_integral_cost_of_a_pytree_and_a_network() -> None:
    """Integrands may be pytrees and closures over parameters; backward time changes the sign."""
    net = eqx.nn.MLP(2, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    prob = dj.ODEProblem(lambda u, net, t: {"x": net(u["x"])}, {"x": U0}, (0.0, 1.0), net)

    def both(u: Any, p: Any, t: Any) -> Any:
        return {"sum": jnp.sum(u["x"]), "time": t}

    there = dj.integral_cost(both, prob, dj.Tsit5(), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(there["time"], 0.5, rtol=1e-8)
    sol = dj.solve(prob, dj.Tsit5(), rtol=1e-8, atol=1e-8)
    back = dj.integral_cost(
        both, prob, dj.Tsit5(), u0=sol.u_end, tspan=(1.0, 0.0), rtol=1e-8, atol=1e-8
    )
    np.testing.assert_allclose(back["sum"], -there["sum"], rtol=1e-6)


def test_integral_cost_under_vmap_and_in_single_precision() -> None:
    at = [jnp.asarray(x, jnp.float32) for x in (0.7, 1.3, 0.2, 1.9)]
    ps = jnp.asarray([0.5, 0.7, 0.9], jnp.float32)
    f = jax.jit(
        jax.vmap(jax.grad(lambda p: decay_cost(p, *at[1:], alg=dj.Tsit5(), rtol=1e-5, atol=1e-5)))
    )
    got = f(ps)
    assert got.dtype == jnp.float32
    wanted = [jax.grad(decay_exact)(p, *at[1:]) for p in ps]
    np.testing.assert_allclose(got, np.asarray(wanted), rtol=1e-3)


def test_a_second_integral_cost_traces_nothing() -> None:
    """Guards against closures made anew in each call, which jit takes for other functions."""
    traces = []

    def g(u: jax.Array, p: Any, t: Any) -> jax.Array:
        traces.append(1)
        return jnp.sum(u**2)

    dj.integral_cost(g, PROB, dj.Tsit5())
    first = len(traces)
    dj.integral_cost(g, dj.remake(PROB, u0=1.1 * U0), dj.Tsit5())
    assert len(traces) == first


def test_integral_cost_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="leave out saveat="):
        dj.integral_cost(lambda u, p, t: u[0], PROB, saveat=0.1)
    with pytest.raises(TypeError, match="takes an ODEProblem, got SteadyStateProblem"):
        dj.integral_cost(lambda u, p, t: u[0], dj.SteadyStateProblem(lotka_volterra, U0, P))


# Names of the package that this library follows ---------------------------------------


def test_layer_functions_agree() -> None:
    """diffeq_rd, diffeq_fd and diffeq_adjoint: one gradient, three ways."""
    options = {"saveat": 0.5, "rtol": 1e-9, "atol": 1e-9, "max_steps": 256}

    def rd(p: jax.Array) -> jax.Array:
        return jnp.sum(dj.diffeq_rd(p, PROB, dj.Tsit5(), **options).u ** 2)

    def fd(p: jax.Array) -> jax.Array:
        return dj.diffeq_fd(p, lambda sol: jnp.sum(sol.u**2), 1, PROB, dj.Tsit5(), **options)

    def adjoint(p: jax.Array) -> jax.Array:
        return jnp.sum(dj.diffeq_adjoint(p, PROB, dj.Tsit5(), **options).u ** 2)

    wanted = jax.jit(jax.grad(rd))(P)
    np.testing.assert_allclose(jax.jit(jax.grad(fd))(P), wanted, rtol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.grad(adjoint))(P), wanted, rtol=1e-6)


def test_diffeq_fd_counts_its_numbers() -> None:
    with pytest.raises(ValueError, match=r"n=3 numbers, got shape \(1, 2\)"):
        dj.diffeq_fd(P, lambda sol: sol.u, 3, PROB, dj.Tsit5())


# Which adjoint, and which not ---------------------------------------------------------


def test_reversal_error() -> None:
    """Small where a solve can be run back; beyond all bounds on a chaotic attractor."""
    mild = dj.reversal_error(PROB, dj.Tsit5(), rtol=1e-8, atol=1e-8)
    assert 0 < float(mild) < 1e-5
    # The error of the end grows by exp(20).
    decay = dj.ODEProblem(lambda u, p, t: -20.0 * u, U0, (0.0, 1.0))
    stiff = dj.reversal_error(decay, dj.Tsit5(), rtol=1e-8, atol=1e-8)
    assert float(stiff) > 1e-2

    def lorenz(u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
        x, y, z = u
        return jnp.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z])

    prob = dj.ODEProblem(lorenz, jnp.asarray([1.0, 0.0, 0.0]), (0.0, 100.0))
    error = dj.reversal_error(prob, dj.Vern9(), rtol=1e-12, atol=1e-12, max_steps=20_000)
    assert float(error) > 10.0


def test_auto_keeps_a_small_tape_and_checkpoints_a_large_one() -> None:
    def memory(max_steps: int) -> int:
        def loss(u0: jax.Array) -> jax.Array:
            prob = dj.ODEProblem(lambda u, p, t: -(u**3), u0, (0.0, 1.0))
            return jnp.sum(dj.solve(prob, dj.Tsit5(), adjoint="auto", max_steps=max_steps).u)

        u0 = jax.ShapeDtypeStruct((2048,), jnp.float64)
        compiled = jax.jit(jax.grad(loss)).lower(u0).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    row = 2048 * 8
    assert memory(256) > 256 * row
    assert memory(65536) < 2000 * row


def test_an_unknown_adjoint_is_refused() -> None:
    with pytest.raises(TypeError, match="adjoint must be like"):
        dj.solve(PROB, dj.Tsit5(), adjoint="best")
