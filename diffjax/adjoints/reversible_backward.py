"""A reversible solve undone: states reconstructed while a cotangent is pulled through each step.

With Phi one step of the method and `a*` the cotangent of a, the step

    y' = Phi_h(t, z) + lambda (y - z),    z' = z + y' - Phi_{-h}(t + h, y')

has the transpose, with y'* first completed by what reaches z' through y',

    y'* <- y'* + z'* - (dPhi_{-h}/dy')^T z'*
    y*  =  lambda y'*
    z*  =  z'* + (dPhi_h/dz)^T y'* - lambda y'*

so each half of the step needs one vjp, whose value also undoes that half. Where the scheme starts
anew, with z = y, the cotangent of z joins that of y, and the pair that was kept is taken up.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..algorithms.base import Memory
from ..algorithms.reversible import Reversible
from ..stepping.fixed import fixed_time
from ..stepping.plan import Settings
from ..stepping.tape import Tape
from ..stepping.trees import chosen
from ..varying import vary_alike
from .linear_map import Level
from .replay import Inside, Point, Replay, Row, Spare, add, masked, max_of, read
from .replay_backward import Retreat, given_or_zero, replay_backward

# The reconstruction may miss the initial state, and what was saved, by this power of the rounding
# unit, relative to the largest component: 1.5e-8 in double precision, 3e-4 in single. The error of
# the gradient can be thousands of times larger.
MISS_EXPONENT = 1 / 2


class ReversibleSmooth(NamedTuple):
    """The part of an outcome that carries a derivative; `times` are those of the tape, `states`
    those at the checkpoints."""

    rows: list[Array] | None
    u_end: PyTree
    t_end: Array
    z_end: PyTree
    times: tuple[Array, Array] | None
    states: tuple[PyTree, PyTree] | None


class ReversibleResiduals(NamedTuple):
    """What the backward pass reads; `end` is the pair (y, z) that the solve ended with, `rows` what
    was saved, `states` the pairs at the checkpoints."""

    leaves: list[Array]
    settings: Settings
    record: Tape | None
    saved: Array | None
    rows: list[Array] | None
    end: tuple[PyTree, PyTree]
    states: tuple[PyTree, PyTree] | None


class _Carry(NamedTuple):
    """The reconstructed (y, z), its cotangents as `point.u`, and those of the moving inputs; `j` is
    the save that comes next, `number` how many steps are left if there are checkpoints, `astray`
    whether a save or a checkpoint came out another than it was."""

    here: tuple[PyTree, PyTree]
    point: Point
    for_step: list[Array]
    for_save: list[Array]
    j: Array | None
    number: Array | None
    astray: Array


class _Times(NamedTuple):
    """Where a step starts, its size, and where it ends."""

    t: Array
    dt: Array
    end: Array


class _Retrace(Retreat):
    """Of the backward replay, the parts that need a state from the tape are replaced."""

    residuals: Any
    cotangents: Any

    def __init__(
        self,
        replay: Replay,
        levels: tuple[Level, ...],
        residuals: Sequence[Array],
        cotangents: Sequence[Array | None],
    ) -> None:
        super().__init__(replay, levels, residuals, cotangents)
        alg: Any = replay.plan.alg
        self.alg: Reversible = alg
        self.u0 = self._first_point().u
        self.asked = self._asked()
        # A lane whose end is not finite, or for which nobody asks, stays at its start.
        self.live = self.asked & self._per_lane(_all_finite, self.residuals.end)
        self.scale = None
        if self.steps.saves and self.residuals.rows:
            self.scale = self._per_lane(_largest_row, self.residuals.rows)

    def _per_lane(self, fn: Any, *args: PyTree) -> Array:
        return self.lanes(fn, *(True for _ in args))(*args)

    def _asked(self) -> Array:
        """Whether some cotangent of a lane is not zero."""
        given = [x for x in jtu.tree_leaves(self.cotangents) if x is not None]
        return self._per_lane(_any_nonzero, given)

    def _start(self) -> _Carry:
        given, end = self.cotangents, self.residuals.end
        bars = given_or_zero(given.u_end, end[0]), given_or_zero(given.z_end, end[1])
        t = None
        if self.steps.times:
            t = jnp.zeros(self._lane_shape(), self.inputs.t0.dtype)
            t = t if given.t_end is None else t + given.t_end
        carry = _Carry(
            here=chosen(self.live, end, (self.u0, self.u0)),
            point=Point(masked(self.live, bars), t),
            for_step=[jnp.zeros_like(x) for x in self._group("step")[0]],
            for_save=[jnp.zeros_like(x) for x in self._group("save")[0]],
            j=self.residuals.saved - 1 if self.steps.saves else None,
            number=None if self.alg.every is None else self._taken(),
            astray=jnp.zeros(self._lane_shape(), bool),
        )
        return vary_alike((carry, self.residuals, jtu.tree_leaves(given)))[0]

    def _taken(self) -> Array:
        """How many steps were accepted."""
        if self.residuals.record is None:
            assert self.replay.plan.fixed_steps is not None
            return jnp.full(self._lane_shape(), self.replay.plan.fixed_steps, jnp.int32)

        def one(tape: Tape) -> Array:
            rows = jnp.arange(tape.dt.size, dtype=tape.used.dtype)
            return jnp.sum((tape.dt != 0) & (rows < tape.used), dtype=jnp.int32)

        return self._per_lane(one, self.residuals.record)

    def _row(self, k: Array, spare: Spare | None) -> Row:
        """Row k, of a tape without states or of fixed steps, for all lanes."""

        def one(leaves: list[Array], record: Tape | None, live: Array, spare: Spare | None) -> Row:
            inputs = jtu.tree_unflatten(self.moving.structure, leaves)
            if record is None:
                t = fixed_time(self.replay.plan, inputs, k)
                t_next = fixed_time(self.replay.plan, inputs, k + 1)
                dt = jnp.where(live, t_next - t, 1)
                return Row(k, t, t_next, dt, None, Memory(), None, live)
            assert spare is not None
            row = read(record, k, jnp.zeros_like(k), spare)
            return row._replace(active=row.active & live)

        return self.lanes(one, self.flags, True, True, True)(
            self.leaves, self.residuals.record, self.live, spare
        )

    def _halves(self, row: Row, inside: bool) -> tuple[Any, Any]:
        """Phi_{-h}(t + h, y') and Phi_h(t, z) of all lanes, as functions of the state, of the time
        that the step starts at, and of the moving inputs.

        The second gives with it the coefficients of its extension if `inside`, and the times if
        they carry a derivative.
        """
        alg, (_, flags) = self.alg, self._group("step")

        def scheduled(t: Any, moving: list[Array], leaves: list[Array], row: Row) -> Any:
            inputs = self.moving.place(leaves, "step", moving)
            t, dt, end = self.steps.schedule(Point(None, t), inputs, row)
            # A step of length zero where there is none: finite, and then thrown away.
            return self.steps.plan.field(inputs), t, jnp.where(row.active, dt, 0), end

        def back(y: PyTree, *at: Any) -> PyTree:
            field, t, dt, _ = scheduled(*at)
            return alg.half(field, t + dt, -dt, y).u

        def forth(z: PyTree, *at: Any) -> tuple[PyTree, PyTree, _Times | None]:
            field, t, dt, end = scheduled(*at)
            result = alg.half(field, t, dt, z)
            inner = alg.alg.dense(field, t, dt, z, result.stages) if inside else None
            times = _Times(t, jnp.where(at[-1].active, dt, 1), end)
            return result.u, inner, times if self.steps.times else None

        def of_all(half: Any) -> Any:
            lanes = self.lanes(half, True, True, flags, self.flags, True)
            return lambda u, t, moving: lanes(u, t, moving, self.leaves, row)

        return of_all(back), of_all(forth)

    def step(self, carry: Any, row: Row, inside: bool, event: bool) -> Any:
        back, forth = self._halves(row, inside)
        alg, primals = self.alg, self._group("step")[0]
        start_t = row.t if self.steps.times else None

        y_end, z_end = carry.here
        back_u, pull_back = jax.vjp(back, y_end, start_t, primals)
        z = alg.z_before(y_end, z_end, back_u)
        (forth_u, inner, times), pull_forth = jax.vjp(forth, z, start_t, primals)
        y = alg.y_before(y_end, z, forth_u)

        y_bar, z_bar = masked(row.active, carry.point.u)
        from_back, t_back, moving_back = pull_back(jtu.tree_map(jnp.negative, z_bar))
        y_bar = add(add(y_bar, z_bar), from_back)
        y_start = jtu.tree_map(lambda g: alg.coupling * g, y_bar)
        z_start = jtu.tree_map(jnp.subtract, z_bar, y_start)
        inner_bar, times_bar = jtu.tree_map(jnp.zeros_like, (inner, times))
        if inside:
            extension, pull = jax.vjp(alg.extension, y, z, inner)
            between = Inside(extension, *((None, None) if times is None else times[:2]))
            carry = carry._replace(astray=carry.astray | self._astray(carry.j, row, between))
            carry, bar = self.saves(carry, row, between, jtu.tree_map(jnp.zeros_like, between))
            y_more, z_more, inner_bar = pull(bar.coefficients)
            y_start, z_start = add(y_start, y_more), add(z_start, z_more)
            times_bar = None if times is None else times_bar._replace(t=bar.t, dt=bar.dt)
        if times_bar is not None:
            times_bar = times_bar._replace(end=masked(row.active, carry.point.t))
        from_forth, t_forth, moving_forth = pull_forth((y_bar, inner_bar, times_bar))
        t_bar = None if t_back is None else t_back + t_forth
        before = Point((y_start, add(z_start, from_forth)), t_bar)
        carry = carry._replace(
            here=chosen(row.active, (y, z), carry.here),
            point=chosen(row.active, before, carry.point),
            for_step=add(carry.for_step, add(moving_back, moving_forth)),
        )
        return carry if self.alg.every is None else self._at_checkpoint(carry, row, self.alg.every)

    def _at_checkpoint(self, carry: _Carry, row: Row, every: int) -> _Carry:
        """If the step is the first of its segment: z started as y did, and what was kept takes the
        place of what came out."""
        assert carry.number is not None
        number = carry.number - row.active.astype(jnp.int32)
        first = row.active & (number % every == 0)

        def kept(
            states: PyTree, number: Array, y: PyTree, u0: PyTree, end: PyTree
        ) -> tuple[PyTree, Array]:
            pair = jtu.tree_map(lambda x: x[number // every], states)
            return pair, ~_near(y, pair[0], (pair, u0, end))

        residuals = self.residuals
        lanes = self.lanes(kept, *[True] * 5)
        pair, off = lanes(residuals.states, number, carry.here[0], self.u0, residuals.end)
        y_bar, z_bar = carry.point.u
        joined = add(y_bar, z_bar), jtu.tree_map(jnp.zeros_like, z_bar)
        return carry._replace(
            here=chosen(first, pair, carry.here),
            point=carry.point._replace(u=chosen(first, joined, carry.point.u)),
            number=number,
            astray=carry.astray | (first & off),
        )

    def run(self) -> list[Array]:
        record = self.residuals.record
        steps = self.replay.plan.fixed_steps if record is None else max_of(record.used)
        assert steps is not None

        spare = None if record is None else self.lanes(Spare.of, True)(record)

        def one(i: Array, carry: Any) -> Any:
            return self.retreat(carry, self._row(steps - 1 - i, spare))

        carry: Any = jax.lax.fori_loop(0, steps, one, self._start())
        wrong = self.asked & (carry.astray | ~(self.live & self._returned(carry.here[0])))
        # z starts as y does.
        carry = carry._replace(point=carry.point._replace(u=add(*carry.point.u)))
        if self.steps.saves and self.cotangents.rows is not None:
            wrong |= self._unreached()
            carry = self.initial_saves(carry)
        out = self._collect(carry)
        lost = [self.lanes.reduce(wrong.astype(jnp.int32), want) > 0 for want in self.out_flags]
        return [chosen(bad, jnp.full_like(x, jnp.nan), x) for bad, x in zip(lost, out, strict=True)]

    def _returned(self, y: PyTree) -> Array:
        """Whether the reconstruction has come back to the initial state."""

        def one(y: PyTree, u0: PyTree, end: PyTree) -> Array:
            return _near(y, u0, (u0, end))

        return self._per_lane(one, y, self.u0, self.residuals.end)

    def _astray(self, j: Array, row: Row, between: Inside) -> Array:
        """Whether the last save in a step, from the reconstructed state, is not what was saved."""

        def one(
            between: Inside,
            leaves: list[Array],
            row: Row,
            j: Array,
            rows: list[Array],
            scale: Array,
        ) -> Array:
            inputs = jtu.tree_unflatten(self.moving.structure, leaves)
            value = self.steps.save(between, inputs, row, j)
            return ~_near(value, [x[jnp.maximum(j, 0)] for x in rows], scale)

        lanes = self.lanes(one, True, self.flags, True, True, True, True)
        off = lanes(between, self.leaves, row, j, self.residuals.rows, self.scale)
        return self.due(j, row) & off

    def _unreached(self) -> Array:
        """Whether a cotangent came for a save that was not reached: a loss that looks at one must
        not get a gradient that looks right."""

        def one(given: list[Array], saved: Array) -> Array:
            late = [jnp.arange(g.shape[0], dtype=saved.dtype) >= saved for g in given]
            return _any_nonzero([masked(a, g) for a, g in zip(late, given, strict=True)])

        given = [g for g in self.cotangents.rows if g is not None]
        return self._per_lane(one, given, self.residuals.saved)


def _any_nonzero(tree: PyTree) -> Array:
    return jnp.any(jnp.stack([jnp.any(x != 0) for x in jtu.tree_leaves(tree)]))


def _all_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(tree)]))


def _near(value: PyTree, wanted: PyTree, scale: PyTree) -> Array:
    """Whether a reconstructed value is that of the solve, by the largest component of `scale`."""
    rounding = max(
        (float(jnp.finfo(x.dtype).eps) for x in jtu.tree_leaves(wanted) if _is_inexact(x)),
        default=0,
    )
    miss = _largest(jtu.tree_map(lambda a, b: a - b if _is_inexact(a) else a * 0, value, wanted))
    return miss <= rounding**MISS_EXPONENT * _largest_finite(scale) + rounding


def _largest_finite(tree: PyTree) -> Array:
    return _largest(jtu.tree_map(lambda x: jnp.where(jnp.isfinite(x), x, 0), tree))


def _largest_row(rows: list[Array]) -> Array:
    """The largest of what was saved, row by row: a reduction over all of them may be one that XLA
    hands to a library, which no native function can hold."""

    def one(j: Array, largest: Array) -> Array:
        return jnp.maximum(largest, _largest_finite([x[j] for x in rows]))

    return jax.lax.fori_loop(0, rows[0].shape[0], one, _largest_finite([x[0] for x in rows]))


def _is_inexact(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _largest(tree: PyTree) -> Array:
    sizes = [jnp.max(jnp.abs(x), initial=0).astype(float) for x in jtu.tree_leaves(tree)]
    return jnp.max(jnp.stack(sizes))


def retrace(
    replay: Replay,
    levels: tuple[Level, ...],
    residuals: Sequence[Array],
    cotangents: Sequence[Array | None],
) -> list[Array]:
    """The cotangents of a reversible solve's moving inputs, for all lanes."""
    return replay_backward(replay, levels, residuals, cotangents, _Retrace)
