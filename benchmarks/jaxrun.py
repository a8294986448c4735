"""From a pure `solve(u0, p, tol) -> u` to something timed: shared by us and by all JAX peers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.case import Maker
from benchmarks.timing import Call

Solve = Callable[[Any, Any, Any], jax.Array]
"""`solve(u0, p, tol) -> u`, all traced."""

Function = Callable[[Any, Any], Any]
"""`function(inputs, tol)`: what is compiled; everything it computes with is in `inputs`."""


def jit_maker(function: Function, inputs: Any) -> Maker:
    """Compiles `function` once and runs it with `inputs` on the device beforehand."""

    def make() -> Callable[[float], Call]:
        compiled = jax.jit(function)
        on_device = jax.tree.map(jnp.asarray, inputs)
        dtype = jnp.result_type(*jax.tree.leaves(on_device))

        def at(tol: float) -> Call:
            bound = jnp.asarray(tol, dtype)
            return lambda: jax.block_until_ready(compiled(on_device, bound))

        return at

    return make


def forward(solve: Solve) -> Function:
    """The states of one solve, for inputs `(p, u0)`."""
    return lambda inputs, tol: solve(inputs[1], inputs[0], tol)


def gradient(solve: Solve, loss: Callable[[Any], Any], forward_mode: bool = False) -> Function:
    """d(loss)/d(p) of one solve, for inputs `(p, u0)`."""
    differentiate = jax.jacfwd if forward_mode else jax.grad

    def function(inputs: Any, tol: Any) -> Any:
        p, u0 = inputs
        return differentiate(lambda p: loss(solve(u0, p, tol)))(p)

    return function


def over_lanes(function: Function) -> Function:
    """The same for a batch of parameters with one initial state and tolerance."""
    return jax.vmap(function, in_axes=((0, None), None))
