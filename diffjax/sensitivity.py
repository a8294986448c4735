"""What is asked of a solve's derivative beyond the solve itself.

A cost along the whole trajectory, how far a backward solve goes astray, and the three functions by
which the package that this library follows was known.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .adjoints.base import Adjoint
from .adjoints.discrete import DiscreteAdjoint
from .adjoints.forward import ForwardMode
from .adjoints.gauss import GaussAdjoint
from .algorithms.base import Algorithm
from .arguments import value_of
from .problems import ODEProblem, Problem, remake
from .problems.base import tree_of_arrays
from .solution import ReturnCode, Solution
from .solve import solve


class _WithIntegral(eqx.Module):
    """A vector field with the integral of `g` as one component more."""

    f: Callable[[Any, Any, Any], Any]
    g: Callable[[Any, Any, Any], Any]

    def __call__(self, state: Any, p: Any, t: Any) -> Any:
        u, _ = state
        return self.f(u, p, t), jtu.tree_map(jnp.asarray, self.g(u, p, t))


class _AtZero(eqx.Module):
    """The initial state, with an integral that has not begun."""

    u0: Any
    g: Callable[[Any, Any, Any], Any]

    def __call__(self, p: Any, t0: Any) -> Any:
        u = jtu.tree_map(jnp.asarray, tree_of_arrays(value_of(self.u0, p, t0)))
        like = jax.eval_shape(lambda u: jtu.tree_map(jnp.asarray, self.g(u, p, t0)), u)
        return u, jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def integral_cost(
    g: Callable[[Any, Any, Any], PyTree],
    prob: Problem,
    alg: Algorithm | None = None,
    **options: Any,
) -> PyTree:
    """The integral of `g(u, p, t)` over the span of a solve.

    It is computed as one more component of the state, under the same error control, so every
    adjoint differentiates it.

    **Arguments:**

    - `g`: the integrand, `g(u, p, t)`; it returns a scalar, or any pytree of floating-point arrays.
    - `prob`, `alg`, `options`: as for `dj.solve`, `adjoint=` among them. `rtol` and `atol` are
        numbers here, or pairs: one for the state, one for the integral.

    **Returns:** the integral from the first to the second end of `tspan`, like what `g` returns.

    **Raises:** `TypeError` for a problem that is not an `ODEProblem`; `ValueError` for one with a
    mass matrix, and for options that say what to save.

    !!! example
        ```python
        def energy(p):
            return dj.integral_cost(lambda u, p, t: jnp.sum(u**2), prob, dj.Tsit5(), p=p)

        jax.grad(energy)(p)
        ```
    """
    if not isinstance(prob, ODEProblem):
        raise TypeError(f"integral_cost takes an ODEProblem, got {type(prob).__name__}.")
    for name in ("saveat", "save_fn", "save_idxs", "dense"):
        if options.get(name) is not None and options[name] is not False:
            raise ValueError(f"integral_cost saves nothing but the integral; leave out {name}=.")
    changes = {name: options.pop(name) for name in ("u0", "tspan", "p") if name in options}
    arguments = remake(prob, **changes).arguments()
    if arguments["mass_matrix"] is not None:
        raise ValueError("integral_cost takes a problem without a mass_matrix.")
    augmented = ODEProblem(
        _WithIntegral(arguments["f"], g),
        _AtZero(arguments["u0"], g),
        arguments["tspan"],
        arguments["p"],
    )
    return solve(augmented, alg, **options).u_end[1]


def reversal_error(prob: Problem, alg: Algorithm | None = None, **options: Any) -> Float[Array, ""]:
    """How far a solve backwards from the end misses the start, relative to the start.

    What `BacksolveAdjoint` relies on: where this is not small, its gradients are wrong. On Lorenz's
    equations to t = 100 it is over 10 (1000 %) at any tolerance.

    **Arguments:**

    - `prob`, `alg`, `options`: as for `dj.solve`.

    **Returns:** the norm of the difference over the norm of the initial state; infinite where the
    way back comes to no end.

    !!! example
        `dj.reversal_error(prob, dj.Tsit5(), rtol=1e-8, atol=1e-8)`
    """
    changes = {name: options.pop(name) for name in ("u0", "tspan", "p") if name in options}
    prob = remake(prob, **changes)
    arguments = prob.arguments()
    p = arguments["p"]
    t0, t1 = value_of(arguments["tspan"], p)
    u0 = value_of(arguments["u0"], p, t0)
    there = solve(prob, alg, **options)
    options["throw"] = False
    back = solve(remake(prob, u0=there.u_end, tspan=(t1, t0)), alg, **options)

    def size(tree: PyTree) -> Array:
        return jnp.sqrt(sum(jnp.sum(jnp.abs(x) ** 2) for x in jtu.tree_leaves(tree)))

    error = size(jtu.tree_map(jnp.subtract, back.u_end, u0)) / size(u0)
    return jnp.where(back._retcode <= ReturnCode.terminated, error, jnp.inf)


def diffeq_rd(p: PyTree, prob: Problem, alg: Algorithm | None = None, **options: Any) -> Solution:
    """Solve with parameters `p`, to be differentiated in reverse through the solver's steps.

    **Arguments:**

    - `p`: the parameters.
    - `prob`, `alg`, `options`: as for `dj.solve`.

    **Returns:** the `Solution`.

    !!! example
        `jax.grad(lambda p: jnp.sum(dj.diffeq_rd(p, prob, dj.Tsit5(), saveat=0.1).u))(p)`
    """
    return solve(prob, alg, p=p, adjoint=DiscreteAdjoint(), **options)


def diffeq_fd(
    p: PyTree,
    reduction: Callable[[Solution], Array],
    n: int,
    prob: Problem,
    alg: Algorithm | None = None,
    **options: Any,
) -> Array:
    """Solve with parameters `p` and reduce the solution to `n` numbers, differentiated forwards.

    **Arguments:**

    - `p`: the parameters.
    - `reduction`: a function of the `Solution`, giving an array of `n` numbers.
    - `n`: how many.
    - `prob`, `alg`, `options`: as for `dj.solve`.

    **Returns:** `reduction(sol)`.

    **Raises:** `ValueError` if the reduction gives another number of numbers.

    !!! example
        `dj.diffeq_fd(p, lambda sol: jnp.sum(sol.u), 1, prob, dj.Tsit5(), saveat=0.1)`
    """
    reduced = jnp.asarray(reduction(solve(prob, alg, p=p, adjoint=ForwardMode(), **options)))
    if reduced.size != n:
        raise ValueError(f"reduction must give n={n} numbers, got shape {reduced.shape}.")
    return reduced


def diffeq_adjoint(
    p: PyTree,
    prob: Problem,
    alg: Algorithm | None = None,
    *,
    adjoint: Adjoint | None = None,
    **options: Any,
) -> Solution:
    """Solve with parameters `p`, differentiated by a continuous adjoint.

    **Arguments:**

    - `p`: the parameters.
    - `prob`, `alg`, `options`: as for `dj.solve`.
    - `adjoint`: which one, by default `dj.GaussAdjoint()`.

    **Returns:** the `Solution`.

    !!! example
        `jax.grad(lambda p: jnp.sum(dj.diffeq_adjoint(p, prob, dj.Tsit5(), saveat=0.1).u))(p)`
    """
    return solve(prob, alg, p=p, adjoint=GaussAdjoint() if adjoint is None else adjoint, **options)
