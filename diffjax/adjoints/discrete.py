"""The exact derivative of the steps that a solve took, replayed from a tape of them.

`solve` is a `custom_jvp` whose tangent is one linear map (`linear_map.py`): applied, it replays
the tape forwards with jvps; transposed, backwards with vjps. Both replays are plain loops, so they
are themselves forward-differentiable: `jacfwd(grad(...))` is the Hessian.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from ..stepping.loop import integrate
from ..stepping.outcome import Keep, Outcome
from ..stepping.plan import Inputs, Plan, Settings
from ..stepping.tape import Tape
from .base import Adjoint
from .linear_map import Level, LinearMap, apply_linear
from .replay import Moving, Replay, Residuals, Steps
from .replay_backward import replay_backward
from .replay_forward import replay_forward
from .smooth import (
    TIMES,
    Counters,
    Smooth,
    check_times,
    join,
    names_of,
    no_tangent,
    split,
)


class DiscreteAdjoint(Adjoint):
    """The exact derivative of the accepted steps; the default.

    It works under `grad`, `jvp`, `jacfwd`, `jacrev`, `vmap`, `jit` and `shard_map`, and forward
    over reverse for second derivatives.

    **Arguments:**

    - `checkpoints`: None keeps a tape of every step, `max_steps` rows of `(t, dt, u)`. A number
        keeps the state at the start of so many segments instead, and takes each segment's steps
        once more when it is replayed; about `sqrt(max_steps)` needs the least memory.

    !!! example
        `dj.solve(prob, dj.Tsit5(), adjoint=dj.DiscreteAdjoint(checkpoints=64))`
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem", "DAEProblem", "SDEProblem"})
    takes_callbacks: ClassVar[bool] = True

    checkpoints: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        c = self.checkpoints
        if c is not None and (isinstance(c, bool) or not isinstance(c, int) or c < 1):
            raise ValueError(f"checkpoints must be None or a positive integer, got {c!r}.")

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        return solve_by_replay(plan, inputs, settings, Keep(tape=plan.every_step), self.checkpoints)


def solve_by_replay(
    plan: Plan, inputs: Inputs, settings: Settings, keep: Keep, checkpoints: int | None
) -> Outcome:
    """The solve as a function that JAX can differentiate, keeping what `keep` says."""
    leaves, structure = jtu.tree_flatten(inputs)
    counters = Counters()

    @jax.custom_jvp
    def run(leaves: list[Array], settings: Settings) -> tuple[Smooth, Outcome]:
        smooth, rest = split(integrate(plan, jtu.tree_unflatten(structure, leaves), settings, keep))
        return smooth, counters.pack(rest)

    @partial(run.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> Any:
        leaves, settings = primals
        perturbed = [i for i, t in enumerate(tangents[0]) if not isinstance(t, SymbolicZero)]
        names = names_of(inputs)
        check_times(inputs, [names[i] for i in perturbed])
        # The time of an event that is located depends on all that the solve depends on.
        times = any(names[i] in TIMES for i in perturbed) or plan.locates
        full = plan.every_step or checkpoints is None
        kept = Keep(
            tape=full,
            segments=None if full else checkpoints,
            landings=times or keep.landings,
        )
        again = jtu.tree_unflatten(structure, leaves)
        outcome = solve_by_replay(plan, again, settings, kept, checkpoints)
        smooth, rest = split(outcome)
        assert outcome.tape is not None
        residuals = Residuals(leaves, settings, outcome.tape, outcome.saved)
        recorded = keep.tape or keep.segments is not None
        if not recorded:
            smooth = smooth._replace(tape_t=None, tape_u=None, tape_history=None)
            rest = rest._replace(tape=None)
        elif isinstance(rest.tape, Tape) and not keep.landings:
            rest = rest._replace(tape=rest.tape._replace(landed=None))
        rest = counters.pack(rest)
        replay = Replay(
            plan=plan,
            moving=Moving(structure, perturbed, names),
            steps=Steps(plan, times, smooth.rows is not None),
            kept=kept,
            recorded=recorded,
            residual_structure=jtu.tree_structure(residuals),
            smooth_structure=jtu.tree_structure(smooth),
        )
        out = apply_linear(
            _SolveTangent(replay, smooth),
            jtu.tree_leaves(residuals),
            [tangents[0][i] for i in perturbed],
        )
        smooth_dot = jtu.tree_unflatten(replay.smooth_structure, out)
        return (smooth, rest), (smooth_dot, _tangent_of_rest(rest, smooth_dot))

    smooth, rest = run(leaves, settings)
    return join(smooth, counters.unpack(rest))


def _tangent_of_rest(rest: Outcome, smooth_dot: Smooth) -> Outcome:
    """None, but for the sizes of taped steps: they are differences of times that may have one."""
    dot = jtu.tree_map(no_tangent, rest)
    if not isinstance(rest.tape, Tape) or smooth_dot.tape_t is None:
        return dot
    dt = jnp.append(jnp.diff(smooth_dot.tape_t), 0)
    taken = rest.tape.dt != 0
    return dot._replace(tape=dot.tape._replace(dt=jnp.where(taken, dt, 0)))


class _SolveTangent(LinearMap):
    """The tangent of a solve as a linear map of the tangents of its inputs."""

    def __init__(self, replay: Replay, smooth: Smooth) -> None:
        self.replay = replay
        self.out_avals = tuple(jax.typeof(x) for x in jtu.tree_leaves(smooth))

    def apply(self, residuals: Sequence[Array], tangents: Sequence[Array]) -> list[Array]:
        return replay_forward(self.replay, residuals, tangents)

    def transpose(
        self,
        levels: tuple[Level, ...],
        residuals: Sequence[Array],
        cotangents: Sequence[Array | None],
    ) -> list[Array]:
        return replay_backward(self.replay, levels, residuals, cotangents)
