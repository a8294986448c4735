"""A solve transforms like `jnp.sin`: jit, vmap, grad, jvp, scan, shard_map, nested at will."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import diffjax as dj
from tests.problems import LOTKA_VOLTERRA, lotka_volterra

TIMES = jnp.linspace(0.0, 3.0, 7)
P = jnp.asarray(LOTKA_VOLTERRA.p)
U0 = jnp.asarray(LOTKA_VOLTERRA.u0)
PS = P[None] * jnp.linspace(0.8, 1.2, 4)[:, None]
U0S = U0[None] * jnp.linspace(0.9, 1.1, 3)[:, None]

ADJOINTS = {
    "tape": dj.DiscreteAdjoint(),
    "checkpoints": dj.DiscreteAdjoint(checkpoints=8),
    "forward": dj.ForwardMode(),
}
EVERY_ADJOINT = pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS.keys())
EVERY_NAME = pytest.mark.parametrize("name", ADJOINTS)


def solve(p: jax.Array, u0: jax.Array = U0, adjoint: Any = None, **options: Any) -> dj.Solution:
    prob = dj.ODEProblem(lotka_volterra, u0, (0.0, 3.0), p)
    options = {"saveat": TIMES, "rtol": 1e-5, "atol": 1e-5, "max_steps": 256, **options}
    # A small method, which makes small programs.
    return dj.solve(prob, dj.BS3(), adjoint=adjoint, **options)


def loss(p: jax.Array, u0: jax.Array = U0, adjoint: Any = None) -> jax.Array:
    return jnp.sum(solve(p, u0, adjoint).u ** 2)


def close(got: Any, wanted: Any, rtol: float = 1e-10, atol: float = 1e-10) -> None:
    jtu.tree_map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol, atol),
        got,
        wanted,
    )


def looped(f: Callable, *args: jax.Array) -> Any:
    """What `vmap` should give, one lane at a time."""
    rows = [f(*row) for row in zip(*args, strict=True)]
    return jtu.tree_map(lambda *xs: jnp.stack(xs), *rows)


def test_jit_equals_eager() -> None:
    """The front door adds nothing to the compiled solve, nor takes anything away."""
    eager, jitted = solve(P), jax.jit(solve)(P)
    close(jitted.u, eager.u, 1e-14)
    assert jtu.tree_map(int, jitted.stats) == jtu.tree_map(int, eager.stats)
    assert jitted.retcode is dj.ReturnCode.success


def test_vmap_equals_a_loop() -> None:
    """Lanes with steps of their own give each lane's own solve, statistics included."""
    lanes, loop = jax.jit(jax.vmap(solve))(PS), looped(solve, PS)
    close(lanes.u, loop.u, 1e-12)
    assert lanes.stats.naccept.tolist() == loop.stats.naccept.tolist()
    assert lanes.stats.nf.tolist() == loop.stats.nf.tolist()


def test_vmap_of_vmap() -> None:
    both = jax.jit(jax.vmap(jax.vmap(solve, (None, 0)), (0, None)))(PS, U0S)
    assert both.u.shape == (4, 3, 7, 2)
    for i in (0, 3):
        for j in (0, 2):
            close(both.u[i, j], solve(PS[i], U0S[j]).u, 1e-12)


@cache
def gradient(name: str) -> Callable:
    """Value and gradient of one trajectory's loss by p and u0, as a compiled function."""
    return jax.jit(jax.value_and_grad(partial(loss, adjoint=ADJOINTS[name]), argnums=(0, 1)))


def gradients_of_a_loop(name: str, ps: jax.Array) -> jax.Array:
    return jnp.stack([gradient(name)(p, U0)[1][0] for p in ps])


@EVERY_NAME
def test_modes_agree(name: str) -> None:
    """Reverse and forward are the derivatives of one another's function."""
    value, wanted = gradient(name)(P, U0)
    close(value, loss(P), 1e-12)
    f = partial(loss, adjoint=ADJOINTS[name])
    tangents = jnp.ones_like(P), jnp.ones_like(U0)
    value, slope = jax.jit(lambda *x: jax.jvp(f, x, tangents))(P, U0)
    close(value, loss(P), 1e-12)
    close(slope, sum(jnp.sum(g) for g in wanted), 1e-10)


def test_modes_agree_without_jit() -> None:
    close(jax.grad(loss, argnums=(0, 1))(P, U0), gradient("tape")(P, U0)[1], 1e-12)


