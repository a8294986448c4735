"""Layers whose output is the solution of a stochastic differential equation."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ..algorithms.base import Algorithm
from ..noise.base import NoiseProcess
from ..problems import SDEProblem
from ..problems.sde import NoiseKind
from ..solution import Solution
from ..solve import solve
from .options import check_callable, output, settings


# Plain functions of the module, not lambdas of a layer: a solve is compiled once for each.
def _drift(u: PyTree, models: Any, t: Float[Array, ""]) -> PyTree:
    return models[0](u)


def _diffusion(u: PyTree, models: Any, t: Float[Array, ""]) -> PyTree:
    return models[1](u)


def _drift_in_time(u: PyTree, models: Any, t: Float[Array, ""]) -> PyTree:
    return models[0](u, t)


def _diffusion_in_time(u: PyTree, models: Any, t: Float[Array, ""]) -> PyTree:
    return models[1](u, t)


class _StochasticLayer(eqx.Module):
    """Everything but the kind of noise."""

    noise: ClassVar[NoiseKind]

    drift: Callable[..., Any]
    diffusion: Callable[..., Any]
    tspan: Any
    alg: Algorithm | None
    time_dependent: bool = eqx.field(static=True)
    solve_options: dict[str, Any]

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        tspan: Any,
        alg: Algorithm | None,
        time_dependent: bool,
        solve_options: dict[str, Any],
    ) -> None:
        check_callable("drift", drift)
        check_callable("diffusion", diffusion)
        for name in ("key", "path"):
            if name in solve_options:
                raise TypeError(
                    f"{name} is no option of the layer, or all calls would see the same noise; "
                    f"give it to the call: layer(x, {name}=...)."
                )
        self.drift, self.diffusion = drift, diffusion
        self.tspan = settings(tspan)
        self.alg = alg
        self.time_dependent = time_dependent
        self.solve_options = settings(solve_options)

    def solve(
        self, x: PyTree, *, key: Array | None = None, path: NoiseProcess | None = None
    ) -> Solution:
        """The whole solution from the initial state `x`, with the noise of `key` or `path`."""
        f, g = _drift, _diffusion
        if self.time_dependent:
            f, g = _drift_in_time, _diffusion_in_time
        models = self.drift, self.diffusion
        prob = SDEProblem(f, g, x, self.tspan, models, noise=self.noise)
        return solve(prob, self.alg, key=key, path=path, **self.solve_options)

    def __call__(
        self, x: PyTree, *, key: Array | None = None, path: NoiseProcess | None = None
    ) -> PyTree:
        return output(self.solve(x, key=key, path=path), self.solve_options)


class NeuralDSDE(_StochasticLayer):
    """A layer that carries its input along du = drift(u) dt + diffusion(u) dW with diagonal noise.

    Every element of the state has a noise of its own. The weights are those of both networks:
    times and tolerances are settings.

    **Arguments:**

    - `drift`: any callable, usually an equinox network, that maps a state to one like it:
        `drift(u)`, or `drift(u, t)` with `time_dependent=True`.
    - `diffusion`: the same; its element i multiplies noise i.
    - `tspan`: the pair `(t0, t1)`.
    - `alg`: the algorithm, by default that of `dj.solve`, `dj.SOSRI()`. It takes element i of the
        diffusion for a function of element i of the state, and is of strong order 1/2 where a
        network mixes them.
    - `time_dependent`: whether both networks take the time.
    - `solve_options`: any keyword argument of `dj.solve`, for example `saveat`, `rtol`, `adjoint`.

    **Returns** when called as `layer(x, key=key)` with the initial state `x` (an array of shape
    `(...)`, or a pytree): the final state, like `x`; with `saveat` the states at those times,
    `(T, ...)`. `path=` takes the noise in place of a key. `layer.solve(x, key=key)` gives the whole
    `Solution`.

    **Raises:** `TypeError` if a network is not callable, or for a `key` or `path` among the
    options; what `dj.solve` raises when it is called, among it `ValueError` without a key.

    !!! example
        ```python
        drift = eqx.nn.MLP(2, 2, width_size=50, depth=1, activation=jnp.tanh, key=k1)
        diffusion = eqx.nn.Linear(2, 2, key=k2)
        layer = dj.neural.NeuralDSDE(drift, diffusion, (0.0, 1.0), saveat=0.1, rtol=1e-2)
        paths = jax.vmap(lambda key: layer(x, key=key))(jax.random.split(key, 100))
        ```

    Source: the layer of this name in DiffEqFlux.jl; Tzen and Raginsky, Neural stochastic
    differential equations, 2019.
    """

    noise: ClassVar[NoiseKind] = "diagonal"

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        tspan: Any,
        alg: Algorithm | None = None,
        *,
        time_dependent: bool = False,
        **solve_options: Any,
    ) -> None:
        super().__init__(drift, diffusion, tspan, alg, time_dependent, solve_options)


class NeuralSDE(_StochasticLayer):
    """A layer that carries its input along du = drift(u) dt + diffusion(u) dW with general noise.

    **Arguments:** those of `dj.neural.NeuralDSDE`, but

    - `diffusion`: maps a state of shape `(...)` to an array `(..., noise_dim)`, and a pytree to
        one of such arrays: every noise acts on all of the state.
    - `alg`: by default that of `dj.solve`, `dj.RKMilGeneral()`. It evaluates `diffusion` for every
        noise in a step, and once with `dj.LambaEM()`, whose steps are much shorter.

    **Returns** and **raises** what `dj.neural.NeuralDSDE` does.

    !!! example
        ```python
        drift = eqx.nn.MLP(2, 2, width_size=50, depth=1, activation=jnp.tanh, key=k1)
        mlp = eqx.nn.MLP(2, 6, width_size=16, depth=1, activation=jnp.tanh, key=k2)
        diffusion = eqx.nn.Sequential([mlp, eqx.nn.Lambda(lambda y: y.reshape(2, 3))])
        layer = dj.neural.NeuralSDE(drift, diffusion, (0.0, 1.0), rtol=1e-2)
        y = layer(x, key=key)  # three noises
        ```

    Source: the layer of this name in DiffEqFlux.jl.
    """

    noise: ClassVar[NoiseKind] = "general"

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        tspan: Any,
        alg: Algorithm | None = None,
        *,
        time_dependent: bool = False,
        **solve_options: Any,
    ) -> None:
        super().__init__(drift, diffusion, tspan, alg, time_dependent, solve_options)


class _Multiples(eqx.Module):
    """The diffusion that multiplies each element of the state by a number."""

    coefficients: PyTree

    def __call__(self, u: PyTree, t: Any = None) -> PyTree:
        return jtu.tree_map(lambda m, x: m * x, self.coefficients, u)


def neural_dmsde(
    model: Callable[..., Any],
    x: PyTree,
    mp: PyTree,
    tspan: Any,
    alg: Algorithm | None = None,
    *,
    key: Array | None = None,
    path: NoiseProcess | None = None,
    **options: Any,
) -> PyTree:
    """Solve du = model(u) dt + mp * u dW from `x`, with diagonal noise.

    **Arguments:**

    - `model`, `tspan`, `alg`, `options`: as in `dj.neural.NeuralDSDE`.
    - `x`: the initial state, `(...)` or a pytree.
    - `mp`: the coefficients of the noise: a number, an array that broadcasts to `x`, or a pytree of
        these like `x`. They are differentiated.
    - `key`, or `path`: the noise.

    **Returns:** the final state, like `x`; with `saveat` the states at those times, `(T, ...)`.

    **Raises:** `ValueError` if `mp` does not fit `x`; what `NeuralDSDE` raises.

    !!! example
        `dj.neural.neural_dmsde(network, x, jnp.array([0.2, 0.2]), (0.0, 1.0), key=key, saveat=0.1)`

    Source: the function of this name in DiffEqFlux.jl, 2019.
    """
    layer = NeuralDSDE(model, _Multiples(_like_state(mp, x)), tspan, alg, **options)
    return layer(x, key=key, path=path)


def _like_state(mp: PyTree, x: PyTree) -> PyTree:
    """A coefficient for every element of the state."""

    def fit(m: Any, x: Any) -> Array:
        return jnp.broadcast_to(jnp.asarray(m, jnp.result_type(x)), jnp.shape(x))

    try:
        return jtu.tree_map(fit, jax.tree.broadcast(mp, x), x)
    except ValueError as error:
        shapes = [jtu.tree_map(jnp.shape, tree) for tree in (mp, x)]
        raise ValueError(
            f"mp must be a number, an array that broadcasts to x, or a pytree of these like x; "
            f"got mp of shape {shapes[0]} for x of shape {shapes[1]}."
        ) from error
