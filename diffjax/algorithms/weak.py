"""Weak stochastic Runge-Kutta methods: right in the law of the solution, not path by path."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ..noise.base import Increment
from .base import Field, Norm, State
from .field import Diffusion
from .previsible import weak_error_of_euler
from .stages import scaled
from .stochastic import ANY_NOISE, ITO, StochasticMethod, add, plus
from .tableaus.stochastic import DRI1 as TABLEAU

# A standard normal number is under the first with probability 1/6, under the second with 1/12.
_SIXTH, _TWELFTH = -0.9674215661017014, -1.3829941271006394


class _Draws(NamedTuple):
    """Independent variables with few values, made of the increments of a step.

    - `three`: 0 and +-sqrt(3 dt) with probabilities 2/3 and 1/6 each, in place of dW.
    - `two`: +-sqrt(dt), independent of them.
    """

    three: Float[Array, " dim"]
    two: Float[Array, " dim"]

    @staticmethod
    def of(dw: Float[Array, " dim"], dt: Array) -> "_Draws":
        root = jnp.sqrt(dt)
        z = dw / root
        outer = jnp.abs(z) > -_SIXTH
        three = jnp.where(outer, jnp.sign(z), 0.0) * jnp.sqrt(3 * dt)
        # Each of the three classes is halved: the inner one by sign, the others by size.
        upper = jnp.where(outer, jnp.abs(z) > -_TWELFTH, z > 0)
        return _Draws(three, jnp.where(upper, root, -root))

    def products(self, dt: Array) -> Float[Array, "dim dim"]:
        """In place of the iterated integrals I_(k,l), k != l; zero on the diagonal."""
        dim = self.three.shape[0]
        mixed = jnp.outer(self.three, self.three)
        turned = jnp.triu(jnp.broadcast_to(self.two[:, None], (dim, dim)), 1)
        area = jnp.sqrt(dt) * (turned.T - turned)
        return jnp.where(jnp.eye(dim, dtype=bool), 0.0, 0.5 * (mixed + area))


class DRI1(StochasticMethod):
    """A method of weak order 2 (3 without noise): Ito, any noise; adaptive.

    For expectations of functions of the solution by many paths; a path by itself converges to
    nothing, since the noise has few values. With m noises given as a matrix a step evaluates g
    4*m + 1 times, otherwise three times; the noises must be independent.

    The tolerances are for the law: the error of a step is that of Euler-Maruyama, the embedded
    method of weak order 1, in the mean of an element and in its root mean square, to leading order.
    It takes two evaluations of f and g more, at states moved by noise of the typical size, and
    looks at no number that the step draws. So the sizes of the steps follow from the states at
    their starts, the numbers in each have their law given these, and expectations are biased by the
    method's own errors alone; refused steps add nothing.

    Source: Debrabant and Roessler, Families of efficient second order Runge-Kutta methods for the
    weak approximation of Ito stochastic differential equations, Appl. Numer. Math. 59 (2009),
    section 4, table 4.

    !!! example
        `dj.solve(dj.EnsembleProblem(prob), dj.DRI1(), rtol=1e-2, trajectories=10000, key=key)`
    """

    noises: ClassVar[frozenset[str]] = ANY_NOISE
    interpretations: ClassVar[frozenset[str]] = ITO
    needs_independent_noises: ClassVar[bool] = True
    evaluations: ClassVar[int] = 5

    @property
    def order(self) -> float:
        """The weak one."""
        return 2.0

    @property
    def error_order(self) -> float:
        return 1.0

    def advance(
        self, field: Field, t: Array, dt: Array, u: State, noise: Increment, norm: Norm | None
    ) -> tuple[State, Float[Array, ""] | None]:
        diffusion = field.diffusion
        assert diffusion is not None
        draws = _Draws.of(noise.dw, dt)
        fs, g = [field.f(t, u)], diffusion.g(t, u)
        along = diffusion.times(g, diffusion.spread(draws.three, u))
        for a, b, c in zip(TABLEAU.a0[1:], TABLEAU.b0[1:], TABLEAU.c0[1:], strict=True):
            inner = jtu.tree_map(lambda x, y, b=b: x + b * y, plus(u, dt, a, fs), along)
            fs.append(field.f(t + c * dt, inner))
        end = plus(u, dt, TABLEAU.alpha, fs)
        near = plus(u, dt, (TABLEAU.c1,), fs)
        diffuse = _matrix if diffusion.is_matrix else _by_elements
        end = add(end, diffuse(diffusion, t, dt, u, near, g, draws))
        if norm is None:
            return end, None
        return end, weak_error_of_euler(field, t, dt, u, fs[0], g, norm)


def _weights(draws: _Draws, dt: Array) -> list[Array]:
    """Of the diffusion's stages along a noise itself."""
    square = (draws.three**2 - dt) / (2 * jnp.sqrt(dt))
    pairs = zip(TABLEAU.beta1, TABLEAU.beta2, strict=True)
    return [b1 * draws.three + b2 * square for b1, b2 in pairs]


