"""Solving pure jump processes: what `dj.solve` hands over to.

It is a solve like any other, with a loop of its own: nothing is integrated between jumps, so there
is no step size, no tolerance and no interpolation.
"""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Int, PyTree

from ..arguments import held_times, resumed, value_of
from ..failure import raise_on_failure
from ..noise.random import key_from, key_words
from ..prepare import saving
from ..problems.base import remake, tree_of_arrays
from ..problems.jump import JumpProblem
from ..problems.parts import Parts, UserFunction, is_array
from ..progress import report
from ..solution import ReturnCode, Solution, Stats
from ..stepping.happenings import Happenings
from ..stepping.lanes import is_native
from ..stepping.trees import chosen, nan_like
from ..times import inside_span, save_times
from ..varying import mesh_axes, vary_over
from .aggregators import Aggregator, Direct
from .base import End, JumpAlgorithm, Process, Setting
from .channels import ChannelArgs, Channels, Leaves, trace_channels
from .checks import check_jumps, time_dtype
from .drivers import Rows, every_row, to_saves, to_saves_together
from .exact import SSAStepper
from .lanes import in_turn_or_together

# Functions with larger arrays than this are left to XLA's parallel kernels.
_NATIVE_MAX_SIZE = 4096


class _Arguments(eqx.Module):
    """What is traced, Python numbers apart."""

    problem: JumpProblem
    saveat: Any
    save_fn: Any
    key: Array
    dt: Any


class _Options(NamedTuple):
    """What is static; hashable."""

    alg: JumpAlgorithm
    max_steps: int
    steps: int | None
    save_every: bool
    save_idxs: Any
    progress: bool
    throw: bool


class _Times(NamedTuple):
    t0: Array
    t1: Array
    saves: Array | None


class _Ended(NamedTuple):
    """What the loop gives back."""

    rows: Rows
    u: Leaves
    t: Array
    end: End
    filled: Int[Array, ""]


def solve_jumps(
    prob: JumpProblem,
    given: dict[str, Any],
    *,
    key: Any,
    progress: bool,
    throw: bool | None,
) -> Solution:
    """Solve a pure jump process; `given` are the arguments of `dj.solve` by name."""
    overrides = {k: given[k] for k in ("u0", "tspan", "p") if given[k] is not None}
    prob = remake(prob, **overrides) if overrides else prob
    prob = prob if given["resume"] is None else resumed(prob, given["resume"])
    alg = SSAStepper() if given["alg"] is None else given["alg"]
    check_jumps(prob, alg, given, key)
    saveat, dt = given["saveat"], given["dt"]
    every = isinstance(saveat, str)
    arguments = _Arguments(
        problem=prob,
        saveat=None if every else held_times(saveat),
        save_fn=None if given["save_fn"] is None else UserFunction(given["save_fn"]),
        key=key_words(key),
        dt=None if dt is None else jnp.asarray(dt),
    )
    options = _Options(
        alg, given["max_steps"], given["steps"], every, given["save_idxs"], progress, bool(throw)
    )
    leaves, structure = jtu.tree_flatten(arguments)
    dynamic = tuple(x if is_array(x) else None for x in leaves)
    static = tuple(None if is_array(x) else x for x in leaves)
    sol = _solution(_solve(dynamic, static, structure, options))
    if throw is not False:
        raise_on_failure(sol, _cure)
    return sol


def _cure(code: ReturnCode) -> str:
    return {
        ReturnCode.max_steps: "raise max_steps",
        ReturnCode.event_failed: (
            "a rate was negative or not finite there, or exceeded its urate, or a leap has made a "
            "number of molecules negative: check the rates, or take smaller leaps"
        ),
        ReturnCode.initial_failed: "tspan must run forwards",
    }.get(code, "see sol.retcode")


@partial(jax.jit, static_argnums=(1, 2, 3))
def _solve(dynamic: Any, static: Any, structure: Any, options: _Options) -> dict[str, Any]:
    """The compiled solve; everything hashable is a static argument, so nothing is traced twice."""
    leaves = [s if d is None else d for d, s in zip(dynamic, static, strict=True)]
    arguments: _Arguments = jtu.tree_unflatten(structure, leaves)
    axes = mesh_axes(arguments)
    arguments = vary_over(axes, arguments)
    parts = Parts(arguments.problem.p)
    p = parts.value
    tspan = tuple(value_of(arguments.problem.tspan, p))
    u0 = tree_of_arrays(value_of(arguments.problem.u0, p, tspan[0]))
    u0 = jtu.tree_map(jnp.asarray, u0)
    dtype = time_dtype(u0, tspan)
    t0, t1 = (vary_over(axes, jnp.asarray(t, dtype)) for t in tspan)
    u0 = vary_over(axes, u0)
    saves = vary_over(axes, save_times(arguments.saveat, tspan, dtype))
    saves = None if saves is None else inside_span(saves, t0, t1)
    jumps, leaps = arguments.problem.jumps, options.alg.jumps is not None
    channels, args = trace_channels(jumps, u0, parts, t0, leaps=leaps)
    dt = arguments.dt if options.steps is None else (t1 - t0) / options.steps
    ended = _simulate(
        options,
        arguments.problem.aggregator or Direct(),
        channels,
        args,
        key_from(arguments.key, t0),
        jtu.tree_leaves(u0),
        (t0, t1, None if dt is None else dt.astype(dtype)),
        saves,
    )
    return _present(ended, options, arguments, u0, _Times(t0, t1, saves))