@EVERY_NAME
def test_jacobians_of_the_saved_states(name: str) -> None:
    def states(p: jax.Array) -> jax.Array:
        return solve(p, adjoint=ADJOINTS[name]).u

    close(jax.jit(jax.jacrev(states))(P), jax.jit(jax.jacfwd(states))(P), 1e-9, 1e-9)


@pytest.mark.slow
@EVERY_NAME
def test_vmap_and_grad_commute(name: str) -> None:
    """vmap of grad, grad of vmap, and a loop of grads."""
    f, wanted = partial(loss, adjoint=ADJOINTS[name]), gradients_of_a_loop(name, PS)
    close(jax.jit(jax.vmap(jax.grad(f)))(PS), wanted, 1e-9)
    # One lane's cotangent is another's zero.
    weighted = jax.jit(jax.grad(lambda ps, weights: weights @ jax.vmap(f)(ps)))
    for weights in np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]):
        close(weighted(PS, weights), wanted * weights[:, None], 1e-9)


hessian = jax.jit(jax.hessian(loss))


@pytest.mark.slow
def test_vmap_of_hessian() -> None:
    close(jax.jit(jax.vmap(jax.hessian(loss)))(PS[:2]), looped(hessian, PS[:2]), 1e-8, 1e-8)


@pytest.mark.slow
def test_jvp_of_vmap_of_vmap() -> None:
    def f(p: jax.Array, u0: jax.Array) -> jax.Array:
        inner = jax.vmap(lambda p, u: jnp.sum(solve(p, u).u ** 2), (None, 0))
        return jax.vmap(inner, (0, None))(p, u0)

    wanted = jax.jit(jax.jacfwd(f))(PS[:2], U0S[:2])
    close(jax.jit(jax.jacrev(f))(PS[:2], U0S[:2]), wanted, 1e-9, 1e-9)


def test_scan_over_solves() -> None:
    """Solves in a scan, each from where the last ended, differentiated through."""

    def chained(p: jax.Array) -> jax.Array:
        def body(u: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            sol = dj.solve(dj.ODEProblem(lotka_volterra, u, (0.0, 1.0), p), dj.RK4(), steps=20)
            return sol.u[-1], sol.u[-1]

        return jax.lax.scan(body, U0, None, length=3)[1]

    def at_once(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lotka_volterra, U0, (0.0, 3.0), p)
        return dj.solve(prob, dj.RK4(), steps=60, saveat=1.0).u[1:]

    close(jax.jit(chained)(P), at_once(P), 1e-12)
    close(jax.jit(jax.jacrev(chained))(P), jax.jit(jax.jacrev(at_once))(P), 1e-10)


@pytest.mark.slow
@EVERY_NAME
def test_shard_map(name: str) -> None:
    """Four devices, JAX's own checks on: values and gradients equal those of a loop."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("lanes",))
    ps = jnp.concatenate([PS, PS * 1.05])
    spec = PartitionSpec("lanes")

    def local(ps: jax.Array, u0: jax.Array) -> jax.Array:
        return jax.vmap(lambda p: loss(p, u0, ADJOINTS[name]))(ps)

    def total(ps: jax.Array, u0: jax.Array) -> jax.Array:
        f = jax.shard_map(local, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
        return jnp.sum(f(ps, u0))

    value, got = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(ps, U0)
    each = [gradient(name)(p, U0) for p in ps]
    close(value, sum(value for value, _ in each), 1e-10)
    close(got, (jnp.stack([x[0] for _, x in each]), sum(x[1] for _, x in each)), 1e-9)


def test_shard_map_of_one_solve_a_device() -> None:
    """Without a vmap inside, and with the gradient taken inside."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("lanes",))
    spec = PartitionSpec("lanes")

    def local(ps: jax.Array) -> jax.Array:
        return jax.grad(loss)(ps[0])[None]

    f = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec))
    close(f(PS), gradients_of_a_loop("tape", PS), 1e-9)


