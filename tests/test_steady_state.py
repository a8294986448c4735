"""Steady states and their derivatives, against closed forms."""

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
from tests.derivatives import close, differences

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
ALGORITHMS = {
    "default": None,
    "rootfind": dj.SSRootfind(),
    "dynamic": dj.DynamicSS(),
    "dynamic-unpolished": dj.DynamicSS(dj.BS3(), polish=False),
}
EVERY_ALGORITHM = pytest.mark.parametrize("alg", ALGORITHMS.values(), ids=ALGORITHMS.keys())


def binding(u: dict, p: jax.Array, t: jax.Array) -> dict:
    """A + B <-> C with totals of A and B given; p = (forward rate, backward rate, totals)."""
    forward, backward, a, b = p
    return {"c": forward * (a - u["c"]) * (b - u["c"]) - backward * u["c"]}


@jax.jit
def bound(p: jax.Array) -> jax.Array:
    forward, backward, a, b = p
    total = a + b + backward / forward
    return (total - jnp.sqrt(total**2 - 4 * a * b)) / 2


P = jnp.asarray([2.0, 0.5, 1.0, 1.5])
PS = P[None] * jnp.linspace(0.8, 1.2, 4)[:, None]
BINDING = dj.SteadyStateProblem(binding, {"c": jnp.asarray(0.0)}, P)


def equilibrium(p: jax.Array, alg: Any = None) -> jax.Array:
    return dj.solve(BINDING, alg, p=p, **TIGHT).u["c"][-1]


@EVERY_ALGORITHM
def test_equilibrium_and_its_gradient(alg: Any) -> None:
    """A chemical equilibrium, in reverse and forward."""
    wanted = jax.grad(bound)(P)
    value, gradient = jax.jit(jax.value_and_grad(partial(equilibrium, alg=alg)))(P)
    close(value, bound(P), 1e-9)
    close(gradient, wanted, 1e-8)
    close(jax.jit(jax.jacfwd(partial(equilibrium, alg=alg)))(P), wanted, 1e-8)


def test_second_derivatives_in_every_order() -> None:
    wanted = jax.jit(jax.hessian(bound))(P)
    for outer in (jax.jacfwd, jax.jacrev):
        for inner in (jax.jacfwd, jax.jacrev):
            close(jax.jit(outer(inner(equilibrium)))(P), wanted, 1e-9)


def test_vmap_and_jit() -> None:
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(equilibrium)))(PS)
    close(values, jax.vmap(bound)(PS), 1e-9)
    close(grads, jax.vmap(jax.grad(bound))(PS), 1e-8)


def test_shard_map() -> None:
    """Four devices, JAX's own checks on."""
    mesh, spec = Mesh(np.asarray(jax.devices()[:4]), ("lanes",)), PartitionSpec("lanes")

    def total(ps: jax.Array) -> jax.Array:
        f = jax.shard_map(jax.vmap(equilibrium), mesh=mesh, in_specs=spec, out_specs=spec)
        return jnp.sum(f(ps))

    close(jax.jit(jax.grad(total))(PS), jax.vmap(jax.grad(bound))(PS), 1e-8)


def test_cubic_and_statistics() -> None:
    """Newton from afar: the cubic root of two, and what it took."""
    prob = dj.SteadyStateProblem(lambda u, p, t: p - u**3, jnp.asarray([10.0]), jnp.asarray(2.0))
    sol = dj.solve(prob, dj.SSRootfind(), **TIGHT)
    assert sol.retcode is dj.ReturnCode.success
    assert sol.u.shape == (1, 1)
    close(sol.u, 2.0 ** (1 / 3) * np.ones((1, 1)), 1e-12)
    assert 0 < int(sol.stats.nsolve) <= 12
    assert int(sol.stats.njac) == int(sol.stats.nsolve) + 1
    assert int(sol.stats.nf) <= 2 * int(sol.stats.nsolve) + 1


def test_backtracking_where_newton_alone_diverges() -> None:
    """arctan from 10: full steps of Newton's method run away."""
    prob = dj.SteadyStateProblem(lambda u, p, t: -jnp.arctan(u), jnp.asarray(10.0))
    close(dj.solve(prob, dj.SSRootfind(), **TIGHT).u, np.zeros(1), 0.0, 1e-9)


def test_time_is_infinite() -> None:
    """What decays has decayed: the root is that of the limit, whichever way it is found."""
    prob = dj.SteadyStateProblem(lambda u, p, t: p - u + jnp.exp(-t), jnp.ones(2), jnp.asarray(3.0))
    for alg in (dj.SSRootfind(), dj.DynamicSS()):
        close(dj.solve(prob, alg, **TIGHT).u, 3.0 * np.ones((1, 2)), 1e-9)


def test_complex_state() -> None:
    prob = dj.SteadyStateProblem(lambda u, p, t: p - u * u, jnp.asarray(1.0 + 0.1j))
    p = jnp.asarray(2.0 + 1.0j)
    close(dj.solve(prob, dj.SSRootfind(), p=p, **TIGHT).u[0], jnp.sqrt(p), 1e-10)
    got = jax.grad(lambda p: dj.solve(prob, dj.SSRootfind(), p=p, **TIGHT).u[0].real)(p)
    close(got, jax.grad(lambda p: jnp.sqrt(p).real)(p), 1e-9)


