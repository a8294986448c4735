"""Inside the compiled solve: from the user's arguments to a plan, and from its outcome back."""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .algorithms.accompanied import Accompanied
from .algorithms.base import Algorithm, Memory
from .checks import SPAN_SLACK
from .events.callbacks import Callback
from .events.library import SavingCallback
from .jumps.hybrid import hybrid
from .noise.driving import noise_of_solve, own_noise
from .problems.base import Kind, Problem, remake, tree_of_arrays
from .problems.jump import JumpProblem
from .problems.parts import Parts, UserFunction, is_array
from .progress import report
from .ready import Ready, Times
from .solution import concrete
from .stepping.controllers import Controller
from .stepping.equation import trace_equation
from .stepping.fixed import FixedGrid, time_on
from .stepping.happenings import events_at_start
from .stepping.initialization import Consistency, consistent_start
from .stepping.layout import Layout
from .stepping.plan import Inputs, Plan, Settings
from .stepping.trace import check_saved, trace_diffusion, trace_saving
from .stepping.trace_events import EventTracer, in_span, may_start, owners_of, scheduled_stops
from .stepping.trees import where
from .varying import mesh_axes, vary_over


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


def _times(arguments: Arguments, tspan: Any, dtype: Any) -> Times:
    static = all(isinstance(t, float | int) for t in tspan)
    t0, t1 = (jnp.asarray(t, dtype) for t in tspan)
    if static:
        direction: Any = 1.0 if tspan[1] >= tspan[0] else -1.0
    else:
        direction = jnp.where(t1 >= t0, 1.0, -1.0).astype(dtype)
    saves, stops = save_times(arguments.saveat, tspan, dtype), arguments.tstops

    def turned(t: Any) -> Any:
        return t if isinstance(direction, float) and direction == 1.0 else t * direction

    t0, t1 = turned(t0), turned(t1)
    if saves is not None:
        # Times at a spacing are laid out between the ends.
        spaced = isinstance(arguments.saveat, float)
        saves = turned(saves) if spaced else inside_span(turned(saves), t0, t1)
    return Times(
        span=(float(tspan[0]), float(tspan[1])) if static else None,
        direction=direction,
        t0=t0,
        t1=t1,
        saves=saves,
        stops=None if stops is None else turned(jnp.asarray(stops, dtype)),
    )


def save_times(saveat: Any, tspan: Any, dtype: Any) -> Array | None:
    """The times to save at, from what `held_times` has made of the argument."""
    if isinstance(saveat, UserFunction):
        return jnp.asarray(saveat.value(*tspan), dtype)
    if isinstance(saveat, float):
        return jnp.asarray(spaced(tspan[0], tspan[1], saveat), dtype)
    return None if saveat is None else saveat.astype(dtype)


def inside_span(saves: Array, t0: Array, t1: Array) -> Array:
    """Save times that rounding has put just outside the span, put back; their derivative stays."""
    slack = SPAN_SLACK * (t1 - t0)
    near = (saves >= t0 - slack) & (saves <= t1 + slack)
    moved = jnp.where(near, jnp.clip(saves, t0, t1), saves)
    return saves + jax.lax.stop_gradient(moved - saves)


def spaced(t0: float, t1: float, spacing: float) -> np.ndarray:
    """Times from t0 every `spacing`, and t1."""
    length = abs(t1 - t0)
    whole = int(np.floor(length / spacing * (1 + 1e-12) + 1e-9))
    times = t0 + np.sign(t1 - t0) * spacing * np.arange(whole + 1)
    if abs(times[-1] - t1) <= 1e-9 * max(length, abs(t1)):
        times[-1] = t1
        return times
    return np.append(times, t1)


def _fixed_plan(
    times: Times, arguments: Arguments, options: Options
) -> tuple[int | None, float | None, tuple[float, ...] | None]:
    """`fixed_steps`, `fixed_dt` and `grid` of the plan."""
    if not options.fixed:
        return None, None, None
    if options.steps is not None and arguments.tstops is None:
        # Of a static span the size of a step is known to more digits than the time has.
        span = times.span
        return options.steps, None if span is None else abs(span[1] - span[0]) / options.steps, None
    if times.span is None:
        raise ValueError(
            "dt with fixed steps needs a tspan of Python numbers; for a traced tspan give steps=."
        )
    t0, t1 = times.span
    dt = abs(t1 - t0) / options.steps if options.steps is not None else arguments.dt
    if arguments.tstops is None:
        return len(spaced(t0, t1, dt)) - 1 if t1 != t0 else 0, dt, None
    turn = times.direction
    inner = [turn * t for t in arguments.tstops if turn * t0 < turn * t < turn * t1]
    marks = [turn * t0, *inner, turn * t1]
    grid = [turn * t0]
    for start, end in pairwise(marks):
        grid.extend(spaced(start, end, dt)[1:].tolist())
    return len(grid) - 1, dt, tuple(grid)


