"""Consistent starts of differential-algebraic problems: what is held, what moves, what fails."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.derivatives import close, differences
from tests.problems import ROBER_DAE

MASS = np.array([1.0, 1.0, 0.0])


def start(prob: dj.ODEProblem, initialize: Any = None, **options: Any) -> dj.Solution:
    """The solution at the start of the span, which is all that is looked at here."""
    options = {"rtol": 1e-8, "atol": 1e-10, "saveat": jnp.zeros(1), **options}
    return dj.solve(prob, dj.Rosenbrock23(), initialize=initialize, steps=1, **options)


def rober(u0: Any, **changes: Any) -> dj.ODEProblem:
    return ROBER_DAE.ode(u0=jnp.asarray(u0), tspan=(0.0, 1e-3), mass_matrix=MASS, **changes)


# The published test: DifferentialEquations.jl's `dae_initialization_tests.jl`.
@pytest.mark.parametrize("last", [0.2, 1.0])
def test_robertson(last: float) -> None:
    given = [1.0, 0.0, last]
    np.testing.assert_allclose(start(rober(given)).u[0], [1.0, 0.0, 0.0], rtol=0, atol=1e-15)
    moved = start(rober(given), "collocation").u[0]
    np.testing.assert_allclose(np.sum(moved), 1.0, rtol=1e-14)
    np.testing.assert_allclose(moved, [1.0, 0.0, 0.0], rtol=0, atol=1e-8)


def test_a_consistent_start_stays_as_it_is() -> None:
    """To the last bit, and no step's work is done twice."""
    u0 = [0.7, 1e-5, 1.0 - 0.7 - 1e-5]
    for how in ("brown", "collocation", "check"):
        assert np.array_equal(start(rober(u0), how).u[0], u0)
    # One correction says that none is needed; that and one to judge its matrix by.
    brown, check = (start(rober(u0), how).stats for how in ("brown", "check"))
    assert int(brown.njac) == int(check.njac) + 1
    assert int(brown.nf) == int(check.nf) + 1


def test_an_inconsistent_start_under_check() -> None:
    with pytest.raises(dj.SolveError, match=r"initial_failed.*number 2 has the residual 0\.2"):
        start(rober([1.0, 0.0, 0.2]), "check")
    sol = jax.jit(lambda u0: start(rober(u0), "check"))(jnp.array([1.0, 0.0, 0.2]))
    assert sol.retcode == dj.ReturnCode.initial_failed
    assert np.all(np.isnan(sol.u))


# The pendulum in Cartesian coordinates, with its constraint differentiated twice: the tension T
# follows from position and velocity, T (x^2 + y^2) = vx^2 + vy^2 - g y.
PENDULUM_MASS = np.array([1.0, 1.0, 1.0, 1.0, 0.0])


