"""What the arguments of `solve` say: defaults picked, mistakes named, arrays parted from others."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from . import checks
from .adjoints.auto import AutoAdjoint
from .adjoints.base import Adjoint
from .adjoints.discrete import DiscreteAdjoint
from .adjoints.steady_state import SteadyStateAdjoint
from .algorithms.base import Algorithm
from .arguments import Arguments, Options, held_times, resumed, saves_end, saves_move
from .defaults import default_algorithm, default_controller
from .events.callbacks import Callback
from .events.library import SavingCallback
from .noise.base import NoiseProcess
from .noise.random import key_words
from .problems.base import Problem, remake
from .problems.jump import JumpProblem
from .problems.parts import UserFunction
from .save_stops import stops_at_saves
from .stepping.controllers import Controller


class Given(NamedTuple):
    """The arguments of `solve` for one problem, as the user gives them."""

    u0: PyTree = None
    tspan: Any = None
    p: PyTree = None
    saveat: Any = None
    save_idxs: Any = None
    save_fn: Callable[[Any, Any, Any], PyTree] | None = None
    dense: bool = False
    estimates: bool = False
    rtol: PyTree = 1e-3
    atol: PyTree = 1e-6
    dt: float | Array | None = None
    steps: int | None = None
    adaptive: bool = True
    controller: Controller | None = None
    dtmin: float | Array | None = None
    dtmax: float | Array | None = None
    max_steps: int = 4096
    tstops: Any = ()
    callback: Callback | Sequence[Callback] | None = None
    max_events: int = 64
    initialize: Literal["brown", "collocation", "check"] | None = None
    adjoint: Adjoint | Literal["auto"] | None = None
    resume: PyTree = None
    progress: bool = False
    key: Array | None = None
    path: NoiseProcess | None = None
    antithetic: bool | Array = False
    throw: bool | None = None


class _Method(NamedTuple):
    """How a problem is solved: whether with fixed steps, and which adjoint it has by default."""

    alg: Algorithm
    adjoint: Adjoint
    default: Adjoint
    fixed: bool


class _Stops(NamedTuple):
    """What happens at given times: callbacks, those of them that save, times that steps end on, and
    whether fixed steps end on save times that are not known yet."""

    callbacks: tuple[Callback, ...]
    savers: list[SavingCallback]
    times: Any
    on_saves: bool


def judge(prob: Problem, alg: Algorithm | None, given: Given) -> tuple[Arguments, Options]:
    """Judge the arguments of `solve` and part them into arrays and static options.

    **Raises:** `ValueError`, `TypeError` for bad arguments.
    """
    checks.check_problem(prob)
    overrides = {k: v for k in ("u0", "tspan", "p") if (v := getattr(given, k)) is not None}
    prob = remake(prob, **overrides) if overrides else prob
    jumps = None
    if isinstance(prob, JumpProblem):
        checks.check_jumps(prob, given.key, dense=given.dense, resume=given.resume)
        jumps, prob = prob, prob.prob
    method = _method(prob, alg, given)
    prob = prob if given.resume is None else resumed(prob, given.resume)
    checks.check_saving(given.saveat, given.save_idxs, given.save_fn, prob)
    stops = _stops(prob, method, given)
    checks.check_initial_state(prob)
    checks.check_estimates(given.estimates, method.alg)
    how = checks.check_initialize(given.initialize, prob)
    wanted = given.key if jumps is None or prob.stochastic else None
    checks.check_noise(prob, method.alg, wanted, given.path, given.antithetic, method.fixed)
    if jumps is not None:
        checks.check_takes_callbacks(method.adjoint, method.default)
    return _arguments(prob, jumps, method, stops, given), _options(prob, method, stops, how, given)


def _method(prob: Problem, alg: Algorithm | None, given: Given) -> _Method:
    default = DiscreteAdjoint() if prob.evolves else SteadyStateAdjoint()
    adjoint = given.adjoint
    if adjoint is None or (adjoint == "auto" and not prob.evolves):
        adjoint = default
    adjoint = AutoAdjoint() if isinstance(adjoint, str) and adjoint == "auto" else adjoint
    if alg is not None:
        checks.check_algorithm(alg, prob)
    checks.check_adjoint(adjoint, prob, default)
    assert not isinstance(adjoint, str)
    if alg is None:
        checks.check_initial_state(prob)
        path = given.path if isinstance(given.path, NoiseProcess) else None
        alg = default_algorithm(prob, given.rtol, restarts=adjoint.restarts, path=path)
    alg = adjoint.algorithm(alg)
    of_time = "saveat dense dt steps controller tstops callback resume progress estimates"
    checks.check_evolves(prob, **{name: getattr(given, name) for name in of_time.split()})
    fixed = checks.check_steps(alg, given.adaptive, given.dt, given.steps, given.max_steps)
    if given.controller is not None:
        checks.check_type("controller", given.controller, Controller, "dj.PIController()")
    return _Method(alg, adjoint, default, fixed)


def _stops(prob: Problem, method: _Method, given: Given) -> _Stops:
    fixed, tstops = method.fixed, given.tstops
    checks.check_tstops(tstops, prob, fixed)
    callbacks = checks.check_callbacks(
        given.callback, given.max_events, method.adjoint, method.default, fixed, prob
    )
    savers = [c for c in callbacks if isinstance(c, SavingCallback)]
    if not fixed:
        return _Stops(callbacks, savers, held_times(tstops), False)
    tstops, on_saves = (*tstops, *checks.known_times(callbacks, prob)), False
    if prob.stochastic and not isinstance(given.saveat, str):
        # Between its steps a path is not known; so they are made to end on the save times.
        for times in (given.saveat, *(saver.times for saver in savers)):
            at_saves = stops_at_saves(prob, times, tstops, given.dt, given.steps)
            on_saves |= at_saves is None
            tstops = (*tstops, *(at_saves or ()))
    return _Stops(callbacks, savers, _static_times(tstops, prob), on_saves)


def _arguments(
    prob: Problem, jumps: JumpProblem | None, method: _Method, stops: _Stops, given: Given
) -> Arguments:
    return Arguments(
        problem=prob,
        saveat=None if isinstance(given.saveat, str) else held_times(given.saveat),
        tstops=stops.times,
        save_fn=None if given.save_fn is None else UserFunction(given.save_fn),
        rtol=checks.check_tolerance("rtol", given.rtol, prob),
        atol=checks.check_tolerance("atol", given.atol, prob),
        dt=_number(given.dt, static=method.fixed),
        dtmin=_number(given.dtmin),
        dtmax=_number(given.dtmax),
        resume=given.resume,
        key=None if given.key is None else key_words(given.key),
        path=given.path,
        negated=None if given.antithetic is False else jnp.asarray(given.antithetic, bool),
        callbacks=stops.callbacks,
        jumps=jumps,
    )


def _options(
    prob: Problem, method: _Method, stops: _Stops, initialize: str | None, given: Given
) -> Options:
    controller, every_step = None, isinstance(given.saveat, str)
    if prob.evolves and not method.fixed:
        controller = given.controller or default_controller(prob)
    return Options(
        alg=method.alg,
        adjoint=method.adjoint,
        controller=controller,
        max_steps=given.max_steps,
        steps=given.steps,
        fixed=method.fixed,
        initialize=initialize,
        save_every=every_step,
        saves_move=saves_move([given.saveat, *(saver.times for saver in stops.savers)], prob),
        saves_end=not every_step and saves_end(given.saveat, prob),
        steps_on_saves=stops.on_saves,
        save_idxs=hashable_index(given.save_idxs),
        dense=given.dense,
        estimates=given.estimates,
        progress=given.progress,
        throw=bool(given.throw),
        max_events=given.max_events,
    )


def _static_times(times: Any, prob: Problem) -> tuple[float, ...] | None:
    """Times that fixed steps end on, in order, each once."""
    unique = sorted(
        {float(t) for t in times}, reverse=bool(times) and prob.tspan[1] < prob.tspan[0]
    )
    return tuple(unique) or None


def _number(x: Any, *, static: bool = False) -> Any:
    if x is None:
        return None
    return abs(float(x)) if static else jnp.abs(jnp.asarray(x))


def hashable_index(index: Any) -> Any:
    """Indices in a form that a compiled function can be keyed by."""
    if index is None or (isinstance(index, tuple) and index[:1] in (("slice",), ("index",))):
        return index
    if isinstance(index, slice):
        return ("slice", index.start, index.stop, index.step)
    chosen = np.asarray(index)
    return ("index", tuple(chosen.tolist()) if chosen.ndim else int(chosen))
