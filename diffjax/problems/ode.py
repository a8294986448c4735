"""Ordinary differential equations, M u' = f(u, p, t)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from .base import InitialValueProblem, hold, hold_span
from .parts import Parts, UserFunction, is_array
from .pattern import hold_sparsity


class ODEProblem(InitialValueProblem):
    """An initial value problem M u'(t) = f(u, p, t), u(t0) = u0.

    **Arguments:**

    - `f`: the vector field `f(u, p, t)`, out of place; it returns a pytree of the structure,
        shapes and dtypes of `u`. It may be an `equinox.Module`: its arrays are then
        differentiated and batched like `p`. `t` is a scalar in the dtype of the state.
    - `u0`: the initial state, any pytree of floating-point or complex arrays, or a function
        `u0(p, t0)` computing one.
    - `tspan`: a pair `(t0, t1)`, or a function `tspan(p)`. Python numbers are static, arrays are
        traced (and differentiable). `t1 < t0` solves backwards in time.
    - `p`: parameters, any pytree; an equinox network is a fine one.
    - `mass_matrix`: M, constant, of shape (n, n), or (n,) for its diagonal, where n counts the
        elements of `u0` (a pytree's leaf by leaf); by default the identity. It may be singular: a
        row of zeros makes that equation algebraic, 0 = f_i; a `u0` that does not satisfy it is
        changed as `solve(..., initialize=)` says. It is differentiated like `p`.
    - `jac`: a function `jac(u, p, t)` for the Jacobian of f, of shape (n, n); by default it is
        computed by forward derivatives.
    - `jac_sparsity`: where the Jacobian of f (and a dense `mass_matrix`) may have entries: a pair
        `(lower, upper)` of bandwidths, the number of diagonals below and above the main one; a
        boolean pattern, an array (n, n) of NumPy or SciPy's sparse; or `"detect"`, to find it by
        tracing f. The columns are then computed together, and if the coordinates can be put in an
        order in which the entries are near the diagonal, linear systems cost what is linear in n;
        otherwise they are solved as dense ones. With `jac` too, what that returns is still (n, n),
        and entries outside are ignored. A pattern that misses entries makes steps wrong or slow:
        `dj.check_sparsity(prob)` tells.

    **Raises:** `TypeError` if `f` or `jac` is not callable; `ValueError` or `TypeError` for a bad
    `tspan` or `jac_sparsity`.

    !!! example
        ```python
        prob = dj.ODEProblem(lambda u, p, t: -p * u, u0=jnp.array(1.0), tspan=(0.0, 1.0), p=2.0)
        ```
    """

    _f: UserFunction
    _mass_matrix: Parts | None
    _jac: UserFunction | None
    _jac_sparsity: Any = eqx.field(static=True)

    def __init__(
        self,
        f: Callable[[Any, Any, Any], Any],
        u0: PyTree | Callable[[Any, Any], PyTree],
        tspan: Any,
        p: PyTree = None,
        *,
        mass_matrix: Any = None,
        jac: Callable[[Any, Any, Any], Any] | None = None,
        jac_sparsity: Any = None,
    ) -> None:
        if not callable(f):
            raise TypeError(f"f must be a function f(u, p, t), got {type(f).__name__}.")
        if jac is not None and not callable(jac):
            raise TypeError(f"jac must be a function jac(u, p, t), got {type(jac).__name__}.")
        self._f = UserFunction(f)
        self._u0 = hold(u0)
        self._tspan = hold_span(tspan)
        self._p = Parts(p)
        self._mass_matrix = None if mass_matrix is None else Parts(_as_array(mass_matrix))
        self._jac = None if jac is None else UserFunction(jac)
        self._jac_sparsity = hold_sparsity(jac_sparsity)

    @property
    def f(self) -> Callable[[Any, Any, Any], Any]:
        """The vector field."""
        return self._f.value

    @property
    def mass_matrix(self) -> Any:
        """The mass matrix or its diagonal; None for the identity."""
        return None if self._mass_matrix is None else self._mass_matrix.value

    @property
    def jac(self) -> Callable[[Any, Any, Any], Any] | None:
        """The Jacobian of the vector field, if one was given."""
        return None if self._jac is None else self._jac.value

    @property
    def jac_sparsity(self) -> Any:
        """Where the Jacobian may have entries: a pair, `"detect"`, or a `Pattern`."""
        return self._jac_sparsity

    def arguments(self) -> dict[str, Any]:
        return {
            "f": self.f,
            "u0": self.u0,
            "tspan": self.tspan,
            "p": self.p,
            "mass_matrix": self.mass_matrix,
            "jac": self.jac,
            "jac_sparsity": self.jac_sparsity,
        }


def _as_array(matrix: Any) -> Any:
    """Rows of numbers as one array; what is an array already stays what it is."""
    return matrix if is_array(matrix) else np.asarray(matrix)
