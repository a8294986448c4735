"""A discretised equation, forwards to its final state and the gradient by its two parameters."""

import numpy as np

from benchmarks import ours
from benchmarks.case import Case, Maker, Peer
from benchmarks.jaxrun import forward, gradient, jit_maker
from benchmarks.peers import diffrax_peer
from benchmarks.problems import fisher
from benchmarks.problems.errors import first_step, relative_error

MAX_STEPS = 256
"""Bounds our tape and Diffrax's loop: some 220 steps are tried at every tolerance of the sweep,
since it is stability that bounds them."""


def _maker(solve: ours.Solve, is_gradient: bool) -> Maker:
    function = gradient(solve, fisher.loss) if is_gradient else forward(solve)
    return jit_maker(function, (fisher.P, fisher.U0))


def _case(name: str, is_gradient: bool, wanted: float) -> Case:
    dt = first_step(lambda u: fisher.field(u, fisher.P, 0.0, np), fisher.U0, fisher.TOL, order=5)
    adjoints = {"checkpoints=default": {"adjoint": "checkpoint", "max_steps": MAX_STEPS}}
    if is_gradient:
        more = {"adjoint": "checkpoint", "max_steps": MAX_STEPS, "checkpoints": MAX_STEPS}
        adjoints["checkpoints=max_steps"] = more

    def peer(settings: diffrax_peer.Settings) -> Maker:
        solve = diffrax_peer.solve_function(fisher.field, fisher.TSPAN, None, settings)
        return _maker(solve, is_gradient)

    settings = diffrax_peer.best_settings(dt, adjoints, ("I", "PI(0.3,0.4)"))
    variants = {name: peer(setting) for name, setting in settings.items()}
    solve = ours.solve_function(fisher.field, fisher.TSPAN, None, max_steps=MAX_STEPS)
    exact = fisher.reference_gradient if is_gradient else fisher.reference
    peers = (Peer("Diffrax", variants, wanted=wanted, packages=diffrax_peer.PACKAGES),)
    return Case(name, fisher.TOL, _maker(solve, is_gradient), peers, relative_error(exact))


def fisher_one() -> Case:
    return _case("fisher_one", is_gradient=False, wanted=1.4)


def fisher_grad() -> Case:
    return _case("fisher_grad", is_gradient=True, wanted=3.0)
