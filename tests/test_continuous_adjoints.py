"""Adjoints that solve the adjoint equation: right to the tolerances, in the memory they promise.

The references are forward sensitivities, differences, closed forms and published figures.
"""

import re
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
from tests.derivatives import ARGS, OPTIONS, close, differences, grown, growth
from tests.problems import GRAD_LV_BLOG, GRADIENTS, GradientCase, lotka_volterra
from tests.test_gradients import TIGHT, published_loss

ADJOINTS = {
    "backsolve": dj.BacksolveAdjoint(),
    "interpolating": dj.InterpolatingAdjoint(),
    "gauss": dj.GaussAdjoint(),
}
CHECKPOINTED = {
    "interpolating": dj.InterpolatingAdjoint(checkpoints=9),
    "gauss": dj.GaussAdjoint(checkpoints=9),
}
EVERY_ADJOINT = pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS.keys())
EVERY_RECORD = pytest.mark.parametrize("adjoint", CHECKPOINTED.values(), ids=CHECKPOINTED.keys())

# BS5 has stages of its own for its extension.
METHODS: dict[str, tuple[dj.Algorithm, dict[str, Any]]] = {
    "Tsit5": (dj.Tsit5(), OPTIONS),
    "Vern7": (dj.Vern7(), OPTIONS),
    "BS5": (dj.BS5(), OPTIONS),
    "fixed": (dj.Tsit5(), {"steps": 400}),
}

# The matrix ---------------------------------------------------------------------------

# Both ends, twice the same, and three within a step.
_PARTS = jnp.asarray([0.0, 0.0, 0.3, 0.30001, 0.3002, 0.61, 0.61, 1.0])
_WEIGHTS = jnp.cos(jnp.arange(16.0)).reshape(8, 2)
# Of a dtype, as the arguments of differences are: plain numbers would compile once more.
_ARGS = tuple(jnp.asarray(x, float) for x in ([1.0, 1.2], [1.5, 1.0, 3.0, 1.0], 0.3, 2.6))


