"""Error and stiffness estimates of the steps, as values and as something to differentiate.

They are compared with one step taken by hand in numpy; its coefficients are SciPy's where SciPy has
the method.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from scipy.integrate import RK23, RK45

import diffjax as dj
from diffjax.algorithms.explicit_rk import ExplicitRungeKutta
from tests.derivatives import ADJOINTS, close, differences
from tests.problems import LOTKA_VOLTERRA, linear, lotka_volterra

P = jnp.asarray(LOTKA_VOLTERRA.p)
U0 = jnp.asarray(LOTKA_VOLTERRA.u0)
ROWS = 64


def solve(p: jax.Array = P, u0: Any = U0, tspan: Any = (0.0, 3.0), **options: Any) -> dj.Solution:
    prob = dj.ODEProblem(lotka_volterra, u0, tspan, p)
    options = {"rtol": 1e-5, "atol": 1e-5, "max_steps": ROWS, **options}
    return dj.solve(prob, options.pop("alg", dj.Tsit5()), estimates=True, **options)


def estimates(*args: Any, **options: Any) -> dj.Estimates:
    found = solve(*args, **options).estimates
    assert found is not None
    return found


def penalty(*args: Any, **options: Any) -> jax.Array:
    """Pal et al. 2021: the error times the step, and the stiffness."""
    e = estimates(*args, **options)
    assert e.stiffness is not None
    return jnp.sum(e.error * e.dt) + 0.1 * jnp.sum(e.stiffness**2)


# Values -------------------------------------------------------------------------------


@pytest.mark.parametrize("tspan", [(0.0, 3.0), (3.0, 0.0)], ids=["forwards", "backwards"])
def test_rows(tspan: tuple[float, float]) -> None:
    """A row for each accepted step, whichever way time runs, and zeros after the last."""
    sol = solve(tspan=tspan)
    e, n = sol.estimates, int(sol.stats.naccept)
    assert e is not None
    assert e.stiffness is not None
    assert 0 < n < ROWS
    assert all(x.shape == (ROWS,) for x in e)
    assert all(np.all(x[:n] > 0) and np.all(x[n:] == 0) for x in e)
    assert np.all(e.error <= 1)
    assert float(jnp.sum(e.dt)) == pytest.approx(3.0, rel=1e-14)
    every = dj.solve(
        dj.ODEProblem(lotka_volterra, U0, tspan, P),
        dj.Tsit5(),
        rtol=1e-5,
        atol=1e-5,
        saveat="steps",
    )
    close(e.dt[:n], np.abs(np.diff(every.t[: n + 1])), 1e-12)


# The coefficients of SciPy's classes; its order-5 pair is that of Dormand and Prince.
_SCIPY = {"BS3": (dj.BS3(), RK23), "DP5": (dj.DP5(), RK45)}
TOLERANCE = 1e-4


def coefficients(name: str) -> tuple[dj.Algorithm, tuple[np.ndarray, ...]]:
    """A method, and its A, b, c and error weights (all stages, the last is f at the end)."""
    if name in _SCIPY:
        alg, table = _SCIPY[name]
        stages = len(table.B)
        a = np.zeros((stages + 1, stages + 1))
        a[:stages, : table.A.shape[1]] = table.A
        a[stages, :stages] = table.B
        return alg, (a, np.append(table.B, 0.0), np.append(table.C, 1.0), table.E)
    alg = dj.Tsit5()
    assert isinstance(alg, ExplicitRungeKutta)
    t = alg.tableau
    a = np.array([list(row) + [0.0] * (len(t.b) - len(row)) for row in t.a])
    assert t.b_error is not None
    return alg, (a, np.array(t.b), np.array(t.c), np.array(t.b_error))


def errors_by_hand(
    matrix: np.ndarray, u: np.ndarray, widths: np.ndarray, table: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Scaled errors of steps of u' = matrix u, root mean squares as in HNW I, II.4.11."""
    a, b, _, weights = table
    errors = []
    for dt in widths:
        ks = np.zeros((len(b), len(u)))
        for i in range(len(b)):
            ks[i] = matrix @ (u + dt * a[i, :i] @ ks[:i])
        end = u + dt * b @ ks
        scale = TOLERANCE + TOLERANCE * np.maximum(np.abs(u), np.abs(end))
        errors.append(np.sqrt(np.mean((dt * weights @ ks / scale) ** 2)))
        u = end
    return np.array(errors)


