"""Diffrax, in the settings its documentation advises, and in its default.

Best: an explicit `dt0`, `throw=False`, a tuned `max_steps`, and whichever step size control and
adjoint is fastest. The coefficients tried are those of the docstring of `PIDController`: plain I
(its default, for smooth problems) and two PI settings. Default: `dt0=None`, every other argument
left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.jaxrun import Solve

PACKAGES = ("diffrax",)

CONTROLLERS: Mapping[str, dict[str, float]] = {
    "I": {},
    "PI(0.4,1)": {"pcoeff": 0.4, "icoeff": 1.0},
    "PI(0.3,0.4)": {"pcoeff": 0.3, "icoeff": 0.4},
}


@dataclass(frozen=True)
class Settings:
    """What a user of Diffrax would tune; the defaults here are Diffrax's."""

    controller: str = "I"
    solver: str = "Tsit5"
    root_finder: str | None = None
    dt0: float | None = None
    max_steps: int | None = 4096
    adjoint: str = "default"
    checkpoints: int | None = None
    throw: bool = True


def best_settings(
    dt0: float,
    adjoints: Mapping[str, dict[str, Any]],
    controllers: tuple[str, ...] = tuple(CONTROLLERS),
) -> dict[str, Settings]:
    """The product of controllers and adjoints, named, all with the advice above."""
    return {
        f"{adjoint}, {controller}": Settings(controller, dt0=dt0, throw=False, **changes)
        for adjoint, changes in adjoints.items()
        for controller in controllers
    }


def _adjoint(settings: Settings) -> dict[str, Any]:
    import diffrax

    if settings.adjoint == "default":
        return {}
    if settings.adjoint == "checkpoint":
        return {"adjoint": diffrax.RecursiveCheckpointAdjoint(settings.checkpoints)}
    kinds = {
        "direct": diffrax.DirectAdjoint,
        "backsolve": diffrax.BacksolveAdjoint,
        "forward": diffrax.ForwardMode,
    }
    return {"adjoint": kinds[settings.adjoint]()}


def _solver(settings: Settings) -> Any:
    """The solver; an implicit one by default has a root finder that gives up too early in 0.7.2."""
    import diffrax

    kind = getattr(diffrax, settings.solver)
    if settings.root_finder is None:
        return kind()
    import optimistix

    finder = getattr(optimistix, settings.root_finder)
    return kind(root_finder=diffrax.with_stepsize_controller_tols(finder)())


def solve_function(
    field: Callable[..., Any],
    tspan: tuple[float, float],
    saves: np.ndarray | None,
    settings: Settings,
    atol_scale: float = 1.0,
) -> Solve:
    """A `Solve`; without `saves`, the final state on a leading axis of one.

    The absolute tolerance is `atol_scale` times the relative one.
    """

    def solve(u0: Any, p: Any, tol: Any) -> Any:
        import diffrax

        start = jnp.asarray(u0)
        # Times take the state's precision: Python floats would make them float64 here.
        t0, t1 = (jnp.asarray(t, start.dtype) for t in tspan)
        dt0 = None if settings.dt0 is None else jnp.asarray(settings.dt0, start.dtype)
        at_end = diffrax.SaveAt(t1=True)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, u, p: field(u, p, t)),
            _solver(settings),
            t0,
            t1,
            dt0,
            start,
            p,
            saveat=at_end if saves is None else diffrax.SaveAt(ts=jnp.asarray(saves, start.dtype)),
            stepsize_controller=diffrax.PIDController(
                rtol=tol, atol=atol_scale * tol, **CONTROLLERS[settings.controller]
            ),
            max_steps=settings.max_steps,
            throw=settings.throw,
            **_adjoint(settings),
        )
        return solution.ys, solution.result == diffrax.RESULTS.successful

    return solve


def dense_solution(
    field: Callable[..., Any], u0: Any, tspan: tuple[float, float], tol: float, max_steps: int
) -> Callable[[Any], Any]:
    """`solution(p)`: the whole solution with its dense output."""

    def solution(p: Any) -> Any:
        import diffrax

        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, u, p: field(u, p, t)),
            diffrax.Tsit5(),
            *tspan,
            None,
            jnp.asarray(u0),
            p,
            saveat=diffrax.SaveAt(dense=True),
            stepsize_controller=diffrax.PIDController(rtol=tol, atol=tol),
            max_steps=max_steps,
            throw=False,
        )

    return solution
