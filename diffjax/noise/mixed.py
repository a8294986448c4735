"""Other processes seen otherwise: mixed, negated, or in a time that runs backwards."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, PyTree

from .base import Increment, Need, NoiseProcess


class Wrapped(NoiseProcess):
    """Base class of a process made of another one's increments."""

    process: NoiseProcess

    def kept(self) -> NoiseProcess:
        return dataclasses.replace(self, process=self.process.kept())

    def filled(self) -> NoiseProcess:
        return dataclasses.replace(self, process=self.process.filled())

    @property
    def anywhere(self) -> bool:
        return self.process.anywhere

    @property
    def has_area(self) -> bool:
        return self.process.has_area

    @property
    def has_extra(self) -> bool:
        return self.process.has_extra

    @property
    def has_times(self) -> bool:
        return self.process.has_times

    @property
    def covariance(self) -> Float[Array, "dim dim"] | None:
        return self.process.covariance

    @property
    def smallest(self) -> Float[Array, ""] | None:
        return self.process.smallest


class Correlated(Wrapped):
    """Another process with its noises mixed: `factor @ process`.

    **Arguments:**

    - `process`: independent noises.
    - `factor`: of shape (dim, process.dim), for example the Cholesky factor of a covariance.

    **Returns:** a path.

    !!! example
        `path = dj.noise.Correlated(dj.noise.VirtualBrownianTree(0.0, 1.0, 2, key), factor)`
    """

    factor: Float[Array, "dim inner"]

    def __init__(self, process: NoiseProcess, factor: Any) -> None:
        self.process, self.factor = process, jnp.asarray(factor)
        if self.factor.ndim != 2 or self.factor.shape[1] != process.dim:
            raise ValueError(
                f"factor must have the shape (dim, {process.dim}), got {self.factor.shape}."
            )

    @property
    def dim(self) -> int:
        return self.factor.shape[0]

    @property
    def covariance(self) -> Float[Array, "dim dim"]:
        inner = self.process.covariance
        return self.factor @ (self.factor.T if inner is None else inner @ self.factor.T)

    def at(self, t: Array) -> Float[Array, " dim"]:
        return self.factor @ self.process.at(t)

    def look(self, t: Array) -> PyTree:
        return self.process.look(t)

    def over(
        self, number: Array, start: Array, dt: Array, need: Need, here: PyTree
    ) -> tuple[Increment, PyTree]:
        plain, there = self.process.over(number, start, dt, need, here)
        factor = self.factor.astype(dt.dtype)
        area = None if plain.area is None else factor @ plain.area
        return Increment(factor @ plain.dw, area, plain.extra), there


class Negated(Wrapped):
    """Another process, with its sign turned where `negated` is true."""

    negated: Bool[Array, ""]

    @property
    def dim(self) -> int:
        return self.process.dim

    def at(self, t: Array) -> Float[Array, " dim"]:
        return self._signed(self.process.at(t))

    def look(self, t: Array) -> PyTree:
        return self.process.look(t)

    def over(
        self, number: Array, start: Array, dt: Array, need: Need, here: PyTree
    ) -> tuple[Increment, PyTree]:
        # Of further numbers too: those that Levy areas are made of are linear in the path.
        plain, there = self.process.over(number, start, dt, need, here)
        return jtu.tree_map(self._signed, plain), there

    def _signed(self, x: Array) -> Array:
        return jnp.where(self.negated, -x, x)


class Turned(Wrapped):
    """A process in the time of a solve that runs backwards, where `direction` is -1.0; it may be
    an array, 1.0 or -1.0."""

    direction: Any

    @property
    def dim(self) -> int:
        return self.process.dim

    def at(self, t: Array) -> Float[Array, " dim"]:
        return self.process.at(t * self.direction)

    def look(self, t: Array) -> PyTree:
        return self.process.look(t * self.direction)

    def over(
        self, number: Array, start: Array, dt: Array, need: Need, here: PyTree
    ) -> tuple[Increment, PyTree]:
        turn = self.direction
        given, there = self.process.over(number, start * turn, dt * turn, need, here)
        # Time that runs backwards turns the sign of an integral over it.
        return given._replace(area=None if given.area is None else given.area * turn), there


class Retraced(Wrapped):
    """A process in the time -t, for steps that are those of a solve, from its last to its first."""

    @property
    def dim(self) -> int:
        return self.process.dim

    def at(self, t: Array) -> Float[Array, " dim"]:
        return self.process.at(-t)

    def over(
        self, number: Array, start: Array, dt: Array, need: Need, here: PyTree
    ) -> tuple[Increment, PyTree]:
        first = -(start + dt)
        given, _ = self.process.over(number, first, dt, need, self.process.look(first))
        return Increment(-given.dw), None
