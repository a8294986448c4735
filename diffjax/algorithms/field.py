"""The functions that an equation is made of, as steps evaluate them.

They are the user's, traced once, with all that they close over as explicit arguments.
"""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..linear.sparsity import Sparsity
from ..noise.base import Increment, Need, NoiseProcess
from .once import mixes, once, once_backwards

# A state as the stepping code sees it: one array, or one flat vector per dtype (`stepping/layout`).
State = PyTree[Array]


@partial(jax.jit, static_argnums=0, inline=True)
def evaluate(jaxpr: Any, consts: tuple[Array, ...], *args: Array) -> list[Array]:
    """The outputs of a traced function; a constant one is an array too.

    Each call after the first copies what was traced, which is far quicker than to trace again.
    """
    out = jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, consts))(*args)
    return [jnp.asarray(x, v.aval.dtype) for x, v in zip(out, jaxpr.outvars, strict=True)]


class Diffusion(eqx.Module):
    """The term g dW of a stochastic equation.

    - `kind`: "diagonal" or "additive" noise, a noise for each element of the state; "scalar", one
        for all; "commutative" or "general", where g gives a matrix, of which the last axis counts
        the noises.
    - `interpretation`: "ito" or "stratonovich".
    - `noise`: what W is, in the time of the solve; `need` what of it a step wants to know.
    - `number`: that of the step at hand; None outside of steps.
    """

    jaxpr: Any = eqx.field(static=True)
    args: tuple[Array, ...]
    kind: str = eqx.field(static=True)
    interpretation: str = eqx.field(static=True)
    need: Need = eqx.field(static=True)
    noise: NoiseProcess
    number: Array | None = None

    def g(self, t: Array, u: State) -> State:
        """The diffusion: like the state, or with one axis more, over the noises."""
        leaves, structure = jtu.tree_flatten(u)
        return jtu.tree_unflatten(structure, evaluate(self.jaxpr, (), *self.args, t, *leaves))

    def once(self, x: State) -> State:
        """`x`, as `Field.once`."""
        return once(x) if mixes(self.jaxpr) else x

    @property
    def is_ito(self) -> bool:
        return self.interpretation == "ito"

    @property
    def is_matrix(self) -> bool:
        """Whether g gives a matrix."""
        return self.kind in ("commutative", "general")

    def over(self, t: Array, dt: Array, here: PyTree) -> tuple[Increment, PyTree]:
        """The noise in the step at hand, as `NoiseProcess.over`."""
        assert self.number is not None
        return self.noise.over(self.number, t, dt, self.need, here)

    def spread(self, noise: Float[Array, " dim"], u: State) -> State:
        """A number for each noise, laid out to be multiplied with g, of a matrix its columns."""
        leaves, structure = jtu.tree_flatten(u)
        if self.is_matrix:
            return jtu.tree_map(lambda x: noise.astype(x.dtype).reshape((1,) * x.ndim + (-1,)), u)
        if self.kind == "scalar":
            return jtu.tree_map(lambda x: noise[0].astype(x.dtype), u)
        offsets = np.cumsum([0, *(x.size for x in leaves)])
        parts = [
            noise[start : start + x.size].reshape(x.shape).astype(x.dtype)
            for start, x in zip(offsets, leaves, strict=False)
        ]
        return jtu.tree_unflatten(structure, parts)

    def times(self, gu: State, noise: State) -> State:
        """g times noise that has been spread: what it adds to the state."""
        if self.is_matrix:
            # Not as a matrix product, which XLA hands to a library however small it is.
            return jtu.tree_map(lambda g, w: jnp.sum(g * w, axis=-1), gu, noise)
        return jtu.tree_map(jnp.multiply, gu, noise)


