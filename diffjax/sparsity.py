"""Whether a sparsity pattern is right: asked for once, not paid for in every solve."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .arguments import value_of
from .linear.coordinates import Coordinates
from .linear.detection import detected
from .linear.sparsity import full_band
from .problems.base import tree_of_arrays
from .problems.dae import DAEProblem
from .problems.ode import ODEProblem
from .problems.pattern import Pattern
from .stepping.matrices import field_of_state

# The state is moved by so much of its size, lest an entry that is zero at the start be overlooked.
_MOVED = 1e-3
_NAMED = 5


def check_sparsity(prob: ODEProblem | DAEProblem) -> None:
    """Compare `jac_sparsity` with the Jacobian near the start, computed column by column.

    Call it once where a pattern is new: a solve takes it as it is.

    **Arguments:**

    - `prob`: an `ODEProblem` or a `DAEProblem` with `jac_sparsity`.

    **Raises:** `ValueError` if the Jacobian has entries outside of the pattern, naming some;
    `TypeError` for a problem without one.

    !!! example
        `dj.check_sparsity(dj.ODEProblem(f, u0, tspan, p, jac_sparsity=(1, 1)))`
    """
    given = prob.arguments().get("jac_sparsity")
    if given is None:
        raise TypeError(
            f"check_sparsity needs a problem with jac_sparsity, got a {type(prob).__name__} "
            "without; give ODEProblem(..., jac_sparsity=)."
        )
    t0 = value_of(prob.tspan, prob.p)[0]
    u0 = jtu.tree_map(jnp.asarray, tree_of_arrays(value_of(prob.u0, prob.p, t0)))
    coordinates = Coordinates(u0)
    t, start = jnp.asarray(t0, coordinates.dtype), coordinates.flatten(u0)

    field = field_of_state(prob.arguments())

    def f(v: Any) -> Any:
        return coordinates.flatten(field(coordinates.unflatten(v), prob.p, t))

    noise = np.random.default_rng(0).normal(size=start.shape) * _MOVED
    moved = start + jnp.asarray(noise, start.dtype) * (1 + jnp.abs(start))
    jacobian = jax.jit(jax.jacfwd(f))
    found = sum(np.abs(np.asarray(jacobian(v))) for v in (start, moved)) != 0
    elements = _elements(u0)
    wanted = allowed(given, int(elements[-1]) + 1, prob, u0, t)[elements][:, elements]
    missing = np.unique(elements[np.argwhere(found & ~wanted.toarray())], axis=0)
    if missing.size:
        named = ", ".join(f"[{i}, {j}]" for i, j in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ValueError(
            f"jac_sparsity misses {len(missing)} entries in which the Jacobian near u0 is not "
            f'zero: {named}{more}; add them, or give jac_sparsity="detect".'
        )


def allowed(given: Any, n: int, prob: ODEProblem | DAEProblem, u: Any, t: Any) -> Any:
    """The pattern that `jac_sparsity` stands for, (n, n)."""
    if isinstance(given, tuple):
        return full_band(n, *given)
    if isinstance(given, Pattern):
        if given.matrix.shape != (n, n):
            raise ValueError(
                f"jac_sparsity must have shape ({n}, {n}) to fit the {n} elements of u0, got "
                f"{given.matrix.shape}."
            )
        return given.matrix
    return detected(field_of_state(prob.arguments()), u, prob.p, t)


def _elements(u: Any) -> np.ndarray:
    """The element that each real coordinate belongs to, counted leaf by leaf."""
    out, first = [], 0
    for x in jtu.tree_leaves(u):
        inside = first + np.arange(x.size)
        out += [inside] * (2 if jnp.iscomplexobj(x) else 1)
        first += x.size
    return np.concatenate(out)
