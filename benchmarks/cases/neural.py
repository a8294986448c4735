"""The gradient of a neural ODE's parameters over a batch of 128 trajectories, in float32.

`node_grad` vmaps one trajectory, each with its own steps and shared parameters; `node_grad_joint`
solves the batch as one system with common steps, which is all torchdiffeq can do.
"""

from typing import Any

import jax
import numpy as np

from benchmarks import ours
from benchmarks.case import Case, Maker, Peer
from benchmarks.jaxrun import Solve, checked, jit_maker
from benchmarks.peers import diffrax_peer, torch_peer
from benchmarks.problems import neural_ode as node
from benchmarks.problems.errors import first_step, relative_error

MAX_STEPS = 24
"""Bounds our tape and Diffrax's loop; the hardest trajectory tries some 17 steps."""

CONTROLLERS = ("I", "PI(0.3,0.4)")


def _adjoints() -> dict[str, dict[str, Any]]:
    checkpoint = {"adjoint": "checkpoint", "max_steps": MAX_STEPS}
    return {
        "checkpoints=default": checkpoint,
        "checkpoints=max_steps": checkpoint | {"checkpoints": MAX_STEPS},
        "DirectAdjoint": {"adjoint": "direct", "max_steps": MAX_STEPS},
        "BacksolveAdjoint": {"adjoint": "backsolve", "max_steps": MAX_STEPS},
    }


def _gradient_maker(solve: Solve, joint: bool) -> Maker:
    batched = solve
    if not joint:
        batched = jax.vmap(solve, in_axes=(0, None, None), out_axes=(1, 0))

    def function(inputs: Any, tol: Any) -> Any:
        p, u0, target = inputs

        def of(p: Any) -> jax.Array:
            u, succeeded = batched(u0, p, tol)
            return checked(node.loss(u, target), succeeded)

        return jax.grad(of)(p)

    return jit_maker(function, (node.parameters(), node.initial_states(), node.targets()))


def _first_dt() -> float:
    p = node.parameters()
    rhs = lambda u: node.field(u, p, 0.0, np)  # noqa: E731
    return first_step(rhs, node.initial_states(), node.TOL, order=5)


def _diffrax(joint: bool, wanted: float | None) -> tuple[Peer, Peer]:
    def maker(settings: diffrax_peer.Settings) -> Maker:
        solve = diffrax_peer.solve_function(node.field, node.TSPAN, node.SAVES, settings)
        return _gradient_maker(solve, joint)

    settings = diffrax_peer.best_settings(_first_dt(), _adjoints(), CONTROLLERS)
    best = {name: maker(setting) for name, setting in settings.items()}
    packages = diffrax_peer.PACKAGES
    return (
        Peer("Diffrax", best, wanted=wanted, packages=packages),
        Peer("Diffrax default", {"": maker(diffrax_peer.Settings())}, packages=packages),
    )


def _torch() -> Peer:
    target = node.targets()

    def loss(u: Any) -> Any:
        return node.loss(u, u.new_tensor(target))

    variants = {
        name: torch_peer.gradient_maker(
            node.field,
            node.initial_states(),
            node.SAVES,
            node.parameters(),
            loss,
            adjoint,
        )
        for name, adjoint in (("through the solver", False), ("odeint_adjoint", True))
    }
    return Peer("torchdiffeq", variants, packages=torch_peer.PACKAGES)


def _case(name: str, joint: bool, wanted: float | None) -> Case:
    solve = ours.solve_function(node.field, node.TSPAN, node.SAVES, max_steps=MAX_STEPS)
    return Case(
        name,
        node.TOL,
        _gradient_maker(solve, joint),
        (*_diffrax(joint, wanted), _torch()),
        relative_error(node.reference_gradient),
    )


def node_grad() -> Case:
    return _case("node_grad", joint=False, wanted=2.0)


def node_grad_joint() -> Case:
    return _case("node_grad_joint", joint=True, wanted=None)
