"""Accuracy for work, against SciPy's method of the same order; and absolute bounds on work.

A solver can be right and wasteful: a forgotten first-same-as-last evaluation, a controller that
creeps, an initial step that is a constant. Accuracy tests never see that; counts do.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import diffjax as dj
from tests.methods import BY_NAME, EVERY_ADAPTIVE_METHOD, EVERY_METHOD, Method
from tests.problems import (
    ARENSTORF,
    FITZHUGH_NAGUMO,
    LOTKA_VOLTERRA,
    NON_STIFF,
    SPIRAL,
    VANDERPOL,
    Case,
)

TOLERANCES = (1e-3, 1e-6, 1e-9)
PAIRS = [("BS3", "RK23"), ("DP5", "RK45"), ("Tsit5", "RK45"), ("DP8", "DOP853")]


def _numpy_fields() -> dict[str, Callable[[float, np.ndarray], Any]]:
    """The fields once more in numpy, so that SciPy shares nothing with what it is to judge."""
    a, b, c, d = LOTKA_VOLTERRA.p
    fa, fb, tauinv, current = FITZHUGH_NAGUMO.p
    mu, nu = ARENSTORF.p, VANDERPOL.p
    matrix = SPIRAL.p

    def arenstorf(t: float, u: np.ndarray) -> tuple:
        x, y, vx, vy = u
        d1 = ((x + mu) ** 2 + y**2) ** 1.5
        d2 = ((x - 1 + mu) ** 2 + y**2) ** 1.5
        ax = x + 2 * vy - (1 - mu) * (x + mu) / d1 - mu * (x - 1 + mu) / d2
        return vx, vy, ax, y - 2 * vx - (1 - mu) * y / d1 - mu * y / d2

    return {
        LOTKA_VOLTERRA.name: lambda t, u: (
            a * u[0] - b * u[0] * u[1],
            -c * u[1] + d * u[0] * u[1],
        ),
        FITZHUGH_NAGUMO.name: lambda t, u: (
            u[0] - u[0] ** 3 / 3 - u[1] + current,
            tauinv * (u[0] + fa - fb * u[1]),
        ),
        ARENSTORF.name: arenstorf,
        VANDERPOL.name: lambda t, u: (u[1], nu * (1 - u[0] ** 2) * u[1] - u[0]),
        SPIRAL.name: lambda t, u: matrix.T @ u**3,
    }


_FIELDS = _numpy_fields()


@cache
def peer(case: Case, name: str, tolerance: float) -> tuple[float, int]:
    """SciPy's error at the end of the span and its number of evaluations."""
    sol = solve_ivp(
        _FIELDS[case.name], case.tspan, case.u0, method=name, rtol=tolerance, atol=tolerance
    )
    assert sol.success
    assert case.end is not None
    return float(np.linalg.norm(sol.y[:, -1] - case.end)), sol.nfev


def ours(case: Case, alg: dj.Algorithm, tolerance: float) -> tuple[float, int]:
    sol = dj.solve(case.ode(), alg, rtol=tolerance, atol=tolerance, max_steps=100_000)
    assert sol.retcode is dj.ReturnCode.success
    assert case.end is not None
    return float(np.linalg.norm(np.asarray(sol.u_end) - case.end)), int(sol.stats.nf)


@pytest.mark.parametrize("case", NON_STIFF, ids=lambda c: c.name)
@pytest.mark.parametrize(("name", "peer_name"), PAIRS)
def test_against_scipy(name: str, peer_name: str, case: Case) -> None:
    """No less accurate and no more expensive than an independent code at the same tolerance."""
    alg = BY_NAME[name].make()
    for tolerance in TOLERANCES:
        error, nf = ours(case, alg, tolerance)
        peer_error, peer_nf = peer(case, peer_name, tolerance)
        assert error <= 3 * peer_error, (tolerance, error, peer_error)
        assert nf <= 1.5 * peer_nf, (tolerance, nf, peer_nf)


@EVERY_METHOD
def test_evaluations_are_counted_as_the_method_says(method: Method) -> None:
    """Guards against a lost first-same-as-last stage: fixed steps cost `evaluations` each."""
    # Extra stages of the extension are paid for once in a step that something is saved in.
    sol = dj.solve(
        FITZHUGH_NAGUMO.ode(), method.make(), steps=10, saveat=np.array([0.23, 0.24, 0.25, 0.95])
    )
    # One more for the derivative at t0, which a save there needs for its own derivative.
    work = 10 * method.evaluations + method.fsal + 2 * method.extra
    assert work <= int(sol.stats.nf) <= work + 1
    assert (int(sol.stats.naccept), int(sol.stats.nreject)) == (10, 0)


