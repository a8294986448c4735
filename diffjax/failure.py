"""Saying why a solve failed, and what to try."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .arguments import Arguments, Options
from .linear.coordinates import Coordinates
from .linear.reuse import KEPT
from .prepare import prepare
from .solution import ReturnCode, Solution, SolveError, concrete
from .stepping.initialization import inconsistency

_CURES = {
    ReturnCode.max_steps: "raise max_steps, or loosen the tolerances",
    ReturnCode.dt_underflow: "check for a singularity there, or loosen the tolerances",
    ReturnCode.newton_failed: (
        "check jac, if you gave one, and f for kinks; use a smaller dt, or for a steady state a "
        "better guess (u0)"
    ),
    ReturnCode.initial_failed: (
        "no start satisfies the algebraic equations with the differential variables as they are: "
        "give a better u0, and if the equations do not determine the algebraic variables (an index "
        'above one) differentiate the constraints; initialize="collocation" may move all variables'
    ),
    ReturnCode.unstable: "check f for values that are not finite, or use a smaller dt",
}
_CURE_OF_EVENT = (
    "after an event no state there satisfies the algebraic equations with the differential "
    'variables as they are (under initialize="check", the state itself does not): let the affect '
    'change what must change; initialize="collocation" may move all variables'
)
_CURE_OF_SHORT_STEPS = (
    "the steps of this method, of strong order 1/2, are as short as the square of the relative "
    "tolerance where an element is near zero: give atol=, the size below which values do not "
    "matter, or take a method of order 1, as solve does by default"
)
# The share of its stability interval at which an explicit method counts as held back by it
# (Hairer, Wanner, Solving ODEs II, section IV.2).
STIFF = 0.9


def raise_on_failure(sol: Solution, cure: Callable[[ReturnCode], str]) -> None:
    """Raise `SolveError` if the return code is known and says that the end was not reached.

    `cure` says what to try.
    """
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
    raise SolveError(
        f"the solve ended with ReturnCode.{code.name}{lanes} at t = {time:.6g}; {cure(code)}. "
        "What was reached is in the error's `solution`; throw=False returns it instead.",
        sol,
    )


def cure(sol: Solution, arguments: Arguments, options: Options, code: ReturnCode) -> str:
    """What to try when a solve of a differential equation has failed."""
    if code == ReturnCode.max_steps and _looks_stiff(sol, arguments, options):
        large = sum(jnp.size(x) for x in jax.tree_util.tree_leaves(sol.final["u"])) > KEPT
        method = "dj.Rodas5P()"
        if large:
            method = (
                'dj.KenCarp4(), and give the problem a jac_sparsity= (for example "detect") or '
                "the method a linear_solver=dj.GMRES()"
            )
        return (
            "the problem looks stiff there: stability, not accuracy, holds the steps of this "
            f"explicit method back; use an implicit method such as {method}"
        )
    short = code in (ReturnCode.max_steps, ReturnCode.dt_underflow)
    if short and arguments.problem.stochastic and options.alg.order < 1:
        return _CURE_OF_SHORT_STEPS
    if code == ReturnCode.initial_failed and _after_an_event(sol):
        return _CURE_OF_EVENT
    if code == ReturnCode.initial_failed and options.initialize == "check":
        return f'{_worst_equation(arguments, options)}; give another start, or initialize="brown"'
    return _CURES.get(code, "see sol.retcode")


def _after_an_event(sol: Solution) -> bool:
    """Whether there were events."""
    count = None if sol.events is None else concrete(sol.events.n)
    return count is not None and bool(np.any(count > 0))


def _worst_equation(arguments: Arguments, options: Options) -> str:
    """Which algebraic equation the given start violates most, and by how much."""
    general = "the start does not satisfy the algebraic equations"
    element, residual = map(concrete, _residual_at_start(arguments, options))
    if element is None or residual is None or residual.ndim > 0:
        return general
    return f"{general}: number {int(element)} has the residual {float(residual):.3g} at the start"


@eqx.filter_jit
def _residual_at_start(arguments: Arguments, options: Options) -> tuple[Array, Array]:
    ready = prepare(arguments, options._replace(initialize=None))
    field, inputs = ready.plan.field(ready.inputs), ready.inputs
    settings = ready.settings
    excess = inconsistency(field, inputs.t0, inputs.u0, settings.rtol, settings.atol)
    worst = jnp.argmax(excess)
    if inputs.slope is None:
        value = field.f(inputs.t0, inputs.u0)
    else:
        value = field.residual(inputs.t0, inputs.slope, inputs.u0)
    residual = Coordinates(inputs.u0).flatten(value)[worst]
    elements, _ = ready.layout.coordinates()
    return jnp.asarray(elements)[worst], residual


def _looks_stiff(sol: Solution, arguments: Arguments, options: Options) -> bool:
    """Judge by one more step from where the solve ended."""
    final = sol.final
    if final["dt"] is None or arguments.jumps is not None:
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
    field = field.during(jnp.zeros((), jnp.int32))
    stages = options.alg.step(field, t, dt, u, memory, None).stages
    return options.alg.stiffness(dt, u, stages)
