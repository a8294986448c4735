"""The solve and its adjoint equation integrated backwards together: no memory of the steps."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import Array

from ..algorithms.base import Algorithm, evaluate
from ..stepping.outcome import Keep, Outcome
from ..stepping.plan import Inputs, Plan, Settings
from .backsolve_backward import Backsolve, Options
from .backsolve_stochastic import StochasticBacksolve
from .by_lane import SolveTangent
from .continuous import ContinuousAdjoint, Recorded, recorded


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

    A stochastic problem is run back along its own path, with adaptive or the same fixed steps. One
    of Ito gets the drift that it has in Stratonovich's sense; for that, diagonal noise in which an
    element of g depends on other elements of the state costs a derivative of g for each element.
    The way back is of strong order 1 if the noises commute, else 1/2, and its gradient converges
    to that of the solve as their steps shrink.

    **Arguments:**

    - `alg`: the algorithm of the way back; that of the solve by default. Of a stochastic problem an
        explicit Runge-Kutta method, by default `dj.BS3()`, for the equation with the line between
        both ends of a step in place of its path.
    - `rtol`, `atol`: tolerances of the way back, numbers; those of the solve by default. Cotangents
        count in units of the largest, whatever the units of the loss.

    **Raises:** `ValueError` for tolerances that are not positive, if steps are adaptive and `alg`
    has no error estimate, or if it is not explicit where that is wanted; for a stochastic problem
    also for derivatives by times or by the noise.

    Source: Chen, Rubanova, Bettencourt, Duvenaud, Neural ordinary differential equations, NeurIPS
    2018, appendix B; on its instability Gholami, Keutzer, Biros, ANODE, IJCAI 2019; of
    stochastic equations Li, Wong, Chen, Duvenaud, Scalable gradients for stochastic differential
    equations, AISTATS 2020, section 3.

    !!! example
        `dj.solve(prob, dj.Tsit5(), adjoint=dj.BacksolveAdjoint(rtol=1e-8, atol=1e-8))`
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem", "SDEProblem"})

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
        stochastic, alg = plan.diffusion_jaxpr is not None, self.alg
        if stochastic and alg is not None and not alg.is_explicit_one_step:
            raise ValueError(
                "BacksolveAdjoint takes a stochastic problem back by an explicit Runge-Kutta "
                f"method, got alg={alg.name}; try dj.BS3()."
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
        options = Options(self.alg, self.rtol, self.atol)

        def backward(tangent: SolveTangent, *args: Any, **more: Any) -> Backsolve:
            stochastic = tangent.plan.diffusion_jaxpr is not None
            return (StochasticBacksolve if stochastic else Backsolve)(
                options, tangent, *args, **more
            )

        return backward


def _saving_states(plan: Plan, inputs: Inputs) -> Plan:
    """The plan with the state saved beside what it saves already."""
    count = len(inputs.save_args)
    n_consts = len(plan.save_jaxpr.constvars)

    def both(*xs: Array) -> list[Array]:
        return [*evaluate(plan.save_jaxpr, xs[:n_consts], *xs[n_consts:]), *xs[count + 1 :]]

    leaves = jtu.tree_leaves(inputs.u0)
    closed = jax.make_jaxpr(both)(*inputs.save_args, inputs.t0, *leaves)
    return dataclasses.replace(plan, save_jaxpr=closed.jaxpr)
