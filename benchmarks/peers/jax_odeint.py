"""`jax.experimental.ode.odeint`: Dormand-Prince with continuous adjoint, part of JAX itself.

Its tolerances are static arguments, so each one compiles anew and the sweep of tolerances is short.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.case import Maker
from benchmarks.timing import Call

PACKAGES = ("jax.experimental.ode",)
SWEEP_POINTS = 5


def solve_maker(field: Callable[..., Any], u0: np.ndarray, saves: np.ndarray, p: Any) -> Maker:
    """The states at the saves."""

    def make() -> Callable[[float], Call]:
        from jax.experimental.ode import odeint

        start, times = jnp.asarray(u0), jnp.asarray(saves)
        inputs = jax.tree.map(jnp.asarray, p)

        def at(tol: float) -> Call:
            compiled = jax.jit(
                lambda p: odeint(
                    lambda u, t, p: field(u, p, t), start, times, p, rtol=tol, atol=tol
                )
            )
            return lambda: jax.block_until_ready(compiled(inputs))

        return at

    return make
