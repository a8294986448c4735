"""Steady states, f(u, p) = 0."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import PyTree

from .base import Problem, hold
from .parts import Parts, UserFunction


class SteadyStateProblem(Problem):
    """A state u at which u'(t) = f(u, p, t) stays: f(u, p, inf) = 0.

    **Arguments:**

    - `f`: the vector field `f(u, p, t)`, as of a `dj.ODEProblem`. Its zeros are those at
        `t = inf`, where it must be finite; `dj.DynamicSS`, which follows the solution in time from
        t = 0, passes the time.
    - `u0`: where the search starts: any pytree of floating-point or complex arrays, or a function
        `u0(p, t0)` computing one (t0 is 0). A steady state does not depend on it but by which of
        several is found, so its derivative is zero.
    - `p`: parameters, any pytree; an equinox network is a fine one.

    **Raises:** `TypeError` if `f` is not callable.

    !!! example
        ```python
        prob = dj.SteadyStateProblem(lambda u, p, t: p - u**3, u0=jnp.array([1.0]), p=2.0)
        root = dj.solve(prob).u[-1]
        ```

    Source: the `SteadyStateProblem` of DifferentialEquations.jl, which takes t = inf as well.
    """

    evolves: ClassVar[bool] = False

    _f: UserFunction
    _u0: Parts | UserFunction
    _p: Parts

    def __init__(
        self,
        f: Callable[[Any, Any, Any], Any],
        u0: PyTree | Callable[[Any, Any], PyTree],
        p: PyTree = None,
    ) -> None:
        if not callable(f):
            raise TypeError(f"f must be a function f(u, p, t), got {type(f).__name__}.")
        self._f = UserFunction(f)
        self._u0 = hold(u0)
        self._p = Parts(p)

    @property
    def f(self) -> Callable[[Any, Any, Any], Any]:
        """The vector field."""
        return self._f.value

    @property
    def u0(self) -> Any:
        """Where the search starts, or the function that computes it."""
        return self._u0.value

    @property
    def tspan(self) -> tuple[float, float]:
        """From zero without end."""
        return 0.0, np.inf

    @property
    def p(self) -> PyTree:
        """The parameters, as they were given."""
        return self._p.value

    def arguments(self) -> dict[str, Any]:
        return {"f": self.f, "u0": self.u0, "p": self.p}
