"""Any explicit one-step method made algebraically reversible.

The state y is carried together with a copy z of it. With Phi_h(t, u) one step of the method and
0 < lambda <= 1 the coupling, a step is

    y' = Phi_h(t, z) + lambda (y - z)
    z' = z + y' - Phi_{-h}(t + h, y')

which gives back what it started from without solving anything:

    z = z' - y' + Phi_{-h}(t + h, y')
    y = z + (y' - Phi_h(t, z)) / lambda

(McCallum & Foster, "Efficient, Accurate and Stable Gradients for Neural ODEs", arXiv 2410.11648,
Algorithm 1, there in terms of the increments Psi_h = Phi_h - id.) It is of the order of the method.

Where the solution contracts y - z grows, and going back enlarges rounding. So the scheme may start
anew, with z = y, every so many steps, whose pairs have to be kept.

It is not offered as a method by itself: z is true memory, so all that takes a step again from
(t, u), such as the default adjoint, would silently take a different one.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .base import Algorithm, Field, Memory, Norm, State, StepResult


class Reversible(Algorithm):
    """The reversible coupling of a method with itself; its memory is z, and how many steps ago
    it was y if it starts anew at times.

    **Arguments:**

    - `alg`: a method with `is_explicit_one_step`.
    - `coupling`: lambda.
    - `every`: start anew every so many accepted steps; None for never.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"ODEProblem"})

    alg: Algorithm
    coupling: float = eqx.field(static=True)
    every: int | None = eqx.field(static=True, default=None)

    @property
    def name(self) -> str:
        return f"Reversible({self.alg.name})"

    @property
    def looks_back(self) -> bool:
        return True

    @property
    def order(self) -> float:
        return self.alg.order

    @property
    def error_order(self) -> float | None:
        return self.alg.error_order

    @property
    def dense_order(self) -> int:
        return self.alg.dense_order

    @property
    def step_counts(self) -> dict[str, int]:
        """Two steps of the method, each with a first stage of its own."""
        start, step = self.alg.init_counts, self.alg.step_counts
        return {name: 2 * (start.get(name, 0) + step.get(name, 0)) for name in start | step}

    @property
    def dense_counts(self) -> dict[str, int]:
        return self.alg.dense_counts

    def init(self, field: Field, t: Array, u: State) -> Memory:
        return Memory(history=u, choice=None if self.every is None else jnp.zeros((), jnp.int32))

    def half(
        self, field: Field, t: Array, dt: Array, u: State, norm: Norm | None = None
    ) -> StepResult:
        """Phi_dt(t, u), one step of the method; `dt` may be negative."""
        return self.alg.step(field, t, dt, u, self.alg.init(field, t, u), norm)

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        y, z, age = u, memory.history, memory.choice
        if age is not None:
            z = jtu.tree_map(lambda y, z, age=age: jnp.where(age == 0, y, z), y, z)
            age = jnp.where(age + 1 == self.every, 0, age + 1)
        forth = self.half(field, t, dt, z, norm)
        y_end = self._coupled(forth.u, y, z)
        back = self.half(field, t + dt, -dt, y_end)
        return StepResult(
            u=y_end,
            error=self._error(forth.error, back.u, y, z, y_end, norm),
            ok=forth.ok,
            memory=Memory(jtu.tree_map(lambda z, y, b: z + (y - b), z, y_end, back.u), age),
            memory_if_rejected=memory,
            stages=(z, forth.stages),
        )

    def _error(
        self, error: Array | None, back: State, y: State, z: State, y_end: State, norm: Norm | None
    ) -> Float[Array, ""] | None:
        """The larger of the method's estimate and of what the step adds to lambda (y - z).

        On u' = J u the difference y - z is multiplied by lambda exp(-h J): it grows where the
        solution contracts, unless h |J| < 1 - lambda, and no estimate of the method sees it. With
        this bound it stays below 1 / (1 - lambda) tolerances.
        """
        if error is None or norm is None:
            return None
        added = jtu.tree_map(lambda b, y, z: (b - z) - self.coupling * (y - z), back, y, z)
        return jnp.maximum(error, norm(added, y, y_end))

    def _coupled(self, forth: State, y: State, z: State) -> State:
        return jtu.tree_map(lambda f, y, z: f + self.coupling * (y - z), forth, y, z)

    def z_before(self, y_end: State, z_end: State, back: State) -> State:
        """z at the start of a step, given both states at its end and Phi_{-h}(t + h, y')."""
        return jtu.tree_map(lambda y, z, b: z - (y - b), y_end, z_end, back)

    def y_before(self, y_end: State, z: State, forth: State) -> State:
        """y at the start of a step, given z there and Phi_h(t, z)."""
        return jtu.tree_map(lambda y, z, f: z + (y - f) / self.coupling, y_end, z, forth)

    def dense(self, field: Field, t: Array, dt: Array, u: State, stages: PyTree) -> PyTree:
        z, inner = stages
        return self.extension(u, z, self.alg.dense(field, t, dt, z, inner))

    def extension(self, y: State, z: State, inner: PyTree) -> PyTree:
        """Coefficients of the extension, from those of the method's own over the step from z.

        The difference y - z, of which lambda is left at the end, is added to the latter in
        proportion: exact at both ends, and of the same order since y - z is of a local error's
        size.
        """
        return (y, jtu.tree_map(lambda y, z: y - z, y, z), *inner[1:])

    def interpolate(self, coefficients: PyTree, theta: Array) -> State:
        y, gap, *others = coefficients
        value = self.alg.interpolate((y, *others), theta)
        lost = theta * (1.0 - self.coupling)
        return jtu.tree_map(lambda v, g: v - lost.astype(g.dtype) * g, value, gap)

    def stiffness(self, dt: Array, u: State, stages: PyTree) -> Float[Array, ""] | None:
        z, inner = stages
        return self.alg.stiffness(dt, z, inner)