def _by_elements(
    diffusion: Diffusion, t: Array, dt: Array, u: State, near: State, g: State, draws: _Draws
) -> State:
    """What noises add of which each drives its own element, or one drives all.

    What another noise's stages would add vanishes, since the weights `beta3` and `beta4` of equal
    values sum to zero.
    """
    root, after = jnp.sqrt(dt), t + TABLEAU.c1 * dt
    gs = [g]
    for b in TABLEAU.b1:
        gs.append(diffusion.g(after, plus(near, root, (b,), [g])))
    weights = [diffusion.spread(w, u) for w in _weights(draws, dt)]
    return add(*(diffusion.times(x, w) for x, w in zip(gs, weights, strict=True)))


def _matrix(
    diffusion: Diffusion, t: Array, dt: Array, u: State, near: State, g: State, draws: _Draws
) -> State:
    """What noises add that are given by columns."""
    root, after, dim = jnp.sqrt(dt), t + TABLEAU.c1 * dt, draws.three.shape[0]
    columns = jtu.tree_map(lambda x: jnp.moveaxis(x, -1, 0), g)

    def own(b: float) -> State:
        """Each column at a state moved along itself."""

        def column(k: Array, along: State) -> State:
            moved = diffusion.g(after, plus(near, root, (b,), [along]))
            return jtu.tree_map(lambda x: jnp.take(x, k, axis=-1), moved)

        return jax.vmap(column)(jnp.arange(dim), columns)

    stages = [columns, *(own(b) for b in TABLEAU.b1)]
    terms = [_sum(x, w) for x, w in zip(stages, _weights(draws, dt), strict=True)]
    # Each column at a state moved along another one, l, on axis 0.
    others = [plus(jtu.tree_map(jnp.zeros_like, columns), root, b, stages) for b in TABLEAU.b2]
    products = draws.products(dt) / root
    different = 1.0 - jnp.eye(dim, dtype=dt.dtype)
    first, *rest = zip(TABLEAU.beta3, TABLEAU.beta4, strict=True)
    terms.append(_sum(columns, first[0] * (dim - 1) * draws.three))
    for along, (b3, b4) in zip(others, rest, strict=True):
        moved = jax.vmap(lambda along: diffusion.g(t, add(u, along)))(along)
        weights = b3 * different * draws.three[None, :] + b4 * products.T
        terms.append(jtu.tree_map(lambda x, w=weights: _over_pairs(x, w), moved))
    return add(*terms)


def _sum(columns: State, weights: Float[Array, " dim"]) -> State:
    """The weighted sum of columns, which axis 0 counts."""
    total = jax.vmap(lambda column, w: jtu.tree_map(lambda x: scaled(x, w), column))
    return jtu.tree_map(lambda x: jnp.sum(x, axis=0), total(columns, weights))


def _over_pairs(values: Array, weights: Float[Array, "dim dim"]) -> Array:
    """The weighted sum over the first and the last axis."""
    shape = weights.shape[:1] + (1,) * (values.ndim - 2) + weights.shape[1:]
    return jnp.sum(values * weights.astype(values.dtype).reshape(shape), axis=(0, -1))
