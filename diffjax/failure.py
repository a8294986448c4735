"""Saying why a solve failed, and what to try."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .prepare import Arguments, Options, prepare
from .solution import ReturnCode, Solution, SolveError, concrete

_CURES = {
    ReturnCode.max_steps: "raise max_steps, or loosen the tolerances",
    ReturnCode.dt_underflow: "check for a singularity there, or loosen the tolerances",
    ReturnCode.newton_failed: (
        "check jac, if you gave one, and f for kinks; use a smaller dt, or for a steady state a "
        "better guess (u0)"
    ),
    ReturnCode.unstable: "check f for values that are not finite, or use a smaller dt",
}
# The share of its stability interval at which an explicit method counts as held back by it
# (Hairer, Wanner, Solving ODEs II, section IV.2).
STIFF = 0.9


def raise_on_failure(sol: Solution, arguments: Arguments, options: Options) -> None:
    """Raise `SolveError` if the return code is known and says that the end was not reached."""
    codes = concrete(sol._retcode)
    if codes is None or np.all(codes <= ReturnCode.terminated):
        return
    failed = codes > ReturnCode.terminated
    code = ReturnCode(int(codes[failed].flat[0] if codes.ndim else codes))
    reached = concrete(sol.t_end)
    time = np.nan
    if reached is not None:
        at = np.broadcast_to(reached, codes.shape)
        time = float(at[failed].flat[0] if codes.ndim else at)
    lanes = f" in {int(failed.sum())} of {codes.size} lanes" if codes.ndim else ""
    cure = _CURES.get(code, "see sol.retcode")
    if code == ReturnCode.max_steps and _looks_stiff(sol, arguments, options):
        cure = (
            "the problem looks stiff there: stability, not accuracy, holds the steps of this "
            "explicit method back; use an implicit method such as dj.Rodas5P()"
        )
    raise SolveError(
        f"the solve ended with ReturnCode.{code.name}{lanes} at t = {time:.6g}; {cure}. "
        "What was reached is in the error's `solution`; throw=False returns it instead.",
        sol,
    )


def _looks_stiff(sol: Solution, arguments: Arguments, options: Options) -> bool:
    """Judge by one more step from where the solve ended."""
    final = sol.final
    if final["dt"] is None:
        return False
    time = concrete(final["t"])
    others = [concrete(x) for x in jax.tree_util.tree_leaves((final["u"], final["dt"]))]
    if time is None or time.ndim > 0 or any(x is None for x in others):
        return False
    estimate = _stiffness(arguments, options, final)
    value = None if estimate is None else concrete(estimate)
    return value is not None and bool(value > STIFF)


@eqx.filter_jit
def _stiffness(arguments: Arguments, options: Options, final: dict[str, Array]) -> Array | None:
    ready = prepare(arguments, options)
    field, turn = ready.plan.field(ready.inputs), ready.times.direction
    t, u = final["t"] * turn, ready.layout.ravel(final["u"])
    dt, memory = jnp.abs(final["dt"]), options.alg.init(field, t, u)
    stages = options.alg.step(field, t, dt, u, memory, None).stages
    return options.alg.stiffness(dt, u, stages)
