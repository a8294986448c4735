"""What drives a solve: noise of its own, or a path that the user gives."""

from typing import Any

from jaxtyping import Array, Bool, Float, UInt32

from .base import NoiseProcess
from .mixed import Correlated, Negated, Turned
from .random import key_from
from .steps import StepNoise
from .tree import VirtualBrownianTree


def own_noise(
    key: UInt32[Array, " 2"],
    dim: int,
    fixed: bool,
    t0: Float[Array, ""],
    t1: Float[Array, ""],
    direction: Any,
) -> NoiseProcess:
    """The noise of a solve from `direction * t0` to `direction * t1`, made from a key.

    Fixed steps draw a number a step; adaptive ones, of which some are refused, look a path up.
    """
    own = key_from(key, t0 * direction)
    if fixed:
        return StepNoise(own, dim)
    return VirtualBrownianTree(t0 * direction, t1 * direction, dim, own)


def noise_of_solve(
    process: NoiseProcess,
    factor: Array | None,
    negated: Bool[Array, ""] | None,
    dim: int,
    direction: Any,
) -> NoiseProcess:
    """The noise as the steps see it: correlated, negated, and in a time that runs forwards.

    **Raises:** `ValueError` if it does not have the `dim` components that g asks for.
    """
    if factor is not None:
        process = Correlated(process, factor)
    if process.dim != dim:
        raise ValueError(
            f"the noise must have {dim} components, as many as g asks for; "
            f"{'path' if factor is None else 'correlation'} has {process.dim}."
        )
    if negated is not None:
        process = Negated(process, negated)
    if isinstance(direction, float) and direction == 1.0:
        return process
    return Turned(process, direction)
