"""The arguments of `solve`, parted into what is traced and what is static."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.core import Tracer
from jaxtyping import PyTree

from .algorithms.base import Algorithm
from .events.callbacks import Callback
from .problems.base import Kind, Problem, remake
from .problems.jump import JumpProblem
from .problems.parts import UserFunction, is_array
from .solution import concrete
from .stepping.controllers import Controller


class Arguments(eqx.Module):
    """The arguments of `solve` that hold arrays; Python numbers among them are static."""

    problem: Problem
    saveat: Any
    tstops: Any
    save_fn: Any
    rtol: PyTree
    atol: PyTree
    dt: Any
    dtmin: Any
    dtmax: Any
    resume: PyTree
    key: Any
    path: Any
    negated: Any
    callbacks: tuple[Callback, ...]
    jumps: JumpProblem | None


class Options(NamedTuple):
    """The arguments of `solve` that are static; hashable.

    - `saves_move`: there may be derivatives with respect to times to save at.
    - `saves_end`: the last of the solve's own is the end of the span, for certain.
    - `steps_on_saves`: fixed steps end on save times that are not known yet.
    """

    alg: Algorithm
    adjoint: Any
    controller: Controller | None
    max_steps: int
    steps: int | None
    fixed: bool
    initialize: str | None
    save_every: bool
    saves_move: bool
    saves_end: bool
    steps_on_saves: bool
    save_idxs: Any
    dense: bool
    estimates: bool
    progress: bool
    throw: bool
    max_events: int


def value_of(argument: Any, *inputs: Any) -> Any:
    """An argument that may be given as a function of others."""
    return argument(*inputs) if callable(argument) and not is_array(argument) else argument


def held_times(times: Any) -> Any:
    """Times as they are prepared: None, a static spacing, a function, or an array."""
    if times is None or (hasattr(times, "__len__") and len(times) == 0):
        return None
    if callable(times) and not is_array(times):
        return UserFunction(times)
    if isinstance(times, int | float):
        return float(times)
    return jnp.asarray(times)


def saves_move(saveats: Sequence[Any], prob: Problem) -> bool:
    """Whether derivatives may be taken with respect to times to save at."""
    static = not callable(prob.tspan) and all(isinstance(t, float) for t in prob.tspan)
    given = jtu.tree_leaves(list(saveats))
    return not static or any(isinstance(x, Tracer) or callable(x) for x in given)


def saves_end(saveat: Any, prob: Problem) -> bool:
    """Whether the last time to save at is the end of the span, for certain."""
    if saveat is None or saves_move([saveat], prob):
        return False
    times = concrete(saveat)
    return times is not None and (times.ndim == 0 or float(times[-1]) == prob.tspan[1])


def resumed(prob: Kind, resume: PyTree) -> Kind:
    """The problem from where an earlier solve ended."""
    tspan = prob.tspan
    if callable(tspan):
        return remake(prob, u0=resume["u"], tspan=lambda p: (resume["t"], value_of(tspan, p)[1]))
    return remake(prob, u0=resume["u"], tspan=(resume["t"], tspan[1]))
