"""Jumps: how often they happen, and what they do to the state."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, PyTree

from .base import hold
from .parts import Parts, UserFunction

Rate = Callable[[Any, Any, Any], Any]


class Jump(eqx.Module):
    """Something that happens to the state at random times. Subclasses say how."""


class _FunctionalJump(Jump):
    """A jump given by two functions."""

    _rate: UserFunction
    _affect: UserFunction

    @property
    def rate(self) -> Rate:
        """How often it happens."""
        return self._rate.value

    @property
    def affect(self) -> Callable[..., PyTree]:
        """What it does to the state."""
        return self._affect.value


class ConstantRateJump(_FunctionalJump):
    """A jump whose rate does not change between jumps.

    **Arguments:**

    - `rate`: `rate(u, p, t)`, jumps per unit of time, a scalar; or an array of shape (m,), for m
        jumps with one affect. It is looked at when something has jumped and at no other time: with
        a state that moves between jumps, or a rate that depends on `t`, take a
        `dj.VariableRateJump`.
    - `affect`: `affect(u, p, t) -> u`, the state after the jump; of m jumps
        `affect(u, p, t, index)`, `index` being the one that fired. A random affect has one
        argument more, the last: `affect(u, p, t, key)` or `affect(u, p, t, index, key)`. (Arguments
        with a default are not counted.)

    Either may be an `equinox.Module`, such as a network, whose arrays are then differentiated like
    `p`. On a stochastic equation a rate cannot be differentiated, since its jumps stay where they
    are: `jax.lax.stop_gradient` inside of it keeps it out of the gradient.

    **Raises:** `TypeError` for what is not a function; in `solve`, when a rate is differentiated
    on a stochastic equation.

    !!! example
        ```python
        infection = dj.ConstantRateJump(
            lambda u, p, t: p * u[0] * u[1], lambda u, p, t: u + jnp.array([-1, 1])
        )
        ```
    """

    def __init__(self, rate: Rate, affect: Callable[..., PyTree]) -> None:
        self._rate = _function("rate", rate, "rate(u, p, t)")
        self._affect = _function("affect", affect, "affect(u, p, t) -> u")


class VariableRateJump(_FunctionalJump):
    """A jump whose rate changes between jumps, with the state or with time.

    **Arguments:**

    - `rate`, `affect`: as of `dj.ConstantRateJump`.
    - `urate`: `urate(u, p, t)`, a bound of the rate from `t` on while nothing jumps, in the shape
        of `rate`. On a `dj.DiscreteProblem` it is needed: jumps are drawn at this rate, and
        accepted with probability `rate / urate` (thinning), which is exact.
    - `rateinterval`: `rateinterval(u, p, t)`, for how long the bound holds, a scalar; by default
        until something jumps.

    **Raises:** `TypeError` for what is not a function, `ValueError` for a `rateinterval` without
    `urate`.

    Source: Lewis and Shedler, Simulation of nonhomogeneous Poisson processes by thinning, Naval
    Research Logistics 26 (1979); Ogata, IEEE Transactions on Information Theory 27 (1981).

    !!! example
        ```python
        daily = dj.VariableRateJump(
            lambda u, p, t: p * (1 + jnp.sin(t)), lambda u, p, t: u + 1, urate=lambda u, p, t: 2 * p
        )
        ```
    """

    _urate: UserFunction | None
    _rateinterval: UserFunction | None

    def __init__(
        self,
        rate: Rate,
        affect: Callable[..., PyTree],
        *,
        urate: Rate | None = None,
        rateinterval: Rate | None = None,
    ) -> None:
        self._rate = _function("rate", rate, "rate(u, p, t)")
        self._affect = _function("affect", affect, "affect(u, p, t) -> u")
        if rateinterval is not None and urate is None:
            raise ValueError(
                "rateinterval says for how long a bound of the rate holds: give urate= too."
            )
        self._urate = None if urate is None else _function("urate", urate, "urate(u, p, t)")
        self._rateinterval = (
            None
            if rateinterval is None
            else _function("rateinterval", rateinterval, "rateinterval(u, p, t)")
        )

    @property
    def urate(self) -> Rate | None:
        """A bound of the rate, or None."""
        return None if self._urate is None else self._urate.value

    @property
    def rateinterval(self) -> Rate | None:
        """For how long the bound holds, or None for until something jumps."""
        return None if self._rateinterval is None else self._rateinterval.value


class IntegerTable:
    """An integer matrix that is compared by value, so that equal problems compile once."""

    def __init__(self, name: str, given: Any) -> None:
        try:
            array = np.asarray(given)
        except Exception:
            raise TypeError(
                f"{name} must be known while tracing, an integer array of shape (reactions, "
                f"species): got {type(given).__name__}."
            ) from None
        if array.ndim != 2 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{name} must be an integer array of shape (reactions, species), got shape "
                f"{array.shape} and dtype {array.dtype}; try np.array([[1, 0], [0, 1]])."
            )
        self.array = array.astype(np.int64)
        self._key = (array.shape, self.array.tobytes())

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntegerTable) and self._key == other._key


class MassActionJump(Jump):
    """Reactions that follow the law of mass action: a jump each.

    Reaction j happens at the rate c_j times the number of ways to choose its reactants among the
    molecules there are: with r_ji molecules of species i, c_j / prod_i(r_ji!) times
    prod_i u_i (u_i - 1) ... (u_i - r_ji + 1).

    **Arguments:**

    - `rates`: the constants c, of shape (reactions,), or a function `rates(p)` that gives them.
    - `reactants`: how many molecules of each species a reaction takes, an integer array of shape
        (reactions, species).
    - `net_change`: by how much each species changes, products less reactants, in the same shape.

    The species are the elements of `u0`, counted leaf by leaf. The arrays of integers are static.

    **Raises:** `ValueError` for arrays of other shapes or dtypes, a negative number of reactants,
    or a reaction that uses up more than its reactants.

    Source: Gillespie, J. Comput. Phys. 22 (1976), equation (4) and table I.

    !!! example
        ```python
        # S + I -> 2 I, I -> R
        sir = dj.MassActionJump(lambda p: p, [[1, 1, 0], [0, 1, 0]], [[-1, 1, 0], [0, -1, 1]])
        ```
    """

    _rates: Parts | UserFunction
    _reactants: IntegerTable = eqx.field(static=True)
    _net_change: IntegerTable = eqx.field(static=True)

    def __init__(self, rates: Any, reactants: Any, net_change: Any) -> None:
        self._rates = hold(rates)
        self._reactants = IntegerTable("reactants", reactants)
        self._net_change = IntegerTable("net_change", net_change)
        taken, change = self.reactants, self.net_change
        if taken.shape != change.shape:
            raise ValueError(
                "reactants and net_change must have one shape, (reactions, species): got "
                f"{taken.shape} and {change.shape}."
            )
        if (taken < 0).any():
            raise ValueError("reactants must not be negative; what is made belongs in net_change.")
        short = np.argwhere(taken + change < 0)
        if short.size:
            j, i = short[0]
            raise ValueError(
                f"net_change[{j}, {i}] = {change[j, i]} uses up more than the {taken[j, i]} "
                f"molecules in reactants[{j}, {i}]; for other rates take dj.RegularJump."
            )

    @property
    def rates(self) -> Array | Callable[[Any], Any]:
        """The constants, or the function that computes them."""
        return self._rates.value

    @property
    def reactants(self) -> np.ndarray:
        """Molecules taken, of shape (reactions, species)."""
        return self._reactants.array

    @property
    def net_change(self) -> np.ndarray:
        """Products less reactants, of shape (reactions, species)."""
        return self._net_change.array


class RegularJump(Jump):
    """m jumps that each add something to the state, so that many can be added at once.

    For tau-leaping (`dj.TauLeaping`); exact simulation takes it as well.

    **Arguments:**

    - `rate`: `rate(u, p, t)`, an array of shape (m,), constant between jumps.
    - `change`: what a jump adds, an integer array of shape (m, species), the species being the
        elements of `u0` counted leaf by leaf; or a function `change(u, p, t, counts) -> du`, what
        `counts` jumps of each kind, an integer array of shape (m,), add to `u`.

    **Raises:** `TypeError`, `ValueError` for a `rate` that is no function or another `change`.

    !!! example
        ```python
        decay = dj.RegularJump(lambda u, p, t: p * u, -np.eye(3, dtype=int))
        ```
    """

    _rate: UserFunction
    _change: UserFunction | None
    _table: IntegerTable | None = eqx.field(static=True)

    def __init__(self, rate: Rate, change: Any) -> None:
        self._rate = _function("rate", rate, "rate(u, p, t)")
        is_function = callable(change) and not hasattr(change, "shape")
        self._change = UserFunction(change) if is_function else None
        self._table = None if is_function else IntegerTable("change", change)

    @property
    def rate(self) -> Rate:
        """How often each jump happens."""
        return self._rate.value

    @property
    def change(self) -> np.ndarray | Callable[[Any, Any, Any, Any], PyTree]:
        """What a jump adds: an array of shape (m, species), or a function."""
        if self._change is not None:
            return self._change.value
        assert self._table is not None
        return self._table.array


def _function(name: str, value: Any, form: str) -> UserFunction:
    if not callable(value):
        raise TypeError(f"{name} must be a function {form}, got {type(value).__name__}.")
    return UserFunction(value)
