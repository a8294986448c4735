"""Judging what can be judged before jumps are simulated.

Every message names the argument, what came, what was wanted and what to try.
"""

from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from ..checks import check_key, check_saving, check_step_sizes, check_type, known_ends
from ..problems.jump import JumpProblem
from ..problems.jump_kinds import VariableRateJump
from ..problems.parts import is_array
from ..solution import concrete
from .aggregators import Aggregator
from .base import JumpAlgorithm

# Arguments of `solve` that a jump process has no use for, with the values that mean nothing.
UNUSED: dict[str, Any] = {
    "dense": False,
    "estimates": False,
    "adaptive": True,
    "controller": None,
    "dtmin": None,
    "dtmax": None,
    "tstops": (),
    "callback": None,
    "initialize": None,
    "adjoint": None,
    "path": None,
    "antithetic": False,
}


def check_jumps(prob: JumpProblem, alg: Any, given: dict[str, Any], key: Any) -> None:
    """Raise unless a pure jump process can be simulated as the arguments of `solve` ask for."""
    if not isinstance(alg, JumpAlgorithm):
        name = getattr(alg, "name", getattr(alg, "__name__", type(alg).__name__))
        raise TypeError(
            f"alg={name} cannot solve a JumpProblem of a DiscreteProblem; it is solved by "
            "dj.SSAStepper(), exactly, or in leaps by dj.TauLeaping() or dj.CaoTauLeaping()."
        )
    if prob.aggregator is not None:
        check_type("aggregator", prob.aggregator, Aggregator, "dj.Direct()")
    for name, neutral in UNUSED.items():
        value = given[name]
        if is_array(value) or value != neutral:
            raise ValueError(
                f"{name}={value!r} cannot be used with a pure jump process, whose state is "
                "constant between its jumps; leave it out."
            )
    if key is None:
        raise ValueError("a JumpProblem needs key=, for example jax.random.key(0).")
    check_key(key)
    _check_kinds(prob, alg)
    dt, steps = given["dt"], given["steps"]
    check_step_sizes(dt, steps, given["max_steps"])
    if alg.has_fixed_steps and dt is None and steps is None:
        raise ValueError(f"{alg.name} takes fixed steps: give dt=, their size, or steps=.")
    if not alg.has_fixed_steps and (dt is not None or steps is not None):
        raise ValueError(f"dt and steps have no meaning for {alg.name}: leave them out.")
    check_saving(given["saveat"], given["save_idxs"], given["save_fn"], prob)
    ends = known_ends(prob)
    if ends is not None and ends[1] < ends[0]:
        raise ValueError(
            f"tspan must run forwards, got {ends}: a jump process run backwards is another process,"
            " with rates that depend on its law."
        )
    _check_state(prob.u0)


def _check_kinds(prob: JumpProblem, alg: JumpAlgorithm) -> None:
    for jump in prob.jumps:
        kind = type(jump).__name__
        if alg.jumps is not None and kind not in alg.jumps:
            raise TypeError(
                f"alg={alg.name} cannot take a {kind}; it takes {', '.join(sorted(alg.jumps))}, "
                "several of which can be added at once. Try dj.SSAStepper()."
            )
        if isinstance(jump, VariableRateJump) and jump.urate is None:
            raise TypeError(
                "a VariableRateJump on a DiscreteProblem needs urate=, a bound of its rate until "
                "the next jump (or for the time rateinterval=); if the rate changes at jumps "
                "only, take a dj.ConstantRateJump."
            )


def _check_state(u0: PyTree) -> None:
    if callable(u0) and not is_array(u0):
        return
    leaves = jtu.tree_leaves_with_path(u0)
    if not leaves:
        raise ValueError("u0 must hold at least one array, got an empty pytree.")
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        name = f"u0{jtu.keystr(path)}"
        if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)):
            raise TypeError(f"{name} must be integer or floating point, got dtype {dtype}.")
        value = concrete(leaf)
        if value is not None and not np.all(np.isfinite(value)):
            raise ValueError(f"{name} must be finite, got a NaN or infinity.")


def time_dtype(u0: PyTree, tspan: tuple[Any, Any]) -> Any:
    """The dtype of times and rates: the widest of the floating point numbers in the state and of a
    traced span; without any that of a Python number."""
    given = [x for x in (*jtu.tree_leaves(u0), *tspan) if is_array(x)]
    floating = [x.dtype for x in given if jnp.issubdtype(x.dtype, jnp.floating)]
    return np.result_type(*floating) if floating else jnp.result_type(float)
