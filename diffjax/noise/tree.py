"""A Brownian motion whose values follow from a key and the time alone.

The span is halved again and again; each half's increment and integral follow from those of the
whole and two normal numbers that are named by the node. So the path is the same for any sequence of
steps, at any tolerance, forwards and backwards, and nothing of it has to be stored.

Sources: Levy's construction with the integral beside the value, Foster, Lyons, Oberhauser, An
optimal polynomial approximation of Brownian motion, SIAM J. Numer. Anal. 58 (2020), theorem 5.4;
as a virtual tree Li, Wong, Chen, Duvenaud, Scalable gradients for stochastic differential
equations, AISTATS 2020; Jelincic, Foster, Kidger, arXiv 2405.06464.
"""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, UInt32

from ..varying import vary_alike
from .base import Increment, Need, NoiseProcess
from .random import key_words, normal_pairs, normals

# Halvings of the span, so that the shortest piece is 1e-6 of it.
DEPTH = 20
# So many of them are made once, before the first step.
_TABLE_DEPTH = 6
# Steps start in one of so many pieces, as a power of two: more than any depth.
_PLACE_BITS = 31


class Values(NamedTuple):
    """The path at a time, on a span whose length counts as one: its value, and its integral from
    the start of the span, with what rounding has left of that.

    What a step makes of the integral is a difference far smaller than it, which in single precision
    would be rounding and nothing else.
    """

    w: Float[Array, " dim"]
    integral: Float[Array, " dim"]
    low: Float[Array, " dim"]

    def moved(self, w: Array, integral: Array) -> "Values":
        """With something added, which is small beside the integral (Kahan's compensated sum)."""
        total = self.integral + integral
        low = self.low + (integral - (total - self.integral))
        return Values(self.w + w, total, low)


class _Piece(NamedTuple):
    """A dyadic piece of the span: its number, its size, the path at its
    start, its own increment, and by how much its mean lies above that of the chord (H, the
    space-time Levy area).

    `draws` are the two normal numbers of its node, of which its halves are made. They are made with
    the piece: what a loop carries XLA computes once, not anew for everything that is made of it.
    """

    node: UInt32[Array, ""]
    size: Float[Array, ""]
    start: Values
    dw: Float[Array, " dim"]
    h: Float[Array, " dim"]
    draws: tuple[Float[Array, " dim"], Float[Array, " dim"]]


