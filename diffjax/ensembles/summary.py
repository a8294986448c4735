"""An ensemble in a few curves."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from .solution import EnsembleSolution
from .statistics import component_covariance, meanvar, points, quantile


class EnsembleSummary(eqx.Module):
    """Mean, spread and quantiles of an ensemble over time.

    **Arguments:**

    - `sim`: the `EnsembleSolution`.
    - `ts`: the times, by default those saved; others need a solve with `dense=True`.
    - `quantiles`: the lower and the upper quantile of the band.
    - `covariance`: whether to compute `cov`, whose size is the square of that of a state.

    **Attributes:**

    - `t`: the times (T,).
    - `mean`, `median`, `var`, `qlow`, `qhigh`: like a trajectory, (T, ...).
    - `cov`: covariances between the d components of each leaf of the state, (T, d, d).
    - `quantiles`: the two quantiles.
    - `trajectories`, `failed`: how many there were, and how many of them did not reach their end.
        What is NaN is left out.

    **Raises:** `ValueError` where trajectories were saved at times of their own, and for what
    `timeseries_point_mean` and its kin refuse.

    !!! example
        `summary = dj.EnsembleSummary(sim, quantiles=(0.25, 0.75)); summary.plot()`
    """

    t: Array
    mean: PyTree
    median: PyTree
    var: PyTree
    qlow: PyTree
    qhigh: PyTree
    cov: PyTree
    failed: Int[Array, ""]
    trajectories: int = eqx.field(static=True)
    quantiles: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        sim: EnsembleSolution,
        ts: Any = None,
        *,
        quantiles: tuple[float, float] = (0.05, 0.95),
        covariance: bool = True,
    ) -> None:
        if ts is None and (sim.t is None or sim.t.ndim != 1 or sim.retcode is None):
            raise ValueError(
                "a summary needs trajectories saved at the same times: give saveat= as a number or "
                "an array and no reduction, or ts= with a solve that is dense=True."
            )
        u = sim.u if ts is None else points(sim, ts)
        self.t = jnp.asarray(sim.t if ts is None else ts)
        self.mean, self.var = meanvar(u)
        self.median = quantile(u, 0.5)
        self.qlow, self.qhigh = (quantile(u, q) for q in quantiles)
        self.cov = component_covariance(u) if covariance else None
        self.failed = sim.failed
        self.trajectories = sim.trajectories
        self.quantiles = quantiles

    def plot(self, **options: Any) -> Any:
        """Draw the mean and the band; see `diffjax.plotting.plot_ensemble`."""
        from ..plotting import plot_ensemble

        return plot_ensemble(self, **options)
