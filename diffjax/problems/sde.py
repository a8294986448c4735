"""Stochastic differential equations, du = f(u, p, t) dt + g(u, p, t) dW."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import equinox as eqx
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .base import InitialValueProblem, hold, hold_span
from .parts import Parts, UserFunction

NoiseKind = Literal["diagonal", "scalar", "additive", "commutative", "general"]
Interpretation = Literal["ito", "stratonovich"]


class SDEProblem(InitialValueProblem):
    """An initial value problem du = f(u, p, t) dt + g(u, p, t) dW, u(t0) = u0.

    **Arguments:**

    - `f`: the drift `f(u, p, t)`, out of place; it returns a pytree like `u`.
    - `g`: the diffusion `g(u, p, t)`. It may be an `equinox.Module`, like `f`.
    - `u0`, `tspan`, `p`: as in `dj.ODEProblem`.
    - `noise`: what `g` returns and how it depends on the state.

        - `"diagonal"`: a pytree like `u`; every element of the state has a noise of its own, and
          element i of `g` depends on element i of `u` alone (or the method is of order 1/2).
        - `"additive"`: the same, and `g` does not depend on `u`.
        - `"scalar"`: a pytree like `u`; one noise drives all of the state.
        - `"commutative"`: every leaf has a last axis more, of length `noise_dim`, and the columns
          commute: (D g_j) g_k = (D g_k) g_j.
        - `"general"`: the same, and they need not.
    - `noise_dim`: how many noises there are, of the last two kinds; by default what `g` returns.
    - `interpretation`: `"ito"` or `"stratonovich"`.
    - `correlation`: a Cholesky factor of the correlation matrix of the noises, of shape
        (dim, dim) with rows of length one; by default they are independent. It is differentiated
        like `p`.

    **Raises:** `TypeError` if `f` or `g` is not callable; `ValueError` for an unknown kind of noise
    or interpretation, a bad `tspan`, or a `correlation` whose rows are not of length one.

    !!! example
        ```python
        def f(u, p, t):
            return p[0] * u

        def g(u, p, t):
            return p[1] * u

        prob = dj.SDEProblem(f, g, jnp.array([0.5]), (0.0, 1.0), (1.0, 0.9))
        sol = dj.solve(prob, dj.SOSRI(), key=jax.random.key(0), saveat=0.1)
        ```
    """

    stochastic: ClassVar[bool] = True

    _f: UserFunction
    _g: UserFunction
    _correlation: Parts | None
    noise: NoiseKind = eqx.field(static=True)
    noise_dim: int | None = eqx.field(static=True)
    interpretation: Interpretation = eqx.field(static=True)

    def __init__(
        self,
        f: Callable[[Any, Any, Any], Any],
        g: Callable[[Any, Any, Any], Any],
        u0: PyTree | Callable[[Any, Any], PyTree],
        tspan: Any,
        p: PyTree = None,
        *,
        noise: NoiseKind = "diagonal",
        noise_dim: int | None = None,
        interpretation: Interpretation = "ito",
        correlation: Any = None,
    ) -> None:
        for name, function in (("f", f), ("g", g)):
            if not callable(function):
                raise TypeError(
                    f"{name} must be a function {name}(u, p, t), got {type(function).__name__}."
                )
        _one_of("noise", noise, get_args(NoiseKind))
        _one_of("interpretation", interpretation, get_args(Interpretation))
        if noise_dim is not None and noise not in ("commutative", "general"):
            raise ValueError(
                f"noise_dim={noise_dim!r} is for noise='general' or 'commutative'; with "
                f"noise={noise!r} it follows from u0, so leave it out."
            )
        if noise_dim is not None and (not isinstance(noise_dim, int) or noise_dim < 1):
            raise ValueError(f"noise_dim must be a positive integer, got {noise_dim!r}.")
        self._f, self._g = UserFunction(f), UserFunction(g)
        self._u0, self._tspan, self._p = hold(u0), hold_span(tspan), Parts(p)
        self._correlation = None if correlation is None else Parts(_unit_rows(correlation))
        self.noise, self.noise_dim, self.interpretation = noise, noise_dim, interpretation

    @property
    def f(self) -> Callable[[Any, Any, Any], Any]:
        """The drift."""
        return self._f.value

    @property
    def g(self) -> Callable[[Any, Any, Any], Any]:
        """The diffusion."""
        return self._g.value

    @property
    def correlation(self) -> Any:
        """The Cholesky factor of the noises' correlation; None if they are independent."""
        return None if self._correlation is None else self._correlation.value

    def arguments(self) -> dict[str, Any]:
        names = ("f", "g", "u0", "tspan", "p", "noise", "noise_dim", "interpretation")
        return {name: getattr(self, name) for name in (*names, "correlation")}


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be {', '.join(map(repr, known))}, got {value!r}.")


def _unit_rows(factor: Any) -> Any:
    """A factor of a correlation matrix, judged where its numbers are known."""
    factor = jnp.asarray(factor)
    if factor.ndim != 2 or factor.shape[0] != factor.shape[1]:
        raise ValueError(f"correlation must be of shape (dim, dim), got {factor.shape}.")
    if isinstance(factor, jax.core.Tracer):
        return factor
    lengths = np.linalg.norm(np.asarray(factor), axis=1)
    if not np.allclose(lengths, 1.0, atol=1e-5):
        raise ValueError(
            "correlation must be a Cholesky factor of a correlation matrix, with rows of length "
            f"one, got rows of length {lengths[np.argmax(np.abs(lengths - 1))]:.4g}; scale g."
        )
    return factor