def prepare(arguments: Arguments, options: Options) -> Ready:
    """Trace the user's functions and lay the solve out."""
    ready = _prepare(arguments, options, mesh_axes(arguments))
    hidden = mesh_axes(ready.inputs)
    if hidden != mesh_axes(ready.inputs.u0):
        # A closed-over array varies over mesh axes that no argument does (see `varying.py`).
        ready = _prepare(arguments, options, hidden)
    return ready


def _prepare(arguments: Arguments, options: Options, axes: frozenset[str]) -> Ready:
    arguments = vary_over(axes, arguments) if axes else arguments
    callbacks = tuple(callback.bound(arguments.problem) for callback in arguments.callbacks)
    given = arguments.problem.arguments()
    parts = Parts(given["p"])
    p = parts.value
    tspan = tuple(value_of(arguments.problem.tspan, p))
    u0 = tree_of_arrays(value_of(given["u0"], p, tspan[0]))
    layout = Layout(u0)
    times = vary_over(axes, _times(arguments, tspan, layout.time_dtype))
    state = vary_over(axes, jtu.tree_map(jnp.asarray, u0))
    savers = [c for c in callbacks if isinstance(c, SavingCallback)]
    callbacks = tuple(c for c in callbacks if not isinstance(c, SavingCallback))
    times, merged = _with_savers(times, savers, tspan, options.save_every)
    alarms, has_hazards = None, False
    if arguments.jumps is not None:
        jumping = hybrid(arguments.jumps, given, state, p, times.t0, arguments.key)
        given, has_hazards, alarms = jumping.given, jumping.has_hazards, jumping.alarms
        callbacks = (*callbacks, *jumping.callbacks)
        state = given["u0"] if has_hazards else state
        layout = Layout(state)
    tracer = EventTracer(
        callbacks,
        layout,
        state,
        parts,
        times.t0,
        times.direction,
        alarms=alarms,
        has_hazards=has_hazards,
    )
    changing = tracer.changing
    field = trace_equation(given, layout, state, parts, times.t0, times.direction, changing)
    diffusion_jaxpr, diffusion_args, dim = None, None, 0
    if arguments.problem.stochastic:
        diffusion_jaxpr, diffusion_args, dim = trace_diffusion(
            given["g"],
            layout,
            state,
            parts,
            times.t0,
            times.direction,
            given["noise"],
            given["noise_dim"],
            changing,
        )
    save = saving(arguments.save_fn, options.save_idxs)
    save = _with_saved(save, savers) if savers else save
    if has_hazards:
        save = _of_user(save)
    save_jaxpr, save_args, saved_shapes = trace_saving(
        save, layout, state, parts, times.t0, times.direction
    )
    if saved_shapes is not None:
        check_saved(save_jaxpr, changing)
    fixed_steps, fixed_dt, grid = _fixed_plan(times, arguments, options)
    plan = Plan(
        alg=Accompanied(options.alg, changing) if changing or alarms is not None else options.alg,
        field_jaxpr=field.jaxpr,
        save_jaxpr=save_jaxpr,
        controller=options.controller,
        max_steps=options.max_steps,
        fixed_steps=fixed_steps,
        fixed_dt=fixed_dt,
        grid=grid,
        every_step=options.save_every or options.dense or options.estimates,
        ends_on_save=options.saves_end,
        progress=report if options.progress else None,
        jac_jaxpr=field.jac_jaxpr,
        sparsity=field.sparsity,
        diffusion_jaxpr=diffusion_jaxpr,
        noise_kind=given.get("noise"),
        interpretation=given.get("interpretation"),
    )
    scheduled = scheduled_stops(callbacks, times, layout.time_dtype)
    at_start = may_start(callbacks, times.span)
    saves = None if options.save_every and not savers else times.saves
    stops = None if options.fixed else times.stops
    if scheduled and not options.fixed:
        stops = _merged(stops, in_span(scheduled, times.t0, times.t1), times.t1)
    events = None
    if callbacks:
        plan_events, events = tracer.events(options.max_events)
        plan = dataclasses.replace(plan, events=plan_events)
    noise, driven = None, {}
    if arguments.problem.stochastic:
        ends = (times.t0, times.t1, times.direction)
        path = arguments.path
        if path is None:
            # A step that is taken again, up to a root inside of it, needs a part of its noise.
            again = plan.events is not None and bool(plan.events.continuous)
            by_number = options.fixed and not again
            path = own_noise(arguments.key, dim, by_number, *ends)
        noise = noise_of_solve(path, given["correlation"], arguments.negated, dim, times.direction)
        driven = {"diffusion": diffusion_args, "noise": noise}
        stops = None if options.fixed else _merged(stops, saves, times.t1)
    if events is not None and scheduled:
        events = events._replace(owners=owners_of(_ends_of_steps(plan, stops, times), scheduled))
    inputs = Inputs(
        u0=layout.ravel(state),
        args=field.args,
        save_args=save_args,
        t0=times.t0,
        t1=times.t1,
        saves=saves,
        stops=stops,
        mass=field.mass,
        jac_args=field.jac_args,
        slope=_initial_slope(given, layout, times, state, p, tspan[0]),
        **driven,
        events=events,
        alarms=alarms,
    )
    first = None
    if at_start:
        inputs, first = events_at_start(plan, inputs, scheduled)
    settings = _settings(arguments, options, layout, state, has_hazards)
    if noise is not None and noise.smallest is not None and not options.fixed:
        shortest = noise.smallest.astype(layout.time_dtype)
        dtmin = shortest if settings.dtmin is None else jnp.maximum(settings.dtmin, shortest)
        settings = settings._replace(dtmin=dtmin)
    inputs, settings = vary_over(axes, (inputs, settings))
    start = None
    if options.initialize is not None:
        differential = _differential(given, layout)
        consistency = Consistency.of(plan, inputs, settings, options.initialize, differential)
        if inputs.events is not None:
            inputs = inputs._replace(events=inputs.events._replace(consistent=consistency))
        # Where a solve has ended its equations hold, but of u' nothing is known there.
        if arguments.resume is None or inputs.slope is not None:
            start = consistent_start(plan, inputs, consistency)
            inputs = start.inputs
    inputs = inputs._replace(past=_past(arguments.resume, plan, inputs, times.direction))
    # A stochastic solve has no derivative by its save times.
    traced_saves = options.saves_move and not arguments.problem.stochastic
    return Ready(
        plan,
        inputs,
        settings,
        layout,
        times,
        saved_shapes,
        traced_saves,
        start,
        first,
        has_hazards,
        merged,
    )


