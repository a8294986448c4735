"""The adjoint equation, integrated from the end of a solve to its start.

For a loss L of the solution of `u' = f(u, p, t)`, `lambda(t) = dL/du(t)` obeys, between save times,

    lambda' = -(df/du)^T lambda,        dL/dp = integral of (df/dp)^T lambda dt,

and jumps by the derivative of L with respect to what is saved (Pontryagin; Cao, Li, Petzold and
Serban, Adjoint sensitivity analysis for differential-algebraic equations, SIAM J. Sci. Comput. 24
(2003); Chen et al., Neural ordinary differential equations, 2018). A transposed Jacobian is what
`jax.vjp` applies, which for complex states gives the pairing Re(sum(ct * v)) that JAX uses.

The equation is solved by the library's own algorithms in the time s = -t, in which it runs
forwards. This file is what the adjoints share: the jumps, the landings, the ends of the span. They
differ in where they take u(t) from and in who integrates over the parameters.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from ..algorithms.base import Algorithm, Field, Memory, State
from ..algorithms.implicit import derivative
from ..stepping.lanes import any_lane, one_or_many
from ..stepping.outcome import Outcome
from ..stepping.plan import Inputs, Plan, Settings
from ..stepping.status import ReturnCode
from ..stepping.stepper import Record
from ..stepping.tape import Snapshots, Tape, put
from ..stepping.trees import largest, replaced, sum_of_rows, where
from ..varying import vary_alike
from .by_lane import AdjointByLane, SolveTangent
from .landing import AdaptiveLanding, FixedLanding, landing
from .mass import Eliminated
from .packing import Packing
from .smooth import Smooth


class Recorded(NamedTuple):
    """What a backward pass reads of the forward one.

    - `dt`: the size of the next step, had the solve gone on; None for fixed steps.
    - `states`: the state at each save time; `steps`: the steps, or what to take them again from.
    """

    u_end: State
    t_end: Array
    dt: Array | None
    status: Array
    saved: Array | None
    states: State | None
    steps: Tape | Snapshots | None


def recorded(
    outcome: Outcome, states: State | None = None, steps: Tape | Snapshots | None = None
) -> Recorded:
    dt = None if outcome.final is None else outcome.final[0]
    return Recorded(outcome.u_end, outcome.t_end, dt, outcome.status, outcome.saved, states, steps)


class Sweep(NamedTuple):
    """What is carried backwards.

    - `steps`: the carry of the steps, whose `t` is -t and whose `u` is the packed adjoint state.
    - `j`: the save that comes next; None if nothing saved has a cotangent.
    - `save_args`, `saves`: cotangents of the moving parameters of `save_fn` and of the save times.
    - `integral`: the cotangents of the parameters, if they are not part of the state.
    """

    steps: Any
    j: Array | None
    save_args: list[Array]
    saves: Array | None
    integral: list[Array]


class Backward:
    """The backward pass of one lane. `many` says that it is one of several, under `vmap`: then
    each turn of a loop takes one step and conditions are those of any lane, so that no lane waits
    for another at its landings."""

    def __init__(
        self,
        tangent: SolveTangent,
        leaves: list[Array],
        settings: Settings,
        record: Recorded,
        cotangents: Smooth,
        *,
        many: bool,
    ) -> None:
        self.tangent, self.plan, self.many = tangent, tangent.plan, many
        self.inputs, self.leaves = tangent.inputs(leaves), leaves
        self.forward_settings, self.record = settings, record
        self.alg = self.algorithm()
        self.given, self.scale = _normalised(_filled(cotangents, record), self.inputs.t0.dtype)
        self.places = tangent.places_of("args")
        self.args = [self.inputs.args[i] for i in self.places]
        self.save_places = tangent.places_of("save_args")
        rows = self.given.rows or []
        self.saved_rows = [i for i, ct in enumerate(rows) if ct is not None]
        self.row_cts = [ct for ct in rows if ct is not None]

    # What an adjoint says of itself --------------------------------------------------------

    def algorithm(self) -> Algorithm:
        """The algorithm of the backward steps."""
        return self.plan.alg

    def parts(self, u: State, adjoint: State) -> tuple[PyTree, ...]:
        """The parts of the adjoint state at the end of the solve, none of them empty; lambda is
        the first."""
        raise NotImplementedError

    def slope(
        self, parts: tuple[PyTree, ...], t: Array, context: PyTree, args: tuple[Array, ...]
    ) -> tuple[PyTree, ...]:
        """The derivative of the parts with respect to -t."""
        raise NotImplementedError

    def saved_state(self, context: PyTree, t: Array, j: Array) -> State:
        """The solution at save time number j."""
        raise NotImplementedError

    def after_save(self, parts: tuple[PyTree, ...], u: State) -> tuple[PyTree, ...]:
        """The parts, having landed where the saved state is `u`."""
        return parts

    def for_args(self, carry: Sweep) -> list[Array]:
        """The cotangents of the moving parameters, at the start of the solve."""
        raise NotImplementedError

    def for_diffusion(self, carry: Sweep) -> list[Array]:
        """Those of the moving parameters of a diffusion."""
        return []

    def tolerances(self, parts: tuple[PyTree, ...]) -> tuple[PyTree, PyTree]:
        """Relative and absolute tolerance of each part."""
        given = self.forward_settings
        return everywhere(given.rtol, given.atol, parts)

    def landings(self) -> int:
        """How many steps more than `max_steps` may be needed because of landings."""
        return 0 if self.inputs.saves is None else self.inputs.saves.shape[0]

    def sweep(self, carry: Sweep) -> Sweep:
        """From the end of the solve to its start."""
        raise NotImplementedError

    def quadrature(
        self, integral: list[Array], record: Record, field: Field, context: PyTree
    ) -> list[Array]:
        """The integral over the parameters after one more step."""
        return integral

    # The common part -----------------------------------------------------------------------

    def run(self) -> list[Array]:
        carry = vary_alike((self.begin(), self.leaves, self.record, self.row_cts))[0]
        return self.collect(self.sweep(carry))

    def begin(self) -> Sweep:
        record = self.record
        adjoint, at_once = self.absorbed(record.t_end, record.u_end, self.given.u_end)
        return self.with_args(self._begin(adjoint), at_once)

    def _begin(self, adjoint: State) -> Sweep:
        record, inputs = self.record, self.inputs
        parts = self.parts(record.u_end, adjoint)
        self.packing = Packing(parts, small=self.plan.small)
        rtol, atol = self.tolerances(parts)
        self.settings = Settings(rtol, atol, None, self.forward_settings.dtmin, None, None)
        dt = self._fixed_dt() if record.dt is None else record.dt
        y = self.packing.pack(parts)
        field = self.field_with(inputs.args)
        steps = self.stepper(field, y, -record.t_end, -inputs.t0).begin(dt)
        saves = None
        if inputs.saves is not None and self.tangent.places_of("saves"):
            saves = jnp.zeros_like(inputs.saves)
        return Sweep(
            steps=steps,
            j=None if not self.row_cts or record.saved is None else record.saved - 1,
            save_args=[jnp.zeros_like(inputs.save_args[i]) for i in self.save_places],
            saves=saves,
            integral=[],
        )

    def _fixed_dt(self) -> Array:
        plan, inputs = self.plan, self.inputs
        if plan.fixed_dt is not None:
            return jnp.asarray(plan.fixed_dt, inputs.t0.dtype)
        assert plan.fixed_steps is not None
        if inputs.grid is not None:
            longest = jnp.max(jnp.diff(inputs.grid), initial=0)
            return jnp.where(longest > 0, longest, 1)
        return (inputs.t1 - inputs.t0) / max(plan.fixed_steps, 1)

    def stepper(
        self, field: Field, y: State, start: Array, end: Array
    ) -> AdaptiveLanding | FixedLanding:
        plan = dataclasses.replace(
            self.plan,
            alg=self.alg,
            field_jaxpr=field.jaxpr,
            jac_jaxpr=None,
            sparsity=None,
            max_steps=self.plan.max_steps + self.landings(),
            progress=None,
        )
        inputs = self.inputs._replace(
            u0=y,
            args=field.args,
            save_args=(),
            t0=start,
            t1=end,
            saves=None,
            stops=None,
            mass=None,
            jac_args=None,
        )
        return self.landing(plan, inputs)

    def landing(self, plan: Plan, inputs: Inputs) -> AdaptiveLanding | FixedLanding:
        """The steps of this adjoint equation."""
        return landing(plan, inputs, self.settings, self.packing)

    def field(self, carry: Sweep, context: PyTree) -> Field:
        """The adjoint equation, as a vector field in -t; `context` is what else it depends on."""
        y = carry.steps.u
        structure = jtu.tree_structure(y)

        def slope(args: tuple[Array, ...], context: PyTree, s: Array, *leaves: Array) -> Any:
            parts = self.packing.unpack(jtu.tree_unflatten(structure, leaves))
            return self.packing.pack(self.slope(parts, -s, context, args))

        closed = jax.make_jaxpr(slope)(
            self.inputs.args, context, carry.steps.t, *jtu.tree_leaves(y)
        )
        given = jtu.tree_leaves((self.inputs.args, context))
        return Field(closed.jaxpr, (*closed.consts, *given))

    def pulled(
        self, args: tuple[Array, ...], t: Array, u: State, adjoint: State
    ) -> tuple[State, State, list[Array]]:
        """f, and lambda times its derivatives by the state and by the moving parameters.

        With a mass matrix that by the state is divided by M^T, as `Eliminated` says.
        """
        field = self.field_with(args)
        slope = None
        if field.mass is not None:
            adjoint, slope = Eliminated(field, t, u).whole(adjoint)

        def f(u: State, moving: list[Array]) -> State:
            return self.field_with(placed(args, self.places, moving)).f(t, u)

        du, pull = jax.vjp(f, u, [args[i] for i in self.places])
        u_bar, args_bar = pull(adjoint)
        return du, u_bar if slope is None else slope, args_bar

    def field_with(self, args: tuple[Array, ...]) -> Field:
        """The vector field of the solve, with other arguments."""
        return self.plan.field(self.inputs._replace(args=args))

    def absorbed(self, t: Array, u: State, u_bar: State) -> tuple[State, list[Array]]:
        """By how much lambda jumps for a cotangent of the state, and the parameters' at once."""
        if self.inputs.mass is None:
            return u_bar, []
        args = self.inputs.args
        jump, left = Eliminated(self.field_with(args), t, u).parted(u_bar)

        def f(moving: list[Array]) -> State:
            return self.field_with(placed(args, self.places, moving)).f(t, u)

        _, pull = jax.vjp(f, self.args)
        return jump, *pull(left)

    def with_args(self, carry: Sweep, bars: list[Array]) -> Sweep:
        """With more in the cotangents of the moving parameters; nothing is to be added if empty."""
        raise NotImplementedError

    def going(self, carry: Sweep, end: Array | None = None) -> Array:
        """Whether the sweep can go on; and has not come to -t = `end`."""
        field = self.field_with(self.inputs.args)
        end = -self.inputs.t0 if end is None else end
        stepper = self.stepper(field, carry.steps.u, carry.steps.t, end)
        return (carry.steps.t < end) & stepper.going(carry.steps)

    def piece(self, carry: Sweep, context: PyTree, end: Array, known: Array | bool = True) -> Sweep:
        """Jump where something is saved, then go on to the next landing; a step on, if `many`.

        `known` says whether `context` is of the solution at this time.
        """
        carry = self.settle(carry, context, known)
        s = carry.steps.t
        if carry.j is not None:
            end = jnp.minimum(end, -self._save_time(carry.j))
        field = self.field(carry, context)
        stepper = self.stepper(field, carry.steps.u, s, end)
        steps = carry.steps._replace(memory=self.alg.init(stepper.field, s, carry.steps.u))

        def once(state: tuple[Any, list[Array]]) -> tuple[Any, list[Array]]:
            steps, record = stepper.attempt(state[0], masked=self.many)
            return steps, self.quadrature(state[1], record, field, context)

        state = (steps, carry.integral)
        if self.many:
            state = once(state)
        else:
            state = jax.lax.while_loop(lambda state: stepper.active(state[0]), once, state)
        return carry._replace(steps=state[0]._replace(memory=Memory()), integral=state[1])

    def _save_time(self, j: Array) -> Array:
        assert self.inputs.saves is not None
        return jnp.where(j >= 0, self.inputs.saves[jnp.maximum(j, 0)], -jnp.inf)

    def settle(self, carry: Sweep, context: PyTree, known: Array | bool) -> Sweep:
        """Lambda jumps by the cotangents of what is saved at this time."""
        if carry.j is None:
            return carry

        def due(carry: Sweep) -> Array:
            assert carry.j is not None
            time = self._save_time(carry.j)
            return known & (time >= -carry.steps.t) & (time > self.inputs.t0)

        return jax.lax.while_loop(
            lambda carry: self.pending(due(carry)),
            lambda carry: self.jump(carry, context, due(carry)),
            carry,
        )

    def jump(self, carry: Sweep, context: PyTree, due: Array) -> Sweep:
        """Over save number `carry.j`, if it is due."""
        assert carry.j is not None
        j = jnp.maximum(carry.j, 0)
        t = self._save_time(j)
        u = self.saved_state(context, t, j)
        rows = [jnp.where(due, ct[j], 0) for ct in self.row_cts]
        u_bar, args_bar, t_bar = self.observed(u, t, rows)
        parts = self.packing.unpack(carry.steps.u)
        jump, at_once = self.absorbed(t, u, u_bar)
        jumped = (jtu.tree_map(jnp.add, parts[0], jump), *parts[1:])
        y = where(due, self.packing.pack(self.after_save(jumped, u)), carry.steps.u)
        saves = carry.saves
        if saves is not None:
            slope = derivative(self.field_with(self.inputs.args), t, u)
            t_bar = t_bar + paired(u_bar, slope, t_bar.dtype)
            saves = put(saves, jnp.where(due, t_bar, saves[j]), j)
        carry = carry._replace(
            steps=carry.steps._replace(u=y),
            j=carry.j - due.astype(jnp.int32),
            save_args=[
                a + jnp.where(due, b, 0) for a, b in zip(carry.save_args, args_bar, strict=True)
            ],
            saves=saves,
        )
        return self.with_args(carry, [jnp.where(due, x, 0) for x in at_once])

    def pending(self, condition: Array) -> Array:
        return any_lane(condition) if self.many else condition

    def observed(self, u: State, t: Array, rows: list[Array]) -> tuple[State, list[Array], Array]:
        """Cotangents of the state, the moving parameters of `save_fn` and the time of a save."""
        args = self.inputs.save_args

        def saved(u: State, moving: list[Array], t: Array) -> list[Array]:
            out = self.plan.observe(placed(args, self.save_places, moving), u, t)
            return [out[i] for i in self.saved_rows]

        _, pull = jax.vjp(saved, u, [args[i] for i in self.save_places], t)
        return pull(rows)

    def collect(self, carry: Sweep) -> list[Array]:
        """One cotangent for each moving leaf; NaN if the start was not reached."""
        inputs, record, given = self.inputs, self.record, self.given
        field = self.field_with(inputs.args)
        dtype = inputs.t0.dtype
        u0_bar = self.packing.unpack(carry.steps.u)[0]
        if inputs.mass is not None:
            u0_bar = Eliminated(field, inputs.t0, inputs.u0).of_state(u0_bar)
        t0_bar = -paired(u0_bar, derivative(field, inputs.t0, inputs.u0), dtype)
        t1_bar = paired(given.u_end, derivative(field, record.t_end, record.u_end), dtype)
        save_args = carry.save_args
        if carry.j is not None:
            # What was saved at t0 itself.
            u_bar, args_bar, t_bar = self.observed(
                inputs.u0, inputs.t0, [sum_of_rows(ct, carry.j + 1) for ct in self.row_cts]
            )
            u0_bar = jtu.tree_map(jnp.add, u0_bar, u_bar)
            save_args = [a + b for a, b in zip(save_args, args_bar, strict=True)]
            t0_bar = t0_bar + t_bar
        bars = {
            "u0": jtu.tree_leaves(u0_bar),
            "args": dict(zip(self.places, self.for_args(carry), strict=True)),
            "diffusion": dict(
                zip(self.tangent.places_of("diffusion"), self.for_diffusion(carry), strict=True)
            ),
            "save_args": dict(zip(self.save_places, save_args, strict=True)),
            "t0": [t0_bar],
            "t1": [t1_bar + given.t_end],
            "saves": [carry.saves],
            "stops": [None if inputs.stops is None else jnp.zeros_like(inputs.stops)],
            # The solution does not depend on the user's Jacobian.
            "jac_args": [jnp.zeros_like(x) for x in inputs.jac_args or ()],
        }
        out = [
            bars[name][place]
            for name, place in zip(self.tangent.names, self.tangent.places, strict=True)
        ]
        reached = (carry.steps.t >= -inputs.t0) & (record.status <= ReturnCode.terminated)
        factor = jnp.where(reached, self.scale, jnp.nan)
        # Of nothing the derivative is zero, though the solve may have failed.
        return [jnp.where(self.scale == 0, 0, x * factor.astype(x.dtype)) for x in out]