def pendulum(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    x, y, vx, vy, tension = u
    constraint = vx**2 + vy**2 - p * y - tension * (x**2 + y**2)
    return jnp.stack([vx, vy, -tension * x, -tension * y - p, constraint])


def swinging(tension: Any = 0.0, p: Any = 9.81) -> dj.ODEProblem:
    u0 = jnp.array([0.6, -0.8, 0.4, 0.3, 0.0]).at[4].set(tension)
    return dj.ODEProblem(pendulum, u0, (0.0, 1.0), jnp.asarray(p), mass_matrix=PENDULUM_MASS)


def test_the_tension_of_a_pendulum() -> None:
    """However wrong the guess; the differential variables are held to the last bit."""
    for guess in (0.0, 1e3, -7.0):
        sol = start(swinging(guess))
        np.testing.assert_allclose(sol.u[0, 4], 0.25 + 9.81 * 0.8, rtol=1e-14)
        assert np.array_equal(sol.u[0, :4], swinging().u0[:4])


@pytest.mark.parametrize("level", [0, 1], ids=["positions", "velocities"])
def test_an_index_too_high(level: int) -> None:
    """Constraints that do not contain the tension leave it open, even if the start has it right."""

    def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        x, y, vx, vy, _ = u
        constraint = (x**2 + y**2 - 1.0, x * vx + y * vy)[level]
        return pendulum(u, p, t).at[4].set(constraint)

    prob = dj.ODEProblem(f, swinging().u0, (0.0, 1.0), jnp.array(9.81), mass_matrix=PENDULUM_MASS)
    with pytest.raises(dj.SolveError, match=r"initial_failed.*index above one"):
        start(prob)


def test_a_nonlinear_equation_far_from_its_root() -> None:
    """0 = atan(z - u): from z = 30 Newton's method without damping diverges."""
    prob = dj.ODEProblem(
        lambda u, p, t: jnp.stack([-u[0], jnp.arctan(u[1] - u[0])]),
        jnp.array([1.0, 30.0]),
        (0.0, 1.0),
        mass_matrix=np.array([1.0, 0.0]),
    )
    np.testing.assert_allclose(start(prob).u[0], [1.0, 1.0], rtol=1e-14)
    no_root = dj.remake(prob, f=lambda u, p, t: jnp.stack([-u[0], 1.0 + u[1] ** 2]))
    sol = start(no_root, throw=False)
    assert sol.retcode == dj.ReturnCode.initial_failed


def test_a_row_of_zeros_without_a_column_of_zeros() -> None:
    """(u + v)' = -u with 0 = v - u^2: what is held is u + v."""
    prob = dj.ODEProblem(
        lambda u, p, t: jnp.stack([-u[0], u[1] - u[0] ** 2]),
        jnp.array([2.0, 0.0]),
        (0.0, 1.0),
        mass_matrix=np.array([[1.0, 1.0], [0.0, 0.0]]),
    )
    np.testing.assert_allclose(start(prob).u[0], [1.0, 1.0], rtol=1e-13)


# Derivatives and transformations ----------------------------------------------------------------


def loss(inputs: tuple, **options: Any) -> jax.Array:
    """0 = z^3 + z - p u: the root, and where it leads. The guess of z must not matter."""
    u0, p, mass = inputs

    def f(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.stack([-p[1] * u[0] * u[1], u[1] ** 3 + u[1] - p[0] * u[0] * jnp.cos(t)])

    prob = dj.ODEProblem(f, u0, (0.3, 1.0), p, mass_matrix=mass)
    saves = jnp.array([0.3, 1.0])
    options = {"rtol": 1e-10, "atol": 1e-10, "saveat": saves, "steps": 10, **options}
    sol = dj.solve(prob, dj.Rosenbrock23(), **options)
    return jnp.sum(sol.u * jnp.array([[1.0, 2.0], [3.0, 4.0]]))


INPUTS = (jnp.array([1.2, 0.1]), jnp.array([1.5, 0.8]), jnp.diag(jnp.array([2.0, 0.0])))


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [None, dj.ForwardMode()], ids=["tape", "forward"])
def test_derivatives(adjoint: Any) -> None:
    """Against differences; by the guess of the algebraic variable the derivative is zero."""
    gradient = jax.jit(jax.grad(lambda i: loss(i, adjoint=adjoint)))(INPUTS)
    value = jax.jit(loss)
    for i in (0, 1):
        changed = differences(lambda x, i=i: value((*INPUTS[:i], x, *INPUTS[i + 1 :])), INPUTS[i])
        close(gradient[i], changed, 2e-7, 1e-8)
    assert gradient[0][1] == 0
    _, dot = jax.jvp(value, (INPUTS,), (jax.tree.map(jnp.ones_like, INPUTS),))
    close(dot, sum(jnp.sum(x) for x in gradient), 1e-9)


def test_lanes_with_and_without_a_start() -> None:
    """Each lane as if alone, a start that does not exist included."""
    guesses = jnp.array([[1.0, 0.0, 0.2], [jnp.nan, 0.0, 0.0], [0.9, 0.0, 0.1]])
    sol = jax.jit(jax.vmap(lambda u0: start(rober(u0), throw=False)))(guesses)
    failed = dj.ReturnCode.initial_failed
    assert sol.retcode.tolist() == [dj.ReturnCode.success, failed, dj.ReturnCode.success]
    np.testing.assert_allclose(sol.u[0, 0], [1.0, 0.0, 0.0], rtol=0, atol=1e-15)
    assert np.array_equal(sol.u[2, 0], guesses[2])


@pytest.mark.slow
def test_trees_precision_and_backward_time() -> None:
    """A dictionary of float32, run backwards in time: 0 = b - t a at the start, t = 2."""

    def f(u: Any, p: Any, t: jax.Array) -> Any:
        return {"a": -u["a"], "b": u["b"] - t * u["a"]}

    u0 = {"a": jnp.array([1.0, 2.0], jnp.float32), "b": jnp.zeros(2, jnp.float32)}
    prob = dj.ODEProblem(f, u0, (2.0, 1.0), mass_matrix=np.array([1.0, 1.0, 0.0, 0.0]))
    for how in ("brown", "collocation"):
        sol = start(prob, how, rtol=1e-4, atol=1e-5, saveat=jnp.array([2.0]))
        assert sol.u["b"].dtype == jnp.float32
        np.testing.assert_allclose(sol.u["b"][0], [2.0, 4.0], rtol=2e-3)


def test_a_complex_algebraic_variable() -> None:
    prob = dj.ODEProblem(
        lambda u, p, t: jnp.stack([1j * u[0], u[1] - jnp.conj(u[0])]),
        jnp.array([1.0 + 2.0j, 0.0j]),
        (0.0, 1.0),
        mass_matrix=np.array([1.0, 0.0]),
    )
    np.testing.assert_allclose(start(prob).u[0], [1.0 + 2.0j, 1.0 - 2.0j], rtol=1e-14)


def test_a_word_that_is_none_of_them() -> None:
    with pytest.raises(ValueError, match=r"initialize must be 'brown', 'collocation', 'check'"):
        dj.solve(rober([1.0, 0.0, 0.0]), initialize="shampine")


# After events -----------------------------------------------------------------------------------

END = 2.0


def circuit(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    """A capacitor v' = i that a source E charges through a resistance: 0 = E - R i - v."""
    (v, i), (resistance, source, _) = u, p
    return jnp.stack([i, source - resistance * i - v])


def fully_implicit(du: jax.Array, u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    rates = circuit(u, p, t)
    return jnp.stack([du[0] - rates[0], rates[1]])


# At half a volt a switch puts in another resistance, k R, and leaves the current as it was.
SWITCH = dj.ContinuousCallback(
    lambda u, p, t: u[0] - 0.5,
    lambda u, p, t: (u, jnp.stack([p[2] * p[0], p[1], p[2]])),
    changes_p=True,
    save=True,
)
CHARGING = {
    "mass matrix": dj.ODEProblem(circuit, jnp.zeros(2), (0.0, END), mass_matrix=np.array([1, 0])),
    "fully implicit": dj.DAEProblem(fully_implicit, jnp.zeros(2), jnp.zeros(2), (0.0, END)),
}


@jax.jit
def charged(p: jax.Array) -> jax.Array:
    """In closed form the current just behind the switch, and voltage and current at the end."""
    resistance, source, factor = p
    switched = -resistance * jnp.log(1 - 0.5 / source)
    resistance = factor * resistance
    left = (source - 0.5) * jnp.exp(-(END - switched) / resistance)
    return jnp.stack([(source - 0.5) / resistance, source - left, left / resistance])


@pytest.mark.parametrize(
    ("kind", "alg", "options", "most"),
    [
        ("mass matrix", dj.Rodas5P(), {}, 90),
        ("mass matrix", dj.Rosenbrock23(), {"steps": 2000, "adjoint": dj.ForwardMode()}, 2001),
        # So many since DFBDF holds the error of a step to a sixtieth of the tolerance.
        ("fully implicit", dj.DFBDF(), {"max_steps": 500}, 480),
    ],
    ids=["Rodas5P", "fixed steps, forward", "DFBDF"],
)
def test_a_switch(kind: str, alg: Any, options: dict[str, Any], most: int) -> None:
    """The current jumps to what the new resistance wants, with its derivative. A resistance of zero
    leaves it open, which ends that lane alone."""
    weights = jnp.array([1.0, 2.0, 3.0])

    def loss(p: jax.Array) -> Any:
        tolerances = {"rtol": 1e-9, "atol": 1e-11}
        sol = dj.solve(CHARGING[kind], alg, p=p, callback=SWITCH, **tolerances, **options)
        value = jnp.concatenate([sol.events.after[0, 1:], sol.u[-1]])
        return weights @ value, (value, sol)

    lanes = jnp.array([[1.0, 1.0, 0.25], [0.5, 1.5, 3.0], [1.0, 1.0, 0.0]])
    gradients, (values, sol) = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))(lanes)
    assert sol.retcode.tolist() == [0, 0, dj.ReturnCode.initial_failed]
    wanted = weights @ jax.jit(jax.vmap(jax.jacfwd(charged)))(lanes[:2])
    np.testing.assert_allclose(values[:2], jax.vmap(charged)(lanes[:2]), rtol=3e-7, atol=1e-7)
    np.testing.assert_allclose(gradients[:2], wanted, rtol=3e-6)
    np.testing.assert_allclose(sol.t_end[2], np.log(2.0), rtol=1e-7)
    assert np.all(np.isnan(sol.u_end[2]))
    assert np.all(sol.stats.naccept <= most)


def test_other_ways_after_an_event() -> None:
    """By collocation, backwards in time and in float32; what is only checked must be left right."""
    prob, p = CHARGING["fully implicit"], jnp.array([1.0, 1.0, 0.25])
    options = {"p": p, "callback": SWITCH, "rtol": 1e-7, "atol": 1e-9}
    sol = dj.solve(prob, dj.RadauIIA5(), initialize="collocation", **options)
    np.testing.assert_allclose([sol.events.after[0, 1], *sol.u[-1]], charged(p), rtol=3e-7)
    given = dj.remake(prob, du0=jnp.array([1.0, 0.0]), u0=jnp.array([0.0, 1.0]))
    with pytest.raises(dj.SolveError, match=r"initial_failed at t = 0\.693.*after an event"):
        dj.solve(given, dj.RadauIIA5(), initialize="check", **options)

    drop = dj.PresetTimeCallback([1.0], lambda u, p, t: u.at[0].set(2.0))
    back = dj.ODEProblem(circuit, jnp.ones(2, jnp.float32), (1.5, 0.5), p.astype(jnp.float32))
    back = dj.remake(back, mass_matrix=np.array([1.0, 0.0]))
    sol = dj.solve(back, dj.Rodas5P(), callback=drop, rtol=1e-4, atol=1e-5, saveat=[1.0, 0.5])
    assert sol.u.dtype == jnp.float32
    wanted = np.array([[2.0, -1.0], [1.0 + np.exp(0.5), -np.exp(0.5)]])
    np.testing.assert_allclose(sol.u, wanted, rtol=1e-3)


N = 40
CHAIN_MASS = np.tile([1.0, 0.0], N)


def chain(w: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    """Diffusion of u that v consumes, with v^3 + v = u at every point."""
    u, v = w[::2], w[1::2]
    padded = jnp.pad(u, 1)
    du = p * (padded[2:] - 2 * u + padded[:-2]) - v
    return jnp.stack([du, v**3 + v - u], axis=1).reshape(-1)


def implicit_chain(dw: jax.Array, w: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    rates = chain(w, p, t)
    return jnp.where(jnp.asarray(CHAIN_MASS) == 1, dw - rates, rates)


@pytest.mark.parametrize("implicit", [False, True])
def test_a_start_with_a_band_matrix(implicit: bool) -> None:
    """The state and its derivative are those of dense matrices, of which none is formed."""
    u0 = jnp.stack([jnp.sin(jnp.arange(1.0, N + 1)), jnp.zeros(N)], axis=1).reshape(-1)
    method: dj.Algorithm = dj.DFBDF(max_order=1) if implicit else dj.Rosenbrock23()

    def start(p: jax.Array, sparsity: Any) -> tuple[jax.Array, jax.Array]:
        if implicit:
            prob: Any = dj.DAEProblem(implicit_chain, jnp.zeros(2 * N), u0, (0.0, 1e-3), p)
        else:
            prob = dj.ODEProblem(chain, u0, (0.0, 1e-3), p, mass_matrix=CHAIN_MASS)
        prob = dj.remake(prob, jac_sparsity=sparsity)
        sol = dj.solve(prob, method, steps=1, saveat=[0.0, 1e-3], throw=False)
        return jnp.sum(sol.u * jnp.arange(2.0 * N)[None]), sol.u

    p = jnp.asarray(0.5)
    (got, there), slope = jax.value_and_grad(start, has_aux=True)(p, (2, 2))
    (wanted, states), dense = jax.value_and_grad(start, has_aux=True)(p, None)
    v = there[0, 1::2]
    np.testing.assert_allclose(v**3 + v, u0[::2], atol=1e-9)
    np.testing.assert_allclose(there, states, atol=1e-11)
    np.testing.assert_allclose([got, slope], [wanted, dense], rtol=1e-9)
    assert f"[{2 * N},{2 * N}]" not in str(jax.make_jaxpr(lambda p: start(p, (2, 2)))(p))


def test_a_band_matrix_that_is_singular() -> None:
    """An algebraic variable that no equation has: no start is found, as with dense matrices."""

    def open_end(w: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        return chain(w, p, t).at[7].set(w[6] - 5.0)

    prob = dj.ODEProblem(
        open_end, jnp.ones(2 * N), (0.0, 1.0), 0.5, mass_matrix=CHAIN_MASS, jac_sparsity=(2, 2)
    )
    sol = dj.solve(prob, dj.Rosenbrock23(), throw=False)
    assert sol.retcode == dj.ReturnCode.initial_failed


@pytest.mark.parametrize("moved", [0, 1], ids=["off the constraint", "another multiplier"])
def test_collocation_after_an_event_at_index_two(moved: int) -> None:
    """x' = y, 0 = x - sin(t): what an event moves comes back; holding x there is no y to find."""
    prob = dj.ODEProblem(
        lambda u, p, t: jnp.stack([u[1], u[0] - jnp.sin(t)]),
        jnp.array([0.0, 1.0]),
        (0.0, 2.0),
        mass_matrix=np.array([1.0, 0.0]),
    )
    kick = dj.PresetTimeCallback([1.0], lambda u, p, t: u.at[moved].set(2.0))
    options = {"callback": kick, "rtol": 1e-6, "atol": 1e-8, "throw": False}
    sol = dj.solve(prob, dj.RadauIIA5(), initialize="collocation", **options)
    np.testing.assert_allclose(sol.u_end, [np.sin(2.0), np.cos(2.0)], atol=1e-6)
    assert dj.solve(prob, dj.RadauIIA5(), **options).retcode == dj.ReturnCode.initial_failed
