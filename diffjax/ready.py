"""What a compiled solve is made of, and its outcome in the user's terms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from .algorithms.implicit import derivative
from .stepping.estimates import step_estimates
from .stepping.happenings import FirstEvents, Happenings, happenings
from .stepping.initial_step import INITIAL_STEP_NF
from .stepping.initialization import Start
from .stepping.layout import Layout
from .stepping.noise_path import NoisePath
from .stepping.outcome import Outcome
from .stepping.plan import Inputs, Plan, Settings
from .stepping.status import ReturnCode
from .stepping.tape import Tape
from .stepping.trees import chosen
from .stepping.watch import EventLog


def turned(t: Any, direction: Any) -> Any:
    """Times of a solve in the user's time, and the other way round."""
    return t if isinstance(direction, float) and direction == 1.0 else t * direction


class Times(NamedTuple):
    """The span and what lies in it, turned so that time runs forwards.

    `span` is the pair of Python numbers if it is static, `direction` what turns it back.
    """

    span: tuple[float, float] | None
    direction: Any
    t0: Array
    t1: Array
    saves: Array | None
    stops: Array | None


class Saved(NamedTuple):
    """What a `dj.SavingCallback` has saved: times `t`, values `u` with a leading time axis, of
    which the first `n` were reached; the others are NaN."""

    t: Float[Array, " T"]
    u: PyTree
    n: Int[Array, ""]