def rotation(p: Any, np: Any = np) -> Any:
    """A damped rotation: decay p[0], frequency p[1]."""
    return np.stack([np.stack([-p[0], p[1]]), np.stack([-p[1], -p[0]])])


ROTATION = {"p": np.array([0.4, 3.0]), "u0": np.array([1.0, 0.5])}


def rotated(alg: dj.Algorithm, p: Any, **options: Any) -> dj.Estimates:
    prob = dj.ODEProblem(
        lambda u, p, t: rotation(p, jnp) @ u, jnp.asarray(ROTATION["u0"]), (0.0, 1.0), p
    )
    given = {"rtol": TOLERANCE, "atol": TOLERANCE, "max_steps": ROWS, **options}
    found = dj.solve(prob, alg, estimates=True, **given).estimates
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["BS3", "DP5", "Tsit5"])
def test_error_of_steps_taken_by_hand(name: str) -> None:
    alg, table = coefficients(name)
    got = rotated(alg, jnp.asarray(ROTATION["p"]), steps=4).error
    wanted = errors_by_hand(rotation(ROTATION["p"]), ROTATION["u0"], np.full(4, 0.25), table)
    close(got, wanted, 1e-9)


@pytest.mark.parametrize(
    ("alg", "interval"), [(dj.Tsit5(), 3.5068), (dj.DP5(), 3.3066), (dj.Vern7(), 4.6400)]
)
def test_stiffness_of_a_decay(alg: dj.Algorithm, interval: float) -> None:
    """|lambda dt| over the length of the stability interval, as published."""
    prob = dj.ODEProblem(linear, jnp.asarray([1.0, 0.7]), (0.0, 1.0), jnp.asarray(-30.0))
    found = dj.solve(prob, alg, steps=15, estimates=True).estimates
    assert found is not None
    assert found.stiffness is not None
    close(found.stiffness, np.full(15, 30.0 / 15 / interval), 1e-6)


def test_stiffness_is_none_where_no_two_stages_share_a_time() -> None:
    assert estimates(alg=dj.BS3(), steps=4).stiffness is None


def test_a_method_without_an_error_estimate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"estimates=True .* RK4 has none.*Tsit5"):
        estimates(alg=dj.RK4(), steps=4)


def test_pytree_state() -> None:
    """The same numbers whether the state is an array or a tree of its components."""

    def by_name(u: dict, p: jax.Array, t: jax.Array) -> dict:
        x, y = lotka_volterra(jnp.stack([u["x"], u["y"][0]]), p, t)
        return {"x": x, "y": y[None]}

    prob = dj.ODEProblem(by_name, {"x": U0[0], "y": U0[1:]}, (0.0, 3.0), P)
    sol = dj.solve(prob, dj.Tsit5(), rtol=1e-5, atol=1e-5, max_steps=ROWS, estimates=True)
    close(sol.estimates, estimates(), 1e-9)


def test_float32() -> None:
    """In single precision throughout, and close to the same steps in double."""
    single, double = (
        estimates(P.astype(dtype), U0.astype(dtype), steps=15)
        for dtype in (jnp.float32, jnp.float64)
    )
    assert {x.dtype for x in single} == {jnp.dtype("float32")}
    # An error of 1e-5 is the difference of stages of size one, which keeps two digits.
    close(single.error, double.error, 0.05, 0.05)
    close(single.stiffness, double.stiffness, 0.01)


# Derivatives --------------------------------------------------------------------------


# Checkpoints make no difference here: estimates need the whole tape.
BOTH_ADJOINTS = pytest.mark.parametrize(
    "adjoint", [ADJOINTS["tape"], ADJOINTS["forward"]], ids=["tape", "fwd"]
)


