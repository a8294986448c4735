"""Each adjoint against Diffrax's nearest: the gradient of `lv_grad`, at equal gradient error."""

from collections.abc import Callable
from typing import Any

import diffjax as dj
from benchmarks import ours
from benchmarks.case import Case, Maker, Peer
from benchmarks.cases.forward import first_dt
from benchmarks.cases.gradient import CONTROLLERS, MAX_STEPS
from benchmarks.jaxrun import gradient, jit_maker
from benchmarks.peers import diffrax_peer
from benchmarks.problems import lotka_volterra as lv
from benchmarks.problems.errors import relative_error

CHECKPOINTS = 12
"""The square root of `MAX_STEPS`."""

TAPED = {"adjoint": "checkpoint", "max_steps": MAX_STEPS, "checkpoints": MAX_STEPS}
CHECKPOINTED = {"adjoint": "checkpoint", "max_steps": MAX_STEPS, "checkpoints": CHECKPOINTS}
BACKWARD = {"adjoint": "backsolve", "max_steps": MAX_STEPS}
FORWARD = {"adjoint": "forward", "max_steps": None}

# Ours, by name, and what of Diffrax's does most nearly the same.
NEAREST: dict[str, tuple[dj.Adjoint, dict[str, Any]]] = {
    "discrete": (dj.DiscreteAdjoint(), TAPED),
    "discrete_checkpoints": (dj.DiscreteAdjoint(checkpoints=CHECKPOINTS), CHECKPOINTED),
    "backsolve": (dj.BacksolveAdjoint(), BACKWARD),
    "interpolating": (dj.InterpolatingAdjoint(), TAPED),
    "gauss": (dj.GaussAdjoint(), TAPED),
    "reversible": (dj.ReversibleAdjoint(checkpoints=CHECKPOINTS), CHECKPOINTED),
    "forward": (dj.ForwardMode(), FORWARD),
}


def _diffrax(changes: dict[str, Any]) -> Peer:
    def maker(settings: diffrax_peer.Settings) -> Maker:
        solve = diffrax_peer.solve_function(lv.field, lv.TSPAN, lv.SAVES, settings)
        forward_mode = settings.adjoint == "forward"
        return jit_maker(gradient(solve, lv.loss, forward_mode), (lv.P, lv.U0))

    settings = diffrax_peer.best_settings(first_dt(), {changes["adjoint"]: changes}, CONTROLLERS)
    makers = {name: maker(setting) for name, setting in settings.items()}
    return Peer("Diffrax", makers, packages=diffrax_peer.PACKAGES)


def _case(name: str) -> Case:
    adjoint, nearest = NEAREST[name]
    solve = ours.solve_function(
        lv.field, lv.TSPAN, lv.SPACING, max_steps=MAX_STEPS, adjoint=adjoint
    )
    maker = jit_maker(gradient(solve, lv.loss), (lv.P, lv.U0))
    error = relative_error(lv.reference_gradient)
    return Case(f"adjoint_{name}", lv.TOL, maker, (_diffrax(nearest),), error)


def builders() -> dict[str, Callable[[], Case]]:
    """What builds the case of each adjoint, by the case's name."""
    return {f"adjoint_{name}": lambda name=name: _case(name) for name in NEAREST}