def _with_savers(
    times: Times, savers: list[SavingCallback], tspan: Any, save_every: bool
) -> tuple[Times, tuple[Array, ...] | None]:
    """The times with those of callbacks that save among the save times; and where each of the
    solve's own and of theirs is among all, None without such callbacks."""
    if not savers:
        return times, None
    dtype, own = times.t0.dtype, times.saves
    lists = [jnp.zeros(0, dtype) if own is None or save_every else own]
    for saver in savers:
        found = save_times(saver.saveat, tspan, dtype)
        assert found is not None
        lists.append(inside_span(found * times.direction, times.t0, times.t1))
    every = jnp.concatenate(lists)
    order = jnp.argsort(jax.lax.stop_gradient(every), stable=True)
    ends = np.cumsum([len(x) for x in lists])[:-1]
    places = jnp.split(jnp.argsort(order), ends)
    return times._replace(saves=every[order]), tuple(places)


def _with_saved(save: Any, savers: list[SavingCallback]) -> Callable[[Any, Any, Any], Any]:
    """What the solve saves, and what callbacks do."""

    def both(u: Any, p: Any, t: Any) -> Any:
        own = u if save is None else save(u, p, t)
        return own, tuple(saver.save_fn.value(u, p, t) for saver in savers)

    return both


def _of_user(save: Callable[[Any, Any, Any], Any] | None) -> Callable[[Any, Any, Any], Any]:
    """What is saved of a state that is the pair of the user's and hazards."""
    return lambda state, p, t: state[0] if save is None else save(state[0], p, t)


def _ends_of_steps(plan: Plan, stops: Array | None, times: Times) -> Array:
    """The times that steps end on: the stops and the end, or those of the grid."""
    if plan.fixed_steps is not None:
        grid = FixedGrid.of(plan)
        index = jnp.arange(grid.steps + 1)
        return jax.vmap(lambda i: time_on(grid, times.t0, times.t1, i))(index)
    t1 = times.t1.reshape(1)
    return t1 if stops is None else jnp.concatenate([stops, t1])


def _merged(stops: Array | None, others: Array | None, t1: Array) -> Array | None:
    """The stops and other times in order, each once; what is left over is the end."""
    if others is None:
        return stops
    both = jnp.sort(others if stops is None else jnp.concatenate([stops, others]))
    again = jnp.concatenate([jnp.zeros(1, bool), both[1:] == both[:-1]])
    return jnp.sort(jnp.where(again, t1, both))