class ContinuousAdjoint(AdjointByLane):
    """Base class of adjoints that solve the adjoint equation."""

    restarts: ClassVar[bool] = True
    # Whether M in M u' = f may be another matrix than the identity.
    takes_mass_matrix: ClassVar[bool] = False

    def backward(self) -> type[Backward] | Callable[..., Backward]:
        """The backward pass, to be made of what `Backward` is made of."""
        raise NotImplementedError

    def solve(self, plan: Plan, inputs: Inputs, settings: Settings) -> Outcome:
        if inputs.mass is not None and not self.takes_mass_matrix:
            raise ValueError(
                f"adjoint={self.name} cannot take a problem with a mass matrix; "
                "use adjoint=dj.DiscreteAdjoint() or dj.GaussAdjoint()."
            )
        return super().solve(plan, inputs, settings)

    def pull_back(
        self,
        tangent: SolveTangent,
        leaves: list[Array],
        settings: Settings,
        record: PyTree,
        cotangents: Sequence[Array | None],
    ) -> list[Array]:
        given: Smooth = jtu.tree_unflatten(tangent.smooth_structure, cotangents)
        if jtu.tree_leaves((given.tape_t, given.tape_u)):
            raise ValueError(
                f'{type(self).__name__} cannot differentiate what saveat="steps" or dense=True '
                "give back: steps that the solve has chosen; use adjoint=dj.DiscreteAdjoint(), or "
                "give saveat the times that you need."
            )

        if "past" in tangent.names or jtu.tree_leaves(given.history):
            raise ValueError(
                f"{type(self).__name__} cannot differentiate by what a multistep method remembers, "
                "which resume= hands on: the adjoint equation knows the state alone; use "
                "adjoint=dj.DiscreteAdjoint()."
            )

        if "mass" in tangent.names:
            raise ValueError(
                f"{type(self).__name__} cannot differentiate by the mass matrix; "
                "use adjoint=dj.DiscreteAdjoint()."
            )

        def run(many: bool) -> Callable[..., list[Array]]:
            return lambda leaves, settings, record, given: self.backward()(
                tangent, leaves, settings, record, given, many=many
            ).run()

        return one_or_many(
            run(False), run(True), leaves, settings, record, given, native=tangent.plan.small
        )


