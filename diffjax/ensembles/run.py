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
from ..problems.jump import is_pure_jump
from ..problems.parts import Parts, is_array
from ..progress import Bar
from ..solution import ReturnCode, Solution, SolveError, Stats, concrete, concrete_one
from ..varying import mesh_axes, vary_over
from .checks import check_accumulator, check_arguments, check_member
from .reductions import Together
from .solution import EnsembleSolution, parted
from .tiles import refilled, tile_size, tiling

Solve = Callable[..., Solution]
# The steps of a progress bar.
_ROUNDS = 20


class _Job(NamedTuple):
    """What is static about an ensemble; hashable."""

    solve: Solve
    antithetic: bool
    shared_times: bool
    batch_size: int | None
    mesh: Mesh | None

    @property
    def devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.size


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


class _Carry(NamedTuple):
    """What goes from tile to tile; `done` counts them."""

    done: Int[Array, ""]
    times: Array | None
    acc: PyTree
    returned: Int[Array, " codes"]


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
    antithetic: Any,
    trajectories: int | None,
    batch_size: int | None,
    mesh: Mesh | None,
    progress: bool,
    throw: bool | None,
) -> EnsembleSolution:
    """Solve an ensemble; the front door is `dj.solve`, and `solve` is what solves one problem.

    `options` are the keyword arguments of `solve` that are the same for every trajectory.
    """
    count = check_arguments(prob, options, key, antithetic, trajectories, batch_size, mesh)
    overrides = {k: options[k] for k in ("u0", "tspan", "p") if options[k] is not None}
    if overrides:
        prob = remake(prob, prob=remake(prob.prob, **overrides))
    if prob.prob.stochastic and options["saveat"] is not None:
        # Fixed steps are made to end on save times, which a trace must not hide.
        times = concrete_one(options["saveat"]) if is_array(options["saveat"]) else None
        options = options if times is None else options | {"saveat": tuple(times.tolist())}
    held = {k: v for k, v in options.items() if k not in ("u0", "tspan", "p")}
    saveat = options["saveat"]
    shared = saveat is not None and not isinstance(saveat, str) and not callable(saveat)
    if mesh is not None:
        # Without the explicit axes of `jax.make_mesh`: what comes back is sliced and summed freely.
        mesh = Mesh(mesh.devices, mesh.axis_names)
    job = _Job(solve, antithetic, shared, batch_size, mesh)
    inputs = _Inputs(prob, key, Parts(held, dynamic=is_array), jnp.zeros((), jnp.int32))
    acc = None if prob.init is None else jtu.tree_map(jnp.asarray, prob.init)
    # Under a trace there is nothing yet to show.
    if progress and concrete(inputs.first) is not None:
        result = _with_bar(job, count, inputs, acc)
    else:
        result = _run(job, count, inputs, acc)
    return _solution(result, count, throw)


