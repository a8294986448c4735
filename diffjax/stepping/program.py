"""Programs that are traced only where they are used."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import jax
import jax.extend.core as jex
from jaxtyping import Array


class Program:
    """A function of arrays with the types of its results, traced when it is first looked into.

    Under `vmap`, or where a derivative takes its place, a program is never compiled; nor should it
    cost the time to trace it.
    """

    def __init__(
        self, function: Callable[..., Any], in_avals: Iterable[Any], out_avals: Iterable[Any]
    ) -> None:
        # Where it is called, what was traced is copied, not evaluated operation by operation.
        self.function = jax.jit(function, inline=True)
        self.in_avals, self.out_avals = list(in_avals), list(out_avals)

    @staticmethod
    def of(function: Callable[..., Any], *args: Array) -> "Program":
        """A program that is traced at once, since nothing else says what it gives back."""
        return Program.traced(jax.make_jaxpr(function)(*args))

    @staticmethod
    def traced(closed: Any) -> "Program":
        """The program of a closed jaxpr."""
        program = Program(jex.jaxpr_as_fun(closed), closed.in_avals, closed.out_avals)
        program.closed = closed
        return program

    @cached_property
    def closed(self) -> Any:
        """The traced function, a closed jaxpr."""
        return self.function.trace(*self.in_avals).jaxpr

    def __call__(self, *args: Array) -> list[Array]:
        return self.function(*args)

    def __repr__(self) -> str:
        return str(self.closed)


def inner_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs that an equation holds, of programs too."""
    programs = [x.closed.jaxpr for x in eqn.params.values() if isinstance(x, Program)]
    return [*jex.jaxprs_in_params(eqn.params), *programs]
