"""Piecewise constant states."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from .base import InitialValueProblem, hold, hold_span
from .parts import Parts


class DiscreteProblem(InitialValueProblem):
    """A state that stays as it is but for jumps: what a pure jump process starts from.

    **Arguments:**

    - `u0`: the initial state, a pytree of integer or floating point arrays, or a function
        `u0(p, t0)`.
    - `tspan`: the pair `(t0, t1)`, or a function `tspan(p)`.
    - `p`: parameters, any pytree.

    **Raises:** `ValueError` or `TypeError` for a `tspan` that is not a pair of finite numbers.

    !!! example
        ```python
        birth = dj.ConstantRateJump(lambda u, p, t: p[0], lambda u, p, t: u + 1)
        death = dj.ConstantRateJump(lambda u, p, t: p[1] * u[0], lambda u, p, t: u - 1)
        prob = dj.DiscreteProblem(jnp.array([0]), (0.0, 1.0), jnp.array([1000.0, 10.0]))
        sol = dj.solve(dj.JumpProblem(prob, birth, death), saveat=0.1, key=jax.random.key(0))
        ```
    """

    def __init__(
        self, u0: PyTree | Callable[[Any, Any], PyTree], tspan: Any, p: PyTree = None
    ) -> None:
        self._u0, self._tspan, self._p = hold(u0), hold_span(tspan), Parts(p)

    def arguments(self) -> dict[str, Any]:
        return {"u0": self.u0, "tspan": self.tspan, "p": self.p}
