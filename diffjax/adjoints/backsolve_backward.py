"""The backward pass of a solve that is run backwards together with its adjoint equation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..algorithms.base import Algorithm, State
from .continuous import Backward, Sweep, everywhere


class Options(NamedTuple):
    """The arguments of `BacksolveAdjoint`."""

    alg: Algorithm | None
    rtol: float | None
    atol: float | None


class Backsolve(Backward):
    """The parts are lambda, the state and, if they move, the cotangents of the parameters."""

    def __init__(self, options: Options, *args: Any, **more: Any) -> None:
        self.options = options
        super().__init__(*args, **more)
        self.moving = self.args

    def algorithm(self) -> Algorithm:
        return self.plan.alg if self.options.alg is None else self.options.alg

    def parts(self, u: State, adjoint: State) -> tuple[PyTree, ...]:
        return (adjoint, u, [jnp.zeros_like(x) for x in self.moving])[: 3 if self.moving else 2]

    def slope(
        self, parts: tuple[PyTree, ...], t: Array, context: PyTree, args: tuple[Array, ...]
    ) -> tuple[PyTree, ...]:
        adjoint, u, *_ = parts
        du, u_bar, args_bar = self.pulled(args, t, u, adjoint)
        return (u_bar, jtu.tree_map(jnp.negative, du), args_bar)[: len(parts)]

    def after_save(self, parts: tuple[PyTree, ...], u: State) -> tuple[PyTree, ...]:
        return (parts[0], u, *parts[2:])

    def saved_state(self, context: PyTree, t: Array, j: Array) -> State:
        return jtu.tree_map(lambda x: x[j], self.record.states)

    def with_args(self, carry: Sweep, bars: list[Array]) -> Sweep:
        return carry

    def for_moving(self, carry: Sweep) -> list[Array]:
        """The cotangents of all parameters that move."""
        return self.packing.unpack(carry.steps.u)[2] if self.moving else []

    def for_args(self, carry: Sweep) -> list[Array]:
        return self.for_moving(carry)[: len(self.places)]

    def context(self) -> PyTree:
        """What else than the parameters of f the adjoint equation depends on."""
        return ()

    def tolerances(self, parts: tuple[PyTree, ...]) -> tuple[PyTree, PyTree]:
        given, own = self.forward_settings, self.options

        def chosen(number: float | None, tolerance: PyTree) -> PyTree:
            if number is None:
                return tolerance
            return jtu.tree_map(lambda x: jnp.full_like(x, number), tolerance)

        rtol, atol = chosen(own.rtol, given.rtol), chosen(own.atol, given.atol)
        rtols, atols = everywhere(rtol, atol, parts)
        return (rtols[0], rtol, *rtols[2:]), (atols[0], atol, *atols[2:])

    def sweep(self, carry: Sweep) -> Sweep:
        end, context = -self.inputs.t0, self.context()
        return jax.lax.while_loop(
            lambda carry: self.pending(self.going(carry, end)),
            lambda carry: self.piece(carry, context, end),
            carry,
        )
