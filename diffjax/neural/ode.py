"""A layer whose output is the solution of an ordinary differential equation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from ..algorithms.base import Algorithm
from ..algorithms.explicit_methods import Tsit5
from ..problems import ODEProblem
from ..solution import Solution
from ..solve import solve
from .options import check_callable, output, settings


# Plain functions of the module, not lambdas of a layer: a solve is compiled once for each.
def _autonomous(u: PyTree, model: Any, t: Float[Array, ""]) -> PyTree:
    return model(u)


def _time_dependent(u: PyTree, model: Any, t: Float[Array, ""]) -> PyTree:
    return model(u, t)


class NeuralODE(eqx.Module):
    """A layer that carries its input along u' = model(u), from tspan[0] to tspan[1].

    Its only weights are the model's: times and tolerances are settings.

    **Arguments:**

    - `model`: any callable, usually an equinox network, that maps a state to its derivative:
        `model(u)`, or `model(u, t)` with `time_dependent=True`.
    - `tspan`: the pair `(t0, t1)`.
    - `alg`: the algorithm, by default `dj.Tsit5()`, since few networks are stiff.
    - `time_dependent`: whether the model takes the time.
    - `solve_options`: any keyword argument of `dj.solve`, for example `saveat`, `rtol`, `adjoint`.

    **Returns** when called with the initial state `x` (an array of shape `(...)`, or a pytree):
    the final state, like `x`; with `saveat` the states at those times, `(T, ...)`. `key` is there
    for `eqx.nn.Sequential` and is not used. `layer.solve(x)` gives the whole `Solution`.

    **Raises:** `TypeError` if `model` is not callable; what `dj.solve` raises when it is called.

    !!! example
        ```python
        network = eqx.nn.MLP(2, 2, width_size=50, depth=1, activation=jnp.tanh, key=key)
        layer = dj.neural.NeuralODE(network, (0.0, 1.0), dj.Tsit5(), rtol=1e-4)
        y = jax.vmap(layer)(x)  # a batch x of shape (N, 2)
        ```

    Source: Chen, Rubanova, Bettencourt, Duvenaud, Neural ordinary differential equations, 2018.
    """

    model: Callable[..., Any]
    tspan: Any
    alg: Algorithm
    time_dependent: bool = eqx.field(static=True)
    solve_options: dict[str, Any]

    def __init__(
        self,
        model: Callable[..., Any],
        tspan: Any,
        alg: Algorithm | None = None,
        *,
        time_dependent: bool = False,
        **solve_options: Any,
    ) -> None:
        check_callable("model", model)
        self.model = model
        self.tspan = settings(tspan)
        self.alg = Tsit5() if alg is None else alg
        self.time_dependent = time_dependent
        self.solve_options = settings(solve_options)

    def solve(self, x: PyTree) -> Solution:
        """The whole solution from the initial state `x`."""
        field = _time_dependent if self.time_dependent else _autonomous
        return solve(ODEProblem(field, x, self.tspan, self.model), self.alg, **self.solve_options)

    def __call__(self, x: PyTree, *, key: Any = None) -> PyTree:
        return output(self.solve(x), self.solve_options)


def neural_ode(
    model: Callable[..., Any],
    x: PyTree,
    tspan: Any,
    alg: Algorithm | None = None,
    **options: Any,
) -> PyTree:
    """Solve u' = model(u) from `x`: the layer `NeuralODE` as a function.

    **Arguments:** the initial state `x`, `(...)`, and those of `NeuralODE`.

    **Returns:** the final state, like `x`; with `saveat` the states at those times, `(T, ...)`.

    **Raises:** what `NeuralODE` raises.

    !!! example
        `dj.neural.neural_ode(network, x, (0.0, 1.5), dj.Tsit5(), saveat=0.05)`

    Source: the function of this name in DiffEqFlux.jl, 2019.
    """
    return NeuralODE(model, tspan, alg, **options)(x)
