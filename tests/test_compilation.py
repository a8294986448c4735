"""Guards on what is traced and compiled: regressions that no result shows.

Traces of the vector field are counted, operations in compiled loops bounded, memory and work of a
checkpointed gradient measured.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.stepping.lanes import is_native
from diffjax.stepping.tidy import tidied
from diffjax.stepping.watch import Watch
from tests.problems import LOTKA_VOLTERRA, lotka_volterra

P = jnp.asarray(LOTKA_VOLTERRA.p)
U0 = jnp.asarray(LOTKA_VOLTERRA.u0)


class Counted:
    """A vector field that counts how often Python runs it."""

    def __init__(self) -> None:
        self.traces = 0

    def __call__(self, u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        self.traces += 1
        return lotka_volterra(u, p, t)


@pytest.mark.parametrize(
    ("alg", "options"),
    [
        (dj.Tsit5(), {}),
        (dj.Tsit5(), {"saveat": 0.5}),
        (dj.Vern9(), {"saveat": 0.5}),
        (dj.Vern9(unroll=False), {"saveat": 0.5}),
        (dj.Tsit5(), {"saveat": "steps"}),
        (dj.RK4(), {"steps": 10}),
    ],
)
def test_the_field_is_traced_once(alg: dj.Algorithm, options: dict[str, Any]) -> None:
    """However many stages, drivers and saves there are."""
    f = Counted()
    jax.eval_shape(lambda p: dj.solve(dj.ODEProblem(f, U0, (0.0, 1.0), p), alg, **options).u, P)
    assert f.traces == 1


def test_only_the_programs_that_run_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is traced once for a solve with saves. Under a derivative neither the solve without a
    tape is traced nor, under `vmap`, that of one trajectory: what is left is a step that writes the
    tape and one that is pulled back."""
    traced = 0
    kind = type(dj.Tsit5())
    step = kind.step

    def counted(*args: Any) -> Any:
        nonlocal traced
        traced += 1
        return step(*args)

    monkeypatch.setattr(kind, "step", counted)

    def loss(p: jax.Array) -> jax.Array:
        return jnp.sum(run(p, saveat=0.7).u)

    for function, given, wanted in (
        (loss, P, 1),
        (jax.grad(loss), P, 2),
        (jax.vmap(jax.grad(loss)), jnp.stack([P, P]), 2),
    ):
        traced = 0
        jax.jit(function).lower(given)
        assert traced == wanted


def test_tall_matrices_have_wide_cotangents() -> None:
    """A weight that lanes share, (many, few), has its cotangents summed over the lanes by products
    of the transposed shape, of which XLA's CPU backend is faster."""
    first = jnp.sin(jnp.arange(100.0)).reshape(2, 50)
    weight, start = jnp.cos(jnp.arange(100.0)).reshape(50, 2) / 8, jnp.linspace(0.1, 0.8, 16)

    def loss(w: jax.Array) -> jax.Array:
        def end(x: jax.Array) -> jax.Array:
            u0 = jnp.stack([x, -x])
            prob = dj.ODEProblem(lambda u, w, t: jnp.tanh(u @ first) @ w, u0, (0.0, 1.0), w)
            options = {"saveat": 0.5, "rtol": 1e-9, "atol": 1e-9, "max_steps": 64}
            return dj.solve(prob, dj.Tsit5(), **options).u

        return jnp.sum(jax.vmap(end)(start))

    compiled = jax.jit(jax.grad(loss)).lower(weight).compile()
    # Two products an evaluation, and three to pull it back. The first stage of a step, the last of
    # the one before, is pulled back once; of the last the value itself is not needed.
    assert max(loop_bodies(compiled.as_text(), r"dot\(")) == (6 * 2 + 1) + 6 * 3
    products = re.findall(r"= f64\[([\d,]+)\]\S* dot\(", compiled.as_text())
    assert "2,50" in products
    assert "50,2" not in products
    step = 1e-5 * jnp.ones((50, 2))
    slope = (loss(weight + step) - loss(weight - step)) / 2e-5
    np.testing.assert_allclose(jnp.sum(compiled(weight)), slope, rtol=1e-7)


@pytest.mark.slow
def test_the_field_is_traced_once_under_transformations() -> None:
    """A gradient and a vmap replay what was traced."""
    for transform in (jax.grad, jax.jacfwd, lambda f: jax.vmap(jax.grad(f)), jax.hessian):
        f = Counted()

        def loss(p: jax.Array, f: Counted = f) -> jax.Array:
            prob = dj.ODEProblem(f, U0, (0.0, 1.0), p)
            return jnp.sum(dj.solve(prob, dj.Tsit5(), saveat=0.5, max_steps=64).u)

        batched = transform not in (jax.grad, jax.jacfwd, jax.hessian)
        jax.jit(transform(loss)).lower(P[None] if batched else P)
        assert f.traces == 1


