"""Matrices that a user gives for a state, on the real coordinates of the laid-out state."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree
from scipy import sparse

from ..linear.detection import detected
from ..linear.sparsity import Sparsity, full_band
from .layout import Layout
from .trace import hoist

# Of two Jacobians a sum in which no entry is likely to cancel.
_PART = 0.618


def lay_out_matrix(matrix: Array, layout: Layout) -> Float[Array, "m m"]:
    """A matrix, real or complex, that acts on the elements of a user's state leaf by leaf."""
    elements, imaginary = layout.coordinates()
    dtype = layout.time_dtype
    if not imaginary.any():
        matrix = matrix.astype(dtype)
        if len(layout.shapes) == 1:
            return matrix
        return matrix[elements][:, elements]
    # (a + ib)(x + iy) = (ax - by) + i(bx + ay)
    full = matrix[elements][:, elements]
    to, of = imaginary[:, None], imaginary[None, :]
    crossed = jnp.where(to, 1, -1) * jnp.imag(full)
    return jnp.where(to == of, jnp.real(full), crossed).astype(dtype)


def field_of_state(problem: Mapping[str, Any]) -> Callable[[Any, Any, Any], Any]:
    """A function of the state whose Jacobian has an entry wherever one of the problem has.

    Of F(u', u, p, t) it is a sum of the two, by u' and by u.
    """
    if "F" not in problem:
        return problem["f"]
    return lambda u, p, t: problem["F"](jtu.tree_map(lambda x: _PART * x, u), u, p, t)


def lay_out_sparsity(
    problem: Mapping[str, Any], layout: Layout, u: PyTree, p: Any, t: Array
) -> Sparsity | None:
    """The sparsity of a problem's Jacobian; None if it says nothing of one.

    **Raises:** `ValueError` if it does not fit the state.
    """
    given = problem.get("jac_sparsity")
    if given is None:
        return None
    elements, _ = layout.coordinates()
    n, dense_mass = int(elements.max()) + 1, False
    if isinstance(given, tuple):
        if np.array_equal(elements, np.arange(n)):
            return Sparsity.of_band(n, *given)
        pattern = full_band(n, *given)
    elif isinstance(given, str):
        pattern = detected(field_of_state(problem), u, p, t)
        mass = problem.get("mass_matrix")
        dense_mass = mass is not None and np.ndim(mass) == 2
    else:
        pattern = given.matrix
        if pattern.shape != (n, n):
            raise ValueError(
                f"jac_sparsity must have shape ({n}, {n}) to fit the {n} elements of u0, entry "
                f"[i, j] for the derivative of f[i] with respect to u[j]; got {pattern.shape}. "
                'Try jac_sparsity="detect".'
            )
    return Sparsity.of_pattern(sparse.csr_array(pattern[elements][:, elements]), dense_mass)


def lay_out_mass(mass: Any, layout: Layout, sparsity: Sparsity | None = None) -> Array:
    """A mass matrix: its diagonal where that was given, else all of it.

    Where it has entries outside of a band that the solve is made for it is made not finite, lest
    they be lost.

    **Raises:** `ValueError` or `TypeError` if it does not fit the state.
    """
    mass = jnp.asarray(mass)
    elements, imaginary = layout.coordinates()
    n = int(elements.max()) + 1
    if mass.shape not in ((n,), (n, n)):
        raise ValueError(
            f"mass_matrix must have shape ({n}, {n}), or ({n},) for a diagonal one, to fit the "
            f"{n} elements of u0; got {mass.shape}."
        )
    if jnp.iscomplexobj(mass) and not imaginary.any():
        raise TypeError(
            f"mass_matrix must be real for a real state, got dtype {mass.dtype}; "
            "try .real, or a complex u0."
        )
    if mass.ndim == 1 and jnp.iscomplexobj(mass):
        mass = jnp.diag(mass)
    if mass.ndim == 2:
        laid_out = lay_out_matrix(mass, layout)
        if sparsity is None or sparsity.band is None:
            return laid_out
        return jnp.where((laid_out != 0) & ~sparsity.band.mask(), jnp.nan, laid_out)
    return mass[elements].astype(layout.time_dtype)


