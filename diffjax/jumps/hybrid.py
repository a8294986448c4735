"""Jumps on a differential equation.

Jumps of a constant rate have known times: when something has jumped the time of the next is drawn
anew for each of them, as it may be since waiting has no memory, and a step ends on the first of
these times.

Jumps of a variable rate lambda happen when the integral of lambda since the last one has reached a
number E with the exponential distribution. The integral J' = lambda, J = -E after a jump, is part
of the state that is solved for, and J = 0 an event. So the times are right to the tolerance of the
solve whatever the rate depends on, and move smoothly with all that the rate depends on: their
derivative is that of an event's time. Several such jumps have an integral each
(`dj.FirstReaction()`), or one of the sum of their rates and a draw of which one it was
(`dj.Direct()`, the default, whose cost does not grow with their number).

Sources: Gillespie, J. Comput. Phys. 22 (1976); Salis and Kaznessis, J. Chem. Phys. 122 (2005),
equation (12), for the integrals.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt32

from ..events.callbacks import AlarmCallback, Callback, HazardCallback
from ..noise.random import exponential, key_from, threefry, uniform
from ..problems.jump import JumpProblem
from ..problems.jump_kinds import Jump, VariableRateJump
from ..stepping.trace import checked
from ..stepping.trees import where
from .aggregators import Direct
from .channels import View, view_of

Scalar = Float[Array, ""]
# What a draw is for; counters of the generator beside the number of the event.
_WAIT, _HAZARD, _WHICH, _AFFECT = (np.uint32(i << 28) for i in range(4))
# A jump is due no sooner than so many units in the last place of time after the last.
_SOONEST_ULPS = 16.0


class Hybrid(NamedTuple):
    """A problem with jumps as one with callbacks.

    - `given`: the arguments of the problem that is solved; with hazards, `has_hazards`, its state
        is the pair of the user's and theirs.
    - `callbacks`: the jumps.
    - `alarms`: when jumps are due as the solve begins; None without any of a constant rate.
    """

    given: dict[str, Any]
    callbacks: tuple[Callback, ...]
    alarms: Float[Array, " jumps"] | None
    has_hazards: bool


class _Group:
    """Several jumps as one list of channels, with the random numbers that they use."""

    def __init__(self, views: Sequence[View], key: UInt32[Array, " 2"], dtype: Any) -> None:
        self.views, self.key, self.dtype = views, key, dtype
        self.starts = np.cumsum([0, *(view.width for view in views)])
        self.count = int(self.starts[-1])

    def rates(self, u: PyTree, p: PyTree, t: Array) -> Float[Array, " count"]:
        return jnp.concatenate([view.rates(u, p, t) for view in self.views])

    def words(self, number: Array, use: np.uint32, places: Array) -> tuple[Array, Array]:
        """Random bits of an event, for a use and each of several places."""
        first = jnp.broadcast_to(number.astype(jnp.uint32), places.shape)
        return threefry(self.key, first, places.astype(jnp.uint32) + use)

    def waits(self, number: Array, use: np.uint32, count: int) -> Float[Array, " count"]:
        """Numbers with the exponential distribution."""
        return exponential(self.words(number, use, jnp.arange(count))[0], self.dtype)

    def jumped(
        self, index: Int[Array, ""], u: PyTree, p: PyTree, t: Array, number: Array
    ) -> PyTree:
        """The user's state after a jump."""
        words = jnp.stack(self.words(number, _AFFECT, index.reshape(())))
        for view, start in zip(self.views, self.starts, strict=False):
            inside = jnp.clip(index - int(start), 0, view.width - 1)
            after = checked(view.affect(u, p, t, inside, words), u, "affect")
            mine = (index >= int(start)) & (index < int(start) + view.width)
            u = after if len(self.views) == 1 else where(mine, after, u)
        return u


def hybrid(
    prob: JumpProblem,
    given: dict[str, Any],
    u0: PyTree,
    p: PyTree,
    t0: Scalar,
    key: UInt32[Array, " 2"],
) -> Hybrid:
    """The jumps of a problem as callbacks on what happens between them.

    `given` are the arguments of the problem without its jumps.

    **Raises:** `TypeError` or `ValueError` for jumps that do not fit the state; `TypeError` when
    the parameters of a rate on a stochastic equation are differentiated.
    """
    dtype, at = t0.dtype, (u0, p, t0)
    # Not the numbers that the noise of a stochastic equation is made of.
    key = jnp.stack(threefry(key_from(key, t0), jnp.uint32(1), jnp.uint32(0)))

    def group(jumps: Sequence[Jump]) -> _Group:
        return _Group([view_of(jump, at, dtype) for jump in jumps], key, dtype)

    variable = group([j for j in prob.jumps if isinstance(j, VariableRateJump)])
    constant = group([j for j in prob.jumps if not isinstance(j, VariableRateJump)])
    has_hazards, has_alarms = variable.count > 0, constant.count > 0
    if given.get("g") is not None:
        # Looked at here, where only what the user differentiates has a tangent.
        u, t = jax.lax.stop_gradient((u0, t0))
        for some in (variable, constant):
            if some.count:
                _undifferentiated(some.rates(u, p, t))
    draw = _drawing(constant) if has_alarms else _nothing
    before = jnp.full((), -1, jnp.int32)
    alarms = draw(u0, p, t0, before)
    callbacks: list[Callback] = []
    if has_alarms:
        callbacks.append(AlarmCallback(_ring(constant, draw, has_hazards)))
    if has_hazards:
        separate = variable.count == 1 or not isinstance(prob.aggregator or Direct(), Direct)
        count = variable.count if separate else 1
        callbacks += [_hazard(variable, i, separate, draw) for i in range(count)]
        start = -variable.waits(before, _HAZARD, count)
        given = _with_hazards(given, u0, start, _summed(variable, separate))
    return Hybrid(given, tuple(callbacks), alarms, has_hazards)


