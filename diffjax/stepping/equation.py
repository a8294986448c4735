"""From the arguments of a problem to the field that steps are taken with."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..algorithms.base import Field
from .layout import Layout
from .matrices import lay_out_mass, lay_out_sparsity, trace_jacobian, trace_jacobians
from .trace import trace_field, trace_residual


def trace_equation(
    problem: Mapping[str, Any],
    layout: Layout,
    u: PyTree,
    p: Any,
    t: Array,
    direction: Any,
    changing: tuple[int, ...] = (),
) -> Field:
    """The vector field of M u' = f with its mass matrix and Jacobian, where it has them, or that of
    F(u', u, p, t) = 0, whose start is not known here.

    `problem` are the arguments of a problem by name, `p` the `Parts` of its parameters, of whose
    leaves those that are `changing` come last among the arguments of each function.
    """
    sparsity = lay_out_sparsity(problem, layout, u, p.value, t)
    jac, traced, implicit = problem.get("jac"), (None, None), "F" in problem
    if jac is not None:
        trace = trace_jacobians if implicit else trace_jacobian
        traced = trace(jac, layout, u, p, t, direction, changing)
    if implicit:
        jaxpr, args = trace_residual(problem["F"], layout, u, p, t, direction, changing)
        slope = jtu.tree_map(jnp.zeros_like, layout.ravel(u))
        return Field(jaxpr, args, None, *traced, slope=slope, sparsity=sparsity)
    jaxpr, args = trace_field(problem["f"], layout, u, p, t, direction, changing)
    mass = problem.get("mass_matrix")
    laid_out = None if mass is None else lay_out_mass(mass, layout, sparsity)
    return Field(jaxpr, args, laid_out, *traced, sparsity=sparsity)
