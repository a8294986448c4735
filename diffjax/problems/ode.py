"""Ordinary differential equations, u' = f(u, p, t)."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from .base import Problem, hold, hold_span
from .parts import Parts, UserFunction


class ODEProblem(Problem):
    """An initial value problem u'(t) = f(u, p, t), u(t0) = u0.

    **Arguments:**

    - `f`: the vector field `f(u, p, t)`, out of place; it returns a pytree of the structure,
        shapes and dtypes of `u`. It may be an `equinox.Module`: its arrays are then
        differentiated and batched like `p`. `t` is a scalar in the dtype of the state.
    - `u0`: the initial state, any pytree of floating-point or complex arrays, or a function
        `u0(p, t0)` computing one.
    - `tspan`: a pair `(t0, t1)`, or a function `tspan(p)`. Python numbers are static, arrays are
        traced (and differentiable). `t1 < t0` solves backwards in time.
    - `p`: parameters, any pytree; an equinox network is a fine one.

    **Raises:** `TypeError` if `f` is not callable; `ValueError` or `TypeError` for a bad `tspan`.

    !!! example
        ```python
        prob = dj.ODEProblem(lambda u, p, t: -p * u, u0=jnp.array(1.0), tspan=(0.0, 1.0), p=2.0)
        ```
    """

    _f: UserFunction
    _u0: Parts | UserFunction
    _tspan: Parts | UserFunction
    _p: Parts

    def __init__(
        self,
        f: Callable[[Any, Any, Any], Any],
        u0: PyTree | Callable[[Any, Any], PyTree],
        tspan: Any,
        p: PyTree = None,
    ) -> None:
        if not callable(f):
            raise TypeError(f"f must be a function f(u, p, t), got {type(f).__name__}.")
        self._f = UserFunction(f)
        self._u0 = hold(u0)
        self._tspan = hold_span(tspan)
        self._p = Parts(p)

    @property
    def f(self) -> Callable[[Any, Any, Any], Any]:
        """The vector field."""
        return self._f.value

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

    def arguments(self) -> dict[str, Any]:
        return {"f": self.f, "u0": self.u0, "tspan": self.tspan, "p": self.p}