def forced(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    return lotka_volterra(u, p, t) + jnp.sin(3.0 * t) / 2.0


def cost(adjoint: Any, method: str, u0: Any, p: Any, t0: Any, t1: Any) -> jax.Array:
    """Of what is saved, and of where the solve ends and when."""
    alg, options = METHODS[method]
    sol = dj.solve(
        dj.ODEProblem(forced, u0, (t0, t1), p),
        alg,
        saveat=lambda t0, t1: t0 + (t1 - t0) * _PARTS,
        adjoint=adjoint,
        **options,
    )
    return jnp.sum(_WEIGHTS * sol.u**2) + jnp.sum(sol.u_end**2) * sol.t_end


@cache
def reference() -> Any:
    """The derivative of the solution, by forward sensitivities, which agree with differences."""
    value = partial(cost, dj.ForwardMode(), "Tsit5")
    wanted = jax.jit(jax.jacfwd(value, argnums=(0, 1, 2, 3)))(*_ARGS)
    # Differences take 48 solves: a second program of the value alone costs less than tangents
    # that nobody reads.
    value = jax.jit(value)
    for i, slope in enumerate(wanted):
        of_one = lambda x, i=i: value(*_ARGS[:i], x, *_ARGS[i + 1 :])  # noqa: E731
        close(slope, differences(of_one, _ARGS[i]), 1e-6, 1e-6)
    return wanted


@EVERY_ADJOINT
@pytest.mark.parametrize("method", ["Tsit5", "Vern7", "fixed"])
def test_derivative_by_state_parameters_and_span(method: str, adjoint: dj.Adjoint) -> None:
    """To 1e-6 of forward sensitivities and of differences, for every kind of steps."""
    gradient = jax.grad(partial(cost, adjoint, method), argnums=(0, 1, 2, 3))
    close(jax.jit(gradient)(*_ARGS), reference())


@EVERY_RECORD
@pytest.mark.parametrize("method", ["BS5", "fixed"])
def test_checkpoints_change_nothing(method: str, adjoint: Any) -> None:
    """Segments taken again give the record that was not kept."""
    gradient = jax.jit(jax.grad(partial(cost, adjoint, method), argnums=(0, 1, 2, 3)))
    close(gradient(*_ARGS), reference())


# The discrete adjoint is held to every one of these cases; here each stands for all of them.
@pytest.mark.parametrize(
    ("adjoint", "case"), list(zip(ADJOINTS.values(), GRADIENTS, strict=True)), ids=ADJOINTS.keys()
)
def test_published_gradients(case: GradientCase, adjoint: dj.Adjoint) -> None:
    arguments = jnp.asarray(case.case.p), jnp.asarray(case.case.u0)
    loss = jax.jit(jax.value_and_grad(published_loss(case, adjoint, **TIGHT), argnums=(0, 1)))
    value, grads = loss(*arguments)
    close(value, case.value)
    got = dict(zip(("p", "u0"), grads, strict=True))
    for name, wanted in case.grads.items():
        close(got[name], wanted, atol=1e-9)


# Against a closed form ----------------------------------------------------------------


def compare(ours: Callable, exact: Callable, args: tuple, rtol: float = 1e-7) -> None:
    """The derivative of a sum in which every output has a weight of its own."""

    def total(f: Callable) -> Callable:
        def of(*args: Any) -> Any:
            x = jnp.ravel(f(*args))
            return jnp.sum(jnp.cos(jnp.arange(float(x.size))) * x)

        return jax.jit(jax.grad(of, argnums=tuple(range(len(args)))))

    close(total(ours)(*args), total(exact)(*args), rtol, rtol)


@EVERY_ADJOINT
def test_save_times_and_parameters_of_what_is_saved(adjoint: dj.Adjoint) -> None:
    """Every save moves with its time, `save_fn` has parameters and a time of its own; backwards
    and with stops."""
    times = jnp.asarray([2.8, 2.0, 0.6, 0.6, 0.500001, 0.5, 0.3])

    def f(u: Any, p: Any, t: Any) -> Any:
        return growth(u, p[0], t)

    def ours(u0: Any, p: Any, times: Any, t0: Any, t1: Any) -> Any:
        def saved(u: Any, p: Any, t: Any) -> Any:
            return {"scaled": p[1] * u * t}

        sol = dj.solve(
            dj.ODEProblem(f, u0, (t1, t0), p),
            dj.Tsit5(),
            saveat=times,
            save_fn=saved,
            tstops=jnp.asarray([1.7, 0.9]),
            adjoint=adjoint,
            **TIGHT,
        )
        return jnp.append(sol.u["scaled"], sol.u_end)

    def exact(u0: Any, p: Any, times: Any, t0: Any, t1: Any) -> Any:
        u = grown(u0, p[0], t1, jnp.append(times, t0))
        return jnp.append(p[1] * u[:-1] * times, u[-1])

    compare(ours, exact, (ARGS[0], jnp.asarray([0.7, 1.9]), times, *ARGS[2:]))


@EVERY_ADJOINT
def test_fixed_steps_with_stops(adjoint: dj.Adjoint) -> None:
    """The last step before a stop is short; so is the first on the way back."""

    def ours(u0: Any, p: Any) -> Any:
        prob = dj.ODEProblem(growth, u0, (0.2, 2.9), p)
        options: Any = {"dt": 0.013, "tstops": (0.9, 1.7), "saveat": jnp.asarray([0.2, 1.0, 2.9])}
        return dj.solve(prob, dj.RK4(), adjoint=adjoint, **options).u

    compare(ours, lambda u0, p: grown(u0, p, 0.2, jnp.asarray([0.2, 1.0, 2.9])), ARGS[:2], 1e-6)


@EVERY_ADJOINT
def test_euler_converges_to_the_derivative(adjoint: dj.Adjoint) -> None:
    """A method without an error estimate, whose adjoint is of its order: half the error with
    half the step."""

    def error(steps: int) -> float:
        def end(p: Any) -> Any:
            prob = dj.ODEProblem(growth, ARGS[0], (0.2, 2.9), p)
            return dj.solve(prob, dj.Euler(), steps=steps, adjoint=adjoint).u[-1]

        wanted = jax.grad(grown, argnums=1)(ARGS[0], ARGS[1], 0.2, 2.9)
        return abs(float(jax.jit(jax.grad(end))(ARGS[1]) - wanted))

    coarse, fine = error(200), error(400)
    assert fine < 0.02
    assert 1.8 < coarse / fine < 2.2


# What a state and parameters may be ---------------------------------------------------


_PARTS_OF_ARGS = jnp.asarray([1.0, 0.5, 1.2, -0.3, 0.1])
_WEIGHTS_OF_PARTS = jnp.asarray([[1.0, -0.4], [0.7, 2.0]])


@cache
def gradient_in_real_form() -> jax.Array:
    """Of real and imaginary parts as a state of two numbers."""

    def by_real(x: jax.Array) -> jax.Array:
        def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
            a, b = u
            size = (a**2 + b**2) / 5.0
            return jnp.stack([-p[1] * a - p[0] * b - size * a, p[0] * a - p[1] * b + size * b])

        prob = dj.ODEProblem(f, x[:2], (x[4], 1.0), x[2:4])
        u = dj.solve(prob, dj.Tsit5(), saveat=jnp.asarray([0.4, 1.0]), **TIGHT).u.T
        return jnp.sum(_WEIGHTS_OF_PARTS * u)

    return jax.jit(jax.grad(by_real))(_PARTS_OF_ARGS)


@EVERY_ADJOINT
def test_complex_state_of_a_field_that_is_not_holomorphic(adjoint: dj.Adjoint) -> None:
    """The same system in complex and in real form: u' = i p u - |u|^2 conj(u) / 5."""

    def by_complex(x: jax.Array) -> jax.Array:
        def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
            size = (u * jnp.conj(u)).real.astype(u.dtype)
            return 1j * p * u - size * jnp.conj(u) / 5.0

        prob = dj.ODEProblem(
            f, jax.lax.complex(x[0], x[1]), (x[4], 1.0), jax.lax.complex(x[2], x[3])
        )
        u = dj.solve(prob, dj.Tsit5(), saveat=jnp.asarray([0.4, 1.0]), adjoint=adjoint, **TIGHT).u
        return jnp.sum(_WEIGHTS_OF_PARTS * jnp.stack([u.real, u.imag]))

    close(jax.jit(jax.grad(by_complex))(_PARTS_OF_ARGS), gradient_in_real_form(), 1e-7, 1e-8)


@cache
def gradient_of_a_pytree(adjoint: dj.Adjoint) -> Any:
    """Of a loss in single and double precision, integers and a name among the parameters."""

    def loss(rate: Any, u0: Any) -> Any:
        p = {"rate": rate, "power": jnp.asarray(2), "name": "spiral"}

        def f(u: Any, p: Any, t: Any) -> Any:
            x, y = u["x"], u["y"]
            turn = p["rate"][0] ** p["power"].astype(float)
            return {
                "x": -turn * y.astype(float) * jnp.ones(2),
                "y": p["rate"][1] * jnp.sum(x).astype(jnp.float32),
            }

        prob = dj.ODEProblem(f, u0, (0.0, 1.5), p)
        sol = dj.solve(
            prob, dj.Tsit5(), saveat=0.5, rtol=1e-5, atol=1e-5, max_steps=256, adjoint=adjoint
        )
        return jnp.sum(sol.u["x"] ** 2) + jnp.sum(sol.u["y"]).astype(float)

    args = (
        (jnp.asarray(1.1), jnp.asarray(0.8, jnp.float32)),
        {"x": jnp.asarray([1.0, 0.5]), "y": jnp.asarray(0.3, jnp.float32)},
    )
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(*args)
    assert jtu.tree_map(lambda x: x.dtype, gradient) == jtu.tree_map(lambda x: x.dtype, args)
    return gradient


@EVERY_ADJOINT
def test_pytrees_of_several_dtypes(adjoint: dj.Adjoint) -> None:
    wanted = gradient_of_a_pytree(dj.ForwardMode())
    close(gradient_of_a_pytree(adjoint), wanted, 1e-4, 1e-4)


@cache
def gradient_of_a_network(adjoint: dj.Adjoint) -> Any:
    net = eqx.nn.MLP(2, 2, 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    arrays, static = eqx.partition(net, eqx.is_inexact_array)

    def loss(arrays: Any) -> Any:
        prob = dj.ODEProblem(
            lambda u, p, t: p(u), jnp.asarray([1.0, -0.5]), (0.0, 2.0), eqx.combine(arrays, static)
        )
        sol = dj.solve(prob, dj.Tsit5(), saveat=0.25, rtol=1e-9, atol=1e-9, adjoint=adjoint)
        return jnp.mean(sol.u**2)

    return jax.jit(jax.grad(loss))(arrays)


@EVERY_ADJOINT
def test_network(adjoint: dj.Adjoint) -> None:
    """The derivative by a network's weights is that of the default adjoint."""
    wanted = gradient_of_a_network(dj.DiscreteAdjoint())
    close(gradient_of_a_network(adjoint), wanted, 1e-6, 1e-8)


@EVERY_ADJOINT
def test_float32(adjoint: dj.Adjoint) -> None:
    case = GRAD_LV_BLOG
    p, u0 = (jnp.asarray(x, jnp.float32) for x in (case.case.p, case.case.u0))
    loss = published_loss(case, adjoint, rtol=2e-6, atol=2e-6)
    got = jax.jit(jax.grad(loss, argnums=(0, 1)))(p, u0)
    assert {x.dtype for x in got} == {jnp.dtype(jnp.float32)}
    # The smallest entry is a difference of parts a thousand times as large.
    close(got, (case.grads["p"], case.grads["u0"]), 1e-3, 0.5)


# Transformations ----------------------------------------------------------------------


def lv_loss(adjoint: Any, p: Any, rtol: float = 1e-5) -> Any:
    """By a small method, which makes small programs."""
    prob = dj.ODEProblem(lotka_volterra, jnp.ones(2), (0.0, 3.0), p)
    options: Any = {"rtol": rtol, "atol": rtol, "saveat": 0.25, "max_steps": 4096}
    return jnp.sum(dj.solve(prob, dj.BS3(), adjoint=adjoint, **options).u ** 2)


_P = jnp.asarray([1.5, 1.0, 3.0, 1.0])
_PS = _P[None] * jnp.linspace(0.8, 1.2, 3)[:, None]


@cache
def gradient_alone(adjoint: dj.Adjoint) -> Callable:
    """The gradient of one trajectory's loss times a factor, as a compiled function."""
    return jax.jit(jax.grad(lambda p, factor: factor * lv_loss(adjoint, p)))


def gradients_of_a_loop(adjoint: dj.Adjoint) -> tuple[jax.Array, jax.Array]:
    """With respect to factors that all lanes share, and to the parameters of each."""
    lanes = jnp.stack([gradient_alone(adjoint)(p, 1.0) for p in _PS])
    return jnp.sum(_PS * lanes, axis=0), lanes


@pytest.mark.parametrize(
    "adjoint",
    [ADJOINTS["backsolve"], ADJOINTS["gauss"], CHECKPOINTED["interpolating"]],
    ids=["backsolve", "gauss", "interpolating-checkpoints"],
)
def test_lanes_have_the_gradients_of_a_loop(adjoint: dj.Adjoint) -> None:
    """Lanes land and end by themselves: none changes another's steps."""

    def total(shared: Any, ps: Any) -> Any:
        return jnp.sum(jax.vmap(lambda p: lv_loss(adjoint, shared * p))(ps))

    got = jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.ones(4), _PS)
    close(got, gradients_of_a_loop(adjoint), 1e-9)


def operands_of_products(text: str) -> set[tuple[int, ...]]:
    """Shapes of all that is multiplied as a matrix in a lowered program."""
    found = set()
    for operands in re.findall(r"stablehlo.dot_general.*: \((.*)\) ->", text):
        for dimensions in re.findall(r"tensor<([0-9x]*)xf64>", operands):
            found.add(tuple(int(n) for n in dimensions.split("x")))
    return found


@pytest.mark.parametrize("name", ["backsolve", "interpolating", "gauss"])
def test_shared_weights_are_not_copied_a_lane(name: str) -> None:
    """Cotangents are integrated in every lane, but what lanes multiply with is one matrix."""
    lanes, width = 5, 23
    net = eqx.nn.MLP(2, 2, width, 1, jnp.tanh, key=jax.random.key(0))
    arrays, static = eqx.partition(net, eqx.is_array)

    def total(arrays: Any, u0s: jax.Array) -> jax.Array:
        def one(u0: jax.Array) -> jax.Array:
            prob = dj.ODEProblem(lambda u, p, t: eqx.combine(p, static)(u), u0, (0.0, 1.0), arrays)
            options = {"max_steps": 32, "saveat": 0.5, "adjoint": ADJOINTS[name]}
            return jnp.sum(dj.solve(prob, dj.Tsit5(), **options).u ** 2)

        return jnp.sum(jax.vmap(one)(u0s))

    u0s = jnp.linspace(0.5, 1.0, 2 * lanes).reshape(lanes, 2)
    shapes = operands_of_products(jax.jit(jax.grad(total)).lower(arrays, u0s).as_text())
    assert (width, 2) in shapes
    for shape in ((width, 2), (2, width)):
        assert not {(lanes, *shape), (*shape, lanes)} & shapes


@cache
def hessian(adjoint: dj.Adjoint) -> jax.Array:
    f = partial(lv_loss, adjoint, rtol=1e-8)
    return jax.jit(jax.jacfwd(jax.grad(f)))(_P)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint",
    [ADJOINTS["backsolve"], CHECKPOINTED["gauss"]],
    ids=["backsolve", "gauss"],
)
def test_hessian_forward_over_reverse(adjoint: dj.Adjoint) -> None:
    """Lanes of `jacfwd` read the record of one trajectory."""
    close(hessian(adjoint), hessian(dj.DiscreteAdjoint()), 1e-5, 1e-5)


