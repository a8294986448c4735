"""Judging what can be judged before a solve runs.

Every message names the argument, what came, what was wanted and what to try.
"""

import warnings
from typing import Any

import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .adjoints.base import Adjoint
from .algorithms.base import Algorithm
from .events.callbacks import Callback, ScheduledCallback
from .events.library import SavingCallback
from .linear.sparsity import full_band
from .noise.base import NoiseProcess
from .problems.base import Problem
from .problems.discrete import DiscreteProblem
from .problems.ensemble import EnsembleProblem
from .problems.jump import JumpProblem, is_pure_jump
from .problems.jump_kinds import RegularJump
from .problems.parts import is_array
from .problems.pattern import Pattern
from .solution import concrete, concrete_one
from .stepping.initialization import HOW

# A relative tolerance below this many units of rounding cannot be met.
MIN_RTOL_ULPS = 10.0
# How far outside the span a save time may lie by rounding, relative to the span.
SPAN_SLACK = 1e-6


def check_type(name: str, value: Any, wanted: type, example: str) -> None:
    """Raise unless `value` is an instance of `wanted`."""
    if isinstance(value, wanted):
        return
    if isinstance(value, type) or callable(value):
        label = getattr(value, "__name__", repr(value))
        raise TypeError(
            f"{name} must be an instance, got the class or function {label}; try {example}."
        )
    raise TypeError(f"{name} must be like {example}, got {type(value).__name__}.")


def check_problem(prob: Any) -> None:
    if not isinstance(prob, Problem):
        raise TypeError(
            f"prob must be a problem such as dj.ODEProblem(f, u0, tspan, p), "
            f"got {type(prob).__name__}."
        )
    if isinstance(prob, EnsembleProblem):
        raise TypeError("an EnsembleProblem is solved by dj.solve(prob, alg, trajectories=N) only.")
    if isinstance(prob, DiscreteProblem):
        raise TypeError("nothing happens in a DiscreteProblem: solve dj.JumpProblem(prob, *jumps).")
    if is_pure_jump(prob):
        raise TypeError(
            "a pure jump process is solved by dj.solve as a whole, not step by step; "
            'saveat="steps" gives every jump.'
        )


