"""The table of stochastic methods, equations with a closed form, and how errors are measured.

Every equation is solved on paths of `dj.noise.VirtualBrownianTree`, which knows W(t) and its
integral at any time; a closed form is a function of these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import diffjax as dj

# Halvings of the span, for steps of at least 1/4096 of it.
DEPTH = 12


@dataclass(frozen=True)
class StrongMethod:
    """A method and the equation on which its strong order is observed.

    - `at_most`: by how much it may be exceeded, as it is where terms of higher order are larger.
    """

    make: Callable[[], dj.Algorithm]
    order: float
    equation: str
    steps: tuple[int, ...] = (16, 32, 64)
    at_most: float = 0.2

    @property
    def name(self) -> str:
        return self.make.__name__


@dataclass(frozen=True)
class Equation:
    """A problem, how many noises it has, and its solution at the end from W and its integral."""

    problem: dj.SDEProblem
    dim: int
    exact: Callable[[Float[Array, " dim"], Float[Array, " dim"]], Array]


def ends(
    prob: dj.SDEProblem, alg: dj.Algorithm, steps: tuple[int, ...], path: dj.noise.NoiseProcess
) -> Float[Array, "numbers ..."]:
    """The state at the end, by number of steps. The numbers are multiples of the first, which is
    how many steps a solve takes before the next goes on from its end: one program for all."""
    t0, t1 = prob.tspan

    def end(parts: Array) -> Array:
        def part(i: Array, u: Array) -> Array:
            span = tuple(t0 + (t1 - t0) * ((i + k) / parts) for k in (0, 1))
            return dj.solve(prob, alg, u0=u, tspan=span, steps=steps[0], path=path).u_end

        return jax.lax.fori_loop(0, parts, part, prob.u0)

    return jax.lax.map(end, jnp.array([n // steps[0] for n in steps]))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def brownian_paths(
    number: int, dim: int, t0: float = 0.0, t1: float = 1.0
) -> tuple[dj.noise.VirtualBrownianTree, Array, Array]:
    """Paths with W(t1) and its integral: made for all methods alike, by one program."""

    def one(key: Array) -> tuple[dj.noise.VirtualBrownianTree, Array, Array]:
        tree = dj.noise.VirtualBrownianTree(t0, t1, dim, key, depth=DEPTH)
        end = tree.look(jnp.asarray(t1))
        # What the tree keeps is of a span of length one.
        return tree, t1**0.5 * end.w, t1**1.5 * end.integral

    return jax.vmap(one)(jax.random.split(jax.random.key(3), number))


def rms_errors(
    alg: dj.Algorithm, equation: Equation, steps: tuple[int, ...], paths: int = 400
) -> np.ndarray:
    """The root mean square error at the end, over paths and components, by number of steps."""

    @jax.jit
    @jax.vmap
    def errors(tree: dj.noise.VirtualBrownianTree, w: Array, integral: Array) -> Array:
        exact = equation.exact(w, integral)
        got = ends(equation.problem, alg, steps, tree)
        return jax.vmap(lambda u: jnp.mean((u - exact) ** 2))(got)

    given = brownian_paths(paths, equation.dim, *equation.problem.tspan)
    return np.sqrt(np.mean(errors(*given), axis=0))


def observed_order(errors: np.ndarray, steps: tuple[int, ...]) -> float:
    """The slope of the errors over the step's length."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def sinh_equation(interpretation: Any, **kind: Any) -> Equation:
    """u = sinh(X) with X = a t + int b dW and b = b0 + b1 t: int b dW = b(1) W(1) - b1 int W.

    Neither linear nor a function of W(1) alone, and f, g and their times matter.
    """
    a, b0, b1 = 0.4, 0.8, -0.3

    def b(t: Array) -> Array:
        return b0 + b1 * t

    def f(u: Array, p: Any, t: Array) -> Array:
        drift = a * jnp.sqrt(1 + u**2)
        return drift + 0.5 * b(t) ** 2 * u if interpretation == "ito" else drift

    def g(u: Array, p: Any, t: Array) -> Array:
        return b(t) * jnp.sqrt(1 + u**2)

    def exact(w: Array, integral: Array) -> Array:
        return jnp.sinh(a + (b0 + b1) * w - b1 * integral)

    problem = dj.SDEProblem(f, g, jnp.zeros(1), (0.0, 1.0), interpretation=interpretation, **kind)
    return Equation(problem, 1, exact)


