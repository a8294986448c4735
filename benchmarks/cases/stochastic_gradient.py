"""The gradient of an expectation: 1,000 paths of Euler-Maruyama, by drift and diffusion.

d/dp of the mean of u(1)^2 for du = -p0 u dt + p1 u dW in two components, 100 steps, in double
precision: the same method on both sides, differentiated through its steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from benchmarks.case import OURS, Peer, Row
from benchmarks.timing import Call, interleaved

PATHS, STEPS, DIM = 1_000, 100, 2
P = np.array([1.0, 0.3])
PACKAGES = ("torch", "torchsde")


def _ours() -> Call:
    prob = dj.SDEProblem(
        lambda u, p, t: -p[0] * u, lambda u, p, t: p[1] * u, jnp.ones(DIM), (0.0, 1.0)
    )
    keys = jax.random.split(jax.random.key(0), PATHS)

    def loss(p: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            return dj.solve(prob, dj.EM(), p=p, steps=STEPS, key=key, throw=False).u[-1]

        return jnp.mean(jax.vmap(one)(keys) ** 2)

    gradient = jax.jit(jax.grad(loss))
    return lambda: jax.block_until_ready(gradient(jnp.asarray(P)))


def _torchsde() -> Call:
    import torch
    import torchsde

    # Tensors this small lose time when shared among threads.
    torch.set_num_threads(1)
    start, times = torch.ones(PATHS, DIM, dtype=torch.float64), torch.tensor([0.0, 1.0])

    class Equation(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def __init__(self) -> None:
            super().__init__()
            self.p = torch.nn.Parameter(torch.tensor(P))

        def f(self, t: Any, u: Any) -> Any:
            return -self.p[0] * u

        def g(self, t: Any, u: Any) -> Any:
            return self.p[1] * u

    equation = Equation()

    def call() -> np.ndarray:
        u = torchsde.sdeint(equation, start, times.double(), method="euler", dt=1 / STEPS)
        return torch.autograd.grad((u[-1] ** 2).mean(), equation.p)[0].numpy()

    return call


def rows() -> list[Row]:
    if not Peer("torchsde", {}, packages=PACKAGES).installed:
        return [Row("sde_gradient", "torchsde", note="not installed")]
    calls: dict[str, Callable[[], Any]] = {OURS: _ours(), "torchsde": _torchsde()}
    # d/dp of exp(-2 p0 + p1^2), but for the bias of Euler's steps and the sampling error.
    wanted = np.exp(-2 * P[0] + P[1] ** 2) * np.array([-2.0, 2 * P[1]])
    errors = {
        name: float(np.linalg.norm(np.asarray(call()) - wanted) / np.linalg.norm(wanted))
        for name, call in calls.items()
    }
    run = interleaved(calls)
    return [
        Row(
            "sde_gradient",
            "torchsde",
            error_ours=errors[OURS],
            error_peer=errors["torchsde"],
            run_ours=run[OURS],
            run_peer=run["torchsde"],
            note="errors are those of the samples",
        )
    ]
