"""The pattern of a Jacobian, found by tracing: which inputs each number of a program depends on.

Every array of the traced program gets a sparse boolean matrix, a row for each of its elements, a
column for each element of the state. It holds for any value of the state: of a choice between two
both count. What is not known makes every element depend on all that the others do.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree
from scipy import sparse

# What an array depends on, (size, n); None for nothing.
Csr = Any  # scipy.sparse.csr_array, whose stubs know little of it
Depends = Csr | None
# How to come by the value of an array; None where it is not known while tracing.
Known = Callable[[], np.ndarray] | None

# Element by element.
_ELEMENTWISE_NAMES = """
    abs acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt clamp complex
    conj convert_element_type copy copy_p cos cosh digamma div erf erf_inv erfc exp exp2 expm1 imag
    integer_pow lgamma log log1p logistic max min mul neg nextafter optimization_barrier pow real
    reduce_precision rem rsqrt select_n sin sinh sqrt square sub tan tanh
"""
_ELEMENTWISE = frozenset(_ELEMENTWISE_NAMES.split())
_REARRANGING = """
    broadcast_in_dim concatenate expand_dims pad reshape rev slice split squeeze stack transpose
    unstack
"""
# They only move numbers about. Of each, the operands from the second on that are places.
_MOVING: dict[str, slice] = {
    **dict.fromkeys(_REARRANGING.split(), slice(0)),
    "dynamic_slice": slice(1, None),
    "gather": slice(1, None),
    "scatter": slice(1, 2),
    "dynamic_update_slice": slice(2, None),
}
# Piecewise constant.
_FLAT = frozenset(["sign", "floor", "ceil", "round"])
_REDUCING = frozenset(["reduce_sum", "reduce_max", "reduce_min", "reduce_prod"])
_ALONG = frozenset(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"])
_CALL_NAMES = """
    checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr jit pjit
    remat remat2