def test_a_second_solve_traces_nothing() -> None:
    """Other values of everything that is a number: the compiled program is used again.

    Of save times there are two programs: where the last is the end of the span, no step is taken
    after it.
    """
    f = Counted()
    prob = dj.ODEProblem(f, U0, (0.0, 1.0), P)

    def solve(**changes: Any) -> dj.Solution:
        options = {"rtol": 1e-5, "atol": 1e-5, "saveat": jnp.asarray([0.5, 1.0]), **changes}
        return dj.solve(prob, dj.Tsit5(), **options)

    solve()
    assert f.traces == 1
    solve(p=P * 1.1)
    solve(u0=U0 * 2.0)
    solve(rtol=1e-7, atol=1e-8)
    solve(saveat=jnp.asarray([0.1, 1.0]))
    assert f.traces == 1
    for last in (0.9, 0.8):
        solve(saveat=jnp.asarray([0.1, last]))
        assert f.traces == 2
    dj.solve(dj.ODEProblem(f, U0, (0.0, 1.0), P), dj.Tsit5(), saveat=0.5)
    traces = f.traces
    dj.solve(dj.ODEProblem(f, U0 + 1, (0.0, 1.0), P), dj.Tsit5(), saveat=0.5)
    assert f.traces == traces


def test_a_second_gradient_traces_nothing() -> None:
    """An un-jitted `grad` of a solve compiles once, too."""
    f = Counted()

    def loss(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(f, U0, (0.0, 1.0), p)
        return jnp.sum(dj.solve(prob, dj.Tsit5(), saveat=0.5, max_steps=64).u)

    jax.grad(loss)(P)
    traces = f.traces
    jax.grad(loss)(P * 1.1)
    assert f.traces == traces


def test_dense_output_is_compiled_once() -> None:
    f = Counted()
    sol = dj.solve(dj.ODEProblem(f, U0, (0.0, 1.0), P), dj.Tsit5(), dense=True)
    sol(0.5)
    traces = f.traces
    sol(0.7)
    assert f.traces == traces


# Operations ---------------------------------------------------------------------------


_NO_ARITHMETIC = r"(?!(?:parameter|constant|get-tuple-element|tuple|bitcast)\()"


def loop_bodies(compiled: str, operation: str = _NO_ARITHMETIC) -> list[int]:
    """How many instructions each `while` body in a compiled program has, fusions included, whose
    operation begins like that."""
    sizes = {}
    for block in re.split(r"\n\n", compiled):
        head = re.match(r"\s*%?([\w.\-]+) \(", block)
        if head:
            sizes[head.group(1)] = [line for line in block.split("\n")[1:] if " = " in line]

    def size(name: str) -> int:
        total = 0
        for line in sizes.get(name, []):
            called = re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", line)
            total += (
                sum(map(size, called)) if called else bool(re.search(rf"= \S+ {operation}", line))
            )
        return total

    names = re.findall(r"body=%?([\w.\-]+)", compiled)
    return [size(name) for name in names]


def compiled_text(solve: Callable[[jax.Array], Any]) -> str:
    return jax.jit(solve).lower(P).compile().as_text()


# Arithmetic of one step in XLA instructions as compiled for this version of JAX, a quarter added. A
# bound that fails means that something new runs in every step.
@pytest.mark.parametrize(
    ("alg", "options", "most"),
    [
        (dj.Tsit5(), {}, 315),
        (dj.Tsit5(), {"steps": 50}, 300),
        (dj.RK4(), {"steps": 50}, 165),
        (dj.BS3(), {}, 185),
    ],
    ids=["Tsit5", "Tsit5-fixed", "RK4", "BS3"],
)
def test_operations_in_the_loop(alg: dj.Algorithm, options: dict[str, Any], most: int) -> None:
    def end(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lotka_volterra, U0, (0.0, 10.0), p)
        return dj.solve(prob, alg, **options).u_end

    bodies = loop_bodies(compiled_text(end))
    # One trajectory to its end is one loop.
    assert len(bodies) == 1
    assert bodies[0] <= most


def stencil(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    return p * (jnp.roll(u, 1) - 2 * u + jnp.roll(u, -1)) - u**3


def end_of_stencil(alg: dj.Algorithm) -> Callable[[jax.Array], jax.Array]:
    u0 = jnp.linspace(0.5, 1.0, 10)
    return lambda p: dj.solve(dj.ODEProblem(stencil, u0, (0.0, 1.0), p[0]), alg).u_end


@pytest.mark.parametrize(
    ("alg", "forwards", "backwards"),
    [(dj.Tsit5(), 325, 710), (dj.DP8(), 670, 1560), (dj.Rodas5P(), 580, 1530)],
    ids=lambda x: getattr(x, "name", None),
)
def test_stages_are_computed_once(alg: dj.Algorithm, forwards: int, backwards: int) -> None:
    """XLA would fuse what leads to a stage into all that uses it, once for each point of a stencil:
    740 operations and on the way back 3,500 by Tsit5, 3,200 and 20,000 by DP8."""
    end = end_of_stencil(alg)
    assert max(loop_bodies(compiled_text(end))) <= forwards
    back = jax.grad(lambda p: jnp.sum(end(p)))
    assert max(loop_bodies(compiled_text(back))) <= backwards


def test_steps_of_single_elements_are_one_loop() -> None:
    """Nothing stands between the stages where each element goes its own way."""

    def traced(f: Callable[..., jax.Array]) -> str:
        given = jnp.ones(3), (0.0, 1.0), P[0]
        sde = dj.SDEProblem(f, lambda u, p, t: 0.1 * u, *given, noise="diagonal")
        key = jax.random.key(0)
        return str(
            jax.make_jaxpr(
                lambda p: (
                    dj.solve(dj.ODEProblem(f, *given), dj.Tsit5(), p=p).u_end,
                    dj.solve(sde, dj.SRIW1(), p=p, key=key, steps=4).u_end,
                )
            )(P[0])
        )

    single = traced(lambda u, p, t: jnp.where(u > 0.5, p * u, -jnp.exp(u)))
    assert single.count("diffjax_once") == 0
    # The state and the slope of each stage but the first, and the end; two of the drift.
    assert traced(stencil).count("diffjax_once") >= 2 * 6 + 1 + 2 * 2


def test_what_is_computed_twice_is_computed_once() -> None:
    def twice(u: jax.Array) -> jax.Array:
        # Not the same: zeros of other signs, other types, what has an effect.
        zeros = 1.0 / (u[0] * 0.0), 1.0 / (u[0] * -0.0)
        jax.debug.print("{}", u[1])
        jax.debug.print("{}", u[1])
        return jnp.stack([jnp.sin(u[0]) + u[1] * 2.0, jnp.sin(u[0]) + u[1] * 2, *zeros])

    closed = jax.make_jaxpr(twice)(U0)
    jaxpr = tidied(closed.jaxpr)
    count = Counter(eqn.primitive.name for eqn in jaxpr.eqns)
    assert [count[name] for name in ("slice", "sin", "mul", "add")] == [2, 1, 3, 1]
    assert count["debug_print"] == sum(e.primitive.name == "debug_print" for e in closed.eqns) == 2
    values = jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, closed.consts))(U0)
    np.testing.assert_array_equal(values[0], twice(U0))