@pytest.mark.slow
@EVERY_ADJOINT
def test_shard_map(adjoint: dj.Adjoint) -> None:
    """Lanes over devices, with JAX's own checks on; parameters shared by all of them."""
    mesh = Mesh(np.asarray(jax.devices()[:3]), ("lanes",))
    spec = PartitionSpec("lanes")

    def local(shared: Any, ps: Any) -> Any:
        return jax.vmap(lambda p: lv_loss(adjoint, shared * p))(ps)

    def total(shared: Any, ps: Any) -> Any:
        f = jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec)
        return jnp.sum(f(shared, ps))

    got = jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.ones(4), _PS)
    close(got, gradients_of_a_loop(adjoint), 1e-9)


@EVERY_ADJOINT
def test_scale_of_the_loss(adjoint: dj.Adjoint) -> None:
    """A tolerance means the same for a loss and for a millionth of it."""
    gradient = gradient_alone(adjoint)
    close(gradient(_P, 2.0**-20) * 2.0**20, gradient(_P, 1.0), 1e-12)


# Options of Backsolve -----------------------------------------------------------------


def test_backsolve_with_steps_of_its_own() -> None:
    """A loose solve whose way back is accurate: only the error of the solve is left."""
    alone = dj.BacksolveAdjoint(alg=dj.Vern7(), rtol=1e-12, atol=1e-12)

    def end(adjoint: Any, p: Any) -> Any:
        # Linear in the state and of constant rate, so that the adjoint needs nothing of the solve.
        prob = dj.ODEProblem(lambda u, p, t: p * u + 1.0, jnp.ones(()), (0.0, 1.0), 0.7)
        return dj.solve(dj.remake(prob, u0=p), dj.BS3(), adjoint=adjoint, max_steps=64).u[-1]

    exact = np.exp(0.7)
    loose = abs(jax.jit(jax.grad(partial(end, dj.BacksolveAdjoint())))(jnp.ones(())) - exact)
    tight = abs(jax.jit(jax.grad(partial(end, alone)))(jnp.ones(())) - exact)
    assert tight < 1e-11 < 1e-7 < loose < 1e-2


