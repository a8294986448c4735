"""What `analysis.py` gives names to: statistics over the first axis of arrays with NaN in them."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from ..solution import concrete
from .solution import EnsembleSolution

# How far a time may lie from a saved one, in units of rounding.
_ULPS = 8.0


def component_covariance(u: PyTree) -> PyTree:
    """Covariances (T, d, d) between the d components of each leaf, for leaves (N, T, ...)."""

    def one(x: Array) -> Array:
        flat = x.reshape(*x.shape[:2], -1)
        return _covariance(flat, flat, "ntk,ntl->tkl")[0]

    return jtu.tree_map(one, u)


def steps(sim: EnsembleSolution, i: Any) -> PyTree:
    index = jnp.asarray(i) if isinstance(i, list) else i
    return jtu.tree_map(lambda x: x[:, index], sim.u)


def points(sim: EnsembleSolution, t: Any) -> PyTree:
    """The states of all trajectories at time(s) t, the trajectories first."""
    if sim._rest is not None and sim._rest._interpolation is not None:
        return jax.vmap(lambda sol: sol(jnp.asarray(t)))(sim.solutions)
    saved = None if sim.t is None or sim.t.ndim != 1 else concrete(sim.t)
    if saved is None:
        raise ValueError(
            "statistics at a time need dense=True, or saveat as a number or an array and a "
            "solution that is no tracer; timestep_* and timeseries_steps_* take indices."
        )
    wanted = np.asarray(t, saved.dtype)
    index = np.argmin(np.abs(wanted[..., None] - saved), axis=-1)
    slack = _ULPS * np.finfo(saved.dtype).eps * np.max(np.abs(saved))
    missed = np.abs(saved[index] - wanted) > slack
    if missed.any():
        raise ValueError(
            f"t={wanted[missed].flat[0]} is not among the saved times; solve with dense=True to "
            "have every time, or with saveat= that holds it."
        )
    return steps(sim, jnp.asarray(index))


def mean(u: PyTree) -> PyTree:
    return jtu.tree_map(lambda x: jnp.nanmean(x, axis=0), u)


def quantile(u: PyTree, q: Any) -> PyTree:
    return jtu.tree_map(lambda x: jnp.nanquantile(x, q, axis=0), u)


def meanvar(u: PyTree) -> tuple[PyTree, PyTree]:
    return mean(u), jtu.tree_map(lambda x: jnp.nanvar(x, axis=0, ddof=1), u)


def meancov(u: PyTree, v: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    return mean(u), mean(v), jtu.tree_map(lambda x, y: _between(x, y)[0], u, v)


def meancor(u: PyTree, v: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    def one(x: Array, y: Array) -> Array:
        cov, x_var, y_var = _between(x, y)
        return cov / jnp.sqrt(x_var * y_var)

    return mean(u), mean(v), jtu.tree_map(one, u, v)


def of_two(of: Any, u: PyTree, v: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    """Of two times alone: without the time axes."""
    first, second, between = of(u, v)
    one, both = jtu.tree_map(lambda x: x[0], (first, second)), lambda x: x[0, 0]
    return *one, jtu.tree_map(both, between)


def _between(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """`_covariance` of (N, T1, ...) and (N, T2, ...) by component: (T1, T2, ...) each."""
    first, second = (z.reshape(*z.shape[:2], -1) for z in (x, y))
    shape = (x.shape[1], y.shape[1], *x.shape[2:])
    cov, first_var, second_var = _covariance(first, second, "nik,njk->ijk")
    return cov.reshape(shape), first_var.reshape(shape), second_var.reshape(shape)


def _covariance(x: Array, y: Array, pairs: str) -> tuple[Array, Array, Array]:
    """Covariances of the `pairs` of an einsum, and the variances of both partners.

    All three are of the trajectories in which both are known. Both are centred beforehand, so
    that nothing large cancels.
    """

    def centred(z: Array) -> tuple[Array, Array]:
        known = ~jnp.isnan(z)
        return jnp.where(known, z - jnp.nanmean(z, axis=0)[None], 0), known.astype(z.dtype)

    (x, kx), (y, ky) = centred(x), centred(y)

    def total(a: Array, b: Array) -> Array:
        return jnp.einsum(pairs, a, b)

    n, sx, sy = total(kx, ky), total(x, ky), total(kx, y)
    free = jnp.where(n > 1, n - 1, jnp.nan)
    cov = (total(x, y) - sx * sy / n) / free
    return cov, (total(x * x, ky) - sx**2 / n) / free, (total(kx, y * y) - sy**2 / n) / free