def test_fixed_steps_trace_no_controller() -> None:
    """A bare scan: no logarithm, no power, no norm, and a single loop."""
    prob = dj.ODEProblem(lotka_volterra, U0, (0.0, 10.0), P)
    text = str(jax.make_jaxpr(lambda p: dj.solve(prob, dj.Tsit5(), p=p, steps=50).u)(P))
    for operation in (" log ", " exp ", " sqrt ", " pow "):
        assert operation not in text
    adaptive = str(jax.make_jaxpr(lambda p: dj.solve(prob, dj.Tsit5(), p=p).u)(P))
    assert " log " in adaptive


def test_tangents_of_one_trajectory_are_one_native_function() -> None:
    """The steps and a tangent, or several as the columns of a Jacobian: no `vmap` of trajectories,
    whose loop dispatches every operation."""

    def loss(p: jax.Array, adjoint: dj.Adjoint | None = None) -> jax.Array:
        return jnp.sum(run(p, saveat=0.7, adjoint=adjoint).u)

    for function in (
        lambda p: jax.jvp(loss, (p,), (p,)),
        jax.jacfwd(loss),
        jax.grad(lambda p: loss(p, dj.ForwardMode())),
        jax.jacfwd(lambda p: loss(p, dj.ForwardMode())),
    ):
        assert jax.jit(function).lower(P).as_text().count("xla_cpu_small_call") == 2


