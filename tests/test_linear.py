"""Small dense linear algebra against NumPy: values, derivatives, batches, precision."""

from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.linear.coordinates import Coordinates
from diffjax.linear.dense import BY_NUMBERS, INVERTED, factorize
from diffjax.linear.jacobian import value_and_jacobian

# By numbers, by the loop, by LAPACK.
SIZES = pytest.mark.parametrize("n", [1, 2, 3, BY_NUMBERS, BY_NUMBERS + 1, 10, INVERTED + 1])


@jax.jit
def solve(matrix: jax.Array, b: jax.Array) -> jax.Array:
    return factorize(matrix)(b)


def draw(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix whose rows come in an order that elimination without pivoting does badly on."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, n)) * 10.0 ** rng.uniform(-6, 6, size=(n, 1))
    np.fill_diagonal(matrix, np.diag(matrix) * 1e-9)
    return (matrix if n > 1 else matrix + 1.0), rng.normal(size=n)


@SIZES
def test_solve(n: int) -> None:
    """As accurate as LAPACK, within the conditioning of each row."""
    for seed in range(5):
        matrix, b = draw(n, seed)
        x, exact = (
            np.asarray(solve(jnp.asarray(matrix), jnp.asarray(b))),
            np.linalg.solve(matrix, b),
        )
        # Skeel's condition number does not see the scale of the rows.
        skeel = np.max(np.abs(np.linalg.inv(matrix)) @ np.abs(matrix) @ np.abs(exact))
        assert np.max(np.abs(x - exact)) <= 1e-14 * n * skeel


def test_a_zero_pivot() -> None:
    matrix = jnp.array([[0.0, 1.0], [2.0, 0.0]])
    np.testing.assert_array_equal(solve(matrix, jnp.array([3.0, 4.0])), [2.0, 3.0])


@pytest.mark.parametrize("n", [2, 5, INVERTED + 1])
def test_a_singular_matrix_gives_nothing_finite(n: int) -> None:
    """A step with it is rejected; a finite number would look right."""
    assert not np.any(np.isfinite(solve(jnp.zeros((n, n)), jnp.ones(n))))


@SIZES
def test_under_vmap(n: int) -> None:
    """Each lane by itself: one singular matrix harms no other."""
    pairs = [draw(n, seed) for seed in range(4)]
    matrices = np.stack([m for m, _ in pairs])
    vectors = np.stack([b for _, b in pairs])
    matrices[2] = 0.0
    x = np.asarray(jax.jit(jax.vmap(solve))(matrices, vectors))
    assert not np.any(np.isfinite(x[2]))
    for i in (0, 1, 3):
        exact = np.linalg.solve(matrices[i], vectors[i])
        skeel = np.max(np.abs(np.linalg.inv(matrices[i])) @ np.abs(matrices[i]) @ np.abs(exact))
        assert np.max(np.abs(x[i] - exact)) <= 1e-14 * n * skeel


@SIZES
def test_derivatives(n: int) -> None:
    """x = A^-1 b has dx = A^-1 (db - dA x), and cotangents A^-T g and -(A^-T g) x^T."""
    rng = np.random.default_rng(1)
    matrix, b = rng.normal(size=(n, n)) + n * np.eye(n), rng.normal(size=n)
    matrix_dot, b_dot, g = rng.normal(size=(n, n)), rng.normal(size=n), rng.normal(size=n)
    x = np.linalg.solve(matrix, b)
    _, x_dot = jax.jvp(solve, (matrix, b), (matrix_dot, b_dot))
    np.testing.assert_allclose(x_dot, np.linalg.solve(matrix, b_dot - matrix_dot @ x), rtol=1e-11)
    value, pull = jax.vjp(solve, jnp.asarray(matrix), jnp.asarray(b))
    np.testing.assert_allclose(value, x, rtol=1e-11)
    matrix_bar, b_bar = pull(jnp.asarray(g))
    y = np.linalg.solve(matrix.T, g)
    np.testing.assert_allclose(b_bar, y, rtol=1e-11)
    np.testing.assert_allclose(matrix_bar, -np.outer(y, x), rtol=1e-10, atol=1e-13)


@SIZES
def test_second_derivative(n: int) -> None:
    """Guards against factors that pass for constants in a transposed solve."""

    def first(a: jax.Array) -> jax.Array:
        return solve(a * jnp.eye(n), jnp.ones(n))[0]

    # It is 1 / a.
    for second in (jax.jacfwd(jax.grad(first)), jax.grad(jax.grad(first))):
        np.testing.assert_allclose(jax.jit(second)(2.0), 2 / 2.0**3, rtol=1e-14)


def divisions(jaxpr: Any) -> int:
    """How many a program makes, those of the programs it calls included."""
    return sum(
        (eqn.primitive.name == "div") + sum(map(divisions, jex.jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


def test_nothing_differentiates_the_elimination() -> None:
    """Guards against a gradient whose cost is that of the factorisation over again."""
    primal = jax.make_jaxpr(solve)(jnp.eye(3), jnp.ones(3))
    gradient = jax.make_jaxpr(jax.grad(lambda a, b: jnp.sum(solve(a, b))))(jnp.eye(3), jnp.ones(3))
    # Fewer, since nobody asks for the value; a second elimination would be twice as many.
    assert 0 < divisions(gradient.jaxpr) <= divisions(primal.jaxpr)


def test_single_precision_and_complex() -> None:
    matrix, b = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([1.0, -1.0])
    x = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32))
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-5)
    matrix, b = matrix + 1j * np.eye(2), b * (1 + 2j)
    np.testing.assert_allclose(
        solve(jnp.asarray(matrix), jnp.asarray(b)), np.linalg.solve(matrix, b)
    )


def test_jacobian() -> None:
    value, jacobian = value_and_jacobian(
        lambda u: jnp.stack([u[0] * u[1], jnp.sin(u[0])]), jnp.array([2.0, 3.0])
    )
    np.testing.assert_allclose(value, [6.0, np.sin(2.0)])
    np.testing.assert_allclose(jacobian, [[3.0, 2.0], [np.cos(2.0), 0.0]])


@pytest.mark.parametrize(
    "state",
    [
        jnp.arange(3.0),
        jnp.asarray(2.0),
        jnp.arange(6.0).reshape(2, 3),
        jnp.array([1j, 2.0 - 1j]),
        (jnp.arange(2.0, dtype=jnp.float32), jnp.array([1.0, 1j, 2.0])),
    ],
    ids=["vector", "number", "matrix", "complex", "two precisions"],
)
def test_coordinates(state: object) -> None:
    """There and back; as many real numbers as the state has."""
    coordinates = Coordinates(state)
    vector = coordinates.flatten(state)
    reals = sum(x.size * (2 if jnp.iscomplexobj(x) else 1) for x in jax.tree.leaves(state))
    assert vector.shape == (coordinates.size,) == (reals,)
    assert vector.dtype == jnp.float64
    back = coordinates.unflatten(vector)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("n", [16, 24])
def test_gradient_of_a_step_of_every_size(n: int) -> None:
    """Guards against operations on whole matrices that XLA's emitter of functions refuses."""
    prob = dj.ODEProblem(lambda u, p, t: -p * u**3, jnp.ones(n), (0.0, 1.0), jnp.asarray(0.5))

    def mean(p: jax.Array) -> jax.Array:
        return jnp.mean(dj.solve(prob, dj.Rosenbrock23(), p=p, steps=50).u_end)

    # u = (1 + 2 p)^(-1/2)
    np.testing.assert_allclose(jax.jit(jax.grad(mean))(jnp.asarray(0.5)), -(2**-1.5), rtol=1e-3)