def test_arguments_are_judged() -> None:
    with pytest.raises(ValueError, match="checkpoints must be None or a positive integer"):
        dj.InterpolatingAdjoint(checkpoints=0)
    with pytest.raises(ValueError, match="rtol must be None or a positive number"):
        dj.BacksolveAdjoint(rtol=-1.0)
    with pytest.raises(TypeError, match=r"alg must be like dj\.Tsit5\(\)"):
        dj.BacksolveAdjoint(alg=dj.Tsit5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="RK4, which has no error estimate"):
        lv_loss(dj.BacksolveAdjoint(alg=dj.RK4()), _P)


# Failure ------------------------------------------------------------------------------


@EVERY_ADJOINT
def test_a_failed_solve_has_no_gradient(adjoint: dj.Adjoint) -> None:
    """NaN for the lane that ran out of steps, and for no other; zero if nothing is asked of it."""

    def f(p: Any) -> Any:
        prob = dj.ODEProblem(lambda u, p, t: p * u, jnp.ones(2), (0.0, 1.0), p)
        sol = dj.solve(prob, dj.Tsit5(), max_steps=20, adjoint=adjoint, throw=False)
        return jnp.where(p > 0, 0.0, jnp.sum(jnp.nan_to_num(sol.u_end)))

    single, rates = jax.jit(jax.grad(f)), jnp.asarray([-1e6, -1.0])
    assert jnp.isnan(single(rates[0]))
    close(single(jnp.asarray(1e6)), 0.0)
    got = jax.jit(jax.vmap(jax.grad(f)))(rates)
    assert jnp.isnan(got[0])
    close(got[1], 2 * np.exp(-1.0), 1e-3)


