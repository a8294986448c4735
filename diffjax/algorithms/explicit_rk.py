"""Explicit Runge-Kutta methods: one engine, the methods are tableaus.

Stages are unrolled and zeros of the tableau skipped, since XLA on a CPU pays for each small
kernel; `unroll=False` keeps one call site of the vector field, for fields so large that compile
time matters more.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from .base import Field, Memory, Norm, State, StepResult, TableauMethod
from .stages import advance, combine, evaluate_extension, scaled
from .tableaus.base import ButcherTableau

_SMALL = 1e-30


@jax.custom_jvp
def _largest(x: Array) -> Array:
    return jnp.max(jnp.abs(x))


@_largest.defjvp
def _largest_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The derivative of one entry. JAX's own looks for those that equal the maximum, of which there
    is none where XLA computes them once more and rounds them otherwise."""
    (x,), (dx,) = primals, tangents
    at = jnp.argmax(jnp.abs(x))
    slope = jax.jvp(jnp.abs, (x.reshape(-1)[at],), (dx.reshape(-1)[at],))[1]
    return _largest(x), slope


def _largest_difference(x: State, y: State) -> Array:
    each = jtu.tree_leaves(jtu.tree_map(lambda x, y: _largest(x - y), x, y))
    widest = np.result_type(*(x.dtype for x in each))
    return _largest(jnp.stack([x.astype(widest) for x in each]))


class ExplicitRungeKutta(TableauMethod):
    """An explicit Runge-Kutta method given by its tableau.

    **Arguments:**

    - `tableau`: the coefficients.
    - `unroll`: write every stage out (fast), or loop over them with one call site of the vector
        field (short compilation for a very large field).
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem"})
    is_explicit_one_step: ClassVar[bool] = True

    tableau: ButcherTableau = eqx.field(static=True)
    unroll: bool = eqx.field(static=True, default=True)

    @property
    def is_fsal(self) -> bool:
        return self.tableau.fsal

    @property
    def stability(self) -> float | None:
        tableau = self.tableau
        known = tableau.stages >= 3 and tableau.c[-2] == tableau.c[-1]
        return tableau.stability if known else None

    @property
    def init_counts(self) -> dict[str, int]:
        return {"nf": 1} if self.tableau.fsal else {}

    @property
    def step_counts(self) -> dict[str, int]:
        return {"nf": self.tableau.stages - (1 if self.tableau.fsal else 0)}

    def init(self, field: Field, t: Array, u: State) -> Memory:
        return Memory(cache=field.f(t, u) if self.tableau.fsal else None)

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        tableau = self.tableau
        first = field.f(t, u) if memory.cache is None else memory.cache
        stages = self._stages(field, t, dt, u, [first], tableau.a, tableau.c)
        u_end = field.once(advance(u, dt, tableau.b, stages))
        error = None if norm is None else self._error(dt, u, u_end, stages, norm)
        return StepResult(
            u=u_end,
            error=error,
            ok=True,
            memory=Memory(cache=stages[-1] if tableau.fsal else None),
            memory_if_rejected=memory,
            stages=tuple(stages),
        )

    def _stages(
        self,
        field: Field,
        t: Array,
        dt: Array,
        u: State,
        stages: list[State],
        a: tuple[tuple[float, ...], ...],
        c: tuple[float, ...],
    ) -> list[State]:
        """Add the stages of rows `len(stages)` onwards to those that are there."""
        if self.unroll:
            for row, node in zip(a[len(stages) :], c[len(stages) :], strict=True):
                at = lax.add(t, lax.mul(dt.dtype.type(node), dt))
                state = field.once(advance(u, dt, row, stages))
                stages = [*stages, field.once(field.f(at, state))]
            return stages
        return self._looped_stages(field, t, dt, u, stages, a, c)

    def _looped_stages(
        self,
        field: Field,
        t: Array,
        dt: Array,
        u: State,
        stages: list[State],
        a: tuple[tuple[float, ...], ...],
        c: tuple[float, ...],
    ) -> list[State]:
        total, done = len(c), len(stages)
        square = jnp.asarray([list(row) + [0.0] * (total - len(row)) for row in a], dt.dtype)
        nodes = jnp.asarray(c, dt.dtype)

        def buffer(*known: Array) -> Array:
            filled = jnp.stack(known)
            rest = jnp.zeros((total - done, *filled.shape[1:]), filled.dtype)
            return jnp.concatenate([filled, rest])

        def one_stage(i: Array, ks: State) -> State:
            def stage_state(x: Array, k: Array) -> Array:
                row = square[i].astype(k.dtype)
                return x + scaled(jnp.tensordot(row, k, axes=1), dt)

            k = field.f(t + nodes[i] * dt, jtu.tree_map(stage_state, u, ks))
            return jtu.tree_map(lambda buf, new: buf.at[i].set(new), ks, k)

        ks = jax.lax.fori_loop(done, total, one_stage, jtu.tree_map(buffer, *stages))
        return [jtu.tree_map(lambda buf, i=i: buf[i], ks) for i in range(total)]

    def _error(
        self, dt: Array, u: State, u_end: State, stages: list[State], norm: Norm
    ) -> Float[Array, ""] | None:
        tableau = self.tableau
        if tableau.b_error is None:
            return None

        def size(weights: tuple[float, ...]) -> Array:
            estimate = jtu.tree_map(lambda k: scaled(k, dt), combine(weights, stages))
            return norm(estimate, u, u_end)

        error = size(tableau.b_error)
        if tableau.b_error_low is None:
            return error
        # DOP853 scales its order-5 estimate by an order-3 one (HNW I, section II.10, p. 254).
        low = size(tableau.b_error_low)
        return error * error / jnp.sqrt(error * error + 0.01 * low * low + _SMALL)

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        """The coefficients of a polynomial in theta, a tuple of states.

        The first is the start of the step, number m + 1 belongs to `theta * T_m(2*theta - 1)`.
        """
        tableau, extension = self.tableau, self.tableau.dense
        ks = list(stages)
        if extension.c_extra:
            rows = tableau.a + extension.a_extra
            ks = self._stages(field, t, dt, u, ks, rows, tableau.c + extension.c_extra)
        # Every column has a non-zero weight somewhere, so none of the sums is None.
        sums = [combine(column, ks) for column in zip(*extension.weights, strict=True)]
        return (u, *(jtu.tree_map(lambda k: scaled(k, dt), total) for total in sums))

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        return evaluate_extension(coefficients, theta)

    def stiffness(self, dt: Array, u: State, stages: PyTree) -> Float[Array, ""] | None:
        """The quotient of two stages at the same time (HW II, section IV.2, page 22)."""
        tableau, stability = self.tableau, self.stability
        if stability is None:
            return None
        before, last = (advance(u, dt, row, stages) for row in tableau.a[-2:])
        slope = _largest_difference(stages[-1], stages[-2])
        distance = _largest_difference(last, before)
        # Over their size, so that the derivative of the quotient does not square a tiny number;
        # where nothing moves, nothing is stiff.
        size = jax.lax.stop_gradient(jnp.where(distance > 0, distance, 1))
        rho = (slope / size) / jnp.where(distance > 0, distance / size, 1)
        return scaled(rho, jnp.abs(dt)) / stability