class Field(eqx.Module):
    """The user's vector field, traced once, with all that it closes over as explicit arguments.

    `args` are the closed-over arrays followed by the leaves of `p`, so that both are
    differentiated and batched alike.

    In M u' = f the mass matrix is `mass`, an array of shape (n, n), or (n,) for its diagonal, None
    for the identity; `jac_jaxpr` and `jac_args` are the user's Jacobian, None without one;
    `sparsity` says where it and M have entries, None for everywhere. All act on the real
    coordinates of the state (`linear/coordinates`).

    Of a fully implicit equation F(u', u, p, t) = 0 the function is F, and `slope` is the derivative
    of the state at the start of the solve; None for every other.

    `diffusion` is that of a stochastic equation, None for every other. `alarms` says when jumps are
    due as the solve begins; None without any.
    """

    jaxpr: Any = eqx.field(static=True)
    args: tuple[Array, ...]
    mass: Array | None = None
    jac_jaxpr: Any = eqx.field(static=True, default=None)
    jac_args: tuple[Array, ...] | None = None
    slope: State | None = None
    sparsity: Sparsity | None = eqx.field(static=True, default=None)
    diffusion: Diffusion | None = None
    alarms: Float[Array, " jumps"] | None = None

    def f(self, t: Float[Array, ""], u: State) -> State:
        """The derivative of the state."""
        leaves, structure = jax.tree_util.tree_flatten(u)
        n_consts = len(self.jaxpr.constvars)
        consts, parameters = self.args[:n_consts], self.args[n_consts:]
        out = evaluate(self.jaxpr, consts, *parameters, t, *leaves)
        return jax.tree_util.tree_unflatten(structure, out)

    def once(self, x: State) -> State:
        """`x`, what a stage is evaluated at or gives, computed once if that is best for a step."""
        return once(x) if mixes(self.jaxpr) else x

    def once_backwards(self, x: State) -> State:
        """As `once`, but only its cotangent."""
        return once_backwards(x) if mixes(self.jaxpr) else x

    def residual(self, t: Float[Array, ""], du: State, u: State) -> State:
        """F(du, u, p, t)."""
        _, structure = jax.tree_util.tree_flatten(u)
        n_consts = len(self.jaxpr.constvars)
        consts, parameters = self.args[:n_consts], self.args[n_consts:]
        out = evaluate(self.jaxpr, consts, *parameters, t, *jax.tree_util.tree_leaves((du, u)))
        return jax.tree_util.tree_unflatten(structure, out)

    def jac(self, t: Float[Array, ""], u: State) -> Float[Array, "n n"]:
        """The user's Jacobian, if there is one."""
        assert self.jac_args is not None
        leaves = jax.tree_util.tree_leaves(u)
        return evaluate(self.jac_jaxpr, (), *self.jac_args, t, *leaves)[0]

    def jacobians(
        self, t: Float[Array, ""], du: State, u: State
    ) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
        """The user's dF/du' and dF/du, if there are such."""
        assert self.jac_args is not None
        leaves = jax.tree_util.tree_leaves((du, u))
        of_slope, of_state = evaluate(self.jac_jaxpr, (), *self.jac_args, t, *leaves)
        return of_slope, of_state

    def during(self, number: Array) -> "Field":
        """The field of one step of the solve, which knows its noise by its number."""
        if self.diffusion is None:
            return self
        return dataclasses.replace(
            self, diffusion=dataclasses.replace(self.diffusion, number=number)
        )

    def with_last(self, parameters: tuple[Array, ...]) -> "Field":
        """The field with other values of the last arguments of each of its functions."""
        count = len(parameters)
        if not count:
            return self
        diffusion, jac_args = self.diffusion, self.jac_args
        if diffusion is not None:
            args = (*diffusion.args[:-count], *parameters)
            diffusion = dataclasses.replace(diffusion, args=args)
        return dataclasses.replace(
            self,
            args=(*self.args[:-count], *parameters),
            jac_args=None if jac_args is None else (*jac_args[:-count], *parameters),
            diffusion=diffusion,
        )

    def with_dense_jacobian(self) -> "Field":
        """The same field for work on whole matrices, outside of the steps."""
        return dataclasses.replace(self, sparsity=None)

    @property
    def autonomous(self) -> bool:
        """Whether it is certain that time does not enter."""
        n_args = len(self.args) - len(self.jaxpr.constvars)
        time = self.jaxpr.invars[n_args]
        used = [v for eqn in self.jaxpr.eqns for v in eqn.invars]
        return not any(v is time for v in [*used, *self.jaxpr.outvars])
