"""Linear systems solved without a matrix: from products with it alone, by GMRES.

Source: Saad, Schultz, GMRES: a generalized minimal residual algorithm for solving nonsymmetric
linear systems, SIAM J. Sci. Stat. Comput. 7, 1986; for Newton's method, Knoll, Keyes, Jacobian-free
Newton-Krylov methods, J. Comput. Phys. 193, 2004.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Float

from ..varying import mesh_axes
from .jacobian import varying_like

Vector = Float[Array, " n"]
Product = Callable[[Vector], Vector]

# Residuals of solves that a derivative is made of, in units of rounding.
_EXACT = 1e3
# Solves whose residual is left larger than this power of rounding have failed.
_FAILED = 0.5


class GMRES(eqx.Module):
    """Solve the linear systems of an implicit method by GMRES, from Jacobian-vector products.

    For large systems: no matrix is formed. `dj.KenCarp4(linear_solver=dj.GMRES())` is a
    Newton-Krylov method; so are all ESDIRK methods, `dj.FBDF`, `dj.QNDF` and `dj.RadauIIA5`.

    **Arguments:**

    - `preconditioner`: a function `preconditioner(u, gamma_dt)` that returns a linear function of
        a residual, like `u`, which comes near to applying the inverse of M - gamma_dt*df/du (of
        M + gamma_dt*df/du where time runs backwards). `u` is the state, raveled if it is a pytree
        of several arrays. What it needs of the parameters it closes over: it changes no result, and
        nothing differentiates it.
    - `rtol`: the residual that is left in an iteration of Newton's method, relative to that before.
        It is what an iteration gains, so a smaller one costs more and saves iterations.
    - `restart`: after so many products with the matrix the basis is dropped.
    - `max_restarts`: then the iteration gives up, and so does the step.

    **Raises:** `TypeError` if `preconditioner` is not a function; `ValueError` for numbers out of
    range, and in a solve that is spread over a mesh.

    !!! example
        ```python
        def diagonal(u, gamma_dt):
            return lambda r: r / (1 + gamma_dt * 2 * diffusion / dx**2)

        dj.solve(prob, dj.KenCarp4(linear_solver=dj.GMRES(preconditioner=diagonal)))
        ```
    """

    preconditioner: Callable[..., Any] | None = eqx.field(static=True, default=None)
    rtol: float = eqx.field(static=True, default=1e-3)
    restart: int = eqx.field(static=True, default=20)
    max_restarts: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        if self.preconditioner is not None and not callable(self.preconditioner):
            raise TypeError(
                "preconditioner must be a function preconditioner(u, gamma_dt), got "
                f"{type(self.preconditioner).__name__}."
            )
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol must lie between 0 and 1, got {self.rtol}.")
        for name in ("restart", "max_restarts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")

    def solve(self, product: Product, b: Vector, near: Product | None, rtol: float) -> Vector:
        """x with product(x) = b, where the largest residual is `rtol` times the largest of b."""
        if mesh_axes(b):
            raise ValueError(
                "dj.GMRES() cannot run inside jax.shard_map with its checks on, nor with mesh=, "
                "since the loops of lineax do not say over which axes they vary; give jac_sparsity."
            )
        structure = jax.eval_shape(lambda: b)
        size = jnp.max(jnp.abs(b))
        # Of nothing the solution is nothing.
        left: Any = rtol * jnp.where(size > 0, size, 1)
        solver = lineax.GMRES(
            rtol=0.0,
            atol=left,
            max_steps=self.max_restarts,
            restart=self.restart,
            stagnation_iters=3,
        )
        options = {}
        if near is not None:
            options["preconditioner"] = lineax.FunctionLinearOperator(near, structure)
        operator = lineax.FunctionLinearOperator(product, structure)
        return lineax.linear_solve(operator, b, solver, options=options, throw=False).value


class MatrixFree:
    """A square matrix that is known by its products, and how systems with it are solved.

    It is `scale` times `product`, for vectors like `like`. `near_inverse(gamma_dt)` is the user's
    preconditioner; `exact` asks for solutions to rounding, as a derivative needs them.
    """

    def __init__(
        self,
        product: Product,
        like: Vector,
        solver: GMRES,
        near_inverse: Callable[[Array], Product] | None,
        exact: bool,
        scale: Array | float = 1.0,
    ) -> None:
        self.product, self.like, self.solver = product, like, solver
        self.near_inverse, self.exact, self.scale = near_inverse, exact, scale

    def _with(
        self, product: Product, scale: Array | float, preconditioned: bool = True
    ) -> "MatrixFree":
        near_inverse = self.near_inverse if preconditioned else None
        return MatrixFree(product, self.like, self.solver, near_inverse, self.exact, scale)

    def times(self, x: Vector) -> Vector:
        return self.scale * self.product(x)

    def __rmul__(self, factor: Array | float) -> "MatrixFree":
        return self._with(self.product, factor * self.scale)

    def shifted(self, scale: Array, mass_times: Product) -> "MatrixFree | ComplexMatrixFree":
        """scale*M minus this, as scale times M - this/scale."""
        if jnp.iscomplexobj(scale):
            return ComplexMatrixFree(self, scale, mass_times)
        return self._with(lambda x: mass_times(x) - self.times(x) / scale, scale)

    def with_rows_of(self, other: "MatrixFree", chosen: Array) -> "MatrixFree":
        """The same with the chosen rows of another matrix."""

        def mixed(x: Vector) -> Vector:
            return jnp.where(chosen, other.times(x), self.times(x))

        return self._with(mixed, 1.0, preconditioned=False)

    def row_sum_norm(self) -> Float[Array, ""]:
        """What a product with ones says of it: a lower bound."""
        ones = varying_like(self.like, jnp.ones_like(self.like))
        return jnp.max(jnp.abs(jax.lax.stop_gradient(self.times(ones))))

    def factorize(self) -> Product:
        """The function that gives the x with A x = b, for any b."""
        near = None
        if self.near_inverse is not None:
            near = self.near_inverse(1 / jnp.asarray(self.scale))
        solve = self.solution_of(self.product, near, self.like)
        return lambda b: solve(b) / self.scale

    def solution_of(self, product: Product, near: Product | None, like: Array) -> Product:
        """The function that gives the x with product(x) = b; `near` preconditions."""

        def found(product: Product, b: Vector, near: Product | None) -> Vector:
            if not self.exact:
                return self.solver.solve(product, b, near, self.solver.rtol)
            eps = float(np.finfo(b.dtype).eps)
            x = self.solver.solve(product, b, near, _EXACT * eps)
            left = jnp.max(jnp.abs(product(x) - b))
            return jnp.where(left <= eps**_FAILED * jnp.max(jnp.abs(b)), x, jnp.nan)

        turned = None if near is None else _transposed(near, like)
        return lambda b: jax.lax.custom_linear_solve(
            product,
            b,
            solve=lambda product, b: found(product, b, near),
            transpose_solve=lambda product, b: found(product, b, turned),
        )


class ComplexMatrixFree:
    """(r + is) M - J for a real J that is known by its products.

    Systems with it are solved as real ones of twice the size, of A = rM - J and B = sM:

        [A -B] [x]   [b]
        [B  A] [y] = [c].

    What comes near to the inverse of A + B, which is what the user's preconditioner does, makes a
    preconditioner of the whole: that with A + 2B in the last place. For symmetric matrices without
    negative eigenvalues those of the product lie between 1/2 and 1.

    Source: Axelsson, Neytcheva, Ahmad, A comparison of iterative methods to solve complex valued
    linear algebraic systems, Numerical Algorithms 66, 2014.
    """

    def __init__(self, jacobian: MatrixFree, scale: Array, mass_times: Product) -> None:
        self.jacobian, self.scale, self.mass_times = jacobian, scale, mass_times

    def factorize(self) -> Callable[[Array], Array]:
        """The function that gives the complex x with A x = b, for any b."""
        matrix = self.jacobian
        real, imaginary = jnp.real(self.scale), jnp.imag(self.scale)
        total = real + imaginary

        def product(pair: Array) -> Array:
            masses = jnp.stack([self.mass_times(x) for x in pair])
            turned = jnp.stack([-masses[1], masses[0]])
            products = jnp.stack([matrix.times(x) for x in pair])
            return (real * masses + imaginary * turned - products) / total

        def preconditioned(inverse: Product, pair: Array) -> Array:
            both = inverse(pair[0] + pair[1])
            second = inverse(pair[1] - imaginary / total * self.mass_times(both))
            return jnp.stack([both - second, second])

        near = None
        if matrix.near_inverse is not None:
            near = partial(preconditioned, matrix.near_inverse(1 / total))
        like = jnp.stack([matrix.like, matrix.like])
        solve = matrix.solution_of(product, near, like)

        def solution(b: Array) -> Array:
            real, imaginary = solve(jnp.stack([jnp.real(b), jnp.imag(b)])) / total
            return jax.lax.complex(real, imaginary)

        return solution


def _transposed(product: Product, like: Array) -> Product:
    return lambda x: jax.linear_transpose(product, like)(x)[0]


def check_linear_solver(solver: object) -> None:
    """Raise unless a method can solve its linear systems by this."""
    if not isinstance(solver, GMRES | None):
        got = getattr(solver, "__name__", type(solver).__name__)
        raise TypeError(f"linear_solver must be like dj.GMRES(), got {got}.")
