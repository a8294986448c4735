"""Loops of unknown length that a reverse pass can go through.

JAX differentiates a `while` forwards only. A solve and its replays are such loops, since a compiled
loop with an end of its own is fastest; their derivatives are made by hand. Where a derivative of a
derivative has to go backwards once more, the same program is evaluated with every `while` replaced
by one that keeps checkpoints of its carry.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import equinox.internal as eqxi
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from .program import inner_jaxprs
from .trees import replaced

# Of a loop with n iterations the carry is kept this many times; n/CHECKPOINTS iterations between
# two of them are repeated. (Stumm & Walther 2010, as in `equinox.internal.while_loop`.)
_CHECKPOINTS = 64


def pull_back(
    function: Callable[..., list[Array]],
    moving: Sequence[int],
    primals: Sequence[Array],
    cotangents: Sequence[Array],
) -> list[Array]:
    """Cotangents of some arguments of a function whose loops JAX cannot reverse.

    The result can be differentiated forwards again: with J the derivative, the tangent of
    J(x)^T c along v is J(x)^T of the tangent of c, plus the pull-back of J(x) v.
    """

    @jax.custom_jvp
    def pull(primals: list[Array], cotangents: list[Array]) -> list[Array]:
        traced = jax.make_jaxpr(function)(*primals)

        def of_moving(values: list[Array]) -> list[Array]:
            return reversible(traced, *replaced(primals, moving, values))

        return jax.vjp(of_moving, [primals[i] for i in moving])[1](cotangents)[0]

    @partial(pull.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> Any:
        (xs, cts), (dots, ct_dots) = primals, tangents
        which = [i for i, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]

        def along(*args: Array) -> list[Array]:
            at, directions = args[: len(xs)], list(args[len(xs) :])

            def of_which(values: list[Array]) -> list[Array]:
                return function(*replaced(at, which, values))

            return jax.jvp(of_which, ([at[i] for i in which],), (directions,))[1]

        curved = pull_back(along, moving, [*xs, *(dots[i] for i in which)], cts)
        straight = pull(xs, [instantiated(dot) for dot in ct_dots])
        return pull(xs, cts), [a + b for a, b in zip(curved, straight, strict=True)]

    return pull(list(primals), list(cotangents))


def instantiated(tangent: Any) -> Array:
    """A tangent as an array, zero or not."""
    if isinstance(tangent, SymbolicZero):
        aval: Any = tangent.aval
        return jnp.zeros(aval.shape, aval.dtype)
    return tangent


def reversible(jaxpr: Any, *args: Array) -> list[Array]:
    """The outputs of a closed jaxpr, computed so that JAX can differentiate them backwards."""
    return _evaluate(jaxpr.jaxpr, jaxpr.consts, *args)


def _evaluate(jaxpr: Any, consts: Sequence[Array], *args: Array) -> list[Array]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def value(v: Any) -> Any:
        return v.val if isinstance(v, jex.Literal) else known[v]

    for looping, eqns in groupby(jaxpr.eqns, _has_while):
        if not looping:
            known |= _straight(jaxpr, list(eqns), known)
            continue
        for eqn in eqns:
            rule = _RULES[eqn.primitive.name]
            out = rule(eqn.params, [value(v) for v in eqn.invars])
            known.update(zip(eqn.outvars, out, strict=True))
    return [value(v) for v in jaxpr.outvars]


def _straight(jaxpr: Any, eqns: list[Any], known: dict[Any, Array]) -> dict[Any, Array]:
    """What some equations without a loop add to what is known."""
    made = list(dict.fromkeys(v for eqn in eqns for v in eqn.outvars))
    inner = set(made)
    used = (v for eqn in eqns for v in eqn.invars if not isinstance(v, jex.Literal))
    given = list(dict.fromkeys(v for v in used if v not in inner))
    names = jaxpr.debug_info.with_unknown_names()
    part = jaxpr.replace(constvars=[], invars=given, outvars=made, eqns=eqns, debug_info=names)
    out = jex.jaxpr_as_fun(jex.ClosedJaxpr(part, ()))(*(known[v] for v in given))
    return dict(zip(made, out, strict=True))


def _has_while(eqn: Any) -> bool:
    if eqn.primitive.name == "while":
        return True
    return any(_has_while(e) for inner in inner_jaxprs(eqn) for e in inner.eqns)


def _while(params: dict[str, Any], values: list[Array]) -> list[Array]:
    pending, body = params["cond_jaxpr"], params["body_jaxpr"]
    first, second = params["cond_nconsts"], params["body_nconsts"]
    for_pending, for_body = values[:first], values[first : first + second]
    return eqxi.while_loop(
        lambda carry: reversible(pending, *for_pending, *carry)[0],
        lambda carry: reversible(body, *for_body, *carry),
        list(values[first + second :]),
        kind="checkpointed",
        checkpoints=_CHECKPOINTS,
    )


def _scan(params: dict[str, Any], values: list[Array]) -> list[Array]:
    n_consts, n_carry = params["num_consts"], params["num_carry"]
    consts, carry, rows = (
        values[:n_consts],
        values[n_consts : n_consts + n_carry],
        values[n_consts + n_carry :],
    )

    def body(carry: list[Array], row: list[Array]) -> tuple[list[Array], list[Array]]:
        out = reversible(params["jaxpr"], *consts, *carry, *row)
        return out[:n_carry], out[n_carry:]

    carry, rows = jax.lax.scan(
        body, carry, rows, length=params["length"], reverse=params["reverse"]
    )
    return [*carry, *rows]


def _cond(params: dict[str, Any], values: list[Array]) -> list[Array]:
    index, *operands = values
    branches = [lambda *xs, b=b: reversible(b, *xs) for b in params["branches"]]
    return jax.lax.switch(index, branches, *operands)


def _inner(name: str) -> Callable[[dict[str, Any], list[Array]], list[Array]]:
    """Evaluate the program that a call holds."""
    return lambda params, values: reversible(params[name], *values)


_RULES: dict[str, Callable[[dict[str, Any], list[Array]], list[Array]]] = {
    "while": _while,
    "scan": _scan,
    "cond": _cond,
    "pjit": _inner("jaxpr"),
    "jit": _inner("jaxpr"),
    "diffjax_one_or_many": lambda params, values: reversible(params["single"].closed, *values),
}
