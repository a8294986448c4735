"""What solving an ensemble gives back."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import Array, Int, PyTree

from ..solution import ReturnCode, Solution, Stats


class EnsembleSolution(eqx.Module):
    """The solutions of an ensemble's problems: a pytree of arrays, so it may leave a `jit`.

    - `u`: the states (or what `save_fn` gave), of shape (N, T, ...); with an `output_func` what
        that gave, stacked; with a `reduction` the accumulator. What was not reached is NaN.
    - `t`: times saved, shape (T,), if `saveat` is a number or an array; else (N, T), each
        trajectory's own (None with a `reduction`).
    - `retcode`: a `ReturnCode` for each trajectory, (N,); `stats`: a `Stats` of arrays (N,). None
        with a `reduction`.
    - `returned`: how many trajectories ended with each `ReturnCode`; `failed`: how many did not
        reach their end.

    Without `output_func` and `reduction`, `sol[i]` is the `Solution` of trajectory i.
    """

    t: Array | None
    u: PyTree
    retcode: Int[Array, " N"] | None
    stats: Stats | None
    returned: Int[Array, " codes"]
    _rest: Solution | None
    trajectories: int = eqx.field(static=True)

    @property
    def failed(self) -> Int[Array, ""]:
        """How many trajectories did not reach their end."""
        return self.returned[ReturnCode.terminated + 1 :].sum()

    def __len__(self) -> int:
        return self.trajectories

    def __getitem__(self, i: Any) -> Solution:
        if not -self.trajectories <= i < self.trajectories:
            raise IndexError(f"there are {self.trajectories} trajectories, and no {i}.")
        return jtu.tree_map(lambda x: x[i], self.solutions)

    @property
    def solutions(self) -> Solution:
        """Everything of every trajectory, as one `Solution` with a leading axis of length N."""
        if self._rest is None:
            raise ValueError(
                "whole solutions are not kept with an output_func or a reduction; sol.u is what is."
            )
        t = self.t
        if t is not None and t.ndim == 1:
            t = t[None].repeat(self.trajectories, 0)
        return replace(self._rest, t=t, u=self.u, stats=self.stats, _retcode=self.retcode)

    def plot(
        self, *, quantiles: tuple[float, float] = (0.05, 0.95), ts: Any = None, **options: Any
    ) -> Any:
        """Draw the mean and the band between two quantiles, at `ts` or the saved times.

        `paths=k` draws the first k trajectories as well; see `diffjax.plotting.plot_ensemble`.
        """
        from ..plotting import plot_ensemble
        from .summary import EnsembleSummary

        summary = EnsembleSummary(self, ts, quantiles=quantiles, covariance=False)
        return plot_ensemble(summary, sim=self, **options)


def parted(sol: Solution) -> Solution:
    """What `EnsembleSolution` keeps apart, left out."""
    return replace(sol, t=None, u=None, stats=None, _retcode=None)
