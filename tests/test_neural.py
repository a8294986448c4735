"""The neural layers: the layer is a solve, and behaves like any other layer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import diffjax as dj

SPAN = (0.0, 1.0)
OPTIONS = {"rtol": 1e-8, "atol": 1e-8}


def network(dtype=None, out_size=2, in_size=2):
    mlp = eqx.nn.MLP(in_size, out_size, 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    if dtype is None:
        return mlp
    return jtu.tree_map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, mlp)


def final_state(model, x, alg=None, **options):
    return dj.solve(dj.ODEProblem(lambda u, p, t: p(u), x, SPAN, model), alg, **options).u[-1]


@pytest.fixture
def x():
    return jnp.array([1.0, -0.5])


def test_the_layer_equals_a_solve(x):
    layer = dj.neural.NeuralODE(network(), SPAN, dj.DP5(), **OPTIONS)
    expected = final_state(network(), x, dj.DP5(), **OPTIONS)
    np.testing.assert_array_equal(layer(x), expected)
    np.testing.assert_array_equal(
        dj.neural.neural_ode(network(), x, SPAN, dj.DP5(), **OPTIONS), expected
    )


def test_saveat_gives_the_time_series_and_solve_the_solution(x):
    times = jnp.linspace(0.0, 1.0, 5)
    layer = dj.neural.NeuralODE(network(), SPAN, saveat=times, **OPTIONS)
    sol = layer.solve(x)
    assert isinstance(sol, dj.Solution)
    assert layer(x).shape == (5, 2)
    np.testing.assert_array_equal(layer(x), sol.u)
    np.testing.assert_array_equal(sol.t, times)
    np.testing.assert_allclose(layer(x)[-1], final_state(network(), x, **OPTIONS), rtol=1e-7)


def test_a_linear_model_has_the_closed_form(x):
    rotation = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    layer = dj.neural.NeuralODE(lambda u: rotation @ u, (0.0, jnp.pi), **OPTIONS)
    np.testing.assert_allclose(layer(x), -x, rtol=1e-7)


def test_time_dependent_model():
    layer = dj.neural.NeuralODE(lambda u, t: t * u, SPAN, time_dependent=True, **OPTIONS)
    np.testing.assert_allclose(layer(jnp.array([2.0])), 2.0 * jnp.exp(jnp.array([0.5])), rtol=1e-7)


def test_pytree_state():
    layer = dj.neural.NeuralODE(lambda u: {"a": -u["a"], "b": u["b"]}, SPAN, **OPTIONS)
    out = layer({"a": jnp.ones(2), "b": jnp.array(1.0)})
    np.testing.assert_allclose(out["a"], jnp.exp(-jnp.ones(2)), rtol=1e-7)
    np.testing.assert_allclose(out["b"], jnp.exp(1.0), rtol=1e-7)


def test_under_jit_vmap_and_grad(x):
    layer = dj.neural.NeuralODE(network(), SPAN, dj.Tsit5(), **OPTIONS)
    batch = jnp.stack([x, 2 * x, -x])
    np.testing.assert_allclose(eqx.filter_jit(layer)(x), layer(x), rtol=1e-12)
    loop = jnp.stack([layer(row) for row in batch])
    np.testing.assert_allclose(jax.vmap(layer)(batch), loop, rtol=1e-9)

    gradient = eqx.filter_grad(lambda layer: jnp.sum(layer(x) ** 2))(layer)
    expected = eqx.filter_grad(lambda m: jnp.sum(final_state(m, x, **OPTIONS) ** 2))(network())
    jtu.tree_map(
        lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-6, atol=1e-12),
        eqx.filter(gradient.model, eqx.is_array),
        eqx.filter(expected, eqx.is_array),
    )


def test_float32_stays_float32(x):
    layer = dj.neural.NeuralODE(network(jnp.float32), SPAN, rtol=1e-4)
    out = layer(x.astype(jnp.float32))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, final_state(network(), x, **OPTIONS), rtol=1e-3)


def test_inside_a_sequential(x):
    keys = jax.random.split(jax.random.key(1), 2)
    first, last = (eqx.nn.Linear(2, 2, key=k) for k in keys)
    layer = dj.neural.NeuralODE(network(), SPAN, **OPTIONS)
    chain = eqx.nn.Sequential([first, layer, last])
    np.testing.assert_allclose(chain(x), last(layer(first(x))), rtol=1e-12)
    assert jax.vmap(chain)(jnp.stack([x, x])).shape == (2, 2)
    assert chain(x, key=jax.random.key(0)).shape == (2,)


def test_only_the_weights_of_the_model_are_trainable():
    """Save times, a span or tolerances given as arrays must not be moved by an optimizer."""
    times, ends = jnp.linspace(0.0, 1.0, 5), (jnp.array(0.0), jnp.array(1.0))
    layer = dj.neural.NeuralODE(network(), ends, saveat=times, rtol=jnp.array(1e-4))
    trained = jtu.tree_leaves(eqx.filter(layer, eqx.is_inexact_array))
    assert len(trained) == len(jtu.tree_leaves(eqx.filter(network(), eqx.is_inexact_array)))


def test_a_traced_span_is_differentiated(x):
    def end(t1):
        return dj.neural.neural_ode(network(), x, (0.0, t1), **OPTIONS)

    u, slope = jax.jvp(end, (jnp.array(1.0),), (jnp.array(1.0),))
    np.testing.assert_allclose(slope, network()(u), rtol=1e-6)


def test_a_layer_is_compiled_once(x):
    traces = []

    def counted(u):
        traces.append(1)
        return -u

    for _ in range(2):
        dj.neural.NeuralODE(counted, SPAN)(x)
        once = len(traces)
    assert len(traces) == once
    dj.neural.NeuralODE(counted, SPAN)(2 * x)
    assert len(traces) == once


def test_the_layer_trains(x):
    goal = jnp.array([0.3, 0.8])

    def loss(layer):
        return jnp.sum((layer(x) - goal) ** 2)

    layer = dj.neural.NeuralODE(network(), SPAN)
    result = dj.train(loss, layer, optax.adam(0.05), 60, progress=False)
    assert result.losses[-1] < 1e-3 * result.losses[0]
    np.testing.assert_allclose(result.params(x), goal, atol=0.05)


def test_a_model_that_cannot_be_called():
    with pytest.raises(TypeError, match="model must be callable"):
        dj.neural.NeuralODE(jnp.ones(2), SPAN)
