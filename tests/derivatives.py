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
    """Value, reverse and forward derivative of a solve against those of the closed form."""
    numbers = tuple(range(len(args)))

    def twice(*args: Any) -> tuple:
        value = ours(*args)
        return value, value

    reverse, value = jax.jit(jax.jacrev(twice, argnums=numbers, has_aux=True))(*args)
    exact = jax.jit(exact)
    close(value, exact(*args), 1e-8, 1e-9)
    wanted = jax.jit(jax.jacfwd(exact, argnums=numbers))(*args)
    close(reverse, wanted, 1e-8, 1e-9)
    close(jax.jit(jax.jacfwd(ours, argnums=numbers))(*args), wanted, 1e-8, 1e-9)
