"""What a solve is made of once the front door has judged it.

`Plan` is static: everything that decides the shape of the compiled program. `Inputs` are the
arrays that a solve is differentiated with respect to; `Settings` the arrays that steer it without
carrying a derivative. Time always runs forwards here: the front door turns a backward solve round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from ..algorithms.base import Algorithm, Field, Memory, State, evaluate
from ..algorithms.field import Diffusion
from ..events.events import EventArgs, Events
from ..linear.sparsity import Sparsity
from ..noise.base import NoiseProcess
from .controllers import Controller
from .lanes import is_small

# Attempts that finding an event takes at most.
_SEARCH = 32


class Inputs(NamedTuple):
    """What a solve is differentiated with respect to.

    `args` are the vector field's closed-over arrays and parameters, `save_args` those of
    `save_fn`; `saves` the times at which to save and `stops` those to step on, both sorted; `grid`
    where fixed steps end that are not all equal; `mass`, `jac_args` and `slope` those of `Field`;
    `diffusion` the arguments of g, `noise` what W is; `past` what a solve that goes on remembers,
    None for one that begins; `events` what the callbacks close over, `alarms` when jumps are due
    as the solve begins.
    """

    u0: State
    args: tuple[Array, ...]
    save_args: tuple[Array, ...]
    t0: Float[Array, ""]
    t1: Float[Array, ""]
    saves: Float[Array, " saves"] | None
    stops: Float[Array, " stops"] | None
    grid: Float[Array, " steps+1"] | None = None
    mass: Array | None = None
    jac_args: tuple[Array, ...] | None = None
    slope: State | None = None
    diffusion: tuple[Array, ...] | None = None
    noise: NoiseProcess | None = None
    past: Memory | None = None
    events: EventArgs | None = None
    alarms: Float[Array, " jumps"] | None = None


class Settings(NamedTuple):
    """Numbers that steer the steps and carry no derivative."""

    rtol: PyTree
    atol: PyTree
    dt: Float[Array, ""] | None
    dtmin: Float[Array, ""] | None
    dtmax: Float[Array, ""] | None
    control: PyTree | None


@dataclass(frozen=True, eq=False)
class Plan:
    """The static part of a solve.

    - `field_jaxpr`, `save_jaxpr`: the vector field and what to save, traced once.
    - `jac_jaxpr`: the user's Jacobian, or None; `sparsity` as in `Field`.
    - `diffusion_jaxpr`: g, or None; `noise_kind` and `interpretation` as in
        `Diffusion`.
    - `events`: the callbacks, or None.
    - `controller`: None for fixed steps, whose number is `fixed_steps`.
    - `fixed_dt`: the size of fixed steps whose last one is cut short to end at t1; None for
        `fixed_steps` equal ones, or those of a grid.
    - `leftover`: a grid may have fewer steps than that; what is left over has no length.
    - `every_step`: give back all accepted steps (`saveat="steps"`, `dense=True`,
        `estimates=True`).
    - `ends_on_save`: the last save time is the end of the span, for certain.
    - `progress`: called in the loop with the fraction done before and after a step and whether
        the solve goes on, or None.
    """

    alg: Algorithm
    field_jaxpr: Any
    save_jaxpr: Any
    controller: Controller | None
    max_steps: int
    fixed_steps: int | None
    fixed_dt: float | None
    leftover: bool
    every_step: bool
    ends_on_save: bool
    progress: Any
    jac_jaxpr: Any = None
    sparsity: Sparsity | None = None
    diffusion_jaxpr: Any = None
    noise_kind: str | None = None
    interpretation: str | None = None
    events: Events | None = None

    def field(self, inputs: Inputs) -> Field:
        return Field(
            self.field_jaxpr,
            inputs.args,
            inputs.mass,
            self.jac_jaxpr,
            inputs.jac_args,
            inputs.slope,
            self.sparsity,
            self._diffusion(inputs),
            inputs.alarms,
        )

    def _diffusion(self, inputs: Inputs) -> Diffusion | None:
        if inputs.noise is None:
            return None
        assert self.noise_kind is not None
        assert self.interpretation is not None
        assert inputs.diffusion is not None
        return Diffusion(
            self.diffusion_jaxpr,
            inputs.diffusion,
            self.noise_kind,
            self.interpretation,
            self.alg.need(inputs.noise.dim),
            inputs.noise,
        )

    def first_memory(self, inputs: Inputs) -> Memory:
        """What the first step remembers."""
        field, past = self.field(inputs), inputs.past
        if past is None:
            return self.alg.init(field, inputs.t0, inputs.u0)
        return self.alg.recall(field, inputs.t0, inputs.u0, past)

    @property
    def small(self) -> bool:
        """Whether one trajectory is best compiled as one native function."""
        traced = [self.field_jaxpr, self.save_jaxpr, self.jac_jaxpr, self.diffusion_jaxpr]
        if self.events is not None:
            traced += self.events.jaxprs
        return all(is_small(jaxpr) for jaxpr in traced if jaxpr is not None)

    @property
    def locates(self) -> bool:
        """Whether there are events whose times have a derivative."""
        if self.events is None or self.diffusion_jaxpr is not None:
            return False
        return bool(self.events.continuous or self.events.ringing)

    def next_alarm(self, memory: Memory) -> Float[Array, ""] | None:
        """When the next jump is due; None without jumps of known times."""
        alarms = self.alg.alarms(memory)
        if alarms is None:
            return None
        # A Brownian path has no derivative by time.
        alarms = alarms if self.locates else jax.lax.stop_gradient(alarms)
        return jnp.min(alarms)

    @property
    def rows(self) -> int:
        """The most steps that may be accepted."""
        if self.fixed_steps is None:
            return self.max_steps
        if self.events is None or not (self.events.continuous or self.events.ringing):
            return self.fixed_steps
        # An event cuts a fixed step in two, and what looked like one may do so too.
        return self.fixed_steps + 2 * self.events.most + 2

    @property
    def attempts(self) -> int:
        """The most steps that may be attempted."""
        if self.fixed_steps is None:
            return self.max_steps
        return self.fixed_steps + _SEARCH * (self.rows - self.fixed_steps)

    @property
    def error_exponent(self) -> float:
        """The error of a step scales as dt to this power."""
        order = self.alg.error_order
        return (self.alg.order if order is None else order) + 1

    def observe(self, save_args: tuple[Array, ...], u: State, t: Array) -> list[Array]:
        """What is saved of a state, as a list of arrays."""
        n_consts = len(self.save_jaxpr.constvars)
        consts, parameters = save_args[:n_consts], save_args[n_consts:]
        return evaluate(self.save_jaxpr, consts, *parameters, t, *jtu.tree_leaves(u))


def scaled_mean_square(
    rtol: PyTree, atol: PyTree, v: State, u0: State, u1: State
) -> Float[Array, ""]:
    """Mean square of v / (atol + rtol*max(|u0|, |u1|)) (HNW I, equation II.4.11)."""

    def squares(v: Array, u0: Array, u1: Array, rtol: Array, atol: Array) -> Array:
        size = lax.max(lax.abs(u0), lax.abs(u1))
        ratio = lax.div(lax.abs(v), lax.add(atol, lax.mul(rtol, size)))
        return lax.reduce_sum(lax.mul(ratio, ratio), tuple(range(ratio.ndim)))

    leaves = jtu.tree_leaves(v)
    several = [jtu.tree_leaves(x) for x in (u0, u1, rtol, atol)]
    total = [squares(*xs) for xs in zip(leaves, *several, strict=True)]
    size = max(sum(x.size for x in leaves), 1)
    widest = np.result_type(*(x.dtype for x in total))
    whole = reduce(lax.add, [lax.convert_element_type(x, widest) for x in total])
    return lax.div(whole, widest.type(size))


def scaled_norm(rtol: PyTree, atol: PyTree, v: State, u0: State, u1: State) -> Float[Array, ""]:
    """Root mean square of v over the tolerances."""
    return lax.sqrt(scaled_mean_square(rtol, atol, v, u0, u1))


def with_parameters(inputs: Inputs, parameters: Sequence[Array]) -> Inputs:
    """The inputs with other values of what events change: parameters, which come last among the
    arguments of each function, and alarms."""
    if inputs.alarms is not None:
        *parameters, alarms = parameters
        inputs = inputs._replace(alarms=alarms)

    def replaced(args: tuple[Array, ...] | None) -> tuple[Array, ...] | None:
        if args is None or not parameters:
            return args
        return (*args[: -len(parameters)], *parameters)

    args = replaced(inputs.args)
    assert args is not None
    others = {name: replaced(getattr(inputs, name)) for name in ("jac_args", "diffusion")}
    return inputs._replace(args=args, **others)
