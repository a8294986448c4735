"""Measured inputs inside a vector field: interpolation of data given at known times."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree


class _Interpolation(eqx.Module):
    """Values `ys` (a pytree with a leading time axis) at increasing times `ts`."""

    ts: Float[Array, " times"]
    ys: PyTree

    def __init__(self, ts: Float[Array, " times"], ys: PyTree) -> None:
        ts = jnp.asarray(ts)
        if ts.ndim != 1 or ts.shape[0] < 2:
            raise ValueError(f"ts must be at least two times in one dimension, got {ts.shape}.")
        for path, leaf in jtu.tree_leaves_with_path(ys):
            if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != ts.shape[0]:
                raise ValueError(
                    f"ys{jtu.keystr(path)} must have a leading axis of length {ts.shape[0]} like "
                    f"ts, got shape {jnp.shape(leaf)}."
                )
        self.ts = ts
        self.ys = jtu.tree_map(jnp.asarray, ys)

    def _place(self, t: Float[Array, ""]) -> tuple[Array, Array, Array]:
        """The interval that holds `t`, its length, and the fraction of it; held at both ends."""
        last = self.ts.shape[0] - 2
        t = jnp.clip(jnp.asarray(t, self.ts.dtype), self.ts[0], self.ts[-1])
        i = jnp.clip(jnp.searchsorted(self.ts, t, side="right") - 1, 0, last)
        dt = self.ts[i + 1] - self.ts[i]
        return i, dt, (t - self.ts[i]) / dt


class LinearInterpolation(_Interpolation):
    """Piecewise linear interpolation of measured values; before and after them, the nearest one.

    **Arguments:**

    - `ts`: increasing times, shape `(T,)`.
    - `ys`: values, a pytree of arrays of shape `(T, ...)`.

    **Raises:** `ValueError` if the shapes do not fit.

    It is a pytree: gradients flow to `ts`, `ys` and the time of evaluation. Land steps on the kinks
    with `tstops=ts` for full accuracy.

    !!! example
        ```python
        heating = dj.LinearInterpolation(ts, watts)
        prob = dj.ODEProblem(lambda u, p, t: p["input"](t) - u, u0, (0.0, 10.0), {"input": heating})
        ```
    """

    def __call__(self, t: Float[Array, ""]) -> PyTree:
        """The values at a scalar time `t`."""
        i, _, theta = self._place(t)

        def between(y: Array) -> Array:
            w = theta.astype(jnp.finfo(y.dtype).dtype)
            return (1 - w) * y[i] + w * y[i + 1]

        return jtu.tree_map(between, self.ys)


class CubicHermite(_Interpolation):
    """Cubic Hermite interpolation of measured values, with a continuous first derivative.

    Slopes are those of the parabola through three neighbouring values, so quadratics are exact.

    **Arguments:**

    - `ts`: increasing times, shape `(T,)`.
    - `ys`: values, a pytree of arrays of shape `(T, ...)`.
    - `slopes`: time derivatives, a pytree like `ys`; by default estimated from them.

    **Raises:** `ValueError` if the shapes do not fit.

    Source: Hairer, Norsett, Wanner, Solving ODEs I, equation II.6.7.

    !!! example
        `dj.CubicHermite(ts, ys)(0.3)`
    """

    slopes: PyTree

    def __init__(
        self, ts: Float[Array, " times"], ys: PyTree, slopes: PyTree | None = None
    ) -> None:
        super().__init__(ts, ys)
        if slopes is None:
            self.slopes = jtu.tree_map(lambda y: _parabola_slopes(self.ts, y), self.ys)
        else:
            self.slopes = jtu.tree_map(lambda _, s: jnp.asarray(s), self.ys, slopes)

    def __call__(self, t: Float[Array, ""]) -> PyTree:
        """The values at a scalar time `t`."""
        i, dt, theta = self._place(t)

        def between(y: Array, slope: Array) -> Array:
            dtype = jnp.finfo(y.dtype).dtype
            x, h = theta.astype(dtype), dt.astype(dtype)
            y0, y1, d0, d1 = y[i], y[i + 1], slope[i] * h, slope[i + 1] * h
            chord = y1 - y0
            curve = (1 - 2 * x) * chord + (x - 1) * d0 + x * d1
            return (1 - x) * y0 + x * y1 + x * (x - 1) * curve

        return jtu.tree_map(between, self.ys, self.slopes)


@partial(jax.jit, inline=True)
def _parabola_slopes(ts: Array, y: Array) -> Array:
    """Derivatives at `ts` of the parabola through each value and its neighbours."""
    column = (-1,) + (1,) * (y.ndim - 1)
    h = jnp.diff(ts).astype(jnp.finfo(y.dtype).dtype).reshape(column)
    chord = jnp.diff(y, axis=0) / h
    if y.shape[0] == 2:
        return jnp.concatenate([chord, chord])
    inner = (h[1:] * chord[:-1] + h[:-1] * chord[1:]) / (h[:-1] + h[1:])
    first = chord[:1] + (chord[:1] - inner[:1])
    last = chord[-1:] + (chord[-1:] - inner[-1:])
    return jnp.concatenate([first, inner, last])
