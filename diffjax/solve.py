"""The front door: `solve` has its arguments judged and hands over to an adjoint."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import equinox as eqx
import jax
import jax.tree_util as jtu
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from . import checks
from .adjoints.base import Adjoint
from .algorithms.accompanied import Accompanied, Marks
from .algorithms.base import Algorithm
from .arguments import Arguments, Options
from .defaults import default_max_steps
from .ensembles.run import solve_ensemble
from .events.callbacks import Callback
from .failure import cure, raise_on_failure
from .judge import Given, hashable_index, judge
from .jumps.solve import solve_jumps
from .noise.base import NoiseProcess
from .prepare import prepare
from .problems.base import Problem
from .problems.ensemble import EnsembleProblem
from .problems.jump import is_pure_jump
from .problems.parts import Parts, UserFunction, is_array
from .solution import ReturnCode, Solution, Stats
from .stepping.controllers import Controller
from .stepping.dense import DenseOutput
from .stepping.layout import Layout
from .stepping.whole import whole


def solve(
    prob: Problem,
    alg: Algorithm | None = None,
    *,
    u0: PyTree = None,
    tspan: Any = None,
    p: PyTree = None,
    saveat: Any = None,
    save_idxs: Any = None,
    save_fn: Callable[[Any, Any, Any], PyTree] | None = None,
    dense: bool = False,
    estimates: bool = False,
    rtol: PyTree = 1e-3,
    atol: PyTree = 1e-6,
    dt: float | Array | None = None,
    steps: int | None = None,
    adaptive: bool = True,
    controller: Controller | None = None,
    dtmin: float | Array | None = None,
    dtmax: float | Array | None = None,
    max_steps: int | None = None,
    tstops: Any = (),
    callback: Callback | Sequence[Callback] | None = None,
    max_events: int = 64,
    initialize: Literal["brown", "collocation", "check"] | None = None,
    adjoint: Adjoint | Literal["auto"] | None = None,
    resume: PyTree = None,
    progress: bool = False,
    key: Array | None = None,
    path: NoiseProcess | None = None,
    antithetic: bool | Array = False,
    trajectories: int | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    throw: bool | None = None,
) -> Solution:
    """Solve a differential equation.

    **Arguments:**

    - `prob`: the problem; `u0`, `tspan`, `p` replace its own, as `dj.remake` does.
    - `alg`: how a step is taken, for example `dj.Tsit5()`. By default `Tsit5`, or `Vern7` for a
        relative tolerance under 1e-6, that hands over to `Rodas5P` where the problem is stiff
        (`dj.AutoSwitch`); beyond 50 unknowns to `KenCarp4`; beyond 200 not at all without a
        `jac_sparsity`, nor with an adjoint whose steps restart often (the continuous and the
        reversible). With a mass matrix `Rodas5P`; for a `DAEProblem` `DFBDF`; for a steady state
        `SSRootfind`, and should that fail `DynamicSS`. For a stochastic problem `SOSRA` (additive
        noise), `SOSRI` (diagonal or scalar; `RKMil` if Stratonovich), `RKMilCommute` (commutative)
        or `RKMilGeneral` (general; with correlated noises, or a `path` that gives no areas,
        `LambaEM`, `LambaEulerHeun` if Stratonovich). For a pure jump process `SSAStepper`.
    - `saveat`: which times to save: a number (a spacing, for a span of Python numbers; both ends
        are saved), an array of times sorted in the direction of the solve, a function
        `(t0, t1) -> times`, `"steps"` (every accepted step, padded; `sol.n` rows are filled) or
        None (the final state). Saving never changes the steps.
    - `save_idxs`: indices into an array state, to save only those components.
    - `save_fn`: save `save_fn(u, p, t)` instead of the state.
    - `dense`: keep what `sol(t)` needs.
    - `estimates`: give the error and stiffness estimates of the steps, differentiable, as
        `sol.estimates`; `max_steps` rows are computed.
    - `rtol`, `atol`: relative and absolute tolerance of a step, numbers or pytrees like `u0`. Along
        a path the errors of its steps add up like a random walk, of the law (`dj.DRI1`) as they
        are. A method of strong order 1/2 (`dj.LambaEM` and kin) needs an `atol` of the size below
        which values do not matter: at the default its steps near zero are too short to end.
    - `dt`: the first step, or the size of fixed steps; `steps`: the number of fixed steps.
    - `adaptive`: False for fixed steps of size `dt`. A method without an error estimate always
        takes fixed steps.
    - `controller`: the step controller, by default `dj.PIController()`.
    - `dtmin`, `dtmax`: bounds on the step; a step that would have to be smaller ends the solve.
    - `max_steps`: the most steps, rejected ones counted; by default 4096, or of a pure jump process
        ten million jumps, unless all are saved. Under a derivative it is also the length
        of the tape, unless the adjoint keeps checkpoints.
    - `tstops`: times that a step must end on.
    - `callback`: a callback such as `dj.ContinuousCallback`, or a tuple of them: what happens to
        the solution at certain times or where a condition is met. `sol.events` tells what has
        happened. What is saved at the time of an event is the state after it.
    - `max_events`: how many events are kept in `sol.events`. More events of continuous callbacks,
        or two of one at the same time, end the solve with `event_failed`.
    - `initialize`: what is done with a start that does not satisfy the algebraic equations (the
        rows of zeros of a mass matrix), or those of a `DAEProblem`. `"brown"`, the default, holds
        the differential variables and solves for the algebraic ones; `"collocation"` takes the end
        of a very short implicit Euler step (a fifth of `dt`, if that is given), which may move all
        of them; `"check"` fails. A start that is consistent within the tolerances stays as it is.
        Where there is none, which for `"brown"` includes equations of an index above one, the
        return code is `initial_failed`. The same is done with a state that a callback has changed,
        or at whose time the field may jump. Derivatives pass through.
    - `adjoint`: how the solve is differentiated, by default `dj.DiscreteAdjoint()`, of a steady
        state `dj.SteadyStateAdjoint()`.
    - `resume`: the `final` of an earlier solution, to go on from where it ended: with its step
        size, the controller's memory and, of the same method in the same direction, the past
        values, the order or the side of a switch.
    - `progress`: show a progress bar.
    - `key`: what random numbers are drawn from, for example `jax.random.key(0)`. Adaptive steps see
        the same path at any tolerance.
    - `path`: the noise of a stochastic problem in place of a key, for example
        `dj.noise.NoiseGrid(t, W)` or `dj.noise.VirtualBrownianTree(...)`.
    - `antithetic`: take the negative of that noise, -W for W. Of an ensemble, draw it in pairs:
        trajectory 2k + 1 has the key of trajectory 2k and the negative of its noise, so that
        means of functions that are nearly odd in the noise have far less variance.
    - `trajectories`: of a `dj.EnsembleProblem`, how many are solved. `batch_size`: how many of
        them side by side, by default what the cache of a CPU or the memory of an accelerator holds.
        `mesh`: a `jax.sharding.Mesh` over all of whose devices they are spread; each device solves
        its own, in batches of `batch_size`.
    - `throw`: raise `SolveError` on failure. None: wherever the return code is concrete; True:
        under a trace too, by a host callback; False: never.

    **Returns:** a `Solution`; of an ensemble a `dj.EnsembleSolution`.

    **Raises:** `ValueError`, `TypeError` for bad arguments; `SolveError` as `throw` says.

    !!! example
        ```python
        prob = dj.ODEProblem(lambda u, p, t: -p * u, jnp.array([1.0]), (0.0, 1.0), 2.0)
        sol = dj.solve(prob, dj.Tsit5(), saveat=0.1, rtol=1e-6, atol=1e-9)
        ```
    """
    given: dict[str, Any] = {
        "u0": u0,
        "tspan": tspan,
        "p": p,
        "saveat": saveat,
        "save_idxs": save_idxs,
        "save_fn": save_fn,
        "dense": dense,
        "estimates": estimates,
        "rtol": rtol,
        "atol": atol,
        "dt": dt,
        "steps": steps,
        "adaptive": adaptive,
        "controller": controller,
        "dtmin": dtmin,
        "dtmax": dtmax,
        "max_steps": default_max_steps(prob, saveat) if max_steps is None else max_steps,
        "tstops": tstops,
        "callback": callback,
        "max_events": max_events,
        "initialize": initialize,
        "adjoint": adjoint,
        "resume": resume,
    }
    many: dict[str, Any] = {"trajectories": trajectories, "batch_size": batch_size, "mesh": mesh}
    if isinstance(prob, EnsembleProblem):
        given |= {"alg": alg, "save_idxs": hashable_index(save_idxs)}
        checks.check_no_path(path)
        many |= {"key": key, "antithetic": antithetic, "progress": progress, "throw": throw}
        solved = solve_ensemble(solve, prob, given, **many)
        # What type checkers know of `solve` is what it gives for one problem.
        return cast(Any, solved)
    checks.check_one(**many)
    given |= {"path": path, "antithetic": antithetic}
    if is_pure_jump(prob):
        given |= {"alg": alg, "save_idxs": hashable_index(save_idxs)}
        return solve_jumps(prob, given, key=key, progress=progress, throw=throw)
    given |= {"progress": progress, "key": key, "throw": throw}
    arguments, options = judge(prob, alg, Given(**given))
    leaves, structure = jtu.tree_flatten(arguments)
    dynamic = tuple(x if is_array(x) else None for x in leaves)
    static = tuple(None if is_array(x) else x for x in leaves)
    result = _solve(dynamic, static, structure, options)
    sol = _solution(result, arguments.problem, options)
    if throw is not False:
        raise_on_failure(sol, partial(cure, sol, arguments, options))
    return sol


@partial(jax.jit, static_argnums=(1, 2, 3))
def _solve(dynamic: Any, static: Any, structure: Any, options: Options) -> dict[str, Any]:
    """The compiled solve; everything hashable is a static argument, so nothing is traced twice."""

    def solved(dynamic: Any) -> dict[str, Any]:
        leaves = [s if d is None else d for d, s in zip(dynamic, static, strict=True)]
        arguments: Arguments = jtu.tree_unflatten(structure, leaves)
        ready = prepare(arguments, options)
        outcome = options.adjoint.solve(ready.plan, ready.inputs, ready.settings)
        return ready.present(
            outcome,
            save_every=options.save_every,
            estimates=options.estimates,
            dense=options.dense,
        )

    result = whole(solved, dynamic)
    if options.throw:
        failed = result["retcode"] > ReturnCode.terminated
        result["u"] = eqx.error_if(result["u"], failed, "diffjax.solve did not reach its end.")
    return result


def _solution(result: dict[str, Any], prob: Problem, options: Options) -> Solution:
    interpolation = None
    if options.dense:
        history = result["dense"]["past"].history
        alg = options.alg
        if isinstance(history, Marks):
            alg = Accompanied(alg, history.changing)
        interpolation = DenseOutput(
            **result["dense"],
            alg=alg,
            problem=_equation(prob),
            p=Parts(prob.arguments()["p"]),
            layout=Layout(result["u_end"]),
        )
    return Solution(
        t=result["t"],
        u=result["u"],
        t_end=result["t_end"],
        u_end=result["u_end"],
        n=result["n"],
        stats=Stats(**result["stats"]),
        _retcode=result["retcode"],
        final=result["final"],
        estimates=result.get("estimates"),
        events=result.get("events"),
        saved=result.get("saved", ()),
        _interpolation=interpolation,
        _noise=result.get("noise"),
    )


def _equation(prob: Problem) -> dict[str, Any]:
    """The arguments that say what the equation is, in a form that may leave a `jit`."""
    given = prob.arguments()
    names = ("f", "F", "jac")
    held: dict[str, Any] = {k: UserFunction(given[k]) for k in names if given.get(k) is not None}
    if given.get("jac_sparsity") is not None:
        held["jac_sparsity"] = Parts(given["jac_sparsity"], dynamic=lambda _: False)
    mass = given.get("mass_matrix")
    return held if mass is None else {**held, "mass_matrix": Parts(mass)}
