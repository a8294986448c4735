"""A stochastic solve run backwards along its own path, against closed forms and the exact adjoint
of the steps, which it converges to."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import diffjax as dj

KEY = jax.random.key(23)
BACK = dj.BacksolveAdjoint()


def root_mean_square(x: Any) -> np.ndarray:
    return np.sqrt(np.mean(np.asarray(x) ** 2, axis=0))


def test_geometric_brownian_motion() -> None:
    """Of the sum of u(t_i)^2/2 along each path, by drift, diffusion and start: to the closed form,
    at the order of the way back with fixed steps, with the tolerance for adaptive ones."""
    p, u0 = jnp.array([1.01, 0.87]), jnp.array([0.5])
    times = np.linspace(0.0, 1.0, 5)
    prob = dj.SDEProblem(lambda u, p, t: p[0] * u, lambda u, p, t: p[1] * u, u0, (0.0, 1.0), p)

    def gaps(key: Array, alg: dj.Algorithm, **options: Any) -> Array:
        path = dj.noise.VirtualBrownianTree(0.0, 1.0, 1, key)

        def loss(p: Array, u0: Array) -> Array:
            given = {"path": path, "saveat": times, "adjoint": BACK, **options}
            return jnp.sum(dj.solve(prob, alg, p=p, u0=u0, **given).u ** 2) / 2

        by_p, by_u0 = jax.grad(loss, argnums=(0, 1))(p, u0)
        w = path(times)[:, 0]
        u = u0 * jnp.exp((p[0] - p[1] ** 2 / 2) * times + p[1] * w)
        wanted = jnp.stack([jnp.sum(times * u**2), jnp.sum((w - p[1] * times) * u**2)])
        return jnp.append(by_p - wanted, by_u0 - jnp.sum(u**2) / u0) / jnp.sum(u**2)

    @jax.jit
    @jax.vmap
    def all_gaps(key: Array) -> tuple[Array, Array, Array]:
        fixed = [gaps(key, dj.SRIW1(), steps=n, adaptive=False) for n in (16, 64)]
        return (*fixed, gaps(key, dj.SOSRI(), rtol=1e-2, atol=1e-2))

    coarse, fine, steered = map(root_mean_square, all_gaps(jax.random.split(KEY, 50)))
    # A quarter of the step is a quarter of the error at least.
    assert np.all(fine < coarse / 4), (coarse, fine)
    assert np.all(fine < 5e-3), fine
    assert np.all(steered < 1e-2), steered


def crossed(u: Array, p: Array, t: Any) -> Array:
    """Each element of the diffusion depends on both of the state."""
    return p * jnp.stack([0.4 * u[0] + jnp.sin(u[1]), jnp.cos(u[0]) * u[1]])


def columns(u: Array, p: Array, t: Any) -> Array:
    """Columns that do not commute."""
    return p * jnp.stack([crossed(u, jnp.ones(()), t), jnp.stack([u[1], 0.5 * u[0]])], axis=-1)


CASES: dict[str, tuple[Callable[..., Array], dict[str, Any]]] = {
    "correlated": (crossed, {"correlation": np.array([[1.0, 0.0], [0.8, 0.6]])}),
    "scalar": (crossed, {"noise": "scalar"}),
    "general": (columns, {"noise": "general"}),
}


@pytest.mark.parametrize("case", CASES)
def test_converges_to_the_gradient_of_the_steps(case: str) -> None:
    """Of Ito equations whose drift is another one in Stratonovich's sense, by Euler-Maruyama: at
    order 1/2, 64 times the steps give an eighth of the difference, in the mean. A wrong drift of
    the way back would leave one that stays."""
    diffusion, kind = CASES[case]
    prob = dj.SDEProblem(
        lambda u, p, t: -p * u, diffusion, jnp.array([0.7, 0.4]), (0.0, 0.5), jnp.ones(()), **kind
    )

    def gradient(key: Array, steps: int, adjoint: Any) -> Array:
        def loss(p: Array, u0: Array) -> Array:
            sol = dj.solve(prob, dj.EM(), p=p, u0=u0, steps=steps, key=key, adjoint=adjoint)
            return jnp.sum(sol.u[-1] ** 2)

        by_p, by_u0 = jax.grad(loss, argnums=(0, 1))(jnp.asarray(0.8), prob.u0)
        return jnp.append(by_u0, by_p)

    @jax.jit
    @jax.vmap
    def gaps(key: Array) -> list[Array]:
        return [gradient(key, n, BACK) - gradient(key, n, None) for n in (8, 512)]

    coarse, fine = map(root_mean_square, gaps(jax.random.split(KEY, 200)))
    assert np.all(fine < coarse / 4), (coarse, fine)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    "options",
    [{"alg": dj.RKMil(), "dt": 0.002, "adaptive": False}, {"alg": dj.RKMil(), "rtol": 1e-3}],
    ids=["fixed", "adaptive"],
)
def test_pytrees_single_precision_and_backward_time(options: dict[str, Any]) -> None:
    """A Stratonovich equation of a dictionary in float32, from 1 to 0, saved off the grid and at
    both ends; vmap = loop, and the gradient is that of the steps but for their error."""
    single = jnp.float32
    prob = dj.SDEProblem(
        lambda u, p, t: jax.tree.map(lambda x: -p["rate"] * x * t, u),
        lambda u, p, t: jax.tree.map(lambda x: p["noise"] * jnp.sin(x), u),
        {"x": jnp.array([1.0, 0.5], single), "y": jnp.asarray(0.8, single)},
        (1.0, 0.0),
        {"rate": jnp.asarray(1.2, single), "noise": jnp.asarray(0.5, single)},
        interpretation="stratonovich",
    )

    def loss(p: Any, key: Array, adjoint: Any) -> Array:
        times = np.array([1.0, 0.7311, 0.25, 0.0])
        sol = dj.solve(prob, p=p, key=key, saveat=times, adjoint=adjoint, **options)
        return jnp.sum(sol.u["x"] ** 2) + jnp.sum(jnp.sin(sol.u["y"]))

    keys = jax.random.split(KEY, 3)
    back = jax.jit(jax.vmap(jax.grad(lambda p, key: loss(p, key, BACK)), in_axes=(None, 0)))
    steps = jax.jit(jax.vmap(jax.grad(lambda p, key: loss(p, key, None)), in_axes=(None, 0)))
    got, wanted = back(prob.p, keys), steps(prob.p, keys)
    alone = jax.grad(lambda p: loss(p, keys[1], BACK))(prob.p)
    for name in ("rate", "noise"):
        assert got[name].dtype == single
        np.testing.assert_allclose(got[name], wanted[name], rtol=0.03, atol=0.03)
        # Adaptive steps follow an error that in single precision is partly rounding.
        rounding = 1e-4 if "dt" in options else 0.03
        np.testing.assert_allclose(got[name][1], alone[name], rtol=rounding)


def test_memory_does_not_grow_with_the_steps() -> None:
    prob = dj.SDEProblem(
        lambda u, p, t: -p * u, lambda u, p, t: p * u, jnp.ones(2), (0.0, 1.0), jnp.asarray(0.3)
    )

    def temporary(steps: int) -> int:
        def loss(p: Array) -> Array:
            return jnp.sum(dj.solve(prob, dj.EM(), p=p, steps=steps, key=KEY, adjoint=BACK).u)

        compiled = jax.jit(jax.grad(loss)).lower(prob.p).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporary(10_000) == temporary(100)


def test_what_is_refused() -> None:
    prob = dj.SDEProblem(
        lambda u, p, t: -u, lambda u, p, t: jnp.ones_like(u), jnp.ones(1), (0.0, 1.0)
    )
    implicit = dj.BacksolveAdjoint(alg=dj.Rodas5P())
    with pytest.raises(ValueError, match=r"explicit Runge-Kutta method, got alg=Rodas5P"):
        dj.solve(prob, dj.SOSRI(), key=KEY, adjoint=implicit)

    def end(t1: Any, w: Any) -> Array:
        noise = {"key": KEY} if w is None else {"path": dj.noise.NoiseGrid(np.arange(3.0) / 2, w)}
        sol = dj.solve(prob, dj.EM(), tspan=(0.0, t1), steps=2, adjoint=BACK, **noise)
        return sol.u[-1, 0]

    with pytest.raises(ValueError, match="by times"):
        jax.grad(lambda t1: end(t1, None))(1.0)
    with pytest.raises(ValueError, match="by the noise itself"):
        jax.grad(lambda w: end(1.0, w))(jnp.zeros(3))
