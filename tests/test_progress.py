"""The progress bar of a solve: shown under every transformation, and never in the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj

PROB = dj.ODEProblem(lambda u, p, t: -p * u, jnp.array([1.0]), (0.0, 2.0), jnp.array(1.5))


@pytest.mark.parametrize("options", [{}, {"steps": 20}, {"saveat": 0.5}], ids=str)
def test_bar_is_shown_under_jit(
    options: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    def end(p: jax.Array) -> jax.Array:
        return dj.solve(PROB, dj.Tsit5(), p=p, progress=True, rtol=1e-6, **options).u[-1, 0]

    value = jax.jit(end)(jnp.array(1.5))
    jax.effects_barrier()
    np.testing.assert_allclose(value, np.exp(-3.0), rtol=1e-4)
    assert "100%" in capsys.readouterr().err


def test_bar_under_vmap_and_grad(capsys: pytest.CaptureFixture[str]) -> None:
    def end(p: jax.Array) -> jax.Array:
        return dj.solve(PROB, dj.Tsit5(), p=p, progress=True, rtol=1e-8, atol=1e-10).u[-1, 0]

    p = jnp.array([0.5, 1.0, 2.0])
    slope = jax.jit(jax.vmap(jax.grad(end)))(p)
    jax.effects_barrier()
    np.testing.assert_allclose(slope, -2 * np.exp(-2 * p), rtol=1e-6)
    assert "100%" in capsys.readouterr().err


def test_no_callback_unless_asked_for() -> None:
    """Host callbacks cost milliseconds and break sharding."""
    text = jax.jit(lambda p: dj.solve(PROB, dj.Tsit5(), p=p).u).lower(jnp.array(1.0)).as_text()
    assert "callback" not in text