class Ready(NamedTuple):
    """All that a solve needs, and what its outcome is presented with.

    `start` is None where nothing had to be made consistent, `first` where nothing happens at it.
    With `has_hazards` the state is the pair of the user's and theirs. `merged` says where among the
    save times those of the solve and of callbacks that save are; None without such callbacks.
    """

    plan: Plan
    inputs: Inputs
    settings: Settings
    layout: Layout
    times: Times
    saved_shapes: Any
    traced_saves: bool
    start: Start | None
    first: FirstEvents | None
    has_hazards: bool
    merged: tuple[Array, ...] | None

    def _unravel(self, u: Any) -> PyTree:
        """The user's state of a laid-out one."""
        state = self.layout.unravel(u)
        return state[0] if self.has_hazards else state

    def present(
        self, outcome: Outcome, *, save_every: bool, estimates: bool, dense: bool
    ) -> dict[str, Any]:
        """The outcome in the user's terms, arrays only."""
        turn = self.times.direction
        outcome = outcome._replace(status=self._status(outcome))
        ended = lax.le(outcome.status, np.int32(ReturnCode.terminated))
        u_end, t_end = self._unravel(outcome.u_end), turned(outcome.t_end, turn)
        saved = None if outcome.rows is None else self._saved(outcome)
        if self.plan.every_step and save_every:
            t, u, n = self._every_step(outcome)
        elif saved is not None and saved[0].t.size:
            t, u, n = saved[0]
        else:
            t, n = t_end[None], ended.astype(jnp.int32)
            row = self.plan.observe(self.inputs.save_args, outcome.u_end, outcome.t_end)
            # A product, so that the derivative of what was not reached is NaN as well.
            u = self._own(self._rows([x[None] * _one_or_nan(ended, x) for x in row]))
        result = {
            "t": t,
            "u": u,
            "t_end": t_end,
            "u_end": u_end,
            "n": n,
            "stats": self._stats(outcome),
            "retcode": outcome.status,
            "final": self._final(outcome, t_end, u_end, turn),
        }
        if self.merged is not None and saved is not None:
            result["saved"] = tuple(saved[1:])
        if self.inputs.noise is not None:
            result["noise"] = NoisePath.of(self.plan, self.inputs, turn)
        if outcome.log is not None:
            result["events"] = self._events(outcome.log)
        if estimates:
            assert isinstance(outcome.tape, Tape)
            result["estimates"] = step_estimates(
                self.plan, self.inputs, self.settings, outcome.tape
            )
        if dense:
            tape = outcome.tape
            assert isinstance(tape, Tape)
            result["dense"] = {
                "t": tape.t,
                "u": tape.u,
                "past": tape.past,
                "used": tape.used,
                "direction": jnp.asarray(turn, self.inputs.t0.dtype),
            }
        return result

    def _saved(self, outcome: Outcome) -> list[Saved]:
        """What was saved, first by the solve itself, then by each callback that saves."""
        assert outcome.rows is not None
        assert outcome.saved is not None
        assert self.inputs.saves is not None
        t, n = turned(self.inputs.saves, self.times.direction), outcome.saved
        rows = self._rows(self._with_start(outcome.rows) if self.traced_saves else outcome.rows)
        if self.merged is None:
            return [Saved(t, rows, n)]

        def part(places: Array, values: PyTree) -> Saved:
            reached = jnp.sum(places.astype(n.dtype) < n, dtype=n.dtype)
            return Saved(t[places], jtu.tree_map(lambda x: x[places], values), reached)

        own, others = rows
        pairs = zip(self.merged, (own, *others), strict=True)
        return [part(places, values) for places, values in pairs]

    def _own(self, rows: PyTree) -> PyTree:
        """Of rows of all that is saved what the solve itself saves."""
        return rows if self.merged is None else rows[0]

    def _events(self, log: EventLog) -> Happenings:
        turn = self.times.direction
        return happenings(log, self.first, self.plan, self.inputs, self._unravel, turn)

    def _status(self, outcome: Outcome) -> Array:
        """The return code, which without a consistent start is of the start."""
        if self.start is None:
            return outcome.status
        failed = jnp.asarray(ReturnCode.initial_failed, outcome.status.dtype)
        return jnp.where(self.start.consistent, outcome.status, failed)

    def _with_start(self, rows: list[Array]) -> list[Array]:
        """Saves at t0 itself, as values of the tangent there: the same numbers, but with the
        derivative f with respect to the save time."""
        inputs, field = self.inputs, self.plan.field(self.inputs)
        # Where f is not finite the solve has failed, but its start is still known.
        slope = jtu.tree_map(
            lambda d: jnp.where(jnp.isfinite(d), d, 0), derivative(field, inputs.t0, inputs.u0)
        )

        def at(ts: Array) -> list[Array]:
            u = jtu.tree_map(
                lambda x, d: x + d * (ts - inputs.t0).astype(x.dtype), inputs.u0, slope
            )
            return self.plan.observe(inputs.save_args, u, ts)

        assert inputs.saves is not None
        first = inputs.saves <= inputs.t0
        start = jax.vmap(at)(jnp.where(first, inputs.saves, inputs.t0))
        return chosen(first, start, rows)

    def _rows(self, rows: list[Array]) -> PyTree:
        if self.saved_shapes is not None:
            shapes, structure = jtu.tree_flatten(self.saved_shapes)
            pairs = zip(rows, shapes, strict=True)
            return jtu.tree_unflatten(structure, [_restored(x, s.dtype) for x, s in pairs])
        state = rows[0] if len(rows) == 1 else tuple(rows)
        return jax.vmap(self.layout.unravel)(state)

    def _every_step(self, outcome: Outcome) -> tuple[Array, PyTree, Array]:
        tape = outcome.tape
        assert isinstance(tape, Tape)
        n = tape.used + 1
        filled = jnp.arange(tape.t.shape[0], dtype=n.dtype) < n
        t = jnp.where(filled, tape.t, jnp.nan)
        args = self.inputs.save_args
        rows = jax.vmap(lambda t, u: self.plan.observe(args, u, t))(tape.t, tape.u)
        rows = [_nan_unless(filled.reshape((-1,) + (1,) * (x.ndim - 1)), x) for x in rows]
        return turned(t, self.times.direction), self._own(self._rows(rows)), n

    def _final(self, outcome: Outcome, t_end: Array, u_end: PyTree, turn: Any) -> dict[str, Any]:
        dt, control = (None, None) if outcome.final is None else outcome.final
        memory = outcome.memory if jtu.tree_leaves(outcome.memory) else None
        turn = jnp.asarray(turn, self.inputs.t0.dtype)
        final = {"t": t_end, "u": u_end, "dt": dt, "control": control}
        return {**final, "memory": memory, "direction": turn}

    def _stats(self, outcome: Outcome) -> dict[str, Array]:
        alg, attempts = self.plan.alg, lax.add(outcome.naccept, outcome.nreject)
        work = outcome.work or {}
        initial = {} if self.start is None else self.start.work
        start = dict(alg.init_counts)
        if self.plan.controller is not None and self.settings.dt is None:
            start["nf"] = start.get("nf", 0) + INITIAL_STEP_NF
        if outcome.rows is not None and self.traced_saves:
            start["nf"] = start.get("nf", 0) + 1
        events, log = self.plan.events, outcome.log
        if events is not None and log is not None:
            work = {**work, "nevents": self._events(log).n}
            if events.continuous:
                # Where it goes on from an event is told by the derivative there.
                start["nf"] = start.get("nf", 0) + 1
                work["nf"] = work.get("nf", 0) + log.n * (1 + alg.init_counts.get("nf", 0))
                if events.samples and not alg.is_dense_linear:
                    extra = attempts * alg.dense_counts.get("nf", 0)
                    work["nf"] = work["nf"] + extra
        names = ("nf", "njac", "nfactor", "nsolve", "nnewton_fail", "nevents")
        made = ((attempts, alg.step_counts), (outcome.ndense, alg.dense_counts))

        def count(name: str) -> Array:
            """The sum of what is not known to be zero, since most of it is."""
            terms = [lax.mul(many, np.int32(each[name])) for many, each in made if each.get(name)]
            terms += [found[name] for found in (work, initial) if name in found]
            return sum(terms, jnp.asarray(start.get(name, 0), jnp.int32))

        counted = {name: count(name) for name in names}
        return {**counted, "naccept": outcome.naccept, "nreject": outcome.nreject}


def _restored(x: Array, dtype: Any) -> Array:
    """What was saved, in its own dtype; counts that were not reached are zero."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return x
    return jnp.where(jnp.isnan(x), 0, x).astype(dtype)


def _one_or_nan(reached: Array, x: Array) -> Array:
    nan = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 1
    return jnp.where(reached, 1, nan).astype(x.dtype)


def _nan_unless(kept: Array, x: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return jnp.where(kept, x, jnp.nan)
