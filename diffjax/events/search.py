"""Finding the first event inside a step.

A step at whose end, or at sampled points inside of which, some condition has changed its sign is
not accepted but taken again up to where the root is expected. The attempts close in on it, each an
ordinary step from the same start, until one ends just beyond the root: so the state there is as
accurate as at the end of any step, and a vector field that jumps at the event is never used on its
far side. Where the root is expected follows from the continuous extension of the last attempt that
went too far, or, after one that fell short, from the slope at its end; a bracket and bisection
guard both.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# A step may end beyond the root by so many units in the last place of time.
_ROOT_ULPS = 4.0
# Attempts that trust the extension before the bracket is halved.
_TRUSTED = 8
# Iterations of the Illinois method on the extension, where the bracket has not closed before.
_INNER = 12
# How far beyond the expected root an attempt aims that follows one that fell short.
_OVERSHOOT = 1.1


class Search(NamedTuple):
    """Where the search for an event stands, in the time since the start of the step.

    - `aim`: the size of the next attempt; 0 if nothing is searched.
    - `low`: an attempt of this size fell short of the event; `high`: one went beyond.
    - `which`: the condition that is followed.
    """

    aim: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    which: Int[Array, ""]
    tries: Int[Array, ""]

    @staticmethod
    def none(dtype: np.dtype) -> "Search":
        zero, count = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        return Search(zero, zero, zero, count, count)

    @property
    def on(self) -> Bool[Array, ""]:
        return self.aim > 0


class Sighting(NamedTuple):
    """What an attempted step has shown.

    - `pending`: it must be taken again with another size.
    - `fired`: the conditions that had a root just before its end.
    - `values`, `sides`: the conditions at its end, and on which side of zero they are.
    """

    pending: Bool[Array, ""]
    fired: Bool[Array, " conditions"]
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


def look(
    attempt: Attempt,
    directions: tuple[int, ...],
    samples: int,
    search: Search,
    accepted: Bool[Array, ""],
    when: Callable[..., Search],
    rough: bool,
) -> Sighting:
    """Judge an attempt that is `accepted` but for its events.

    `when(condition, function, x)` applies a function where it is needed; conditions that are
    `rough` functions of time are searched by bisection.
    """
    grid = jnp.asarray(np.arange(1, samples + 2) / (samples + 1), attempt.t.dtype)
    inside = jax.vmap(attempt.conditions)(grid[:-1]) if samples else attempt.end[None][:0]
    values = jnp.concatenate([inside, attempt.end[None]])
    crossed = _crossings(values, attempt.sides, directions)
    in_row = jnp.any(crossed, axis=1)
    row = jnp.argmax(in_row)
    seen = accepted & jnp.any(in_row)
    before = jnp.concatenate([jnp.zeros(1, grid.dtype), grid])[row]
    ends = jnp.concatenate([attempt.values[None], values])
    which, guess = _first(ends[row], values[row], crossed[row])
    dt, tolerance = attempt.dt, attempt.resolution

    short = accepted & ~seen & search.on & (dt < search.high - tolerance)
    low = jnp.where(search.on, search.low, 0)
    found = Search(
        aim=dt * (before + (grid[row] - before) * guess),
        low=jnp.where(seen, low, dt),
        high=jnp.where(seen, dt * grid[row], search.high),
        which=jnp.where(seen, which, search.which).astype(jnp.int32),
        tries=search.tries + 1,
    )
    if rough:
        aim = (found.low + found.high) / 2
    else:

        def refine(found: Search) -> Search:
            beyond = _root(attempt, found.which, before, grid[row])
            closer = jnp.where(seen, dt * beyond + tolerance / 2, _onward(attempt, found.which))
            return found._replace(aim=closer)

        aim = when(seen | short, refine, found).aim
    landed = seen & ((dt - aim <= tolerance) | (dt - found.low <= tolerance) | (dt <= tolerance))
    landed &= crossed[-1].any()
    pending = (seen & ~landed) | short
    middle = (found.low + found.high) / 2
    trusted = (aim > found.low) & (aim < found.high) & (found.tries <= _TRUSTED)
    # A bracket that can be closed no further ends with an attempt of its upper end.
    closed = found.high - found.low <= tolerance
    aim = jnp.where(closed, found.high, jnp.where(trusted, aim, middle))
    found = found._replace(aim=jnp.maximum(aim, tolerance))
    none = Search.none(attempt.t.dtype)
    return Sighting(
        pending=pending,
        fired=crossed[-1] & landed,
        values=attempt.end,
        sides=jnp.where(attempt.end == 0, attempt.sides, jnp.sign(attempt.end)),
        search=Search(*(jnp.where(pending, x, y) for x, y in zip(found, none, strict=True))),
    )


def _crossings(values: Array, sides: Array, directions: tuple[int, ...]) -> Array:
    """Between which points the conditions have changed sign in a direction that counts.

    A zero inside belongs to the side before it, one at the end to the side beyond.
    """
    signs = jnp.sign(values)
    before = jnp.concatenate([sides[None], signs[:-1]])
    earlier = jnp.concatenate([sides[None], sides[None], signs[:-2]])[: before.shape[0]]
    before = jnp.where(before == 0, earlier, before)
    end = jnp.where(signs[-1] == 0, -before[-1], signs[-1])
    after = jnp.concatenate([signs[:-1], end[None]])
    change = after * before < 0
    wanted = jnp.asarray(directions, values.dtype)
    return change & ((wanted == 0) | (after == wanted))


def _first(left: Array, right: Array, crossed: Array) -> tuple[Array, Array]:
    """Which of the conditions that change sign between two points does so first, and at what
    fraction of the way, by a line between them."""
    change = right - left
    fraction = jnp.where(change == 0, 0.5, -left / jnp.where(change == 0, 1, change))
    fraction = jnp.where((fraction >= 0) & (fraction <= 1), fraction, 0.5)
    which = jnp.argmax(jnp.where(crossed, -fraction, -2))
    return which, fraction[which]


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
        x = jnp.where((x >= s.a) & (x <= s.b), x, (s.a + s.b) / 2)
        value = attempt.conditions(x)[which]
        beyond = jnp.sign(value) != jnp.sign(s.value_a)
        # An end that stays twice is given half its value, or the other would close in alone.
        half_a = jnp.where(s.replaced > 0, 0.5, 1.0)
        half_b = jnp.where(s.replaced < 0, 0.5, 1.0)
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
    return jax.lax.while_loop(pending, closer, start).x


def _onward(attempt: Attempt, which: Array) -> Float[Array, ""]:
    """The size of a step that goes as far as the condition's root, from one that falls short."""
    one = jnp.ones_like(attempt.t)
    value, slope = jax.jvp(lambda x: attempt.conditions(x)[which], (one,), (one,))
    missing = jnp.where(slope == 0, jnp.inf, jnp.abs(value / jnp.where(slope == 0, 1, slope)))
    return attempt.dt * (1 + _OVERSHOOT * missing) + attempt.resolution
