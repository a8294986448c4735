"""From a pure `solve(u0, p, tol)` to something timed: shared by us and by all JAX peers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.case import Maker
from benchmarks.timing import Call

Solve = Callable[[Any, Any, Any], tuple[jax.Array, jax.Array]]
"""`solve(u0, p, tol) -> (u, succeeded)`, all traced."""

Function = Callable[[Any, Any], Any]
"""`function(inputs, tol)`: what is compiled; everything it computes with is in `inputs`."""


def jit_maker(function: Function, inputs: Any) -> Maker:
    """Compiles `function` once and runs it with `inputs` on the device beforehand."""

    def make() -> Callable[[float], Call]:
        compiled = jax.jit(function)
        # By `device_put`, since `jnp.asarray` would compile programs of its own in a first call.
        on_device = jax.tree.map(lambda x: jax.device_put(np.asarray(x)), inputs)
        dtype = jnp.result_type(*jax.tree.leaves(on_device))

        def at(tol: float) -> Call:
            bound = jax.device_put(np.asarray(tol, dtype))
            return lambda: jax.block_until_ready(compiled(on_device, bound))

        return at

    return make


def forward(solve: Solve) -> Function:
    """The states of one solve, for inputs `(p, u0)`."""
    return lambda inputs, tol: solve(inputs[1], inputs[0], tol)[0]


def checked(loss: jax.Array, succeeded: jax.Array) -> jax.Array:
    """The loss, with a gradient of NaN when a solve failed.

    Out of steps, its gradient is finite and wrong, and the sweep of tolerances must not take it.
    """
    return loss * jnp.where(jnp.all(succeeded), 1.0, jnp.nan).astype(loss.dtype)


def gradient(solve: Solve, loss: Callable[[Any], Any], forward_mode: bool = False) -> Function:
    """d(loss)/d(p) of one solve, for inputs `(p, u0)`."""
    differentiate = jax.jacfwd if forward_mode else jax.grad

    def function(inputs: Any, tol: Any) -> Any:
        p, u0 = inputs

        def of(p: Any) -> jax.Array:
            u, succeeded = solve(u0, p, tol)
            return checked(loss(u), succeeded)

        return differentiate(of)(p)

    return function


def over_lanes(function: Function) -> Function:
    """The same for a batch of parameters with one initial state and tolerance."""
    return jax.vmap(function, in_axes=((0, None), None))