def test_shard_map_of_a_method_with_stages_for_output_alone() -> None:
    """Their loop of one turn is given and gives back types that vary over the mesh alike."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("lanes",))
    spec = PartitionSpec("lanes")

    def saved(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lotka_volterra, U0, (0.0, 1.0), p)
        return jnp.sum(dj.solve(prob, dj.Vern6(), saveat=0.3, max_steps=64).u ** 2)

    gradient = jax.grad(saved)
    f = jax.shard_map(lambda ps: gradient(ps[0])[None], mesh=mesh, in_specs=spec, out_specs=spec)
    close(jax.jit(f)(PS), jax.jit(jax.vmap(gradient))(PS), 1e-9)


def test_hessian_with_checkpoints() -> None:
    """Guards against segments whose rows are numbered otherwise for tangents than for values."""

    def f(p: jax.Array) -> jax.Array:
        return loss(p, adjoint=dj.DiscreteAdjoint(checkpoints=4))

    assert int(solve(P).stats.nreject) > 0
    close(jax.jit(jax.hessian(f))(P), hessian(P), 1e-9, 1e-9)


def decay(p: jax.Array, adjoint: Any = None, steps: int | None = None) -> jax.Array:
    """u' = -p u^2 from 1, whose end is 1 / (1 + p): the smallest program with steps in it."""
    prob = dj.ODEProblem(lambda u, p, t: -p * u**2, jnp.ones(()), (0.0, 1.0), p)
    options = {"rtol": 1e-9, "atol": 1e-9, "max_steps": 1024}
    return dj.solve(prob, dj.BS3(), adjoint=adjoint, steps=steps, **options).u[-1]


@pytest.mark.slow
@EVERY_ADJOINT
def test_second_derivatives_in_every_order(adjoint: dj.Adjoint) -> None:
    """Reverse over forward and reverse over reverse, which JAX's own loops would refuse; of
    adaptive and of fixed steps."""
    p = np.asarray([0.7, 1.5])
    wanted = 2 / (1 + p) ** 3
    f = partial(decay, adjoint=adjoint)
    close(jax.jit(jax.grad(jax.jacfwd(f)))(p[0]), wanted[0], 1e-7)
    f = partial(decay, adjoint=adjoint, steps=200)
    close(jax.jit(jax.vmap(jax.grad(jax.grad(f))))(p), wanted, 1e-7)


@pytest.mark.slow
def test_third_derivatives() -> None:
    """Forward over reverse over forward."""
    p = jnp.asarray(0.7)
    close(jax.jit(jax.jacfwd(jax.grad(jax.jacfwd(decay))))(p), -6 / (1 + p) ** 4, 1e-6)


# Many lanes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand() -> tuple[jax.Array, Any]:
    """A thousand parameter sets, two of which make the field NaN at once or later."""
    factors = jax.random.uniform(jax.random.key(0), (1000, 4), minval=0.7, maxval=1.3)
    ps = (P[None] * factors).at[17].set(jnp.nan).at[421, 0].set(1e3)
    run = jax.jit(jax.vmap(lambda p: solve(p, max_steps=512, throw=False)))
    return ps, run(ps)


def test_thousand_lanes_equal_their_own_solves(thousand: tuple) -> None:
    ps, sol = thousand
    one = jax.jit(partial(solve, max_steps=512))
    for lane in range(0, 1000, 83):
        close(sol.u[lane], one(ps[lane]).u, 1e-11, 1e-12)
        assert int(sol.stats.naccept[lane]) == int(one(ps[lane]).stats.naccept)


def test_bad_lanes_are_flagged_alone(thousand: tuple) -> None:
    """A NaN or a blow-up in one lane neither spreads nor hides."""
    _, sol = thousand
    codes = np.asarray(sol.retcode)
    good = np.ones(1000, bool)
    good[[17, 421]] = False
    assert np.all(codes[good] == dj.ReturnCode.success)
    assert np.all(codes[~good] > dj.ReturnCode.terminated)
    assert np.all(np.isfinite(np.asarray(sol.u)[good]))
    assert np.all(np.isnan(np.asarray(sol.u)[17, 1:]))
    # What was saved before stays.
    close(sol.u[17, 0], U0)


def test_gradient_beside_a_bad_lane() -> None:
    """A lane that failed poisons only its own gradient."""
    ps = PS.at[1].set(jnp.nan)

    def total(ps: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(lambda p: solve(p, throw=False).u[-1, 0])(ps))

    got = jax.jit(jax.grad(total))(ps)
    f = jax.jit(jax.grad(lambda p: solve(p).u[-1, 0]))
    for lane in (0, 2, 3):
        close(got[lane], f(PS[lane]), 1e-9)


def test_an_eager_vmap_raises_and_counts_lanes() -> None:
    """The return code of an un-jitted vmap is concrete: it raises, naming how many failed."""
    with pytest.raises(dj.SolveError, match="1 of 4 lanes"):
        jax.vmap(solve)(PS.at[1].set(jnp.nan))


