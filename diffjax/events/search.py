"""Finding the first event inside a step.

A step at whose end, or at sampled points inside of which, some condition has changed its sign is
not accepted but taken again up to where the root is expected. The attempts close in on it, each an
ordinary step from the same start, until one ends just before the root: so the state there is as
accurate as at the end of any step, and where the vector field jumps at the event no stage is taken
on its far side (that such a step misses its error is no reason to make it shorter: the search
begins all the same). The state is then carried across the root by some rounding, so that what
follows begins on the far side. Where the root is expected follows from the continuous extension of
an attempt that went too far, or from the slope at the end of one that fell short; a bracket and
bisection guard both.

A rough path has no slope: there the bracket is closed down to a resolution, and the attempt that
ends beyond it is accepted.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..varying import mesh_axes, vary_over

# A step may end before the root by so many units in the last place of time.
_ROOT_ULPS = 4.0
# An event so many units of the resolution from a given time is at that time.
_SAME = 4.0
# Attempts that trust the extension before the bracket is halved.
_TRUSTED = 8
# Iterations on the extension, where the bracket has not closed before.
_INNER = 40


class Search(NamedTuple):
    """Where the search for an event stands, in the time since the start of the step.

    - `aim`: the size of the next attempt; 0 if nothing is searched.
    - `low`: an attempt of this size fell short of the event; `high`: one went beyond, if that is
        `sure`, or seemed to on the extension of a longer one.
    - `which`: the condition that is followed.
    """

    aim: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    sure: Bool[Array, ""]
    which: Int[Array, ""]
    tries: Int[Array, ""]

    @staticmethod
    def none(dtype: np.dtype) -> "Search":
        zero, count = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        return Search(zero, zero, zero, jnp.zeros((), bool), count, count)

    @property
    def on(self) -> Bool[Array, ""]:
        return self.aim > 0


class Sighting(NamedTuple):
    """What an attempted step has shown.

    - `pending`: it must be taken again with another size.
    - `fired`: the conditions that have a root at its end; `beyond`: the sides of zero that they
        will have behind it.
    - `values`, `sides`: the conditions at its end, and on which side of zero they are.
    """

    pending: Bool[Array, ""]
    fired: Bool[Array, " conditions"]
    beyond: Float[Array, " conditions"]
    values: Float[Array, " conditions"]
    sides: Float[Array, " conditions"]
    search: Search


class Attempt(NamedTuple):
    """An attempted step as the search sees it.

    - `values`, `sides`: the conditions at its start; a side of 0 is not known.
    - `conditions`: their values at fractions of the step, on its continuous extension.
    - `end`: their values at its end.
    - `resolution`: an event need not be located more exactly than this.
    """

    t: Float[Array, ""]
    dt: Float[Array, ""]
    values: Float[Array, " conditions"]
    sides: Float[Array, " conditions"]
    conditions: Callable[[Array], Float[Array, " conditions"]]
    end: Float[Array, " conditions"]
    resolution: Float[Array, ""]


def resolution(t: Array, dt: Array) -> Float[Array, ""]:
    """How exactly the time of an event can be told."""
    return _ROOT_ULPS * float(jnp.finfo(t.dtype).eps) * (jnp.abs(t) + dt)


def same_time(t: Array, other: Array, dt: Array | float = 0.0) -> Bool[Array, ""]:
    """Whether an event at one of two times, reached by a step of size dt, is at the other too, but
    for rounding."""
    return jnp.abs(t - other) <= _SAME * resolution(t, jnp.asarray(dt, t.dtype))


def look(
    attempt: Attempt,
    directions: tuple[int, ...],
    samples: int,
    search: Search,
    usable: Bool[Array, ""],
    accepted: Bool[Array, ""],
    when: Callable[..., PyTree],
    rough: bool,
) -> Sighting:
    """Judge an attempt that is `usable`, and `accepted` but for its events.

    `when(condition, function, x)` applies a function where it is needed; conditions that are
    `rough` functions of time are searched without their slopes.
    """
    dt, dtype = attempt.dt, attempt.t.dtype
    grid, values = _sampled(attempt, samples)
    crossed = _crossings(values, attempt.sides, directions)
    in_row = jnp.any(crossed, axis=1)
    row = jnp.argmax(in_row)
    seen = usable & jnp.any(in_row)
    before = jnp.concatenate([jnp.zeros(1, dtype), grid])[row]
    ends = jnp.concatenate([attempt.values[None], values])
    which = jnp.where(seen, _first(ends[row], values[row], crossed[row]), search.which)
    low = jnp.where(search.on, search.low, 0)
    found = Search(
        aim=dt,
        low=jnp.where(seen, low, dt),
        high=jnp.where(seen, dt * grid[row], search.high),
        sure=jnp.where(seen, row == samples, search.sure),
        which=which,
        tries=search.tries + 1,
    )
    view = _View(
        seen=seen,
        short=accepted & ~seen & search.on,
        accepted=accepted,
        crossed=crossed,
        within=(before, grid[row]),
        sides=jnp.where(attempt.end == 0, attempt.sides, jnp.sign(attempt.end)),
    )
    if rough:
        pending, fired, beyond, found = _by_lines(attempt, view, found)
    else:
        pending, fired, beyond, found = _by_slopes(attempt, directions, view, search, found, when)
    none = Search.none(dtype)
    kept = Search(*(jnp.where(pending, x, y) for x, y in zip(found, none, strict=True)))
    return Sighting(pending, fired, beyond, attempt.end, view.sides, kept)


class _View(NamedTuple):
    """What the values of the conditions in an attempt show.

    - `seen`: some has changed its sign, the first between the fractions `within` of the step;
        `crossed` are all of them by row of the grid.
    - `short`: in a search, none has: an accepted attempt ends before the root.
    - `sides`: the signs at the end.
    """

    seen: Bool[Array, ""]
    short: Bool[Array, ""]
    accepted: Bool[Array, ""]
    crossed: Bool[Array, "rows conditions"]
    within: tuple[Array, Array]
    sides: Array


# Whether an attempt is to be taken again, the events at its end, their sides beyond it, the search.
_Verdict = tuple[Bool[Array, ""], Bool[Array, " conditions"], Array, Search]


def _by_lines(attempt: Attempt, view: _View, found: Search) -> _Verdict:
    """By a line through both ends of the attempt, which finds the root of what is smooth after all,
    such as the integral of a rate."""
    dt, tolerance, seen = attempt.dt, attempt.resolution, view.seen
    first, last = attempt.values[found.which], attempt.end[found.which]
    change = first - last
    root = dt * jnp.where(change == 0, 1, first / jnp.where(change == 0, 1, change))
    close = (dt - found.low <= tolerance) | ((dt - root <= tolerance) & (dt >= root))
    landed = view.accepted & seen & close
    pending = (seen & ~landed) | (view.short & (dt < found.high - tolerance))
    aim = root + tolerance / 2
    trusted = (aim > found.low) & (aim < found.high) & (found.tries <= _TRUSTED)
    aim = jnp.where(trusted, aim, (found.low + found.high) / 2)
    found = found._replace(aim=jnp.maximum(aim, tolerance))
    return pending, view.crossed[-1] & landed, view.sides, found


def _by_slopes(
    attempt: Attempt,
    directions: tuple[int, ...],
    view: _View,
    search: Search,
    found: Search,
    when: Callable[..., PyTree],
) -> _Verdict:
    """By roots of the dense output, and from short of the root by the slope at the end."""
    dt, tolerance = attempt.dt, attempt.resolution
    seen, short, accepted = view.seen, view.short, view.accepted

    def refine(given: tuple[Search, Array]) -> tuple[Search, Array]:
        found, _ = given
        missing = _missing(attempt, directions, view.sides)
        beyond = dt * _root(attempt, found.which, *view.within)
        aim = jnp.where(seen, beyond, dt + missing[found.which]) - tolerance / 2
        return found._replace(aim=jnp.maximum(aim, tolerance)), missing

    far = jnp.full_like(attempt.end, jnp.inf)
    found, missing = when(seen | short, refine, (found, far))
    closed = found.sure & (found.high - found.low <= tolerance)
    near = short & ((missing[found.which] <= tolerance) | closed)
    # This was an attempt of the lower end, which fell short before: what iterates does not end
    # twice at the same digits. It lands, unless its error is too large for that.
    last = search.on & search.sure & (search.high - search.low <= tolerance)
    landed = near | (accepted & seen & ((dt <= 2 * tolerance) | last))
    followed = jnp.arange(len(directions), dtype=jnp.int32) == found.which
    reached = jnp.where(seen, jnp.any(view.crossed, axis=0), followed | (missing <= tolerance))
    # What is not sure is no bound: the slope at the end of an accepted step tells better.
    most = jnp.where(found.sure, 1, 2) * found.high
    trusted = (found.aim > found.low) & (found.aim < most) & (found.tries <= _TRUSTED)
    spurious = short & ~found.sure & (dt >= found.high - tolerance) & ~trusted
    pending = (seen | short) & ~landed & ~spurious & (accepted | ~last)
    middle = (found.low + found.high) / 2
    aim = jnp.where(trusted, found.aim, jnp.where(found.sure, middle, found.high))
    # A bracket that can be closed no further ends with an attempt of its lower end.
    aim = jnp.where(closed, found.low, aim)
    found = found._replace(aim=jnp.maximum(aim, tolerance))
    return pending, landed & reached, jnp.where(seen, view.sides, -view.sides), found


def crosses(attempt: Attempt, samples: int) -> Bool[Array, ""]:
    """Whether some condition may have changed its sign, in either direction, or is no number."""
    return ~jnp.all(_sampled(attempt, samples)[1] * attempt.sides[None] > 0)


def _sampled(
    attempt: Attempt, samples: int
) -> tuple[Float[Array, " rows"], Float[Array, "rows conditions"]]:
    """Fractions of the step, the last of them its end, and the conditions there."""
    grid = jnp.asarray(np.arange(1, samples + 2) / (samples + 1), attempt.t.dtype)
    inside = jax.vmap(attempt.conditions)(grid[:-1]) if samples else attempt.end[None][:0]
    return grid, jnp.concatenate([inside, attempt.end[None]])


def _crossings(values: Array, sides: Array, directions: tuple[int, ...]) -> Array:
    """Between which points the conditions have changed sign in a direction that counts.

    A zero inside belongs to the side before it, one at the end to the side beyond.
    """
    signs = jnp.sign(values)
    sides_before = [sides]
    for sign in signs[:-1]:
        sides_before.append(jnp.where(sign == 0, sides_before[-1], sign))
    before = jnp.stack(sides_before)
    end = jnp.where(signs[-1] == 0, -before[-1], signs[-1])
    after = jnp.concatenate([signs[:-1], end[None]])
    change = after * before < 0
    wanted = jnp.asarray(directions, values.dtype)[None]
    return change & ((wanted == 0) | (after == wanted))


def _first(left: Array, right: Array, crossed: Array) -> Int[Array, ""]:
    """Which of the conditions that change sign between two points does so first, by a line."""
    change = right - left
    fraction = jnp.where(change == 0, 0.5, -left / jnp.where(change == 0, 1, change))
    fraction = jnp.where((fraction >= 0) & (fraction <= 1), fraction, 0.5)
    return jax.lax.argmax(jnp.where(crossed, -fraction, -2), 0, jnp.int32)


class _Bracket(NamedTuple):
    """Of the Illinois method: two points with values of different signs, the last point, how far
    it moved, and which end it replaced (1 for b, -1 for a)."""

    a: Array
    value_a: Array
    b: Array
    value_b: Array
    x: Array
    moved: Array
    replaced: Array
    number: Array


def _root(attempt: Attempt, which: Array, left: Array, right: Array) -> Float[Array, ""]:
    """The root of a condition on the extension between two fractions of the step, by the Illinois
    method (Dowell and Jarratt, A modified regula falsi method, BIT 11, 1971)."""
    eps, tiny = float(jnp.finfo(left.dtype).eps), float(jnp.finfo(left.dtype).tiny)
    at_start = attempt.sides[which] * jnp.maximum(jnp.abs(attempt.values[which]), tiny)
    value_left = jnp.where(left == 0, at_start, attempt.conditions(left)[which])
    value_right = jnp.where(right == 1, attempt.end[which], attempt.conditions(right)[which])

    def pending(s: _Bracket) -> Array:
        return (s.number < _INNER) & (s.b - s.a > 4 * eps) & (s.moved > 4 * eps)

    def closer(s: _Bracket) -> _Bracket:
        change = s.value_b - s.value_a
        x = s.b - s.value_b * (s.b - s.a) / jnp.where(change == 0, 1, change)
        # A condition may start near zero, where a line through its value says nothing.
        known = (s.a > left) & (x >= s.a) & (x <= s.b)
        x = jnp.where(known, x, (s.a + s.b) / 2)
        value = attempt.conditions(x)[which]
        beyond = jnp.sign(value) != jnp.sign(s.value_a)
        # An end that stays twice is given half its value, or the other would close in alone.
        half_a = jnp.where((s.replaced > 0) & known, 0.5, 1.0)
        half_b = jnp.where((s.replaced < 0) & known, 0.5, 1.0)
        return _Bracket(
            a=jnp.where(beyond, s.a, x),
            value_a=jnp.where(beyond, s.value_a * half_a, value),
            b=jnp.where(beyond, x, s.b),
            value_b=jnp.where(beyond, value, s.value_b * half_b),
            x=x,
            moved=jnp.abs(x - s.x),
            replaced=jnp.where(beyond, 1, -1).astype(jnp.int32),
            number=s.number + 1,
        )

    zero = jnp.zeros((), jnp.int32)
    one = jnp.ones_like(left)
    start = _Bracket(left, value_left, right, value_right, right, one, zero, zero)
    start = vary_over(mesh_axes((start, attempt.end, attempt.values)), start)
    return jax.lax.while_loop(pending, closer, start).x


def _missing(
    attempt: Attempt, directions: tuple[int, ...], sides: Array
) -> Float[Array, " conditions"]:
    """How much longer the step would have to be to reach each condition's root, by its slope at
    the end; infinite for those that move away, or whose root would not count."""
    one = jnp.ones_like(attempt.t)
    _, slopes = jax.jvp(attempt.conditions, (one,), (one,))
    towards = slopes * sides < 0
    wanted = jnp.asarray(directions, sides.dtype)
    counts = towards & ((wanted == 0) | (wanted == -sides))
    ahead = attempt.dt * jnp.abs(attempt.end / jnp.where(towards, slopes, 1))
    return jnp.where(counts, ahead, jnp.inf)
