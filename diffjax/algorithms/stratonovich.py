"""A stochastic equation in Stratonovich's sense, which obeys the rules of ordinary calculus.

So its adjoint equation is that of an ordinary one, with a term for every noise (Li, Wong, Chen,
Duvenaud, Scalable gradients for stochastic differential equations, AISTATS 2020), and it is the
limit of the ordinary equations u' = f + g dW/dt on paths ever closer to W (Wong and Zakai, On the
convergence of ordinary integrals to stochastic integrals, Ann. Math. Statist. 36, 1965).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from ..linear.detection import detected
from .base import Algorithm, Field, Memory, Norm, State, StepResult
from .field import Diffusion
from .stochastic import ANY_NOISE, STRATONOVICH, StochasticMethod


def stratonovich_drift(field: Field, t: Array, u: State) -> State:
    """The drift of the same equation in Stratonovich's sense.

    That of Ito is larger by half the sum over j and k of (D g_j) g_k c_jk, where c dt is the
    covariance of the increments (Kloeden and Platen, Numerical Solution of Stochastic Differential
    Equations, section 4.9).
    """
    f, diffusion = field.f(t, u), field.diffusion
    assert diffusion is not None
    if not diffusion.is_ito or diffusion.kind == "additive":
        return f
    return jtu.tree_map(lambda x, c: x - 0.5 * c.astype(x.dtype), f, _correction(diffusion, t, u))


def _correction(diffusion: Diffusion, t: Array, u: State) -> State:
    covariance = diffusion.noise.covariance

    def along(direction: State) -> State:
        return jax.jvp(lambda u: diffusion.g(t, u), (u,), (direction,))[1]

    gu = diffusion.g(t, u)
    if covariance is None and (diffusion.kind == "scalar" or _by_element(diffusion, t, u)):
        return along(gu)
    dim = diffusion.noise.dim
    rows = jnp.eye(dim) if covariance is None else covariance

    def column(one: Array, row: Array) -> State:
        """(D g_j) times the sum of g_k c_jk, for j where `one` is not zero."""
        moved = along(diffusion.times(gu, diffusion.spread(row, u)))
        return diffusion.times(moved, diffusion.spread(one, u))

    columns = jax.vmap(column)(jnp.eye(dim, dtype=rows.dtype), rows)
    return jtu.tree_map(lambda x: jnp.sum(x, axis=0), columns)


def _by_element(diffusion: Diffusion, t: Array, u: State) -> bool:
    """Whether of diagonal noise every element of g is known to depend on its own of u alone."""
    if diffusion.is_matrix:
        return False
    pattern = detected(lambda u, p, t: diffusion.g(t, u), u, None, t).tocoo()
    return bool(np.all(pattern.row == pattern.col))


class AlongPath(StochasticMethod):
    """An explicit Runge-Kutta method for u' = v(u, t, dW/dt), with the path taken for a line in
    every step: Stratonovich, strong order 1 if the noises commute, else 1/2.

    The field that it is given has dW/dt for its last argument.

    - `method`: what takes the steps.
    """

    noises: ClassVar[frozenset[str]] = ANY_NOISE
    interpretations: ClassVar[frozenset[str]] = STRATONOVICH

    method: Algorithm

    @property
    def order(self) -> float:
        return 1.0

    @property
    def error_order(self) -> float | None:
        # Third powers of the noise are the first that the estimate of an embedded pair may see.
        return None if self.method.error_order is None else 0.5

    def step(
        self, field: Field, t: Array, dt: Array, u: State, memory: Memory, norm: Norm | None
    ) -> StepResult:
        assert field.diffusion is not None
        noise, there = field.diffusion.over(t, dt, memory.cache)
        args = (*field.args[:-1], noise.dw / dt)
        field = dataclasses.replace(field, args=args, diffusion=None)
        result = self.method.step(field, t, dt, u, self.method.init(field, t, u), norm)
        end = (result.u,)
        return StepResult(result.u, result.error, True, Memory(cache=there), memory, stages=end)
