"""Errors of steps judged without their noise, so that step sizes are previsible: they follow from
what is known as a step begins.

A step that is refused for its own noise leaves a selection behind. What Euler's step leaves out,
g'g (dW**2 - dt)/2, has mean zero, but not over those steps that an estimate made of dW lets pass:
the solution converges, as tolerances go to zero, to that of another equation. An area of Levy that
is drawn given dW has the wrong law over steps that skip an end of a refused one, where the path was
seen. So the noise enters these estimates by its size alone, and refusals select nothing. The
signs that it gets as a direction are those of Walsh functions of the step's number: over successive
steps all pairs of noises occur with both signs equally often, so that the mean square of a
derivative along g has no mixed terms.

Sources: Gaines, Lyons, Variable step size control in the numerical solution of stochastic
differential equations, SIAM J. Appl. Math. 57 (1997), and Foster, Jelincic, On the convergence of
adaptive approximations for stochastic differential equations, arXiv 2311.14201, for methods that
converge to a wrong limit; Hofmann, Mueller-Gronbach, Ritter, The optimal discretization of
stochastic differential equations, J. Complexity 17 (2001), for step sizes by the state alone.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .base import Field, Norm, State
from .field import Diffusion
from .stages import scaled
from .stochastic import add, by_sum, drifted


class Probe(eqx.Module):
    """Where the state may be at the end of a step.

    - `end`: the time there.
    - `near`: the state without noise.
    - `noise`: numbers of the size of the increments, spread to be multiplied with g.
    - `moved`: the state moved by these.
    - `spread`: the root mean square of g dW.
    """

    end: Array
    near: State
    noise: State
    moved: State
    spread: State

    @staticmethod
    def of(diffusion: Diffusion, t: Array, dt: Array, near: State, g: State) -> "Probe":
        """From a state without noise, and the diffusion at the start of the step."""
        assert diffusion.number is not None
        root = jnp.sqrt(dt)
        signs = _walsh(diffusion.number, diffusion.noise.dim).astype(dt.dtype)
        noise = diffusion.spread(root * signs, near)
        moved = add(near, diffusion.times(g, noise))
        return Probe(t + dt, near, noise, moved, over_noises(diffusion, g, root))

    @property
    def size(self) -> State:
        """How large the state may be, for tolerances relative to it."""
        return jtu.tree_map(lambda x, s: jnp.abs(x) + s, self.near, self.spread)

    def drift_left_out(self, field: Field, dt: Array, f: State) -> State:
        """Half of what the drift changes by over the step, times its length."""
        return jtu.tree_map(lambda a, b: 0.5 * scaled(a - b, dt), field.f(self.end, self.moved), f)


def error_of_euler(
    field: Field, t: Array, dt: Array, u: State, f: State, g: State, norm: Norm
) -> Float[Array, ""]:
    """Of a step without the double integrals of the noise, (D g_k) g_j I_jk, whose root mean
    squares are dt/sqrt(2)."""
    assert field.diffusion is not None
    probe = Probe.of(field.diffusion, t, dt, drifted(u, f, dt), g)
    parts = probe.drift_left_out(field, dt, f), noise_left_out(field.diffusion, probe, dt, g)
    return by_sum(norm, parts, u, probe.size)


def noise_left_out(diffusion: Diffusion, probe: Probe, dt: Array, g: State) -> State:
    """The double integrals of the noise, in the root mean square."""
    change = jtu.tree_map(jnp.subtract, diffusion.g(probe.end, probe.moved), g)
    return over_noises(diffusion, change, jnp.sqrt(dt / 2))


def error_of_milstein(
    field: Field, t: Array, dt: Array, u: State, f: State, g: State, norm: Norm
) -> Float[Array, ""]:
    """Of a step without the triple integrals of the noise, whose root mean squares are
    sqrt(dt**3/6)."""
    diffusion = field.diffusion
    assert diffusion is not None
    probe = Probe.of(diffusion, t, dt, drifted(u, f, dt), g)
    once = diffusion.g(probe.end, probe.moved)
    twice = diffusion.g(probe.end, add(probe.moved, diffusion.times(once, probe.noise)))
    change = jtu.tree_map(lambda a, b, c: a - 2 * b + c, twice, once, g)
    third = over_noises(diffusion, change, jnp.sqrt(dt / 6))
    return by_sum(norm, (probe.drift_left_out(field, dt, f), third), u, probe.size)


def weak_error_of_euler(
    field: Field, t: Array, dt: Array, u: State, f: State, g: State, norm: Norm
) -> Float[Array, ""]:
    """What Euler's step leaves out of the mean of an element, and of its root mean square.

    The mean changes with the even part of f in the noise. The variance changes with what the
    noise's amplitude does, the even part of g and the odd one of f, and by the square of the double
    integrals.
    """
    diffusion = field.diffusion
    assert diffusion is not None
    probe, root = Probe.of(diffusion, t, dt, drifted(u, f, dt), g), jnp.sqrt(dt)
    opposite = jtu.tree_map(lambda x, y: 2 * x - y, probe.near, probe.moved)
    fs = [field.f(probe.end, at) for at in (probe.moved, opposite)]
    gs = [diffusion.g(probe.end, at) for at in (probe.moved, opposite)]
    mean = jtu.tree_map(lambda a, b, c: scaled((a + b) / 2 - c, dt / 2), *fs, f)
    drift = jtu.tree_map(lambda a, b: jnp.abs(scaled(a - b, dt / 4)), *fs)
    even = jtu.tree_map(lambda a, b, c: (a + b) / 2 - c, *gs, g)
    odd = jtu.tree_map(lambda a, b: (a - b) / 2, *gs)
    amplitude = add(drift, over_noises(diffusion, even, root / 2))
    double = over_noises(diffusion, odd, root / 2**0.5)

    def share(s: Array, a: Array, d: Array, size: Array) -> Array:
        """sqrt(size**2 + change) - size, of a change of the variance."""
        change = 2 * s * a + d**2 + float(jnp.finfo(d.dtype).tiny)
        return change / (size + jnp.sqrt(size**2 + change))

    variance = jtu.tree_map(share, probe.spread, amplitude, double, probe.size)
    return by_sum(norm, (mean, variance), u, probe.size)


def over_noises(diffusion: Diffusion, change: State, size: Array) -> State:
    """The root mean square of something like g times independent noises of a size; real."""

    def one(x: Array) -> Array:
        if not diffusion.is_matrix:
            return jnp.abs(scaled(x, size))
        square = jnp.sum(jnp.real(x * jnp.conj(x)), axis=-1)
        # The root of zero has no derivative, and an error of zero does occur.
        return scaled(jnp.sqrt(square + float(jnp.finfo(square.dtype).tiny)), size)

    return jtu.tree_map(one, change)


def _walsh(number: Array, dim: int) -> Array:
    """Signs of so many noises in a step."""
    rows = jnp.arange(1, dim + 1, dtype=jnp.uint32)
    return 1 - 2 * (jax.lax.population_count(rows & number.astype(jnp.uint32)) & 1).astype(int)