"""
_CALLS = frozenset(_CALL_NAMES.split())
# Linear in the first operand, whatever the others are.
_LINEAR = frozenset(["conv_general_dilated", "reduce_window_sum"])
# So many values are computed while tracing, to see which are zero.
_LARGEST_KNOWN = 2**24


def detected(f: Callable[[Any, Any, Any], Any], u: PyTree, p: PyTree, t: Any) -> Csr:
    """Where df/du may have entries, (n, n), the elements of `u` counted leaf by leaf."""
    leaves, structure = jtu.tree_flatten(u)

    def of_leaves(t: Any, *leaves: Any) -> list[Any]:
        return jtu.tree_leaves(f(jtu.tree_unflatten(structure, leaves), p, t))

    closed = jax.make_jaxpr(of_leaves)(t, *leaves)
    n, first, starts = sum(x.size for x in leaves), 0, []
    for x in leaves:
        starts.append(sparse.csr_array(sparse.eye_array(x.size, n, k=first, dtype=bool)))
        first += x.size
    inputs = [None, *starts]
    out, _ = _Reader(n).read(
        closed.jaxpr, [_constant(c) for c in closed.consts], inputs, [None] * len(inputs)
    )
    nothing = [sparse.csr_array((x.size, n), dtype=bool) for x in closed.out_avals]
    rows = [x if x is not None else y for x, y in zip(out, nothing, strict=True)]
    return sparse.csr_array(sparse.vstack(rows))


def _constant(x: Any) -> Known:
    """A value that is there while tracing; a tracer is not."""
    return None if isinstance(x, Tracer) else lambda: np.asarray(x)


class _Reader:
    """Reads a traced program, operation by operation."""

    def __init__(self, n: int) -> None:
        self.n = n

    def read(
        self,
        jaxpr: Any,
        consts: Sequence[Known],
        inputs: Sequence[Depends],
        values: Sequence[Known],
    ) -> tuple[list[Depends], list[Known]]:
        """What the outputs depend on, and their values where these are known."""
        depends: dict[Any, Depends] = dict(zip(jaxpr.invars, inputs, strict=True))
        known: dict[Any, Known] = dict(zip(jaxpr.invars, values, strict=True))
        known |= dict(zip(jaxpr.constvars, consts, strict=True))

        def dependence(v: Any) -> Depends:
            return None if isinstance(v, jex.Literal) else depends.get(v)

        def value(v: Any) -> Known:
            return _constant(v.val) if isinstance(v, jex.Literal) else known.get(v)

        for eqn in jaxpr.eqns:
            given = [dependence(v) for v in eqn.invars]
            at = [value(v) for v in eqn.invars]
            if eqn.primitive.name in _CALLS:
                out, out_known = self._call(eqn, given, at)
            else:
                out, out_known = self._operation(eqn, given, at), _values(eqn, at)
            for v, d, k in zip(eqn.outvars, out, out_known, strict=True):
                smooth = jnp.issubdtype(v.aval.dtype, jnp.inexact)
                depends[v], known[v] = d if smooth else None, k
        return [dependence(v) for v in jaxpr.outvars], [value(v) for v in jaxpr.outvars]

    def _call(
        self, eqn: Any, given: list[Depends], at: list[Known]
    ) -> tuple[list[Depends], list[Known]]:
        # Of a function with derivatives of its own the function itself comes first.
        inner = next(iter(jex.jaxprs_in_params(eqn.params)))
        consts = next(
            (x.consts for x in eqn.params.values() if getattr(x, "jaxpr", None) is inner), ()
        )
        return self.read(inner, [_constant(c) for c in consts], given, at)

    def _operation(self, eqn: Any, given: list[Depends], at: list[Known]) -> list[Depends]:
        name, outs = eqn.primitive.name, eqn.outvars
        if all(d is None for d in given) or name in _FLAT:
            return [None] * len(outs)
        if name in _ELEMENTWISE:
            return [self._elementwise(v, given, eqn) for v in outs]
        if name in _MOVING and all(k is not None for k in at[1:][_shifted(_MOVING[name])]):
            return self._moved(eqn, given, at)
        if name == "scatter-add" and at[1] is not None:
            return [self._added(eqn, given, at)]
        if name in _REDUCING or name in _ALONG:
            return [self._reduced(eqn, given[0], name in _ALONG)]
        if name == "dot_general":
            return [self._product(eqn, given, at)]
        if name in _LINEAR and given[0] is not None and all(d is None for d in given[1:]):
            return [self._linear(eqn, given[0])]
        if name == "cond":
            return self._branches(eqn, given, at)
        return [self._everything(v, given) for v in outs]

    def _everything(self, v: Any, given: Sequence[Depends]) -> Depends:
        """Each element depends on all that there is."""
        columns = [d.indices for d in given if d is not None]
        every = np.unique(np.concatenate(columns)) if columns else np.zeros(0, int)
        size = v.aval.size
        pointers = np.arange(size + 1) * every.size
        data = np.ones(size * every.size, bool)
        return sparse.csr_array((data, np.tile(every, size), pointers), shape=(size, self.n))

    def _elementwise(self, v: Any, given: list[Depends], eqn: Any) -> Depends:
        total: Depends = None
        for d, operand in zip(given, eqn.invars, strict=True):
            if d is None:
                continue
            if operand.aval.size != v.aval.size:
                d = d[np.zeros(v.aval.size, int)]
            total = d if total is None else total + d
        return total

    def _moved(self, eqn: Any, given: list[Depends], at: list[Known]) -> list[Depends]:
        """Move the numbers 1, 2, ... about in place of the operands; 0 depends on nothing."""
        places = 1 + np.arange(len(eqn.invars) - 1)[_shifted(_MOVING[eqn.primitive.name])]
        operands, stacked, first = [], [], 1
        for i, (v, d) in enumerate(zip(eqn.invars, given, strict=True)):
            if i in places:
                operands.append(_value(at[i]))
            elif d is None:
                operands.append(np.zeros(v.aval.shape, np.int64))
            else:
                numbers = np.arange(first, first + v.aval.size).reshape(v.aval.shape)
                operands.append(numbers)
                stacked.append(d)
                first += v.aval.size
        rows = sparse.csr_array(
            sparse.vstack([sparse.csr_array((1, self.n), dtype=bool), *stacked])
        )
        out = _evaluate(eqn, operands)
        # What is filled in where an index is out of bounds is no number of these.
        picked = [np.where((x >= 0) & (x < first), x, 0).reshape(-1) for x in out]
        return [sparse.csr_array(rows[x]) for x in picked]

    def _added(self, eqn: Any, given: list[Depends], at: list[Known]) -> Depends:
        """`x.at[i].add(y)`, where no two of y go to one place."""
        operand, _, updates = (v.aval for v in eqn.invars)
        if given[2] is None:
            return given[0]
        # In the dtype that the operation was traced for, in which so many numbers are exact.
        empty = np.zeros(operand.shape, operand.dtype)
        numbers = np.arange(1, 1 + updates.size).reshape(updates.shape).astype(operand.dtype)

        def sums(x: np.ndarray) -> np.ndarray:
            out = _evaluate(eqn, [empty, _value(at[1]), x])[0]
            return np.real(out).astype(np.int64).reshape(-1)

        places = sums(numbers)
        if np.any(sums(np.ones_like(numbers)) > 1):
            return self._everything(eqn.outvars[0], given)
        nothing = sparse.csr_array((1, self.n), dtype=bool)
        added = sparse.csr_array(sparse.csr_array(sparse.vstack([nothing, given[2]]))[places])
        return added if given[0] is None else given[0] + added

    def _reduced(self, eqn: Any, given: Depends, keeps: bool) -> Depends:
        """Sums and their like; `keeps` those along an axis that stays."""
        shape = eqn.invars[0].aval.shape
        axes = (eqn.params["axis"],) if keeps else eqn.params["axes"]
        short = tuple(1 if i in axes else k for i, k in enumerate(shape))
        groups = np.arange(int(np.prod(short))).reshape(short)
        of_element = np.broadcast_to(groups, shape).reshape(-1)
        return self._united(of_element, given, groups.size, of_element if keeps else None)

    def _united(
        self, group: np.ndarray, given: Depends, count: int, back: np.ndarray | None
    ) -> Depends:
        ones = np.ones(group.size, np.int32)
        sums = sparse.csr_array((ones, (group, np.arange(group.size))), shape=(count, group.size))
        united = sparse.csr_array((sums @ given).astype(bool))
        return united if back is None else united[back]

    def _product(self, eqn: Any, given: list[Depends], at: list[Known]) -> Depends:
        """A matrix product; zeros of a factor that is known make no entries."""
        total: Depends = None
        for i in (0, 1):
            d = given[i]
            if d is None:
                continue
            other = eqn.invars[1 - i].aval
            value = _value(at[1 - i]) if at[1 - i] is not None else None
            entries = np.ones(other.shape) if value is None else (value != 0).astype(float)

            def of_one(x: Any, i: int = i, entries: np.ndarray = entries) -> Any:
                pair = (x, entries) if i == 0 else (entries, x)
                numbers = eqn.params["dimension_numbers"]
                return jax.lax.dot_general(*pair, dimension_numbers=numbers)

            part = self._through(of_one, eqn.invars[i].aval.shape, d)
            total = part if total is None else total + part
        return total

    def _linear(self, eqn: Any, given: Csr) -> Depends:
        ones = [np.ones(v.aval.shape) for v in eqn.invars[1:]]
        params = {k: None if k == "preferred_element_type" else v for k, v in eqn.params.items()}
        return self._through(
            lambda x: eqn.primitive.bind(x, *map(jnp.asarray, ones), **params),
            eqn.invars[0].aval.shape,
            given,
        )

    def _through(self, f: Callable[[Any], Any], shape: tuple[int, ...], given: Csr) -> Depends:
        """What a linear function with no negative weights makes of an operand's dependences."""
        with jax.ensure_compile_time_eval():
            matrix = np.asarray(jax.jacobian(f)(jnp.zeros(shape)))
        weights = sparse.csr_array(matrix.reshape(-1, given.shape[0]) != 0).astype(np.int32)
        return sparse.csr_array((weights @ given).astype(bool))

    def _branches(self, eqn: Any, given: list[Depends], at: list[Known]) -> list[Depends]:
        every = []
        for branch in eqn.params["branches"]:
            consts = [_constant(c) for c in branch.consts]
            every.append(self.read(branch.jaxpr, consts, given[1:], at[1:])[0])
        out: list[Depends] = []
        for results in zip(*every, strict=True):
            there = [d for d in results if d is not None]
            out.append(functools.reduce(operator.add, there) if there else None)
        return out


