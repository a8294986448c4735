"""Tracing the user's functions once, whatever they close over.

A closed-over array (or a tracer of a transformation around the solve) becomes an explicit
argument, so that it is differentiated and batched like a parameter.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .layout import Layout
from .tidy import tidied, used_in


def trace_field(
    f: Callable[[Any, Any, Any], Any],
    layout: Layout,
    u: PyTree,
    p: Any,
    t: Array,
    direction: Any,
    changing: tuple[int, ...] = (),
) -> tuple[Any, tuple[Array, ...]]:
    """The vector field on laid-out states, as `(jaxpr, args)` for `Field`.

    `p` are the problem's `Parts`; `direction` is 1.0, or -1.0 (possibly traced) where time is
    turned round. The leaves of p that are `changing` during the solve are the last of the args.

    **Raises:** `TypeError` or `ValueError` if `f` does not return what `u` is.
    """
    leaves, structure = jtu.tree_flatten(p)
    forwards = isinstance(direction, float) and direction == 1.0

    def derivative(parameters: list[Array], t: Array, *u: Array) -> PyTree:
        state = layout.unravel(u[0] if len(u) == 1 else u)
        value = jtu.tree_unflatten(structure, parameters).value
        du = f(state, value, t if forwards else t * direction)
        out = layout.ravel(checked(du, state))
        if forwards:
            return out
        return jtu.tree_map(lambda x: x * jnp.asarray(direction).astype(x.dtype), out)

    closed = jax.make_jaxpr(derivative)(leaves, t, *jtu.tree_leaves(layout.ravel(u)))
    return hoist(closed.jaxpr, (*closed.consts, *map(jnp.asarray, leaves)), changing)


def trace_residual(
    F: Callable[[Any, Any, Any, Any], Any],
    layout: Layout,
    u: PyTree,
    p: Any,
    t: Array,
    direction: Any,
    changing: tuple[int, ...] = (),
) -> tuple[Any, tuple[Array, ...]]:
    """F(du, u, p, t) on laid-out derivatives and states; the arguments are those of `trace_field`.

    **Raises:** `TypeError` or `ValueError` if `F` does not return what `u` is.
    """
    leaves, structure = jtu.tree_flatten(p)
    raveled = jtu.tree_leaves(layout.ravel(u))

    def residual(parameters: list[Array], t: Array, *given: Array) -> PyTree:
        slope, state = given[: len(raveled)], given[len(raveled) :]
        turned = [x * jnp.asarray(direction).astype(x.dtype) for x in slope]
        du, u = (layout.unravel(x[0] if len(x) == 1 else tuple(x)) for x in (turned, state))
        value = jtu.tree_unflatten(structure, parameters).value
        return layout.ravel(checked(F(du, u, value, t * direction), u, "F"))

    closed = jax.make_jaxpr(residual)(leaves, t, *raveled, *raveled)
    return hoist(closed.jaxpr, (*closed.consts, *map(jnp.asarray, leaves)), changing)


def trace_diffusion(
    g: Callable[[Any, Any, Any], Any],
    layout: Layout,
    u: PyTree,
    p: Any,
    t: Array,
    direction: Any,
    kind: str,
    noise_dim: int | None,
    changing: tuple[int, ...] = (),
) -> tuple[Any, tuple[Array, ...], int]:
    """The diffusion on laid-out states and how many noises it has: `(jaxpr, args, dim)`.

    **Raises:** `TypeError` or `ValueError` if `g` does not return what its kind of noise asks for.
    """
    leaves, structure = jtu.tree_flatten(p)
    raveled = jtu.tree_leaves(layout.ravel(u))
    is_matrix = kind in ("commutative", "general")
    dim = 1 if kind == "scalar" else sum(x.size for x in raveled)

    def diffusion(parameters: list[Array], t: Array, *u: Array) -> PyTree:
        nonlocal dim
        state = layout.unravel(u[0] if len(u) == 1 else u)
        gu = g(state, jtu.tree_unflatten(structure, parameters).value, t * direction)
        if not is_matrix:
            return layout.ravel(checked(gu, state, "g"))
        dim = _columns(gu, noise_dim)
        like = jtu.tree_map(lambda x: jnp.broadcast_to(x[..., None], (*x.shape, dim)), state)
        return layout.ravel_columns(checked(gu, like, "g"))

    closed = jax.make_jaxpr(diffusion)(leaves, t, *raveled)
    state_vars = closed.jaxpr.invars[len(leaves) + 1 :]
    if kind == "additive" and used_in(closed.jaxpr) & set(state_vars):
        raise ValueError(
            "noise='additive' says that g does not depend on u, but it does; try noise='diagonal'."
        )
    jaxpr, args = hoist(closed.jaxpr, (*closed.consts, *map(jnp.asarray, leaves)), changing)
    return jaxpr, args, dim


def _columns(gu: PyTree, noise_dim: int | None) -> int:
    """How many noises a matrix of theirs has columns for."""
    leaves = jtu.tree_leaves(gu)
    if noise_dim is not None:
        return noise_dim
    if not leaves or jnp.ndim(leaves[0]) < 1:
        raise ValueError(
            "g must return the shape of u0 with one axis more, over the noises: got "
            f"{jtu.tree_map(jnp.shape, gu)}; for one noise an element try noise='diagonal'."
        )
    return jnp.shape(leaves[0])[-1]


# An array may grow by so much, or to this many elements, in what is computed ahead of the solve.
_HOIST_GROWTH = 2
_HOIST_SIZE = 1024


def hoist(
    jaxpr: Any, args: tuple[Array, ...], changing: tuple[int, ...] = ()
) -> tuple[Any, tuple[Array, ...]]:
    """Compute ahead what a vector field computes from its parameters alone.

    Unpacking `a, b = p`, or a transformation of the parameters, would be done again in every stage
    of every step, and its transpose too, which for an unpacked vector is a pad and a sum. Here it
    is done once before the solve; its results take the place of the parameters. Those that are
    `changing` during the solve stay what they are, after the others.
    """
    jaxpr = tidied(jaxpr)
    n_consts = len(jaxpr.constvars)
    n_leaves = len(args) - n_consts
    parameters = [*jaxpr.constvars, *jaxpr.invars[:n_leaves]]
    late = [parameters[n_consts + i] for i in changing]
    known = set(parameters) - set(late)

    def is_known(v: Any) -> bool:
        return isinstance(v, jex.Literal) or v in known

    def stays_small(eqn: Any) -> bool:
        sizes = [v.aval.size for v in eqn.invars]
        largest = max(_HOIST_SIZE, _HOIST_GROWTH * max(sizes, default=0))
        return all(v.aval.size <= largest for v in eqn.outvars)

    ahead, rest = [], []
    for eqn in jaxpr.eqns:
        if not eqn.effects and all(map(is_known, eqn.invars)) and stays_small(eqn):
            ahead.append(eqn)
            known.update(eqn.outvars)
        else:
            rest.append(eqn)
    used = [v for eqn in rest for v in eqn.invars] + list(jaxpr.outvars)
    passed = list(dict.fromkeys(v for v in used if not isinstance(v, jex.Literal) and v in known))
    names = jaxpr.debug_info.with_unknown_names()
    before = jaxpr.replace(
        constvars=[], invars=parameters, outvars=passed, eqns=ahead, debug_info=names
    )
    field = jaxpr.replace(
        constvars=[], invars=[*passed, *late, *jaxpr.invars[n_leaves:]], eqns=rest, debug_info=names
    )
    computed = jex.jaxpr_as_fun(jex.ClosedJaxpr(before, ()))(*args)
    return field, (*computed, *(args[n_consts + i] for i in changing))


def checked(du: PyTree, u: PyTree, name: str = "f") -> PyTree:
    """`du` with weakly typed leaves cast, or a clear error; `name` is the function's."""
    got, wanted = jtu.tree_structure(du), jtu.tree_structure(u)
    if got != wanted:
        raise TypeError(
            f"{name} must return a pytree like u0: got {got}, wanted {wanted}. "
            "Return a value for every part of the state, in the same containers."
        )

    def check(path: Any, d: Any, x: Array) -> Array:
        where = f" at u{jtu.keystr(path)}" if path else ""
        if jnp.shape(d) != x.shape:
            raise ValueError(
                f"{name} must return the shape of u0{where}: got {jnp.shape(d)}, wanted {x.shape}. "
                f"If {name} returns a list or tuple of components, use jnp.stack."
            )
        array = jnp.asarray(d)
        weak = getattr(jax.typeof(array), "weak_type", False) or not hasattr(d, "dtype")
        lossless = jnp.can_cast(array.dtype, x.dtype, casting="safe")
        if array.dtype != x.dtype and not weak and not lossless:
            raise TypeError(
                f"{name} must return the dtype of u0{where}: got {array.dtype}, wanted {x.dtype}. "
                f"Cast u0 to {array.dtype}, or the parameters to {x.dtype}."
            )
        return array.astype(x.dtype)

    return jtu.tree_map_with_path(check, du, u)


