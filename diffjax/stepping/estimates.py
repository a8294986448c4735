"""What the steps of a solve say about its difficulty, as quantities that can be differentiated.

They are computed from the tape after the solve, all steps side by side, so that a solve that nobody
asks for them costs nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ..algorithms.base import State
from .plan import Inputs, Plan, Settings, scaled_mean_square
from .tape import Tape
from .trees import where


class Estimates(NamedTuple):
    """Estimates of the accepted steps, one row each; zero in rows that were not filled. What they
    cost is not part of `sol.stats`.

    - `dt`: the size of the step.
    - `error`: its local error over the tolerance (root mean square; at most 1 in an adaptive
        solve).
    - `stiffness`: |dt times the dominant eigenvalue| over the stability interval of the method;
        None for methods that cannot tell.
    """

    dt: Float[Array, " rows"]
    error: Float[Array, " rows"]
    stiffness: Float[Array, " rows"] | None


def step_estimates(plan: Plan, inputs: Inputs, settings: Settings, tape: Tape) -> Estimates:
    """The estimates of every step on a tape."""
    alg, field = plan.alg, plan.field(inputs)
    rtol, atol = jax.lax.stop_gradient((settings.rtol, settings.atol))

    def norm(v: State, u0: State, u1: State) -> Array:
        # The root of zero has no derivative, and an error of zero does occur.
        square = scaled_mean_square(rtol, atol, v, u0, u1)
        return jnp.sqrt(square + float(jnp.finfo(square.dtype).tiny))

    def one(k: Array) -> tuple[Array, Array, Array | None]:
        active = (k < tape.used) & (tape.dt[k] != 0)
        # A row that is not there repeats the first step, which f is known to be finite in.
        at = jnp.where(active, k, 0)
        length = tape.t[at + 1] - tape.t[at]
        # The size that the step had, with the derivative that its two ends have.
        dt = jax.lax.stop_gradient(tape.dt[at] - length) + length
        dt = jnp.where(tape.dt[at] != 0, dt, 1)
        t, u = tape.t[at], jtu.tree_map(lambda x: x[at], tape.u)
        past = jtu.tree_map(lambda x: x[at], tape.past)
        memory = alg.recall(field, t, u, past)
        result = alg.step(field.during(at), t, dt, u, memory, norm)
        assert result.error is not None
        found = (dt, result.error, alg.stiffness(dt, u, result.stages))
        return where(active, found, jtu.tree_map(jnp.zeros_like, found))

    rows = jnp.arange(tape.dt.shape[0] - 1, dtype=tape.used.dtype)
    return Estimates(*jax.vmap(one)(rows))