@EVERY_ADAPTIVE_METHOD
def test_evaluations_of_adaptive_steps(method: Method) -> None:
    """Every attempt costs the same, accepted or not; two evaluations find the first step."""
    sol = dj.solve(SPIRAL.ode(), method.make(), rtol=1e-4, atol=1e-4)
    attempts = int(sol.stats.naccept) + int(sol.stats.nreject)
    assert int(sol.stats.nf) == 2 + method.fsal + attempts * method.evaluations


def test_evaluations_from_a_given_first_step() -> None:
    """It costs none, and nothing that is saved only at the end does."""
    for name, options in (("Tsit5", {"dt": 0.01}), ("Vern6", {"steps": 10})):
        method = BY_NAME[name]
        sol = dj.solve(SPIRAL.ode(), method.make(), rtol=1e-4, atol=1e-4, **options)
        attempts = int(sol.stats.naccept) + int(sol.stats.nreject)
        assert int(sol.stats.nf) == method.fsal + attempts * method.evaluations


# Accepted steps and evaluations, at most 1.5 times those of SciPy's method of the nearest order
# (RK45 620 evaluations and DOP853 1202 on Lotka-Volterra, say). Counts that grow past them mean a
# worse controller, initial step or stage reuse.
@pytest.mark.parametrize(
    ("name", "case", "tolerance", "most_steps", "most_nf"),
    [
        ("Tsit5", LOTKA_VOLTERRA, 1e-6, 120, 750),
        ("Vern7", LOTKA_VOLTERRA, 1e-9, 160, 1700),
        ("Vern9", ARENSTORF, 1e-9, 160, 3300),
        ("BS5", VANDERPOL, 1e-6, 50, 450),
        ("Vern6", SPIRAL, 1e-6, 45, 420),
        ("SSPRK43", FITZHUGH_NAGUMO, 1e-6, 25, 110),
    ],
)
def test_work_is_bounded(
    name: str, case: Case, tolerance: float, most_steps: int, most_nf: int
) -> None:
    sol = dj.solve(case.ode(), BY_NAME[name].make(), rtol=tolerance, atol=tolerance)
    assert int(sol.stats.naccept) <= most_steps
    assert int(sol.stats.nf) <= most_nf


def test_a_smooth_problem_rejects_hardly_any_step() -> None:
    """Guards against a controller that proposes steps it then rejects."""
    for tolerance in TOLERANCES:
        sol = dj.solve(LOTKA_VOLTERRA.ode(), dj.Tsit5(), rtol=tolerance, atol=tolerance)
        assert int(sol.stats.nreject) <= 0.25 * int(sol.stats.naccept)


def test_the_first_step_fits_the_problem() -> None:
    """Guards against an initial step that is a constant: fast and slow fields take alike steps."""
    counts = []
    for rate in (1e-4, 1.0, 1e4):
        prob = dj.ODEProblem(lambda u, p, t: -p * u, jnp.ones(2), (0.0, 5.0 / rate), rate)
        sol = dj.solve(prob, dj.Tsit5(), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(np.asarray(sol.u_end), np.exp(-5.0), rtol=1e-4)
        counts.append(int(sol.stats.naccept) + int(sol.stats.nreject))
    # The rule of HNW II.4 is not quite free of the unit of time.
    assert max(counts) <= 1.5 * min(counts)


@pytest.mark.parametrize(
    "controller", [dj.IController(), dj.PIController(), dj.PIDController(0.7, -0.23, 0.0)]
)
def test_controllers_meet_the_tolerance(controller: dj.Controller) -> None:
    """Each controller keeps the error near the tolerance without waste."""
    sol = dj.solve(VANDERPOL.ode(), dj.Tsit5(), rtol=1e-6, atol=1e-6, controller=controller)
    assert np.max(np.abs(np.asarray(sol.u_end) - VANDERPOL.end)) < 2e-5
    assert int(sol.stats.nf) <= 1.5 * peer(VANDERPOL, "RK45", 1e-6)[1]
