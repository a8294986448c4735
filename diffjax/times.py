"""When: the span of a solve, its save times, and the times that its steps end on."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .arguments import Arguments, Options
from .checks import SPAN_SLACK
from .events.library import SavingCallback
from .problems.parts import UserFunction
from .ready import Times, turned
from .stepping.fixed import FixedGrid, time_on
from .stepping.plan import Plan


def times_of(arguments: Arguments, tspan: Any, dtype: Any) -> Times:
    """The times of a solve, in one that runs forwards."""
    static = all(isinstance(t, float | int) for t in tspan)
    t0, t1 = (jnp.asarray(t, dtype) for t in tspan)
    if static:
        direction: Any = 1.0 if tspan[1] >= tspan[0] else -1.0
    else:
        direction = jnp.where(t1 >= t0, 1.0, -1.0).astype(dtype)
    saves, stops = save_times(arguments.saveat, tspan, dtype), arguments.tstops
    t0, t1 = turned(t0, direction), turned(t1, direction)
    if saves is not None:
        saves = turned(saves, direction)
        # Times at a spacing are laid out between the ends.
        spaced = isinstance(arguments.saveat, float)
        saves = saves if spaced else inside_span(saves, t0, t1)
    return Times(
        span=(float(tspan[0]), float(tspan[1])) if static else None,
        direction=direction,
        t0=t0,
        t1=t1,
        saves=saves,
        stops=None if stops is None else turned(jnp.asarray(stops, dtype), direction),
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


def fixed_plan(
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


def with_savers(
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


def ends_of_steps(plan: Plan, stops: Array | None, times: Times) -> Array:
    """The times that steps end on: the stops and the end, or those of the grid."""
    if plan.fixed_steps is not None:
        grid = FixedGrid.of(plan)
        index = jnp.arange(grid.steps + 1)
        return jax.vmap(lambda i: time_on(grid, times.t0, times.t1, i))(index)
    t1 = times.t1.reshape(1)
    return t1 if stops is None else jnp.concatenate([stops, t1])


def merged(stops: Array | None, others: Array | None, t1: Array) -> Array | None:
    """The stops and other times in order, each once; what is left over is the end."""
    if others is None:
        return stops
    both = jnp.sort(others if stops is None else jnp.concatenate([stops, others]))
    again = jnp.concatenate([jnp.zeros(1, bool), both[1:] == both[:-1]])
    return jnp.sort(jnp.where(again, t1, both))
