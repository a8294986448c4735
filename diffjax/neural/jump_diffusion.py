"""A layer whose output is the path of a jump diffusion."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..algorithms.base import Algorithm
from ..noise.base import NoiseProcess
from ..problems import ConstantRateJump, JumpProblem, ODEProblem, SDEProblem, VariableRateJump
from ..problems.sde import NoiseKind
from ..solution import Solution
from ..solve import solve
from .options import check_callable, output, settings


class _Models(eqx.Module):
    """The four terms, each of which may be a network; `in_time` says whether they take the time."""

    drift: Callable[..., Any]
    diffusion: Callable[..., Any] | None
    rate: Any
    affect: Callable[..., Any]
    in_time: bool = eqx.field(static=True)

    def value(self, model: Callable[..., Any], u: PyTree, t: Any) -> PyTree:
        return model(u, t) if self.in_time else model(u)


# Plain functions of the module, not lambdas of a layer: a solve is compiled once for each.
def _drift(u: PyTree, models: _Models, t: Float[Array, ""]) -> PyTree:
    return models.value(models.drift, u, t)


def _diffusion(u: PyTree, models: _Models, t: Float[Array, ""]) -> PyTree:
    assert models.diffusion is not None
    return models.value(models.diffusion, u, t)


def _known_rate(u: PyTree, models: _Models, t: Float[Array, ""]) -> Any:
    return models.rate


def _rate(u: PyTree, models: _Models, t: Float[Array, ""]) -> Any:
    return models.value(models.rate, u, t)


def _affect(u: PyTree, models: _Models, t: Float[Array, ""]) -> PyTree:
    return models.value(models.affect, u, t)


class NeuralJumpDiffusion(eqx.Module):
    """A layer that carries its input along du = drift(u) dt + diffusion(u) dW, with jumps to
    affect(u) at the rate rate(u).

    Each of the four may be a network or a known function.

    **Arguments:**

    - `drift`: any callable, usually an equinox network, that maps a state to one like it:
        `drift(u)`, or `drift(u, t)` with `time_dependent=True`.
    - `diffusion`: the same; of `"diagonal"` noise element i multiplies noise i. None for a flow
        that only jumps disturb.
    - `rate`: jumps per unit of time: a number or an array of shape `()`, for times that depend on
        nothing else; or a callable like `drift` that gives a scalar, which must not be negative
        (end a network with `jax.nn.softplus`). Its jumps happen when the integral of the rate
        along the path has reached a random threshold (`dj.VariableRateJump`).
    - `affect`: a callable like `drift`; the state after a jump.
    - `tspan`: the pair `(t0, t1)`, forwards in time.
    - `alg`: the algorithm, by default that of `dj.solve`.
    - `noise`: the kind of noise, as in `dj.SDEProblem`.
    - `time_dependent`: whether the functions take the time.
    - `solve_options`: any keyword argument of `dj.solve`, for example `saveat`, `steps`, `adjoint`.

    **Returns** when called as `layer(x, key=key)` with the initial state `x` (an array of shape
    `(...)`, or a pytree): the final state, like `x`; with `saveat` the states at those times,
    `(T, ...)`. `layer.solve(x, key=key)` gives the whole `Solution`, with the jumps in
    `sol.events`.

    **Raises:** `TypeError` if a term is of the wrong kind, or for a `key` or `path` among the
    options; what `dj.solve` raises when it is called.

    Gradients are those of the path with its random numbers held: through drift, diffusion and
    affect, and without diffusion through the times of the jumps as well. What they miss is that a
    jump may move past the end of the span, or past a save time. With diffusion the times stay where
    they are: differentiating a rate is then refused, so give a Python number, or keep its arrays
    out of the gradient with `jax.lax.stop_gradient`.

    !!! example
        ```python
        drift = eqx.nn.MLP(2, 2, width_size=50, depth=1, activation=jnp.tanh, key=k1)
        affect = eqx.nn.MLP(2, 2, width_size=50, depth=1, activation=jnp.tanh, key=k2)
        layer = dj.neural.NeuralJumpDiffusion(
            drift, lambda u: 0.2 * u, 2.0, affect, (0.0, 1.0), dj.SOSRI(), steps=50
        )
        paths = jax.vmap(lambda key: layer(x, key=key))(jax.random.split(key, 100))
        ```

    Source: Jia and Benson, Neural jump stochastic differential equations, NeurIPS 2019; Rackauckas
    et al., Universal differential equations for scientific machine learning, 2020.
    """

    models: _Models
    tspan: Any
    alg: Algorithm | None
    noise: NoiseKind = eqx.field(static=True)
    solve_options: dict[str, Any]

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any] | None,
        rate: Any,
        affect: Callable[..., Any],
        tspan: Any,
        alg: Algorithm | None = None,
        *,
        noise: NoiseKind = "diagonal",
        time_dependent: bool = False,
        **solve_options: Any,
    ) -> None:
        check_callable("drift", drift)
        check_callable("affect", affect)
        if diffusion is not None:
            check_callable("diffusion", diffusion)
        if not callable(rate) and jnp.ndim(rate) != 0:
            raise TypeError(f"rate must be a number or callable, got shape {jnp.shape(rate)}.")
        for name in ("key", "path"):
            if name in solve_options:
                raise TypeError(
                    f"{name} is no option of the layer, or all calls would see the same jumps; "
                    f"give it to the call: layer(x, {name}=...)."
                )
        self.models = _Models(drift, diffusion, rate, affect, time_dependent)
        self.tspan, self.alg, self.noise = settings(tspan), alg, noise
        self.solve_options = settings(solve_options)

    def solve(self, x: PyTree, *, key: Array, path: NoiseProcess | None = None) -> Solution:
        """The whole solution from the initial state `x`, with the jumps and the noise of `key`."""
        models = self.models
        if models.diffusion is None:
            prob = ODEProblem(_drift, x, self.tspan, models)
        else:
            prob = SDEProblem(_drift, _diffusion, x, self.tspan, models, noise=self.noise)
        if callable(models.rate):
            jump = VariableRateJump(_rate, _affect)
        else:
            jump = ConstantRateJump(_known_rate, _affect)
        return solve(JumpProblem(prob, jump), self.alg, key=key, path=path, **self.solve_options)

    def __call__(self, x: PyTree, *, key: Array, path: NoiseProcess | None = None) -> PyTree:
        return output(self.solve(x, key=key, path=path), self.solve_options)
