"""A neural ODE in two dimensions: u' = W2 tanh(W1 u^3 + b1) + b2 with 50 hidden units, in float32.

The example of the original package (a spiral in the cubes of its coordinates, 30 saves on
[0, 1.5]), from a batch of 128 initial states.
"""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HIDDEN = 50
BATCH = 128
TSPAN = (0.0, 1.5)
SAVES = np.linspace(0.0, 1.5, 30).astype(np.float32)
TOL = 1e-5
"""Looser, a trajectory takes five steps and its error follows the first step, not the tolerance."""

OUTPUT_SCALE = 3.0
"""Makes the field as lively as that of a network half trained: some ten steps a trajectory."""

TRUE_MATRIX = np.array([[-0.1, 2.0], [-2.0, -0.1]])
REFERENCE_SUBSTEPS = 64

Parameters = tuple[Any, Any, Any, Any]


def field(u: Any, p: Parameters, t: Any, xp: ModuleType = jnp) -> Any:
    """The network at one state (2,) or a batch of them (..., 2)."""
    w1, b1, w2, b2 = p
    return xp.tanh((u * u * u) @ w1 + b1) @ w2 + b2


def parameters() -> Parameters:
    """Glorot normal weights, the outer ones scaled, and no biases: the same in every process."""
    rng = np.random.default_rng(1)
    scale = np.sqrt(2.0 / (2 + HIDDEN))
    w1, w2 = rng.normal(0.0, scale, (2, HIDDEN)), rng.normal(0.0, scale, (HIDDEN, 2))
    values = (w1, np.zeros(HIDDEN), OUTPUT_SCALE * w2, np.zeros(2))
    return tuple(x.astype(np.float32) for x in values)


def initial_states() -> np.ndarray:
    """Initial states (batch, 2) at radius 0.5 to 2."""
    rng = np.random.default_rng(2)
    angle, radius = rng.uniform(0.0, 2 * np.pi, BATCH), rng.uniform(0.5, 2.0, BATCH)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).astype(np.float32)


def _trajectories(rhs: Any, u0: Any) -> Any:
    """States (saves, ...) by Runge-Kutta's fourth-order method in small fixed steps."""
    spacing = (TSPAN[1] - TSPAN[0]) / (len(SAVES) - 1)
    h = spacing / REFERENCE_SUBSTEPS

    def step(u: Any, _: Any) -> tuple[Any, None]:
        k1 = rhs(u)
        k2 = rhs(u + h / 2 * k1)
        k3 = rhs(u + h / 2 * k2)
        k4 = rhs(u + h * k3)
        return u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    @jax.checkpoint
    def interval(u: Any, _: Any) -> tuple[Any, Any]:
        u, _ = jax.lax.scan(step, u, None, REFERENCE_SUBSTEPS)
        return u, u

    _, later = jax.lax.scan(interval, u0, None, len(SAVES) - 1)
    return jnp.concatenate([u0[None], later])


@functools.cache
def targets() -> np.ndarray:
    """What the network should fit, (saves, batch, 2): the true spiral."""
    matrix = jnp.asarray(TRUE_MATRIX)
    u = _trajectories(lambda u: u**3 @ matrix, jnp.asarray(initial_states(), jnp.float64))
    return np.asarray(u, np.float32)


def loss(u: Any, target: Any) -> Any:
    """The squared distance of the batch's trajectories, a mean over the batch (axis 1)."""
    return ((u - target) ** 2).sum() / BATCH


@functools.cache
def reference_gradient() -> np.ndarray:
    """d(loss)/d(p), flat, in float64, by differentiating the small fixed steps."""
    p = tuple(jnp.asarray(x, jnp.float64) for x in parameters())
    u0 = jnp.asarray(initial_states(), jnp.float64)
    target = jnp.asarray(targets(), jnp.float64)
    gradient = jax.jit(
        jax.grad(lambda p: loss(_trajectories(lambda u: field(u, p, 0.0), u0), target))
    )(p)
    return np.concatenate([np.asarray(g).ravel() for g in gradient])
