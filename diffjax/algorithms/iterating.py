"""What steps that iterate have in common: what they count, and how one that failed looks."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# The error of a step whose iteration failed although the vector field is finite.
FAILED_ERROR = 2.0
# Iterations whose updates shrink by less than this are slow enough to want a new Jacobian.
SLOW = 0.05


class Work(NamedTuple):
    """The statistics that such steps count for themselves."""

    nf: Int[Array, ""]
    njac: Int[Array, ""]
    nfactor: Int[Array, ""]
    nsolve: Int[Array, ""]
    nnewton_fail: Int[Array, ""]


def error_or_failed(
    error: Float[Array, ""], converged: Bool[Array, ""], regular: Bool[Array, ""]
) -> Float[Array, ""]:
    """The error of a step; if its iteration failed one that says so, NaN where the Jacobian is not
    finite (`regular`), so that the solve ends as unstable."""
    failed = jnp.where(regular, FAILED_ERROR, jnp.nan).astype(error.dtype)
    return jnp.where(converged, error, failed)
