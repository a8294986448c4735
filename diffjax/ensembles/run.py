"""Solving an ensemble: tiles of trajectories, one after another, on one device or on many.

A tile is a `vmap` of solves, and a scan goes over the tiles. A reduction is applied to a tile
before the next one starts, so memory does not grow with the number of trajectories; under a
reverse pass each tile is solved again when its turn comes, so that one tile's tape is alive at a
time. On a mesh every device runs the same scan over its own tiles, without talking to the others.

Everything about trajectory i comes from i and the key: neither the tile nor the device matters.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, PyTree

from ..problems.base import remake
from ..problems.ensemble import EnsembleProblem
from ..problems.parts import Parts, is_array
from ..solution import ReturnCode, Solution, SolveError, Stats, concrete
from ..stepping.varying import mesh_axes, vary_over
from .checks import check_accumulator, check_arguments, check_member
from .reductions import Reduction, Together
from .solution import EnsembleSolution, parted
from .tiles import tile_size, tiling

Solve = Callable[..., Solution]


class _Job(NamedTuple):
    """What is static about an ensemble; hashable."""

    solve: Solve
    shared_times: bool
    batch_size: int | None
    mesh: Mesh | None


class _Trajectory(NamedTuple):
    """What is kept of one trajectory, or of many with a leading axis."""

    t: Array
    out: PyTree
    retcode: Int[Array, ""]
    stats: Stats
    rest: Solution | None


class _Inputs(NamedTuple):
    """What is traced of an ensemble; `options` are the keyword arguments of each solve."""

    prob: EnsembleProblem
    key: Array | None
    options: Parts
    first: Int[Array, ""]


class _Result(NamedTuple):
    """`times` if they are those of every trajectory; `each` has a row a trajectory."""

    times: Array | None
    each: _Trajectory | None
    acc: PyTree
    returned: Int[Array, " codes"]


def solve_ensemble(
    solve: Solve,
    prob: EnsembleProblem,
    options: dict[str, Any],
    *,
    key: Array | None,
    trajectories: int | None,
    batch_size: int | None,
    mesh: Mesh | None,
    progress: bool,
    throw: bool | None,
) -> EnsembleSolution:
    """Solve an ensemble; the front door is `dj.solve`, and `solve` is what solves one problem.

    `options` are the keyword arguments of `solve` that are the same for every trajectory.
    """
    count = check_arguments(prob, options, key, trajectories, batch_size, mesh)
    overrides = {k: options[k] for k in ("u0", "tspan", "p") if options[k] is not None}
    if overrides:
        prob = remake(prob, prob=remake(prob.prob, **overrides))
    if prob.prob.stochastic and options["saveat"] is not None:
        # Fixed steps are made to end on save times, which a trace must not hide.
        times = concrete(options["saveat"]) if is_array(options["saveat"]) else None
        options = options if times is None else options | {"saveat": tuple(times.tolist())}
    held = {k: v for k, v in options.items() if k not in ("u0", "tspan", "p")}
    saveat = options["saveat"]
    shared = saveat is not None and not isinstance(saveat, str) and not callable(saveat)
    if mesh is not None:
        # Without the explicit axes of `jax.make_mesh`: what comes back is sliced and summed freely.
        mesh = Mesh(mesh.devices, mesh.axis_names)
    job = _Job(solve, shared, batch_size, mesh)
    inputs = _Inputs(prob, key, Parts(held, dynamic=is_array), jnp.zeros((), jnp.int32))
    acc = None if prob.init is None else jtu.tree_map(jnp.asarray, prob.init)
    result = _run(job, count, inputs, acc)
    return _solution(result, count, throw)


def _solution(result: _Result, count: int, throw: bool | None) -> EnsembleSolution:
    each = result.each
    sol = EnsembleSolution(
        t=result.times if each is None or result.times is not None else each.t,
        u=result.acc if each is None else each.out,
        retcode=None if each is None else each.retcode,
        stats=None if each is None else each.stats,
        returned=result.returned,
        _rest=None if each is None else each.rest,
        trajectories=count,
    )
    if throw:
        checked = eqx.error_if(sol.u, sol.failed > 0, "trajectories did not reach their end.")
        sol = eqx.tree_at(lambda s: s.u, sol, checked)
    if throw is not False:
        _raise_on_failure(sol)
    return sol


def _raise_on_failure(sol: EnsembleSolution) -> None:
    returned = concrete(sol.returned)
    if returned is None or returned.ndim > 1:
        return
    failed = returned[ReturnCode.terminated + 1 :]
    if failed.any():
        codes = [f"{n} with ReturnCode.{ReturnCode(c).name}" for c, n in enumerate(returned) if n]
        raise SolveError(
            f"{failed.sum()} of {sol.trajectories} trajectories did not reach their end "
            f"({', '.join(codes)}). What was reached is in the error's `solution`; throw=False "
            "returns it instead, and statistics leave out what is NaN.",
            sol,
        )


@partial(jax.jit, static_argnums=(0, 1))
def _run(job: _Job, count: int, inputs: _Inputs, acc: PyTree) -> _Result:
    """`count` trajectories, `inputs.first` the first of them."""
    kept = jax.eval_shape(partial(_trajectory, job), inputs, inputs.first)
    share = -(-count // (1 if job.mesh is None else job.mesh.size))
    tile, number = tiling(share, job.batch_size or tile_size(kept, inputs.prob))
    # What a tile may hold: all, what is left of a device's share, and of the last share.
    sizes = tuple(sorted({0, share % tile, count % share % tile, tile}))
    fold = _reduction(inputs.prob)
    if fold is not None:
        acc = fold.init(kept.out) if acc is None else acc
        acc = check_accumulator(fold, acc, kept.out)

    def tiles(inputs: _Inputs, start: Array, acc: PyTree) -> _Result:
        stop = jnp.minimum(start + share, inputs.first + count)
        result = _tiles(job, inputs, start, stop, sizes, number, fold, acc)
        return result._replace(each=jtu.tree_map(lambda x: x[:share], result.each))

    if job.mesh is None:
        return tiles(inputs, inputs.first, acc)
    result = _on_mesh(job.mesh, tiles, inputs, share, fold, acc, kept.out)
    return result._replace(each=jtu.tree_map(lambda x: x[:count], result.each))


def _reduction(prob: EnsembleProblem) -> Any:
    fold = prob.reduction
    return Together(fold) if isinstance(fold, tuple) else fold


def _trajectory(job: _Job, inputs: _Inputs, i: Int[Array, ""]) -> _Trajectory:
    """Trajectory i; this alone says what it is."""
    prob = inputs.prob
    key = None if inputs.key is None else jax.random.fold_in(inputs.key, i)
    member = prob.prob_func(prob.prob, i, key)
    check_member(member)
    draws = {"key": key} if member.stochastic else {}
    sol = job.solve(member, **inputs.options.value, **draws, throw=False)
    whole = prob.output_func is None
    out = sol.u if prob.output_func is None else prob.output_func(sol, i)
    keeps_all = whole and prob.reduction is None
    return _Trajectory(sol.t, out, sol._retcode, sol.stats, parted(sol) if keeps_all else None)


def _tiles(
    job: _Job,
    inputs: _Inputs,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    sizes: tuple[int, ...],
    number: int,
    fold: Any,
    acc: PyTree,
) -> _Result:
    """Tiles one after another, of the trajectories from `start` to `stop`."""
    tile = sizes[-1]

    def one(carry: Any, k: Array) -> Any:
        acc, returned = carry
        begin = start + k * tile
        lanes = begin + jnp.arange(tile, dtype=begin.dtype)
        # Lanes beyond the last trajectory repeat the one before, and are dropped.
        indices = jnp.maximum(jnp.minimum(lanes, stop - 1), 0)
        kept = jax.vmap(partial(_trajectory, job, inputs))(indices)
        codes = jax.nn.one_hot(kept.retcode, len(ReturnCode), dtype=jnp.bool_)
        returned += jnp.sum(codes & (lanes < stop)[:, None], axis=0, dtype=returned.dtype)
        times = kept.t[0] if job.shared_times else None
        if fold is None:
            return (acc, returned), (times, kept)
        acc = _folded(fold, acc, kept.out, stop - begin, sizes)
        return (acc, returned), (times, None)

    carry = (acc, jnp.zeros(len(ReturnCode), jnp.int32))
    carry = vary_over(mesh_axes(start), carry)
    if number == 1:
        (acc, returned), (times, each) = one(carry, jnp.zeros((), jnp.int32))
        return _Result(times, each, acc, returned)
    step = jax.checkpoint(one, prevent_cse=False)
    steps = jnp.arange(number, dtype=jnp.int32)
    (acc, returned), (times, each) = jax.lax.scan(step, carry, steps)
    each = jtu.tree_map(lambda x: x.reshape(number * tile, *x.shape[2:]), each)
    return _Result(None if times is None else times[0], each, acc, returned)


def _folded(fold: Any, acc: PyTree, outs: PyTree, left: Array, sizes: tuple[int, ...]) -> PyTree:
    """The accumulator after a tile of which the first `left` trajectories count.

    How many that can be is known beforehand (`sizes`), so a reduction sees only what is there.
    """

    def first(n: int) -> Callable[[PyTree], PyTree]:
        def run(acc: PyTree) -> PyTree:
            if n == 0:
                return acc
            new = fold(acc, jtu.tree_map(lambda x: x[:n], outs))
            return jtu.tree_map(lambda old, x: jnp.asarray(x, old.dtype), acc, new)

        return run

    which = jnp.searchsorted(jnp.asarray(sizes, left.dtype), jnp.clip(left, 0, sizes[-1]))
    return jax.lax.switch(which, [first(n) for n in sizes], acc)


def _on_mesh(
    mesh: Mesh,
    tiles: Callable[[_Inputs, Array, PyTree], _Result],
    inputs: _Inputs,
    share: int,
    fold: Reduction | None,
    acc: PyTree,
    out: PyTree,
) -> _Result:
    """The tiles of all devices, `share` trajectories each; accumulators meet at the end."""
    axes = tuple(mesh.axis_names)

    def local(inputs: _Inputs) -> _Result:
        inputs = vary_over(frozenset(axes), inputs)
        start = inputs.first + share * jax.lax.axis_index(axes)
        empty = None if fold is None else fold.init(out)
        result = tiles(inputs, start, empty)
        row = jtu.tree_map(lambda x: x[None], (result.times, result.acc, result.returned))
        return result._replace(times=row[0], acc=row[1], returned=row[2])

    spec = PartitionSpec(axes)
    result = jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec(), out_specs=spec)(inputs)
    if fold is not None:
        rows = [jtu.tree_map(lambda x, d=d: x[d], result.acc) for d in range(mesh.size)]
        acc = reduce(fold.merge, rows, acc)
    times = None if result.times is None else result.times[0]
    return result._replace(times=times, acc=acc, returned=result.returned.sum(0, dtype=jnp.int32))
