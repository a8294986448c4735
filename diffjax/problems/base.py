"""What every problem has in common."""

from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .parts import Parts, UserFunction, is_array


def _is_traced_time(x: Any) -> bool:
    return is_array(x) and not isinstance(x, np.generic)


class Problem(eqx.Module):
    """What to solve. Subclasses say which arguments define them.

    A problem is a pytree whose leaves are all arrays, so plain `jax.jit`, `jax.vmap` and
    `jax.grad` take it as an argument. It holds no solver and knows no algorithm.
    """

    # Whether its solution is followed over a span of time.
    evolves: ClassVar[bool] = True
    # Whether noise drives it, which needs a key or a path.
    stochastic: ClassVar[bool] = False

    @property
    def tspan(self) -> Any:
        """The pair (t0, t1), or the function that computes it."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that rebuild this problem."""
        raise NotImplementedError

    def changed(self, **changes: Any) -> Any:
        """A problem like this one with some of its arguments changed; called by `remake`."""
        return type(self)(**{**self.arguments(), **changes})


class InitialValueProblem(Problem):
    """A problem that starts from `u0` and is followed over `tspan` with parameters `p`."""

    _u0: Parts | UserFunction
    _tspan: Parts | UserFunction
    _p: Parts

    @property
    def u0(self) -> Any:
        """The initial state, or the function that computes it."""
        return self._u0.value

    @property
    def tspan(self) -> Any:
        """The pair (t0, t1), or the function that computes it."""
        return self._tspan.value

    @property
    def p(self) -> PyTree:
        """The parameters, as they were given."""
        return self._p.value


Kind = TypeVar("Kind", bound=Problem)


def remake(prob: Kind, /, **changes: Any) -> Kind:
    """A problem like `prob` with some of its arguments changed.

    **Arguments:**

    - `prob`: the problem.
    - `changes`: new values by argument name, for example `p=`, `u0=`, `tspan=`.

    **Returns:** a new problem of the same kind.

    **Raises:** `TypeError` for a name that the problem does not have.

    !!! example
        `dj.remake(prob, p=jnp.array([2.0, 1.0, 3.0, 1.0]))`
    """
    arguments = prob.arguments()
    unknown = sorted(set(changes) - set(arguments))
    if unknown:
        raise TypeError(
            f"remake: {type(prob).__name__} has no argument {unknown[0]!r}; "
            f"it takes {', '.join(arguments)}."
        )
    return prob.changed(**changes)


def hold(value: Any) -> Parts | UserFunction:
    """Keep an argument that may be a pytree of arrays or a function computing one."""
    if callable(value) and not is_array(value):
        return UserFunction(value)
    return Parts(value)


def hold_span(tspan: Any) -> Parts | UserFunction:
    """Keep `(t0, t1)`: Python numbers are static, arrays are traced; or a function of `p`."""
    if not is_array(tspan) and callable(tspan):
        return UserFunction(tspan)
    if is_array(tspan) and tspan.ndim == 1:
        tspan = tuple(tspan)
    if isinstance(tspan, list):
        tspan = tuple(tspan)
    if not isinstance(tspan, tuple) or len(tspan) != 2:
        got = f"{len(tspan)} elements" if hasattr(tspan, "__len__") else repr(tspan)
        raise ValueError(f"tspan must be a pair (t0, t1), got {got}; try tspan=(0.0, 10.0).")
    ends = tuple(t if _is_traced_time(t) else _static_time(t) for t in tspan)
    return Parts(ends, dynamic=is_array)


def _static_time(t: Any) -> float:
    try:
        value = float(t)
    except (TypeError, ValueError):
        raise TypeError(
            f"tspan must hold numbers or scalar arrays, got an end of type {type(t).__name__}."
        ) from None
    if not np.isfinite(value):
        raise ValueError(f"tspan must be finite, got an end of {value}.")
    return value


def tree_of_arrays(tree: PyTree) -> PyTree:
    """Leave arrays as they are and turn Python numbers into numpy scalars."""
    return jtu.tree_map(lambda x: x if is_array(x) else np.asarray(x), tree)