def trace_jacobian(
    jac: Callable[[Any, Any, Any], Any],
    layout: Layout,
    u: PyTree,
    p: Any,
    t: Array,
    direction: Any,
    changing: tuple[int, ...] = (),
) -> tuple[Any, tuple[Array, ...]]:
    """The user's Jacobian on laid-out states, as `(jac_jaxpr, jac_args)` for `Field`.

    **Raises:** `ValueError` or `TypeError` if `jac` does not return a matrix that fits the state.
    """
    leaves, structure = jtu.tree_flatten(p)

    def matrix(parameters: list[Array], t: Array, *u: Array) -> Array:
        state = layout.unravel(u[0] if len(u) == 1 else u)
        value = jtu.tree_unflatten(structure, parameters).value
        given = _checked(jac(state, value, t * direction), layout)
        return lay_out_matrix(given, layout) * jnp.asarray(direction).astype(layout.time_dtype)

    closed = jax.make_jaxpr(matrix)(leaves, t, *jtu.tree_leaves(layout.ravel(u)))
    return hoist(closed.jaxpr, (*closed.consts, *map(jnp.asarray, leaves)), changing)


def trace_jacobians(
    jac: Callable[[Any, Any, Any, Any, Any], Any],
    layout: Layout,
    u: PyTree,
    p: Any,
    t: Array,
    direction: Any,
    changing: tuple[int, ...] = (),
) -> tuple[Any, tuple[Array, ...]]:
    """As `trace_jacobian` of the user's gamma*dF/du' + dF/du, both of which follow from two gammas;
    the arguments of what is traced are those of the residual.

    **Raises:** `ValueError` or `TypeError` if `jac` does not return a matrix that fits the state.
    """
    leaves, structure = jtu.tree_flatten(p)
    raveled, dtype = jtu.tree_leaves(layout.ravel(u)), layout.time_dtype

    def matrices(parameters: list[Array], t: Array, *given: Array) -> tuple[Array, Array]:
        slope, state = given[: len(raveled)], given[len(raveled) :]
        turned = [x * jnp.asarray(direction).astype(x.dtype) for x in slope]
        du, u = (layout.unravel(x[0] if len(x) == 1 else tuple(x)) for x in (turned, state))
        value = jtu.tree_unflatten(structure, parameters).value

        def at(gamma: float) -> Array:
            made = jac(du, u, value, jnp.asarray(gamma, dtype), t * direction)
            return lay_out_matrix(_checked(made, layout), layout)

        of_state = at(0.0)
        return (at(1.0) - of_state) * jnp.asarray(direction).astype(dtype), of_state

    closed = jax.make_jaxpr(matrices)(leaves, t, *raveled, *raveled)
    return hoist(closed.jaxpr, (*closed.consts, *map(jnp.asarray, leaves)), changing)


def _checked(jacobian: Any, layout: Layout) -> Array:
    """A Jacobian as a square matrix, or a clear error."""
    elements, imaginary = layout.coordinates()
    n = int(elements.max()) + 1
    wanted: list[tuple[int, ...]] = [(n, n)]
    if len(layout.shapes) == 1:
        wanted.append(layout.shapes[0] * 2)
    if not hasattr(jacobian, "shape") or jacobian.shape not in wanted:
        got = getattr(jacobian, "shape", type(jacobian).__name__)
        raise ValueError(
            f"jac must return an array of shape {' or '.join(map(str, dict.fromkeys(wanted)))}, "
            f"with jac[i, j] the derivative of row i with respect to u[j]; got {got}. "
            "If it returns rows of numbers, use jnp.array or jnp.stack."
        )
    if jnp.iscomplexobj(jacobian) and not imaginary.any():
        raise TypeError(f"jac must return real numbers for a real state, got {jacobian.dtype}.")
    return jacobian.reshape(n, n)