def test_a_way_back_that_fails_gives_nan() -> None:
    """A strongly attracting solution cannot be run backwards: said with NaN. On the record the
    same derivative is right."""

    def f(adjoint: Any, p: Any) -> Any:
        prob = dj.ODEProblem(lambda u, p, t: -2e3 * (u - p), jnp.zeros(()), (0.0, 1.0), p)
        return dj.solve(prob, dj.Tsit5(), adjoint=adjoint, max_steps=4096).u[-1]

    assert jnp.isnan(jax.jit(jax.grad(partial(f, dj.BacksolveAdjoint())))(jnp.ones(())))
    for adjoint in (dj.InterpolatingAdjoint(), dj.GaussAdjoint()):
        close(jax.jit(jax.grad(partial(f, adjoint)))(jnp.ones(())), 1.0, 1e-3)


@EVERY_ADJOINT
@pytest.mark.parametrize("options", [{"saveat": "steps"}, {"dense": True}], ids=["steps", "dense"])
def test_what_cannot_be_differentiated_is_refused(adjoint: dj.Adjoint, options: Any) -> None:
    def f(p: Any) -> Any:
        prob = dj.ODEProblem(lotka_volterra, jnp.ones(2), (0.0, 1.0), p)
        sol = dj.solve(prob, dj.Tsit5(), max_steps=32, adjoint=adjoint, **options)
        return jnp.nansum(sol(0.5) if "dense" in options else sol.u)

    with pytest.raises(ValueError, match=r"use adjoint=dj\.DiscreteAdjoint\(\)"):
        jax.grad(f)(_P)