def check_one(**given: Any) -> None:
    """Raise on an argument that only an ensemble has a use for."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}={value!r} needs many problems: solve dj.EnsembleProblem(prob)."
            )


def check_no_path(path: Any) -> None:
    """Raise on a path given to an ensemble."""
    if path is not None:
        raise ValueError(
            "path: every trajectory of an ensemble has noise of its own, from key=; to solve on "
            "given paths, jax.vmap over them."
        )


def check_algorithm(alg: Any, prob: Problem) -> None:
    label = getattr(alg, "__name__", "Tsit5")
    check_type("alg", alg, Algorithm, f"dj.{label}()")
    kind = type(prob).__name__
    if kind not in alg.takes:
        raise TypeError(
            f"alg={alg.name} cannot solve a problem of kind {kind}; "
            f"it takes {', '.join(sorted(alg.takes))}."
        )
    if prob.arguments().get("mass_matrix") is not None and not alg.takes_mass_matrix:
        raise ValueError(
            f"alg={alg.name} cannot solve a problem with a mass_matrix; take dj.Rodas5P(), "
            "for which it may be singular, or let f return the inverse of the matrix times f."
        )
    check_mass_in_pattern(prob)
    if prob.stochastic:
        check_kind_of_noise(alg, prob)


def check_noise(
    prob: Problem, alg: Algorithm, key: Any, path: Any, antithetic: Any, fixed: bool
) -> None:
    """Raise unless there is the noise that the problem and the algorithm need, and no other."""
    if not prob.stochastic:
        for name, value in {"key": key, "path": path, "antithetic": antithetic}.items():
            if value is not None and value is not False:
                raise ValueError(
                    f"{name} is for stochastic problems, and a {type(prob).__name__} has no noise; "
                    "leave it out, or solve a dj.SDEProblem."
                )
        return
    if (key is None) == (path is None):
        what = "neither" if key is None else "both"
        raise ValueError(
            f"a {type(prob).__name__} needs key= (for example jax.random.key(0)) or path=, a "
            f"noise process such as dj.noise.NoiseGrid(t, W): got {what}."
        )
    check_key(key)
    if path is None:
        return
    check_type("path", path, NoiseProcess, "dj.noise.NoiseGrid(t, W)")
    if not fixed and not path.anywhere:
        raise ValueError(
            f"path={type(path).__name__} does not know the noise between its own times, which "
            "adaptive steps ask for: give dt= with adaptive=False, or dj.noise.VirtualBrownianTree."
        )
    need = alg.need(path.dim)
    if need.area and not path.has_area:
        raise ValueError(
            f"alg={alg.name} needs the integral of the noise over a step, which "
            f"path={type(path).__name__} does not give; a dj.NoiseGrid needs Z=, or take dj.EM()."
        )
    if need.extra and not path.has_extra:
        raise ValueError(
            f"alg={alg.name} needs random numbers beside the path; give key= instead of path=, or "
            "dj.noise.VirtualBrownianTree."
        )
    if alg.needs_independent_noises and path.covariance is not None:
        raise ValueError(
            f"alg={alg.name} takes independent noises only, which path={type(path).__name__} does "
            "not give; leave it out and let g return its matrix times the factor."
        )


def check_key(key: Any) -> None:
    if key is not None and not is_array(key):
        raise TypeError(f"key must be a key such as jax.random.key(0), got {type(key).__name__}.")


def check_kind_of_noise(alg: Algorithm, prob: Problem) -> None:
    """Raise unless the algorithm takes the noise of a stochastic problem."""
    given = prob.arguments()
    for name, taken in (("noise", alg.noises), ("interpretation", alg.interpretations)):
        if given[name] not in taken:
            raise ValueError(
                f"alg={alg.name} cannot solve a problem with {name}={given[name]!r}; it takes "
                f"{', '.join(sorted(taken))}. Try dj.LambaEM() for Ito, dj.LambaEulerHeun() for "
                "Stratonovich equations with any noise."
            )
    if given["correlation"] is not None and alg.needs_independent_noises:
        raise ValueError(
            f"alg={alg.name} takes independent noises only; leave correlation= out and let g "
            "return its matrix times the factor."
        )


def check_mass_in_pattern(prob: Problem) -> None:
    """Raise on a dense mass matrix that has entries where `jac_sparsity` allows none."""
    given, mass = (prob.arguments().get(name) for name in ("jac_sparsity", "mass_matrix"))
    value = None if mass is None or np.ndim(mass) != 2 else concrete_one(mass)
    if value is None or not isinstance(given, tuple | Pattern):
        return
    n = value.shape[0]
    allowed = full_band(n, *given) if isinstance(given, tuple) else given.matrix
    if allowed.shape != value.shape:
        return
    outside = np.argwhere((value != 0) & ~allowed.toarray())
    if outside.size:
        i, j = outside[0]
        raise ValueError(
            f"mass_matrix has {len(outside)} entries where jac_sparsity allows none, the first at "
            f"[{i}, {j}]; it says where J and a dense M have entries, so widen it, "
            'or give jac_sparsity="detect".'
        )


def check_adjoint(adjoint: Any, prob: Problem, default: Adjoint) -> None:
    check_type("adjoint", adjoint, Adjoint, f"dj.{default.name}()")
    kind = type(prob).__name__
    if kind not in adjoint.takes:
        raise TypeError(
            f"adjoint={adjoint.name} cannot differentiate a problem of kind {kind}; "
            f"try dj.{default.name}()."
        )


def check_evolves(prob: Problem, **given: Any) -> None:
    """Raise on an argument that only the solution over a span of time has a use for."""
    if prob.evolves:
        return
    for name, value in given.items():
        if not (value is None or value is False or (isinstance(value, tuple) and not value)):
            raise ValueError(
                f"{name}={value!r} has no meaning for a {type(prob).__name__}, whose solution is "
                "one state, not followed over time; leave it out, or solve a dj.ODEProblem."
            )


def check_steps(alg: Algorithm, adaptive: bool, dt: Any, steps: Any, max_steps: Any) -> bool:
    """Whether the steps are fixed; raises on settings that contradict one another."""
    check_step_sizes(dt, steps, max_steps)
    has_estimate = alg.error_order is not None
    fixed = steps is not None or not adaptive or not has_estimate
    if fixed and dt is None and steps is None:
        why = "adaptive=False" if has_estimate else f"{alg.name} has no error estimate"
        raise ValueError(f"{why}: give dt=, the size of a step, or steps=, their number.")
    if fixed and steps is None and concrete_one(dt) is None:
        raise ValueError("dt must be a number where steps are fixed; give steps= to trace it.")
    return fixed


def check_step_sizes(dt: Any, steps: Any, max_steps: Any) -> None:
    """Raise on sizes or numbers of steps that are none, or contradict one another."""
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a positive integer, got {max_steps!r}.")
    if steps is not None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be a positive integer, got {steps!r}.")
        if dt is not None:
            raise ValueError("give dt (the size of a step) or steps (their number), not both.")
    if dt is not None:
        size = concrete(dt)
        if size is not None and not (np.isfinite(size).all() and (np.abs(size) > 0).all()):
            raise ValueError(f"dt must be finite and not zero, got {dt!r}.")


def known_ends(prob: Problem) -> tuple[float, float] | None:
    """Both ends of the span where they are known."""
    tspan = prob.tspan
    if callable(tspan):
        return None
    ends = [concrete(t) for t in tspan]
    if any(t is None or t.ndim > 0 for t in ends):
        return None
    t0, t1 = (float(t) for t in ends if t is not None)
    return t0, t1


def check_saving(saveat: Any, save_idxs: Any, save_fn: Any, prob: Problem) -> None:
    if save_idxs is not None and save_fn is not None:
        raise ValueError("give save_idxs or save_fn, not both: save_fn can index by itself.")
    if saveat is None or callable(saveat):
        return
    if isinstance(saveat, str):
        if saveat != "steps":
            raise ValueError(
                f'saveat must be a number, times, a function or "steps", got {saveat!r}.'
            )
        return
    if np.ndim(saveat) == 0:
        _check_spacing(saveat, prob)
        return
    times = saveat if isinstance(saveat, np.ndarray) else concrete_one(jnp.asarray(saveat))
    if times is not None:
        _check_times("saveat", np.asarray(times), known_ends(prob))


def _check_spacing(saveat: Any, prob: Problem) -> None:
    if not isinstance(saveat, int | float | np.number) or isinstance(saveat, bool):
        raise TypeError(
            f"saveat as a spacing must be a Python number, got {type(saveat).__name__}; "
            "for a traced spacing give a function (t0, t1) -> times."
        )
    if not (np.isfinite(saveat) and saveat > 0):
        raise ValueError(f"saveat as a spacing must be positive and finite, got {saveat}.")
    tspan = prob.tspan
    if callable(tspan) or not all(isinstance(t, float) for t in tspan):
        raise ValueError(
            "saveat as a spacing needs a tspan of Python numbers, since it decides how many times "
            "are saved; for a traced tspan give a function (t0, t1) -> times."
        )


def _check_times(name: str, times: np.ndarray, ends: tuple[float, float] | None) -> None:
    if times.ndim != 1 or times.size == 0:
        raise ValueError(
            f"{name} must be a non-empty one-dimensional array of times, got shape {times.shape}."
        )
    if not np.all(np.isfinite(times)):
        raise ValueError(f"{name} must be finite, got {times[~np.isfinite(times)][0]}.")
    if ends is None:
        return
    t0, t1 = ends
    steps = np.diff(times) * (1.0 if t1 >= t0 else -1.0)
    if np.any(steps < 0):
        raise ValueError(
            f"{name} must be sorted in the direction of the solve, from {t0} to {t1}; "
            f"got {times[:4].tolist()}..."
        )
    slack = SPAN_SLACK * abs(t1 - t0)
    low, high = min(ends) - slack, max(ends) + slack
    outside = (times < low) | (times > high)
    if np.any(outside):
        raise ValueError(
            f"{name} must lie inside tspan=({t0}, {t1}), got {float(times[outside][0])}."
        )


def check_tstops(tstops: Any, prob: Problem, fixed: bool) -> None:
    if not hasattr(tstops, "__len__"):
        raise TypeError(f"tstops must be a sequence of times, got {type(tstops).__name__}.")
    if len(tstops) == 0:
        return
    # Numbers are known even while a jit around traces what is made of them.
    known = all(isinstance(t, int | float | np.number) for t in tstops)
    times = np.asarray(tstops) if known else concrete_one(jnp.asarray(tstops))
    if times is not None:
        _check_times("tstops", times, known_ends(prob))
    static = all(isinstance(t, float) for t in prob.tspan)
    if fixed and (times is None or not static):
        raise ValueError(
            "tstops with fixed steps need times and a tspan of Python numbers; "
            "use adaptive steps, or end one solve at each stop."
        )


def check_callbacks(
    callback: Any,
    max_events: Any,
    adjoint: Adjoint,
    default: Adjoint,
    fixed: bool,
    prob: Problem,
) -> tuple[Callback, ...]:
    """The callbacks as a tuple; raises unless they are such and can be differentiated."""
    given = () if callback is None else callback
    given = tuple(given) if isinstance(given, tuple | list) else (given,)
    for one in given:
        check_type("callback", one, Callback, "dj.ContinuousCallback(condition, affect)")
    if isinstance(max_events, bool) or not isinstance(max_events, int) or max_events < 1:
        raise ValueError(f"max_events must be a positive integer, got {max_events!r}.")
    if fixed and any(one.refuses for one in given):
        raise ValueError(
            "a callback that refuses steps, such as PositiveDomain, needs adaptive steps."
        )
    for one in given:
        if isinstance(one, SavingCallback):
            check_saving(one.times, None, None, prob)
    if not all(isinstance(one, SavingCallback) for one in given):
        check_takes_callbacks(adjoint, default)
    return given


def check_takes_callbacks(adjoint: Adjoint, default: Adjoint) -> None:
    if not adjoint.takes_callbacks:
        raise ValueError(
            f"adjoint={adjoint.name} cannot differentiate a solve with callbacks or jumps; try "
            f"dj.{default.name}() or dj.ForwardMode()."
        )


def check_jumps(prob: JumpProblem, key: Any, **given: Any) -> None:
    """Raise unless jumps on a differential equation can be solved as the arguments ask for."""
    kind = type(prob.prob).__name__
    if kind not in ("ODEProblem", "SDEProblem", "DAEProblem"):
        raise TypeError(f"jumps cannot be solved on top of a {kind}; it takes ODEs, SDEs and DAEs.")
    if key is None:
        raise ValueError("a JumpProblem needs key=, for example jax.random.key(0).")
    check_key(key)
    for jump in prob.jumps:
        if isinstance(jump, RegularJump):
            raise TypeError(
                "RegularJump is for dj.TauLeaping() on a dj.DiscreteProblem; on a differential "
                "equation take dj.ConstantRateJump or dj.VariableRateJump."
            )
    for name, value in given.items():
        if value is not None and value is not False:
            raise ValueError(f"{name} is not known to a JumpProblem on a {kind}; leave it out.")
    ends = known_ends(prob)
    if ends is not None and ends[1] < ends[0]:
        raise ValueError(
            f"jumps happen forwards in time only: got tspan=({ends[0]}, {ends[1]}); a process that "
            "waits for its next jump has no backward solution."
        )


def known_times(callbacks: tuple[Callback, ...], prob: Problem) -> list[float]:
    """The times of scheduled callbacks inside a static span, for steps of a fixed size."""
    found: list[float] = []
    for callback in callbacks:
        if not isinstance(callback, ScheduledCallback):
            continue
        ends = tuple(t for t in _ends(prob) if isinstance(t, float))
        times = callback.times_in((ends[0], ends[1])) if len(ends) == 2 else None
        if not isinstance(times, tuple):
            raise ValueError(
                f"{callback.name} with fixed steps needs times and a tspan of Python numbers; use "
                "adaptive steps."
            )
        found += [t for t in times if min(ends) < t < max(ends)]
    return found


def _ends(prob: Problem) -> tuple[Any, ...]:
    """Both ends of the span; none where they are computed."""
    return () if callable(prob.tspan) else tuple(prob.tspan)


def check_estimates(estimates: bool, alg: Algorithm) -> None:
    if estimates and alg.error_order is None:
        raise ValueError(
            f"estimates=True needs an algorithm with an error estimate, and {alg.name} has none; "
            "try dj.Tsit5()."
        )


def check_initialize(initialize: Any, prob: Problem) -> str | None:
    """How the start is made consistent; None where every start is, for certain."""
    if initialize is not None and initialize not in HOW:
        raise ValueError(
            f"initialize must be {', '.join(map(repr, HOW))} or None, got {initialize!r}."
        )
    given = prob.arguments()
    if "F" in given:
        return initialize or "brown"
    mass = given.get("mass_matrix")
    if mass is None:
        return None
    if initialize == "collocation" or isinstance(mass, jax.core.Tracer):
        return initialize or "brown"
    mass = np.asarray(mass)
    rows = mass == 0 if mass.ndim == 1 else np.all(mass == 0, axis=-1)
    return (initialize or "brown") if rows.any() else None


def check_initial_state(prob: Problem) -> None:
    u0 = prob.arguments()["u0"]
    if callable(u0) and not is_array(u0):
        return
    for path, leaf in jtu.tree_leaves_with_path(u0):
        value = concrete(leaf)
        if value is None:
            continue
        if not np.issubdtype(value.dtype, np.inexact) and not jnp.issubdtype(
            value.dtype, jnp.inexact
        ):
            raise TypeError(
                f"u0{jtu.keystr(path)} must be floating point or complex, got dtype "
                f"{value.dtype}; try jnp.array([1.0, 2.0]) or .astype(float)."
            )
        if not np.all(np.isfinite(value)):
            raise ValueError(f"u0{jtu.keystr(path)} must be finite, got a NaN or infinity.")


def check_tolerance(name: str, tolerance: PyTree, prob: Problem) -> PyTree:
    """The tolerance as a pytree of arrays, clamped where it is under rounding.

    **Raises:** `ValueError` if some value is negative or not finite.
    """
    u0 = prob.arguments()["u0"]
    eps = 0.0
    if not callable(u0) or is_array(u0):
        dtypes = [jnp.result_type(x) for x in jtu.tree_leaves(u0)]
        eps = max(
            (float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.inexact)), default=0.0
        )
    floor = MIN_RTOL_ULPS * eps if name == "rtol" else 0.0

    def judged(leaf: Any) -> Any:
        value = concrete(leaf)
        if value is None:
            return jnp.asarray(leaf)
        if not np.all(np.isfinite(value)) or np.any(value < 0):
            raise ValueError(f"{name} must be finite and not negative, got {leaf}.")
        if np.any((value < floor) & (value > 0)):
            warnings.warn(
                f"{name}={leaf} is under the rounding of the state's dtype; using {floor:.3g}.",
                # Where `dj.solve` is called.
                stacklevel=8,
            )
        return jnp.maximum(jnp.asarray(leaf), floor)

    return jtu.tree_map(judged, tolerance)