@BOTH_ADJOINTS
def test_gradient_with_fixed_steps(adjoint: dj.Adjoint) -> None:
    """With respect to parameters, initial state and both ends, against differences."""

    def of(x: jax.Array) -> jax.Array:
        return penalty(x[:4], x[4:6], (x[6], x[7]), steps=12, adjoint=adjoint)

    x = jnp.concatenate([P, U0, jnp.asarray([0.1, 2.9])])
    wanted = differences(jax.jit(of), x, 1e-4)
    close(jax.jit(jax.grad(of))(x), wanted, 1e-6, 1e-6 * np.abs(wanted).max())


def test_adaptive_gradient_is_that_of_the_steps_taken() -> None:
    """Differences of the same steps taken by hand: only the field moves the estimates."""
    alg, table = coefficients("DP5")
    p = jnp.asarray(ROTATION["p"])
    weights = jnp.linspace(1.0, 2.0, ROWS)
    widths = np.asarray(rotated(alg, p).dt)
    widths = widths[widths > 0]

    def by_hand(p: jax.Array) -> float:
        errors = errors_by_hand(rotation(np.asarray(p)), ROTATION["u0"], widths, table)
        return float(np.sum(np.asarray(weights)[: len(widths)] * errors))

    got = jax.jit(jax.grad(lambda p: jnp.sum(weights * rotated(alg, p).error)))(p)
    close(got, differences(by_hand, p, 1e-4), 1e-6)


@pytest.mark.slow
@BOTH_ADJOINTS
def test_adaptive_gradient_in_both_modes(adjoint: dj.Adjoint) -> None:
    def of(p: jax.Array, u0: jax.Array, t0: jax.Array, t1: jax.Array) -> jax.Array:
        return penalty(p, u0, (t0, t1), adjoint=adjoint)

    args, numbers = (P, U0, jnp.asarray(0.0), jnp.asarray(3.0)), (0, 1, 2, 3)
    reverse = jax.jit(jax.grad(of, numbers))(*args)
    assert all(np.all(x != 0) for x in reverse)
    close(jax.jit(jax.jacfwd(of, numbers))(*args), reverse, 1e-9, 1e-9)


@pytest.mark.slow
def test_jit_and_vmap() -> None:
    """Lanes with numbers of steps of their own: each has its own solve's rows and gradient."""
    ps = P[None] * jnp.linspace(0.7, 1.3, 3)[:, None]
    both = jax.jit(lambda p: (estimates(p), jax.grad(penalty)(p)))
    loop = [both(p) for p in ps]
    close(loop[0][0], estimates(ps[0]), 1e-9)
    lanes = jax.jit(jax.vmap(lambda p: (estimates(p), jax.grad(penalty)(p))))(ps)
    assert len({int(np.sum(e.dt > 0)) for e, _ in loop}) > 1
    close(lanes, jtu.tree_map(lambda *xs: jnp.stack(xs), *loop), 1e-7, 1e-9)


def finite_gradient(f: Callable, u0: jax.Array, p: jax.Array, **options: Any) -> None:
    def of(u0: jax.Array, p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(f, u0, (0.0, 0.5), p)
        e = dj.solve(prob, dj.Tsit5(), estimates=True, max_steps=ROWS, **options).estimates
        assert e is not None
        assert e.stiffness is not None
        return jnp.sum(e.error * e.dt) + jnp.sum(e.stiffness)

    value, gradient = jax.jit(jax.value_and_grad(of, (0, 1)))(u0, p)
    assert all(np.all(np.isfinite(x)) for x in (value, *gradient))


def test_rows_that_are_not_there_do_no_harm() -> None:
    """A field that only short steps may evaluate: a Torricelli tank that one long step empties."""
    finite_gradient(lambda u, p, t: -p * jnp.sqrt(u), jnp.asarray(1.0), jnp.asarray(2.5))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_state_at_rest(dtype: Any) -> None:
    """Where nothing moves, no two stages differ, and the quotient of differences is 0/0."""
    finite_gradient(linear, jnp.zeros(2, dtype), jnp.asarray(-1.0, dtype))
