"""`dj.train`, and the progress that it and a solve show."""

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax import progress


def square(p):
    return jnp.sum((p["x"] - 1.0) ** 2)


START = {"x": jnp.array([3.0, -2.0]), "name": "kept", "count": 3}


def test_train_minimises_and_keeps_the_history():
    result = dj.train(square, START, optax.adam(0.1), 200, progress=False)
    params, best, losses, _ = result
    assert losses.shape == (201,)
    assert losses[0] == square(START)
    assert losses[-1] < 1e-3
    np.testing.assert_allclose(square(params), losses[-1])
    np.testing.assert_allclose(square(best), losses.min())
    assert (params["name"], params["count"]) == ("kept", 3)


def test_floats_and_numpy_arrays_are_trained():
    def loss(p):
        return (p[0] - 1.0) ** 2 + jnp.sum(p[1] ** 2)

    result = dj.train(loss, (0.0, np.ones(2)), optax.sgd(0.5), 2, progress=False)
    np.testing.assert_allclose(result.params[0], 1.0)
    np.testing.assert_allclose(result.params[1], 0.0)


def test_complex_parameters_go_downhill():
    result = dj.train(
        lambda z: jnp.abs(z - (1 + 2j)) ** 2, jnp.array(0j), optax.sgd(0.25), 40, progress=False
    )
    np.testing.assert_allclose(result.params, 1 + 2j, rtol=1e-6)


def test_line_search_optimizers_work():
    result = dj.train(square, START, optax.lbfgs(), 10, progress=False)
    assert result.losses[-1] < 1e-10


