"""Inside the compiled solve: from the user's arguments to a plan, and from its outcome back."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .algorithms.accompanied import Accompanied
from .algorithms.base import Field, Memory
from .arguments import Arguments, Options, value_of
from .events.callbacks import Callback
from .events.library import SavingCallback
from .jumps.hybrid import hybrid
from .noise.base import NoiseProcess
from .noise.driving import noise_of_solve, own_noise
from .problems.base import tree_of_arrays
from .problems.parts import Parts, UserFunction, is_array
from .progress import report
from .ready import Ready, Times
from .stepping.equation import trace_equation
from .stepping.fixed import FixedGrid
from .stepping.happenings import events_at_start
from .stepping.initialization import Consistency, consistent_start
from .stepping.layout import Layout
from .stepping.plan import Inputs, Plan, Settings
from .stepping.trace import check_saved, trace_diffusion, trace_saving
from .stepping.trace_events import EventTracer, in_span, may_start, owners_of, scheduled_stops
from .stepping.trees import where
from .times import ends_of_steps, fixed_grid, merged, times_of, with_savers
from .varying import mesh_axes, vary_over


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
    laid = _lay_out(arguments, options, axes)
    traced = _trace(laid, arguments, options)
    plan, times = traced.plan, laid.times
    inputs = _inputs(laid, traced, arguments, options)
    first = None
    if may_start(laid.callbacks, times.span):
        inputs, first = events_at_start(plan, inputs, laid.scheduled)
    settings = _settings(arguments, options, laid, inputs)
    inputs, settings = vary_over(axes, (inputs, settings))
    start = None
    if options.initialize is not None:
        differential = _differential(laid.given, laid.layout)
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
        laid.layout,
        times,
        traced.saved_shapes,
        traced_saves,
        start,
        first,
        laid.has_hazards,
        laid.merged,
    )


class _Laid(NamedTuple):
    """The problem laid out, its functions still the user's.

    - `given`: the arguments of the problem, with the hazards of its jumps in the state.
    - `parts`: its parameters; `state`, where it starts.
    - `start`: the start of the span as the user gives it.
    - `callbacks`: without those that save, which are the `savers`; `merged` says whose each of the
        save times is.
    - `scheduled`: the times that callbacks ask for.
    """

    given: dict[str, Any]
    parts: Parts
    layout: Layout
    state: PyTree
    start: Any
    times: Times
    callbacks: tuple[Callback, ...]
    savers: list[SavingCallback]
    merged: tuple[Array, ...] | None
    scheduled: Any
    alarms: Any
    has_hazards: bool


def _lay_out(arguments: Arguments, options: Options, axes: frozenset[str]) -> _Laid:
    """Values for what may be given as a function, one layout of the state, times that run
    forwards, and jumps as what they are to a solve: callbacks, hazards and alarms."""
    callbacks = tuple(callback.bound(arguments.problem) for callback in arguments.callbacks)
    given = arguments.problem.arguments()
    parts = Parts(given["p"])
    tspan = tuple(value_of(arguments.problem.tspan, parts.value))
    u0 = tree_of_arrays(value_of(given["u0"], parts.value, tspan[0]))
    layout = Layout(u0)
    times = vary_over(axes, times_of(arguments, tspan, layout.time_dtype))
    state = vary_over(axes, jtu.tree_map(jnp.asarray, u0))
    savers = [c for c in callbacks if isinstance(c, SavingCallback)]
    callbacks = tuple(c for c in callbacks if not isinstance(c, SavingCallback))
    times, merged = with_savers(times, savers, tspan, options.save_every)
    alarms, has_hazards = None, False
    if arguments.jumps is not None:
        jumping = hybrid(arguments.jumps, given, state, parts.value, times.t0, arguments.key)
        given, has_hazards, alarms = jumping.given, jumping.has_hazards, jumping.alarms
        callbacks = (*callbacks, *jumping.callbacks)
        state = given["u0"] if has_hazards else state
        layout = Layout(state)
    return _Laid(
        given,
        parts,
        layout,
        state,
        tspan[0],
        times,
        callbacks,
        savers,
        merged,
        scheduled_stops(callbacks, times, layout.time_dtype),
        alarms,
        has_hazards,
    )


class _Traced(NamedTuple):
    """The user's functions as programs, in the plan; beside it what these are given.

    - `field`, `save_args`: of the equation and of what is saved; `events` those of the callbacks.
    - `diffusion`: the arguments of g, and how many noises it asks for.
    - `grid`: where fixed steps end.
    """

    plan: Plan
    field: Field
    save_args: Any
    saved_shapes: Any
    events: Any
    diffusion: tuple[Any, int]
    grid: FixedGrid | None


def _trace(laid: _Laid, arguments: Arguments, options: Options) -> _Traced:
    given, layout, times, alarms = laid.given, laid.layout, laid.times, laid.alarms
    where_and_when = (layout, laid.state, laid.parts, times.t0, times.direction)
    tracer = EventTracer(
        laid.callbacks, *where_and_when, alarms=alarms, has_hazards=laid.has_hazards
    )
    changing = tracer.changing
    field = trace_equation(given, *where_and_when, changing)
    diffusion_jaxpr, diffusion_args, dim = None, None, 0
    if arguments.problem.stochastic:
        kind = (given["noise"], given["noise_dim"])
        diffusion_jaxpr, diffusion_args, dim = trace_diffusion(
            given["g"], *where_and_when, *kind, changing
        )
    save = saving(arguments.save_fn, options.save_idxs)
    save = _with_saved(save, laid.savers) if laid.savers else save
    save = _of_user(save) if laid.has_hazards else save
    save_jaxpr, save_args, saved_shapes = trace_saving(save, *where_and_when)
    if saved_shapes is not None:
        check_saved(save_jaxpr, changing)
    grid = fixed_grid(times, arguments, options)
    plan = Plan(
        alg=Accompanied(options.alg, changing) if changing or alarms is not None else options.alg,
        field_jaxpr=field.jaxpr,
        save_jaxpr=save_jaxpr,
        controller=options.controller,
        max_steps=options.max_steps,
        fixed_steps=None if grid is None else grid.steps,
        fixed_dt=None if grid is None else grid.dt,
        leftover=grid is not None and grid.leftover,
        every_step=options.save_every or options.dense or options.estimates,
        ends_on_save=options.saves_end,
        progress=report if options.progress else None,
        jac_jaxpr=field.jac_jaxpr,
        sparsity=field.sparsity,
        diffusion_jaxpr=diffusion_jaxpr,
        noise_kind=given.get("noise"),
        interpretation=given.get("interpretation"),
    )
    events = None
    if laid.callbacks:
        plan_events, events = tracer.events(options.max_events)
        plan = dataclasses.replace(plan, events=plan_events)
    return _Traced(plan, field, save_args, saved_shapes, events, (diffusion_args, dim), grid)


def _saves(laid: _Laid, options: Options) -> Array | None:
    return None if options.save_every and not laid.savers else laid.times.saves


def _stops(laid: _Laid, arguments: Arguments, options: Options) -> Array | None:
    """The times that adaptive steps end on."""
    if options.fixed:
        return None
    times, stops = laid.times, laid.times.stops
    if laid.scheduled:
        stops = merged(stops, in_span(laid.scheduled, times.t0, times.t1), times.t1)
    if arguments.problem.stochastic:
        stops = merged(stops, _saves(laid, options), times.t1)
    return stops


def _inputs(laid: _Laid, traced: _Traced, arguments: Arguments, options: Options) -> Inputs:
    times, field, events = laid.times, traced.field, traced.events
    stops = _stops(laid, arguments, options)
    if events is not None and laid.scheduled:
        ends = ends_of_steps(traced.grid, stops, times)
        events = events._replace(owners=owners_of(ends, laid.scheduled))
    return Inputs(
        u0=laid.layout.ravel(laid.state),
        args=field.args,
        save_args=traced.save_args,
        t0=times.t0,
        t1=times.t1,
        saves=_saves(laid, options),
        stops=stops,
        grid=None if traced.grid is None else traced.grid.times,
        mass=field.mass,
        jac_args=field.jac_args,
        slope=_initial_slope(laid),
        diffusion=traced.diffusion[0],
        noise=_noise(laid, traced, arguments, options),
        events=events,
        alarms=laid.alarms,
    )


def _noise(
    laid: _Laid, traced: _Traced, arguments: Arguments, options: Options
) -> NoiseProcess | None:
    """What drives a stochastic problem."""
    if not arguments.problem.stochastic:
        return None
    times, dim, path = laid.times, traced.diffusion[1], arguments.path
    if path is None:
        # A step that is taken again, up to a root inside of it, needs a part of its noise.
        events = traced.plan.events
        again = events is not None and bool(events.continuous)
        by_number = options.fixed and not again
        path = own_noise(arguments.key, dim, by_number, times.t0, times.t1, times.direction)
    return noise_of_solve(path, laid.given["correlation"], arguments.negated, dim, times.direction)


def _with_saved(save: Any, savers: list[SavingCallback]) -> Callable[[Any, Any, Any], Any]:
    """What the solve saves, and what callbacks do."""

    def both(u: Any, p: Any, t: Any) -> Any:
        own = u if save is None else save(u, p, t)
        return own, tuple(saver.save_fn.value(u, p, t) for saver in savers)

    return both


def _of_user(save: Callable[[Any, Any, Any], Any] | None) -> Callable[[Any, Any, Any], Any]:
    """What is saved of a state that is the pair of the user's and hazards."""
    return lambda state, p, t: state[0] if save is None else save(state[0], p, t)


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


