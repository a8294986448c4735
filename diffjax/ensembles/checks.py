"""Judging the arguments of an ensemble.

Every message names the argument, what came, what was wanted and what to try.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ..problems.base import Problem
from ..problems.ensemble import EnsembleProblem
from ..problems.parts import is_array
from .reductions import Reduction, Together


def check_arguments(
    prob: EnsembleProblem,
    options: dict[str, Any],
    key: Any,
    antithetic: Any,
    trajectories: Any,
    batch_size: Any,
    mesh: Any,
) -> int:
    """The number of trajectories, if all is well."""
    if trajectories is None:
        raise ValueError("an EnsembleProblem needs trajectories=, how many are to be solved.")
    count = _positive("trajectories", trajectories)
    if batch_size is not None:
        _positive("batch_size", batch_size)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}; "
            'try jax.make_mesh((jax.device_count(),), ("trajectories",)).'
        )
    if key is not None and not is_array(key):
        raise TypeError(
            f"key must be a key such as jax.random.key(0), got {type(key).__name__} {key!r}."
        )
    if not isinstance(antithetic, bool):
        raise TypeError(
            "antithetic of an ensemble must be True or False, for every second trajectory or none, "
            f"got {antithetic!r}."
        )
    if options["resume"] is not None:
        raise ValueError(
            "resume has no meaning for an ensemble; let prob_func start each problem from there."
        )
    fold = prob.reduction
    fold = Together(fold) if isinstance(fold, tuple) else fold
    if mesh is not None and fold is not None and not isinstance(fold, Reduction):
        raise TypeError(
            "reduction on a mesh must know how to put the accumulators of two devices together: "
            f"give a dj.ensembles.Reduction such as dj.EnsembleMoments(), got {fold!r}."
        )
    return count


def _positive(name: str, value: Any) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def check_member(member: Any) -> None:
    """Raise unless `prob_func` gave a problem."""
    if not isinstance(member, Problem) or isinstance(member, EnsembleProblem):
        raise TypeError(
            f"prob_func must return a problem, got {type(member).__name__}; "
            "try lambda prob, i, key: dj.remake(prob, p=ps[i])."
        )


def check_accumulator(fold: Any, acc: PyTree, out: PyTree) -> PyTree:
    """The accumulator in the dtypes in which the reduction gives it back."""
    outs = jtu.tree_map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), out)
    new = jax.eval_shape(fold, acc, outs)
    shapes = [jtu.tree_map(lambda x: x.shape, tree) for tree in (acc, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "reduction must return an accumulator of the structure and shapes of init, "
            f"{shapes[0]}, got {shapes[1]}."
        )
    return jtu.tree_map(lambda x, like: jnp.asarray(x, like.dtype), acc, new)
