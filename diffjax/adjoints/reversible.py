"""The exact derivative of reversible steps, which are undone instead of remembered.

The solve is taken with a reversible coupling of the method (`algorithms/reversible.py`). The
backward pass starts from where it ended and reconstructs the states as it goes, so no state is kept
but the last, and those at the checkpoints if there are any; of adaptive steps the times and sizes
are.

A `custom_jvp` around a linear map, as for the other adjoints: applied, it differentiates the loop;
transposed, it goes backwards.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from ..algorithms.base import Algorithm, Memory
from ..algorithms.reversible import Reversible
from ..stepping.by_steps import segment_length
from ..stepping.loop import integrate
from ..stepping.outcome import Keep, Outcome
from ..stepping.plan import Inputs, Plan, Settings
from ..stepping.tape import Tape
from ..stepping.trees import replaced
from .base import Adjoint
from .linear_map import Level, LinearMap, apply_linear
from .replay import Moving, Replay, Steps
from .reversible_backward import ReversibleResiduals, ReversibleSmooth, retrace
from .smooth import TIMES, Counters, names_of, no_tangent, reached


class ReversibleAdjoint(Adjoint):
    """The exact derivative of the steps in constant memory, by a reversible coupling of the method.

    Every step is taken by the coupled method, without a derivative too, so that a loss and its
    gradient agree; it costs twice the evaluations of the method. Without checkpoints it suits
    solutions that are short or neither grow nor contract much, such as most neural ODEs:

    - Forwards, where the solution contracts at a rate r, adaptive steps become as short as
        `(1 - coupling) / r`, since the pair of states must not drift apart; fixed steps larger than
        that lose accuracy. A smaller coupling damps the drift.
    - Backwards the gradient is exact but for rounding, which reconstruction enlarges by
        `1 / coupling` a step (2.7 in 1,000 steps at 0.999, 22,000 in 10,000) and by what the
        solution contracts. Prefer float64. Where the reconstruction misses the initial state or
        what was saved, the gradient is NaN, as is that of what a solve did not reach.

    Checkpoints bound both. At each of them the pair of states is kept and its difference dropped,
    so the drift and the reconstruction are those of a segment; a segment that misses the
    checkpoint it started from makes the gradient NaN. Where the solution contracts or is long, use
    some.

    Memory does not grow with fixed steps, and by two numbers for each of `max_steps` with adaptive
    ones (three for a derivative with respect to times); a checkpoint adds two states. Works with
    the explicit Runge-Kutta methods; not with `saveat="steps"` or `dense=True`, which keep all
    states anyway.

    **Arguments:**

    - `coupling`: lambda of the paper, above 0 and at most 1.
    - `checkpoints`: None, or the number of segments that the steps are cut into, of equally many
        out of `steps` or `max_steps`; about `sqrt(max_steps)` is plenty.

    **Raises:** `ValueError` for a coupling or checkpoints out of range; when solving, for a method
    or an output that it cannot take.

    !!! example
        `dj.solve(prob, dj.Tsit5(), adjoint=dj.ReversibleAdjoint(checkpoints=64))`

    Source: McCallum and Foster, "Efficient, Accurate and Stable Gradients for Neural ODEs",
    arXiv 2410.11648, Algorithms 1 and 2.
    """

    restarts: ClassVar[bool] = True

    coupling: float = eqx.field(static=True, default=0.999)
    checkpoints: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        c = self.coupling
        if isinstance(c, bool) or not isinstance(c, int | float) or not 0 < c <= 1:
            raise ValueError(f"coupling must be a number above 0 and at most 1, got {c!r}.")
        n = self.checkpoints
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ValueError(f"checkpoints must be None or a positive integer, got {n!r}.")

    def algorithm(self, alg: Algorithm) -> Algorithm:
        if not alg.is_explicit_one_step:
            raise ValueError(
                f"adjoint=ReversibleAdjoint() takes explicit Runge-Kutta methods, got "
                f"alg={alg.name}; use adjoint=dj.DiscreteAdjoint()."
            )
        return Reversible(alg, float(self.coupling))

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        if plan.every_step:
            raise ValueError(
                'adjoint=ReversibleAdjoint() keeps no states, which saveat="steps" and dense=True '
                "need; give save times, or use adjoint=dj.DiscreteAdjoint()."
            )
        if self.checkpoints is not None:
            every = segment_length(plan, self.checkpoints)
            plan = dataclasses.replace(plan, alg=dataclasses.replace(plan.alg, every=every))
        # What is resumed starts anew, with z = y.
        return _solve(plan, inputs, settings, Keep(states=False))._replace(memory=None)


def _solve(plan: Plan, inputs: Inputs, settings: Settings, keep: Keep) -> Outcome:
    """The solve as a function that JAX can differentiate, keeping what `keep` says."""
    leaves, structure = jtu.tree_flatten(inputs)
    counters = Counters()
    alg: Any = plan.alg

    @jax.custom_jvp
    def run(leaves: list[Array], settings: Settings) -> tuple[ReversibleSmooth, Outcome]:
        smooth, rest = _split(
            integrate(plan, jtu.tree_unflatten(structure, leaves), settings, keep)
        )
        return smooth, counters.pack(rest)

    @partial(run.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> Any:
        leaves, settings = primals
        moving = [i for i, t in enumerate(tangents[0]) if not isinstance(t, SymbolicZero)]
        names = names_of(inputs)
        times = any(names[i] in TIMES for i in moving)
        kept = Keep(
            tape=plan.controller is not None,
            states=False,
            landings=times or keep.landings,
            every=alg.every,
        )
        outcome = _solve(plan, jtu.tree_unflatten(structure, leaves), settings, kept)
        tape = outcome.tape
        assert tape is None or isinstance(tape, Tape)
        assert outcome.memory is not None
        end = outcome.u_end, outcome.memory.history
        residuals = ReversibleResiduals(
            leaves, settings, tape, outcome.saved, outcome.rows, end, outcome.states
        )
        smooth, rest = _split(_seen(outcome, keep))
        rest = counters.pack(rest)
        replay = Replay(
            plan=plan,
            moving=Moving(structure, moving, names),
            steps=Steps(plan, times, smooth.rows is not None),
            kept=keep,
            recorded=False,
            residual_structure=jtu.tree_structure(residuals),
            smooth_structure=jtu.tree_structure(smooth),
        )
        out = apply_linear(
            _Reversal(replay, smooth), jtu.tree_leaves(residuals), [tangents[0][i] for i in moving]
        )
        smooth_dot = jtu.tree_unflatten(replay.smooth_structure, out)
        return (smooth, rest), (smooth_dot, jtu.tree_map(no_tangent, rest))

    smooth, rest = run(leaves, settings)
    return _join(smooth, counters.unpack(rest))


def _seen(outcome: Outcome, keep: Keep) -> Outcome:
    """The outcome without what `keep` does not ask for."""
    tape = outcome.tape if keep.tape else None
    if isinstance(tape, Tape) and not keep.landings:
        tape = tape._replace(landed=None)
    return outcome._replace(tape=tape, states=outcome.states if keep.every else None)


def _split(outcome: Outcome) -> tuple[ReversibleSmooth, Outcome]:
    """The part that carries a derivative, and the rest."""
    tape, times = outcome.tape, None
    if isinstance(tape, Tape):
        times, tape = (tape.t, tape.dt), tape._replace(t=None, dt=None)
    z_end = None if outcome.memory is None else outcome.memory.history
    smooth = ReversibleSmooth(
        outcome.rows, outcome.u_end, outcome.t_end, z_end, times, outcome.states
    )
    rest = outcome._replace(rows=None, u_end=None, t_end=None, memory=None, tape=tape, states=None)
    return smooth, rest


def _join(smooth: ReversibleSmooth, rest: Outcome) -> Outcome:
    tape = rest.tape
    if isinstance(tape, Tape) and smooth.times is not None:
        tape = tape._replace(t=smooth.times[0], dt=smooth.times[1])
    rest = rest._replace(rows=smooth.rows, u_end=smooth.u_end, t_end=smooth.t_end)
    return rest._replace(memory=Memory(history=smooth.z_end), tape=tape, states=smooth.states)


class _Reversal(LinearMap):
    """The tangent of a reversible solve as a linear map of the tangents of its inputs."""

    def __init__(self, replay: Replay, smooth: ReversibleSmooth) -> None:
        self.replay = replay
        self.out_avals = tuple(jax.typeof(x) for x in jtu.tree_leaves(smooth))

    def apply(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        replay = self.replay
        given: ReversibleResiduals = jtu.tree_unflatten(replay.residual_structure, residuals)

        def solved(moving: list[Array]) -> tuple[ReversibleSmooth, Array | None]:
            leaves = replaced(given.leaves, replay.moving.which, moving)
            inputs = jtu.tree_unflatten(replay.moving.structure, leaves)
            outcome = integrate(replay.plan, inputs, given.settings, replay.kept)
            return _split(outcome)[0], outcome.saved

        primals = [given.leaves[i] for i in replay.moving.which]
        _, dot, saved = jax.jvp(solved, (primals,), (list(tangents),), has_aux=True)
        return jtu.tree_leaves(dot._replace(rows=reached(dot.rows, saved)))

    def transpose(
        self,
        levels: tuple[Level, ...],
        residuals: Sequence[Array],
        cotangents: Sequence[Array | None],
    ) -> list[Array]:
        return retrace(self.replay, levels, residuals, cotangents)