def _shifted(places: slice) -> slice:
    """A slice of all operands as one of those after the first."""
    if places == slice(0):
        return places
    return slice(places.start - 1, None if places.stop is None else places.stop - 1)


def _value(known: Known) -> np.ndarray:
    assert known is not None
    return known()


def _broadcast(x: np.ndarray, shape: Any, broadcast_dimensions: Any, **_: Any) -> np.ndarray:
    wide = [1] * len(shape)
    for size, place in zip(x.shape, broadcast_dimensions, strict=True):
        wide[place] = size
    return np.broadcast_to(x.reshape(wide), shape)


# The most common ones by NumPy, since JAX compiles each operation that it computes.
_BY_NUMPY: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "expand_dims": lambda x, dimensions: np.expand_dims(x, dimensions),
    "reshape": lambda x, new_sizes, **_: x.reshape(new_sizes),
    "rev": lambda x, dimensions: np.flip(x, dimensions),
    "slice": lambda x, start_indices, limit_indices, strides: x[
        tuple(map(slice, start_indices, limit_indices, strides or [None] * x.ndim))
    ],
    "squeeze": lambda x, dimensions: np.squeeze(x, dimensions),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
}


def _evaluate(eqn: Any, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The results of an operation on other operands, while tracing."""
    by_numpy = _BY_NUMPY.get(eqn.primitive.name)
    if by_numpy is not None:
        return [by_numpy(*operands, **eqn.params)]
    with jax.ensure_compile_time_eval():
        out = eqn.primitive.bind(*map(jnp.asarray, operands), **eqn.params)
    return [np.asarray(x) for x in (out if eqn.primitive.multiple_results else [out])]


def _values(eqn: Any, at: list[Known]) -> list[Known]:
    """How to come by the results of an operation on known operands, when they are asked for."""
    small = all(v.aval.size <= _LARGEST_KNOWN for v in eqn.outvars)
    if eqn.effects or not small or any(k is None for k in at):
        return [None] * len(eqn.outvars)
    results: list[np.ndarray] = []

    def result(i: int) -> np.ndarray:
        if not results:
            results.extend(_evaluate(eqn, [_value(k) for k in at]))
        return results[i]

    return [lambda i=i: result(i) for i in range(len(eqn.outvars))]