# Memory -------------------------------------------------------------------------------


def memory(adjoint: Any, steps: int, **options: Any) -> int:
    """Bytes that a gradient of a state of 100 numbers needs beside its arguments."""

    def f(u0: Any) -> Any:
        prob = dj.ODEProblem(lambda u, p, t: -jnp.sin(u) * t, u0, (0.0, 1.0))
        fixed: Any = {"steps": steps} if options.get("fixed") else {"max_steps": steps}
        return jnp.sum(dj.solve(prob, dj.Tsit5(), adjoint=adjoint, **fixed).u)

    compiled = jax.jit(jax.grad(f)).lower(jnp.ones(100)).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize("fixed", [False, True], ids=["adaptive", "fixed"])
def test_memory_of_backsolve_does_not_grow_with_steps(fixed: bool) -> None:
    few, many = (memory(dj.BacksolveAdjoint(), n, fixed=fixed) for n in (100, 10_000))
    assert many == few
    assert few < 30_000


@pytest.mark.parametrize("kind", [dj.InterpolatingAdjoint, dj.GaussAdjoint])
def test_memory_of_checkpoints(kind: Any) -> None:
    """A state for each segment and the steps of one of them, not those of the solve."""
    row = 8 * 102
    few, many = memory(kind(checkpoints=10), 1000), memory(kind(checkpoints=100), 10_000)
    assert abs((many - few) - 90 * row) < 10 * row
    assert memory(kind(), 10_000) > 10_000 * row > 20 * many
