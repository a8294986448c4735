"""Bad input: each mistake raises where it is made, naming the argument and what was wanted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.problems import LINEAR


def decay(u: Any, p: Any, t: Any) -> Any:
    return -u


U0 = jnp.array([1.0, 2.0])
PROB = dj.ODEProblem(decay, U0, (0.0, 1.0))


def with_field(f: Callable) -> dj.ODEProblem:
    return dj.ODEProblem(f, U0, (0.0, 1.0))


# Columns: what is done, the kind of error, words that its message must hold (the argument first).
MISTAKES: list[tuple[str, Callable[[], Any], type[Exception], tuple[str, ...]]] = [
    (
        "f of another shape",
        lambda: dj.solve(with_field(lambda u, p, t: u[:1])),
        ValueError,
        ("f must return", "(1,)", "(2,)"),
    ),
    (
        "f of another dtype",
        lambda: dj.solve(with_field(lambda u, p, t: u.astype(jnp.complex128))),
        TypeError,
        ("f must return", "complex128", "float64"),
    ),
    (
        "f of another structure",
        lambda: dj.solve(with_field(lambda u, p, t: {"u": u})),
        TypeError,
        ("f must return", "pytree"),
    ),
    (
        "f returning a list",
        lambda: dj.solve(with_field(lambda u, p, t: [u[0], u[1]])),
        TypeError,
        ("f must return", "pytree"),
    ),
    ("f not callable", lambda: dj.ODEProblem(3.0, U0, (0.0, 1.0)), TypeError, ("f ", "float")),
    ("tspan of one", lambda: dj.ODEProblem(decay, U0, (1.0,)), ValueError, ("tspan", "pair")),
    ("tspan of three", lambda: dj.ODEProblem(decay, U0, (0, 1, 2)), ValueError, ("tspan", "3")),
    ("tspan a number", lambda: dj.ODEProblem(decay, U0, 1.0), ValueError, ("tspan", "pair")),
    ("tspan of words", lambda: dj.ODEProblem(decay, U0, ("a", "b")), TypeError, ("tspan", "str")),
    (
        "tspan infinite",
        lambda: dj.ODEProblem(decay, U0, (0.0, np.inf)),
        ValueError,
        ("tspan", "finite"),
    ),
    (
        "integer state",
        lambda: dj.solve(PROB, u0=jnp.array([1, 2])),
        TypeError,
        ("u0", "floating point", "int64"),
    ),
    (
        "u0 with NaN",
        lambda: dj.solve(PROB, u0=jnp.array([1.0, jnp.nan])),
        ValueError,
        ("u0", "finite"),
    ),
    ("u0 empty", lambda: dj.solve(PROB, u0={}), ValueError, ("u0", "empty")),
    ("prob not a problem", lambda: dj.solve(decay), TypeError, ("prob", "ODEProblem")),
    ("alg a class", lambda: dj.solve(PROB, dj.Tsit5), TypeError, ("alg", "Tsit5()")),
    ("alg a word", lambda: dj.solve(PROB, "Tsit5"), TypeError, ("alg", "str")),
    (
        "controller a class",
        lambda: dj.solve(PROB, controller=dj.PIDController),
        TypeError,
        ("controller", "instance"),
    ),
    (
        "adjoint a class",
        lambda: dj.solve(PROB, adjoint=dj.DiscreteAdjoint),
        TypeError,
        ("adjoint", "instance"),
    ),
    ("rtol negative", lambda: dj.solve(PROB, rtol=-1e-3), ValueError, ("rtol", "negative")),
    ("atol negative", lambda: dj.solve(PROB, atol=-1e-3), ValueError, ("atol", "negative")),
    ("rtol NaN", lambda: dj.solve(PROB, rtol=float("nan")), ValueError, ("rtol", "finite")),
    (
        "atol of another shape",
        lambda: dj.solve(PROB, atol=jnp.ones(3)),
        ValueError,
        ("atol", "u0"),
    ),
    (
        "saveat outside",
        lambda: dj.solve(PROB, saveat=jnp.array([0.5, 1.5])),
        ValueError,
        ("saveat", "tspan", "1.5"),
    ),
    (
        "saveat before",
        lambda: dj.solve(PROB, saveat=[-0.5, 0.5]),
        ValueError,
        ("saveat", "tspan", "-0.5"),
    ),
    (
        "saveat unsorted",
        lambda: dj.solve(PROB, saveat=jnp.array([0.5, 0.2])),
        ValueError,
        ("saveat", "sorted"),
    ),
    (
        "saveat against the direction",
        lambda: dj.solve(PROB, tspan=(1.0, 0.0), saveat=jnp.array([0.2, 0.5])),
        ValueError,
        ("saveat", "sorted"),
    ),
    (
        "saveat with NaN",
        lambda: dj.solve(PROB, saveat=np.array([0.1, np.nan])),
        ValueError,
        ("saveat", "finite"),
    ),
    (
        "saveat two-dimensional",
        lambda: dj.solve(PROB, saveat=jnp.zeros((2, 2))),
        ValueError,
        ("saveat", "one-dimensional"),
    ),
    ("saveat a wrong word", lambda: dj.solve(PROB, saveat="all"), ValueError, ("saveat", "steps")),
    ("saveat zero", lambda: dj.solve(PROB, saveat=0.0), ValueError, ("saveat", "positive")),
    ("saveat negative", lambda: dj.solve(PROB, saveat=-0.1), ValueError, ("saveat", "positive")),
    (
        "saveat a spacing of a traced span",
        lambda: dj.solve(PROB, tspan=(0.0, jnp.array(1.0)), saveat=0.1),
        ValueError,
        ("saveat", "tspan", "function"),
    ),
    (
        "tstops outside",
        lambda: dj.solve(PROB, tstops=[2.0]),
        ValueError,
        ("tstops", "tspan", "2.0"),
    ),
    ("tstops unsorted", lambda: dj.solve(PROB, tstops=[0.5, 0.2]), ValueError, ("tstops",)),
    ("tstops a number", lambda: dj.solve(PROB, tstops=0.5), TypeError, ("tstops", "sequence")),
    (
        "save_idxs and save_fn",
        lambda: dj.solve(PROB, save_idxs=0, save_fn=lambda u, p, t: u),
        ValueError,
        ("save_idxs", "save_fn"),
    ),
    (
        "save_idxs of a dict",
        lambda: dj.solve(
            dj.ODEProblem(lambda u, p, t: u, {"a": U0}, (0.0, 1.0)), saveat=0.5, save_idxs=0
        ),
        TypeError,
        ("save_idxs", "save_fn"),
    ),
    ("dt and steps", lambda: dj.solve(PROB, dt=0.1, steps=10), ValueError, ("dt", "steps")),
    ("dt zero", lambda: dj.solve(PROB, dt=0.0), ValueError, ("dt", "zero")),
    ("dt NaN", lambda: dj.solve(PROB, dt=float("nan")), ValueError, ("dt", "finite")),
    ("steps zero", lambda: dj.solve(PROB, steps=0), ValueError, ("steps", "positive")),
    ("steps a float", lambda: dj.solve(PROB, steps=10.0), ValueError, ("steps", "10.0")),
    ("max_steps zero", lambda: dj.solve(PROB, max_steps=0), ValueError, ("max_steps",)),
    ("max_steps a float", lambda: dj.solve(PROB, max_steps=1e3), ValueError, ("max_steps",)),
    (
        "fixed steps without a size",
        lambda: dj.solve(PROB, adaptive=False),
        ValueError,
        ("adaptive", "dt=", "steps="),
    ),
    (
        "no error estimate, no size",
        lambda: dj.solve(PROB, dj.RK4()),
        ValueError,
        ("RK4", "error estimate", "dt="),
    ),
    (
        "dt on a traced span",
        lambda: dj.solve(PROB, dj.RK4(), tspan=(0.0, jnp.array(1.0)), dt=0.1),
        ValueError,
        ("dt", "tspan", "steps="),
    ),
    (
        "checkpoints zero",
        lambda: dj.DiscreteAdjoint(checkpoints=0),
        ValueError,
        ("checkpoints", "positive"),
    ),
    ("an unknown keyword", lambda: dj.solve(PROB, tolerance=1e-3), TypeError, ("tolerance",)),
    ("of a walk too", lambda: dj.init(PROB, tolerance=1e-3), TypeError, ("tolerance", "dj.init")),
    (
        "an unknown argument of remake",
        lambda: dj.remake(PROB, q=1.0),
        TypeError,
        ("'q'", "ODEProblem"),
    ),
    ("sol(t) not dense", lambda: dj.solve(PROB)(0.5), ValueError, ("dense=True",)),
    (
        "deriv negative",
        lambda: dj.solve(PROB, dense=True)(0.5, deriv=-1),
        ValueError,
        ("deriv", "-1"),
    ),
]


@pytest.mark.parametrize(
    ("mistake", "error", "words"), [pytest.param(*m[1:], id=m[0]) for m in MISTAKES]
)
def test_a_mistake_is_named(
    mistake: Callable[[], Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    with pytest.raises(error) as caught:
        mistake()
    for word in words:
        assert word in str(caught.value)


def test_an_algorithm_that_cannot_take_the_problem() -> None:
    """The message says which kinds the algorithm takes."""

    class Other(dj.ODEProblem):
        pass

    with pytest.raises(TypeError, match=r"alg=Tsit5 cannot solve.*Other.*takes ODEProblem"):
        dj.solve(Other(decay, U0, (0.0, 1.0)), dj.Tsit5())


def test_mistakes_are_named_under_a_trace_too() -> None:
    """What shapes and static arguments show is judged while tracing."""
    with pytest.raises(ValueError, match="saveat"):
        jax.jit(lambda u0: dj.solve(PROB, u0=u0, saveat=np.array([2.0])).u)(U0)
    with pytest.raises(TypeError, match="u0"):
        jax.jit(lambda u0: dj.solve(PROB, u0=u0).u)(jnp.array([1, 2]))
    with pytest.raises(ValueError, match="f must return"):
        jax.vmap(lambda u0: dj.solve(with_field(lambda u, p, t: u[:1]), u0=u0).u)(U0[None])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_tolerance_under_rounding_warns_and_is_clamped(dtype: Any) -> None:
    prob = LINEAR.ode(dtype)
    with pytest.warns(UserWarning, match=r"rtol=1e-17 .*rounding"):
        sol = dj.solve(prob, dj.Vern7(), rtol=1e-17, atol=0.0, max_steps=10_000)
    assert sol.retcode is dj.ReturnCode.success
    assert LINEAR.exact is not None
    error = np.abs(np.asarray(sol.u) - LINEAR.exact(np.ones(1)))
    assert np.max(error) < 100 * float(jnp.finfo(dtype).eps)


def test_what_is_no_mistake() -> None:
    """Python numbers, numpy arrays and lists are taken wherever arrays are."""
    exact = np.exp(-1.0)
    for u0 in (1.0, np.array(1.0), np.float64(1.0)):
        sol = dj.solve(dj.ODEProblem(decay, u0, [0, 1]), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(np.asarray(sol.u), [exact], rtol=1e-6)
    for saveat in ([0.5, 1.0], np.array([0.5, 1.0]), (0.5, 1), jnp.array([0.5, 1.0])):
        assert dj.solve(PROB, saveat=saveat).u.shape == (2, 2)
    # A field may return weakly typed constants, and a span may be a numpy pair.
    sol = dj.solve(dj.ODEProblem(lambda u, p, t: 2.0, 0.0, np.array([0.0, 1.0])))
    np.testing.assert_allclose(np.asarray(sol.u), [2.0], rtol=1e-12)
