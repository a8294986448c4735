"""torchdiffeq with `dopri5`, its default method, eager as its users run it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.case import Maker
from benchmarks.timing import Call

PACKAGES = ("torch", "torchdiffeq")


def _torch() -> Any:
    import torch

    # Tensors this small lose time when shared among threads.
    torch.set_num_threads(1)
    return torch


def solve_maker(
    field: Callable[..., Any], u0: np.ndarray, saves: np.ndarray, p: np.ndarray
) -> Maker:
    """The states at the saves; `field(u, p, t, xp)` gets torch as its array package."""

    def make() -> Callable[[float], Call]:
        torch = _torch()
        from torchdiffeq import odeint

        start, times, parameters = (torch.as_tensor(x) for x in (u0, saves, p))

        def at(tol: float) -> Call:
            def call() -> np.ndarray:
                with torch.no_grad():
                    u = odeint(
                        lambda t, u: field(u, parameters, t, torch),
                        start,
                        times,
                        rtol=tol,
                        atol=tol,
                    )
                return u.numpy()

            return call

        return at

    return make


def gradient_maker(
    field: Callable[..., Any],
    u0: np.ndarray,
    saves: np.ndarray,
    p: tuple[np.ndarray, ...],
    loss: Callable[[Any], Any],
    adjoint: bool,
) -> Maker:
    """d(loss)/d(p) as one flat vector, through the solver's operations or by its adjoint.

    `field(u, p, t, xp)` gets the tuple `p`, or its only member.
    """

    def make() -> Callable[[float], Call]:
        torch = _torch()
        import torchdiffeq

        start, times = torch.as_tensor(u0), torch.as_tensor(saves)
        parameters = tuple(torch.tensor(x, requires_grad=True) for x in p)
        argument = parameters[0] if len(parameters) == 1 else parameters
        solve = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
        extra = {"adjoint_params": parameters} if adjoint else {}

        def right_side(t: Any, u: Any) -> Any:
            return field(u, argument, t, torch)

        def at(tol: float) -> Call:
            def call() -> np.ndarray:
                u = solve(right_side, start, times, rtol=tol, atol=tol, **extra)
                gradients = torch.autograd.grad(loss(u), parameters)
                return np.concatenate([g.numpy().ravel() for g in gradients])

            return call

        return at

    return make
