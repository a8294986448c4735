"""Callbacks: a condition, and what is done to the solution when it is met."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ..problems.parts import Parts, UserFunction, is_array


class Callback(eqx.Module):
    """Base class: something that is done to the solution at certain times.

    `affect` is None where nothing is done to the state, `terminate` whether the solve ends there.
    """

    affect: eqx.AbstractVar[UserFunction | None]
    terminate: eqx.AbstractVar[bool]
    changes_p: eqx.AbstractVar[bool]

    # Whether it is entered in `sol.events`.
    logged: ClassVar[bool] = True
    # Whether steps to some states are refused, as `refused` says.
    refuses: ClassVar[bool] = False
    # Whether too many of it end the solve.
    limited: ClassVar[bool] = True

    @property
    def acts(self) -> bool:
        """Whether something is done to the state."""
        return self.affect is not None

    @property
    def name(self) -> str:
        """What error messages call it."""
        return type(self).__name__

    def bound(self, problem: Any) -> "Callback":
        """The callback of a solve of this problem."""
        return self

    def refused(self, u: PyTree, p: Any, t: Array) -> Bool[Array, ""]:
        """Whether a step that ends in this state is to be taken again with a smaller one."""
        raise NotImplementedError


def _held(name: str, function: Any) -> UserFunction:
    if not callable(function) or is_array(function):
        raise TypeError(
            f"{name} must be a function {name}(u, p, t), got {type(function).__name__}."
        )
    return UserFunction(function)


def _check_does_something(affect: Any, changes_p: bool) -> None:
    if changes_p and affect is None:
        raise ValueError("changes_p=True needs affect=, a function (u, p, t) -> (u, p).")


class ContinuousCallback(Callback):
    """An event where `condition(u, p, t)` changes sign.

    The step that crosses the root is taken again up to it, so that the state there is as accurate
    as at the end of any step; the time is found to rounding. Gradients go through the time of the
    event by the implicit function theorem. Of several events in one step the first is taken, then
    the solve goes on from there; those at the same time are applied in the order they are listed
    in. A root that the solve starts on, or that it has just been at, does not count again.

    A solve of a stochastic equation finds the end of an interval of the resolution of its noise in
    which the path, seen at the ends of the steps, has crossed; such times carry no derivative. A
    path that crosses and is back within a step is missed, so that a barrier acts as if it lay
    0.5826 |g| sqrt(dt) further (Broadie, Glasserman and Kou, Math. Finance 7, 1997), of order one
    half: with X = W + t / 2, which reaches 1 before t = 1 with probability 0.490, steps of 1/64
    found 0.454 +- 0.006, by that formula 0.453. For less bias take smaller steps (`dtmax`).

    **Arguments:**

    - `condition`: `condition(u, p, t)`, a real scalar.
    - `affect`: `affect(u, p, t)` gives the state that the solve goes on with; None changes nothing.
    - `direction`: 1 for roots where the condition rises along the solve, -1 where it falls, 0 for
        both.
    - `terminate`: end the solve there, after the affect.
    - `changes_p`: the affect gives `(u, p)`, and the solve goes on with these parameters too.
    - `samples`: at how many points inside a step the condition is looked at, so that it may change
        its sign there and back without being missed; 0 looks at the ends of steps only, which is
        cheaper.
    - `save`: keep the states before and after the affect, as `sol.events.before` and `.after`.

    **Raises:** `TypeError`, `ValueError` for bad arguments; in `solve`, if the condition is not a
    scalar or the affect changes the shape or dtype of the state.

    Source: event location on the step itself as in Shampine and Thompson, Event location for
    ordinary differential equations, Comput. Math. Appl. 39 (2000).

    !!! example
        ```python
        bounce = dj.ContinuousCallback(
            lambda u, p, t: u[0], lambda u, p, t: u * jnp.array([1.0, -0.8]), direction=-1
        )
        sol = dj.solve(prob, dj.Tsit5(), callback=bounce)
        ```
    """

    condition: UserFunction
    affect: UserFunction | None
    direction: int = eqx.field(static=True)
    terminate: bool = eqx.field(static=True)
    changes_p: bool = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    save: bool = eqx.field(static=True)

    def __init__(
        self,
        condition: Callable[[Any, Any, Any], Array],
        affect: Callable[[Any, Any, Any], PyTree] | None = None,
        *,
        direction: int = 0,
        terminate: bool = False,
        changes_p: bool = False,
        samples: int = 10,
        save: bool = False,
    ) -> None:
        _check_does_something(affect, changes_p)
        if direction not in (-1, 0, 1):
            raise ValueError(
                f"direction must be 1 (rising), -1 (falling) or 0 (both), got {direction!r}."
            )
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise ValueError(f"samples must be a whole number from 0, got {samples!r}.")
        self.condition = _held("condition", condition)
        self.affect = None if affect is None else _held("affect", affect)
        self.direction, self.terminate, self.changes_p = direction, terminate, changes_p
        self.samples, self.save = samples, save


class DiscreteCallback(Callback):
    """What is done after every step at whose end `condition(u, p, t)` is true.

    **Arguments:**

    - `condition`: `condition(u, p, t)`, a boolean scalar, asked at the end of every accepted step.
    - `affect`, `terminate`, `changes_p`: as those of `dj.ContinuousCallback`.

    **Raises:** as `dj.ContinuousCallback`.

    !!! example
        `dj.DiscreteCallback(lambda u, p, t: u[0] > 10, terminate=True)`
    """

    condition: UserFunction
    affect: UserFunction | None
    terminate: bool = eqx.field(static=True)
    changes_p: bool = eqx.field(static=True)

    def __init__(
        self,
        condition: Callable[[Any, Any, Any], Array],
        affect: Callable[[Any, Any, Any], PyTree] | None = None,
        *,
        terminate: bool = False,
        changes_p: bool = False,
    ) -> None:
        _check_does_something(affect, changes_p)
        self.condition = _held("condition", condition)
        self.affect = None if affect is None else _held("affect", affect)
        self.terminate, self.changes_p = terminate, changes_p


# What a jump makes of the state, which may be more than the user's, and of the times at which jumps
# are due: act(u, p, t, alarms, number) -> (u, alarms), `number` that of the event.
Act = Callable[[Any, Any, Array, Any, Array], tuple[Any, Any]]


class AlarmCallback(Callback):
    """The jumps that happen when they are due."""

    limited: ClassVar[bool] = False

    act: Act = eqx.field(static=True)
    affect: UserFunction | None
    terminate: bool = eqx.field(static=True)
    changes_p: bool = eqx.field(static=True)

    def __init__(self, act: Act) -> None:
        self.act, self.affect, self.terminate, self.changes_p = act, None, False, False

    @property
    def acts(self) -> bool:
        return True


class HazardCallback(ContinuousCallback):
    """A jump that happens when the integral of its rate has reached a threshold."""

    limited: ClassVar[bool] = False

    act: Act = eqx.field(static=True)

    def __init__(self, condition: Callable[[Any, Any, Any], Array], act: Act) -> None:
        super().__init__(condition, direction=1, samples=0)
        self.act = act

    @property
    def acts(self) -> bool:
        return True


class ScheduledCallback(Callback):
    """Base class of what happens at times that are known ahead."""

    def times_in(self, span: tuple[float, float] | None) -> Any:
        """When it happens, given the span if that is of Python numbers: a tuple or an array."""
        raise NotImplementedError


class PresetTimeCallback(ScheduledCallback):
    """What is done at given times, on each of which a step ends.

    A time that is the start of the solve changes the state before the first step. Gradients flow to
    the times.

    **Arguments:**

    - `times`: the times, in any order; those outside of the span are not reached.
    - `affect`, `terminate`, `changes_p`: as those of `dj.ContinuousCallback`.

    **Raises:** `TypeError`, `ValueError` for bad arguments.

    !!! example
        ```python
        dose = dj.PresetTimeCallback([0.0, 8.0, 16.0], lambda u, p, t: u + p["dose"])
        ```
    """

    times: Parts
    affect: UserFunction | None
    terminate: bool = eqx.field(static=True)
    changes_p: bool = eqx.field(static=True)

    def __init__(
        self,
        times: Any,
        affect: Callable[[Any, Any, Any], PyTree] | None = None,
        *,
        terminate: bool = False,
        changes_p: bool = False,
    ) -> None:
        _check_does_something(affect, changes_p)
        if is_array(times) and not isinstance(times, np.ndarray):
            held = jnp.atleast_1d(times)
            if held.ndim > 1:
                raise ValueError(f"times must have one dimension, got shape {held.shape}.")
        else:
            given = np.atleast_1d(np.asarray(times, float))
            if given.ndim > 1 or not np.all(np.isfinite(given)):
                raise ValueError(f"times must be finite numbers in one dimension, got {times!r}.")
            held = tuple(given.tolist())
        self.times = Parts(held, dynamic=is_array)
        self.affect = None if affect is None else _held("affect", affect)
        self.terminate, self.changes_p = terminate, changes_p

    def times_in(self, span: tuple[float, float] | None) -> Any:
        return self.times.value


class PeriodicCallback(ScheduledCallback):
    """What is done at regular intervals, on each of which a step ends.

    **Arguments:**

    - `period`: the time between two of them, a positive Python number.
    - `affect`, `terminate`, `changes_p`: as those of `dj.ContinuousCallback`.
    - `phase`: the time from the start of the span to the first; by default a period. 0 begins with
        the start itself.

    **Raises:** `TypeError`, `ValueError` for bad arguments; in `solve`, if the span is traced, when
    it is not known how many there are (give `dj.PresetTimeCallback` the times).

    !!! example
        `dj.PeriodicCallback(24.0, lambda u, p, t: u + 1.0)`
    """

    affect: UserFunction | None
    period: float = eqx.field(static=True)
    phase: float = eqx.field(static=True)
    terminate: bool = eqx.field(static=True)
    changes_p: bool = eqx.field(static=True)

    def __init__(
        self,
        period: float,
        affect: Callable[[Any, Any, Any], PyTree] | None = None,
        *,
        phase: float | None = None,
        terminate: bool = False,
        changes_p: bool = False,
    ) -> None:
        _check_does_something(affect, changes_p)
        if not isinstance(period, int | float | np.number) or not (0 < period < np.inf):
            raise ValueError(f"period must be a positive Python number, got {period!r}.")
        self.affect = None if affect is None else _held("affect", affect)
        self.period = float(period)
        self.phase = float(period if phase is None else phase)
        if self.phase < 0:
            raise ValueError(f"phase must not be negative, got {phase!r}.")
        self.terminate, self.changes_p = terminate, changes_p

    def times_in(self, span: tuple[float, float] | None) -> Any:
        if span is None:
            raise ValueError(
                "PeriodicCallback needs a tspan of Python numbers, since it decides how many times "
                "there are; for a traced span give dj.PresetTimeCallback the times."
            )
        t0, t1 = span
        length = abs(t1 - t0) * (1 + 1e-12)
        count = max(int(np.floor((length - self.phase) / self.period)) + 1, 0)
        offsets = self.phase + self.period * np.arange(count)
        times = t0 + np.sign(t1 - t0) * offsets
        # Rounding must not make a step of no length before the end.
        near = np.abs(times - t1) <= 1e-12 * max(abs(t1), abs(t1 - t0))
        return tuple(np.where(near, t1, times).tolist())
