"""Which order and which step size a BDF method takes next.

The error of a step is estimated as it is, and as it would have been at the order below and above;
the order that allows the longest step is taken. Then both are kept until the past lies on steps
that are alike, which the estimates need.

From order 3 on the formulas are not stable near the imaginary axis. There an oscillation that is
far below the tolerance grows until it is as large as that, and then keeps the steps short for ever:
on an elastic beam fifty times more of them than are needed. The orders 1 and 2 damp it, with
whatever step. Such an oscillation gives itself away: its differences hardly fall from one order to
the next, so that it is known how large it is (`amplitude`). Where for some time nothing larger is
what the errors are made of, the order is bounded for a while. CVODE's stability limit detection
serves the same purpose, by other signs.

Source: Shampine, Reichelt, The MATLAB ODE Suite, SIAM J. Sci. Comput. 18, 1997, section 2.3, with
factors of their ode15s; the bound on the first growth is CVODE's.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Scalar = Float[Array, ""]
# Of a step at the order below, at its own and above.
Errors = tuple[Scalar, Scalar, Scalar]

# By what a step stays below the one that would just do. A smaller factor for the order above than
# the 1.4 of ode15s saves 2 % of the evaluations at equal error.
SAFETY = (1.3, 1.2, 1.2)
MAX_FACTOR = 10.0
FIRST_MAX_FACTOR = 1e4
# A step that would change by a factor between these is kept. Rarer, larger changes than these cost
# 3 % at equal error, a fifth on a pendulum: there errors of equal steps cancel, and those of a
# sudden change stay.
HELD = (0.95, 1.05)
# A step that was rejected for its error changes by a factor between these.
CUT = (0.2, 0.9)
# A failed iteration, and values that are not finite, tell no more than that a step was too long.
FAILURE_FACTOR = 0.5
# Steps are alike if their sizes differ by less: landing on a stop changes them by a hundredth.
ALIKE = 0.02
# The highest order that is A-stable.
DAMPING_ORDER = 2
# What is smaller than this, in units of the tolerance, need not be resolved.
NOISE = 10.0
# A step that could grow by no more than this is kept short by its errors.
SHORT = 1.2
# Once so many more steps than others had nothing larger in their errors, the order is bounded for
# `DAMPED` steps. One or two look so by chance, where a derivative vanishes. Half of `NOISY` is too
# few for a pendulum at loose tolerances, half of `DAMPED` for the fastest modes of a beam.
NOISY = 10
DAMPED = 600
_TINY_ERROR = 1e-30


class Choice(NamedTuple):
    """The order of the next step, and how many steps there were of this order and size.

    - `noisy`: how many more of them than others had noise alone in their errors.
    - `damped`: for how many more the order stays bounded.
    """

    order: Int[Array, ""]
    kept: Int[Array, ""]
    noisy: Int[Array, ""]
    damped: Int[Array, ""]

    @staticmethod
    def first() -> "Choice":
        zero = jnp.zeros((), jnp.int32)
        return Choice(jnp.ones((), jnp.int32), zero, zero, zero)


def risen(choice: Choice, highest: int) -> Choice:
    """The choice where there is no error to choose by: the order rises as far as it may."""
    return choice._replace(order=jnp.minimum(choice.order + 1, highest))


def amplitude(order: Int[Array, ""], below: Scalar, same: Scalar) -> Scalar:
    """Of the oscillation that would have differences of these sizes, of order k and k + 1.

    They are geometric: each is `|1 - exp(i omega h)| <= 2` times the one before. The differences of
    what is resolved fall by much more, and it comes out as large as it is.
    """
    ratio = jnp.clip(same / jnp.maximum(below, _TINY_ERROR), 1e-3, 2.0)
    return same / ratio ** (order + 1).astype(ratio.dtype)


def after_acceptance(
    choice: Choice,
    errors: Errors,
    resolved: Scalar,
    h: Scalar,
    before: Scalar,
    max_order: int,
) -> tuple[Choice, Scalar, Bool[Array, ""]]:
    """The choice for the next step, the factor of its size, and whether it is the errors that keep
    that from growing: not the past, as after a start or a change.

    `before` is the size of the step before, zero if there was none; `resolved` the `amplitude` of
    what the errors are made of.
    """
    order, fresh = choice.order, before == 0
    kept = jnp.where(jnp.abs(h - before) <= ALIKE * h, choice.kept + 1, 1)
    below, same, above = _factors(order, errors)
    below = jnp.where(order > 1, below, 0)
    # Of the first step the error at the order above is not known.
    highest = jnp.where(choice.damped > 0, min(DAMPING_ORDER, max_order), max_order)
    above = jnp.where((order < highest) & ~fresh, above, 0)
    best = jnp.maximum(same, jnp.maximum(below, above))
    shift = jnp.where(same == best, 0, jnp.where(below == best, -1, 1))
    held = (best >= HELD[0]) & (best <= HELD[1])
    largest = jnp.where(fresh, FIRST_MAX_FACTOR, MAX_FACTOR)
    due = (kept > order) | fresh
    factor = jnp.where(due & ~held, jnp.minimum(best, largest), 1)
    changed = due & (~held | (shift != 0))
    judged = order > DAMPING_ORDER
    noise = (resolved < NOISE) & (best <= SHORT)
    noisy = jnp.maximum(choice.noisy + jnp.where(noise, 1, -1), 0)
    noisy = jnp.where(judged, noisy, choice.noisy)
    unstable = noisy >= NOISY
    choice = Choice(
        order=jnp.where(unstable, DAMPING_ORDER, order + jnp.where(due, shift, 0)),
        kept=jnp.where(changed | unstable, 0, kept),
        noisy=jnp.where(unstable, 0, noisy),
        damped=jnp.where(unstable, DAMPED, jnp.maximum(choice.damped - 1, 0)),
    )
    return choice, jnp.where(unstable, 1, factor), due & (held | (factor < 1))


def after_rejection(
    choice: Choice, errors: Errors, usable: Bool[Array, ""]
) -> tuple[Choice, Scalar]:
    """The choice for another attempt, and the factor of its size.

    The errors are `usable` if the iteration converged, to finite numbers.
    """
    below, same, _ = _factors(choice.order, errors)
    lower = usable & (choice.order > 1) & (below > same)
    factor = jnp.clip(jnp.where(lower, below, same), *CUT)
    order = choice.order - lower.astype(jnp.int32)
    choice = choice._replace(order=order, kept=jnp.zeros_like(order))
    return choice, jnp.where(usable, factor, FAILURE_FACTOR)


def _factors(order: Int[Array, ""], errors: Errors) -> Errors:
    """By how much longer the step might be at the order below, at its own and above."""

    def factor(power: Array, error: Scalar, safety: float) -> Scalar:
        log_error = jnp.log(jnp.maximum(error, _TINY_ERROR))
        return jnp.exp(-log_error / power.astype(error.dtype)) / safety

    below, same, above = errors
    return (
        factor(order, below, SAFETY[0]),
        factor(order + 1, same, SAFETY[1]),
        factor(order + 2, above, SAFETY[2]),
    )