@jax.custom_jvp
def _undifferentiated(rates: Float[Array, " jumps"]) -> Float[Array, " jumps"]:
    """Rates that nothing of what is differentiated may reach."""
    return rates


@_undifferentiated.defjvp
def _refused(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "the rate of a jump on a stochastic equation cannot be differentiated: jumps stay where "
        "they are, and the gradient would say nothing of the rate. Keep the rate out of it, with "
        "jax.lax.stop_gradient(p) inside rate(u, p, t) or a Python number; the gradient is then "
        "that of drift, diffusion and affects. To differentiate the rate take a "
        "dj.VariableRateJump on an ODEProblem, whose jump times are differentiated, or "
        "dj.jumps.score_gradient on a DiscreteProblem."
    )


Draw = Callable[[Any, Any, Array, Array], Any]


def _nothing(u: PyTree, p: PyTree, t: Array, number: Array) -> None:
    return None


def _drawing(group: _Group) -> Draw:
    """When jumps are due after event `number`: NaN for a negative rate."""

    def draw(u: PyTree, p: PyTree, t: Array, number: Array) -> Float[Array, " count"]:
        rates = group.rates(u, p, t)
        some = rates > 0
        waits = group.waits(number + 1, _WAIT, group.count) / jnp.where(some, rates, 1)
        soonest = _SOONEST_ULPS * float(jnp.finfo(t.dtype).eps) * jnp.abs(t)
        due = jnp.where(some, t + jnp.maximum(waits, soonest), jnp.inf)
        return jnp.where(rates >= 0, due, jnp.nan)

    return draw


def _ring(group: _Group, draw: Draw, has_hazards: bool) -> Any:
    """What happens when a jump is due."""

    def act(state: PyTree, p: PyTree, t: Array, alarms: Array, number: Array) -> Any:
        u = state[0] if has_hazards else state
        index = jnp.argmax(-alarms).astype(jnp.int32)
        u = group.jumped(index, u, p, t, number)
        return ((u, state[1]) if has_hazards else u), draw(u, p, t, number)

    return act


def _summed(group: _Group, separate: bool) -> Callable[[Any, Any, Array], Array]:
    """The rates that are integrated: each, or their sum."""

    def rates(u: PyTree, p: PyTree, t: Array) -> Array:
        each = group.rates(u, p, t)
        return each if separate else jnp.sum(each, keepdims=True)

    return rates


def _hazard(group: _Group, place: int, separate: bool, draw: Draw) -> HazardCallback:
    """The event at which an integral has reached zero."""

    def condition(state: PyTree, p: PyTree, t: Array) -> Array:
        u, integrals = state
        # An integral that falls is no integral of a rate: what is not a number fails the solve.
        proper = jnp.all(group.rates(u, p, t) >= 0)
        return jnp.where(proper, integrals[place], jnp.nan)

    def which(u: PyTree, p: PyTree, t: Array, number: Array) -> Array:
        if separate:
            return jnp.asarray(place, jnp.int32)
        shares = jnp.cumsum(group.rates(u, p, t))
        word, _ = group.words(number, _WHICH, jnp.zeros((), jnp.int32))
        aim = uniform(word, group.dtype) * shares[-1]
        return jnp.minimum(jnp.sum(shares <= aim, dtype=jnp.int32), group.count - 1)

    def act(state: PyTree, p: PyTree, t: Array, alarms: Any, number: Array) -> Any:
        u, integrals = state
        u = group.jumped(which(u, p, t, number), u, p, t, number)
        wait = group.waits(number, _HAZARD, place + 1)[place]
        here = jnp.arange(integrals.shape[0]) == place
        return (u, jnp.where(here, -wait, integrals)), draw(u, p, t, number)

    return HazardCallback(condition, act)


def _with_hazards(
    given: dict[str, Any], u0: PyTree, start: Array, rates: Callable[[Any, Any, Array], Array]
) -> dict[str, Any]:
    """The arguments of the problem whose state is the pair of u and the integrals of `rates`."""
    for name in ("F", "mass_matrix", "jac", "jac_sparsity"):
        if given.get(name) is not None:
            raise TypeError(
                f"VariableRateJump cannot be solved together with {name}, since the integral of "
                "its rate is part of the system that is solved; leave it out."
            )
    f, g = given["f"], given.get("g")

    def with_rates(state: PyTree, p: PyTree, t: Array) -> PyTree:
        return f(state[0], p, t), rates(state[0], p, t)

    changed = {**given, "u0": (u0, start), "f": with_rates}
    if g is None:
        return changed
    is_matrix = given["noise"] in ("commutative", "general")

    def without_noise(state: PyTree, p: PyTree, t: Array) -> PyTree:
        gu = g(state[0], p, t)
        columns = (jnp.shape(jtu.tree_leaves(gu)[0])[-1],) if is_matrix else ()
        return gu, jnp.zeros((*start.shape, *columns), start.dtype)

    factor = given["correlation"]
    if factor is not None and not is_matrix and given["noise"] != "scalar":
        # The integrals have noises of their own, which do nothing.
        count = start.shape[0]
        factor = jnp.block(
            [
                [factor, jnp.zeros((factor.shape[0], count), factor.dtype)],
                [
                    jnp.zeros((count, factor.shape[1]), factor.dtype),
                    jnp.eye(count, dtype=factor.dtype),
                ],
            ]
        )
    return {**changed, "g": without_noise, "correlation": factor}