def paired(ct: PyTree, v: PyTree, dtype: Any) -> Array:
    """A cotangent applied to a tangent, as JAX pairs them."""
    products = jtu.tree_map(lambda a, b: jnp.sum(jnp.real(a * b)).astype(dtype), ct, v)
    return sum(jtu.tree_leaves(products), jnp.zeros((), dtype))


def placed(args: tuple[Array, ...], places: list[int], moving: list[Array]) -> tuple[Array, ...]:
    """Arguments with those at the given places replaced."""
    return tuple(replaced(args, places, moving))


def everywhere(rtol: PyTree, atol: PyTree, parts: PyTree) -> tuple[PyTree, PyTree]:
    """The strictest of given tolerances, for each leaf of the adjoint state.

    Cotangents are normalised, so an absolute tolerance in units of the state (large for a large
    state, zero for a small one) is kept between rounding and the relative one.
    """
    r, a = (jnp.min(jnp.stack([jnp.min(x) for x in _same_dtype(t)])) for t in (rtol, atol))
    a = jnp.clip(a, jnp.finfo(a.dtype).eps, jnp.maximum(r, jnp.finfo(a.dtype).eps))

    def like(value: Array) -> PyTree:
        return jtu.tree_map(lambda x: value.astype(jnp.finfo(x.dtype).dtype), parts)

    return like(r), like(a)