def _initial_slope(laid: _Laid) -> PyTree:
    """The derivative that a fully implicit problem starts with, in the solve's time."""
    if "du0" not in laid.given:
        return None
    u0, layout = laid.state, laid.layout
    du0 = value_of(laid.given["du0"], laid.parts.value, laid.start)
    shapes = [[jnp.shape(x) for x in jtu.tree_leaves(tree)] for tree in (du0, u0)]
    if jtu.tree_structure(du0) != jtu.tree_structure(u0) or shapes[0] != shapes[1]:
        raise ValueError(
            "du0 must be a pytree like u0, with leaves of the same shapes: got "
            f"{jtu.tree_map(jnp.shape, du0)}, wanted {jtu.tree_map(jnp.shape, u0)}; "
            "try jax.tree.map(jnp.zeros_like, u0)."
        )
    slope = layout.ravel(jtu.tree_map(lambda d, x: jnp.asarray(d, x.dtype), du0, u0))
    return jtu.tree_map(lambda x: x * jnp.asarray(laid.times.direction).astype(x.dtype), slope)


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


def _settings(arguments: Arguments, options: Options, laid: _Laid, inputs: Inputs) -> Settings:
    dtype = laid.layout.time_dtype

    def number(x: Any) -> Any:
        return None if x is None else x.astype(dtype)

    resume = arguments.resume
    dt = None if options.fixed else number(arguments.dt)
    if resume is not None and dt is None and not options.fixed:
        dt = resume["dt"]
    dtmin, noise = number(arguments.dtmin), inputs.noise
    if noise is not None and noise.smallest is not None and not options.fixed:
        shortest = noise.smallest.astype(dtype)
        dtmin = shortest if dtmin is None else jnp.maximum(dtmin, shortest)
    return Settings(
        rtol=_tolerance("rtol", arguments.rtol, laid),
        atol=_tolerance("atol", arguments.atol, laid),
        dt=dt,
        dtmin=dtmin,
        dtmax=number(arguments.dtmax),
        control=None if resume is None or options.fixed else resume["control"],
    )


def _tolerance(name: str, tolerance: PyTree, laid: _Laid) -> PyTree:
    """A tolerance for each part of the laid-out state: a scalar, or an array like it."""
    layout, u0 = laid.layout, laid.state
    leaves = jtu.tree_leaves(tolerance)
    if len(leaves) == 1 and leaves[0].ndim == 0:
        return jtu.tree_map(lambda x: leaves[0].astype(jnp.finfo(x.dtype).dtype), layout.ravel(u0))
    if laid.has_hazards:
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