def test_an_equinox_network_is_trained():
    network = eqx.nn.MLP(1, 1, 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    x = jnp.linspace(-1.0, 1.0, 16)[:, None]

    def loss(network):
        return jnp.mean((jax.vmap(network)(x) - x**2) ** 2)

    result = dj.train(loss, network, optax.adam(0.05), 150, progress=False)
    assert isinstance(result.params, eqx.nn.MLP)
    assert result.losses[-1] < 1e-2


def test_the_step_is_compiled_once():
    traces = []

    def loss(p, batch):
        traces.append(1)
        return jnp.sum((p - batch) ** 2)

    batches = [np.ones(2), np.zeros(2)]
    dj.train(loss, jnp.zeros(2), optax.adam(0.1), 1, batches=batches, progress=False)
    once = len(traces)
    traces.clear()
    dj.train(loss, jnp.zeros(2), optax.adam(0.1), 7, batches=batches, progress=False)
    assert len(traces) == once


def test_batches_repeat_and_a_generator_ends():
    seen = []

    def loss(p, batch):
        return (p - batch) ** 2

    def note(step, value, p):
        seen.append(round(np.sqrt(value)))

    frozen, start = optax.sgd(0.0), jnp.array(0.0)
    batches = [jnp.array(1.0), jnp.array(2.0), jnp.array(3.0)]
    dj.train(loss, start, frozen, 5, batches=batches, callback=note, progress=False)
    assert seen == [1, 2, 3, 1, 2, 2]  # the last loss is that of the result, on the last batch
    result = dj.train(loss, start, frozen, 5, batches=(b for b in batches), progress=False)
    assert len(result.losses) == 4
    with pytest.raises(ValueError, match="at least one batch"):
        dj.train(loss, start, frozen, 5, batches=[], progress=False)


def test_callback_sees_what_belongs_together_and_may_stop():
    seen = []

    def callback(step, loss, params):
        seen.append(step)
        np.testing.assert_allclose(loss, square(params))
        return loss < 1.0

    result = dj.train(
        square, START, optax.sgd(0.1), 100, callback=callback, callback_every=3, progress=False
    )
    assert seen == list(range(0, seen[-1] + 1, 3))
    assert len(result.losses) == seen[-1] + 1 < 100
    np.testing.assert_allclose(square(result.params), result.losses[-1])


def test_training_goes_on_from_the_optimizer_state():
    whole = dj.train(square, START, optax.adam(0.1), 6, progress=False)
    half = dj.train(square, START, optax.adam(0.1), 3, progress=False)
    rest = dj.train(
        square, half.params, optax.adam(0.1), 3, opt_state=half.opt_state, progress=False
    )
    np.testing.assert_allclose(rest.losses, whole.losses[3:], rtol=1e-12)


def test_a_loss_that_is_not_finite_keeps_the_best_parameters():
    def loss(p):  # a slope that ends in a cliff
        return jnp.where(p > -1.0, p, jnp.nan)

    with pytest.raises(dj.TrainingError, match="step 5: the loss is nan") as error:
        dj.train(loss, jnp.array(1.0), optax.sgd(0.45), 100, progress=False)
    np.testing.assert_allclose(error.value.params, 1.0 - 4 * 0.45)
    assert len(error.value.losses) == 6
    assert np.isnan(error.value.losses[-1])


def test_a_gradient_that_is_not_finite_stops_at_once():
    with pytest.raises(dj.TrainingError, match="step 0: the gradient is not finite") as error:
        dj.train(lambda p: jnp.sqrt(jnp.abs(p)), jnp.array(0.0), optax.sgd(0.1), 3, progress=False)
    assert error.value.params == 0.0


def test_a_failed_solve_is_a_training_error():
    prob = dj.ODEProblem(lambda u, p, t: p * u**2, jnp.array([1.0]), (0.0, 1.0))

    def loss(p):  # p > 1 blows up before the end of the span
        return -jnp.sum(dj.solve(prob, p=p).u)

    with pytest.raises(dj.TrainingError, match="loss is nan"):
        dj.train(loss, jnp.array(0.5), optax.sgd(0.1), 50, progress=False)


@pytest.mark.parametrize(
    ("params", "steps", "match"), [({"n": 3}, 5, "nothing to train"), (START, 0, "steps")]
)
def test_bad_arguments(params, steps, match):
    with pytest.raises(ValueError, match=match):
        dj.train(square, params, optax.sgd(0.1), steps, progress=False)


def test_the_bar_shows_the_loss(capsys):
    dj.train(square, START, optax.sgd(0.1), 5)
    shown = capsys.readouterr().err
    assert "train: 100%" in shown
    assert "5/5" in shown
    assert "loss" in shown


def test_lines_stand_in_for_tqdm(capsys, monkeypatch):
    monkeypatch.setattr(progress, "tqdm", None)
    result = dj.train(square, START, optax.sgd(0.1), 5)
    first, last = capsys.readouterr().err.splitlines()
    assert "diffjax[progress]" in first
    assert last == f"train: 5/5 loss {result.losses[-1]:.4g}"


@pytest.fixture
def told(monkeypatch):
    """What a solve's progress tells the host."""
    told = []

    class Recorder:
        def update(self, fraction):
            told.append(fraction)

        def close(self):
            told.append("close")

    monkeypatch.setattr(progress, "_progress", Recorder())
    return told


def walk(dt):
    """A loop over steps from 0 to 1, as a solve has one."""

    def body(t):
        after = jnp.where(t < 1.0, jnp.minimum(t + dt, 1.0), t)
        progress.report(t, after, after < 1.0)
        return after

    return jax.lax.while_loop(lambda t: eqxi.unvmap_any(t < 1.0), body, jnp.zeros(()))


def test_a_loop_reports_a_percent_at_a_time(told):
    compiled = jax.jit(walk)
    for _ in range(2):
        compiled(jnp.array(1e-4)).block_until_ready()
        jax.effects_barrier()
        assert told[-2:] == [1.0, "close"]
        assert 100 <= len(told) <= 105
        assert told[:-1] == sorted(told[:-1])
        told.clear()


def test_under_vmap_the_slowest_lane_counts(told):
    jax.jit(jax.vmap(walk))(jnp.array([0.5, 0.25, 0.04])).block_until_ready()
    jax.effects_barrier()
    assert told.count("close") == 1
    np.testing.assert_allclose(told[:-1], [*np.arange(1, 25) * 0.04, 1.0], atol=1e-12)


def test_the_bar_of_a_solve(capsys):
    bar = progress.SolveProgress()
    bar.update(0.5)
    bar.close()
    bar.update(0.7)  # broken off: never closed
    bar.update(0.2)  # another run
    bar.update(1.0)
    bar.close()
    bar.close()
    shown = capsys.readouterr().err
    assert shown.count("solve:   0%") == 3
    assert "50/100" in shown
    assert "70/100" in shown
    assert "100/100" in shown
