"""Our side of every case, by the public interface alone."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import diffjax as dj
from benchmarks.jaxrun import Solve


def solve_function(
    field: Callable[..., Any],
    tspan: tuple[float, float],
    saveat: Any,
    max_steps: int = 4096,
    alg: dj.Algorithm | None = None,
    atol_scale: float = 1.0,
) -> Solve:
    """A `Solve`, with Tsit5 by default; `max_steps` bounds the tape when it is differentiated.

    The absolute tolerance is `atol_scale` times the relative one.
    """
    method = dj.Tsit5() if alg is None else alg

    def solve(u0: Any, p: Any, tol: Any) -> Any:
        problem = dj.ODEProblem(field, u0=jnp.asarray(u0), tspan=tspan, p=p)
        solution = dj.solve(
            problem, method, saveat=saveat, rtol=tol, atol=atol_scale * tol, max_steps=max_steps
        )
        return solution.u, solution.retcode == dj.ReturnCode.success

    return solve


def dense_solution(
    field: Callable[..., Any], u0: Any, tspan: tuple[float, float], tol: float, max_steps: int
) -> Callable[[Any], Any]:
    """`solution(p)`: the whole solution with its dense output."""

    def solution(p: Any) -> Any:
        problem = dj.ODEProblem(field, u0=jnp.asarray(u0), tspan=tspan, p=p)
        return dj.solve(problem, dj.Tsit5(), dense=True, rtol=tol, atol=tol, max_steps=max_steps)

    return solution
