"""What the layers have in common: settings that are no weights, and what a call gives back."""

from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from ..solution import Solution


def settings(tree: PyTree) -> PyTree:
    """`tree` with its arrays as Python numbers, so that no optimizer takes them for weights.

    Tracers stay, and with them derivatives with respect to times.
    """

    def plain(x: Any) -> Any:
        known = eqx.is_inexact_array(x) and not isinstance(x, Tracer)
        return np.asarray(x).tolist() if known else x

    return jtu.tree_map(plain, tree, is_leaf=lambda x: isinstance(x, eqx.Module))


def check_callable(name: str, model: Any) -> None:
    """Raise unless a network can be called."""
    if not callable(model):
        raise TypeError(f"{name} must be callable, {name}(u), got {type(model).__name__}.")


def output(sol: Solution, solve_options: dict[str, Any]) -> PyTree:
    """The states at the save times, or without any the final state."""
    if solve_options.get("saveat") is not None:
        return sol.u
    return jtu.tree_map(lambda u: u[-1], sol.u)
