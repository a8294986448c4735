"""The solve and its adjoint equation integrated backwards together: no memory of the steps."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..algorithms.base import Algorithm, State, evaluate
from ..stepping.outcome import Keep, Outcome
from ..stepping.plan import Inputs, Plan, Settings
from .continuous import Backward, ContinuousAdjoint, Recorded, Sweep, everywhere, recorded


class BacksolveAdjoint(ContinuousAdjoint):
    """The solve run backwards, with its adjoint equation beside it.

    Memory does not grow with the number of steps: only the states at the save times are kept, from
    each of which the way back starts anew.

    Not every solve can be run backwards. Where solutions approach one another, as they do in every
    dissipative problem, they part again on the way back, and a rounding error of the end grows
    until nothing of the start is left in it: on the Lorenz equations the state after 100 time
    units leads back to a start that is wrong by more than its own size at any tolerance, and
    diffusion run backwards is ill-posed. No error estimate sees it. Save times close enough
    together keep it in check; otherwise take `dj.InterpolatingAdjoint`, `dj.GaussAdjoint` or
    `dj.DiscreteAdjoint`, with `checkpoints` to bound their memory.

    **Arguments:**

    - `alg`: the algorithm of the way back; that of the solve by default.
    - `rtol`, `atol`: tolerances of the way back, numbers; those of the solve by default. Cotangents
        count in units of the largest, whatever the units of the loss.

    **Raises:** `ValueError` for tolerances that are not positive, or if steps are adaptive and
    `alg` has no error estimate.

    Source: Chen, Rubanova, Bettencourt, Duvenaud, Neural ordinary differential equations, NeurIPS
    2018, appendix B; on its instability Gholami, Keutzer, Biros, ANODE, IJCAI 2019.

    !!! example
        `dj.solve(prob, dj.Tsit5(), adjoint=dj.BacksolveAdjoint(rtol=1e-8, atol=1e-8))`
    """

    alg: Algorithm | None = None
    rtol: float | None = eqx.field(static=True, default=None)
    atol: float | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.alg is not None and not isinstance(self.alg, Algorithm):
            raise TypeError(f"alg must be like dj.Tsit5(), got {self.alg!r}.")
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            known = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (known and 0 < value < float("inf")):
                raise ValueError(f"{name} must be None or a positive number, got {value!r}.")

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        if plan.controller is not None and self.alg is not None and self.alg.error_order is None:
            raise ValueError(
                f"BacksolveAdjoint cannot take adaptive steps with alg={self.alg.name}, which has "
                "no error estimate; give another algorithm, or solve with fixed steps."
            )
        return super().solve(plan, inputs, settings)

    def record(
        self, plan: Plan, inputs: Inputs, settings: Settings, keep: Keep
    ) -> tuple[Outcome, Recorded]:
        if inputs.saves is None:
            outcome = self.run(plan, inputs, settings, keep)
            return outcome, recorded(outcome)
        outcome = self.run(_saving_states(plan, inputs), inputs, settings, keep)
        leaves, structure = jtu.tree_flatten(inputs.u0)
        assert outcome.rows is not None
        count = len(outcome.rows) - len(leaves)
        states = jtu.tree_unflatten(structure, outcome.rows[count:])
        return outcome._replace(rows=outcome.rows[:count]), recorded(outcome, states)

    def backward(self) -> Any:
        return lambda *args, **options: _Backsolve(self, *args, **options)


def _saving_states(plan: Plan, inputs: Inputs) -> Plan:
    """The plan with the state saved beside what it saves already."""
    count = len(inputs.save_args)
    n_consts = len(plan.save_jaxpr.constvars)

    def both(*xs: Array) -> list[Array]:
        return [*evaluate(plan.save_jaxpr, xs[:n_consts], *xs[n_consts:]), *xs[count + 1 :]]

    leaves = jtu.tree_leaves(inputs.u0)
    closed = jax.make_jaxpr(both)(*inputs.save_args, inputs.t0, *leaves)
    return dataclasses.replace(plan, save_jaxpr=closed.jaxpr)


class _Backsolve(Backward):
    """The parts are lambda, the state and, if they move, the cotangents of the parameters."""

    def __init__(self, options: BacksolveAdjoint, *args: Any, **more: Any) -> None:
        self.options = options
        super().__init__(*args, **more)

    def algorithm(self) -> Algorithm:
        return self.plan.alg if self.options.alg is None else self.options.alg

    def parts(self, u: State, adjoint: State) -> tuple[PyTree, ...]:
        return (adjoint, u, [jnp.zeros_like(x) for x in self.args])[: 3 if self.args else 2]

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

    def for_args(self, carry: Sweep) -> list[Array]:
        return self.packing.unpack(carry.steps.u)[2] if self.args else []

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
        end = -self.inputs.t0
        return jax.lax.while_loop(
            lambda carry: self.pending(self.going(carry, end)),
            lambda carry: self.piece(carry, (), end),
            carry,
        )
