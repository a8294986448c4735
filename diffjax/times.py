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


def fixed_grid(times: Times, arguments: Arguments, options: Options) -> FixedGrid | None:
    """Where fixed steps end; None for adaptive ones."""
    if not options.fixed:
        return None
    if times.span is None and options.steps is None:
        raise ValueError(
            "dt with fixed steps needs a tspan of Python numbers; for a traced tspan give steps=."
        )
    if options.steps is not None and arguments.tstops is None and not options.steps_on_saves:
        # Of a static span the size of a step is known to more digits than the time has.
        span = times.span
        return FixedGrid(options.steps, span and abs(span[1] - span[0]) / options.steps)
    if times.span is None:
        assert options.steps is not None
        return _grid_over(
            times, arguments.tstops, (times.t1 - times.t0) / options.steps, options.steps
        )
    t0, t1 = times.span
    dt = abs(t1 - t0) / options.steps if options.steps is not None else arguments.dt
    whole = len(spaced(t0, t1, dt)) - 1 if t1 != t0 else 0
    if options.steps_on_saves:
        return _grid_over(times, arguments.tstops, jnp.asarray(dt, times.t0.dtype), whole)
    if arguments.tstops is None:
        return FixedGrid(whole, dt)
    turn = times.direction
    inner = [turn * t for t in arguments.tstops if turn * t0 < turn * t < turn * t1]
    marks = [turn * t0, *inner, turn * t1]
    grid = [turn * t0]
    for start, end in pairwise(marks):
        grid.extend(spaced(start, end, dt)[1:].tolist())
    return FixedGrid(len(grid) - 1, dt, jnp.asarray(grid, times.t0.dtype))


def _grid_over(times: Times, stops: tuple[float, ...] | None, size: Array, most: int) -> FixedGrid:
    """Steps of a size, at most so many of which fill the span, that end on save times not known
    yet and count anew from each; left over are as many as there might have been more."""
    t0, t1, dtype = times.t0, times.t1, times.t0.dtype
    inner = [] if times.saves is None else [times.saves]
    if stops is not None:
        inner.append(jnp.asarray(stops, dtype) * times.direction)
    marks = jnp.clip(jnp.sort(jnp.concatenate(inner)), t0, t1)
    starts = jnp.concatenate([t0[None], marks])
    lengths = jnp.concatenate([marks, t1[None]]) - starts
    # What is left of a length after so many steps is rounding.
    rounding = 1e-9 + 4 * jnp.finfo(dtype).eps * jnp.maximum(abs(t0), abs(t1)) / size
    counts = jnp.ceil(lengths / size - rounding).astype(jnp.int32)
    ends = jnp.cumsum(counts)
    steps = most + len(starts)
    number = jnp.arange(steps + 1, dtype=jnp.int32)
    part = jnp.searchsorted(ends, number, side="right")
    inside = jnp.minimum(part, len(starts) - 1)
    t = starts[inside] + size * (number - (ends - counts)[inside]).astype(dtype)
    return FixedGrid(steps, None, jnp.where(part == len(starts), t1, t), leftover=True)


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


def ends_of_steps(grid: FixedGrid | None, stops: Array | None, times: Times) -> Array:
    """The times that steps end on: the stops and the end, or those of the grid."""
    if grid is not None:
        assert grid is not None
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
