"""Stiff systems: Robertson's reactions, for one, for 1,000 lanes and its gradient; van der Pol."""

from types import ModuleType
from typing import Any

import numpy as np

import diffjax as dj
from benchmarks import ours
from benchmarks.case import Case, Maker, Peer
from benchmarks.jaxrun import Solve, forward, gradient, jit_maker, over_lanes
from benchmarks.peers import diffrax_peer, scipy_peer
from benchmarks.problems import robertson, vanderpol
from benchmarks.problems.errors import first_step, relative_error

MAX_STEPS = 256
"""Bounds our tape: some 140 steps are tried at the nominal tolerance."""

PEER_MAX_STEPS = 1024
"""Bounds Diffrax's loop, which needs a tighter tolerance and so more steps for the same error."""

# Its solvers for stiff systems; `Chord` factorises once a step, `Newton` in
# every iteration. Both take the controller's tolerances, as its documentation advises.
METHODS = {
    "Kvaerno5, Chord": {"solver": "Kvaerno5", "root_finder": "Chord"},
    "Kvaerno5, Newton": {"solver": "Kvaerno5", "root_finder": "Newton"},
    "Kvaerno4, Chord": {"solver": "Kvaerno4", "root_finder": "Chord"},
}
# Backwards through `Kvaerno5` with `Chord` its gradient is NaN here, with any number of steps.
DIFFERENTIABLE = ("Kvaerno5, Newton", "Kvaerno4, Chord")
CONTROLLERS = ("I", "PI(0.3,0.4)")
# Where a sweep meets a tolerance that a contender gets stuck at, it must end.
FORWARD = {"adjoint": "forward", "max_steps": 20_000}
REVERSE = {
    "checkpoints=max_steps": {
        "adjoint": "checkpoint",
        "max_steps": PEER_MAX_STEPS,
        "checkpoints": PEER_MAX_STEPS,
    },
    "checkpoints=default": {"adjoint": "checkpoint", "max_steps": PEER_MAX_STEPS},
}


def _first_dt(problem: ModuleType) -> float:
    """The step both sides start with."""
    return first_step(
        lambda u: np.array(problem.rates(u, problem.P, 0.0)), problem.U0, problem.TOL, order=5
    )


def _atol_scale(problem: ModuleType) -> float:
    return getattr(problem, "ATOL_SCALE", 1.0)


def _ours(problem: ModuleType, max_steps: int = 20_000) -> Solve:
    return ours.solve_function(
        problem.field, problem.TSPAN, None, max_steps, dj.Rodas5P(), _atol_scale(problem)
    )


def _diffrax(problem: ModuleType, settings: diffrax_peer.Settings) -> Solve:
    return diffrax_peer.solve_function(
        problem.field, problem.TSPAN, None, settings, _atol_scale(problem)
    )


def _peers(
    problem: ModuleType, make: Any, settings: dict[str, dict[str, Any]], wanted: float
) -> tuple[Peer, Peer]:
    """Diffrax in the best of `settings` and with its own root finder; `make(solve)` is a maker."""
    best = diffrax_peer.best_settings(_first_dt(problem), settings, CONTROLLERS)
    default = diffrax_peer.Settings(solver="Kvaerno5", max_steps=4096)
    return (
        Peer(
            "Diffrax",
            {name: make(_diffrax(problem, setting)) for name, setting in best.items()},
            wanted=wanted,
            packages=diffrax_peer.PACKAGES,
        ),
        Peer(
            "Diffrax default",
            {"Kvaerno5": make(_diffrax(problem, default))},
            packages=diffrax_peer.PACKAGES,
        ),
    )


def _scipy(problem: ModuleType, wanted: dict[str, float | None]) -> tuple[Peer, ...]:
    """SciPy's compiled LSODA and its Radau, final state only."""

    def maker(method: str) -> Maker:
        end = np.array(problem.TSPAN[1:])
        return scipy_peer.solve_maker(
            problem.rates, problem.U0, end, problem.P, method, problem.TSPAN, _atol_scale(problem)
        )

    return tuple(Peer(f"SciPy {m}", {"": maker(m)}, wanted=ratio) for m, ratio in wanted.items())


def _forward() -> dict[str, dict[str, Any]]:
    return {name: {**method, **FORWARD} for name, method in METHODS.items()}


def rober_one() -> Case:
    def make(solve: Solve) -> Maker:
        return jit_maker(forward(solve), (robertson.P, robertson.U0))

    peers = (
        *_peers(robertson, make, _forward(), wanted=5.0),
        *_scipy(robertson, {"LSODA": None, "Radau": None}),
    )
    error = relative_error(robertson.reference)
    return Case("rober_one", robertson.TOL, make(_ours(robertson)), peers, error)


def rober_vmap() -> Case:
    def make(solve: Solve) -> Maker:
        lanes = over_lanes(forward(solve))
        return jit_maker(lanes, (robertson.lane_parameters(), robertson.U0))

    peers = _peers(robertson, make, _forward(), wanted=15.0)
    error = relative_error(lambda: robertson.reference(robertson.LANES))
    return Case("rober_vmap", robertson.TOL, make(_ours(robertson)), peers, error)


def rober_grad() -> Case:
    def make(solve: Solve) -> Maker:
        return jit_maker(gradient(solve, robertson.loss), (robertson.P, robertson.U0))

    settings = {
        f"{method}, {adjoint}": {**METHODS[method], **REVERSE[adjoint]}
        for method in DIFFERENTIABLE
        for adjoint in REVERSE
    }
    peers = _peers(robertson, make, settings, wanted=5.0)
    error = relative_error(robertson.reference_gradient)
    return Case("rober_grad", robertson.TOL, make(_ours(robertson, MAX_STEPS)), peers, error)


def vdpol() -> Case:
    def make(solve: Solve) -> Maker:
        return jit_maker(forward(solve), (vanderpol.P, vanderpol.U0))

    peers = (
        *_peers(vanderpol, make, _forward(), wanted=10.0),
        *_scipy(vanderpol, {"LSODA": 25.0, "Radau": None}),
    )
    error = relative_error(vanderpol.reference)
    return Case("vdpol", vanderpol.TOL, make(_ours(vanderpol)), peers, error)