class VirtualBrownianTree(NoiseProcess):
    """A Brownian motion on a span, whose values follow from a key and the time alone.

    The noise of adaptive solves; give it as `path=` to have several solves on the same path, for
    example with different steps.

    **Arguments:**

    - `t0`, `t1`: the span, which must hold that of the solve; numbers or scalar arrays.
    - `dim`: how many independent noises: for diagonal noise the number of elements of the state.
    - `key`: of `jax.random`.
    - `depth`: how often the span is halved. Steps shorter than (t1 - t0) / 2**depth are not taken.

    **Returns:** a path; `path(t)` has the shape (dim,), and is zero at the earlier end.

    **Raises:** `ValueError` for a `dim` or `depth` out of range.

    !!! example
        ```python
        path = dj.noise.VirtualBrownianTree(0.0, 1.0, dim=2, key=jax.random.key(0))
        dj.solve(prob, dj.EM(), dt=0.01, path=path)
        ```
    """

    low: Float[Array, ""]
    length: Float[Array, ""]
    key: UInt32[Array, " 2"]
    table: _Piece | None
    count: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)

    def __init__(self, t0: Any, t1: Any, dim: int, key: Array, *, depth: int = DEPTH) -> None:
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim must be a positive integer, got {dim!r}.")
        if not isinstance(depth, int) or not _TABLE_DEPTH <= depth <= 30:
            raise ValueError(f"depth must be an integer from {_TABLE_DEPTH} to 30, got {depth!r}.")
        t0, t1 = (jnp.asarray(t, jnp.result_type(float, t0, t1)) for t in (t0, t1))
        self.low, self.length = jnp.minimum(t0, t1), jnp.abs(t1 - t0)
        self.key, self.count, self.depth = key_words(key), dim, depth
        self.table = _table(self.key, dim, self.low.dtype)

    def kept(self) -> "VirtualBrownianTree":
        """Without its table, which follows from the key."""
        return self._with(None)

    def filled(self) -> "VirtualBrownianTree":
        return self._with(_table(self.key, self.count, self.low.dtype))

    def _with(self, table: _Piece | None) -> "VirtualBrownianTree":
        return eqx.tree_at(lambda tree: tree.table, self, table, is_leaf=lambda x: x is None)

    @property
    def dim(self) -> int:
        return self.count

    @property
    def has_extra(self) -> bool:
        return True

    @property
    def smallest(self) -> Float[Array, ""]:
        return self.length * 0.5**self.depth

    def at(self, t: Array) -> Float[Array, " dim"]:
        return jnp.sqrt(self.length) * self.look(t).w

    def over(
        self, number: Array, start: Array, dt: Array, need: Need, here: Values
    ) -> tuple[Increment, Values]:
        there = self.look(start + dt)
        root, area, extra = jnp.sqrt(self.length), None, None
        if need.area:
            whole = (there.integral - here.integral) + (there.low - here.low)
            area = root * (self.length * whole - dt * here.w)
        if need.extra:
            # By where the step starts, in pieces shorter than any step: they do not change with its
            # length. Their places are beyond those of the nodes.
            place = jnp.round(self._fraction(start) * 2.0**_PLACE_BITS).astype(jnp.uint32)
            extra = normals(self.key, place, need.extra, dt.dtype, start=self.count)
        return Increment(root * (there.w - here.w), area, extra), there

    def _fraction(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Of the span, up to a time inside it."""
        theta = (t.astype(self.low.dtype) - self.low) / self.length
        return jnp.clip(jax.lax.stop_gradient(theta), 0.0, 1.0)

    def look(self, t: Float[Array, ""]) -> Values:
        """The path at a time inside the span."""
        theta = self._fraction(t)
        if self.table is None:
            root = _root(self.key, self.count, theta.dtype)
            piece, rest = _descend(self.key, root, theta, self.depth)
        else:
            place = theta * 2**_TABLE_DEPTH
            number = jnp.minimum(place.astype(jnp.int32), 2**_TABLE_DEPTH - 1)
            piece = jtu.tree_map(lambda x: x[number], self.table)
            rest = place - number.astype(place.dtype)
            piece, rest = _descend(self.key, piece, rest, self.depth - _TABLE_DEPTH)
        return _inside(piece, rest)


@partial(jax.jit, static_argnums=(1, 2))
def _table(key: UInt32[Array, " 2"], dim: int, dtype: Any) -> _Piece:
    """The pieces after the first halvings, in order, with a leading axis."""
    root = _root(key, dim, dtype)
    middles = (jnp.arange(2**_TABLE_DEPTH).astype(dtype) + 0.5) / 2**_TABLE_DEPTH
    return jax.vmap(lambda theta: _descend(key, root, theta, _TABLE_DEPTH)[0])(middles)


def _root(key: Array, dim: int, dtype: Any) -> _Piece:
    """The whole span."""
    zero = jnp.zeros(dim, dtype)
    draws = jax.vmap(lambda node: normal_pairs(key, node, dim, dtype))
    (z1, first), (z2, second) = draws(jnp.arange(2, dtype=jnp.uint32))
    start, one = Values(zero, zero, zero), jnp.ones((), dtype)
    return _Piece(jnp.ones((), jnp.uint32), one, start, z1, z2 / 12**0.5, (first, second))


def _descend(key: Array, piece: _Piece, rest: Array, levels: int) -> tuple[_Piece, Array]:
    """The piece, so many levels further down, that holds a fraction `rest` of this one, and the
    fraction of it where that lies."""

    def halve(_: Array, state: tuple[_Piece, Array]) -> tuple[_Piece, Array]:
        piece, rest = state
        rest = 2 * rest
        right = rest >= 1
        return _half(key, piece, right), jnp.where(right, rest - 1, rest)

    _, piece, rest = vary_alike((key, piece, rest))
    return jax.lax.fori_loop(0, levels, halve, (piece, rest))


def _half(key: Array, piece: _Piece, right: Array) -> _Piece:
    """The left or the right half of a piece."""
    size, (z1, z2) = piece.size, piece.draws
    root = jnp.sqrt(size)
    turn, shift = root / 4 * z1, root / 12**0.5 * z2
    bulge = 1.5 * piece.h + turn
    shared = 0.25 * piece.h - 0.5 * turn
    sign = jnp.where(right, -1.0, 1.0).astype(size.dtype)
    left_dw, left_h = 0.5 * piece.dw + bulge, shared + 0.5 * shift
    start, half = piece.start, 0.5 * size
    node = 2 * piece.node + right.astype(jnp.uint32)
    middle = start.moved(left_dw, half * (start.w + 0.5 * left_dw + left_h))
    return _Piece(
        node,
        half,
        Values(*(jnp.where(right, m, s) for m, s in zip(middle, start, strict=True))),
        0.5 * piece.dw + sign * bulge,
        shared + sign * 0.5 * shift,
        normal_pairs(key, node, piece.dw.shape[0], size.dtype),
    )


def _inside(piece: _Piece, theta: Array) -> Values:
    """The path at a fraction of the last piece, of the right mean and variance given its ends.

    For s in (0, 1) and a Brownian motion B on it with integral A, the regression of B(s) on B(1)
    and H = A(1) - B(1)/2 has the coefficients s and 6 s (1 - s), that of A(s) s**2/2 and
    3 s**2 - 2 s**3.
    """
    size, (z1, _) = piece.size, piece.draws
    both = theta * (1 - theta)
    spread = jnp.sqrt(size * both * (1 - 3 * both))
    w = theta * piece.dw + 6 * both * piece.h + spread * z1
    integral = theta**2 * (0.5 * piece.dw + (3 - 2 * theta) * piece.h)
    start = piece.start
    return start.moved(w, size * (theta * start.w + integral))