def trace_saving(
    save: Callable[[Any, Any, Any], PyTree] | None,
    layout: Layout,
    u: PyTree,
    p: Any,
    t: Array,
    direction: Any,
) -> tuple[Any, tuple[Array, ...], Any]:
    """What is saved of a laid-out state: `(jaxpr, args, shapes of the saved pytree)`.

    Without a function of the user's the laid-out state itself is saved, and there are no shapes.
    Counts and flags are saved as floats, which have a derivative like all that a solve gives back.
    """
    raveled = jtu.tree_leaves(layout.ravel(u))
    if save is None:
        closed = jax.make_jaxpr(lambda t, *u: u)(t, *raveled)
        return closed.jaxpr, (), None
    leaves, structure = jtu.tree_flatten(p)

    def saved(parameters: list[Array], t: Array, *u: Array) -> PyTree:
        state = layout.unravel(u[0] if len(u) == 1 else u)
        value = jtu.tree_unflatten(structure, parameters).value
        return jtu.tree_map(jnp.asarray, save(state, value, t * direction))

    shapes: PyTree = None

    def floating(parameters: list[Array], t: Array, *u: Array) -> list[Array]:
        nonlocal shapes
        out = saved(parameters, t, *u)
        shapes = jtu.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), out)
        leaves = jtu.tree_leaves(out)
        return [x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(t.dtype) for x in leaves]

    closed = jax.make_jaxpr(floating)(leaves, t, *raveled)
    return closed.jaxpr, (*closed.consts, *map(jnp.asarray, leaves)), shapes


def check_saved(save_jaxpr: Any, changing: tuple[int, ...]) -> None:
    """Raise if what is saved depends on parameters that change during the solve."""
    if used_in(save_jaxpr) & {save_jaxpr.invars[i] for i in changing}:
        raise ValueError(
            "save_fn must not use parameters that an affect changes (changes_p=True), since it is "
            "given those that the solve began with; keep such a value in the state instead."
        )