def _past(resume: PyTree, plan: Plan, inputs: Inputs, direction: Any) -> Memory | None:
    """What the solve that is resumed remembers; None for a method that remembers something else.

    Of a solve in the other direction of time nothing is taken over.
    """
    if resume is None or resume["memory"] is None:
        return None
    given, none = resume["memory"], inputs._replace(past=None)
    fresh = plan.first_memory(none).lasting
    alike = jtu.tree_structure(fresh) == jtu.tree_structure(given)
    if not alike or jax.eval_shape(lambda: fresh) != jax.eval_shape(lambda: given):
        return None
    return where(resume["direction"] == direction, given, fresh)


def _initial_slope(
    given: dict[str, Any], layout: Layout, times: Times, u0: PyTree, p: Any, t0: Any
) -> PyTree:
    """The derivative that a fully implicit problem starts with, in the solve's time."""
    if "du0" not in given:
        return None
    du0 = value_of(given["du0"], p, t0)
    shapes = [[jnp.shape(x) for x in jtu.tree_leaves(tree)] for tree in (du0, u0)]
    if jtu.tree_structure(du0) != jtu.tree_structure(u0) or shapes[0] != shapes[1]:
        raise ValueError(
            "du0 must be a pytree like u0, with leaves of the same shapes: got "
            f"{jtu.tree_map(jnp.shape, du0)}, wanted {jtu.tree_map(jnp.shape, u0)}; "
            "try jax.tree.map(jnp.zeros_like, u0)."
        )
    slope = layout.ravel(jtu.tree_map(lambda d, x: jnp.asarray(d, x.dtype), du0, u0))
    return jtu.tree_map(lambda x: x * jnp.asarray(times.direction).astype(x.dtype), slope)


def _differential(given: dict[str, Any], layout: Layout) -> np.ndarray | None:
    """Which real coordinates of the state are said to be differential; None if nothing is said."""
    flags = given.get("differential_vars")
    if flags is None:
        return None
    elements, _ = layout.coordinates()
    if len(flags) != int(elements.max()) + 1:
        raise ValueError(
            f"differential_vars must have a boolean for each of the {int(elements.max()) + 1} "
            f"elements of u0, got {len(flags)}."
        )
    return np.asarray(flags)[elements]


def saving(save_fn: UserFunction | None, index: Any) -> Callable[[Any, Any, Any], Any] | None:
    """What is saved of a state, as a function of u, p and t; None for all of it."""
    if save_fn is not None:
        return save_fn.value
    if index is None:
        return None
    # Known while tracing: an index that is traced would have to vary over the axes of a mesh.
    chosen = slice(*index[1:]) if index[0] == "slice" else np.asarray(index[1])
    chosen = int(chosen) if isinstance(chosen, np.ndarray) and chosen.ndim == 0 else chosen

    def components(u: Any, p: Any, t: Any) -> Any:
        if not is_array(u):
            raise TypeError("save_idxs needs an array state; for a pytree give save_fn(u, p, t).")
        if isinstance(chosen, np.ndarray) and mesh_axes(u):
            rows = jnp.stack([u[int(i)] for i in chosen.ravel()])
            return rows.reshape(chosen.shape + rows.shape[1:])
        return u[chosen]

    return components


def _settings(
    arguments: Arguments, options: Options, layout: Layout, u0: PyTree, has_hazards: bool
) -> Settings:
    dtype = layout.time_dtype

    def number(x: Any) -> Any:
        return None if x is None else x.astype(dtype)

    resume = arguments.resume
    dt = None if options.fixed else number(arguments.dt)
    if resume is not None and dt is None and not options.fixed:
        dt = resume["dt"]
    return Settings(
        rtol=_tolerance("rtol", arguments.rtol, layout, u0, has_hazards),
        atol=_tolerance("atol", arguments.atol, layout, u0, has_hazards),
        dt=dt,
        dtmin=number(arguments.dtmin),
        dtmax=number(arguments.dtmax),
        control=None if resume is None or options.fixed else resume["control"],
    )


def _tolerance(
    name: str, tolerance: PyTree, layout: Layout, u0: PyTree, has_hazards: bool
) -> PyTree:
    """A tolerance for each part of the laid-out state: a scalar, or an array like it."""
    leaves = jtu.tree_leaves(tolerance)
    if len(leaves) == 1 and leaves[0].ndim == 0:
        return jtu.tree_map(lambda x: leaves[0].astype(jnp.finfo(x.dtype).dtype), layout.ravel(u0))
    if has_hazards:
        least = jnp.min(jnp.stack([jnp.min(x) for x in leaves]))
        tolerance = (tolerance, least)
    try:
        full = jtu.tree_map(
            lambda x, leaf: jnp.broadcast_to(leaf, x.shape).astype(x.dtype), u0, tolerance
        )
    except ValueError as error:
        raise ValueError(
            f"{name} must be a number, or a pytree like u0 whose leaves broadcast to its: {error}"
        ) from None
    return jtu.tree_map(jnp.real, layout.ravel(full))
