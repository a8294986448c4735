"""A path that the user gives."""

from typing import Any

import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .base import Increment, Need, NoiseProcess


class NoiseGrid(NoiseProcess):
    """A path given by its values at some times.

    For solves with fixed steps that end on these times; between them the path is taken for a line,
    which has less variance than a Brownian motion. Derivatives flow to `W` and `Z`.

    **Arguments:**

    - `t`: times, increasing, of shape (n,); they must cover the span of the solve.
    - `W`: the values, of shape (n, dim), or (n,) for one noise. For diagonal noise `dim` is the
        number of elements of the state, and more axes are those of the state.
    - `Z`: an independent second path in the same shape. Methods that need the integral of W over a
        step take it to be dt*(dW + dZ/sqrt(3))/2.

    **Raises:** `ValueError` for shapes that do not fit, or times that do not increase.

    !!! example
        `dj.solve(prob, dj.EM(), dt=0.01, path=dj.noise.NoiseGrid(t, W))`
    """

    t: Float[Array, " n"]
    W: Float[Array, "n dim"]
    Z: Float[Array, "n dim"] | None

    def __init__(self, t: Any, W: Any, Z: Any = None) -> None:
        self.t, self.W = jnp.asarray(t), _rows("W", W, t)
        self.Z = None if Z is None else _rows("Z", Z, t)
        if self.Z is not None and self.Z.shape != self.W.shape:
            raise ValueError(f"Z must have the shape of W, {self.W.shape}, got {self.Z.shape}.")
        known = not isinstance(self.t, jax.core.Tracer)
        if known and not np.all(np.diff(np.asarray(self.t)) > 0):
            raise ValueError("t must increase; give the path from its earliest to its last time.")

    @property
    def anywhere(self) -> bool:
        return False

    @property
    def has_area(self) -> bool:
        return self.Z is not None

    @property
    def dim(self) -> int:
        return self.W.shape[-1]

    def at(self, t: Array) -> Float[Array, " dim"]:
        return self._value(self.W, t)

    def _value(self, rows: Array, t: Array) -> Float[Array, " dim"]:
        times = self.t.astype(t.dtype)
        k = jnp.clip(jnp.searchsorted(times, t, side="right") - 1, 0, times.shape[0] - 2)
        theta = ((t - times[k]) / (times[k + 1] - times[k])).astype(rows.dtype)
        return rows[k] + theta * (rows[k + 1] - rows[k])

    def over(
        self, number: Array, start: Array, dt: Array, need: Need, here: PyTree
    ) -> tuple[Increment, PyTree]:
        dw = (self._value(self.W, start + dt) - self._value(self.W, start)).astype(dt.dtype)
        if not need.area:
            return Increment(dw), None
        assert self.Z is not None
        dz = (self._value(self.Z, start + dt) - self._value(self.Z, start)).astype(dt.dtype)
        return Increment(dw, dt * (dw + dz / 3**0.5) / 2), None


def _rows(name: str, values: Any, t: Any) -> Array:
    rows = jnp.asarray(values)
    if jnp.ndim(t) != 1 or rows.ndim < 1 or rows.shape[0] != jnp.shape(t)[0] or len(rows) < 2:
        raise ValueError(
            f"{name} must have a row for each of at least two times: got {name} of shape "
            f"{rows.shape} and t of shape {jnp.shape(t)}."
        )
    return rows.reshape(rows.shape[0], -1)
