"""Measured inputs inside a vector field."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

TS = jnp.array([0.0, 0.4, 1.0, 1.5, 3.0])


@pytest.mark.parametrize(
    ("make", "exact"),
    [
        (dj.LinearInterpolation, lambda t: 2.0 - 3.0 * t),
        (dj.CubicHermite, lambda t: 2.0 - 3.0 * t + 0.5 * t**2),
    ],
    ids=["linear", "cubic"],
)
def test_polynomials_are_exact(
    make: Callable[..., Any], exact: Callable[[jax.Array], jax.Array]
) -> None:
    """Uneven times; a line, and for the cubic a parabola, come back to rounding."""
    interpolation = make(TS, {"a": exact(TS), "b": jnp.stack([TS, exact(TS)], axis=1)})
    t = jnp.linspace(0.0, 3.0, 41)
    got = jax.jit(jax.vmap(interpolation))(t)
    np.testing.assert_allclose(got["a"], exact(t), rtol=0, atol=1e-14)
    np.testing.assert_allclose(got["b"][:, 1], exact(t), rtol=0, atol=1e-14)


def test_held_outside() -> None:
    held = dj.LinearInterpolation(TS, TS**2)
    assert float(held(jnp.array(-1.0))) == 0.0
    assert float(held(jnp.array(9.0))) == 9.0


def test_given_slopes() -> None:
    """Values and slopes of a cubic determine it."""
    cubic = dj.CubicHermite(TS, TS**3, 3 * TS**2)
    t = jnp.linspace(0.0, 3.0, 17)
    np.testing.assert_allclose(jax.jit(jax.vmap(cubic))(t), t**3, rtol=1e-13, atol=1e-13)


def test_drives_an_equation_and_has_gradients() -> None:
    """u' = input(t), piecewise linear: u(3) is the trapezoidal rule, whose weights are dt."""

    def total(ys: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(
            lambda u, p, t: p(t)[None], jnp.zeros(1), (0.0, 3.0), dj.LinearInterpolation(TS, ys)
        )
        return dj.solve(prob, dj.Tsit5(), tstops=TS[1:-1], rtol=1e-8).u[-1, 0]

    ys = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0])
    dt = np.diff(TS)
    weights = np.concatenate([dt, [0.0]]) / 2 + np.concatenate([[0.0], dt]) / 2
    np.testing.assert_allclose(total(ys), weights @ np.asarray(ys), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(total)(ys), weights, rtol=1e-12, atol=1e-14)


def test_float32_stays_float32() -> None:
    single = dj.CubicHermite(TS.astype(jnp.float32), (TS**2).astype(jnp.float32))
    assert single(jnp.array(0.3, jnp.float32)).dtype == jnp.float32


def test_bad_data_is_named() -> None:
    with pytest.raises(ValueError, match="ts must be at least two"):
        dj.LinearInterpolation(jnp.array([1.0]), jnp.array([1.0]))
    with pytest.raises(ValueError, match="leading axis of length 5"):
        dj.LinearInterpolation(TS, jnp.zeros(4))
