"""What drives a stochastic equation, as steps see it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class Need(NamedTuple):
    """What a method wants to know of the noise in a step, beside its increment.

    - `area`: the integral of the noise over the step.
    - `extra`: so many independent standard normal numbers.
    """

    area: bool = False
    extra: int = 0


class Increment(NamedTuple):
    """The noise in a step from t to t + dt.

    - `dw`: W(t + dt) - W(t).
    - `area`: the integral over the step of W(s) - W(t), which is I_(1,0); None if not needed.
    - `extra`: independent standard normal numbers; None if not needed.
    """

    dw: Float[Array, " dim"]
    area: Float[Array, " dim"] | None = None
    extra: Float[Array, " extra"] | None = None


class NoiseProcess(eqx.Module):
    """What drives a stochastic equation; given to `solve` as `path=`.

    It is a pytree, so a path can be batched by `vmap`. `path(t)` is its value at a time, of shape
    (dim,), or at an array of times.
    """

    @property
    def anywhere(self) -> bool:
        """Whether any step may be taken, and not only one of a fixed sequence."""
        return True

    @property
    def has_area(self) -> bool:
        """Whether it can give the integral over a step."""
        return True

    @property
    def has_extra(self) -> bool:
        """Whether it can give further normal numbers."""
        return False

    @property
    def has_times(self) -> bool:
        """Whether the noise of a step has a derivative with respect to its ends."""
        return False

    @property
    def dim(self) -> int:
        """How many noises there are."""
        raise NotImplementedError

    @property
    def covariance(self) -> Float[Array, "dim dim"] | None:
        """Of the increments over a unit of time; None for the identity."""
        return None

    @property
    def smallest(self) -> Float[Array, ""] | None:
        """The shortest step whose increment has the right law; None if none is too short."""
        return None

    def at(self, t: Float[Array, ""]) -> Float[Array, " dim"]:
        """The value at one time."""
        raise NotImplementedError

    def kept(self) -> "NoiseProcess":
        """The same without what can be computed again."""
        return self

    def filled(self) -> "NoiseProcess":
        """The same with what `kept` leaves out."""
        return self

    def look(self, t: Float[Array, ""]) -> PyTree:
        """What is known of the path where a step begins; None if nothing is looked up."""
        return None

    def over(
        self, number: Array, start: Array, dt: Array, need: Need, here: PyTree
    ) -> tuple[Increment, PyTree]:
        """The noise in step `number` of a solve, from `start` to `start + dt`, and what is known of
        the path there; `here` is what is known of it at `start`. `dt` may be negative."""
        raise NotImplementedError

    def __call__(self, t: Any) -> Float[Array, "*times dim"]:
        """The value at a time, or at an array of times."""
        times = jnp.asarray(t, float)
        values = jax.vmap(self.at)(times.reshape(-1))
        return values.reshape(*times.shape, self.dim)
