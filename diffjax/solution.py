"""What a solve gives back."""

from typing import Any

import equinox as eqx
import jax
import jax.core
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .stepping.estimates import Estimates
from .stepping.status import ReturnCode

__all__ = ["Estimates", "ReturnCode", "Solution", "SolveError", "Stats"]


class SolveError(RuntimeError):
    """A solve that did not reach its end.

    `solution` holds what was computed before, a `Solution` or an `EnsembleSolution` (None where it
    was raised inside a compiled program).
    """

    def __init__(self, message: str, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution


class Stats(eqx.Module):
    """Work done by a solve; integer arrays.

    - `nf`: evaluations of the vector field; `njac`, `nfactor`, `nsolve`: Jacobians, matrix
        factorisations and linear solves; `naccept`, `nreject`: accepted and rejected steps;
        `nnewton_fail`: failed Newton iterations; `nevents`: events.
    """

    nf: Int[Array, ""]
    naccept: Int[Array, ""]
    nreject: Int[Array, ""]
    njac: Int[Array, ""]
    nfactor: Int[Array, ""]
    nsolve: Int[Array, ""]
    nnewton_fail: Int[Array, ""]
    nevents: Int[Array, ""]


class Solution(eqx.Module):
    """The solution of a differential equation: a pytree of arrays, so it may leave a `jit`.

    - `t`: times saved, shape `(T,)`; `u`: the state (or what `save_fn` gave) with a leading time
        axis. What was not reached is NaN.
    - `n`: how many rows of `t` and `u` are filled.
    - `t_end`, `u_end`: where the solve ended.
    - `stats`: a `Stats`; `retcode`: a `ReturnCode`, as an integer array where it is not concrete.
    - `final`: pass it as `solve(..., resume=sol.final)` to go on from here.
    - `estimates`: with `estimates=True` the `Estimates` of the steps, to be part of a loss (Pal et
        al. 2021, arXiv 2105.03918).
    - `events`: what callbacks have done, a `dj.Happenings` with times `t` and `which` callback;
        of a pure jump process with `saveat="steps"` the jumps. None for a solve without any.

    - `saved`: what each `dj.SavingCallback` has saved, in order.

    With `dense=True`, `sol(t)` evaluates the solution anywhere in the span.
    """

    t: Float[Array, " T"]
    u: PyTree
    t_end: Float[Array, ""]
    u_end: PyTree
    n: Int[Array, ""]
    stats: Stats
    _retcode: Int[Array, ""]
    final: PyTree
    estimates: Estimates | None
    events: Any
    saved: Any = eqx.field(kw_only=True, default=())
    _interpolation: Any
    _noise: Any = None

    @property
    def noise(self) -> Any:
        """The path that drove a stochastic solve: `sol.noise(t)` is W(t) - W(t0), of the shape of
        `t` and one axis more over the noises. With fixed steps a line between their ends.

        **Raises:** `ValueError` if the problem was not stochastic.
        """
        if self._noise is None:
            raise ValueError("sol.noise is for stochastic problems; this one had no noise.")
        return self._noise

    @property
    def retcode(self) -> "ReturnCode | Int[Array, '']":
        code = concrete(self._retcode)
        if code is None or np.ndim(code) > 0:
            return self._retcode
        return ReturnCode(int(code))

    def __call__(self, t: Float[Array, "..."] | float, deriv: int = 0) -> PyTree:
        """The state at time(s) `t`, or its time derivative of order `deriv`.

        **Arguments:**

        - `t`: a scalar or an array of any shape, within the span of the solve.
        - `deriv`: order of the derivative.

        **Returns:** the state, with the shape of `t` in front of each leaf's; NaN outside the
        part of the span that was solved.

        **Raises:** `ValueError` if the solve was not made with `dense=True`.

        !!! example
            `sol = dj.solve(prob, dj.Tsit5(), dense=True); sol(0.5), sol(0.5, deriv=1)`
        """
        if self._interpolation is None:
            raise ValueError("sol(t) needs a dense solution; call solve(..., dense=True).")
        return self._interpolation.evaluate(t, deriv)

    def plot(self, **options: Any) -> Any:
        """Draw the solution over time; see `diffjax.plotting.plot_solution`."""
        from .plotting import plot_solution

        return plot_solution(self, **options)


def concrete(x: Any) -> np.ndarray | None:
    """The value of `x` if it is known while Python runs, through `grad` and `vmap`; else None."""
    while isinstance(x, jax.core.Tracer):
        for attribute in ("primal", "val"):
            inner = getattr(x, attribute, None)
            if inner is not None:
                x = inner
                break
        else:
            return None
    known = isinstance(
        x, jax.Array | np.ndarray | np.generic | int | float | complex | list | tuple
    )
    return np.asarray(x) if known else None


def concrete_one(x: Any) -> np.ndarray | None:
    """As `concrete`, but None too where lanes of a `vmap` have values of their own."""
    value = concrete(x)
    return value if value is not None and value.shape == np.shape(x) else None
