"""`sol(t)`: the solution between the steps.

Only the tape of accepted steps is kept, not the stages: the one step that holds `t` is taken again
when it is asked for. That stores n + 1 numbers a step where stages would take 8n and more.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, PyTree

from ..algorithms.accompanied import Marks
from ..algorithms.base import Algorithm, Field, Memory
from .equation import trace_equation
from .layout import Layout


class DenseOutput(eqx.Module):
    """The accepted steps of a solve, and what is needed to take one again."""

    t: Float[Array, " rows"]
    u: PyTree
    past: Memory
    used: Int[Array, ""]
    direction: Any
    alg: Algorithm
    problem: dict[str, Any]
    p: Any
    layout: Layout = eqx.field(static=True)

    @property
    def changing(self) -> tuple[int, ...]:
        """Which leaves of p change from step to step."""
        history = self.past.history
        return history.changing if isinstance(history, Marks) else ()

    def evaluate(self, t: Any, deriv: int) -> PyTree:
        if not isinstance(deriv, int) or deriv < 0:
            raise ValueError(f"deriv must be a non-negative integer, got {deriv!r}.")
        if deriv and self.alg.is_dense_linear:
            raise ValueError(f"deriv={deriv}: the path of a stochastic equation has no derivative.")
        times = jnp.asarray(t, self.t.dtype)
        arrays, static = eqx.partition(self, eqx.is_array)
        leaves, structure = jtu.tree_flatten(static)
        flat = _evaluate(arrays, times.reshape(-1), tuple(leaves), structure, deriv)
        return jtu.tree_map(lambda x: x.reshape(times.shape + x.shape[1:]), flat)

    def _at(self, tau: Array, field: Field) -> PyTree:
        count = self.t.shape[0]
        known = jnp.where(jnp.arange(count, dtype=self.used.dtype) <= self.used, self.t, jnp.inf)
        k = jnp.clip(
            jnp.searchsorted(known, tau, side="right") - 1, 0, jnp.maximum(self.used - 1, 0)
        )
        t, u = self.t[k], jtu.tree_map(lambda x: x[k], self.u)
        moving = self.used > 0
        dt = jnp.where(moving, self.t[k + 1] - t, 1)
        theta = jnp.where(moving, (tau - t) / dt, 0)
        value = self._inside(k, t, dt, u, theta, field)
        inside = (tau >= self.t[0]) & (tau <= self.t[self.used])
        return jtu.tree_map(lambda x: jnp.where(inside, x, jnp.nan), self.layout.unravel(value))

    def _inside(
        self, k: Array, t: Array, dt: Array, u: PyTree, theta: Array, field: Field
    ) -> PyTree:
        """The state at a fraction of step k."""
        if self.alg.is_dense_linear:
            return self.alg.interpolate((u, jtu.tree_map(lambda x: x[k + 1], self.u)), theta)
        memory = self.alg.recall(field, t, u, jtu.tree_map(lambda x: x[k], self.past))
        stages = self.alg.step(field, t, dt, u, memory, None).stages
        coefficients = self.alg.dense(field, t, dt, u, stages)
        return self.alg.interpolate(coefficients, theta)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _evaluate(arrays: Any, times: Array, leaves: Any, structure: Any, deriv: int) -> PyTree:
    dense: DenseOutput = eqx.combine(arrays, jtu.tree_unflatten(structure, leaves))
    state = dense.layout.unravel(jtu.tree_map(lambda x: x[0], dense.u))
    problem = {name: kept.value for name, kept in dense.problem.items()}
    field = trace_equation(
        problem, dense.layout, state, dense.p, dense.t[0], dense.direction, dense.changing
    )

    def value(t: Array) -> PyTree:
        return dense._at(t * dense.direction, field)

    for _ in range(deriv):
        value = _derivative(value)
    return jax.vmap(value)(times)


def _derivative(value: Any) -> Any:
    return lambda t: jax.jvp(value, (t,), (jnp.ones_like(t),))[1]
