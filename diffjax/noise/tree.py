"""A Brownian motion whose values follow from a key and the time alone.

The span is halved again and again; each half's increment and integral follow from those of the
whole and two normal numbers that are named by the node. So the path is the same for any sequence of
steps, at any tolerance, forwards and backwards, and nothing of it has to be stored.

Sources: Levy's construction with the integral beside the value, Foster, Lyons, Oberhauser, An
optimal polynomial approximation of Brownian motion, SIAM J. Numer. Anal. 58 (2020), theorem 5.4;
as a virtual tree Li, Wong, Chen, Duvenaud, Scalable gradients for stochastic differential
equations, AISTATS 2020; Jelincic, Foster, Kidger, arXiv 2405.06464.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from .base import Increment, Need, NoiseProcess
from .random import key_words, normal_pairs

# Halvings of the span, so that the shortest piece is 2.4e-7 of it.
DEPTH = 22


class Values(NamedTuple):
    """The path at a time: its value, and its integral from the start of the span."""

    w: Float[Array, " dim"]
    integral: Float[Array, " dim"]


class _Piece(NamedTuple):
    """A dyadic piece of the span: its number, the path at its start, its own increment, and by how
    much its mean lies above that of the chord (H, the space-time Levy area)."""

    node: UInt32[Array, ""]
    start: Values
    dw: Float[Array, " dim"]
    h: Float[Array, " dim"]


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
    count: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)

    def __init__(self, t0: Any, t1: Any, dim: int, key: Array, *, depth: int = DEPTH) -> None:
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim must be a positive integer, got {dim!r}.")
        if not isinstance(depth, int) or not 1 <= depth <= 30:
            raise ValueError(f"depth must be an integer from 1 to 30, got {depth!r}.")
        t0, t1 = (jnp.asarray(t, jnp.result_type(float, t0, t1)) for t in (t0, t1))
        self.low, self.length = jnp.minimum(t0, t1), jnp.abs(t1 - t0)
        self.key, self.count, self.depth = key_words(key), dim, depth

    @property
    def dim(self) -> int:
        return self.count

    @property
    def smallest(self) -> Float[Array, ""]:
        return self.length * 0.5**self.depth

    def at(self, t: Array) -> Float[Array, " dim"]:
        return self.values(t).w

    def over(self, number: Array, start: Array, dt: Array, need: Need) -> Increment:
        # Both ends side by side, in one descent.
        both = jax.vmap(self.values)(jnp.stack([start, start + dt]))
        w, integral = both.w, both.integral
        area = integral[1] - integral[0] - dt * w[0] if need.area else None
        return Increment(w[1] - w[0], area)

    def values(self, t: Float[Array, ""]) -> Values:
        """The path and its integral at a time inside the span."""
        dtype = self.low.dtype
        theta = jax.lax.stop_gradient((t.astype(dtype) - self.low) / self.length)
        zero = jnp.zeros(self.count, dtype)
        z1, z2 = normal_pairs(self.key, jnp.zeros((), jnp.uint32), self.count, dtype)
        # In units of the span, of which the piece is 2**-level.
        root = _Piece(jnp.ones((), jnp.uint32), Values(zero, zero), z1, z2 / 12**0.5)

        def halve(level: Array, state: tuple[_Piece, Array, Array]) -> tuple[_Piece, Array, Array]:
            piece, rest, size = state
            rest = 2 * rest
            right = rest >= 1
            piece = self._half(piece, size, right)
            return piece, jnp.where(right, rest - 1, rest), 0.5 * size

        start = (root, jnp.clip(theta, 0.0, 1.0), jnp.ones((), dtype))
        piece, rest, size = jax.lax.fori_loop(0, self.depth, halve, start)
        inside = self._inside(piece, size, rest)
        root_length = jnp.sqrt(self.length)
        return Values(root_length * inside.w, root_length * self.length * inside.integral)

    def _half(self, piece: _Piece, size: Array, right: Array) -> _Piece:
        """The left or the right half of a piece."""
        z1, z2 = normal_pairs(self.key, piece.node, self.count, size.dtype)
        root = jnp.sqrt(size)
        turn, shift = root / 4 * z1, root / 12**0.5 * z2
        bulge = 1.5 * piece.h + turn
        left_dw, right_dw = 0.5 * piece.dw + bulge, 0.5 * piece.dw - bulge
        shared = 0.25 * piece.h - 0.5 * turn
        left_h, right_h = shared + 0.5 * shift, shared - 0.5 * shift
        half = 0.5 * size
        middle = Values(
            piece.start.w + left_dw,
            piece.start.integral + half * (piece.start.w + 0.5 * left_dw + left_h),
        )
        return _Piece(
            2 * piece.node + right.astype(jnp.uint32),
            Values(*(jnp.where(right, m, s) for m, s in zip(middle, piece.start, strict=True))),
            jnp.where(right, right_dw, left_dw),
            jnp.where(right, right_h, left_h),
        )

    def _inside(self, piece: _Piece, size: Array, theta: Array) -> Values:
        """The path at a fraction of the last piece, of the right mean and variance given its ends.

        For s in (0, 1) and a Brownian motion B on it with integral A, the regression of B(s) on
        B(1) and H = A(1) - B(1)/2 has the coefficients s and 6 s (1 - s), that of A(s) s**2/2 and
        3 s**2 - 2 s**3.
        """
        z1, _ = normal_pairs(self.key, piece.node, self.count, size.dtype)
        both = theta * (1 - theta)
        spread = jnp.sqrt(size * both * (1 - 3 * both))
        w = theta * piece.dw + 6 * both * piece.h + spread * z1
        integral = theta**2 * (0.5 * piece.dw + (3 - 2 * theta) * piece.h)
        start = piece.start
        return Values(start.w + w, start.integral + size * (theta * start.w + integral))
