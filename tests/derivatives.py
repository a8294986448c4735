"""Comparing derivatives of solves with closed forms and differences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import diffjax as dj

ADJOINTS = {
    "tape": dj.DiscreteAdjoint(),
    "checkpoints": dj.DiscreteAdjoint(checkpoints=20),
    "forward": dj.ForwardMode(),
}
EVERY_ADJOINT = pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS.keys())


def close(got: Any, wanted: Any, rtol: float = 1e-6, atol: float = 0.0) -> None:
    jtu.tree_map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol, atol),
        got,
        wanted,
    )


def differences(f: Callable[[np.ndarray], Any], x: Any, step: float = 1e-3) -> np.ndarray:
    """The derivative of f by central differences of order 6; f may return an array."""
    x = np.asarray(x, float)
    columns = []
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = step

        def central(k: int, e: np.ndarray = e) -> np.ndarray:
            return np.asarray(f(jnp.asarray(x + k * e))) - np.asarray(f(jnp.asarray(x - k * e)))

        columns.append((45 * central(1) - 9 * central(2) + central(3)) / (60 * step))
    return np.stack(columns, axis=-1).reshape(columns[0].shape + x.shape)


# u' = p cos(t) u, whose derivatives with respect to everything are known.
OPTIONS: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}


def growth(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    """u' = p cos(t) u, so that u(t) = u0 exp(p (sin t - sin t0))."""
    return p * jnp.cos(t) * u


def grown(u0: Any, p: Any, t0: Any, t: Any) -> jax.Array:
    return u0 * jnp.exp(p * (jnp.sin(t) - jnp.sin(t0)))


ARGS = tuple(map(jnp.asarray, (1.3, 0.7, 0.2, 2.9)))


def solve_growth(u0: Any, p: Any, t0: Any, t1: Any, adjoint: Any = None, **options: Any) -> Any:
    prob = dj.ODEProblem(growth, u0, (t0, t1), p)
    # A method with stages of its own for its extension.
    return dj.solve(prob, **{"alg": dj.BS5(), "adjoint": adjoint, **OPTIONS, **options})


def compare(ours: Callable, exact: Callable, args: tuple = ARGS) -> None:
    """Value and derivatives of a solve against those of the closed form: all of them forwards, and
    backwards that of a sum in which every output has a weight of its own, which is one pass."""
    numbers = tuple(range(len(args)))

    def backwards(f: Callable) -> tuple:
        def weighted(*args: Any) -> tuple[jax.Array, jax.Array]:
            value = f(*args)
            weights = jnp.cos(jnp.arange(float(value.size))).reshape(value.shape)
            return jnp.sum(weights * value), value

        return jax.jit(jax.grad(weighted, argnums=numbers, has_aux=True))(*args)

    def forwards(f: Callable) -> tuple:
        return jax.jit(jax.jacfwd(f, argnums=numbers))(*args)

    close(backwards(ours), backwards(exact), 1e-8, 1e-9)
    close(forwards(ours), forwards(exact), 1e-8, 1e-9)
