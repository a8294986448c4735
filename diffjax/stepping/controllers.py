"""How large the next step is.

A controller sees the scaled error of an attempted step (accept at or below 1) and gives the factor
by which the step changes. Errors enter as logarithms: one `log` and one `exp` a step, in single
precision, which is far more than a factor of a step needs and several times as fast.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .trees import number, where

# Hairer, Norsett, Wanner, Solving ODEs I, section II.4; Hairer, Wanner, Solving ODEs II, IV.2.
SAFETY = 0.9
MIN_FACTOR = 0.2
MAX_FACTOR = 10.0
# The first successful step may grow by this much: a start that was guessed far too small costs
# one step, not twenty (Hindmarsh et al., SUNDIALS CVODE user guide, eta_max after the first step).
FIRST_MAX_FACTOR = 1.0e4
# Errors below this count as this large in the controller's memory, so that one very accurate
# step does not throttle the next.
MIN_REMEMBERED_ERROR = 1.0e-4
# Below this the logarithm is taken of a constant.
_TINY_ERROR = 1.0e-30


def _log_error(error: Array) -> Float[Array, ""]:
    error = lax.convert_element_type(error, jnp.float32)
    return lax.log(lax.max(error, number(_TINY_ERROR, error)))


class Controller(eqx.Module):
    """Base class of step-size controllers: `init` and `factor`."""

    def init(self) -> PyTree[Array]:
        """What the controller remembers before the first step."""
        raise NotImplementedError

    def factor(
        self, error: Float[Array, ""], accepted: Array, first: Array, memory: PyTree, order: float
    ) -> tuple[Float[Array, ""], PyTree]:
        """The factor for the next step and the memory after an accepted one.

        `order` is that of the local error estimate plus one: the error scales as dt**order.
        """
        raise NotImplementedError


class PIDController(Controller):
    """Proportional-integral-derivative control of the error.

    The factor is `safety * e_n**(-beta1/k) * e_(n-1)**(beta2/k) * e_(n-2)**(-beta3/k)`, with k the
    order of the error estimate plus one, clipped to `[min_factor, max_factor]`.

    **Arguments:**

    - `beta1`, `beta2`, `beta3`: exponents of the last three errors. With `beta2 = beta3 = 0` and
        `beta1 = 1` this is the I controller.
    - `safety`, `min_factor`, `max_factor`: bounds on the change of the step.
    - `first_max_factor`: bound on the growth of the first accepted step.

    Source: Söderlind, Digital filters in adaptive time-stepping, ACM TOMS 29 (2003); signs as in
    Hairer, Norsett, Wanner, Solving ODEs I, section II.4.

    !!! example
        `dj.solve(prob, dj.Tsit5(), controller=dj.PIDController(0.7, -0.23, 0.0))`
    """

    beta1: float = eqx.field(static=True, default=0.85)
    beta2: float = eqx.field(static=True, default=-0.2)
    beta3: float = eqx.field(static=True, default=0.0)
    safety: float = eqx.field(static=True, default=SAFETY)
    min_factor: float = eqx.field(static=True, default=MIN_FACTOR)
    max_factor: float = eqx.field(static=True, default=MAX_FACTOR)
    first_max_factor: float = eqx.field(static=True, default=FIRST_MAX_FACTOR)

    def init(self) -> PyTree[Array]:
        """Logarithms of the last one or two accepted errors, none for the I controller."""
        remembered = 2 if self.beta3 else (1 if self.beta2 else 0)
        return tuple(jnp.zeros((), jnp.float32) for _ in range(remembered))

    def factor(
        self, error: Float[Array, ""], accepted: Array, first: Array, memory: PyTree, order: float
    ) -> tuple[Float[Array, ""], PyTree]:
        log_error = _log_error(error)

        def weighted(beta: float, log_error: Array) -> Array:
            return lax.mul(number(beta / order, log_error), log_error)

        exponent = plain = weighted(-self.beta1, log_error)
        for beta, remembered in zip((self.beta2, self.beta3), memory, strict=False):
            exponent = lax.sub(exponent, weighted(beta, remembered))
        # A rejected step shrinks by the error it made, whatever came before.
        exponent = where(accepted, exponent, lax.min(plain, number(0, plain)))
        largest = where(first, self.first_max_factor, number(self.max_factor, plain))
        largest = where(accepted, largest, 1)
        factor = lax.mul(number(self.safety, plain), lax.exp(exponent))
        factor = lax.clamp(number(self.min_factor, plain), factor, largest)
        # A step that was not finite tells nothing about the error but that it was too large.
        factor = where(lax.is_finite(error), factor, self.min_factor)
        kept = lax.max(log_error, number(math.log(MIN_REMEMBERED_ERROR), log_error))
        shifted = (kept, *memory)[: len(memory)]
        factor = lax.convert_element_type(factor, error.dtype)
        return factor, where(accepted, shifted, tuple(memory))


def PIController(beta1: float = 0.85, beta2: float = -0.2, **bounds: float) -> PIDController:
    """Proportional-integral control, the default for explicit methods.

    **Arguments:** `beta1`, `beta2` as in `PIDController`; `safety`, `min_factor`, `max_factor`,
    `first_max_factor` by name.

    Source: Gustafsson, ACM TOMS 17 (1991); constants of DOPRI5 (Hairer, Norsett, Wanner, Solving
    ODEs I, section II.4: 0.2 - 0.75*0.04 and 0.04, times the order 5). Measured against SciPy
    they take fewer evaluations at the same error than 7/10 and 2/5, which aim too low.

    !!! example
        `dj.solve(prob, dj.Tsit5(), controller=dj.PIController(max_factor=5.0))`
    """
    return PIDController(beta1, beta2, 0.0, **bounds)


def IController(**bounds: float) -> PIDController:
    """Integral control: the step follows the last error alone.

    **Arguments:** `safety`, `min_factor`, `max_factor`, `first_max_factor` by name.

    Source: Hairer, Norsett, Wanner, Solving ODEs I, equation II.4.13.

    !!! example
        `dj.solve(prob, dj.Tsit5(), controller=dj.IController())`
    """
    return PIDController(1.0, 0.0, 0.0, **bounds)