def _with_bar(job: _Job, count: int, inputs: _Inputs, acc: PyTree) -> _Result:
    """In some rounds of one compiled program, so that nothing of the bar is in that."""
    size = max(-(-count // _ROUNDS), (job.batch_size or 1) * job.devices)
    results = []
    with Bar(count, "ensemble") as bar:
        for first in range(0, count, size):
            step = min(size, count - first)
            now = inputs._replace(first=jnp.asarray(first, jnp.int32))
            result = _run(job, step, now, acc)
            jax.block_until_ready(result.returned)
            acc = result.acc
            results.append(result._replace(acc=None))
            bar.advance(step)
    returned = sum(r.returned for r in results[1:]) + results[0].returned
    each = jtu.tree_map(lambda *xs: jnp.concatenate(xs), *(r.each for r in results))
    return _Result(results[0].times, each, acc, returned)


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
    share = -(-count // job.devices)
    kept, most, more = _most(job, inputs, share)
    fold = _reduction(inputs.prob)
    if fold is not None:
        acc = fold.init(kept.out) if acc is None else acc
        acc = check_accumulator(fold, acc, kept.out)

    def tiles_of(most: int, inputs: _Inputs, start: Array, acc: PyTree) -> _Result:
        tile, number = tiling(share, most)
        # What a tile may hold: all, what is left of a device's share, and of the last share.
        sizes = tuple(sorted({0, share % tile, count % share % tile, tile}))
        stop = jnp.minimum(start + share, inputs.first + count)
        result = _tiles(job, inputs, start, stop, sizes, number, kept, acc)
        return result._replace(each=jtu.tree_map(lambda x: x[:share], result.each))

    tiles = partial(tiles_of, most)
    if more > most:
        tiles = jax.custom_jvp(partial(tiles_of, more))
        tiles.defjvp(lambda xs, dots: jax.jvp(partial(tiles_of, most), xs, dots))
    if job.mesh is None:
        return tiles(inputs, inputs.first, acc)
    result = _on_mesh(job.mesh, tiles, inputs, share, acc, kept.out)
    return result._replace(each=jtu.tree_map(lambda x: x[:count], result.each))


def _most(job: _Job, inputs: _Inputs, count: int) -> tuple[_Trajectory, int, int]:
    """Shapes of what is kept of a trajectory, and how many of `count` are in a tile at most: in a
    derivative, and otherwise."""

    def one(inputs: _Inputs) -> tuple[PyTree, _Trajectory]:
        sol = _solved(job, inputs, inputs.first)
        return sol.u_end, _kept(inputs.prob, sol, inputs.first)

    state, kept = jax.eval_shape(one, inputs)
    if job.batch_size is not None:
        return kept, job.batch_size, job.batch_size
    options, device = inputs.options.value, jax.local_devices()[0]
    most = tile_size(kept, state, options["max_steps"], device)
    # What takes no steps of a differential equation has no lanes that are filled again.
    problem = inputs.prob.prob
    if is_pure_jump(problem) or not problem.evolves:
        return kept, most, most
    reduced = inputs.prob.reduction is not None
    return kept, most, refilled(count, most, kept, reduced, options, device)


def _reduction(prob: EnsembleProblem) -> Any:
    fold = prob.reduction
    return Together(fold) if isinstance(fold, tuple) else fold


def _solved(job: _Job, inputs: _Inputs, i: Int[Array, ""]) -> Solution:
    """The solution of problem i; this alone says what it is."""
    number = i // 2 if job.antithetic else i
    key = None if inputs.key is None else jax.random.fold_in(inputs.key, number)
    member = inputs.prob.prob_func(inputs.prob.prob, i, key)
    check_member(member)
    draws: dict[str, Any] = {"key": key} if member.stochastic else {}
    if job.antithetic:
        draws["antithetic"] = i % 2 == 1
    return job.solve(member, **inputs.options.value, **draws, throw=False)


def _kept(prob: EnsembleProblem, sol: Solution, i: Int[Array, ""]) -> _Trajectory:
    output = prob.output_func
    rest = parted(sol) if output is None and prob.reduction is None else None
    out = sol.u if output is None else jtu.tree_map(jnp.asarray, output(sol, i))
    return _Trajectory(sol.t, out, sol._retcode, sol.stats, rest)


def _tiles(
    job: _Job,
    inputs: _Inputs,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    sizes: tuple[int, ...],
    number: int,
    kept: _Trajectory,
    acc: PyTree,
) -> _Result:
    """Tiles one after another, of the trajectories from `start` to `stop`."""
    tile, fold = sizes[-1], _reduction(inputs.prob)

    def trajectory(i: Array) -> _Trajectory:
        return _kept(inputs.prob, _solved(job, inputs, i), i)

    def one(carry: _Carry, _: None) -> tuple[_Carry, _Trajectory | None]:
        begin = start + carry.done * tile
        lanes = begin + jnp.arange(tile, dtype=begin.dtype)
        # Lanes beyond the last trajectory repeat the one before, and are dropped.
        indices = jnp.maximum(jnp.minimum(lanes, stop - 1), 0)
        each = jax.vmap(trajectory)(indices)
        codes = jax.nn.one_hot(each.retcode, len(ReturnCode), dtype=jnp.bool_)
        counted = jnp.sum(codes & (lanes < stop)[:, None], axis=0, dtype=jnp.int32)
        acc = carry.acc
        if fold is not None:
            acc = _folded(fold, acc, each.out, stop - begin, sizes)
        times = each.t[0] if job.shared_times else None
        new = _Carry(carry.done + 1, times, acc, carry.returned + counted)
        return new, each if fold is None else None

    times = jnp.zeros(kept.t.shape, kept.t.dtype) if job.shared_times else None
    carry = _Carry(jnp.int32(0), times, acc, jnp.zeros(len(ReturnCode), jnp.int32))
    carry = vary_over(mesh_axes(start), carry)
    if number == 1:
        end, each = one(carry, None)
    else:
        # The counter is carried, not scanned over: nothing is as long as the scan.
        step = jax.checkpoint(one, prevent_cse=False)
        end, each = jax.lax.scan(step, carry, None, length=number)
        each = jtu.tree_map(lambda x: x.reshape(number * tile, *x.shape[2:]), each)
    return _Result(end.times, each, end.acc, end.returned)


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
    acc: PyTree,
    out: PyTree,
) -> _Result:
    """The tiles of all devices, `share` trajectories each; accumulators meet at the end."""
    axes, fold = tuple(mesh.axis_names), _reduction(inputs.prob)

    def local(inputs: _Inputs) -> _Result:
        inputs = vary_over(frozenset(axes), inputs)
        start = inputs.first + share * jax.lax.axis_index(axes)
        fold = _reduction(inputs.prob)
        result = tiles(inputs, start, None if fold is None else fold.init(out))
        row = jtu.tree_map(lambda x: x[None], (result.times, result.acc, result.returned))
        return result._replace(times=row[0], acc=row[1], returned=row[2])

    spec = PartitionSpec(axes)
    result = jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec(), out_specs=spec)(inputs)
    if fold is not None:
        rows = [jtu.tree_map(lambda x, d=d: x[d], result.acc) for d in range(mesh.size)]
        acc = reduce(fold.merge, rows, acc)
    times = None if result.times is None else result.times[0]
    return result._replace(times=times, acc=acc, returned=result.returned.sum(0, dtype=jnp.int32))
