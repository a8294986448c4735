"""Derivatives of jump processes, by how likely a path is.

A path of a pure jump process has no derivative that would tell how its expectation changes: its
state is constant between jumps, and that jumps happen more often does not show in it. Its density
does have one. With L the likelihood of a path,

    d/dp E[F] = E[F d/dp log L + dF/dp],

the score-function (likelihood-ratio) estimator, which is unbiased whatever F is; its variance grows
with the number of jumps. It takes the states of the path as given, so an affect must not depend on
the parameters that are differentiated (rates may depend on them in any way).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..noise.random import key_words
from ..problems.base import remake
from ..problems.jump import JumpProblem, is_pure_jump
from ..problems.parts import Parts
from ..solution import ReturnCode, Solution, SolveError, concrete
from .channels import trace_channels
from .checks import UNUSED
from .solve import solve_jumps

# Nodes of the quadrature over the time between two jumps, of rates that change in it.
_NODES = 10
# The arguments of a solve that keeps every jump.
_NONE = ("alg", "u0", "tspan", "p", "save_idxs", "save_fn", "resume", "dt", "steps")
_PATH: dict[str, Any] = {**UNUSED, **dict.fromkeys(_NONE), "saveat": "steps"}


def log_likelihood(prob: JumpProblem, sol: Solution, p: PyTree = None) -> Float[Array, ""]:
    """The logarithm of the likelihood of a path: the sum of log rate_j(u, p, t) over its jumps, u
    being the state just before and j the jump, less the integral of the sum of all rates.

    It is differentiable in `p`; the path is data. Rates that change between jumps are integrated by
    Gauss-Legendre quadrature with 10 nodes between jumps, so they must be smooth there.

    **Arguments:**

    - `prob`: the `dj.JumpProblem` of a `dj.DiscreteProblem`.
    - `sol`: a path, solved with `dj.SSAStepper()` and `saveat="steps"`, without `save_fn`.
    - `p`: the parameters, by default the problem's.

    **Returns:** a scalar.

    **Raises:** `TypeError` for another problem; `ValueError` for a solution without its jumps.

    Source: Brémaud, Point Processes and Queues (1981), chapter VI, theorem T2.

    !!! example
        ```python
        path = dj.solve(jump_prob, saveat="steps", key=key)
        jax.grad(lambda p: dj.jumps.log_likelihood(jump_prob, path, p))(jump_prob.p)
        ```
    """
    if not is_pure_jump(prob):
        raise TypeError(
            "prob must be a JumpProblem of a DiscreteProblem, got "
            f"{type(getattr(prob, 'prob', prob)).__name__}."
        )
    if sol.events is None:
        raise ValueError('sol must hold every jump: solve with dj.SSAStepper() and saveat="steps".')
    parts = Parts(prob.p if p is None else p)
    t, u, which = sol.t, sol.u, sol.events.which
    first = jtu.tree_map(lambda x: x[0], u)
    channels, args = trace_channels(prob.jumps, first, parts, t[0], leaps=False)
    if jnp.shape(t)[0] != which.shape[0] + 2:
        raise ValueError("sol must be one path, with all its states; for many use jax.vmap.")

    def jumped(t: Array, state: PyTree, which: Array) -> Array:
        rates = channels.rates(args, t, jtu.tree_leaves(state))
        rate = jnp.sum(jnp.where(jnp.arange(channels.count, dtype=which.dtype) == which, rates, 0))
        return jnp.log(jnp.where(which >= 0, rate, 1))

    def waited(t: Array, end: Array, state: PyTree) -> Array:
        leaves = jtu.tree_leaves(state)
        if channels.bound_jaxpr is None:
            return (end - t) * jnp.sum(channels.rates(args, t, leaves))
        x, w = np.polynomial.legendre.leggauss(_NODES)
        times = t + (end - t) * jnp.asarray((x + 1) / 2, t.dtype)
        rates = jax.vmap(lambda s: jnp.sum(channels.rates(args, s, leaves)))(times)
        return (end - t) * jnp.sum(jnp.asarray(w / 2, t.dtype) * rates)

    # Rows that are not filled wait for no time, in the last state that is known.
    places = jnp.arange(t.shape[0], dtype=jnp.int32)
    last = jnp.maximum(sol.n - 1, 0)
    rows = jnp.minimum(places, last)
    times = t[rows]
    states = jtu.tree_map(lambda x: x[rows], u)
    before = jtu.tree_map(lambda x: x[:-1], states)
    hits = jax.vmap(jumped)(times[1:-1], jtu.tree_map(lambda x: x[:-1], before), which)
    waits = jax.vmap(waited)(times[:-1], times[1:], before)
    return jnp.sum(hits) - jnp.sum(waits)


class ScoreGradient(NamedTuple):
    """An estimate of d/dp E[F].

    - `value`: the mean of F; `gradient`: the estimate, a pytree like `p`; `error`: its standard
        error, likewise (None where `p` holds no floating point numbers).
    """

    value: Float[Array, ""]
    gradient: PyTree
    error: PyTree


def score_gradient(
    f: Callable[[Solution, Any], Any],
    prob: JumpProblem,
    *,
    trajectories: int,
    key: Array,
    p: PyTree = None,
    max_steps: int = 4096,
    batch_size: int = 1000,
) -> ScoreGradient:
    """An unbiased estimate of d/dp E[f(path, p)] for a pure jump process, by the score function.

    It is unbiased for every `f`, continuous or not, and any rates, which may depend on `p`, the
    state and (thinned) time; also where `f` depends on `p` itself, whose derivative is added. It is
    **not** where `p` enters affects or `u0`: what it does there is left out. From each path's f the
    mean of the others is subtracted, a baseline that leaves no bias and takes away most of the
    variance.

    **Arguments:**

    - `f`: `f(sol, p)`, a scalar; `sol` is the path with all its jumps (`saveat="steps"`), of which
        `sol.u_end` is the last state.
    - `prob`: the `dj.JumpProblem` of a `dj.DiscreteProblem`, for `dj.SSAStepper`.
    - `trajectories`, `key`: how many paths (at least 2), and from where.
    - `p`: the parameters, by default the problem's.
    - `max_steps`: the most jumps of a path. `batch_size`: how many paths at a time.

    **Returns:** a `ScoreGradient`: the mean, the gradient and its standard error.

    **Raises:** `ValueError` for fewer than two paths; `SolveError` if some path does not end.

    Sources: Glynn, Likelihood ratio gradient estimation for stochastic systems, Commun. ACM 33
    (1990); Kleijnen and Rubinstein, Eur. J. Oper. Res. 88 (1996); the baseline of Kool, van Hoof
    and Welling, Buy 4 REINFORCE samples, get a baseline for free (2019).

    !!! example
        ```python
        estimate = dj.jumps.score_gradient(
            lambda sol, p: sol.u_end[0] * 1.0, jump_prob, trajectories=10_000, key=key
        )
        estimate.gradient, estimate.error
        ```
    """
    if not isinstance(trajectories, int) or trajectories < 2:
        raise ValueError(f"trajectories must be an integer of at least 2, got {trajectories!r}.")
    p = prob.p if p is None else p
    smooth, rest = eqx.partition(Parts(p).value, eqx.is_inexact_array_like)
    smooth = jtu.tree_map(jnp.asarray, smooth)
    fixed = eqx.combine(jax.lax.stop_gradient(smooth), rest)
    given = {**_PATH, "max_steps": max_steps}

    def one(key: Array) -> tuple[Array, PyTree, PyTree, Array]:
        options = {"key": key, "progress": False, "throw": False}
        sol = solve_jumps(remake(prob, p=fixed), given, **options)

        def value(smooth: PyTree) -> Array:
            return jnp.asarray(f(sol, eqx.combine(smooth, rest)))

        def density(smooth: PyTree) -> Array:
            return log_likelihood(prob, sol, eqx.combine(smooth, rest))

        found, own = jax.value_and_grad(value)(smooth)
        failed = sol._retcode > ReturnCode.terminated
        return found, own, jax.grad(density)(smooth), failed

    words = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.wrap_key_data(key_words(key), impl="threefry2x32"), jnp.arange(trajectories)
    )
    # As one program: paths beyond whole batches would run operation by operation.
    paths = jax.jit(lambda words: jax.lax.map(one, words, batch_size=batch_size))
    values, own, scores, failed = paths(words)
    _raise_if_any(failed)
    values = jnp.where(jnp.any(failed), jnp.nan, values)
    # With N paths F_i less the mean of the others is N/(N - 1) times F_i less the mean of all.
    centred = (values - jnp.mean(values)) * (trajectories / (trajectories - 1))

    def each(own: Array, score: Array) -> Array:
        return own + centred.reshape(-1, *(1,) * (score.ndim - 1)).astype(score.dtype) * score

    terms = jtu.tree_map(each, own, scores)
    return ScoreGradient(
        jnp.mean(values),
        jtu.tree_map(lambda x: jnp.mean(x, axis=0), terms),
        jtu.tree_map(lambda x: jnp.std(x, axis=0) / np.sqrt(trajectories), terms),
    )


def _raise_if_any(failed: Array) -> None:
    known = concrete(failed)
    if known is not None and known.any():
        raise SolveError(
            f"{int(known.sum())} of {known.size} paths did not reach their end, and without them "
            "an expectation would be another: raise max_steps, or check the rates."
        )
