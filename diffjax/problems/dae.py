"""Fully implicit differential-algebraic equations, F(u', u, p, t) = 0."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .base import InitialValueProblem, hold, hold_span
from .parts import Parts, UserFunction
from .pattern import hold_sparsity


class DAEProblem(InitialValueProblem):
    """An initial value problem F(u'(t), u(t), p, t) = 0 of index one, u(t0) = u0, u'(t0) = du0.

    The equations must determine the derivatives of the differential variables and the algebraic
    variables, those whose derivative does not occur. A start that does not satisfy them is changed
    as `solve(..., initialize=)` says, so that `du0` may be a guess.

    **Arguments:**

    - `F`: the residual `F(du, u, p, t)`, out of place; it returns a pytree of the structure, shapes
        and dtypes of `u`. It may be an `equinox.Module`: its arrays are then differentiated and
        batched like `p`.
    - `du0`: the derivative at the start, like `u0`, or a function `du0(p, t0)` computing it.
    - `u0`: the initial state, any pytree of floating-point or complex arrays, or a function
        `u0(p, t0)` computing one.
    - `tspan`: as in `dj.ODEProblem`.
    - `p`: parameters, any pytree.
    - `differential_vars`: which variables are differential, a pytree of booleans like `u0` (for one
        array a list will do). By default those whose derivative F depends on at the start.
    - `jac`: a function `jac(du, u, p, gamma, t)` for gamma*dF/du' + dF/du, of shape (n, n); by
        default these are computed from F. The elements of a pytree count leaf by leaf.
    - `jac_sparsity`: where the derivatives of F by u' and by u may have entries, as in
        `dj.ODEProblem`.

    **Raises:** `TypeError` if `F` or `jac` is not callable; `ValueError` or `TypeError` for a bad
    `tspan`, `differential_vars` or `jac_sparsity`.

    !!! example
        ```python
        def F(du, u, p, t):
            return jnp.stack([du[0] + p * u[0], u[1] - u[0] ** 2])

        prob = dj.DAEProblem(F, du0=jnp.zeros(2), u0=jnp.ones(2), tspan=(0.0, 1.0), p=2.0)
        ```
    """

    _F: UserFunction
    _du0: Parts | UserFunction
    _jac: UserFunction | None
    _differential_vars: Any = eqx.field(static=True)
    _jac_sparsity: Any = eqx.field(static=True)

    def __init__(
        self,
        F: Callable[[Any, Any, Any, Any], Any],
        du0: PyTree | Callable[[Any, Any], PyTree],
        u0: PyTree | Callable[[Any, Any], PyTree],
        tspan: Any,
        p: PyTree = None,
        *,
        differential_vars: PyTree = None,
        jac: Callable[[Any, Any, Any, Any, Any], Any] | None = None,
        jac_sparsity: Any = None,
    ) -> None:
        if not callable(F):
            raise TypeError(f"F must be a function F(du, u, p, t), got {type(F).__name__}.")
        if jac is not None and not callable(jac):
            raise TypeError(
                f"jac must be a function jac(du, u, p, gamma, t), got {type(jac).__name__}."
            )
        self._F = UserFunction(F)
        self._jac = None if jac is None else UserFunction(jac)
        self._du0 = hold(du0)
        self._u0 = hold(u0)
        self._tspan = hold_span(tspan)
        self._p = Parts(p)
        self._differential_vars = _flags(differential_vars)
        self._jac_sparsity = hold_sparsity(jac_sparsity)

    @property
    def F(self) -> Callable[[Any, Any, Any, Any], Any]:
        """The residual."""
        return self._F.value

    @property
    def du0(self) -> Any:
        """The derivative at the start, or the function that computes it."""
        return self._du0.value

    @property
    def differential_vars(self) -> tuple[bool, ...] | None:
        """Which elements of the state are differential, counted leaf by leaf; None if not given."""
        return self._differential_vars

    @property
    def jac(self) -> Callable[[Any, Any, Any, Any, Any], Any] | None:
        """The user's Jacobian, if there is one."""
        return None if self._jac is None else self._jac.value

    @property
    def jac_sparsity(self) -> Any:
        """Where the Jacobians may have entries: a pair, `"detect"`, or a `Pattern`."""
        return self._jac_sparsity

    def arguments(self) -> dict[str, Any]:
        return {
            "F": self.F,
            "du0": self.du0,
            "u0": self.u0,
            "tspan": self.tspan,
            "p": self.p,
            "differential_vars": self.differential_vars,
            "jac": self.jac,
            "jac_sparsity": self.jac_sparsity,
        }


def _flags(tree: PyTree) -> tuple[bool, ...] | None:
    """Booleans leaf by leaf, in a form that is static."""
    if tree is None:
        return None
    flags: list[bool] = []
    for leaf in jtu.tree_leaves(tree):
        value = np.asarray(leaf)
        if value.dtype != np.bool_:
            raise TypeError(
                f"differential_vars must hold booleans, got {leaf!r}; try [True, True, False]."
            )
        flags.extend(value.reshape(-1).tolist())
    return tuple(flags)
