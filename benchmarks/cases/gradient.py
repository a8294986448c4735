"""The gradient of a loss over 101 saves to four parameters, for one solve and for 1,000 by vmap."""

from typing import Any

from benchmarks import ours
from benchmarks.case import Case, Maker, Peer
from benchmarks.cases.forward import first_dt
from benchmarks.jaxrun import Function, gradient, jit_maker, over_lanes
from benchmarks.peers import diffrax_peer, torch_peer
from benchmarks.problems import lotka_volterra as lv
from benchmarks.problems.errors import relative_error

MAX_STEPS = 144
"""Bounds our tape and Diffrax's loop: some 110 steps are tried at the nominal tolerance, and the
sweep for equal error goes to a third of it."""

MAX_STEPS_LANES = 176
"""The same where the hardest of 1,000 lanes decides."""

CONTROLLERS = ("I", "PI(0.3,0.4)")


def _adjoints(max_steps: int) -> dict[str, dict[str, Any]]:
    checkpoint = {"adjoint": "checkpoint", "max_steps": max_steps}
    return {
        "checkpoints=default": checkpoint,
        "checkpoints=max_steps": checkpoint | {"checkpoints": max_steps},
        "DirectAdjoint": {"adjoint": "direct", "max_steps": max_steps},
        "BacksolveAdjoint": {"adjoint": "backsolve", "max_steps": max_steps},
    }


FORWARD = {"ForwardMode": {"adjoint": "forward", "max_steps": None}}


def _gradient_maker(function: Function, lanes: bool) -> Maker:
    if lanes:
        return jit_maker(over_lanes(function), (lv.lane_parameters(), lv.U0))
    return jit_maker(function, (lv.P, lv.U0))


def _diffrax(lanes: bool, wanted: float) -> tuple[Peer, ...]:
    """Its reverse modes, forward mode (four parameters are few), and its default."""
    adjoints = _adjoints(MAX_STEPS_LANES if lanes else MAX_STEPS)

    def maker(settings: diffrax_peer.Settings) -> Maker:
        solve = diffrax_peer.solve_function(lv.field, lv.TSPAN, lv.SAVES, settings)
        forward_mode = settings.adjoint == "forward"
        return _gradient_maker(gradient(solve, lv.loss, forward_mode), lanes)

    def variants(adjoints: dict[str, dict[str, Any]]) -> dict[str, Maker]:
        settings = diffrax_peer.best_settings(first_dt(), adjoints, CONTROLLERS)
        return {name: maker(setting) for name, setting in settings.items()}

    packages = diffrax_peer.PACKAGES
    return (
        Peer("Diffrax", variants(adjoints), wanted=wanted, packages=packages),
        Peer("Diffrax jacfwd", variants(FORWARD), wanted=wanted, packages=packages),
        Peer("Diffrax default", {"": maker(diffrax_peer.Settings())}, packages=packages),
    )


def _ours(lanes: bool) -> Maker:
    max_steps = MAX_STEPS_LANES if lanes else MAX_STEPS
    solve = ours.solve_function(lv.field, lv.TSPAN, lv.SPACING, max_steps=max_steps)
    return _gradient_maker(gradient(solve, lv.loss), lanes)


def lv_grad() -> Case:
    torch = {
        name: torch_peer.gradient_maker(lv.field, lv.U0, lv.SAVES, (lv.P,), lv.loss, adjoint)
        for name, adjoint in (("through the solver", False), ("odeint_adjoint", True))
    }
    peers = (
        *_diffrax(lanes=False, wanted=3.0),
        Peer("torchdiffeq", torch, packages=torch_peer.PACKAGES),
    )
    error = relative_error(lv.reference_gradient)
    return Case("lv_grad", lv.TOL, _ours(lanes=False), peers, error)


def lv_grad_vmap() -> Case:
    peers = _diffrax(lanes=True, wanted=2.5)
    error = relative_error(lambda: lv.reference_gradient(lv.LANES))
    return Case("lv_grad_vmap", lv.TOL, _ours(lanes=True), peers, error)
