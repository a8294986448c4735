"""Problems with jumps."""

from typing import Any, ClassVar, TypeGuard

import equinox as eqx
from jaxtyping import PyTree

from .base import Problem, remake
from .discrete import DiscreteProblem
from .ensemble import EnsembleProblem
from .jump_kinds import Jump


class JumpProblem(Problem):
    """A problem whose state jumps at random times.

    **Arguments:**

    - `prob`: what happens between jumps: a `dj.DiscreteProblem` (nothing), or a differential
        equation.
    - `jumps`: `dj.ConstantRateJump`, `dj.VariableRateJump`, `dj.MassActionJump`,
        `dj.RegularJump`, any number of them. Where jumps are told by number, they are counted in
        this order, each of a jump with several rates by itself.
    - `aggregator`: how the next of several jumps is found, by default `dj.Direct()`.

    `dj.remake` takes the names of `prob` as well (`u0=`, `tspan=`, `p=`, ...), and `jumps=`, a
    tuple.

    **Raises:** `TypeError` for a `prob` or a jump that is none; `ValueError` without a jump.

    !!! example
        ```python
        sir = dj.MassActionJump(lambda p: p, [[1, 1, 0], [0, 1, 0]], [[-1, 1, 0], [0, -1, 1]])
        prob = dj.DiscreteProblem(jnp.array([999, 1, 0]), (0.0, 250.0), jnp.array([1e-4, 0.01]))
        sol = dj.solve(dj.JumpProblem(prob, sir), saveat=1.0, key=jax.random.key(0))
        ```
    """

    stochastic: ClassVar[bool] = True

    prob: Problem
    jumps: tuple[Jump, ...]
    aggregator: Any = eqx.field(static=True)

    def __init__(self, prob: Problem, *jumps: Jump, aggregator: Any = None) -> None:
        inner = isinstance(prob, Problem) and prob.evolves
        if not inner or isinstance(prob, JumpProblem | EnsembleProblem):
            raise TypeError(
                "prob must be what happens between jumps, such as dj.DiscreteProblem(u0, tspan, "
                f"p) or dj.ODEProblem(f, u0, tspan, p), got {type(prob).__name__}."
            )
        if not jumps:
            raise ValueError("a JumpProblem needs jumps, such as dj.ConstantRateJump(rate, affect)")
        for jump in jumps:
            if not isinstance(jump, Jump):
                label = getattr(jump, "__name__", type(jump).__name__)
                raise TypeError(
                    f"jumps must be like dj.ConstantRateJump(rate, affect), got {label}."
                )
        self.prob, self.jumps, self.aggregator = prob, jumps, aggregator

    @property
    def tspan(self) -> Any:
        """That of the problem between jumps."""
        return self.prob.tspan

    @property
    def u0(self) -> Any:
        """The initial state, or the function that computes it."""
        return self.prob.arguments()["u0"]

    @property
    def p(self) -> PyTree:
        """The parameters, as they were given."""
        return self.prob.arguments()["p"]

    def arguments(self) -> dict[str, Any]:
        own = {"prob": self.prob, "jumps": self.jumps, "aggregator": self.aggregator}
        return {**self.prob.arguments(), **own}

    def changed(self, **changes: Any) -> "JumpProblem":
        own = {k: changes.pop(k, getattr(self, k)) for k in ("prob", "jumps", "aggregator")}
        prob = remake(own["prob"], **changes) if changes else own["prob"]
        return JumpProblem(prob, *own["jumps"], aggregator=own["aggregator"])


def is_pure_jump(prob: Problem) -> TypeGuard[JumpProblem]:
    """Whether nothing happens between the jumps of a problem."""
    return isinstance(prob, JumpProblem) and isinstance(prob.prob, DiscreteProblem)
