"""Lotka-Volterra forwards: one trajectory with saves, its final state, and 1,000 lanes of vmap."""

from typing import Any

import numpy as np

from benchmarks import ours
from benchmarks.case import Case, Maker, Peer
from benchmarks.jaxrun import forward, jit_maker, over_lanes
from benchmarks.peers import diffrax_peer, jax_odeint, native, scipy_peer, torch_peer
from benchmarks.problems import lotka_volterra as lv
from benchmarks.problems.errors import first_step, relative_error

# Without a derivative only the kind of loop differs among Diffrax's adjoints: an unbounded one for
# forward mode, a checkpointed one otherwise.
ADJOINTS: dict[str, dict[str, Any]] = {
    "ForwardMode, max_steps=None": {"adjoint": "forward", "max_steps": None},
    "RecursiveCheckpointAdjoint, max_steps=256": {"adjoint": "checkpoint", "max_steps": 256},
}


def first_dt() -> float:
    """The step both sides start with."""
    return first_step(lambda u: lv.field(u, lv.P, 0.0, np), lv.U0, lv.TOL, order=5)


def _forward_maker(solve: Any, lanes: bool) -> Maker:
    if lanes:
        return jit_maker(over_lanes(forward(solve)), (lv.lane_parameters(), lv.U0))
    return jit_maker(forward(solve), (lv.P, lv.U0))


def _diffrax(saves: np.ndarray | None, lanes: bool, wanted: float) -> tuple[Peer, Peer]:
    def maker(settings: diffrax_peer.Settings) -> Maker:
        solve = diffrax_peer.solve_function(lv.field, lv.TSPAN, saves, settings)
        return _forward_maker(solve, lanes)

    settings = diffrax_peer.best_settings(first_dt(), ADJOINTS)
    best = {name: maker(setting) for name, setting in settings.items()}
    default = {"": maker(diffrax_peer.Settings())}
    return (
        Peer("Diffrax", best, wanted=wanted, packages=diffrax_peer.PACKAGES),
        Peer("Diffrax default", default, packages=diffrax_peer.PACKAGES),
    )


def _ours(saveat: float | None, lanes: bool) -> Maker:
    return _forward_maker(ours.solve_function(lv.field, lv.TSPAN, saveat), lanes)


def _native(lanes: bool, wanted: float) -> Peer:
    p = lv.lane_parameters() if lanes else lv.P
    maker = native.solve_maker(p, lv.U0, lv.SAVES)
    return Peer("native C", {"one core": maker}, wanted=wanted, available=native.INSTALLED)


def _list_field(u: Any, p: Any, t: Any) -> list[float]:
    (x, y), (a, b, d, g) = u, p
    return [a * x - b * x * y, -d * y + g * x * y]


def lv_one() -> Case:
    data = (lv.U0, lv.SAVES, lv.P)
    odeint = jax_odeint.solve_maker(lv.field, *data)
    torch = torch_peer.solve_maker(lv.field, *data)
    scipy = {
        method: scipy_peer.solve_maker(_list_field, *data, method) for method in ("RK45", "DOP853")
    }
    peers = (
        *_diffrax(lv.SAVES, lanes=False, wanted=2.5),
        Peer(
            "jax odeint",
            {"": odeint},
            packages=jax_odeint.PACKAGES,
            sweep_points=jax_odeint.SWEEP_POINTS,
        ),
        Peer("torchdiffeq", {"dopri5": torch}, packages=torch_peer.PACKAGES),
        *(Peer(f"SciPy {method}", {"": maker}) for method, maker in scipy.items()),
        _native(lanes=False, wanted=1 / 5),
    )
    error = relative_error(lv.reference)
    return Case("lv_one", lv.TOL, _ours(lv.SPACING, lanes=False), peers, error)


def lv_final() -> Case:
    peers = _diffrax(None, lanes=False, wanted=1.4)
    error = relative_error(lambda: lv.reference()[-1:])
    return Case("lv_final", lv.TOL, _ours(None, lanes=False), peers, error)


def lv_vmap() -> Case:
    peers = (*_diffrax(lv.SAVES, lanes=True, wanted=5.0), _native(lanes=True, wanted=1.5))
    error = relative_error(lambda: lv.reference(lv.LANES))
    return Case("lv_vmap", lv.TOL, _ours(lv.SPACING, lanes=True), peers, error)
