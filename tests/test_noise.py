"""The paths that drive stochastic equations have the law of a Brownian motion."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffjax as dj
from diffjax.noise.base import Need
from diffjax.noise.random import normals
from diffjax.noise.steps import StepNoise

KEYS = jax.random.split(jax.random.key(11), 10_000)


def _within(values: np.ndarray, wanted: np.ndarray, errors: float = 4.5) -> None:
    """Sample covariances are the wanted ones within some of their standard errors.

    Among twenty numbers one beyond 4.5 comes up once in ten thousand keys.
    """
    got = np.cov(values, rowvar=False)
    variances = np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2
    assert np.all(np.abs(got - wanted) <= errors * np.sqrt(variances / len(values)))
    means = np.abs(values.mean(axis=0))
    assert np.all(means <= errors * np.sqrt(np.diag(wanted) / len(values)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal_numbers(dtype: Any) -> None:
    words = jax.random.key_data(jax.random.key(3))
    draw = jax.jit(jax.vmap(lambda number: normals(words, number, 5, dtype)))
    z = np.asarray(draw(jnp.arange(20_000)))
    assert z.dtype == dtype
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    _within(z.astype(float), np.eye(5))


def test_increments_by_number() -> None:
    """dW, the integral over the step, and further numbers, all with their covariances."""
    dt = 0.25

    def one(words: jax.Array) -> jax.Array:
        noise = StepNoise(words, 1)
        given, _ = noise.over(
            jnp.asarray(7), jnp.asarray(0.0), jnp.asarray(dt), Need(True, 1), None
        )
        assert given.area is not None
        assert given.extra is not None
        return jnp.concatenate([given.dw, given.area, given.extra])

    values = jax.jit(jax.vmap(one))(jax.vmap(jax.random.key_data)(KEYS))
    wanted = np.array([[dt, dt**2 / 2, 0.0], [dt**2 / 2, dt**3 / 3, 0.0], [0.0, 0.0, 1.0]])
    _within(np.asarray(values), wanted)


def test_a_tree_is_a_brownian_motion() -> None:
    """Values and integrals at times on and off the dyadic ones, on a span that is not (0, 1)."""
    start, length = 1.0, 2.0
    times = start + length * np.array([0.25, 0.3, 1.0])

    def one(key: jax.Array) -> jax.Array:
        tree = dj.noise.VirtualBrownianTree(start, start + length, 1, key)
        seen = jax.vmap(tree.look)(jnp.asarray(times))
        return jnp.sqrt(length) * jnp.concatenate([seen.w[:, 0], length * seen.integral[:, 0]])

    values = np.asarray(jax.jit(jax.vmap(one))(KEYS))
    s = times - start
    a, b = np.minimum.outer(s, s), np.maximum.outer(s, s)
    # Of the integrals: int_0^a int_0^b min(x, y); of W(s) with the integral to r: by cases.
    both = a**2 * (3 * b - a) / 6
    mixed = np.where(s[:, None] <= s, s[:, None] * s - s[:, None] ** 2 / 2, s[None, :] ** 2 / 2)
    _within(values, np.block([[a, mixed], [mixed.T, both]]))


def test_a_path_does_not_depend_on_who_looks() -> None:
    """Increments and integrals over two steps make those over both; a deeper tree and a batch of
    times agree."""
    need, number = Need(area=True), jnp.asarray(0)

    @jax.jit
    def looked(key: jax.Array) -> tuple:
        tree = dj.noise.VirtualBrownianTree(0.0, 3.0, 2, key)
        deeper = dj.noise.VirtualBrownianTree(0.0, 3.0, 2, key, depth=26)

        def over(a: jax.Array, b: jax.Array) -> Any:
            return tree.over(number, a, b - a, need, tree.look(a))[0]

        spans = jnp.array([0.4, 1.1, 0.4]), jnp.array([1.1, 2.0, 2.0])
        several = tree(jnp.array([1.1, 2.0]))
        return jax.vmap(over)(*spans), several, tree(2.0), deeper(1.1)

    pieces, (early, late), alone, deeper = looked(jax.random.key(5))
    first, second, both = pieces.dw
    np.testing.assert_allclose(first + second, both, atol=1e-12)
    joined = pieces.area[0] + pieces.area[1] + 0.9 * first
    np.testing.assert_allclose(joined, pieces.area[2], atol=1e-12)
    np.testing.assert_allclose(late, alone, atol=1e-14)
    # The pieces of the shallow tree are so short that the path moves this little in them.
    np.testing.assert_allclose(deeper, early, atol=5 * np.sqrt(3.0 * 2.0**-20))


def test_integrals_of_short_steps_in_single_precision() -> None:
    """They are not lost in the rounding of the integral from the start of the span."""
    dt, starts = 2.0**-15, np.linspace(0.25, 0.75, 64, endpoint=False)

    def areas(dtype: Any) -> jax.Array:
        tree = dj.noise.VirtualBrownianTree(dtype(0), dtype(1), 1, jax.random.key(2))

        def one(t: jax.Array) -> jax.Array:
            given, _ = tree.over(jnp.asarray(0), t, dtype(dt), Need(area=True), tree.look(t))
            assert given.area is not None
            return given.area[0]

        return jax.vmap(one)(jnp.asarray(starts, dtype)).astype(float)

    # The two see nearly the same path: their normal numbers are made of the same bits.
    gap = jax.jit(lambda: areas(np.float32) - areas(np.float64))()
    assert np.sqrt(np.mean(gap**2)) < 0.1 * np.sqrt(dt**3 / 3)


def test_coloured_and_correlated_noise() -> None:
    """An Ornstein-Uhlenbeck process has its exact mean and covariance, mixed noises theirs."""
    theta, mu, sigma, x0 = 1.5, 0.2, 0.4, 1.0
    times = np.array([0.5, 1.3])
    factor = np.array([[1.0, 0.0], [0.6, 0.8]])

    def one(key: jax.Array) -> jax.Array:
        process = dj.noise.OrnsteinUhlenbeck(theta, mu, sigma, 0.0, 2.0, 1, key, x0=x0)
        tree = dj.noise.VirtualBrownianTree(0.0, 2.0, 2, key)
        mixed = dj.noise.Correlated(tree, jnp.asarray(factor))
        decay = jnp.exp(-theta * jnp.asarray(times))
        return jnp.concatenate([process(times)[:, 0] - mu - (x0 - mu) * decay, mixed(2.0)])

    values = np.asarray(jax.jit(jax.vmap(one))(KEYS))
    gap, total = abs(times[:, None] - times), times[:, None] + times
    ou = sigma**2 / (2 * theta) * (np.exp(-theta * gap) - np.exp(-theta * total))
    _within(values[:, :2], ou)
    _within(values[:, 2:], 2.0 * factor @ factor.T)


def test_a_grid_is_the_path_that_was_given() -> None:
    t, W = np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, -1.0])
    path = dj.noise.NoiseGrid(t, W)
    np.testing.assert_allclose(path(np.array([0.25, 0.5, 0.75]))[:, 0], [0.5, 1.0, 0.0])
    prob = dj.SDEProblem(
        lambda u, p, t: p * u, lambda u, p, t: u, jnp.array([1.0]), (0.0, 1.0), 0.5
    )
    sol = dj.solve(prob, dj.EM(), dt=0.5, path=path, saveat=0.5)
    np.testing.assert_allclose(sol.u[:, 0], [1.0, 2.25, 2.25 * (1 + 0.25 - 2.0)])
    # u1 = u0 (1 + p/2 + W1 - W0), u2 = u1 (1 + p/2 + W2 - W1): a derivative by the path itself.
    end = jax.grad(
        lambda W: dj.solve(prob, dj.EM(), dt=0.5, path=dj.noise.NoiseGrid(t, W)).u[-1, 0]
    )
    np.testing.assert_allclose(end(jnp.asarray(W)), [0.75, -0.75 - 2.25, 2.25], rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dj.noise.NoiseGrid(np.arange(3.0), np.zeros(2)), "W must have a row"),
        (lambda: dj.noise.NoiseGrid(np.array([0.0, 0.0]), np.zeros(2)), "t must increase"),
        (lambda: dj.noise.NoiseGrid(np.arange(2.0), np.zeros(2), np.zeros((2, 2))), "Z must have"),
        (lambda: dj.noise.VirtualBrownianTree(0.0, 1.0, 0, KEYS[0]), "dim must be"),
        (lambda: dj.noise.VirtualBrownianTree(0.0, 1.0, 1, KEYS[0], depth=2), "depth must be"),
        (
            lambda: dj.noise.Correlated(
                dj.noise.VirtualBrownianTree(0.0, 1.0, 2, KEYS[0]), jnp.eye(3)
            ),
            "factor must have",
        ),
    ],
)
def test_bad_paths_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