# Networks -----------------------------------------------------------------------------


def network(width: int = 8) -> eqx.nn.MLP:
    return eqx.nn.MLP(2, 2, width, 1, activation=jnp.tanh, key=jax.random.key(1))


def test_a_problem_with_a_network_is_an_argument() -> None:
    """Plain jit, vmap and grad take a problem whose `p` is a network."""
    prob = dj.ODEProblem(lambda u, net, t: net(u), U0, (0.0, 1.0), network())

    def end(prob: dj.ODEProblem) -> jax.Array:
        return jnp.sum(dj.solve(prob, dj.Tsit5(), rtol=1e-6, atol=1e-6).u[-1] ** 2)

    value = jax.jit(end)
    close(value(prob), end(prob), 1e-12)
    gradient = jax.jit(jax.grad(end))(prob)
    assert jtu.tree_structure(gradient) == jtu.tree_structure(prob)
    # Along the gradient itself, against a difference.
    slope = sum(float(jnp.sum(g**2)) for g in jtu.tree_leaves(gradient))
    h = 1e-5 / np.sqrt(slope)
    there, back = (
        value(jtu.tree_map(lambda x, g, s=s: x + s * h * g, prob, gradient)) for s in (1, -1)
    )
    np.testing.assert_allclose((there - back) / (2 * h), slope, rtol=1e-5)
    several = jtu.tree_map(lambda x: jnp.stack([x, 1.1 * x]), prob)
    lanes = jax.jit(jax.vmap(end))(several)
    close(lanes[1], value(jtu.tree_map(lambda x: 1.1 * x, prob)), 1e-10)
    # The parameters come back as they were given.
    assert prob.p(U0).shape == (2,)


def test_a_field_that_is_a_module() -> None:
    """An equinox module as `f` is differentiated like parameters."""

    class Field(eqx.Module):
        net: eqx.nn.MLP
        name: str = eqx.field(static=True)

        def __call__(self, u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
            return p * self.net(u)

    prob = dj.ODEProblem(Field(network(), "f"), U0, (0.0, 1.0), jnp.asarray(2.0))
    twin = dj.ODEProblem(
        lambda u, q, t: q[1] * q[0](u), U0, (0.0, 1.0), (network(), jnp.asarray(2.0))
    )

    def end(prob: dj.ODEProblem) -> jax.Array:
        return jnp.sum(dj.solve(prob, dj.RK4(), steps=20).u[-1] ** 2)

    got = jtu.tree_leaves(jax.jit(jax.grad(end))(prob))
    wanted = jtu.tree_leaves(jax.jit(jax.grad(end))(twin))

    def shapes(leaves: list) -> list:
        return sorted((x.shape, float(jnp.sum(x))) for x in leaves)

    for (a, x), (b, y) in zip(shapes(got), shapes(wanted), strict=True):
        assert a == b
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("name", ["tape", "checkpoints"])
def test_shared_parameters_are_not_copied_a_lane(name: str, adaptive: bool) -> None:
    """Guards against a batching rule that broadcasts: 3 times the memory at 62,000 weights.

    No array of the program has the shape of a weight with the lanes in front.
    """
    lanes, width = 5, 23
    net = network(width)
    steps = {} if adaptive else {"steps": 10}

    def total(net: eqx.nn.MLP, u0s: jax.Array) -> jax.Array:
        def one(u0: jax.Array) -> jax.Array:
            prob = dj.ODEProblem(lambda u, net, t: net(u), u0, (0.0, 1.0), net)
            options = {"max_steps": 32, "saveat": 0.25, **steps}
            return jnp.sum(dj.solve(prob, dj.Tsit5(), adjoint=ADJOINTS[name], **options).u ** 2)

        return jnp.sum(jax.vmap(one)(u0s))

    u0s = jnp.linspace(0.5, 1.0, 2 * lanes).reshape(lanes, 2)
    arrays, static = eqx.partition(net, eqx.is_array)
    text = (
        jax.jit(jax.grad(lambda arrays, u0s: total(eqx.combine(arrays, static), u0s)))
        .lower(arrays, u0s)
        .as_text()
    )
    shapes = {x.shape for x in jtu.tree_leaves(arrays)}
    assert (width, 2) in shapes
    for shape in ((width, 2), (2, width)):
        for batched in ((lanes, *shape), (*shape, lanes)):
            assert f"tensor<{'x'.join(map(str, batched))}xf64>" not in text, batched
