"""Single precision: the same solves, and time that keeps its precision.

A solver that adds up `t += dt` in float32 loses phase with every step, and may never land on its
end (DifferentialEquations.jl failed exactly at t = 16, where the spacing of floats doubles).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.methods import BY_NAME, METHODS, Method
from tests.problems import (
    ARENSTORF,
    FITZHUGH_NAGUMO,
    GRAD_LV_BLOG,
    LINEAR,
    LOTKA_VOLTERRA,
    NONLINCHEM,
    SPIRAL,
    VANDERPOL,
    Case,
    oscillator,
)

F32 = jnp.float32
# Of the last digits of programs as users run them.
pytestmark = pytest.mark.usefixtures("optimised")


def end(case: Case) -> np.ndarray:
    if case.end is not None:
        return case.end
    assert case.exact is not None
    return case.exact(np.array([case.tspan[1]]))[0]


# Arenstorf's orbit amplifies an error 1e5-fold: no float32 code can follow it for a period.
@pytest.mark.parametrize(
    ("name", "case"),
    [
        *(
            ("Tsit5", case)
            for case in (LINEAR, NONLINCHEM, LOTKA_VOLTERRA, FITZHUGH_NAGUMO, VANDERPOL, SPIRAL)
        ),
        ("DP8", LOTKA_VOLTERRA),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_same_solves(case: Case, name: str) -> None:
    """Within 1e-4 of the reference at tolerances that float32 can meet, in float32 throughout."""
    sol = dj.solve(case.ode(F32), BY_NAME[name].make(), rtol=3e-6, atol=3e-6)
    assert sol.u.dtype == sol.t.dtype == F32
    assert sol.u_end.dtype == F32
    assert float(sol.t_end) == np.float32(case.tspan[1])
    np.testing.assert_allclose(np.asarray(sol.u_end), end(case), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_method_keeps_the_precision(method: Method) -> None:
    """Guards against a coefficient or a constant that promotes the state to float64."""

    def saved(u0: jax.Array) -> tuple:
        sol = dj.solve(LINEAR.ode(F32), method.make(), u0=u0, steps=2, saveat=0.25)
        return sol.u, sol.t, sol.u_end

    shapes = jax.eval_shape(saved, jnp.asarray(LINEAR.u0, F32))
    assert {x.dtype for x in shapes} == {jnp.dtype(F32)}


@pytest.mark.parametrize("name", ["RK4", "Vern6", "Rodas5P"])
def test_fixed_steps(name: str) -> None:
    """Vern6, since its coefficients of 3e2 need large steps: rounding stays below the bound."""
    method = BY_NAME[name]
    steps = 60 if method.order < 5 else 12
    sol = dj.solve(LINEAR.ode(F32), method.make(), steps=steps, saveat=0.25)
    assert LINEAR.exact is not None
    np.testing.assert_allclose(np.asarray(sol.u), LINEAR.exact(np.asarray(sol.t)), rtol=5e-5)


def test_arenstorf_is_flagged_or_finite() -> None:
    """Near the singularity in float32 a solve ends, one way or the other."""
    sol = dj.solve(ARENSTORF.ode(F32), dj.Tsit5(), rtol=1e-5, atol=1e-5, throw=False)
    assert sol.retcode in (dj.ReturnCode.success, dj.ReturnCode.dt_underflow)


@pytest.mark.parametrize(
    "options",
    [{}, {"dt": 0.1, "adaptive": False}, {"steps": 1000}, {"saveat": 0.1}, {"dtmax": 0.01}],
)
def test_ends_at_exactly_sixteen(options: dict[str, Any]) -> None:
    prob = dj.ODEProblem(lambda u, p, t: jnp.cos(t), jnp.zeros((), F32), (0.0, 16.0))
    sol = dj.solve(prob, dj.Tsit5(), rtol=1e-5, atol=1e-5, **options)
    assert sol.retcode is dj.ReturnCode.success
    assert float(sol.t_end) == 16.0
    assert float(sol.t[-1]) == 16.0
    np.testing.assert_allclose(float(sol.u_end), np.sin(16.0), atol=2e-4)


# Ten thousand periods in a hundred thousand steps; the span is a number that float32 holds.
STEPS = 100_000
SPAN = (0.0, 62_832.0)
FIXED = pytest.mark.parametrize(
    "options", [{"steps": STEPS}, {"dt": SPAN[1] / STEPS, "adaptive": False}], ids=["steps", "dt"]
)


@FIXED
def test_time_of_fixed_steps(options: dict[str, Any]) -> None:
    """Times are by step index: after 1e5 steps each is the exact one, rounded."""
    prob = dj.ODEProblem(lambda u, p, t: jnp.ones_like(u), jnp.zeros((), F32), SPAN)
    sol = dj.solve(prob, dj.Euler(), saveat="steps", **options)
    errors = np.asarray(sol.t, float) - np.arange(STEPS + 1) * (SPAN[1] / STEPS)
    spacing = np.spacing(np.asarray(sol.t)).astype(float)
    assert np.all(np.abs(errors) <= 1.01 * spacing)
    # No drift: the mean is far below the spacing of 4e-3 at the end.
    assert abs(np.mean(errors)) < 1e-5
    assert float(sol.t_end) == SPAN[1]


@FIXED
def test_phase_over_ten_thousand_periods(options: dict[str, Any]) -> None:
    """The phase error from time itself is under 1e-3.

    That is the difference to the same steps in float64. RK4, whose weights float32 holds well: the
    rounding of others (sum of b off by 1e-7) turns the phase by itself, 3e-2 for DP8.
    """
    prob = dj.ODEProblem(oscillator, jnp.asarray([1.0, 0.0], F32), SPAN)
    narrow = dj.solve(prob, dj.RK4(), **options)
    wide = dj.solve(prob, dj.RK4(), u0=jnp.asarray([1.0, 0.0]), **options)

    def phase(u: Any) -> float:
        return float(np.angle(complex(u[0], -u[1])))

    turned = phase(narrow.u_end) - phase(wide.u_end)
    assert abs(np.angle(np.exp(1j * turned))) < 1e-3


def test_time_of_adaptive_steps() -> None:
    """Compensated time: ten thousand adaptive steps, each far below the spacing of t, add up."""
    prob = dj.ODEProblem(lambda u, p, t: jnp.cos(t), jnp.zeros((), F32), (1000.0, 1010.0))
    sol = dj.solve(
        prob, dj.Tsit5(), dtmax=1e-3, saveat="steps", max_steps=20_000, rtol=1e-4, atol=1e-4
    )
    n = int(sol.n)
    assert 10_000 <= n <= 10_110
    # Uniform steps of dtmax: the k-th time is known. Uncompensated they drift by percents.
    times = np.asarray(sol.t[: n - 1], float)
    fitted = np.polyfit(np.arange(200, n - 1), times[200:], 1)
    assert fitted[0] == pytest.approx(1e-3, rel=1e-3)
    np.testing.assert_allclose(float(sol.u_end), np.sin(1010.0) - np.sin(1000.0), atol=1e-3)


def test_tolerances_of_the_original_snippets() -> None:
    """rtol 1e-7, atol 1e-9 in float32: a warning, a clamp, and a good result without a crawl."""
    prob = LOTKA_VOLTERRA.ode(F32)
    with pytest.warns(UserWarning, match=r"rtol=1e-07 .*rounding"):
        sol = dj.solve(prob, dj.Tsit5(), rtol=1e-7, atol=1e-9, saveat=0.1)
    assert sol.retcode is dj.ReturnCode.success
    np.testing.assert_allclose(np.asarray(sol.u_end), end(LOTKA_VOLTERRA), rtol=1e-4)
    assert int(sol.stats.naccept) + int(sol.stats.nreject) < 400


def test_gradient_in_single_precision() -> None:
    """The published gradient, to what float32 can hold over a sum of 101 terms."""
    case = GRAD_LV_BLOG

    def loss(p: jax.Array) -> jax.Array:
        sol = dj.solve(
            case.case.ode(F32, p=p), dj.Tsit5(), saveat=0.1, rtol=1e-5, atol=1e-5, max_steps=512
        )
        return case.loss(sol.u)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(case.case.p, F32))
    assert gradient.dtype == F32
    np.testing.assert_allclose(float(value), case.value, rtol=1e-3)
    np.testing.assert_allclose(np.asarray(gradient), case.grads["p"], rtol=1e-2)


def test_half_precision_parameters_are_refused_or_kept_out() -> None:
    """A field that leaves float32 says so rather than changing the state's dtype."""
    prob = dj.ODEProblem(lambda u, p, t: u.astype(jnp.float64), jnp.ones(2, F32), (0.0, 1.0))
    with pytest.raises(TypeError, match="f must return the dtype of u0"):
        dj.solve(prob)