# Roessler 2010, equation 7.4: the drift, and the matrix of each of its noises.
ROESSLER_DRIFT = np.full((4, 4), 1 / 20) - (3 / 2 + 1 / 20) * np.eye(4)
ROESSLER_COLUMN = np.full((4, 4), 1 / 100) + (1 / 5 - 1 / 100) * np.eye(4)
ROESSLER_START = np.array([1.0, -0.5, 0.75, 0.25])


def linear_system(noise: Any, interpretation: Any, columns: Any = None) -> Equation:
    """du = A u dt + sum_k B_k u dW_k with matrices that commute, so that the solution is the
    exponential of (A - sum B_k^2/2) t + sum B_k W_k applied to u0, without the squares if
    Stratonovich. Roessler 2010, equation 7.4, by default with two noises that differ."""
    drift, start, d = ROESSLER_DRIFT, jnp.asarray(ROESSLER_START), 4
    if columns is None:
        columns = np.stack([ROESSLER_COLUMN, ROESSLER_COLUMN @ ROESSLER_COLUMN * 4])

    def f(u: Array, p: Any, t: Array) -> Array:
        return jnp.asarray(drift) @ u

    def g(u: Array, p: Any, t: Array) -> Array:
        return jnp.stack([jnp.asarray(b) @ u for b in columns], axis=-1)

    squares = sum(b @ b for b in columns) if interpretation == "ito" else np.zeros((d, d))

    def exact(w: Array, integral: Array) -> Array:
        exponent = jnp.asarray(drift - squares / 2) + jnp.einsum("k,kij->ij", w, columns)
        return jax.scipy.linalg.expm(exponent) @ start

    problem = dj.SDEProblem(f, g, start, (0.0, 1.0), noise=noise, interpretation=interpretation)
    return Equation(problem, len(columns), exact)


def additive_equation() -> Equation:
    """du = (b/sqrt(1+t) - u/(2(1+t))) dt + a b/sqrt(1+t) dW (DiffEqProblemLibrary)."""
    a, b = 0.1, 0.05

    def f(u: Array, p: Any, t: Array) -> Array:
        return b / jnp.sqrt(1 + t) - u / (2 * (1 + t))

    def g(u: Array, p: Any, t: Array) -> Array:
        return jnp.full(1, a * b) / jnp.sqrt(1 + t)

    def exact(w: Array, integral: Array) -> Array:
        return (1 + b * (1 + a * w)) / 2**0.5

    return Equation(dj.SDEProblem(f, g, jnp.ones(1), (0.0, 1.0), noise="additive"), 1, exact)


def polynomial_of_motion() -> Equation:
    """X = W, Y = int W, Z = sin(Y): noise that is additive, and a solution beyond W(1)."""

    def f(u: Array, p: Any, t: Array) -> Array:
        x, y, _ = u
        return jnp.stack([jnp.zeros_like(x), x, x * jnp.cos(y)])

    def g(u: Array, p: Any, t: Array) -> Array:
        return jnp.array([1.0, 0.0, 0.0])

    def exact(w: Array, integral: Array) -> Array:
        return jnp.stack([w[0], integral[0], jnp.sin(integral[0])])

    return Equation(dj.SDEProblem(f, g, jnp.zeros(3), (0.0, 1.0), noise="additive"), 3, exact)


def linear_equation(interpretation: Any) -> Equation:
    """du = alpha u dt + beta u dW (DiffEqProblemLibrary)."""
    alpha, beta = 1.01, 0.87
    shift = 0.5 * beta**2 if interpretation == "ito" else 0.0
    problem = dj.SDEProblem(
        lambda u, p, t: alpha * u,
        lambda u, p, t: beta * u,
        jnp.array([0.5]),
        (0.0, 1.0),
        interpretation=interpretation,
    )
    return Equation(problem, 1, lambda w, integral: 0.5 * jnp.exp(alpha - shift + beta * w))


def stiff_quadratic() -> Equation:
    """du = -(a + b^2 u)(1 - u^2) dt + b (1 - u^2) dW (DiffEqProblemLibrary)."""

    def exact(w: Array, integral: Array) -> Array:
        e = jnp.exp(-2 * 3.0 + 2 * w)
        return (1.5 * e - 0.5) / (1.5 * e + 0.5)

    problem = dj.SDEProblem(
        lambda u, p, t: -(1 + u) * (1 - u**2),
        lambda u, p, t: 1 - u**2,
        jnp.array([0.5]),
        (0.0, 3.0),
    )
    return Equation(problem, 1, exact)


