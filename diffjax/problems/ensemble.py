"""Many problems of one kind."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from .base import Problem
from .parts import Parts, UserFunction


def _same_problem(prob: Problem, i: Any, key: Any) -> Problem:
    return prob


class EnsembleProblem(Problem):
    """Many variants of one problem, solved together: `solve(..., trajectories=N)`.

    What these functions close over is differentiated and batched like `p`.

    **Arguments:**

    - `prob`: the problem that is varied, of any kind.
    - `prob_func`: `prob_func(prob, i, key) -> prob` makes the problem of trajectory i from `prob`,
        most often by `dj.remake`. `i` is a traced integer from 0, so tables are arrays and are
        indexed as such; `key` is the trajectory's own, `jax.random.fold_in(key, i)` of the key
        that `solve` was given (None without one; with `antithetic=True` two that follow one another
        have the same). All problems have the same shapes.
    - `output_func`: `output_func(sol, i) -> out`, what is kept of a trajectory's `dj.Solution`,
        any pytree of arrays.
    - `reduction`: `reduction(acc, outs) -> acc` folds the outputs of one tile of trajectories,
        stacked along a first axis (the last tile may be shorter), into an accumulator; without
        `output_func` an output is the trajectory's `u`. Nothing but the accumulator is kept. A
        `dj.ensembles.Reduction` such as `dj.EnsembleMoments()`, or a tuple of several, brings its
        own `init` and can be used with a mesh.
    - `init`: the accumulator to begin with, a pytree of arrays.

    **Raises:** `TypeError` for a `prob` that is no problem or is an ensemble, and for what should
    be a function and is none; `ValueError` for a `reduction` without `init` and the reverse.

    !!! example
        ```python
        rates = jnp.linspace(0.5, 2.0, 1000)
        ensemble = dj.EnsembleProblem(prob, lambda prob, i, key: dj.remake(prob, p=rates[i]))
        sol = dj.solve(ensemble, dj.Tsit5(), trajectories=1000, saveat=0.1)
        sol.u.shape  # (1000, times, ...)
        ```

    Source: the `EnsembleProblem` of DifferentialEquations.jl.
    """

    prob: Problem
    _prob_func: UserFunction
    _output_func: UserFunction | None
    _reduction: UserFunction | None
    _init: Parts

    def __init__(
        self,
        prob: Problem,
        prob_func: Callable[[Any, Any, Any], Problem] | None = None,
        output_func: Callable[[Any, Any], PyTree] | None = None,
        reduction: Any = None,
        init: PyTree = None,
    ) -> None:
        if not isinstance(prob, Problem) or isinstance(prob, EnsembleProblem):
            raise TypeError(
                "prob must be the problem that an ensemble varies, such as dj.ODEProblem(f, u0, "
                f"tspan, p), got {type(prob).__name__}."
            )
        for name, value, form in (
            ("prob_func", prob_func, "prob_func(prob, i, key) -> prob"),
            ("output_func", output_func, "output_func(sol, i) -> out"),
        ):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be a function {form}, got {type(value).__name__}.")
        _check_reduction(reduction, init)
        self.prob = prob
        self._prob_func = UserFunction(_same_problem if prob_func is None else prob_func)
        self._output_func = None if output_func is None else UserFunction(output_func)
        self._reduction = None if reduction is None else UserFunction(reduction)
        self._init = Parts(init)

    @property
    def tspan(self) -> Any:
        """That of the problem that is varied."""
        return self.prob.tspan

    @property
    def prob_func(self) -> Callable[[Any, Any, Any], Problem]:
        """What makes the problem of one trajectory."""
        return self._prob_func.value

    @property
    def output_func(self) -> Callable[[Any, Any], PyTree] | None:
        """What is kept of a trajectory, or None for all."""
        return None if self._output_func is None else self._output_func.value

    @property
    def reduction(self) -> Any:
        """What folds outputs into an accumulator, or None."""
        return None if self._reduction is None else self._reduction.value

    @property
    def init(self) -> PyTree:
        """The first accumulator, or None."""
        return self._init.value

    def arguments(self) -> dict[str, Any]:
        return {
            "prob": self.prob,
            "prob_func": self.prob_func,
            "output_func": self.output_func,
            "reduction": self.reduction,
            "init": self.init,
        }


def _check_reduction(reduction: Any, init: Any) -> None:
    if reduction is None:
        if init is not None:
            raise ValueError("init is the accumulator of a reduction; give reduction= as well.")
        return
    parts = reduction if isinstance(reduction, tuple) else (reduction,)
    brings_init = all(hasattr(part, "init") for part in parts)
    if not brings_init and not callable(reduction):
        raise TypeError(
            "reduction must be a function reduction(acc, outs) -> acc, or like "
            f"dj.EnsembleMoments(), got {type(reduction).__name__}."
        )
    if brings_init and init is not None:
        raise ValueError("init must be left out: this reduction brings its own.")
    if not brings_init and init is None:
        raise ValueError(
            "reduction needs init=, the accumulator to begin with, such as jnp.zeros(2); "
            "dj.EnsembleMoments() brings its own."
        )
