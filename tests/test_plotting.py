"""Pictures of solutions."""

import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import diffjax as dj

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def oscillator(u, p, t):
    return jnp.stack([u[1], -u[0]])


PROBLEM = dj.ODEProblem(oscillator, jnp.array([1.0, 0.0]), (0.0, 6.0))


def names(axes):
    return [line.get_label() for line in axes.lines]


def test_lines_over_time_and_a_file(tmp_path):
    sol = dj.solve(PROBLEM, saveat=0.5)
    axes = sol.plot()
    assert names(axes) == ["u[0]", "u[1]"]
    assert axes.get_xlabel() == "t"
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), sol.u[:, 1])
    axes.figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_a_dense_solution_is_a_smooth_curve():
    axes = dj.solve(PROBLEM, dense=True, rtol=1e-6).plot(points=50, vars=0)
    (line,) = axes.lines
    t, u = line.get_data()
    assert (len(t), t[0], t[-1]) == (50, 0.0, 6.0)
    np.testing.assert_allclose(u, np.cos(t), atol=1e-4)
    assert axes.get_ylabel() == "u[0]"


def test_backwards_in_time():
    axes = dj.solve(PROBLEM, tspan=(6.0, 0.0), dense=True).plot(points=10)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), np.linspace(6.0, 0.0, 10))


def test_phase_plot():
    sol = dj.solve(PROBLEM, saveat=0.5)
    axes = sol.plot(vars=(0, 1), labels=["place", "speed"])
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_data(), sol.u.T)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("place", "speed")
    assert sol.plot(vars=(0, 1, 0)).name == "3d"


def test_options_labels_and_axes():
    axes = plt.subplots()[1]
    sol = dj.solve(PROBLEM, saveat=0.5)
    assert sol.plot(ax=axes, vars=[1], labels=["speed"], color="red", linestyle=":") is axes
    (line,) = axes.lines
    assert (line.get_label(), line.get_color(), line.get_linestyle()) == ("speed", "red", ":")


def test_names_of_a_pytree_state():
    def save(u, p, t):
        z = jax.lax.complex(u[0], u[1])
        return {"x": jnp.reshape(u, (2, 1)), "z": (z, {"conjugate": z.conj()})}

    sol = dj.solve(PROBLEM, saveat=0.5, save_fn=save)
    expected = ["x[0, 0]", "x[1, 0]", "Re z[0]", "Im z[0]", "Re z[1].conjugate"]
    assert names(sol.plot())[:-1] == expected
    axes = sol.plot(vars=("x[1, 0]", -1))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x[1, 0]", "Im z[1].conjugate")


def test_what_was_not_reached_is_left_out():
    sol = dj.solve(PROBLEM, saveat="steps")
    assert len(sol.plot().lines[0].get_xdata()) == int(sol.n)
    failed = dj.solve(PROBLEM, saveat=0.5, max_steps=5, throw=False)
    assert len(failed.plot().lines[0].get_xdata()) == int(failed.n) < len(failed.t)


def test_errors():
    sol = dj.solve(PROBLEM, saveat=0.5)
    with pytest.raises(ValueError, match=r"no component 'v'; there are u\[0\], u\[1\]"):
        sol.plot(vars="v")
    with pytest.raises(ValueError, match="two or three components"):
        sol.plot(vars=(0,))
    with pytest.raises(ValueError, match="labels must name 2 curves"):
        sol.plot(labels=["one"])
    with pytest.raises(ValueError, match="one time only"):
        dj.solve(PROBLEM).plot()
    batch = jax.vmap(lambda u0: dj.solve(PROBLEM, u0=u0, saveat=0.5))(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"batch of shape \(3,\)"):
        batch.plot()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"diffjax\[plot\]"):
        dj.solve(PROBLEM, saveat=0.5).plot()