def ornstein_uhlenbeck() -> dj.SDEProblem:
    """dx = theta (mu - x) dt + sigma dW (DiffEqNoiseProcess.jl)."""
    return dj.SDEProblem(
        lambda u, p, t: 1.0 * (1.2 - u),
        lambda u, p, t: jnp.full(1, 0.3),
        jnp.array([2.0]),
        (0.0, 1.0),
        noise="additive",
    )


def asinh_equation() -> dj.SDEProblem:
    """A scalar equation with E[z^3 - 6 z^2 + 8 z] = t^3 - 3 t^2 + 2 t for z = asinh u (Debrabant,
    Roessler, arXiv 1303.5103)."""
    return dj.SDEProblem(
        lambda u, p, t: u / 2 + jnp.sqrt(u**2 + 1),
        lambda u, p, t: jnp.sqrt(u**2 + 1),
        jnp.zeros(1),
        (0.0, 2.0),
    )


def two_by_four() -> Equation:
    """du = (A u + 1.01 u) dt + 0.87 u sum_k dW_k, with four noises (StochasticDiffEq.jl, tests of
    commutative noise)."""
    drift = np.array([[-2.0, 1.0], [1.0, -2.0]]) + 1.01 * np.eye(2)
    start = jnp.array([0.6, 0.3])

    def exact(w: Array, integral: Array) -> Array:
        exponent = drift - 2 * 0.87**2 * np.eye(2)
        return jax.scipy.linalg.expm(jnp.asarray(exponent)) @ start * jnp.exp(0.87 * jnp.sum(w))

    problem = dj.SDEProblem(
        lambda u, p, t: jnp.asarray(drift) @ u,
        lambda u, p, t: 0.87 * jnp.broadcast_to(u[:, None], (2, 4)),
        start,
        (0.0, 1.0),
        noise="commutative",
    )
    return Equation(problem, 4, exact)


EQUATIONS = {
    "ito": lambda: sinh_equation("ito"),
    "stratonovich": lambda: sinh_equation("stratonovich"),
    "scalar": lambda: sinh_equation("ito", noise="scalar"),
    "commuting ito": lambda: linear_system("commutative", "ito"),
    "commuting stratonovich": lambda: linear_system("commutative", "stratonovich"),
    "additive": additive_equation,
    "polynomial": polynomial_of_motion,
}

STRONG_METHODS = [
    StrongMethod(dj.EM, 0.5, "ito"),
    StrongMethod(dj.EM, 1.0, "additive"),
    StrongMethod(dj.EulerHeun, 1.0, "commuting stratonovich", (64, 128, 256)),
    StrongMethod(dj.RKMil, 1.0, "ito"),
    StrongMethod(dj.RKMil, 1.0, "stratonovich"),
    StrongMethod(dj.RKMilCommute, 1.0, "commuting ito", (64, 128, 256)),
    StrongMethod(dj.RKMilCommute, 1.0, "commuting stratonovich", (64, 128, 256)),
    StrongMethod(dj.SRIW1, 1.5, "ito"),
    StrongMethod(dj.SOSRI, 1.5, "scalar", (64, 128, 256)),
    StrongMethod(dj.SOSRI2, 1.5, "ito"),
    StrongMethod(dj.SRA1, 1.5, "polynomial", at_most=0.7),
    StrongMethod(dj.SRA3, 1.5, "polynomial", at_most=0.7),
    StrongMethod(dj.SOSRA, 1.5, "polynomial", at_most=0.7),
    StrongMethod(dj.SKenCarp, 1.5, "polynomial", at_most=0.7),
    StrongMethod(dj.ImplicitEM, 0.5, "ito"),
    StrongMethod(dj.STrapezoid, 1.0, "additive", at_most=1.0),
    StrongMethod(dj.ImplicitRKMil, 1.0, "ito"),
    StrongMethod(dj.ImplicitRKMil, 1.0, "stratonovich"),
    StrongMethod(dj.SROCK1, 0.5, "ito"),
    StrongMethod(dj.SROCK1, 1.0, "stratonovich"),
]