def _simulate(
    options: _Options,
    aggregator: Aggregator,
    channels: Channels,
    args: ChannelArgs,
    key: Array,
    u0: Leaves,
    times: tuple[Array, Array, Array | None],
    saves: Array | None,
) -> _Ended:
    """Run the loop, one path or many."""

    def run(many: bool, *given: Any) -> _Ended:
        args, key, u0, (t0, t1, dt), saves = given
        process = options.alg.process(
            Setting(channels, args, aggregator, key, u0, t0, t1, dt, options.max_steps)
        )
        advance = _reporting(process) if options.progress else process.advance
        if options.save_every:
            c, rows = every_row(process, options.max_steps, t1, advance, many=many)
        else:
            ts = t1[None] if saves is None else saves
            c, rows = (to_saves_together if many else to_saves)(process, ts, t1, advance)
        t, _ = process.last(c)
        return _Ended(rows, process.state(c), t, process.outcome(c), process.rows(c))

    small = all(is_native(jaxpr, _NATIVE_MAX_SIZE) for jaxpr in channels.traced)
    return in_turn_or_together(
        partial(run, False), partial(run, True), args, key, u0, times, saves, native=small
    )


def _reporting(process: Process[Any]) -> Any:
    """`advance` that shows what it has done."""
    t0, t1 = process.setting.t0, process.setting.t1

    def done(c: Any) -> Array:
        return jnp.where(process.active(c), (process.last(c)[0] - t0) / (t1 - t0), 1)

    def advance(c: Any, until: Array) -> Any:
        new = process.advance(c, until)
        report(done(c), done(new), process.active(new))
        return new

    return advance


def _present(
    ended: _Ended, options: _Options, arguments: _Arguments, u0: PyTree, times: _Times
) -> dict[str, Any]:
    """The outcome in the user's terms, arrays only."""
    structure, end = jtu.tree_structure(u0), ended.end
    status = jnp.where(times.t1 < times.t0, ReturnCode.initial_failed, end.status)
    reached = status <= ReturnCode.terminated
    t_end = jnp.where(reached, times.t1, ended.t)
    u_end = jtu.tree_unflatten(structure, ended.u)
    events = None
    if options.save_every:
        t, rows, n, events = _every_row(ended, reached, t_end)
        # Leaps do not tell which jumps happened when.
        events = events if options.alg.jumps is None else None
    elif times.saves is None:
        t, n, rows = t_end[None], reached.astype(jnp.int32), [x[None] for x in ended.u]
    else:
        t, rows = times.saves, ended.rows.u
        n = jnp.sum(times.saves <= t_end, dtype=jnp.int32)
    filled = jnp.arange(t.shape[0], dtype=jnp.int32) < n
    u = jtu.tree_unflatten(structure, rows)
    save = saving(arguments.save_fn, options.save_idxs)
    if save is not None:
        p = arguments.problem.p
        u = jax.vmap(lambda u, t: jtu.tree_map(jnp.asarray, save(u, p, t)))(u, t)
    u = jtu.tree_map(lambda x: chosen(filled, x, nan_like(x)), u)
    if options.throw:
        u = eqx.error_if(u, ~reached, "diffjax.solve did not reach its end.")
    zero = jnp.zeros((), jnp.int32)
    unused = dict.fromkeys(("njac", "nfactor", "nsolve", "nnewton_fail"), zero)
    work = {k: x for k, x in end._asdict().items() if k != "status"}
    return {
        "t": t,
        "u": u,
        "t_end": t_end,
        "u_end": u_end,
        "n": n,
        "stats": {**work, **unused},
        "retcode": status,
        "final": {"t": t_end, "u": u_end},
        "events": events,
    }


def _every_row(
    ended: _Ended, reached: Array, t_end: Array
) -> tuple[Array, Leaves, Array, Happenings]:
    """Times, states, how many rows are filled, and the jumps: start, jumps or leaps, and end."""
    rows, last = ended.rows, ended.filled + 1
    assert rows.t is not None
    assert rows.which is not None
    places = jnp.arange(rows.t.shape[0], dtype=jnp.int32)
    # After a failure, and where the last leap has ended there, the end has no row of its own.
    own = reached & (ended.t < t_end)
    at_end = (places == last) & own
    t = jnp.where(at_end, t_end, jnp.where(places < last, rows.t, jnp.nan))
    u = [chosen(at_end, x[None], row) for x, row in zip(ended.u, rows.u, strict=True)]
    jumped = (places < last) & (rows.which >= 0)
    events = Happenings(
        jnp.where(jumped, rows.t, jnp.nan)[1:-1],
        jnp.where(jumped, rows.which, -1)[1:-1],
        jnp.sum(jumped, dtype=jnp.int32),
        before=None,
        after=None,
    )
    return t, u, last + own.astype(jnp.int32), events


def _solution(result: dict[str, Any]) -> Solution:
    return Solution(
        t=result["t"],
        u=result["u"],
        t_end=result["t_end"],
        u_end=result["u_end"],
        n=result["n"],
        stats=Stats(**result["stats"]),
        _retcode=result["retcode"],
        final=result["final"],
        estimates=None,
        events=result["events"],
        _interpolation=None,
    )