@pytest.mark.parametrize("alg", [dj.BS3(), dj.Vern7()], ids=lambda alg: alg.name)
def test_a_small_solve_is_one_native_function(alg: dj.Algorithm) -> None:
    """Nothing around the loop is compiled apart, nor does a method whose extension takes further
    stages fall back to a loop that dispatches every operation."""
    prob = dj.ODEProblem(lotka_volterra, U0, (0.0, 2.0), P)
    times = np.array([0.5, 2.0])
    solved = jax.jit(lambda u0, p: dj.solve(prob, alg, u0=u0, p=p, saveat=times).u)
    text = solved.lower(U0, P).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    assert "xla_cpu_small_call" in entry
    assert " fusion(" not in entry
    assert " while(" not in entry


def test_a_first_call_traces_few_functions_of_jax() -> None:
    """Each function of `jax.numpy` that is traced costs a third of a millisecond, and stays a
    function of its own in the program until it is compiled."""
    text = jax.jit(lambda p: run(p, saveat=0.1).u).lower(P).as_text()
    assert text.count("func.func") <= 8


def test_stages_of_a_differentiated_step_are_a_loop() -> None:
    """Written out for six implicit stages there are forty loops, which took seconds to compile."""

    def loss(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: p * u * (1 - u), jnp.full(10, 0.1), (0.0, 1.0), p)
        return jnp.sum(dj.solve(prob, dj.Kvaerno5()).u)

    text = jax.jit(jax.grad(loss)).lower(jnp.ones(10)).as_text()
    assert text.count("stablehlo.while") <= 20


