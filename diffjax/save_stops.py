"""Fixed steps that end on the save times of a stochastic problem.

Between the ends of its steps a path is not known: a line has less variance than it has.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .checks import SPAN_SLACK, known_ends
from .problems.base import Problem
from .solution import concrete_one
from .times import spaced


def stops_at_saves(
    prob: Problem, saveat: Any, stops: Any, dt: Any, steps: int | None
) -> tuple[float, ...] | None:
    """The save times, if fixed steps with these `stops` would pass one without ending on it; None
    if the save times or the span are not known yet."""
    if saveat is None:
        return ()
    ends = known_ends(prob)
    times: Any = None
    if ends is not None:
        with jax.ensure_compile_time_eval():
            times = saveat(*ends) if callable(saveat) else saveat
            times = spaced(*ends, float(times)) if np.ndim(times) == 0 else times
            times = concrete_one(jnp.asarray(times))
    if ends is None or times is None:
        return None
    t0, t1 = ends
    size = abs(t1 - t0) / steps if steps is not None else abs(float(dt))
    # A time that only rounding keeps off the end of a step is there: a step between the two would
    # have no length in that precision.
    rounding = 4 * float(jnp.finfo(jnp.result_type(times, 1.0)).eps) * max(abs(t0), abs(t1))
    passed = np.abs(np.asarray(times, float) - t0) / size
    on_grid = np.abs(passed - np.round(passed)) <= max(SPAN_SLACK, rounding / size)
    at_end = np.abs(times - t1) <= SPAN_SLACK * abs(t1 - t0)
    if not stops and np.all(on_grid | at_end):
        return ()
    # From a stop on the steps count anew, so save times that lie on the grid are stops too.
    return tuple(float(t) for t in np.asarray(times))