def _same_dtype(tree: PyTree) -> list[Array]:
    leaves = jtu.tree_leaves(tree)
    widest = np.result_type(*(x.dtype for x in leaves))
    return [x.astype(widest) for x in leaves]


def _filled(cotangents: Smooth, record: Recorded) -> Smooth:
    """Zeros for the cotangents of the end that are known to be zero."""
    given = jtu.tree_leaves(cotangents.u_end, is_leaf=lambda x: x is None)
    leaves, structure = jtu.tree_flatten(record.u_end)
    u_end = [jnp.zeros_like(x) if g is None else g for x, g in zip(leaves, given, strict=True)]
    t_end = jnp.zeros_like(record.t_end) if cotangents.t_end is None else cotangents.t_end
    return cotangents._replace(u_end=jtu.tree_unflatten(structure, u_end), t_end=t_end)


def _normalised(cotangents: Smooth, dtype: Any) -> tuple[Smooth, Array]:
    """Cotangents divided by the greatest, and that: the adjoint is linear in them, and a tolerance
    should mean the same for a loss and for a thousandth of it."""
    sizes = [largest(x).astype(dtype) for x in jtu.tree_leaves(cotangents)]
    scale = jnp.max(jnp.stack(sizes))
    divisor = jnp.where(scale == 0, 1, scale)
    return jtu.tree_map(lambda x: x / divisor.astype(x.dtype), cotangents), scale