@pytest.mark.parametrize("adjoint", [dj.DiscreteAdjoint(), dj.BacksolveAdjoint()])
def test_a_gradient_with_thousands_of_saved_numbers(adjoint: Any) -> None:
    """Guards against a reduction so large that XLA hands it to a library, in a function that is
    compiled as one: it would not compile."""
    times = np.linspace(0.0, 1.0, 2001)

    def saved(u0: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: -u, u0, (0.0, 1.0))
        options = {"rtol": 1e-8, "atol": 1e-8, "max_steps": 128}
        return dj.solve(prob, dj.Tsit5(), saveat=times, adjoint=adjoint, **options).u

    def pulled_back(u0: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.vjp(saved, u0)[1](weights)[0]

    u0, weights = jnp.ones(3), jnp.ones((times.size, 3))
    assert is_native(jax.make_jaxpr(pulled_back)(u0, weights).jaxpr)
    np.testing.assert_allclose(jax.jit(pulled_back)(u0, weights), np.exp(-times).sum(), rtol=1e-6)


def test_extra_stages_only_where_output_needs_them() -> None:
    """Vern9's ten further stages are not in a program that saves the end alone."""

    def evaluations(**options: Any) -> int:
        prob = dj.ODEProblem(lambda u, p, t: jnp.tan(u) * p, jnp.ones(()), (0.0, 0.1), jnp.ones(()))
        solve = jax.jit(lambda p: dj.solve(prob, dj.Vern9(), p=p, **options).u)
        return len(re.findall(r"\btan\(", solve.lower(prob.p).compile().as_text()))

    end, saves = evaluations(), evaluations(saveat=0.05)
    assert 16 <= end <= saves - 10


def test_no_host_callback() -> None:
    """Callbacks cost milliseconds and break sharding: none unless `progress` or `throw` ask."""
    for saveat in (None, 0.5, "steps"):
        text = str(jax.make_jaxpr(lambda p, s=saveat: run(p, saveat=s).u)(P))
        assert "callback" not in text


def run(p: jax.Array, alg: dj.Algorithm | None = None, **options: Any) -> dj.Solution:
    prob = dj.ODEProblem(lotka_volterra, U0, (0.0, 5.0), p)
    return dj.solve(prob, alg or dj.Tsit5(), **options)


def test_events_cost_nothing_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without callbacks, or with a list of none, holds nothing that watches for events,
    so its loop is the one that is bounded above."""
    lowered = jax.jit(lambda p: run(p, callback=[]).u).lower(P).as_text()

    def refuse(*args: Any) -> None:
        raise AssertionError("something watches for events")

    monkeypatch.setattr(Watch, "__init__", refuse)
    assert jax.jit(lambda p: run(p).u).lower(P).as_text() == lowered
    with pytest.raises(AssertionError, match="watches"):
        run(P, callback=dj.DiscreteCallback(lambda u, p, t: u[0] < 0, lambda u, p, t: u))


def test_steps_between_events_are_nearly_bare() -> None:
    """Steps in which nothing happens have a loop of their own, with the condition at their ends and
    little more; what an event takes is not in it."""

    def end(p: jax.Array, **options: Any) -> jax.Array:
        return run(p, **options).u_end

    (bare,) = loop_bodies(compiled_text(end))
    never = dj.ContinuousCallback(lambda u, p, t: u[0] + 1e3, lambda u, p, t: 2 * u, samples=0)
    watched = loop_bodies(compiled_text(lambda p: end(p, callback=never)))
    assert any(bare <= body <= 1.6 * bare for body in watched)


# Memory and work of a gradient --------------------------------------------------------


def gradient_memory(max_steps: int, checkpoints: int | None) -> int:
    """Bytes of temporaries of a gradient over a state of a hundred numbers."""

    def loss(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: -p * u, jnp.ones(100), (0.0, 1.0), p)
        adjoint = dj.DiscreteAdjoint(checkpoints=checkpoints)
        sol = dj.solve(prob, dj.Tsit5(), max_steps=max_steps, adjoint=adjoint, dtmax=0.5)
        return jnp.sum(sol.u_end)

    compiled = jax.jit(jax.grad(loss)).lower(jnp.ones(())).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def test_memory_grows_as_the_square_root() -> None:
    """With sqrt(max_steps) checkpoints: 16 times the steps, at most about 4 times the memory."""
    small, middle, large = (gradient_memory(n * n, n) for n in (32, 64, 128))
    assert middle <= 2.2 * small
    assert large <= 2.2 * middle
    tape = gradient_memory(128 * 128, None)
    # A tape of every step holds (t, dt, u) a step: for 16,384 steps of 100 numbers, 13 MB.
    assert tape >= 128 * 128 * 100 * 8
    assert large < tape / 20


def test_memory_of_a_network_gradient() -> None:
    """50,000 parameters: the tape, one step's activations and few copies of the parameters."""
    net = eqx.nn.MLP(2, 2, 220, 2, activation=jnp.tanh, key=jax.random.key(0))
    arrays, static = eqx.partition(net, eqx.is_array)
    size = sum(x.nbytes for x in jax.tree.leaves(arrays))
    u0 = jnp.asarray([1.0, 0.0])

    def temporary(steps: int) -> int:
        def loss(arrays: Any) -> jax.Array:
            prob = dj.ODEProblem(
                lambda u, net, t: net(u), u0, (0.0, 1.0), eqx.combine(arrays, static)
            )
            return jnp.sum(dj.solve(prob, dj.Tsit5(), saveat=0.1, max_steps=steps).u ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary(100), temporary(1000)
    row, activations = 4 * 8, 7 * 4 * 220 * 8
    assert short < 100 * row + activations + 4 * size
    # Flat but for the rows of the tape.
    assert long - short < 1.1 * 900 * row


def test_memory_of_a_solve_does_not_grow() -> None:
    """`max_steps` costs nothing where nothing is differentiated."""

    def memory(max_steps: int) -> int:
        compiled = jax.jit(lambda p: run(p, max_steps=max_steps, saveat=0.5).u).lower(P).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert memory(1 << 20) == memory(1 << 8)


@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "fixed"])
def test_evaluations_of_a_checkpointed_gradient(adaptive: bool) -> None:
    """Forward evaluations at most 2.2 times one solve's: each segment is taken once more.

    Counted by a callback in the field, which runs for the forward pass and for each segment taken
    again; the replay's vjp runs it through its derivative rule, which is not counted.
    """
    count = 0

    def bump() -> None:
        nonlocal count
        count += 1

    @jax.custom_vjp
    def tick(u: jax.Array) -> jax.Array:
        jax.debug.callback(bump)
        return u

    tick.defvjp(lambda u: (u, None), lambda _, g: (g,))

    def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        return lotka_volterra(tick(u), p, t)

    def solve(p: jax.Array, adjoint: Any = None) -> dj.Solution:
        prob = dj.ODEProblem(f, U0, (0.0, 10.0), p)
        options: dict[str, Any] = {"steps": 100} if not adaptive else {"max_steps": 256}
        return dj.solve(prob, dj.Tsit5(), adjoint=adjoint, rtol=1e-6, atol=1e-6, **options)

    plain = solve(P)
    jax.effects_barrier()
    assert count == int(plain.stats.nf)
    one, count = count, 0
    adjoint = dj.DiscreteAdjoint(checkpoints=16)
    gradient = jax.grad(lambda p: jnp.sum(solve(p, adjoint).u_end))(P)
    jax.block_until_ready(gradient)
    jax.effects_barrier()
    assert np.all(np.isfinite(np.asarray(gradient)))
    assert count <= 2.2 * one
