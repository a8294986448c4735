"""The stochastic layers: each is a solve of the problem it stands for, and closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import diffjax as dj

SPAN = (0.0, 1.0)
KEY = jax.random.key(3)
X = jnp.array([1.0, -0.5])
TIMES = jnp.array([0.0, 0.5, 1.0])
OPTIONS = {"saveat": TIMES, "steps": 4}


class Columns(eqx.Module):
    """A diffusion with three noises."""

    mlp: eqx.nn.MLP

    def __call__(self, u):
        return 0.3 * self.mlp(u).reshape(2, 3)


def networks(kind, dtype=jnp.float64):
    first, second = jax.random.split(jax.random.key(0))
    drift = eqx.nn.MLP(2, 2, 4, 1, activation=jnp.tanh, key=first)
    if kind == "general":
        diffusion = Columns(eqx.nn.MLP(2, 6, 4, 1, activation=jnp.tanh, key=second))
    else:
        diffusion = eqx.nn.Linear(2, 2, key=second)
    both = drift, diffusion
    return jtu.tree_map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, both)


LAYERS = {"diagonal": dj.neural.NeuralDSDE, "general": dj.neural.NeuralSDE}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_layer_and_its_gradient_are_those_of_a_solve(kind):
    layer = LAYERS[kind](*networks(kind), SPAN, **OPTIONS)

    def of_layer(layer, x):
        u = layer(x, key=KEY)
        return jnp.sum(u**2), u

    def by_hand(networks, x):
        drift, diffusion = networks
        prob = dj.SDEProblem(
            lambda u, p, t: drift(u), lambda u, p, t: diffusion(u), x, SPAN, noise=kind
        )
        u = dj.solve(prob, key=KEY, **OPTIONS).u
        return jnp.sum(u**2), u

    gradient, u = eqx.filter_jit(eqx.filter_grad(of_layer, has_aux=True))(layer, X)
    expected, v = eqx.filter_jit(eqx.filter_grad(by_hand, has_aux=True))(networks(kind), X)
    assert u.shape == (3, 2)
    np.testing.assert_allclose(u, v, rtol=1e-12)
    got = eqx.filter((gradient.drift, gradient.diffusion), eqx.is_array)
    for g, e in zip(*map(jtu.tree_leaves, (got, expected)), strict=True):
        assert np.all(np.isfinite(g))
        assert np.any(g != 0)
        np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-12)
    # Only weights are trainable, not the save times.
    trained = eqx.filter(layer, eqx.is_inexact_array)
    assert len(jtu.tree_leaves(trained)) == len(jtu.tree_leaves(got))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_vmapped_sequential_is_a_loop_over_it(kind):
    """In single precision, each input with a key of its own."""
    layer = LAYERS[kind](*networks(kind, jnp.float32), SPAN, dj.EM(), steps=4)
    chain = eqx.nn.Sequential([eqx.nn.Lambda(jnp.tanh), layer, eqx.nn.Lambda(jnp.exp)])
    batch, keys = jnp.stack([X, X, -X]).astype(jnp.float32), jax.random.split(KEY, 3)

    def one(x, key):
        return chain(x, key=key)

    out = jax.jit(jax.vmap(one))(batch, keys)
    assert out.shape == (3, 2)
    assert out.dtype == jnp.float32
    assert np.all(out[0] != out[1])
    np.testing.assert_allclose(out, [one(*row) for row in zip(batch, keys, strict=True)], rtol=1e-5)
    sol = layer.solve(batch[0], key=KEY)
    assert isinstance(sol, dj.Solution)
    np.testing.assert_array_equal(layer(batch[0], key=KEY), sol.u[-1])


def test_geometric_brownian_motion_and_its_derivative():
    """u = x exp((a - m^2/2) t + m W): for linear networks the layer is that, by Ito's formula."""
    path = dj.noise.VirtualBrownianTree(*SPAN, dim=2, key=KEY)
    a, mp = 0.5, jnp.array([0.4, 0.8])

    def end(mp):
        options = {"path": path, "rtol": 1e-5, "atol": 1e-5}
        return dj.neural.neural_dmsde(lambda u: a * u, X, mp, SPAN, **options)

    u, slope = jax.jvp(end, (mp,), (jnp.ones(2),))
    w = path(1.0)
    expected = X * jnp.exp(a - mp**2 / 2 + mp * w)
    np.testing.assert_allclose(u, expected, rtol=2e-3)
    np.testing.assert_allclose(slope, expected * (w - mp), rtol=1e-2, atol=1e-2)


def test_pytrees_of_networks_that_take_the_time():
    """du = t dt + C dW by Euler's method is x + (1 - 1/n)/2 + C W at time 1, after n steps."""
    grid = jnp.linspace(0.0, 1.0, 5)
    path = dj.noise.NoiseGrid(grid, jax.random.normal(KEY, (5, 2)))
    x = {"a": X, "b": jnp.array(2.0)}
    columns = {"a": jnp.array([[1.0, 2.0], [0.5, -1.0]]), "b": jnp.array([1.0, 1.0])}
    layer = dj.neural.NeuralSDE(
        lambda u, t: jtu.tree_map(lambda x: t * jnp.ones_like(x), u),
        lambda u, t: columns,
        SPAN,
        dj.EM(),
        time_dependent=True,
        steps=4,
    )
    w = path.W[-1] - path.W[0]
    expected = jtu.tree_map(lambda x, c: x + 0.375 + c @ w, x, columns)
    jtu.tree_map(
        lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-12), layer(x, path=path), expected
    )


def test_bad_arguments_are_named():
    drift, diffusion = networks("diagonal")
    with pytest.raises(TypeError, match="drift must be callable"):
        dj.neural.NeuralDSDE(X, diffusion, SPAN)
    with pytest.raises(TypeError, match="diffusion must be callable"):
        dj.neural.NeuralSDE(drift, X, SPAN)
    with pytest.raises(TypeError, match=r"give it to the call: layer\(x, key="):
        dj.neural.NeuralSDE(drift, diffusion, SPAN, key=KEY)
    with pytest.raises(ValueError, match="key="):
        dj.neural.NeuralDSDE(drift, diffusion, SPAN)(X)
    with pytest.raises(ValueError, match=r"mp of shape \(3,\) for x of shape \(2,\)"):
        dj.neural.neural_dmsde(drift, X, jnp.ones(3), SPAN, key=KEY)