def test_float32() -> None:
    p = P.astype(jnp.float32)

    def root(p: jax.Array) -> jax.Array:
        return dj.solve(BINDING, u0={"c": jnp.float32(0.0)}, p=p, rtol=1e-5).u["c"][-1]

    value, gradient = jax.value_and_grad(root)(p)
    assert value.dtype == gradient.dtype == jnp.float32
    close(value, bound(P), 1e-5)
    close(gradient, jax.grad(bound)(P), 1e-4)


def test_deep_equilibrium() -> None:
    """A network as the field, u = tanh(W u + x) at rest, against differences."""
    network = eqx.nn.MLP(3, 3, 5, 1, activation=jnp.tanh, key=jax.random.key(1))
    network = jtu.tree_map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, network)

    def loss(x: jax.Array, network: Any) -> jax.Array:
        prob = dj.SteadyStateProblem(
            lambda u, p, t: jnp.tanh(p[0](u) / 2 + p[1]) - u, jnp.zeros(3), (network, x)
        )
        return jnp.sum(dj.solve(prob, **TIGHT).u ** 2)

    x = jnp.asarray([0.5, -0.2, 0.1])
    bias = network.layers[0].bias

    @jax.jit
    def by_both(x: jax.Array, bias: jax.Array) -> jax.Array:
        return loss(x, eqx.tree_at(lambda n: n.layers[0].bias, network, bias))

    by_x, by_bias = jax.jit(jax.grad(by_both, argnums=(0, 1)))(x, bias)
    close(by_x, differences(lambda x: by_both(x, bias), x), 1e-7, 1e-9)
    close(by_bias, differences(lambda b: by_both(x, b), bias), 1e-7, 1e-9)


def test_the_start_has_no_derivative() -> None:
    gradient = jax.grad(lambda u0: dj.solve(BINDING, u0=u0, **TIGHT).u["c"][-1])
    close(gradient({"c": jnp.asarray(0.1)}), {"c": 0.0})


# Failure ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "alg", "options", "code"),
    [
        (lambda u, p, t: p + u**2, dj.SSRootfind(), {}, dj.ReturnCode.newton_failed),
        (lambda u, p, t: p - u**3, dj.SSRootfind(), {"max_steps": 2}, dj.ReturnCode.max_steps),
        (lambda u, p, t: p + 0 * u, dj.DynamicSS(t_max=5.0), {}, dj.ReturnCode.max_steps),
        (lambda u, p, t: p + jnp.nan * u, None, {}, dj.ReturnCode.unstable),
    ],
    ids=["no-root", "iterations", "never-rests", "nan"],
)
def test_failures_are_named(f: Any, alg: Any, options: dict, code: dj.ReturnCode) -> None:
    """The code says why, the state and its gradient are NaN, and an eager call raises."""
    prob = dj.SteadyStateProblem(f, jnp.asarray(9.0), jnp.asarray(1.0))
    sol = dj.solve(prob, alg, throw=False, **options)
    assert sol.retcode is code
    assert bool(jnp.isnan(sol.u[0]))
    gradient = jax.grad(lambda p: dj.solve(prob, alg, p=p, throw=False, **options).u_end)
    assert bool(jnp.isnan(gradient(jnp.asarray(1.0))))
    with pytest.raises(dj.SolveError, match=code.name):
        dj.solve(prob, alg, **options)


def test_a_conserved_quantity() -> None:
    """The full network of A + B <-> C conserves two totals: its equilibria are not isolated. Only
    following the solution finds the one that belongs to the start, and it has no derivative."""

    def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        rate = p[0] * u[0] * u[1] - p[1] * u[2]
        return jnp.stack([-rate, -rate, rate])

    prob = dj.SteadyStateProblem(f, jnp.asarray([1.0, 1.5, 0.0]), P[:2])
    assert dj.solve(prob, dj.SSRootfind(), throw=False).retcode is dj.ReturnCode.newton_failed
    close(dj.solve(prob, **TIGHT).u[0, 2], bound(P), 1e-8)
    assert bool(jnp.all(jnp.isnan(jax.grad(lambda p: dj.solve(prob, p=p).u[0, 2])(P[:2]))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjoint": dj.ForwardMode()}, r"ForwardMode cannot.*dj.SteadyStateAdjoint\(\)"),
        ({"alg": dj.Tsit5()}, "Tsit5 cannot solve.*SteadyStateProblem"),
        ({"saveat": 0.1}, "saveat=0.1 has no meaning"),
        ({"dense": True}, "dense=True has no meaning"),
        ({"dt": 0.1}, "dt=0.1 has no meaning"),
        ({"tspan": (0.0, 1.0)}, "no argument 'tspan'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        dj.solve(BINDING, **options)


def test_the_adjoint_of_steady_states_is_refused_elsewhere() -> None:
    prob = dj.ODEProblem(lambda u, p, t: -u, jnp.ones(1), (0.0, 1.0))
    with pytest.raises(TypeError, match=r"SteadyStateAdjoint cannot.*dj.DiscreteAdjoint\(\)"):
        dj.solve(prob, adjoint=dj.SteadyStateAdjoint())
    with pytest.raises(TypeError, match="no steps to walk"):
        dj.init(BINDING)
    with pytest.raises(ValueError, match="error estimate"):
        dj.DynamicSS(dj.RK4())
